"""Laws 1, 2, 6 and 10 for any bytes, and no difference to OpenTelemetry's own propagators where the input is valid."""

import asyncio
import re

from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import Getter, Setter
from opentelemetry.trace import NoOpTracerProvider, SpanContext, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from meshmw import MeshPropagator, asgi, wsgi
from meshmw._otel import W3CTraceState
from meshmw._policy.words import FORMATS
from meshmw.wire import TraceState
from meshmw.wire.headers import B3_HEADERS

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NAMES = sorted({"traceparent", "tracestate", "baggage", "x-request-id", "host", "user-agent", *B3_HEADERS})

# What may go out, written down once more from the specifications.
HEX32, HEX16 = r"(?!0{32})[0-9a-f]{32}", r"(?!0{16})[0-9a-f]{16}"
STATE_MEMBER = r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
OCTETS = r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*"
PROPERTY = rf"[ \t]*;[ \t]*{TOKEN}(?:[ \t]*=[ \t]*{OCTETS})?"
BAGGAGE_MEMBER = rf"{TOKEN}[ \t]*=[ \t]*{OCTETS}(?:{PROPERTY})*"
GRAMMAR = {
    "traceparent": rf"00-{HEX32}-{HEX16}-0[0-3]",
    "tracestate": rf"{STATE_MEMBER}(?:,{STATE_MEMBER}){{0,31}}",
    "baggage": rf"{BAGGAGE_MEMBER}(?:,{BAGGAGE_MEMBER}){{0,63}}",
    "b3": rf"(?:{HEX32}-{HEX16}(?:-[01d])?)|[01d]",
    "x-b3-traceid": HEX32,
    "x-b3-spanid": HEX16,
    "x-b3-sampled": "[01]",
    "x-b3-flags": "1",
    "x-request-id": r"[\x20-\x7e]{1,1024}",
}

# Anything, and what is nearly right.
pieces = st.sampled_from(
    [
        VALID,
        VALID.upper(),
        "00",
        "-",
        "0" * 32,
        "a" * 16,
        "d",
        "1",
        "ff-",
        "k=v",
        "k=v;p",
        "%20",
        ",",
        "=",
        ";",
        " ",
        "\t",
        "+",
    ]
) | st.text(st.characters(max_codepoint=255), max_size=3)
near = st.lists(pieces, max_size=8).map("".join)
values = (st.text(st.characters(max_codepoint=255), max_size=80) | near).map(lambda text: text.encode("latin-1"))
names = st.sampled_from(NAMES)
lines = st.lists(st.tuples(names, values), max_size=8)


def is_clean(headers):
    assert all(re.fullmatch(GRAMMAR[name], value) for name, value in headers.items()), headers
    assert len(headers.get("baggage", "")) <= 8192
    if "tracestate" in headers:
        assert "traceparent" in headers


def sends(propagator, context):
    carrier = {}
    propagator.inject(carrier, context)
    return carrier


@given(
    st.dictionaries(
        names.flatmap(lambda name: st.sampled_from([name, name.title(), name.upper()])),
        values
        | values.map(lambda value: value.decode("latin-1"))
        | st.lists(values)
        | st.text()
        | st.integers()
        | st.none(),
    )
)
def test_no_mapping_can_raise_and_what_goes_on_follows_the_grammar(carrier):
    propagator = MeshPropagator(FORMATS)
    context = propagator.extract(carrier)
    is_clean(sends(propagator, context))


@given(st.dictionaries(names, near), st.booleans())
def test_what_an_application_wrote_on_a_carrier_goes_out_clean(carrier, has_trace):
    propagator = MeshPropagator(FORMATS)
    context = propagator.extract({"traceparent": VALID} if has_trace else {})
    kept = {name: value for name, value in carrier.items() if name in GRAMMAR and name != "x-request-id"}
    propagator.inject(kept, context)
    for name in ("traceparent", "tracestate"):
        if name in kept:
            text = kept[name].strip(" \t")
            assert re.fullmatch(GRAMMAR[name].replace("0[0-3]", "[0-9a-f]{2}"), text) or name == "tracestate"
    if has_trace:
        assert kept["traceparent"] == VALID


class Seen:
    """Runs a request through an adapter, and keeps what the application saw and would send on."""

    def __init__(self):
        self.propagator = MeshPropagator(FORMATS)
        self.options = {"propagator": self.propagator, "tracer_provider": NoOpTracerProvider()}
        self.headers = self.outbound = None

    def note(self, headers):
        self.headers = headers
        self.outbound = sends(self.propagator, None)

    def over_asgi(self, raw):
        async def application(scope, receive, send):
            self.note([(name.decode(), value) for name, value in scope["headers"]])

        scope = {"type": "http", "method": "GET", "path": "/", "headers": raw}
        asyncio.run(asgi.TraceContextMiddleware(application, **self.options)(scope, None, None))

    def over_wsgi(self, raw):
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
        for name, value in raw:
            key, text = "HTTP_" + name.decode().upper().replace("-", "_"), value.decode("latin-1")
            environ[key] = f"{environ[key]},{text}" if key in environ else text

        def application(environ, start_response):
            found = [(key, value) for key, value in environ.items() if key.startswith("HTTP_")]
            self.note([(key[5:].replace("_", "-").lower(), value.encode("latin-1")) for key, value in found])
            return []

        wsgi.TraceContextMiddleware(application, **self.options)(environ, None).close()


def judge(seen):
    is_clean(seen.outbound)
    of_trace = [(name, value) for name, value in seen.headers if name in ("traceparent", "tracestate")]
    for name, value in of_trace:
        if name == "traceparent":
            assert re.fullmatch(rf"00-{HEX32}-{HEX16}-[0-9a-f]{{2}}", value.decode("latin-1").strip(" \t"))
    seen_names = [name for name, _ in of_trace]
    assert seen_names.count("traceparent") <= 1
    assert "tracestate" not in seen_names or "traceparent" in seen_names
    # What it sees and what goes out tell one story.
    if "traceparent" in seen_names:
        assert seen.outbound["traceparent"][:52] == dict(of_trace)["traceparent"].decode().strip(" \t")[:52]


@given(lines)
def test_no_bytes_can_raise_through_asgi(raw):
    seen = Seen()
    seen.over_asgi([(name.encode(), value) for name, value in raw])
    judge(seen)


@given(lines)
def test_no_bytes_can_raise_through_wsgi(raw):
    seen = Seen()
    seen.over_wsgi([(name.encode(), value) for name, value in raw])
    judge(seen)


# Contexts that are valid.

trace_ids, span_ids = st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1)
state_members = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_\-*/]{0,10}", fullmatch=True),
    st.from_regex(r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,8}[\x21-\x2b\x2d-\x3c\x3e-\x7e]", fullmatch=True),
    max_size=32,
)
span_contexts = st.builds(
    lambda trace_id, span_id, flags, members: SpanContext(
        trace_id, span_id, True, TraceFlags(flags), W3CTraceState(TraceState(tuple(members.items())))
    ),
    trace_ids,
    span_ids,
    st.integers(0, 3),
    state_members,
)
keys = st.from_regex(r"[!#$&'*+\-.^_`|~0-9A-Za-z]{1,8}", fullmatch=True)
baggages = st.dictionaries(keys, st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=8)


def context_of(span_context, members=()):
    context = trace.set_span_in_context(trace.NonRecordingSpan(span_context), Context())
    for key, value in dict(members).items():
        context = baggage.set_baggage(key, value, context)
    return context


class Pairs(Getter, Setter):
    def get(self, carrier, key):
        return [value for name, value in carrier if name == key.encode()] or None

    def keys(self, carrier):
        return [name.decode() for name, _ in carrier]

    def set(self, carrier, key, value):
        carrier.append((key.encode(), value.encode("latin-1")))


def describe(context):
    span = trace.get_current_span(context).get_span_context()
    return span, span.trace_state.to_header(), dict(baggage.get_all(context))


@given(span_contexts, baggages)
def test_what_is_injected_is_extracted_through_a_mapping(span_context, members):
    propagator = MeshPropagator()
    context = context_of(span_context, members)
    assert describe(propagator.extract(sends(propagator, context))) == describe(context)


@given(span_contexts, baggages)
def test_what_is_injected_is_extracted_through_pairs_of_bytes(span_context, members):
    propagator, carrier = MeshPropagator(), []
    context = context_of(span_context, members)
    propagator.inject(carrier, context, Pairs())
    assert describe(propagator.extract(carrier, getter=Pairs())) == describe(context)


@settings(max_examples=40)
@given(span_contexts, baggages)
def test_what_is_injected_is_extracted_through_asgi_and_wsgi_and_goes_out_the_same(span_context, members):
    sent = sends(MeshPropagator(FORMATS), context_of(span_context, members))
    raw = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
    for run in ("over_asgi", "over_wsgi"):
        seen = Seen()
        getattr(seen, run)(raw)
        assert seen.outbound == sent


@given(span_contexts, st.lists(st.sampled_from(FORMATS), min_size=1, unique=True))
def test_each_list_of_formats_reads_what_it_writes(span_context, formats):
    propagator = MeshPropagator(formats)
    found = trace.get_current_span(propagator.extract(sends(propagator, context_of(span_context)))).get_span_context()
    if formats != ["baggage"]:
        assert (found.trace_id, found.span_id) == (span_context.trace_id, span_context.span_id)
        assert found.trace_flags.sampled == span_context.trace_flags.sampled


OTEL = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
plain_values = st.from_regex(r"[A-Za-z0-9_.\-~]{0,12}", fullmatch=True)


@given(span_contexts, st.dictionaries(st.from_regex(r"[A-Za-z0-9_.\-]{1,8}", fullmatch=True), plain_values, max_size=8))
def test_valid_input_is_read_and_written_as_opentelemetry_does(span_context, members):
    context = context_of(span_context, members)
    theirs, ours = sends(OTEL, context), sends(MeshPropagator(), context)
    assert ours == theirs
    assert describe(MeshPropagator().extract(theirs)) == describe(OTEL.extract(theirs))


IDS, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
BASES = st.sampled_from(
    [
        {"traceparent": VALID},
        {"traceparent": VALID.removesuffix("1") + "0"},
        {"traceparent": VALID, "b3": f"{IDS}-{SPAN}-1"},
        *({"b3": f"{IDS}-{SPAN}{rest}"} for rest in ("", "-0", "-1", "-d", f"-1-{SPAN}")),
        *(
            {"x-b3-traceid": IDS, "x-b3-spanid": SPAN} | rest
            for rest in ({}, {"x-b3-sampled": "0"}, {"x-b3-flags": "1"})
        ),
        {"x-b3-traceid": IDS[:16], "x-b3-spanid": SPAN, "x-b3-sampled": "1"},
    ]
)
# What is optional beside ids; what each of them takes is left to other tests.
OPTIONAL = {
    "tracestate": ".*=.*|[, \\t]*",
    "baggage": ".*",
    "x-b3-sampled": "(?i)[01]|true|false",
    "x-b3-flags": "[0-9]+",
    "x-b3-parentspanid": HEX16,
    "b3": "[01d]|.*-.*-.*",
    "x-meshmw-sent": f"{HEX16}-[0-9a-f]{{2}}",
    "x-b3-traceid": f"{HEX32}|{HEX16}",
    "x-b3-spanid": HEX16,
}


@given(BASES, st.sampled_from(sorted(OPTIONAL)), st.text(max_size=12) | near)
def test_junk_in_an_optional_header_changes_neither_ids_nor_the_decision(base, name, junk):
    if name in base or re.fullmatch(OPTIONAL[name], junk.strip(" \t")):
        return
    for prefer in ("auto", "w3c", "b3"):
        propagator = MeshPropagator(FORMATS, prefer=prefer)
        clean = propagator.read({key: [text] for key, text in base.items()})
        read = propagator.read({key: [text] for key, text in {**base, name: junk}.items()})
        assert (read.span_context, read.b3) == (clean.span_context, clean.b3)
        if name != "x-meshmw-sent" and junk.strip(" \t"):
            assert name in read.rewrites
