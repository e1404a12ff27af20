"""What a client library must offer for the messaging contract to run on it.

A contract test is written once, for an async client. A sync library's methods are `async` here and do not wait.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import ModuleType
from typing import Any, ClassVar

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Span

from meshmw import MeshPropagator

# What a test wants to have on a message: names with text, with bytes that may be no text, or with null.
Headers = Sequence[tuple[str, str | bytes | None]]


class TracedClient(abc.ABC):
    """Sends and processes messages or tasks through meshmw with one library, over a real broker.

    Made for one test, with its own spans; connections may live longer. A destination is a topic or a queue of one
    test's own.

    Args:
        broker: Where the broker is, as the file that binds the client has found it.
        options: Of `Messaging`, beside the propagator and the provider: `parent="link"`.
    """

    # What differs by the protocol, and not by the client.
    system: ClassVar[str]
    ours: ClassVar[ModuleType]  # the module that is tested
    repeats_headers: ClassVar[bool] = False  # a name may be there twice
    null_headers: ClassVar[bool] = True  # a header may have no value
    null_bodies: ClassVar[bool] = True  # a message may have no body; else it is empty
    send_operation: ClassVar[str] = "send"
    closed: ClassVar[type[Exception]] = StopAsyncIteration  # what an iterator raises whose consumer has been closed

    def __init__(self, broker: str, **options: Any) -> None:
        self.broker = broker
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.propagator = MeshPropagator()
        self.options: dict[str, Any] = {
            "propagator": self.propagator,
            "tracer_provider": self.provider,
            **options,
        }

    @abc.abstractmethod
    async def open(self) -> None:
        """Connect, where that is needed before anything else."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Disconnect."""

    @abc.abstractmethod
    async def send_plain(self, destination: str, body: bytes | None = b"body", headers: Headers = ()) -> None:
        """Send a message as it is, without meshmw, and wait until the broker has it."""

    @abc.abstractmethod
    async def send(self, destination: str, body: bytes | None = b"body", headers: Any = None) -> None:
        """Send as the guide says: in a producer span, with `inject(headers)`; wait until the broker has it."""

    @abc.abstractmethod
    async def send_instrumented(self, destination: str, body: bytes | None = b"body", headers: Any = None) -> None:
        """Send through the wrapper that needs no code; wait until the broker has it."""

    @abc.abstractmethod
    async def receive(self, destination: str, count: int = 1) -> list[Any]:
        """Return the next messages as the library hands them out, without meshmw, settled where that is needed."""

    def extract(self, message: Any) -> Context:
        """Return meshmw's `extract` of a received message."""
        return self.ours.extract(message, propagator=self.propagator)

    def inject(self, headers: Any = None, **options: Any) -> Any:
        """Return meshmw's `inject` of headers, such as `headers_of` a received message returns."""
        return self.ours.inject(headers, propagator=self.propagator, **options)

    def consumer_span(self, message: Any) -> AbstractContextManager[Span]:
        """Return meshmw's block around the processing of one message."""
        return self.ours.consumer_span(message, **self.options)

    def batch_span(self, messages: Sequence[Any]) -> AbstractContextManager[Span]:
        """Return meshmw's block around the processing of several messages."""
        options = {name: value for name, value in self.options.items() if name != "parent"}
        return self.ours.batch_span(messages, **options)

    @abc.abstractmethod
    def headers_of(self, message: Any) -> Any:
        """Return the headers exactly as the library hands them out, to be sent again with another message."""

    @abc.abstractmethod
    def pairs_of(self, headers: Any) -> list[tuple[str, bytes | None]]:
        """Return headers of the library's shape, or `inject`'s, as pairs; values as UTF-8 where they are text."""

    def lines_of(self, headers: Any) -> dict[str, list[bytes | None]]:
        """Return the values of each header, by name in lower case."""
        found: dict[str, list[bytes | None]] = {}
        for name, value in self.pairs_of(headers):
            found.setdefault(name.lower(), []).append(value)
        return found

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def span(self, name: str) -> ReadableSpan:
        """Return the only span of a name."""
        (only,) = [span for span in self.spans if span.name == name]
        return only


class MessagingClient(TracedClient):
    """Hands out messages too, each with a body of bytes."""

    @abc.abstractmethod
    def deliveries(self, destination: str) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Return meshmw's iterator over `Delivery` objects, whose consumer closes at the end of the block."""

    @abc.abstractmethod
    def producer_span(self, destination: str) -> AbstractContextManager[Span]:
        """Return meshmw's block around the sending of one message."""

    @abc.abstractmethod
    def body_of(self, message: Any) -> bytes | None:
        """Return a received message's body."""


class Inline(AsyncIterator[Any]):
    """Lets an async test iterate over a sync library's deliveries, with no frame of its own in between."""

    def __init__(self, steps: Iterator[Any]) -> None:
        self._steps = steps

    async def __anext__(self) -> Any:
        try:
            return next(self._steps)
        except StopIteration:
            raise StopAsyncIteration from None


Clients = Mapping[str, type[MessagingClient]]
