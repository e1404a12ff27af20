"""Whose the current span is: the host framework's for this very request, or a leaked one of something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from opentelemetry.context import Context, create_key
from opentelemetry.trace import Link, Span, SpanContext, SpanKind

from meshmw._context.extraction import READ_KEY, Extraction
from meshmw._otel import SPAN_KEY
from meshmw._runtime import MessagingParent, is_global
from meshmw.propagator import MeshPropagator

# Marks a context in which a request has claimed its SERVER span: whoever finds that span later has a leaked one.
CLAIM_KEY: Final = create_key("meshmw-claim")


def is_of_this_request(
    ambient: Span, extraction: Extraction, context: Context, host_span: Span | None, propagator: MeshPropagator
) -> bool:
    """Say whether a host opened the current span for this very request (law 3).

    The host shows it by its mark, or by having made current what our propagator read from this request's headers.
    One that reads with another propagator shows it by the span's parent.
    """
    found, remote = ambient.get_span_context(), extraction.span_context
    if not found.is_valid or found.is_remote or context.get(CLAIM_KEY) is ambient:
        return False
    is_server = getattr(ambient, "kind", SpanKind.SERVER) is SpanKind.SERVER
    if context.get(READ_KEY) is extraction and (is_server or host_span is not None or extraction.says_something):
        return True
    if ambient is host_span:
        return remote is None or found.trace_id == remote.trace_id
    if not ambient.is_recording() or not is_server:
        return False
    parent = getattr(ambient, "parent", None)
    if parent is None or remote is None:
        return parent is remote and not is_global(propagator)
    return bool(parent.trace_id == remote.trace_id and parent.span_id == remote.span_id)


def of_host(extraction: Extraction, context: Context) -> Context:
    """Return the host's context, with what hosts leave out and without what they left in of an earlier request.

    What is current in it is for the caller to say.
    """
    return context if context.get(READ_KEY) is extraction else extraction.into(context)


def adopted(span: Span, extraction: Extraction, context: Context) -> Context:
    """Return the host's context with the host's span, claimed for this request."""
    return Context({**of_host(extraction, context), SPAN_KEY: span, CLAIM_KEY: span})


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
