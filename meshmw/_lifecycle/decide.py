"""Whose span serves a request, and what is trusted of its headers: one decision, for HTTP, RPC and messages.

Law 3: a request belongs to its own headers. A server span's parent comes from them, or the span is one that the host
framework opened for this very request; a span that leaked into this task or thread from something else is neither.

| what is current as the request begins                                     | whose span | kind     | notice      |
|---------------------------------------------------------------------------|------------|----------|-------------|
| nothing, or no valid span                                                  | by `spans` | SERVER   |             |
| a host's, which it opened for this request (`is_of_this_request`)          | the host's | SERVER   |             |
| a host's, which has read the same headers and trusts them otherwise        | by `spans` | INTERNAL | host_trust  |
| the span that its headers name: the caller is in this process              | by `spans` | SERVER   |             |
| a span of anything else                                                    | by `spans` | SERVER   | leaked_span |

*By `spans`*: `auto` opens one of ours, `off` opens none, `contrib` leaves it to an instrumentation further in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context, create_key
from opentelemetry.trace import Link, Span, SpanContext, SpanKind

from meshmw._context.extraction import READ_KEY, Extraction
from meshmw._otel import SPAN_KEY
from meshmw._policy.words import MessagingParent, ServerSpans, Trust
from meshmw._runtime import is_global
from meshmw.propagator import MeshPropagator

# Marks a context in which a request has claimed its SERVER span: whoever finds that span later has a leaked one.
CLAIM_KEY: Final = create_key("meshmw-claim")
# On the link of a fresh root to the parent that its request named and that is not trusted.
REJECTED: Final = {"meshmw.link": "rejected_parent"}

Whose = Literal["host", "ours", "nobody", "contrib"]
Notice = Literal["leaked_span", "host_trust"]

_BY_SPANS: Final[dict[ServerSpans, Whose]] = {"auto": "ours", "off": "nobody", "contrib": "contrib"}


class Decision(NamedTuple):
    """Says how one request is served.

    Attributes:
        extraction: What is trusted of its headers.
        whose: Who makes its span.
        host_span: The span that the host opened for it, where that is adopted.
        kind: The kind of a span of ours.
        notice: The reason code of what is odd about what was current, for a warning.
    """

    extraction: Extraction
    whose: Whose
    host_span: Span | None = None
    kind: SpanKind = SpanKind.SERVER
    notice: Notice | None = None

    @property
    def links(self) -> list[Link] | None:
        """Return what a span of ours links to: the parent that the request named and that is not trusted."""
        rejected = self.extraction.rejected
        return None if rejected is None else [Link(rejected, REJECTED)]


# Makes one of all its items, in less time than a named tuple's own constructor.
_DECISION: Final[Callable[[tuple[object, ...]], Decision]] = partial(tuple.__new__, Decision)
_SERVER: Final = SpanKind.SERVER


def decide(
    read: Extraction,
    trust: Trust,
    around: Context,
    propagator: MeshPropagator,
    host_read: Extraction | None = None,
    marked: Span | None = None,
    spans: ServerSpans = "auto",
) -> Decision:
    """Return how a request is served.

    Args:
        read: What its headers say.
        trust: How far its sender is trusted.
        around: What is current as it begins.
        propagator: What read the headers.
        host_read: What a host that has read the same headers before us was told to trust of them.
        marked: A span that the host marked as this request's own.
        spans: Who makes the span where no host has.
    """
    extraction = read if trust == "continue" else read.trusted(trust)
    whose = _BY_SPANS[spans]
    if not around:
        return _DECISION((extraction, whose, None, _SERVER, None))
    ambient = trace.get_current_span(around)
    is_span = ambient.get_span_context().is_valid
    if host_read is not None and host_read is not extraction:
        if host_read == extraction:
            # The very object that the host has put into its context tells that its span is this request's.
            extraction = host_read
        elif is_span:
            return Decision(extraction, whose, None, SpanKind.INTERNAL, "host_trust")
    if ambient is marked and trust != "continue" and _is_of_trace(ambient, read.span_context):
        # A host that reads by itself has continued a trace that is not trusted here.
        return Decision(extraction, whose, None, SpanKind.INTERNAL, "host_trust")
    if is_span and is_of_this_request(ambient, extraction, around, marked, propagator):
        return Decision(extraction, "host", ambient)
    is_leaked = is_span and around.get(READ_KEY) is not extraction and not _is_parent(ambient, read)
    return Decision(extraction, whose, notice="leaked_span" if is_leaked else None)


def _is_parent(ambient: Span, read: Extraction) -> bool:
    """Say whether the current span is the caller's own: it calls this application within one process."""
    named, found = read.span_context or read.rejected, ambient.get_span_context()
    return named is not None and (named.trace_id, named.span_id) == (found.trace_id, found.span_id)


def _is_of_trace(span: Span, other: SpanContext | None) -> bool:
    return other is not None and span.get_span_context().trace_id == other.trace_id


def is_of_this_request(
    ambient: Span, extraction: Extraction, around: Context, marked: Span | None, propagator: MeshPropagator
) -> bool:
    """Say whether a host opened the current span for this very request.

    The host shows it by its mark, or by having made current what our propagator read from this request's headers. One
    that reads with another propagator shows it by the span's parent.
    """
    found, remote = ambient.get_span_context(), extraction.span_context
    if found.is_remote or around.get(CLAIM_KEY) is ambient:
        return False
    is_server = getattr(ambient, "kind", SpanKind.SERVER) is SpanKind.SERVER
    if around.get(READ_KEY) is extraction and (is_server or marked is not None or extraction.says_something):
        return True
    if ambient is marked:
        return remote is None or _is_of_trace(ambient, remote)
    if not ambient.is_recording() or not is_server:
        return False
    parent = getattr(ambient, "parent", None)
    if parent is None or remote is None:
        return parent is remote and not is_global(propagator)
    return bool(parent.trace_id == remote.trace_id and parent.span_id == remote.span_id)


def context_below(decision: Decision, around: Context) -> Context:
    """Return the context in which a span of ours begins, or in which a host's span serves the request.

    In a host's context stands what hosts leave out, and nothing of what they left in it of an earlier request.
    """
    extraction = decision.extraction
    if decision.whose == "host" and around.get(READ_KEY) is extraction:
        return around
    return extraction.into(around)


def claimed(context: Context, span: Span) -> Context:
    """Return a context in which a span is current and claimed for one request."""
    return Context({**context, SPAN_KEY: span, CLAIM_KEY: span})


# Of the messaging conventions' types those that this package has spans for.
OperationType = Literal["send", "receive", "process"]

# `receive` is over when the application gets the message: it calls the broker, as a client does.
_KINDS: Final = {"send": SpanKind.PRODUCER, "receive": SpanKind.CLIENT, "process": SpanKind.CONSUMER}
# On the link to what was current where a message was processed.
_AMBIENT: Final = {"meshmw.link": "ambient"}


class MessageDecision(NamedTuple):
    """Says where the span of one or of several messages belongs.

    Attributes:
        parent: The span's parent; None where it begins a trace.
        links: What it links to.
        kind: Its kind.
    """

    parent: SpanContext | None
    links: list[Link]
    kind: SpanKind


def decide_messages(
    operation_type: OperationType,
    named: Sequence[SpanContext],
    ambient: SpanContext,
    *,
    parent: MessagingParent = "parent",
    batch: bool = False,
) -> MessageDecision:
    """Return where the span of one or of several messages belongs.

    | operation                        | `parent` | the span's parent | links                            |
    |----------------------------------|----------|-------------------|----------------------------------|
    | send                             | any      | what is current   |                                  |
    | one message that names a parent  | `parent` | the one named     | what is current                  |
    | one message that names a parent  | `link`   | none              | the one named, what is current   |
    | one message that names none      | any      | none              | what is current                  |
    | several messages                 | any      | none              | each one named, what is current  |

    What is current where a message is processed belongs to another message as likely as not (law 3): it is linked to,
    and never a parent.

    Args:
        operation_type: What is done with the messages.
        named: The parent that each message's headers name, of those that name one.
        ambient: The span that is current, if it is valid.
        parent: Whether the span that processes one message is a child of what sent it, or a new trace with a link.
        batch: Whether several messages are processed at once.
    """
    kind, around = _KINDS[operation_type], [Link(ambient, _AMBIENT)] if ambient.is_valid else []
    if operation_type == "send":
        return MessageDecision(ambient if ambient.is_valid else None, [], kind)
    if named and parent == "parent" and not batch:
        return MessageDecision(named[0], around, kind)
    distinct = {(each.trace_id, each.span_id): each for each in named}
    return MessageDecision(None, [*map(Link, distinct.values()), *around], kind)
