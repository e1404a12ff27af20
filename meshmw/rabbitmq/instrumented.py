"""`instrument()`: a channel, exchange or queue that traces by itself, around the client's own object.

Knows the names of two clients' classes. Must not import a client.
"""

from __future__ import annotations

from typing import Any, Final

from opentelemetry import trace

from meshmw.boundary.delegation import Kinds, instrumented
from meshmw.propagator import MeshPropagator
from meshmw.rabbitmq.brokers import server_of
from meshmw.rabbitmq.channels import PikaBlockingChannel, PikaChannel
from meshmw.rabbitmq.exchanges import AioPikaChannel, AioPikaExchange, AioPikaQueue
from meshmw.rabbitmq.operations import RABBITMQ
from meshmw.runtime import MessagingParent


def instrument(
    client: Any,
    *,
    keep_existing: bool = False,
    parent: MessagingParent | None = None,
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> Any:
    """Return a channel, exchange or queue that works as *client*, and traces what it publishes or hands out.

    What is published carries the trace, and has a PRODUCER span. A callback runs in a span that processes its message.
    What `basic_get`, `get` and iterators hand out has a `receive` span; the application's own work on it begins where
    `consumer_span` or `consume` says, because no iterator can tell when that ends.

    The result has every attribute of the client's object, and is no instance of its class: what asks for one gets
    `__wrapped__`, the object itself. Nothing is changed for other channels.

    Args:
        client: pika's channel, of a blocking connection or of one with callbacks; or aio-pika's channel, whose
            exchanges and queues trace then, or an exchange or a queue alone.
        keep_existing: As for `inject`.
        parent: As for `consumer_span`.
        propagator: Reads and writes the headers; by default the one that `configure()` settled.
        tracer_provider: Makes the spans; the global one by default.

    Raises:
        TypeError: *client* is none of these.
    """
    of = RABBITMQ.with_options(propagator, tracer_provider, parent, server_of(client))
    return instrumented(client, _KINDS, of, keep_existing=keep_existing, takes=_TAKES)


_TAKES: Final = "a channel of pika, or a channel, exchange or queue of aio-pika"
_KINDS: Final[Kinds] = {
    ("pika", "BlockingChannel"): PikaBlockingChannel,
    ("pika", "Channel"): PikaChannel,
    ("aio_pika", "Channel"): AioPikaChannel,
    ("aio_pika", "Exchange"): AioPikaExchange,
    ("aio_pika", "Queue"): AioPikaQueue,
}
