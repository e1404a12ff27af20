"""A requests session and adapter that carry the current trace on every request, redirects included.

Drop-in: `meshmw.requests.Session` takes what `requests.Session` takes, and `TraceContextAdapter` wraps the adapter of
an existing session.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, Self, Unpack

from meshmw._lifecycle.http import HttpOperation
from meshmw._lifecycle.http_conventions import Target
from meshmw._notices import quoted
from meshmw._otel import past_contrib
from meshmw._transports import Body, ClientOptions, OutboundCalls, forget_wrappers, wrapper_for
from meshmw.errors import extra_named

with extra_named("requests", "requests", "requests"):
    import requests
    from requests.adapters import BaseAdapter, HTTPAdapter

__all__ = ["ClientOptions", "Session", "TraceContextAdapter"]

# What `http.client` calls the versions.
_VERSIONS: Final = {10: "1.0", 11: "1.1", 20: "2"}
_CHUNKS: Final = frozenset({"stream", "read_chunked"})
_READING: Final = frozenset({"read", "read1", "readinto", "readline", "readlines", "drain_conn"})
_CLOSING: Final = frozenset({"close", "release_conn"})
_OF_BODY: Final = frozenset({"_stream", "_operation", "_dropped"})


class TraceContextAdapter(OutboundCalls, BaseAdapter):
    """Sends each request in a CLIENT span of the current trace, with the trace headers replaced.

    The caller's request is not changed. The span follows the HTTP client conventions and ends when the response's body
    was read or closed. What urllib3's `Retry` sends again within the adapter is in the same span.

    Args:
        adapter: The adapter that does the sending; an `HTTPAdapter()` by default.
        options: Each one that you leave out has its default.

            - `propagator`: writes the headers; the configured one by default;
            - `tracer_provider`: makes the spans; the global one by default.

    Raises:
        TypeError: What is given is no adapter, or an option is not known or holds no propagator or tracer provider.
    """

    def __init__(self, adapter: BaseAdapter | None = None, **options: Unpack[ClientOptions]) -> None:
        super().__init__(**options)
        given: Any = HTTPAdapter() if adapter is None else adapter
        if isinstance(given, type) or not hasattr(given, "send"):
            raise TypeError(f"TraceContextAdapter() takes an adapter such as HTTPAdapter(), not {quoted(given)}")
        self._adapter: BaseAdapter = given

    def __getattr__(self, name: str) -> Any:
        # What unpickles asks before there is an adapter.
        if name == "_adapter":
            raise AttributeError(name)
        return getattr(self._adapter, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # What the one that does the sending looks at is set there: `adapter.max_retries = 3`.
        inner = vars(self).get("_adapter")
        if not hasattr(type(self), name) and name not in vars(self) and hasattr(inner, name):
            setattr(inner, name, value)
        else:
            object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if name in vars(self):
            object.__delattr__(self, name)
        else:
            delattr(self._adapter, name)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send one request; the span ends when the response's body was read or closed."""
        carrying = copy.copy(request)
        carrying.headers = request.headers.copy()
        sent = _sent_before(request)
        operation = self._begin_in(carrying.headers, str(request.method), Target.parse(str(request.url)), sent)
        try:
            with self._sending(operation):
                response = self._adapter.send(carrying, *args, **kwargs)
            # Whoever sends again, such as digest authentication, sends the caller's request by this adapter.
            response.request, response.connection = request, self  # type: ignore[assignment]  # it can send
            self._record(operation, response, sent)
        except BaseException as error:
            operation.fail(error)
            operation.end()
            raise
        return response

    def _record(self, operation: HttpOperation, response: Any, sent: int) -> None:
        # A test double's may be anything.
        if isinstance(response.status_code, int):
            operation.status(response.status_code, error_from=400)
        raw = response.raw
        if operation.is_open and (version := _VERSIONS.get(getattr(raw, "version", 0))):
            operation.span.set_attribute("network.protocol.version", version)
        retries = getattr(getattr(raw, "retries", None), "history", ())
        if operation.is_open and isinstance(retries, tuple) and retries:
            operation.span.set_attribute("http.request.resend_count", sent + len(retries))
        if raw is None:
            operation.end()
        else:
            response.raw = _Raw(raw, operation)

    def close(self) -> None:
        """Close the adapter that does the sending. Responses that are open can still be read."""
        self._adapter.close()


class _Raw(Body):
    """Stands for what a response's body is read from, and ends the operation once no more can come of that."""

    # To whoever asks `isinstance`.
    __class__ = property(lambda self: type(self._stream))

    def __getattr__(self, name: str) -> Any:
        # What copies asks before there is anything to stand for.
        if name in _OF_BODY:
            raise AttributeError(name)
        if name == "data" and hasattr(type(self._stream), name):
            return self._watched(partial(getattr, self._stream, name), True)()
        found = getattr(self._stream, name)
        if name in _CHUNKS:
            return lambda *args, **kwargs: self._chunks(found(*args, **kwargs))
        return self._watched(found, name in _CLOSING) if name in _READING | _CLOSING else found

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OF_BODY:
            object.__setattr__(self, name, value)
        else:
            setattr(self._stream, name, value)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks(iter(self._stream))

    def __next__(self) -> bytes:
        if line := self._watched(partial(next, self._stream, b""), False)():
            return bytes(line)
        raise StopIteration

    def json(self) -> Any:
        """Read all of the body, and parse it."""
        _ = self.data
        return self._stream.json()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _watched(self, read: Callable[..., Any], is_last: bool) -> Callable[..., Any]:
        def reading(*args: Any, **kwargs: Any) -> Any:
            try:
                found = read(*args, **kwargs)
            except BaseException as error:
                self._fail(error)
                raise
            asked = args[0] if args else kwargs.get("amt")
            is_empty = not found and (asked is None or bool(asked))
            if is_last or is_empty or getattr(self._stream, "closed", False):
                self.end()
            return found

        return reading

    def _chunks(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from chunks
        except GeneratorExit:
            raise
        except BaseException as error:
            self._fail(error)
            raise
        self.end()


class Session(requests.Session):
    """Takes what `requests.Session` takes and does what it does, with the current trace on every request.

    Each of the session's adapters, also one that is mounted later, is used in a `TraceContextAdapter`.
    """

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a prepared request, each of its hops in a span of ours."""
        next_send = super().send
        send: Callable[..., requests.Response] = past_contrib(next_send)
        # Contrib has wrapped a function, which takes the session too.
        return send(request, **kwargs) if send is next_send else send(self, request, **kwargs)

    def mount(self, prefix: str, adapter: BaseAdapter) -> None:
        """Use an adapter for URLs that begin so; one in whose place it comes is let go of."""
        super().mount(prefix, adapter)
        forget_wrappers(self, self.adapters.values())

    def get_adapter(self, url: str) -> BaseAdapter:
        """Return the adapter for a URL, in one of ours where it is for HTTP."""
        adapter = super().get_adapter(url)
        is_http = url.lower().startswith("http")
        found: BaseAdapter = wrapper_for(self, adapter, TraceContextAdapter) if is_http else adapter
        return found


class _Hooks(dict[str, Any]):
    """Holds a request's hooks, which each copy of it shares: redirects and authentication send copies."""

    sent = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def _sent_before(request: requests.PreparedRequest) -> int:
    """Return how often a request was sent before, for whatever reason: a redirect, an authentication."""
    hooks = request.hooks
    if isinstance(hooks, _Hooks):
        hooks.sent += 1
        return hooks.sent
    if isinstance(hooks, dict):
        request.hooks = _Hooks(hooks)
    return 0


def __dir__() -> list[str]:
    return sorted(__all__)
