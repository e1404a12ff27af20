"""What is remembered or written in a shorter way says the same as what it stands for."""

from __future__ import annotations

import gc
import weakref
from functools import cache
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased

from meshmw import MeshPropagator, asgi, set_route, wsgi
from meshmw._context import extraction, read_trace
from meshmw._context.extraction import READ_KEY, HeaderReader
from meshmw._context.read_baggage import BaggageReader
from meshmw._context.read_trace import REPEATED_STATE, TraceReader
from meshmw._lifecycle import http_conventions, operation
from meshmw._lifecycle import http_conventions as http
from meshmw._lifecycle.decide import decide
from meshmw._lifecycle.http import HttpOperation, begin_server, current_operation
from meshmw._lifecycle.http_conventions import server_attributes
from meshmw._notices import Rejections
from meshmw._policy.patterns import BaggageKeys
from meshmw._runtime import Runtime, tracer_of
from meshmw.wire import parse_baggage
from meshmw.wire.baggage import is_raw_of

MEMBERS = st.lists(
    st.sampled_from(["a=1", "b=2;p=3", "a=%20", "c", "=x", " d = 4 ", "", "k=" + "v" * 3000]), max_size=9
)


@pytest.fixture(autouse=True, scope="module")
def somebody_measures():
    """Have what is accepted counted, as where there is a meter provider."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (extraction, read_trace):
            patch.setattr(module, "IS_COUNTED", lambda: True)
        yield


TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
# What the grammars make something of, and what none of them allows.
ANYTHING = st.text(st.sampled_from('ab=;,% \t"0-\x00\n\xe9\u0131'), max_size=12)


def test_a_tracestate_that_is_too_long_to_be_remembered_is_read_all_the_same():
    read = MeshPropagator().read({"traceparent": [TRACEPARENT], "tracestate": [FULL_STATE]})
    assert len(FULL_STATE) > REPEATED_STATE
    assert (read.span_context.trace_state.to_header(), read.refused) == (FULL_STATE, ())


def lines(*of):
    return st.lists(st.one_of(*of), max_size=3)


def fields(version, trace_id, parent_id, flags):
    return st.builds("-".join, st.tuples(*map(st.sampled_from, (version, trace_id, parent_id, flags))))


PARENTS = fields(["00"], [TRACE_ID, "1" * 32], [PARENT_ID, "1" * 16], ["00", "01", "02", "03", "ff"])
ODD_PARENTS = fields(
    ["00", "01", "ff", "0"], [TRACE_ID, TRACE_ID.upper(), "0" * 32, TRACE_ID[1:]], [PARENT_ID, "0" * 16], ["01", "1"]
)
STATES = st.lists(
    st.sampled_from(["a=1", " b=2\t", "a=3", "", "=", "A=1", "t@v=1", "c= x", "a=" + "x" * 257, "d=" + "x" * 256]),
    max_size=4,
).map(",".join)
FULL_STATE = ",".join(f"k{n}={'v' * 256}" for n in range(32))
LONG_STATES = st.sampled_from(
    [",".join(f"k{n}=1" for n in range(count)) for count in (32, 33)] + [FULL_STATE, f"{FULL_STATE},", "," * 40_000]
)
LONG_BAGGAGE = st.sampled_from(
    ["a=1" + "," * 8188, "a=1" + "," * 8189, "a=1" + " " * 8190, ",".join(f"k{n}=1" for n in range(65)), "," * 40_000]
)
PLAIN_PARENT = st.lists(PARENTS, min_size=1, max_size=1)
BESIDE = {
    "tracestate": lines(STATES, LONG_STATES) | lines(STATES, ANYTHING),
    "baggage": lines(MEMBERS.map(",".join), LONG_BAGGAGE) | lines(MEMBERS.map(",".join), ANYTHING),
    "x-meshmw-sent": lines(st.sampled_from([f"{PARENT_ID}-01", f"{PARENT_ID}-00"]), ANYTHING),
    "x-request-id": lines(st.sampled_from(["a", "x" * 1024, "x" * 1025]), ANYTHING),
    "x-tenant": lines(ANYTHING),
    "b3": st.just([f"{TRACE_ID}-{PARENT_ID}-1"]),
}
ODD_PARENT = lines(PARENTS, ODD_PARENTS, PARENTS.map(" {}\t".format), PARENTS.map("{},".format), ANYTHING)
GLUED_PARENT = st.tuples(PARENTS, ANYTHING).map(lambda parts: ["".join(parts)])
REQUESTS = (
    st.fixed_dictionaries({"traceparent": PLAIN_PARENT}, optional=BESIDE)
    | st.fixed_dictionaries({"traceparent": PLAIN_PARENT, "baggage": lines(MEMBERS.map(",".join), LONG_BAGGAGE)})
    | st.fixed_dictionaries({}, optional=BESIDE | {"traceparent": ODD_PARENT | GLUED_PARENT})
)


class Heard(Rejections):
    """Notes all that it is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def accepted(self, headers):
        self.told += headers

    def record(self, *of_header, outcome="refused"):
        self.told.append((*of_header, outcome))


@cache
def header_reader(formats, policy, duplicates, max_bytes, keys):
    """The same one for all examples: what it remembers of one must not show in another."""
    heard = Heard()
    trace_reader = TraceReader(formats=formats, traceparent_policy=policy, duplicates=duplicates, prefer="w3c")
    baggage_reader, takes = BaggageReader(BaggageKeys(keys), 64, max_bytes), "baggage" in formats
    passed = ("x-request-id", "x-tenant")
    reader = HeaderReader(
        trace=trace_reader, baggage=baggage_reader, takes_baggage=takes, passthrough=passed, rejections=heard
    )
    return reader, heard


def in_full(extraction):
    """Equal texts that came in different ways, and equal states in another order, are not the same."""
    parent = extraction.span_context
    members = [(key, str(value), value.raw) for key, value in extraction.baggage.items()]
    return extraction, parent and (tuple(parent), parent.trace_state.to_header()), members


FORMATS = [("tracecontext", "baggage"), ("tracecontext",), ("baggage",), ("tracecontext", "b3")]
MOST_BYTES = [8, 8192, 16_384]
KEYS = [("*",), ("!b",)]


def assert_is_read_the_same(request, formats, max_bytes, keys, policy="strict", duplicates="restart"):
    reader, heard = header_reader(formats, policy, duplicates, max_bytes, keys)
    heard.told.clear()
    found, told = reader.read(request), sorted(map(repr, heard.told))
    heard.told.clear()
    assert in_full(reader.read_with_care(request)) == in_full(found)
    assert sorted(map(repr, heard.told)) == told


@given(
    request=REQUESTS,
    formats=st.sampled_from(FORMATS),
    max_bytes=st.sampled_from(MOST_BYTES),
    keys=st.sampled_from(KEYS),
    policy=st.sampled_from(["strict", "w3c"]),
    duplicates=st.sampled_from(["restart", "same-trace"]),
)
def test_what_is_read_in_one_pass_is_read_the_same_with_care(request, formats, max_bytes, keys, policy, duplicates):
    assert_is_read_the_same(request, formats, max_bytes, keys, policy, duplicates)


@pytest.mark.parametrize(
    "beside",
    [
        {"traceparent": []},
        {"traceparent": [TRACEPARENT, TRACEPARENT]},
        {"traceparent": [f"{TRACEPARENT[:-2]}03"], "x-request-id": ["abc"]},
        {"traceparent": [f"{TRACEPARENT[:-2]}00"], "x-meshmw-sent": [f"{PARENT_ID}-01"]},
        {"tracestate": ["b=2,a=1"]},
        {"tracestate": ["b=2", "a=1"]},
        {"tracestate": ["b=2", "="]},
        {"baggage": ["a=1"]},
        {"baggage": ["a=1;p", "b=2"]},
        {"baggage": ["a=1", "="]},
        {"baggage": ["a=1" + " " * 8190]},
        {"baggage": [f"k{number}=1" for number in range(65)]},
        {"x-request-id": ["x" * 1025]},
        {"x-request-id": ["caf\xe9"], "x-tenant": ["a", "b"]},
    ],
    ids=lambda beside: str(beside)[:60],
)
def test_each_turn_of_the_one_pass_is_taken_with_care_too(beside):
    for formats, max_bytes, keys in product(FORMATS, MOST_BYTES, KEYS):
        assert_is_read_the_same({"traceparent": [TRACEPARENT]} | beside, formats, max_bytes, keys)


class OnePass(HeaderReader):
    """Hands on what is not read in one pass."""

    def __init__(self, otherwise):
        super().__init__(
            trace=TraceReader(
                formats=["tracecontext"], traceparent_policy="strict", duplicates="restart", prefer="w3c"
            ),
            baggage=BaggageReader(BaggageKeys(), 64, 20_000),
            passthrough=["x-request-id"],
            rejections=Rejections(),
        )
        self.read_with_care = otherwise


def test_nearly_every_request_is_read_in_one_pass(monkeypatch):
    monkeypatch.setattr(TraceReader, "read", None)
    request = {"traceparent": [TRACEPARENT], "tracestate": ["a=1"], "baggage": ["a=1"], "x-request-id": ["1"]}
    sent = {"x-meshmw-sent": [f"{PARENT_ID}-01"]}
    assert set(MeshPropagator().read(request | sent).baggage) == {"a"}


def test_a_tracestate_that_is_too_long_to_be_remembered_is_left_to_the_reader_that_takes_its_time():
    handed_on = []
    reader = OnePass(otherwise=handed_on.append)
    members = ",".join(f"k{number}={'v' * 200}" for number in range(12))
    short, long = ({"traceparent": [TRACEPARENT], "tracestate": [members[:length]]} for length in (2048, 2049))
    assert reader.read(short) is not None
    assert (reader.read(long), handed_on) == (None, [long])


@pytest.mark.parametrize("baggage", ["a=" + "v" * 8191, "a=1,=", ",".join(f"k{number}=1" for number in range(65))])
def test_of_a_request_that_is_plain_but_for_its_baggage_only_that_is_read_with_care(baggage):
    read = OnePass(otherwise=None).read({"traceparent": [TRACEPARENT], "baggage": [baggage]})
    members, reasons = parse_baggage(baggage, max_bytes=20_000)
    assert (read.baggage, read.refused) == (members, tuple(("baggage", reason) for reason in reasons))
    assert read.span_context.is_valid


def test_what_was_just_extracted_is_not_read_once_more_to_be_checked():
    propagator, lines = MeshPropagator(), {"traceparent": [TRACEPARENT]}
    extraction = propagator.extract({"traceparent": TRACEPARENT})[READ_KEY]
    assert propagator.check(lines) is extraction
    assert MeshPropagator().check(lines) is not extraction
    assert propagator.check(lines | {"baggage": ["a=1"]}).baggage == {"a": "1"}


@given(lines=st.lists(MEMBERS.map(",".join), min_size=1, max_size=3))
def test_baggage_reads_the_same_the_second_time(lines):
    propagator = MeshPropagator()
    members, _ = parse_baggage(lines)
    readings = [propagator.read({"baggage": lines}) for _ in range(2)]
    for reading in readings:
        assert {key: (value, value.raw) for key, value in reading.baggage.items()} == {
            key: (value, value.raw) for key, value in members.items()
        }
    assert readings[0] == readings[1]


def test_remembered_baggage_is_not_changed_by_what_an_application_sets():
    propagator = MeshPropagator()
    context = propagator.extract({"baggage": "a=1"})
    baggage.set_baggage("b", "2", context)
    assert set(propagator.read({"baggage": ["a=1"]}).baggage) == {"a"}


@pytest.mark.parametrize("raw", ["k=v", "k=v,k=w", "j=v", "k", "k=" + "v" * 300, "j=" + "v" * 300])
def test_a_raw_text_is_checked_the_same_whatever_its_length(raw):
    expected = raw.startswith("k=")
    assert is_raw_of("k", raw) is expected
    assert is_raw_of("k", raw) is expected


@given(
    method=st.sampled_from(["GET", "BREW", "M" * 600]),
    authority=st.none() | st.text(max_size=20) | st.just("a" * 600) | st.just("a.b:80"),
    scheme=st.sampled_from(["http", "x"]),
    user_agent=st.none() | st.text(max_size=20) | st.just("a" * 600),
    # With a colon it may be a target in absolute form, of which only the path is said.
    path=st.text(st.characters(exclude_characters=":"), max_size=3),
)
def test_attributes_are_the_same_the_second_time_and_the_callers_own(method, authority, scheme, user_agent, path):
    asked = {"method": method, "authority": authority, "scheme": scheme, "user_agent": user_agent, "path": path}
    asked |= {"query": "", "protocol_version": "1.1", "client": "10.0.0.1", "client_port": 1}
    first = server_attributes(**asked)
    found = dict(first)
    first.clear()
    assert server_attributes(**asked) == found
    assert found.get("user_agent.original", "") == (user_agent or "")
    assert found["url.path"] == path
    assert found["http.request.method"] == (method if method == "GET" else "_OTHER")
    assert http_conventions.address_attributes("server", authority, scheme).items() <= found.items()


@pytest.mark.parametrize("long", ["method", "scheme", "authority", "protocol_version", "user_agent"])
def test_what_a_stranger_makes_long_is_not_remembered(long):
    asked = dict.fromkeys(["method", "scheme", "authority", "protocol_version", "user_agent"], "x")
    before = http._repeated.cache_info().currsize
    server_attributes(**asked | {long: "y" * 509}, path="/", query="", client=None, client_port=None)
    assert http._repeated.cache_info().currsize == before


def test_the_same_tracestate_is_read_once():
    read = MeshPropagator().read
    first, second = (read({"traceparent": [TRACEPARENT], "tracestate": ["a=1", "b=2"]}) for _ in range(2))
    assert first.span_context.trace_state is second.span_context.trace_state


def test_lazy_attributes_hand_out_all_at_once_what_they_hand_out_singly():
    built = server_attributes(
        method="GET",
        scheme="http",
        path="/",
        query="",
        authority="a.b",
        protocol_version="1.1",
        client="10.0.0.1",
        client_port=1,
        user_agent="x",
    )
    lazy = operation.LazyAttributes(lambda: built)
    assert dict(lazy.items()) == {key: lazy[key] for key in lazy} == built
    assert len(lazy) == len(built)


@pytest.mark.parametrize(
    ("provider", "flags"), [(trace.NoOpTracerProvider(), "01"), (TracerProvider(sampler=ParentBased(ALWAYS_ON)), "00")]
)
@pytest.mark.parametrize("request_of", [asgi._AsgiRequest, wsgi._WsgiRequest])
def test_nothing_is_worked_out_for_a_span_that_is_not_recorded(provider, flags, request_of, monkeypatch):
    monkeypatch.setattr(request_of, "attributes", None)
    effective = Runtime(tracer=tracer_of(provider))
    scope = {"path": "/", "headers": [(b"traceparent", f"{TRACEPARENT[:-2]}{flags}".encode())]}
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "HTTP_TRACEPARENT": f"{TRACEPARENT[:-2]}{flags}"}
    lines = {"traceparent": [f"{TRACEPARENT[:-2]}{flags}"]}
    request = request_of("GET", "/", lines, scope if request_of is asgi._AsgiRequest else environ)
    extraction = effective.propagator.read(request.lines)
    decision = decide(extraction, "continue", Context(), effective.propagator)
    operation = begin_server(request, decision, Context(), effective)
    assert operation.span.get_span_context().trace_id == int(TRACE_ID, 16)
    operation.end()


def test_an_operation_that_serves_nothing_is_answered_without_complaint():
    operation = HttpOperation(trace.INVALID_SPAN, Context(), "GET", owned=False)
    operation.answered()
    operation.end()
    assert operation.is_over


class Held:
    """Stands in a request, to see how long it is held."""


def asgi_request(seen: list[object]) -> None:
    async def app(scope, receive, send):
        seen.append(scope["meshmw.operation"].context)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def nothing(*_):
        pass

    held = Held()
    seen.append(weakref.ref(held))
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "held": held}
    serving = asgi.TraceContextMiddleware(app, propagator=MeshPropagator())(scope, nothing, nothing)
    with pytest.raises(StopIteration):
        serving.send(None)


def wsgi_request(seen: list[object]) -> None:
    def app(environ, start_response):
        seen.append(environ["meshmw.operation"].context)
        start_response("200 OK", [])
        return [b""]

    held = Held()
    seen.append(weakref.ref(held))
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "held": held}
    for _ in wsgi.TraceContextMiddleware(app, propagator=MeshPropagator())(environ, lambda *_: None):
        pass


@pytest.mark.parametrize("request_of", [asgi_request, wsgi_request])
def test_a_request_is_let_go_when_it_is_over_even_where_its_context_lives_on(request_of):
    """No garbage collector needed: a task that outlives the request holds its context, and not what it came in."""
    gc.collect()
    gc.disable()
    try:
        seen: list[object] = []
        request_of(seen)
        held, context = seen
        assert trace.get_current_span(context) is not None
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("flags", "is_watched"), [("00", False), ("01", True)])
@pytest.mark.parametrize("is_raised", [False, True])
def test_a_response_of_which_nobody_records_anything_is_the_servers_alone(flags, is_watched, is_raised):
    seen = []

    async def app(scope, receive, send):
        seen.append((send, scope["meshmw.operation"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        if is_raised:
            raise LookupError

    async def sent(_):
        pass

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"traceparent", f"{TRACEPARENT[:-2]}{flags}".encode())],
    }
    options = {"propagator": MeshPropagator(), "tracer_provider": TracerProvider(shutdown_on_exit=False)}
    serving = asgi.TraceContextMiddleware(app, **options)(scope, None, sent)
    with pytest.raises(LookupError if is_raised else StopIteration):
        serving.send(None)
    ((given, operation),) = seen
    assert (given is not sent) is is_watched
    assert operation.span.get_span_context().trace_id == int(TRACE_ID, 16)
    assert operation.is_over
    assert operation.request.is_over
    assert "meshmw.operation" not in scope


def test_a_response_that_a_hosts_span_tells_of_is_over_with_its_last_byte(caplog):
    seen = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        set_route("/late")
        seen.append((current_operation(), scope["meshmw.operation"].is_over))

    async def nothing(*_):
        pass

    provider = TracerProvider(shutdown_on_exit=False)
    ours = asgi.TraceContextMiddleware(app, propagator=MeshPropagator(), tracer_provider=provider)
    line = (b"traceparent", TRACEPARENT.encode())
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [line]}
    serving = OpenTelemetryMiddleware(ours, tracer_provider=provider)(scope, nothing, nothing)
    with pytest.raises(StopIteration):
        serving.send(None)
    assert seen == [(None, True)]
    assert not caplog.messages
