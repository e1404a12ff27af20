"""Messages, sent and processed: their spans, their contexts and what their headers carry of these.

A process span's parent, or its link, is what its message says: what is current where it begins belongs to another
message as likely as not (law 3), and is linked to, never a parent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind

from meshmw import _runtime
from meshmw._context.extraction import Extraction, Lines
from meshmw._lifecycle.conventions import (
    AttributeValue,
    LazyAttributes,
    OperationType,
    messaging_attributes,
    messaging_span_name,
)
from meshmw._lifecycle.operation import TRACER, Operation, record_refusals
from meshmw._otel import SPAN_KEY
from meshmw._policy.words import MessagingParent, one_of
from meshmw._version import __version__
from meshmw.propagator import MeshPropagator
from meshmw.wire.headers import PROPAGATION_HEADERS, SENT_HEADER

# A message's headers, whatever the broker: which of them are ours to write, and how those that repeat are read.


# Whatever a message's headers hold of these was written for another message.
OWNED_HEADERS: Final = PROPAGATION_HEADERS | {SENT_HEADER}
# Of all others only one line counts.
_LISTS: Final = frozenset({"baggage", "tracestate"})


def joined(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return message headers as lines: the last line of each name, and all lines of those that are lists by nature."""
    lines: dict[str, list[str]] = {}
    for name, line in pairs:
        if name in _LISTS:
            lines.setdefault(name, []).append(line)
        else:
            lines[name] = [line]
    return lines


Specific = Callable[[], Mapping[str, AttributeValue]]

_AMBIENT: Final = {"meshmw.link": "ambient"}
_NOWHERE: Final[Mapping[str, AttributeValue]] = {}
_KINDS: Final[Mapping[OperationType, SpanKind]] = {
    "create": SpanKind.PRODUCER,
    "send": SpanKind.PRODUCER,
    "receive": SpanKind.CLIENT,
    "process": SpanKind.CONSUMER,
    "settle": SpanKind.CLIENT,
}


class Messaging:
    """Begins the operations of one messaging system; options that are None are the settings' own, per message.

    Args:
        system: As the conventions name it: `kafka`, `rabbitmq`.
        propagator: Reads and writes the headers.
        tracer_provider: Makes the spans; the global one by default.
        parent: Whether the span that processes one message is the `parent` message's child, or a new trace with a
            `link` to it.
        server: What every span says of the broker's address.
    """

    __slots__ = ("_parent", "_propagator", "_server", "_tracer", "system")

    def __init__(
        self,
        system: str,
        *,
        propagator: MeshPropagator | None = None,
        tracer_provider: trace.TracerProvider | None = None,
        parent: MessagingParent | None = None,
        server: Mapping[str, AttributeValue] = _NOWHERE,
    ) -> None:
        self.system = system
        self._server = server
        self._propagator = propagator
        self._tracer = TRACER if tracer_provider is None else tracer_provider.get_tracer("meshmw", __version__)
        self._parent = None if parent is None else one_of(MessagingParent, parent, "parent")

    def with_options(
        self,
        propagator: MeshPropagator | None,
        tracer_provider: trace.TracerProvider | None,
        parent: MessagingParent | None = None,
        server: Mapping[str, AttributeValue] = _NOWHERE,
    ) -> Messaging:
        """Return the same with options of its own, or this one where none is given."""
        if propagator is None and tracer_provider is None and parent is None and not server:
            return self
        return Messaging(
            self.system, propagator=propagator, tracer_provider=tracer_provider, parent=parent, server=server
        )

    @property
    def propagator(self) -> MeshPropagator:
        """Return what reads and writes the headers now."""
        return self._propagator or _runtime.current().propagator

    @property
    def wanted(self) -> frozenset[str]:
        """Return the names, in lower case, of the headers that `read` looks at."""
        return self.propagator.names_read

    def read(self, lines: Lines) -> Extraction:
        """Return what a message's lines, by name in lower case, say, as far as it is believed. Never raises."""
        propagator = self.propagator
        return propagator.read(lines).trusted(propagator.trust)

    def check(self, lines: Lines) -> Extraction:
        """Do as `read` where the message is not processed yet: what is refused is counted once, when it is."""
        propagator = self.propagator
        return propagator.check(lines).trusted(propagator.trust)

    def write(self, context: Context | None, present: Lines, *, keep: bool = False) -> dict[str, str]:
        """Return the headers to write on a message, from whose own every one of `OWNED_HEADERS` is to be removed.

        Args:
            context: What to write; the current context by default.
            present: The lines, by name in lower case, that the application has put there.
            keep: Whether a valid parent among *present* stays, with what came along with it.
        """
        propagator = self.propagator
        context = otel_context.get_current() if context is None else context
        own = propagator.check(present).into({}) if keep else {}
        # The request id and its like are the application's wherever it has written them.
        others = [(name, line) for name, found in present.items() if name not in OWNED_HEADERS for line in found]
        headers, _ = propagator.outgoing(Context(own) if SPAN_KEY in own else context, others)
        return headers

    def begin_send(
        self, destination: str | None, specific: Specific = dict, *, operation: str = "send", count: int | None = None
    ) -> Operation:
        """Begin to send a message, or *count* of them at once, as a child of what is current.

        The context to write on the message is the operation's own: `write(operation.context, ...)`.

        Args:
            destination: The topic or exchange.
            specific: Returns further attributes; not called where nobody looks at them.
            operation: What the system calls it.
            count: How many messages there are, where there may be several.
        """
        around = otel_context.get_current()
        return self._begin(around, operation, "send", destination, specific, (), count)

    def begin_process(
        self,
        extraction: Extraction,
        destination: str | None,
        specific: Specific = dict,
        *,
        operation: str = "process",
        operation_type: OperationType = "process",
    ) -> Operation:
        """Begin to process one message, in its own trace or in a new one that links to it.

        Args:
            extraction: What the message's headers say.
            destination: The topic or queue.
            specific: Returns further attributes; not called where nobody looks at them.
            operation: What the system calls it.
            operation_type: `receive` for what is over when the application gets the message.
        """
        parent, links = extraction.into({}), _ambient_links()
        if (self._parent or _runtime.current().messaging_parent) == "link" and extraction.span_context is not None:
            parent = Context({key: value for key, value in parent.items() if key != SPAN_KEY})
            links = [Link(extraction.span_context), *links]
        begun = self._begin(parent, operation, operation_type, destination, specific, links)
        if not begun.span.get_span_context().is_valid:
            begun.context = extraction.into({})  # without an SDK the message's own trace goes on
        record_refusals(begun.span, extraction)
        return begun

    def begin_batch(
        self,
        extractions: Sequence[Extraction],
        destination: str | None,
        specific: Specific = dict,
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
            specific: Returns further attributes; not called where nobody looks at them.
            operation: What the system calls it.
            operation_type: `receive` for what is over when the application gets the messages.
            start_time: When it began, in nanoseconds since 1970; now by default.
        """
        named = [each.span_context for each in extractions if each.span_context is not None]
        creators = {(each.trace_id, each.span_id): each for each in named}
        links = [*map(Link, creators.values()), *_ambient_links()]
        count = len(extractions)
        begun = self._begin(Context(), operation, operation_type, destination, specific, links, count, start_time)
        for extraction in extractions:
            record_refusals(begun.span, extraction)
        return begun

    def begin_nothing(self) -> Operation:
        """Begin what is about no message at all: there is no span, and what is current stays so."""
        return Operation(trace.INVALID_SPAN, otel_context.get_current(), owned=False)

    def begin_settle(self, destination: str | None, specific: Specific = dict, *, operation: str) -> Operation:
        """Begin to settle messages, by `commit`, `ack`, `nack` or the like, as a child of what is current."""
        return self._begin(otel_context.get_current(), operation, "settle", destination, specific, ())

    def _begin(
        self,
        parent: Context,
        operation: str,
        operation_type: OperationType,
        destination: str | None,
        specific: Specific,
        links: Sequence[Link],
        count: int | None = None,
        start_time: int | None = None,
    ) -> Operation:
        attributes = LazyAttributes(
            lambda: {
                **messaging_attributes(self.system, operation, operation_type, destination, batch=count),
                **self._server,
                **specific(),
            }
        )
        name, kind = messaging_span_name(operation, destination), _KINDS[operation_type]
        span = self._tracer.start_span(name, parent, kind, attributes, links, start_time)
        return Operation(span, Context({**parent, SPAN_KEY: span}), owned=True)


def _ambient_links() -> list[Link]:
    ambient = trace.get_current_span().get_span_context()
    return [Link(ambient, _AMBIENT)] if ambient.is_valid else []
