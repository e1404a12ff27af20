"""Whose the current span is: the host framework's for this very request, or a leaked one of something else."""

from __future__ import annotations

from typing import Final

from opentelemetry.context import Context, create_key
from opentelemetry.trace import Span, SpanKind

from meshmw._context.extraction import READ_KEY, Extraction
from meshmw._otel import SPAN_KEY
from meshmw._runtime import is_global
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
