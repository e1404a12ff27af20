"""HTTP semantic conventions, stable version 1.23 and later: what a span says of a request."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import Final, NamedTuple, Self
from urllib.parse import urlsplit

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram

from meshmw._lifecycle.operation import Attributes, AttributeValue, error_type
from meshmw._notices import LOGGER, Throttle, quoted, redacted, without_credentials
from meshmw._otel import liveness_of
from meshmw._policy.patterns import request_path
from meshmw._regex import compiled_late

# RFC 9110, RFC 5789 and the QUERY method, as the conventions ask.
STANDARD_METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"}
)
_methods = STANDARD_METHODS

DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}

# How many root paths may stand in routes, which are labels of metrics.
_MOST_ROOTS: Final = 64
_LONGEST_ROOT: Final = 255
_roots: Final[set[str]] = set()
# How many routes an application may say by itself: no application has as many, and one that says paths has more.
_MOST_ROUTES: Final = 1_000
_LONGEST_ROUTE: Final = 500
_routes: Final[set[str]] = set()
# Few kinds of clients call a service; what a stranger makes up must not fill the memory.
_CACHED_CLIENTS: Final = 256
_CACHED_CHARACTERS: Final = 512

# "Query string values for the following keys SHOULD be redacted by default"           HTTP spans, url.query
_SECRETS: Final = "AWSAccessKeyId|Signature|sig|X-Goog-Signature|X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token"
# Beyond this a query is cut, and beyond so many secrets too: to look through 64 KiB takes as long as 100 requests.
_MOST_QUERY: Final = 2_048
# As much of a path, a method or a client's name says what a longer one would.
_MOST_TEXT: Final = _MOST_QUERY
_MOST_SECRETS: Final = 32
_SECRET_IN_QUERY: Final = compiled_late(f"&(?:{_SECRETS})=([^&]*+)")
# Too long, or with one of those, or perhaps with a URL that has a user's name and password.
_NOT_PLAIN: Final = re.compile(rf".{{{_MOST_QUERY + 1}}}|(?:^|&)(?:{_SECRETS})=|@|%40", re.DOTALL)
# What stands before the user's part of a URL, and what ends it.
_BEFORE_USER: Final = compiled_late("://|%3[Aa]%2[Ff]%2[Ff]")
_BEHIND_USER: Final = compiled_late("@|%40")
# A host name has 253 characters, and a port 5.
_MOST_AUTHORITY: Final = 512
# No authority holds one of these (RFC 3986, section 3.2), and after an address in brackets comes its port or nothing.
_NO_AUTHORITY: Final = compiled_late(r"""[\x00-\x20\x7f"<>\\^`{|}]|\][^:]""")

# "this metric SHOULD be specified with ExplicitBucketBoundaries of"              HTTP metrics
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_SCHEMES: Final = frozenset({"http", "https", "ws", "wss"})
_VERSIONS: Final = frozenset({"1.0", "1.1", "2", "3"})
_MOST_HOSTS: Final = 100
# Of a number of bytes.
_MOST_DIGITS: Final = 18
# Over HTTP/2 a server may send any number.
_HIGHEST_STATUS: Final = 999

_METER: Final = metrics.get_meter("meshmw")
SERVER: Final = _METER.create_histogram(
    "http.server.request.duration",
    unit="s",
    description="Duration of HTTP server requests.",
    explicit_bucket_boundaries_advisory=_BUCKETS,
)
CLIENT: Final = _METER.create_histogram(
    "http.client.request.duration",
    unit="s",
    description="Duration of HTTP client requests.",
    explicit_bucket_boundaries_advisory=_BUCKETS,
)
# Asked for each request: measuring without a meter provider would cost its labels.
SERVER_IS_MEASURED: Final = liveness_of(SERVER)
CLIENT_IS_MEASURED: Final = liveness_of(CLIENT)
_hosts: Final[set[str]] = set()
_failures: Final = Throttle()
_no_templates: Final = Throttle()


def know_methods(listed: str) -> None:
    """Take the methods of a comma-separated list for known, and no others; where it is empty, the standard ones.

    `OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS` holds such a list. It is case-sensitive, as methods are.
    """
    global _methods
    _methods = frozenset(filter(None, map(str.strip, listed.split(",")))) or STANDARD_METHODS
    _repeated.cache_clear()


def method_attributes(method: str) -> dict[str, AttributeValue]:
    """Return `http.request.method`, which is `_OTHER` with the original beside it for an unknown method."""
    if method in _methods:
        return {"http.request.method": method}
    return {"http.request.method": "_OTHER", "http.request.method_original": method[:64]}


def span_name(method: str, route: str | None = None) -> str:
    """Return `{method} {route}`, or the method alone; an unknown method is named `HTTP`."""
    verb = method if method in _methods else "HTTP"
    return f"{verb} {route}" if route else verb


def authority_of(host: object, port: object) -> str:
    """Return `host:port` as an authority spells it: an IPv6 address in brackets (RFC 3986, section 3.2.2)."""
    name = str(host)
    return f"[{name}]:{port}" if ":" in name and not name.startswith("[") else f"{name}:{port}"


def known_root(root: str) -> str | None:
    """Return the root path of an application, or None for one beyond the first 64, or of more than 255 characters.

    The server sets it, but some let a header decide (`x-forwarded-prefix`), and a route is a metric's label.
    """
    if root and root not in _roots:
        if len(_roots) >= _MOST_ROOTS or len(root) > _LONGEST_ROOT:
            return None
        _roots.add(root)
    return root


def is_known_route(template: str) -> bool:
    """Say whether a route that an application says itself may be a label: not beyond 1,000, nor beyond 500 characters.

    An application that takes the path for the route would fill the memory of whatever counts its requests. Half a
    character is a raw path's too, and no exporter can encode it. With a control character, such as a line's end, it is
    no template either: a span's name stands in one line.
    """
    if template in _routes:
        return True
    if not template:
        return False
    if len(_routes) < _MOST_ROUTES and len(template) <= _LONGEST_ROUTE and template.isprintable():
        _routes.add(template)
        return True
    if _no_templates.opens() is not None:
        LOGGER.warning(
            "a route is ignored, %s: it is longer than %d characters, or not printable, or there are %d others by now; "
            "a route is a template such as /stock/{item}, and not the path that was asked for",
            quoted(template),
            _LONGEST_ROUTE,
            _MOST_ROUTES,
        )
    return False


def is_short(method: str, status: int, lengths: Sequence[str], sent: int) -> bool | None:
    """Say whether a client still lacks some of a response's body; None where nobody has said how long it is.

    Args:
        method: The request's.
        status: The status code that went out.
        lengths: What Content-Length promised, by each line of it.
        sent: The bytes of the body that went out.
    """
    # RFC 9110, section 6.4.1: what has no content.
    if method == "HEAD" or status in (204, 304):
        return False
    length = lengths[0].strip() if len(lengths) == 1 else ""
    if not length.isdecimal():
        return None
    digits = length.lstrip("0")
    # Python makes no number of more than 4,300 digits, and nobody has sent so much.
    return len(digits) > _MOST_DIGITS or sent < int(digits or "0")


def redact_query(query: str) -> str:
    """Return a query string with the values of well-known signatures and credentials replaced by `REDACTED`.

    At most 2,048 characters, 32 such values, 32 URLs and 32 at signs are shown; the rest is cut off.
    """
    # Nearly every query may stay as it is, which one look tells.
    return without_credentials(_cut_to_users(_redacted(query))) if _NOT_PLAIN.search(query) else query


def _redacted(query: str) -> str:
    # The sign in front lets `re` skip what begins with none.
    text = f"&{query[:_MOST_QUERY]}"
    parts: list[str] = []
    end = 0
    for count, match in enumerate(_SECRET_IN_QUERY().finditer(text)):
        if count == _MOST_SECRETS:
            text = ""
            break
        parts += text[end : match.start(1)], "REDACTED"
        end = match.end()
    return "".join([*parts, text[end:]])[1:]


def _cut_to_users(text: str) -> str:
    """Return a text with at most 32 URLs, and at most 32 signs that may end a user's name and password."""
    # What is kept of a user's part has its end: no such part holds another URL.
    beyond = next(islice(_BEFORE_USER().finditer(text), _MOST_SECRETS, None), None)
    text = text if beyond is None else text[: beyond.start()]
    last = next(islice(_BEHIND_USER().finditer(text), _MOST_SECRETS - 1, None), None)
    return text if last is None else text[: last.end()]


def server_attributes(
    *,
    method: str,
    scheme: str,
    path: str,
    query: str,
    authority: str | None,
    protocol_version: str | None,
    client: str | None,
    client_port: int | None,
    user_agent: str | None,
) -> dict[str, AttributeValue]:
    """Return the attributes of an HTTP server span that are known when the request arrives."""
    # As one text, which takes less time than to add up five lengths.
    size = len(f"{method}{scheme}{authority}{protocol_version}{user_agent}")
    if size <= _CACHED_CHARACTERS:
        found = _repeated(method, scheme, authority, protocol_version, user_agent).copy()
    else:
        agent = user_agent[:_MOST_TEXT] if user_agent else None
        version = protocol_version[:_MOST_TEXT] if protocol_version else None
        found = _of_a_client(method[:_MOST_TEXT], scheme[:_MOST_TEXT], authority, version, agent)
    # Without a colon it is a plain path, as nearly always.
    found["url.path"] = (request_path(path) if ":" in path else path)[:_MOST_TEXT]
    if query:
        found["url.query"] = redact_query(query)
    if client:
        # A server may take it from a header.
        client = client[:_MOST_TEXT]
        found["client.address"] = client
        if client_port:
            found["network.peer.address"] = client
            found["network.peer.port"] = client_port
    return found


def _of_a_client(
    method: str, scheme: str, authority: str | None, protocol_version: str | None, user_agent: str | None
) -> dict[str, AttributeValue]:
    """Return what one request of a client has in common with the next; it is shared, and not to be changed."""
    found = method_attributes(method)
    found["url.scheme"] = scheme
    found |= address_attributes("server", authority, scheme)
    if protocol_version:
        found["network.protocol.version"] = protocol_version
    if user_agent:
        found["user_agent.original"] = user_agent
    return found


_repeated: Final = lru_cache(maxsize=_CACHED_CLIENTS)(_of_a_client)


def client_attributes(*, method: str, scheme: str, host: str, port: int | None, url: str) -> dict[str, AttributeValue]:
    """Return the attributes of an HTTP client span that are known when the request leaves."""
    found = method_attributes(method)
    found["server.address"] = host
    number = port or DEFAULT_PORTS.get(scheme)
    if number:
        found["server.port"] = number
    url, hash_sign, fragment = url.partition("#")
    base, question_mark, query = url.partition("?")
    if "@" in base:
        # The client has hidden the user's part of the URL itself; further ones may stand in its path.
        begin = len(scheme) + len("://")
        authority, slash, path = base[begin:].partition("/")
        base = base[:begin] + authority + slash + without_credentials(path)
    if hash_sign:
        # OAuth hands out tokens there, and a redirect takes it along.
        fragment = redacted(f"{hash_sign}{fragment}")
    found["url.full"] = base + question_mark + redact_query(query) + fragment
    return found


class Target(NamedTuple):
    """Says where a request goes.

    Attributes:
        scheme: The URL's.
        host: The host, without port and brackets; empty where the URL is none.
        port: The port, where the URL has one.
        path: What the request's first line names: path and query.
        url: All of it, without credentials.
    """

    scheme: str
    host: str
    port: int | None
    path: bytes
    url: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Return where a URL leads. Never raises: the client itself refuses what is no URL."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            return cls("", "", None, b"", "")
        if "@" in parts.netloc:
            url = parts._replace(netloc=f"REDACTED:REDACTED@{parts.netloc.rpartition('@')[2]}").geturl()
        path = parts._replace(scheme="", netloc="", fragment="").geturl()
        return cls(parts.scheme, host, port, path.encode("utf-8", "surrogatepass"), url)

    def attributes(self, method: str, sent: int) -> dict[str, AttributeValue]:
        """Return what the span of a request says that goes there, and was sent a number of times before."""
        found = client_attributes(method=method, scheme=self.scheme, host=self.host, port=self.port, url=self.url)
        if sent:
            found["http.request.resend_count"] = sent
        return found


def protocol_version(version: str) -> str:
    """Return `1.1`, `2` or `3` for what servers and clients call `HTTP/1.1`, `HTTP/2`, `2.0`, `h2`."""
    # What nearly every server says.
    if version == "HTTP/1.1":
        return "1.1"
    number = version.rpartition("/")[2].removeprefix("h")
    return number.removesuffix(".0") if number in {"2.0", "3.0"} else number


class Measurement:
    """Times one request, from when it is made.

    Args:
        histogram: Where the duration goes.
        attributes: What is known of the request as it begins; of these, what may be a label becomes one.
    """

    __slots__ = ("_began", "_histogram", "labels")

    def __init__(self, histogram: Histogram, attributes: Attributes) -> None:
        self._began = time.perf_counter()
        self._histogram = histogram
        self.labels: dict[str, AttributeValue] = _labels(attributes, is_client=histogram is CLIENT)

    def fail(self, error: BaseException) -> None:
        """Note an error; cancellation is none."""
        if isinstance(error, Exception):
            self.labels["error.type"] = error_type(error)

    def status(self, code: int, error_from: int) -> None:
        """Note the status code, which is an error from *error_from* on."""
        is_code = 100 <= code <= _HIGHEST_STATUS
        if is_code:
            self.labels["http.response.status_code"] = code
        if code >= error_from:
            # What was raised says more than the answer to it.
            self.labels.setdefault("error.type", str(code) if is_code else "_OTHER")

    def record(self, context: Context) -> None:
        """Record the time since it was made, as an exemplar of the span in a context."""
        # A meter provider may hold on to the labels, and the SDK did so before 1.42: what comes later goes elsewhere.
        labels, self.labels = self.labels, {}
        try:
            self._histogram.record(time.perf_counter() - self._began, labels, context)
        except Exception:
            # Somebody else's provider, view or exemplar filter, in the request's own thread.
            if _failures.opens() is not None:
                LOGGER.warning(
                    "the meter provider raised; requests are unaffected, and durations are missing", exc_info=True
                )


def _labels(attributes: Attributes, *, is_client: bool) -> dict[str, AttributeValue]:
    labels: dict[str, AttributeValue] = {"http.request.method": attributes["http.request.method"]}
    if (scheme := attributes.get("url.scheme")) in _SCHEMES and scheme is not None:
        labels["url.scheme"] = scheme
    if (version := attributes.get("network.protocol.version")) in _VERSIONS and version is not None:
        labels["network.protocol.version"] = version
    if is_client:
        labels |= _host(attributes)
    return labels


def _host(attributes: Attributes) -> dict[str, AttributeValue]:
    """Return the host that is called, which the conventions ask for; those beyond the first hundred are one."""
    address, port = str(attributes.get("server.address", "")), attributes.get("server.port")
    host = f"{address}:{port}"
    if host not in _hosts:
        if len(_hosts) >= _MOST_HOSTS:
            return {"server.address": "_OTHER"}
        _hosts.add(host)
    return {"server.address": address} | ({} if port is None else {"server.port": port})


def address_attributes(prefix: str, authority: str | None, scheme: str) -> dict[str, AttributeValue]:
    """Return `{prefix}.address` and `{prefix}.port` of a `host[:port]`, or nothing where it is malformed.

    A port that is not given is the scheme's own.
    """
    address, port = _host_and_port(authority) if authority and len(authority) <= _MOST_AUTHORITY else (None, None)
    if not address:
        return {}
    port = port or DEFAULT_PORTS.get(scheme)
    return {f"{prefix}.address": address, f"{prefix}.port": port} if port else {f"{prefix}.address": address}


def _host_and_port(authority: str) -> tuple[str | None, int | None]:
    if _NO_AUTHORITY().search(authority):
        return None, None
    try:
        url = urlsplit(f"//{authority}")
        address, port = url.hostname, url.port
    except ValueError:
        return None, None
    if url.path or url.query or url.fragment or url.username is not None:
        return None, None
    return address, port
