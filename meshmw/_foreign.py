"""Every name of httpx, grpcio or a broker's client that its owner calls private, one function each.

Nothing is imported here: each function looks at an object that the application has made. It says what it assumes and
falls back where that does not hold; `tests/test_foreign.py` has a test for each, with the real package. Names that
OpenTelemetry calls private are in `_otel`.
"""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar


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
    return [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]


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


# The wrappers of a client's transports, by the number of the transport; and what closes these.
_MADE = "_meshmw_transports"
_CLOSING = {"close", "aclose", "__exit__", "__aexit__"}
ClientClass = TypeVar("ClientClass", bound=type[Any])


def wraps_transports(wrapper: type[Any]) -> Callable[[ClientClass], ClientClass]:
    """Return a decorator for a subclass of an httpx client, by which each transport of the client is used in *wrapper*.

    httpx has no public hook for that. It asks its `_transport_for_url` for the transport of each request: the client's
    own, a proxy's or a mounted one. A client that does not ask has its `_transport` and `_mounts` wrapped when it is
    made; where these are gone too, its requests carry no trace.
    """

    def wrapped(transport: Any) -> Any:
        return transport if transport is None or isinstance(transport, wrapper) else wrapper(transport)

    def decorate(client: ClientClass) -> ClientClass:
        if hasattr(client, "_transport_for_url"):
            _wrap_when_asked(client, wrapped)
        else:
            _wrap_when_made(client, wrapped)
        return client

    return decorate


def _wrap_when_asked(client: Any, wrapped: Callable[[Any], Any]) -> None:
    choose = client._transport_for_url

    @functools.wraps(choose)
    def transport_for_url(self: Any, url: Any) -> Any:
        # A number stands for one transport as long as the wrapper holds that.
        made, transport = vars(self).setdefault(_MADE, {}), choose(self, url)
        return made.get(id(transport)) or made.setdefault(id(transport), wrapped(transport))

    client._transport_for_url = transport_for_url
    for name in _CLOSING & set(dir(client)):
        setattr(client, name, _ending_all(getattr(client, name)))


def _ending_all(close: Any) -> Any:
    """Return a method of a client that closes its transports, as *close* does, and ends what these have left open.

    The client closes its own transports, and knows nothing of the wrappers.
    """

    def end(client: Any) -> None:
        for transport in list(vars(client).get(_MADE, {}).values()):
            transport.end_open()

    @functools.wraps(close)
    def closing(self: Any, *args: Any) -> Any:
        try:
            return close(self, *args)
        finally:
            end(self)

    @functools.wraps(close)
    async def closing_async(self: Any, *args: Any) -> Any:
        try:
            return await close(self, *args)
        finally:
            end(self)

    return closing_async if inspect.iscoroutinefunction(close) else closing


def _wrap_when_made(client: Any, wrapped: Callable[[Any], Any]) -> None:
    make = client.__init__

    @functools.wraps(make)
    def init(self: Any, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        self._transport = wrapped(getattr(self, "_transport", None))
        self._mounts = {pattern: wrapped(each) for pattern, each in getattr(self, "_mounts", {}).items()}

    client.__init__ = init
