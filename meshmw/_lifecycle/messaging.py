"""Messages, whatever the broker: the spans that send and process them, and what their headers carry of these.

`meshmw.kafka`, `meshmw.rabbitmq` and `meshmw.celery` have one `Messaging` each. `decide_messages` says where a span
belongs; here it begins, with the attributes of the messaging conventions (1.44, development). None holds a message's
key or body, which are the application's data.

A package for a broker has three rooms: `_headers` (what its clients hand out, as header lines and attributes),
`_spans` (the public verbs) and `_clients` (objects that trace by themselves, made with `_lifecycle.clients`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import is_not
from typing import Any, Final, TypeAlias, TypedDict

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from meshmw import _runtime
from meshmw._context.carriers import Lines
from meshmw._context.extraction import Extraction
from meshmw._lifecycle.decide import MessageDecision, OperationType, decide_messages
from meshmw._lifecycle.operation import (
    Attributes,
    AttributeValue,
    LazyAttributes,
    Operation,
    is_suppressed,
    record_refusals,
    watch_collections,
)
from meshmw._otel import SPAN_KEY
from meshmw._policy.words import MessagingParent, check_options, one_of
from meshmw._runtime import checked_propagator, tracer_of
from meshmw.propagator import MeshPropagator
from meshmw.wire.headers import PROPAGATION_HEADERS, SENT_HEADER

# Whatever a message's headers hold of these was written for another message.
OWNED_HEADERS: Final = PROPAGATION_HEADERS | {SENT_HEADER}
# Of all others only one line counts.
_LISTS: Final = frozenset({"baggage", "tracestate"})
_NOTHING: Final[Attributes] = {}
# Asked of each option for each message, so it is a function of C.
_IS_GIVEN: Final = partial(is_not, None)

# Returns attributes; not called where nobody looks at them.
Describe: TypeAlias = Callable[[], Attributes]


class Options(TypedDict, total=False):
    """Names what every function that processes messages takes; what is left out or None is as `configure()` has set it.

    Attributes:
        parent: Whether the span that processes one message is a child of the message's producer (`parent`), or begins a
            new trace with a link to it (`link`); the setting `messaging_parent` by default.
        propagator: Reads and writes the headers.
        tracer_provider: Makes the spans; the global one by default.
    """

    parent: MessagingParent | None
    propagator: MeshPropagator | None
    tracer_provider: trace.TracerProvider | None


class Messaging:
    """Begins the operations of one messaging system, and reads and writes the headers of its messages.

    Args:
        system: As the conventions name it: `kafka`, `rabbitmq`, `celery`.
        server: What every span says of the broker's address.
        keep_existing: Whether a valid parent that the application has written on a message stays there.
        parent: As for `Options`, and so the others. What is None is looked up for each message.
        propagator: Reads and writes the headers.
        tracer_provider: Makes the spans.

    Raises:
        ValueError: `parent` is none of its words.
        TypeError: What should be a propagator or a tracer provider is none.
    """

    __slots__ = ("_keep_existing", "_parent", "_propagator", "_server", "_tracer", "system")

    def __init__(
        self,
        system: str,
        *,
        server: Attributes = _NOTHING,
        keep_existing: bool = False,
        parent: MessagingParent | None = None,
        propagator: MeshPropagator | None = None,
        tracer_provider: trace.TracerProvider | None = None,
    ) -> None:
        self.system = system
        self._server = server
        self._keep_existing = keep_existing
        self._parent = None if parent is None else one_of(MessagingParent, parent, "parent")
        self._propagator = checked_propagator(propagator)
        self._tracer = None if tracer_provider is None else tracer_of(tracer_provider)
        watch_collections()

    def with_options(
        self, options: Options, *, server: Attributes = _NOTHING, keep_existing: bool = False
    ) -> Messaging:
        """Return the same system with options of its own, or this one where none is given.

        Raises:
            ValueError: `parent` is none of its words.
            TypeError: An option is not known, or holds no propagator or tracer provider.
        """
        check_options(options, Options)
        if server or keep_existing or any(map(_IS_GIVEN, options.values())):
            return Messaging(self.system, server=server, keep_existing=keep_existing, **options)
        return self

    @property
    def propagator(self) -> MeshPropagator:
        """Return what reads and writes the headers now."""
        return self._propagator or _runtime.current().propagator

    def read(self, lines: Lines, operation_type: OperationType = "process") -> Extraction:
        """Return what a message's lines, by name in lower case, say, as far as the sender is trusted. Never raises.

        What is refused of them counts once: when the message is processed, and not when it is only received. The
        result's `rewrites` are those of what is malformed, whoever the sender is.
        """
        propagator = self.propagator
        read = (propagator.read if operation_type == "process" else propagator.check)(lines)
        return read.trusted(propagator.trust)._replace(rewrites=read.rewrites)

    def write(self, context: Context | None, present: Lines) -> dict[str, str]:
        """Return the headers to write on a message, from whose own every one of `OWNED_HEADERS` is to be removed.

        Args:
            context: What to write; the current context by default.
            present: The lines, by name in lower case, that the application has put there.
        """
        propagator = self.propagator
        context = otel_context.get_current() if context is None else context
        if is_suppressed(context):
            context = Context()
        kept = propagator.check(present).into({}) if self._keep_existing else {}
        # The request id and its like are the application's wherever it has written them.
        others = [(name, line) for name, found in present.items() if name not in OWNED_HEADERS for line in found]
        headers, _ = propagator.outgoing(Context(kept) if SPAN_KEY in kept else context, others)
        return headers

    def begin_send(self, destination: str | None, describe: Describe = dict, *, operation: str = "send") -> Operation:
        """Begin to send a message, as a child of what is current.

        The context to write on the message is the operation's own: `write(operation.context, ...)`.

        Args:
            destination: The topic or exchange.
            describe: Returns further attributes.
            operation: What the system calls it.
        """
        if is_suppressed(otel_context.get_current()):
            return self.begin_nothing()
        decision = decide_messages("send", (), _ambient())
        return self._begin(decision, otel_context.get_current(), operation, "send", destination, describe)

    def begin_process(
        self,
        extraction: Extraction,
        destination: str | None,
        describe: Describe = dict,
        *,
        operation: str = "process",
        operation_type: OperationType = "process",
    ) -> Operation:
        """Begin to process one message, in its own trace or in a new one that links to it.

        Args:
            extraction: What the message's headers say.
            destination: The topic or queue.
            describe: Returns further attributes.
            operation: What the system calls it.
            operation_type: `receive` for what is over when the application gets the message.
        """
        if is_suppressed(otel_context.get_current()):
            return self.begin_nothing()
        named = () if extraction.span_context is None else (extraction.span_context,)
        word = self._parent or _runtime.current().messaging_parent
        decision = decide_messages(operation_type, named, _ambient(), parent=word)
        context = extraction.into({})
        begun = self._begin(decision, context, operation, operation_type, destination, describe)
        if not begun.span.get_span_context().is_valid:
            begun.context = context  # without an SDK the message's own trace goes on
        record_refusals(begun.span, extraction)
        return begun

    def begin_inline(self, destination: str, describe: Describe = dict, *, operation: str = "process") -> Operation:
        """Begin to process what was handed over in this thread, and by no broker: a child of what is current.

        Args:
            destination: What names the span.
            describe: Returns further attributes.
            operation: What the system calls it.
        """
        around = otel_context.get_current()
        if is_suppressed(around):
            return self.begin_nothing()
        decision = decide_messages("send", (), _ambient())._replace(kind=trace.SpanKind.CONSUMER)
        return self._begin(decision, around, operation, "process", destination, describe)

    def begin_batch(
        self,
        extractions: Sequence[Extraction],
        destination: str | None,
        describe: Describe = dict,
        *,
        operation: str = "process",
        operation_type: OperationType = "process",
        start_time: int | None = None,
    ) -> Operation:
        """Begin to process several messages at once, in a new trace that links to all of them.

        There is no baggage in it, because messages may disagree. An operation for one of them can be begun inside.

        Args:
            extractions: What the headers of each message say.
            destination: The topic or queue, if it is the same for all.
            describe: Returns further attributes.
            operation: What the system calls it.
            operation_type: `receive` for what is over when the application gets the messages.
            start_time: When it began, in nanoseconds since 1970; now by default.
        """
        if is_suppressed(otel_context.get_current()):
            return self.begin_nothing()
        named = [each.span_context for each in extractions if each.span_context is not None]
        decision = decide_messages(operation_type, named, _ambient(), batch=True)
        count = len(extractions)
        begun = self._begin(
            decision, Context(), operation, operation_type, destination, describe, count=count, start_time=start_time
        )
        for extraction in extractions:
            record_refusals(begun.span, extraction)
        return begun

    def begin_nothing(self) -> Operation:
        """Begin what gets no span, being about no message or suppressed; what is current stays so."""
        return Operation(trace.INVALID_SPAN, otel_context.get_current(), owned=False)

    def _begin(
        self,
        decision: MessageDecision,
        context: Context,
        operation: str,
        operation_type: OperationType,
        destination: str | None,
        describe: Describe,
        *,
        count: int | None = None,
        start_time: int | None = None,
    ) -> Operation:
        if decision.parent is None:
            context = Context({key: value for key, value in context.items() if key != SPAN_KEY})
        attributes = LazyAttributes(
            lambda: {
                **_operation_attributes(self.system, operation, operation_type, destination, count),
                **self._server,
                **describe(),
            }
        )
        name = messaging_span_name(operation, destination)
        tracer = self._tracer or _runtime.tracer()
        span = tracer.start_span(name, context, decision.kind, attributes, decision.links, start_time)
        return Operation(span, Context({**context, SPAN_KEY: span}), owned=True)


def _ambient() -> trace.SpanContext:
    return trace.get_current_span().get_span_context()


def collect_lines(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return message headers as lines: the last line of each name, and all lines of those that are lists by nature."""
    lines: dict[str, list[str]] = {}
    for name, line in pairs:
        if name in _LISTS:
            lines.setdefault(name, []).append(line)
        else:
            lines[name] = [line]
    return lines


def header_lines(headers: Mapping[Any, Any], wanted: Collection[str]) -> dict[str, list[str]]:
    """Return the wanted headers as lines by name in lower case: the last one of each, and all that are lists.

    Text may have arrived as str, bytes, bytearray or a list of these; all else is left out, and nothing raises.
    """
    found = [(key, name, value) for key, value in headers.items() if (name := name_of(key)) in wanted]
    # Of several spellings of one name, the one in lower case decides: that is what everybody writes today.
    found.sort(key=lambda each: each[0] == each[1])
    return collect_lines((name, text) for _, name, value in found for text in _texts(value))


def name_of(key: object) -> str:
    """Return a header's name in lower case; pika sends keys that are bytes too. Whatever else it is has no name."""
    if isinstance(key, bytes):
        key = key.decode("latin-1")
    return key.lower() if isinstance(key, str) else ""


def _texts(value: object) -> Iterator[str]:
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, str):
            yield each
        elif isinstance(each, bytes | bytearray):
            # No byte fails to decode as latin-1; what is no header's text is refused by the header's grammar.
            yield each.decode("latin-1")


def messaging_span_name(operation: str, destination: str | None) -> str:
    """Return `{operation} {destination}`, or the operation alone where the destination has no name."""
    return f"{operation} {destination}" if destination else operation


def _operation_attributes(
    system: str, operation: str, operation_type: OperationType, destination: str | None, count: int | None
) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {
        "messaging.system": system,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation_type,
    }
    if destination:
        found["messaging.destination.name"] = destination
    if count is not None:
        found["messaging.batch.message_count"] = count
    return found


def message_attributes(
    *,
    partition: str | int | None = None,
    message_id: str | None = None,
    conversation_id: str | None = None,
    body_size: int | None = None,
    client_id: str | None = None,
    consumer_group: str | None = None,
) -> dict[str, AttributeValue]:
    """Return the attributes of one message that are the same in every system; what is None is left out.

    Args:
        partition: The partition's number or name.
        message_id: What the application calls the message.
        conversation_id: What joins it to others, such as a correlation id.
        body_size: Bytes of the body.
        client_id: The producer's or consumer's name.
        consumer_group: The consumer's group.
    """
    found: dict[str, AttributeValue | None] = {
        "messaging.destination.partition.id": None if partition is None else str(partition),
        "messaging.message.id": message_id,
        "messaging.message.conversation_id": conversation_id,
        "messaging.message.body.size": body_size,
        "messaging.client.id": client_id,
        "messaging.consumer.group.name": consumer_group,
    }
    return {name: value for name, value in found.items() if value is not None}
