"""RabbitMQ by hand: `inject`, `extract`, and the blocks in which messages are published or processed.

Knows the options that users give. Must not know how an operation lives, nor import a client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, overload

from opentelemetry import trace
from opentelemetry.context import Context

from meshmw.boundary.operation_scope import OperationScope
from meshmw.propagator import MeshPropagator
from meshmw.rabbitmq.messages import Message
from meshmw.rabbitmq.operations import RABBITMQ, begin_batch, begin_process, begin_send, read, written
from meshmw.runtime import MessagingParent

P = TypeVar("P")


@overload
def inject(
    headers: Mapping[str, Any] | None = None,
    context: Context | None = None,
    *,
    keep_existing: bool = False,
    propagator: MeshPropagator | None = None,
) -> dict[str, Any]: ...
@overload
def inject(
    headers: P, context: Context | None = None, *, keep_existing: bool = False, propagator: MeshPropagator | None = None
) -> P: ...
def inject(
    headers: Any = None,
    context: Context | None = None,
    *,
    keep_existing: bool = False,
    propagator: MeshPropagator | None = None,
) -> Any:
    """Return new headers that carry the trace, as str, the one type that every AMQP client sends.

    Every propagation header among *headers*, in any case, is replaced; all others stay as they are.

    Args:
        headers: What the message has beside it: a mapping, pika's `BasicProperties` or aio-pika's `Message`, of which
            a copy with the new headers is returned. Not changed.
        context: What to write; the current context by default.
        keep_existing: Whether a valid parent among *headers* stays the message's creation context. One that is
            malformed never stays.
        propagator: Writes the headers; by default the one that `configure()` settled.

    Raises:
        TypeError: *headers* is none of these.
    """
    return written(RABBITMQ.with_options(propagator, None), headers, context, keep_existing=keep_existing)


def extract(message_or_headers: object, *, propagator: MeshPropagator | None = None) -> Context:
    """Return a context with the trace and the baggage that a message carries, and nothing else; never raises.

    Args:
        message_or_headers: aio-pika's message, pika's properties or tuple, a mapping of headers, or None.
        propagator: Reads the headers; by default the one that `configure()` settled.
    """
    return read(RABBITMQ.with_options(propagator, None), message_or_headers).into({})


def producer_span(
    exchange: str,
    routing_key: str,
    *,
    operation: str = "publish",
    tracer_provider: trace.TracerProvider | None = None,
) -> OperationScope:
    """Return a block in which one message is published, with the headers that `inject()` returns within it.

    Args:
        exchange: Where the message goes; empty for the default exchange.
        routing_key: What the exchange routes it by.
        operation: What the application calls it.
        tracer_provider: Makes the span; the global one by default.
    """
    of = RABBITMQ.with_options(None, tracer_provider)
    return OperationScope(lambda: begin_send(of, exchange, routing_key, operation=operation))


def consumer_span(
    message: Any,
    properties: Any = None,
    body: bytes | None = None,
    *,
    queue: str | None = None,
    operation: str = "process",
    parent: MessagingParent | None = None,
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> OperationScope:
    """Return a block in which one message is processed: its trace and baggage are current there, and only there.

    What the block raises is recorded and goes on. Each message needs a block of its own. One that was delivered before
    says how often.

    Args:
        message: aio-pika's message; pika's method, with what it hands out beside it; or its tuple of all three.
        properties: pika's.
        body: pika's.
        queue: The queue that the message comes from, which clients do not tell: it is in the span's name.
        operation: What the application calls it.
        parent: Whether the span is a child of the message's producer, or a new trace with a `link` to it; the
            setting `messaging_parent` by default.
        propagator: Reads the headers; by default the one that `configure()` settled.
        tracer_provider: Makes the span; the global one by default.
    """
    of = RABBITMQ.with_options(propagator, tracer_provider, parent)
    return OperationScope(lambda: begin_process(of, Message.of(message, properties, body, queue), operation))


def batch_span(
    messages: Iterable[Any],
    *,
    queue: str | None = None,
    operation: str = "process",
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> OperationScope:
    """Return a block in which several messages are processed: a new trace that links to the trace of each.

    Where there are no messages there is no span. Within it, `consumer_span(message)` continues the trace of one.

    Args:
        messages: aio-pika's messages, or pika's tuples.
        queue: The queue that they come from.
        operation: What the application calls it.
        propagator: Reads the headers; by default the one that `configure()` settled.
        tracer_provider: Makes the span; the global one by default.
    """
    of = RABBITMQ.with_options(propagator, tracer_provider)
    found = [Message.of(message, queue=queue) for message in messages]
    return OperationScope(lambda: begin_batch(of, found, operation))
