"""Which paths a pattern means."""

import pytest

from meshmw._policy.patterns import PathPatterns


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
