"""Which paths a pattern means."""

import re

import pytest

from meshmw._policy.patterns import Networks, PathPatterns


@pytest.mark.parametrize(
    ("patterns", "path", "expected"),
    [
        ([], "/health", False),
        (["/health"], "/health", True),
        (["/health"], "/health/", True),
        (["/health"], "/health/live", True),
        (["/health/"], "/health", True),
        (["/health"], "/healthy", False),
        (["/health"], "/api/health", False),
        (["/health"], "/HEALTH", False),
        (["/a.b"], "/aXb", False),
        (["/api/*/status"], "/api/v1/status", True),
        (["/api/*/status"], "/api/v1/status/x", False),
        (["/v?/x"], "/v1/x", True),
        (["/v[12]/x"], "/v3/x", False),
        (["/health", "/metrics"], "/metrics", True),
        (["/health", "/m*"], "/metrics", True),
        (["/"], "/anything", True),
        (["/health"], "/health\n", False),
    ],
)
def test_a_pattern_is_a_path_and_all_below_it_or_a_glob(patterns, path, expected):
    assert PathPatterns(patterns).match(path) is expected


def test_of_a_path_the_first_4096_characters_are_looked_at():
    patterns = PathPatterns(["/health", "/a*b"])
    assert patterns.match("/health/" + "x" * 70_000)
    assert patterns.match("/a" + "x" * 4093 + "b")
    assert not patterns.match("/a" + "x" * 4094 + "b")
    assert PathPatterns(["/a*"]).match("/a" + "x" * 70_000)


@pytest.mark.parametrize("end", ["/status", ".js", "/health"])
def test_no_pattern_finds_the_end_of_a_path_where_that_is_cut(end):
    patterns = PathPatterns(["/api/*/status", "*.js", "*/health"])
    # Of what holds a colon less is looked at.
    for begin, most in (("/api/", 4096), ("/api/a:b", 1024)):
        path = begin.ljust(most - len(end), "a") + end
        assert patterns.match(path)
        assert not patterns.match(f"{path}/../../admin")
        assert PathPatterns(["/api"]).match(f"{path}/../../admin")


@pytest.mark.parametrize("pattern", ["/api/*/?", "/api/*/[!a]", "/api/*/s??", "*/[!a-y]?", "/api/*[!b]", "/api/*[!/]"])
def test_no_character_of_a_pattern_stands_for_the_end_that_a_cut_path_does_not_have(pattern):
    for begin, most in (("/api/", 4096), ("/api/a:b", 1024)):
        for end in ("/", "/s", "/st"):
            path = begin.ljust(most - len(end), "b") + end
            assert not PathPatterns([pattern]).match(f"{path}zzz/admin")


def test_of_a_cut_path_the_beginning_is_found():
    for begin, most in (("/api/", 4096), ("/api/a:b", 1024)):
        path = begin.ljust(most + 9, "b")
        for pattern in ("/api", "/api/", "/api/*", "/a?i/*b*", "*bb*"):
            assert PathPatterns(["/x", pattern]).match(path)
        for pattern in ("/ap", path[:most], "/api/*c*"):
            assert not PathPatterns(["/x", pattern]).match(path)
    assert not PathPatterns().match("/api/".ljust(5000, "b"))


def test_all_below_a_path_is_whatever_stands_there():
    assert PathPatterns(["/health"]).match("/health/\n\x85")
    assert not PathPatterns(["/health"]).match("/health\n")


@pytest.mark.parametrize(("make", "name"), [(PathPatterns, "exclude"), (Networks, "trusted_peers")])
def test_a_text_is_no_list_of_its_characters_and_a_list_holds_texts(make, name):
    for wrong in ("/", b"/", 5):
        with pytest.raises(ValueError, match=rf"^{name} takes a list, not {re.escape(repr(wrong))}$"):
            make(wrong)
        with pytest.raises(ValueError, match=r"^mine takes a list, not"):
            make(wrong, "mine")
    with pytest.raises(ValueError, match=f"^{name} takes a list of texts, and 5 is none$"):
        make([5])


def test_a_pattern_of_paths_that_is_none_is_shown_escaped_and_short():
    with pytest.raises(ValueError, match=r"^exclude: 'a\\x1bb{58}'\.\.\. \(1002 characters\) is no pattern of paths"):
        PathPatterns(["a\x1b" + "b" * 1000])


def test_a_network_with_bits_beyond_its_prefix_is_named():
    with pytest.raises(ValueError, match=r"'10\.0\.0\.1/8' has bits beyond its prefix"):
        Networks(["10.0.0.1/8"])
