"""Lines of access logs: each is read in the one way that there is, or not at all."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmw._tools.access_log.formats import (
    ENVOY_DEFAULT,
    FIELDS,
    ISTIO_DEFAULT,
    KNOWN_FORMATS,
    JsonFormat,
    TextFormat,
    detect,
    format_of,
    known_formats,
)
from meshmw._tools.access_log.rows import ALONE, row_of
from meshmw._tools.access_log.source import ENVELOPES

TRACED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TAIL = " traceparent=%REQ(TRACEPARENT)% tracestate=%REQ(TRACESTATE)%"
# As Envoy 1.40 wrote them.
ENVOY = (
    '[2026-11-22T16:47:30.750Z] "GET /p?q="1"&traceparent=x HTTP/1.1" 200 - 0 271 1 0 "-" "py/1" '
    '"9acb4236-4cdf-4863-b1e2-5f786b9484ea" "svc" "127.0.0.1:46425"'
)
REFUSED = '[2026-11-22T16:47:30.760Z] "- - HTTP/1.1" 400 DPE 0 11 0 - "-" "-" "-" "-" "-"'
ISTIO = (
    '[2026-11-22T16:47:30.750Z] "GET /p?q="1"&traceparent=x HTTP/1.1" 200 - via_upstream - "-" 0 271 1 0 "-" "py/1" '
    '"9acb4236-4cdf-4863-b1e2-5f786b9484ea" "svc" "127.0.0.1:46425" up 127.0.0.1:52658 127.0.0.1:38417 '
    f"127.0.0.1:56222 - - traceparent={TRACED} tracestate=a=1,b=2"
)


def test_envoys_own_format():
    reader = TextFormat.compile(ENVOY_DEFAULT)
    read = reader.read(ENVOY)
    assert read == {
        "method": "GET",
        "path": '/p?q="1"&traceparent=x',
        "code": "200",
        "user_agent": "py/1",
        "request_id": "9acb4236-4cdf-4863-b1e2-5f786b9484ea",
        "authority": "svc",
        "upstream": "127.0.0.1:46425",
    }
    assert reader.read(REFUSED)["path"] == "-"
    assert "traceparent" not in reader.names


def test_istios_format_with_the_headers_behind_it():
    reader = TextFormat.compile(ISTIO_DEFAULT + TAIL + "\\n")
    read = reader.read(ISTIO)
    assert (read["traceparent"], read["tracestate"]) == (TRACED, "a=1,b=2")
    assert (read["cluster"], read["route"], read["details"]) == ("up", "-", "via_upstream")
    spaced = ISTIO.replace("a=1,b=2", "a=1, b=2")
    assert reader.read(spaced)["tracestate"] == "a=1, b=2"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # A user agent that brings a request id and an authority of its own.
        ('"py/1"', '"py/1" "fake-request-id" "fake-authority"'),
        # A tracestate that brings another one.
        ("tracestate=a=1", "tracestate=a=1 tracestate=b=1"),
        # A user agent that brings the rest of the line.
        ('"py/1"', f'"py/1" "r" "svc" "127.0.0.1:1" up - - - - - traceparent={TRACED} tracestate=" "x"'),
    ],
)
def test_a_line_that_can_be_read_in_several_ways_is_ambiguous(old, new):
    assert TextFormat.compile(ISTIO_DEFAULT + TAIL).read(ISTIO.replace(old, new)) == "ambiguous"


@pytest.mark.parametrize("line", ["", "[", "garbage", ISTIO[:-30].partition(" traceparent")[0], ENVOY[1:], ENVOY + "x"])
def test_a_line_that_is_not_in_the_format_is_broken(line):
    assert TextFormat.compile(ISTIO_DEFAULT + TAIL).read(line) == "broken"
    assert TextFormat.compile(ENVOY_DEFAULT).read(line if line != ISTIO else "") == "broken"


def test_a_hostile_line_costs_a_bounded_time():
    reader = TextFormat.compile(ISTIO_DEFAULT + TAIL)
    assert reader.read(ISTIO.replace("py/1", '" "' * 10_000)) == "ambiguous"
    assert reader.read(ISTIO.replace("py/1", '" "' * 20_000)) == "broken"
    # However odd, there is one reading of this.
    assert reader.read(ISTIO.replace("py/1", '"' * 30_000))["user_agent"] == '"' * 30_000


hostile = st.text(
    st.sampled_from('ab1-=" ,|\t\x1b%/\u2028') | st.characters(codec="utf-8", exclude_characters="\n"), max_size=30
)
FORMATS = [
    ISTIO_DEFAULT + TAIL,
    ENVOY_DEFAULT,
    '%START_TIME% %REQ(TRACEPARENT)%|"%REQ(USER-AGENT)%" %RESPONSE_CODE%',
    'ts=%REQ(TRACESTATE)%, tp=%REQ(TRACEPARENT)% x="%REQ(:PATH)% %PROTOCOL%"',
    "%REQ(TRACEPARENT)%::%REQ(TRACESTATE)%\t%REQ(X-REQUEST-ID)%",
    "%RESPONSE_CODE%0%REQ(TRACEPARENT)%%%",
    "<%REQ(TRACEPARENT)%>",
]
OPERATOR = re.compile(r"%([A-Z_]+)(?:\([^)]*\))?(?::\d+)?%|%%")
TIGHT = {
    "PROTOCOL": "HTTP/1.1",
    "RESPONSE_CODE": "200",
    "RESPONSE_FLAGS": "UF,URX",
    "BYTES_RECEIVED": "0",
    "BYTES_SENT": "271",
    "DURATION": "-",
    "UPSTREAM_HOST": "10.0.0.1:80",
    "TRACE_ID": "0af7651916cd43dd8448eb211c80319c",
    "ACCESS_LOG_TYPE": "DownstreamEnd",
}


@given(st.sampled_from(FORMATS), st.data())
def test_what_is_read_is_what_was_written_or_nothing(source, data):
    """Whatever headers hold, no field is ever read with another's text."""
    reader, written = TextFormat.compile(source), {}

    def fill(match):
        if match[1] is None:
            return "%"
        value = TIGHT.get(match[1]) or data.draw(hostile)
        name = FIELDS.get(match[0])
        if name:
            written[name] = value
        return value

    line = OPERATOR.sub(fill, source)
    read = reader.read(line)
    if isinstance(read, str):
        assert read in ("ambiguous", "broken")
        assert read == "ambiguous", (source, line)
    else:
        assert read == written


def alone_and_in_bulk(reader, lines):
    """Return the rows of lines, each read alone and all read in bulk, without their order."""
    # A file from elsewhere may end its lines in CRLF.
    found = [reader.read(line.removesuffix("\r")) for line in lines]
    alone = [row_of(read) for read in found if not isinstance(read, str)]
    block = reader.read_block("\n".join(lines).encode("utf-8", "surrogateescape"))
    taken = [(shape.path, shape.counted, shape.joined, row) for shape, rows in block.rows for row in rows]
    bulk = [(path(row), counted(row), joined(row)) for path, counted, joined, row in taken]
    return (
        sorted((ALONE.path(row), ALONE.counted(row), ALONE.joined(row)) for row in alone),
        sorted(bulk),
        block.lines - len(bulk) == sum(1 for line in lines if line.strip()) - len(alone),
    )


value = st.sampled_from(["", "-", "0", "200", TRACED, TRACED.upper(), TRACED[:-1] + "0", "a=1", TRACED[3:35], "/p?q=1"])


@given(st.sampled_from(FORMATS), st.lists(st.lists(value | hostile, min_size=30, max_size=30), min_size=1, max_size=3))
def test_lines_in_bulk_are_read_as_each_alone(source, drawn):
    lines = []
    for values in drawn:
        given = iter(values)
        lines.append(OPERATOR.sub(lambda match, given=given: TIGHT.get(match[1], next(given)), source))
    alone, bulk, counts = alone_and_in_bulk(TextFormat.compile(source), lines)
    assert counts
    assert alone == bulk


KNOWN_KEYS = (
    "method path traceparent tracestate response_code b3 x-b3-traceid trace_id request url upstream_host authority"
)
keys = st.sampled_from([*KNOWN_KEYS.split(), "upstream_cluster", "RequestPath", "labels", "x", 'a"b'])
scalars = value | hostile | st.none() | st.integers(-1, 500) | st.booleans() | st.floats(allow_nan=False)
values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(keys, scalars, max_size=2)
separators = st.sampled_from([(",", ":"), (", ", ": ")])


@given(st.lists(st.tuples(st.dictionaries(keys, values, max_size=6), separators), min_size=1, max_size=4), st.data())
def test_json_in_bulk_is_read_as_each_alone(objects, data):
    lines = [json.dumps(each, separators=how) for each, how in objects for _ in range(2)]
    lines[1] = data.draw(st.sampled_from([lines[1], lines[1][:-1], lines[1].replace('"', "'"), "{}", lines[1] + "\r"]))
    # Values of the first line under the keys of another, as the next line of the same make has them.
    if objects[0][0]:
        again = {key: data.draw(values) for key in objects[0][0]}
        lines.append(json.dumps(again, separators=objects[0][1]))
    alone, bulk, counts = alone_and_in_bulk(JsonFormat(), lines)
    assert counts
    assert alone == bulk


@pytest.mark.parametrize("first", [None, 5, True])
def test_a_request_that_only_later_lines_have_is_read_in_bulk(first):
    lines = [json.dumps({"request": request, "tracestate": "a=1"}) for request in (first, first, "GET /a HTTP/1.1")]
    alone, bulk, counts = alone_and_in_bulk(JsonFormat(), lines)
    assert counts
    assert alone == bulk


def test_lines_that_no_strict_pattern_reads_are_read_alone():
    reader = TextFormat.compile("%REQ(TRACEPARENT)%::%REQ(TRACESTATE)%")
    alone, bulk, counts = alone_and_in_bulk(reader, [f"{TRACED}::a=1", "", "a::b::c"])
    assert counts
    assert len(alone) == 1
    assert alone == bulk


@pytest.mark.parametrize("part", [" ", '"', "a", "-", "0", "[", '" "', "/", "?", "00-", "{", '{"a":', "\\"])
def test_no_text_costs_more_than_its_length(part):
    """64 KiB of what separates fields, or of what they are made of; a pattern that went back over it took minutes."""
    text = ((part * 65_536)[:65_536] + "\n").encode()
    for reader in known_formats():
        for start in (b"", ISTIO.encode()[:60], ENVOY.encode()[:-1]):
            reader.read_block(start + text)
    for envelope in (kind() for kind in ENVELOPES):
        envelope.unwrap([text[:-1], b"2026-11-22T16:47:30.750Z stdout F " + text[:-1]])


@given(st.text(max_size=200))
def test_no_text_raises(text):
    for source in FORMATS:
        TextFormat.compile(source).read(text)
    JsonFormat().read(text)


@pytest.mark.parametrize(
    ("source", "fault"),
    [("%BYTES_SENT%", "prints none of"), ("%REQ(TRACEPARENT)%%REQ(TRACESTATE)%", "nothing between"), ("x", "none of")],
)
def test_formats_that_cannot_be_read(source, fault):
    with pytest.raises(ValueError, match=fault):
        TextFormat.compile(source)


def test_formats_are_found_out_from_lines():
    assert detect([ENVOY, REFUSED]).source == ENVOY_DEFAULT
    assert detect([ISTIO]).source == ISTIO_DEFAULT + TAIL
    assert detect(['{"traceparent":null}', "a warning of the proxy's own"]).source == "json"
    short = f'[x] "GET /p?q="1"&traceparent=x" 200 traceparent={TRACED} tracestate='
    assert detect([short]).source == KNOWN_FORMATS[-1]
    assert detect([ENVOY + f' "{TRACED}"']).names[-1] == "traceparent"
    assert detect(["nothing", "of", "ours", ""]) is None
    assert detect([]) is None


def test_formats_that_a_user_names():
    assert format_of("auto") is None
    assert format_of("istio").source == ISTIO_DEFAULT
    assert format_of("envoy").source == ENVOY_DEFAULT
    assert format_of("json").source == "json"
    assert format_of("auto", {"traceparent": "labels.tp"}).source == "json"
    assert format_of("%REQ(TRACEPARENT)%\\n").read(TRACED) == {"traceparent": TRACED}
    with pytest.raises(ValueError, match=r"^format takes auto, json, envoy, istio or an Envoy format"):
        format_of("nginx")
    with pytest.raises(ValueError, match="colour: no such field"):
        format_of("json", {"colour": "x"})


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ('{"traceparent":null,"path":"/","response_code":200}', {"path": "/", "code": "200"}),
        (
            '{"traceparent":"","tracestate":"a=\\"1\\" traceparent=x"}',
            {"traceparent": "", "tracestate": 'a="1" traceparent=x'},
        ),
        ('{"tp":"-"}', {"traceparent": "-"}),
        ('{"traceparent":"the best key","tp":"x"}', {"traceparent": "the best key"}),
        ('{"tp":"x","traceparent":"the best key"}', {"traceparent": "the best key"}),
        ('{"tp":"a","tp":"b"}', "ambiguous"),
        ('{"nested":{"a":1,"a":2}}', "ambiguous"),
        ('{"tp":', "broken"),
        ("[1]", "broken"),
        ("[" * 100_000, "broken"),
        ('{"code":' + "1" * 5000 + "}", "broken"),
    ],
)
def test_json(line, read):
    assert JsonFormat().read(line) == read


def test_json_where_a_user_says_a_field_is():
    reader = JsonFormat({"traceparent": "labels.tp", "path": "url"})
    assert reader.read('{"labels":{"tp":"x"},"url":"/a","traceparent":"ignored"}') == {"traceparent": "x", "path": "/a"}
    assert reader.read('{"labels":{"tp":null}}') == {}
    assert reader.read('{"labels":"x"}') == {}


def test_the_end_of_a_format_is_distinguished_from_the_same_text_within_it():
    reader = TextFormat.compile("a %REQ(:PATH)% %RESPONSE_CODE% %REQ(TRACEPARENT)% ")
    assert reader.read('a /x y" 200 t ') == {"path": '/x y"', "code": "200", "traceparent": "t"}
    assert reader.read('a /x y" 200 t') == "broken"
