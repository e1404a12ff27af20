import copy
import pickle
import re
import threading
from types import MappingProxyType
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmw.errors import InvalidHeaderError
from meshmw.wire import BaggageValue, format_baggage, format_member, parse_baggage, parse_member
from meshmw.wire.baggage import MAX_BYTES, MAX_MEMBERS, REASONS, Members, read_members, whole_members
from tests.wire.claims import by_claim, outcome, vectors

VECTORS = vectors("baggage")
TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
OCTETS = r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*"
SHORT_OCTETS = r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]{0,9}"
OWS = r"[ \t]{0,2}"

keys = st.from_regex(TOKEN, fullmatch=True)
members = st.from_regex(
    rf"[a-c]{OWS}={OWS}{SHORT_OCTETS}(?:{OWS};{OWS}[p-r](?:{OWS}={OWS}{SHORT_OCTETS})?){{0,3}}", fullmatch=True
)
near_misses = st.text(alphabet=st.sampled_from('ab=,; \t%2"\\é\n+'))
any_text = st.text() | near_misses


def follows_abnf(header):
    # Split first: one pattern for a whole list would itself be slow on long spaces.
    property_ = rf"[ \t]*{TOKEN}[ \t]*(?:=[ \t]*{OCTETS}[ \t]*)?"
    for member in header.split(",") if header else []:
        first, *properties = member.split(";")
        if not re.fullmatch(rf"{TOKEN}[ \t]*=[ \t]*{OCTETS}[ \t]*", first):
            return False
        if not all(re.fullmatch(property_, text) for text in properties):
            return False
    return True


@pytest.mark.parametrize(
    ("text", "reason", "position"),
    [
        ("", "member", 0),
        ("a", "member", 1),
        ("=1", "key", 0),
        ("a b=1", "key", 0),
        ("é=1", "key", 0),
        ("a;p=1", "key", 0),
        ("a=1 2", "value", 2),
        (" a=é", "value", 2),
        ("a=1,b=2", "value", 2),
        ("a=1;", "property", 3),
        ("a=1;=", "property", 3),
        ("a=1;p=é", "property", 3),
    ],
)
def test_a_bad_member_is_refused_with_reason_and_place(text, reason, position):
    with pytest.raises(InvalidHeaderError) as caught:
        parse_member(text)

    assert caught.value.header == "baggage"
    assert (caught.value.reason, caught.value.position) == (reason, position)


@pytest.mark.parametrize("row", by_claim(VECTORS["read"]))
def test_good_members_are_decoded_and_bad_ones_alone_are_left_out(row):
    values, dropped = parse_baggage(row["lines"])

    assert values == row["values"]
    assert list(values) == list(row["values"])
    assert dropped == tuple(row["dropped"])
    for key, properties in row.get("properties", {}).items():
        assert values[key].properties == properties


@pytest.mark.parametrize("row", by_claim(VECTORS["read"]))
def test_what_nobody_changed_goes_out_as_it_came(row):
    values, _ = parse_baggage(row["lines"])

    assert format_baggage(values) == (row["out"], ())


@pytest.mark.parametrize("row", by_claim(VECTORS["read"]))
def test_what_goes_out_reads_as_the_same(row):
    values, _ = parse_baggage(row["lines"])
    again, dropped = parse_baggage(row["out"])

    assert again == values
    assert {key: value.raw for key, value in again.items()} == {key: value.raw for key, value in values.items()}
    assert dropped == ()


@pytest.mark.parametrize("row", by_claim(VECTORS["written"]))
def test_new_values_are_encoded(row):
    header, dropped = format_baggage(row["items"])

    assert (header, dropped) == (row["out"], tuple(row["dropped"]))
    assert follows_abnf(header)


def test_a_changed_value_is_written_anew_without_its_properties():
    values, _ = parse_baggage("a=1;p,b=x;q")

    assert format_baggage(values | {"a": "2 3", "b": values["b"].upper()}) == ("a=2%203,b=X", ())


def test_a_value_copied_to_another_key_is_written_under_that_key():
    values, _ = parse_baggage("a=x%20y;p")

    assert format_baggage({"b": values["a"], "a": values["a"]}) == ("b=x%20y,a=x%20y;p", ())


@pytest.mark.parametrize("raw", ["", "a", "b=1", "a=1,b=2", "a=1\r\nx: y", "a=é", "a=1,"])
def test_a_raw_text_that_is_not_this_keys_member_is_never_written(raw):
    assert format_baggage({"a": BaggageValue("v", raw)}) == ("a=v", ())


def test_an_object_that_has_no_text_is_left_out():
    class Broken:
        def __str__(self):
            raise RuntimeError("no text")

    assert format_baggage({"a": Broken(), "b": "1"}) == ("b=1", ("value",))


def test_a_bad_key_raises_where_one_member_is_written():
    with pytest.raises(ValueError, match="key"):
        format_member("a b", "1")


def test_64_members_are_kept_and_the_65th_is_left_out():
    line = ",".join(f"k{i}=1" for i in range(MAX_MEMBERS))

    assert (len(parse_baggage(line)[0]), parse_baggage(line)[1]) == (MAX_MEMBERS, ())
    values, dropped = parse_baggage([line, "more=1,and=2"])
    assert list(values) == [f"k{i}" for i in range(MAX_MEMBERS)]
    assert dropped == ("too_many_members",)


def test_members_of_one_key_each_count():
    values, dropped = parse_baggage("a=1,a=2,a=3", max_members=2)

    assert (values["a"], values["a"].raw, dropped) == ("2", "a=1,a=2", ("too_many_members",))
    assert format_baggage({"a": BaggageValue("2", "a=1,a=2"), "b": "3"}, max_members=2) == (
        "a=1,a=2",
        ("too_many_members",),
    )


def test_bad_and_empty_members_do_not_count():
    assert parse_baggage(",,x,y,a=1,b=2", max_members=2) == ({"a": "1", "b": "2"}, ("member",))


def test_8192_bytes_are_kept_and_one_more_is_not_cut_off():
    line = "a=" + "v" * (MAX_BYTES - 6) + ",b=1"
    assert len(line) == MAX_BYTES

    assert (list(parse_baggage(line)[0]), parse_baggage(line)[1]) == (["a", "b"], ())
    assert (list(parse_baggage(line + "2")[0]), parse_baggage(line + "2")[1]) == (["a"], ("too_many_bytes",))


def test_bytes_are_those_of_the_header_that_goes_out():
    assert parse_baggage("a=1 \t ,   b=2", max_bytes=7) == ({"a": "1", "b": "2"}, ())
    assert parse_baggage("a=1,b=2", max_bytes=6) == ({"a": "1"}, ("too_many_bytes",))


def test_a_member_of_any_length_is_kept_within_the_whole():
    line = "a=" + "v" * 5000

    assert parse_baggage(line)[0]["a"].raw == line


def test_reading_keeps_the_first_members_and_stops_at_the_limit():
    assert parse_baggage("a=1,b=" + "v" * 99 + ",c=3", max_bytes=50) == ({"a": "1"}, ("too_many_bytes",))


def test_writing_leaves_out_what_does_not_fit_and_no_more():
    items = {"a": "1", "b": "v" * 99, "c": " " * 40, "d": "4"}

    assert format_baggage(items, max_bytes=50) == ("a=1,d=4", ("too_many_bytes",))
    assert format_baggage({"a": "1", "b": "2"}, max_bytes=7) == ("a=1,b=2", ())
    assert format_baggage({"a": "1", "b": "2"}, max_bytes=6) == ("a=1", ("too_many_bytes",))
    assert format_baggage(items, max_members=0) == ("", ("too_many_members",))


@given(
    st.lists(st.sampled_from(["%", "%20", "=", "%3D", "a", "%e2", "%82", "%ac", "%a", "+", "%0a", "%0D"])).map("".join)
)
def test_values_are_decoded_as_the_standard_library_does(value):
    assert parse_member(f"a={value}")[1] == unquote(value, errors="replace")
    assert parse_baggage(f"a={value}")[0]["a"] == unquote(value, errors="replace")


def test_a_stray_percent_sign_stays_until_there_are_too_many():
    values, dropped = parse_baggage(",".join(f"k{n}=100%" for n in range(20)))
    assert (values["k15"], len(values), dropped) == ("100%", 16, ("value",))
    assert parse_baggage("a=" + "%zz" * 65)[0] == {}
    assert parse_baggage("a=" + "%20" * 20 + "%") == ({"a": " " * 20 + "%"}, ())
    assert len(parse_baggage("a=" + "%20" * 2730)[0]["a"]) == 2730


def test_a_value_that_is_refused_for_its_percent_signs_leaves_the_clean_ones_alone():
    line = ",".join(f"k{n}=100%,c{n}=%2C%20x" for n in range(20))
    values, dropped = parse_baggage(line)
    assert list(values) == [key for n in range(20) for key in ([f"k{n}"] if n < 16 else []) + [f"c{n}"]]
    assert ({values[f"c{n}"] for n in range(20)}, values["k15"], dropped) == ({", x"}, "100%", ("value",))
    values, dropped = parse_baggage("a=%20,a=" + "%zz" * 65 + ",a=3,b=1,a=%2c")
    assert ({key: (str(value), value.raw) for key, value in values.items()}, dropped) == (
        {"a": (",", "a=%20,a=3,a=%2c"), "b": ("1", "b=1")},
        ("value",),
    )


def test_values_that_are_refused_for_their_percent_signs_count_for_the_limits_and_for_nothing_else():
    strays = ",".join(f"k{n}=100%" for n in range(40))
    values, dropped = parse_baggage(f"{strays},c=%20")
    assert (len(values), values["c"], dropped) == (17, " ", ("value",))
    values, dropped = parse_baggage(f"{strays},c=%20", max_members=40)
    assert (len(values), dropped) == (16, ("too_many_members", "value"))


@pytest.mark.parametrize("pair", ["%e2,%82%ac", "%,41", "%4,1", "%e2%82,%ac", "%2,C", "%00%2C,%00", "a=,=3D"])
def test_values_that_are_decoded_together_do_not_reach_into_each_other(pair):
    one, other = pair.rsplit(",", 1)
    values, _ = parse_baggage(f"a={one},b={other},c=%20")
    assert values == {"a": unquote(one, errors="replace"), "b": unquote(other, errors="replace"), "c": " "}


def test_bad_members_cost_the_good_ones_nothing_until_there_are_too_many():
    good = ",a=1"
    assert parse_baggage("b," * 16 + good) == ({"a": "1"}, ("member",))
    assert parse_baggage("b," * 17 + good) == ({}, ("member", "too_many_members"))
    assert parse_baggage("b" * 2047 + good) == ({"a": "1"}, ("member",))
    assert parse_baggage("b" * 2048 + good) == ({}, ("member", "too_many_members"))
    assert parse_baggage("b" * 2048) == ({}, ("member",))


def test_members_have_256_properties_together():
    assert parse_baggage("a=1" + ";p" * 256)[1] == ()
    assert parse_baggage("a=1" + ";p" * 257) == ({}, ("property",))
    values, dropped = parse_baggage("a=1" + ";p" * 200 + ",b=1" + ";q" * 57 + ",c=1")
    assert (list(values), dropped) == (["a", "c"], ("property",))


def test_spaces_after_a_value_or_an_empty_one_are_no_part_of_it():
    values, _ = parse_baggage("a= , b=1 \t, c= ;p= , d=\t;q ")
    assert {key: value.raw for key, value in values.items()} == {"a": "a=", "b": "b=1", "c": "c= ;p=", "d": "d=\t;q"}
    with pytest.raises(InvalidHeaderError):
        parse_member("a ,=1")


def test_text_beyond_the_window_is_not_looked_at():
    spaces = " " * 37
    # 4 * 10 characters are looked at, which end in the middle of `b=2` or just after it.
    assert parse_baggage(["a=1", spaces[4:] + "b=2"], max_bytes=10) == ({"a": "1", "b": "2"}, ())
    assert parse_baggage(["a=1", spaces[3:] + "b=23"], max_bytes=10) == ({"a": "1"}, ("too_many_bytes",))
    assert parse_baggage(["a=1", spaces[4:] + "b=2", ""], max_bytes=10) == ({"a": "1", "b": "2"}, ("too_many_bytes",))
    assert parse_baggage(["a=1" + "," * 37 + "b=2,c=3"], max_bytes=10) == ({"a": "1"}, ("too_many_bytes",))


def test_work_is_bounded_on_any_text():
    read = []

    def endless():
        while True:
            read.append(1)
            yield ""

    assert parse_baggage(endless()) == ({}, ("too_many_bytes",))
    assert len(read) <= 4 * MAX_BYTES + 2
    for bad in ["k=" + " " * 8000 + '"', "k=1" + ";p= \t" * 1600 + '"', "k=1" + " ;p = " * 1300 + ";", "k" * 8000]:
        assert parse_baggage([bad] * 100)[0] == {}


def test_a_value_is_text_that_survives_pickle_and_copy():
    _, value = parse_member("a=x%20y;p=1")

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(value, protocol))
        assert (again, again.raw, type(again)) == ("x y", "a=x%20y;p=1", BaggageValue)
    for again in (copy.copy(value), copy.deepcopy(value)):
        assert (again, again.raw) == ("x y", "a=x%20y;p=1")
    assert isinstance(value, str)
    assert value == "x y"
    assert hash(value) == hash("x y")
    assert type(str(value)) is str


def lazy(header):
    return Members(read_members([header], MAX_MEMBERS, MAX_BYTES)[0])


LINE = "a=x%20y;p=1,b=2,a=%C3%A9 ; q"
LOOKS = {
    "get": lambda members: [members["a"], members.get("b"), members.get("c")],
    "items": lambda members: list(members.items()),
    "values": lambda members: [(value, value.raw) for value in members.values()],
    "copy": lambda members: [type(members.copy()), members.copy()],
    "dict": lambda members: {**dict(members), **members},
    "proxy": lambda members: [dict(MappingProxyType(members)), MappingProxyType(members)["a"].properties],
    "equal": lambda members: [members == {"a": "é", "b": "2"}, members == {"a": "é", "b": "2"}, members != {}],
    "each other": lambda members: [members == lazy(LINE), lazy(LINE) != members, lazy(LINE) | members],
    "union": lambda members: [members | {"c": "3"}, {"a": "1", "c": "3"} | members],
    "repr": repr,
    "copies": lambda members: [copy.copy(members), copy.deepcopy(members)],
    "pickle": lambda members: [(v, v.raw) for v in pickle.loads(pickle.dumps(members)).values()],
    "keys": lambda members: [list(members), list(members.keys()), len(members), "a" in members, bool(members)],
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_values_that_wait_are_to_whoever_looks_what_decoded_ones_are(look):
    for _ in range(2):
        assert look(lazy(LINE)) == look(parse_baggage(LINE)[0])


def test_the_header_is_made_anew_without_a_look_at_the_values_and_after_one():
    members = lazy(LINE)
    header = "a=x%20y;p=1,a=%C3%A9 ; q,b=2"
    assert members.joined() == header
    members.decode()
    members.decode()
    assert members.joined() == header


def test_threads_that_look_at_once_see_decoded_values():
    for _ in range(20):
        members = lazy(",".join(f"k{n}=%20{n}" for n in range(64)))
        expected = {f"k{n}": f" {n}" for n in range(64)}
        together, seen = threading.Barrier(4), []

        def look(members=members, together=together, seen=seen):
            together.wait()
            seen.append({key: (str(value), type(value)) for key, value in members.items()})

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [{key: (value, BaggageValue) for key, value in expected.items()}] * 4


def slowly(header, max_members, max_bytes):
    """Read member by member what `parse_baggage` reads as a whole."""
    header, was_cut = whole_members([header], 4 * max_bytes)
    kept, dropped, bad, size, properties = [], {}, 0, -1, 0
    for part in header.split(","):
        properties += part.count(";")
        text, junk = part.strip(" \t"), part.lstrip(" \t")
        if not text:
            continue
        found = outcome(parse_member, text)
        if not isinstance(found, InvalidHeaderError) and ";" in text and properties > 256:
            found = InvalidHeaderError("baggage", "property")
        is_bad = isinstance(found, InvalidHeaderError)
        if bad > 16 or (len(kept) == max_members and not is_bad):
            dropped["too_many_members"] = None
            break
        if is_bad:
            dropped[found.reason] = None
            bad += 1 + len(junk) // 128
            continue
        size += len(text) + 1
        if size > max_bytes:
            dropped["too_many_bytes"] = None
            break
        kept.append(found)
    if was_cut and not {"too_many_members", "too_many_bytes"} & set(dropped):
        dropped["too_many_bytes"] = None
    values, raws, escapes = {}, {}, 0
    for key, value in kept:
        encoded = value.raw.partition("=")[2].partition(";")[0]
        if re.search("%(?![0-9A-Fa-f]{2})", encoded):
            escapes += 3 + encoded.count("%")
            if escapes > 64:
                dropped["value"] = None
                continue
        values[key] = str(value)
        raws.setdefault(key, []).append(value.raw)
    return list(values.items()), [",".join(each) for each in raws.values()], tuple(dropped)


PIECES = st.sampled_from(
    [
        *(
            "a=1",
            " b = 1 ; p = 2 ",
            "c=%20;p",
            "c",
            "k=%e2%82%ac",
            "z=%zz",
            "z=%",
            "é",
            'b="',
            ";",
            " ",
            "",
            "m=1 2",
            "m= ",
        ),
        *("a=" + "v" * 300, "y=" + "%20" * 100, "k=1" + ";p" * 120, "j" * 200, "w=" + "v" * 9000, "q=1" + ";p" * 300),
        *("," * 5000, " " * 3000, "%a=1", "n=1" + ";p=%" * 20, "%2c=%3D=%2c", "x=1;", "x=1;p=é", "m= "),
    ]
)


@given(
    pieces=st.lists(PIECES, max_size=12),
    times=st.sampled_from([1, 7, 40]),
    max_members=st.sampled_from([0, 4, 64, 1000]),
    max_bytes=st.sampled_from([0, 100, 8192, 20_000]),
)
def test_a_header_reads_as_a_whole_as_it_does_member_by_member(pieces, times, max_members, max_bytes):
    header = ",".join(pieces * times)
    values, dropped = parse_baggage(header, max_members=max_members, max_bytes=max_bytes)
    raws = [value.raw for value in values.values()]
    assert (list(values.items()), raws, dropped) == slowly(header, max_members, max_bytes)


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        # More than one piece is looked at: blanks and bad members, and one member that is longer than a piece.
        ("," * 9000 + "a=1", ["a"]),
        (" " * 9000 + ",a=1,b", ["a"]),
        ("a=" + "v" * 9000 + ",b=1", ["a", "b"]),
        ("b=1,a=" + "v" * 9000, ["b", "a"]),
        ("," * 9000 + "a=1" + ";p" * 100 + "," * 9000 + "b=1" + ";p" * 156 + ",c=1;p,d=1", ["a", "b", "d"]),
    ],
)
def test_a_long_header_is_read_in_pieces(header, kept):
    assert list(parse_baggage(header, max_bytes=20_000)[0]) == kept


def test_every_reason_is_documented():
    reasons = {reason for row in VECTORS["read"] + VECTORS["written"] for reason in row["dropped"]}
    assert reasons | {"too_many_members", "too_many_bytes"} == set(REASONS)


@given(st.lists(any_text), st.integers(0, 4), st.integers(0, 40))
def test_any_lines_are_read_and_what_goes_out_keeps_the_limits_and_the_grammar(lines, max_members, max_bytes):
    values, dropped = parse_baggage(lines, max_members=max_members, max_bytes=max_bytes)
    header, none = format_baggage(values, max_members=max_members, max_bytes=max_bytes)

    assert set(dropped) <= set(REASONS)
    assert none == ()
    assert len(header) <= max_bytes
    assert follows_abnf(header)
    assert parse_baggage(header)[0] == values


@given(any_text)
def test_any_member_is_read_or_refused_with_a_documented_reason(text):
    parsed = outcome(parse_member, text)
    if isinstance(parsed, InvalidHeaderError):
        assert parsed.reason in REASONS
        assert 0 <= parsed.position <= len(text)
    else:
        key, value = parsed
        assert value.raw == text.strip(" \t")
        assert parse_baggage(text) == ({key: value}, ())


@given(st.lists(members, max_size=8))
def test_good_members_all_go_through_byte_for_byte(raws):
    values, dropped = parse_baggage(raws)
    header, _ = format_baggage(values)

    assert dropped == ()
    assert sorted(header.split(",") if header else []) == sorted(raw.strip(" \t") for raw in raws)


@given(keys, st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_what_is_written_reads_as_the_same(key, value):
    text = format_member(key, value)

    assert parse_member(text) == (key, value)
    assert parse_member(text)[1].raw == text
    assert follows_abnf(text)


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()), st.integers(0, 4), st.integers(0, 40))
def test_any_items_are_written_within_the_limits_and_the_grammar(items, max_members, max_bytes):
    header, dropped = format_baggage(items, max_members=max_members, max_bytes=max_bytes)

    assert set(dropped) <= set(REASONS)
    assert len(header) <= max_bytes
    assert not header or header.count(",") < max_members
    assert follows_abnf(header)
