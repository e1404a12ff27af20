"""Every name of httpx, aiohttp, grpcio, ddtrace or a broker's client that its owner calls private, one function each.

Nothing is imported here: each function looks at an object that the application has made. It says what it assumes and
falls back where that does not hold; `tests/test_foreign.py` has a test for each, with the real package. Names that
OpenTelemetry calls private are in `_otel`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

# What an application can put into a request to aiohttp, which else has it from the connection.
_SAID_OF_AIOHTTP: Final = frozenset({"scheme", "host", "remote", "url"})


def is_of_datadog(span: Any, scope: Mapping[str, Any]) -> bool:
    """Say whether a span is one that ddtrace's ASGI middleware has opened for the request of a scope.

    ddtrace lists its spans of a request in `datadog` of the scope, in `request_spans`. With DD_TRACE_OTEL_ENABLED the
    current span is a new object each time that somebody asks for it, and holds one of these in `_ddspan`. Where a name
    is another, the span counts as anybody's.
    """
    marks = scope.get("datadog")
    if not isinstance(marks, dict):
        return False
    held, spans = getattr(span, "_ddspan", None), marks.get("request_spans")
    return isinstance(spans, (list, tuple)) and any(held is each for each in spans)


def kafka_servers(client: Any) -> list[str]:
    """Return the bootstrap servers that a Kafka producer or consumer was made with; none where it does not show them.

    kafka-python keeps them in `config`. aiokafka's producer has its connections in `client`, its consumer in `_client`,
    and they keep them in `_bootstrap_servers`. confluent-kafka shows nothing. Never raises.
    """
    try:
        connections = getattr(client, "client", None) or getattr(client, "_client", None)
        config = getattr(client, "config", None)
        if isinstance(config, Mapping):
            found = config["bootstrap_servers"]
        else:
            found = getattr(connections, "_bootstrap_servers", ())
        servers = found.split(",") if isinstance(found, str) else found
        return [each.strip() for each in servers if isinstance(each, str)]
    except Exception:
        return []


def has_delivery_callback(producer: Any) -> bool:
    """Say whether the configuration of confluent-kafka's producer named a callback.

    The client, which is written in C, tells neither whether nor which; the garbage collector knows what it holds. A
    producer that holds a callback for anything else counts too. Where it shows nothing, there is none.
    """
    return any(callable(each) and not isinstance(each, type) for each in gc.get_referents(producer))


def amqp_address(client: Any) -> tuple[object, object]:
    """Return the host and the port of the broker that a channel, an exchange or a queue is connected to.

    pika's channel has its connection in `connection`; that of a blocking one is in its `_impl`, and holds `params`.
    aio-pika's channel keeps its connection in `_connection`, whose `url` says both; exchanges and queues have the
    channel in `channel`. None stands for what is not there. Never raises.
    """
    try:
        connection = _connection_of(client) or _connection_of(client.channel)
        connection = getattr(connection, "_impl", connection)
        address = getattr(connection, "params", None) or getattr(connection, "url", None)
        return getattr(address, "host", None), getattr(address, "port", None)
    except Exception:
        return None, None


def _connection_of(channel: Any) -> Any:
    return getattr(channel, "connection", None) or getattr(channel, "_connection", None)


def is_end_of_call(error: BaseException) -> bool:
    """Say whether grpcio tells a handler by this exception that its call is over on the wire.

    `ExecuteBatchError` comes of what an ended call was asked for, `_ServerStoppedError` of a server that stops. grpcio
    exports neither, so they are known by name. Where a name is another, the exception counts as the handler's own.
    """
    return type(error).__name__ in ("ExecuteBatchError", "_ServerStoppedError")


def copy_grpcio_marks(function: Any, handler_function: Any) -> None:
    """Give *function*, in place of a handler's own, what grpcio looks for on that.

    These are `experimental_non_blocking`, and `experimental_thread_pool` with the threads that are to serve the method.
    A mark that has another name is lost: grpcio then serves the method as any other.
    """
    for name in ("experimental_non_blocking", "experimental_thread_pool"):
        if hasattr(handler_function, name):
            setattr(function, name, getattr(handler_function, name))


def is_non_blocking(handler_function: Any) -> bool:
    """Say whether a handler's function is marked for grpcio as one that returns at once, and sends from elsewhere.

    Such a function takes a third argument, by which it sends each response. The mark is `experimental_non_blocking`.
    """
    return bool(getattr(handler_function, "experimental_non_blocking", False))


def method_lookup(continuation: Any) -> Callable[[Any], Any] | None:
    """Return what a server of grpcio finds a method's handler by, past all interceptors further in.

    It is a function `query_handlers`, which a `grpc.server` gives its continuations in a closure, and a
    `grpc.aio.server` as an argument of a partial function. None where there is no such function, and where the server
    has found the method among those that were registered by name: the function holds a method that has a name then.
    """
    is_partial = isinstance(continuation, functools.partial)
    held = continuation.args if is_partial else _held_by(continuation)
    lookup: Callable[[Any], Any] | None = next((each for each in held if _is_named(each, "query_handlers")), None)
    if any(callable(getattr(each, "name", None)) and each.name() for each in _held_by(lookup)):
        return None
    return lookup


def _held_by(function: Any) -> list[Any]:
    found = []
    for cell in getattr(function, "__closure__", None) or ():
        # A name that has no value yet has an empty cell.
        with contextlib.suppress(ValueError):
            found.append(cell.cell_contents)
    return found


def _is_named(function: Any, name: str) -> bool:
    return getattr(function, "__name__", None) == name


def metadata_pair(metadata: Any, name: str, text: str) -> Any:
    """Return a pair of the kind that grpcio's own inbound *metadata* hold, of which there is one at least.

    The kind is a named tuple with `key` and `value`, which is not exported. Where it is another, a plain tuple is made.
    """
    kind = type(metadata[0])
    return kind(name, text) if hasattr(kind, "_fields") else (name, text)


def status_of_ended_call(call: Any) -> Any:
    """Return the status code of a client's call that is over, or None where the call does not know it.

    A call of `grpc.aio` has a coroutine for it, which does not wait once the call is over. One that waits all the same
    is closed, and there is no code.
    """
    code = call.code()
    if not inspect.iscoroutine(code):
        return code
    try:
        code.send(None)
    except StopIteration as done:
        return done.value
    code.close()
    return None


def headers_like(headers: Any, pairs: Iterable[tuple[bytes, bytes]]) -> Any:
    """Return headers of httpx that hold these pairs of bytes, of the class of *headers*.

    Its constructor asks of each text whether it is bytes or text, and takes twice as long as to copy headers and fill
    their `_list`, which holds each name in lower case too. Where that has another shape, the constructor is called.
    """
    kind: Any = type(headers)
    if not _keeps_rows(kind):
        return kind(list(pairs))
    made = kind(headers)
    made._list = [(name, name.lower(), value) for name, value in pairs]
    return made


@functools.cache
def _keeps_rows(kind: Any) -> bool:
    return getattr(kind([(b"A", b"b")]), "_list", None) == [(b"A", b"a", b"b")]


def replace_transports(
    client: Any, choosing: Callable[[Callable[..., Any]], Callable[..., Any]], wrapped: Callable[[Any], Any]
) -> None:
    """Have a subclass of an httpx client use other transports than those that it was given.

    httpx has no public hook for that. It asks its `_transport_for_url` for the transport of each request: the client's
    own, a proxy's or a mounted one. A client that does not ask has its `_transport` and `_mounts` replaced when it is
    made; where these are gone too, it uses what it was given.

    Args:
        client: The subclass.
        choosing: Takes the function that httpx asks, and returns the one to ask instead.
        wrapped: Takes a transport, and returns the one to use instead.
    """
    choose = getattr(client, "_transport_for_url", None)
    if choose is not None:
        client._transport_for_url = choosing(choose)
        return
    make = client.__init__

    @functools.wraps(make)
    def init(self: Any, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        self._transport = wrapped(getattr(self, "_transport", None))
        self._mounts = {pattern: wrapped(each) for pattern, each in getattr(self, "_mounts", {}).items()}

    client.__init__ = init


def aiohttp_call_of(request: Any) -> object:
    """Return what the requests of one call to an aiohttp session have in common, which makes one for each hop.

    It is the timer in `_timer`. Where there is none, each request is a call of its own.
    """
    return getattr(request, "_timer", request)


def has_timed_out(call: object) -> bool:
    """Say whether the timer of a call to an aiohttp session has cancelled it, which raises TimeoutError.

    It says so in `_cancelled`. Where it does not, a timeout counts as any cancellation.
    """
    return bool(getattr(call, "_cancelled", False))


def aiohttp_request_with(request: Any, headers: Any) -> Any:
    """Return a copy of a request to aiohttp's server with other headers, and with all else that it has.

    Its `clone` raises once the body has been read, and for a header that is no UTF-8; it forgets the client's address
    that a middleware has put there. So the copy's `_message`, `_headers` and `_cache` are replaced. Where one of them
    is gone, the request is cloned.

    Args:
        request: The request, which stays as it is.
        headers: A multidict. aiohttp keeps bytes that are no UTF-8 as halves of a character.
    """
    if not {"_message", "_headers", "_cache"} <= getattr(request, "__dict__", {}).keys():
        return request.clone(headers=headers)
    raw = [tuple(text.encode("utf-8", "surrogateescape") for text in pair) for pair in headers.items()]
    copied = copy.copy(request)
    copied._message = request._message._replace(headers=headers, raw_headers=tuple(raw))
    copied._headers = headers
    # What was computed from the headers is computed anew.
    copied._cache = {name: request._cache[name] for name in _SAID_OF_AIOHTTP & request._cache.keys()}
    return copied
