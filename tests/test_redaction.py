"""No secret goes into a span or a log with the text of an exception or of a request's target (law 9)."""

from __future__ import annotations

import asyncio
import logging
import socketserver
import time
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from meshmw import MeshPropagator, Settings, _notices, asgi, wsgi
from meshmw._lifecycle.http_conventions import redact_query
from meshmw._lifecycle.rpc import begin_client
from meshmw._notices import LOGGER, escaped, redacted, without_secrets
from meshmw._policy.patterns import request_path
from meshmw._telemetry.collector import GuardedSpanExporter
from meshmw._telemetry.provider import build_provider
from meshmw.httpx import TraceContextTransport
from meshmw.logs import JsonFormatter

# What stands in exceptions' texts, by whom. `s3cret` must go, and `kept` must stay.
TEXTS = {
    "h11": r"Illegal header value b'Bearer s3cret\n' kept",
    "h11, another scheme": r"illegal header value b's3cret\n'",
    "h2": "Received header value surrounded by whitespace b's3cret '",
    "http.client": r"Invalid header value b's3cret\n'",
    "http.client, a quote within": r"""Invalid header value b"s3cret's3cret\"s3cret\n" kept""",
    "requests": "Header part ('s3cret') from ('Authorization', 's3cret') must be of type str or bytes, kept",
    "requests, newline": r"Invalid leading whitespace, or return character(s) in header value: 's3cret\n'",
    "grpcio": r"metadata was invalid: [('authorization', 'Bearer s3cret\n'), ('x-kept', '1')]",
    "grpcio, named tuple": "_Metadatum(key='authorization', value='s3cret'), kept",
    "grpcio, status": 'details = "upstream http://user:s3cret@pricing said Basic dXNlcjpzM2NyZXQ= s3cret"'.replace(
        " s3cret", " kept"
    ),
    "a mapping": "{'Authorization': 's3cret', 'x': 'kept'}",
    "pairs of bytes": "[(b'Proxy-Authorization', b's3cret'), (b'x', b'kept')]",
    "lines": 'GET / HTTP/1.1\r\nCookie: sid=s3cret; other=s3cret\r\nAuthorization: Digest username="s3cret"\r\nx: kept',
    "a cookie that is set": "set-cookie: sid=s3cret; HttpOnly",
    "keys": "x-api-key: s3cret",
    "a vendor's token": "X-Vault-Token: s3cret",
    "httpx, redirect": "Redirect response '302 Found' for url 'http://user:s3cret@shop/kept'",
    "httpx, status": "Client error '401 Unauthorized' for url 'https://shop/?access_token=s3cret&kept=1'",
    "a token for a name": "fatal: https://s3cret@git.example/kept not found",
    "a proxy": "cannot connect to proxy http://user:s3cret@proxy:3128, kept",
    "amqp": "amqp://user:s3cret@rabbit:5672/kept",
    "amqp, a slash in it": "amqp://user:s3/s3cret@rabbit:5672/kept",
    "postgres, an @ in it": "could not connect to postgresql://user:s3@s3cret@db/kept",
    "postgres, a quote in it": "could not connect to postgresql://user:s3c'ret\"s3cret@db/kept",
    "redis, no name": "Error connecting to redis://:s3cret@[::1]:6379/kept",
    "libpq": "host=db user=kept password=s3cret",
    "ODBC": "Server=db;Password=s3cret;kept",
    "a client's configuration": "{'sasl.mechanism': 'kept', 'sasl.password': 's3cret'}",
    "keyword arguments": "connect(host='kept', sasl_plain_password='s3cret')",
    "JSON": '{"api_key": "s3cret", "kept": 1}',
    "a signed URL": "https://bucket/kept?X-Amz-Signature=s3cret&X-Amz-Credential=s3cret&X-Amz-Security-Token=s3cret",
    "a URL in a URL": "https://kept/?next=https%3A%2F%2Fuser%3As3cret%40host%2F",
    "a JSON Web Token": "invalid token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzM2NyZXQifQ.s3cret, kept",
    "bearer": "bearer s3cret has expired, kept",
    "bearer, a colon": "Bearer: s3cret",
    "another scheme": "Token s3cret has expired, kept",
    "a scheme with a dash": "ApiKey s3cret; kept",
    "digest": 'Digest username="u", response="s3cret"',
    "a WSGI environ": "{'HTTP_AUTHORIZATION': 'Bearer s3cret', 'HTTP_COOKIE': 'sid=s3cret', 'PATH_INFO': '/kept'}",
    "a binary header of grpcio": "_Metadatum(key='authorization-bin', value=b's3cret'), kept",
    "cookies": "get(cookies={'sid': 's3cret'}, to='kept')",
    "a cookie jar": "<Cookies[<Cookie sid=s3cret for kept.example />]>",
    "a vendor's header": "PRIVATE-TOKEN: s3cret\r\nOcp-Apim-Subscription-Key: s3cret\r\nDD-API-KEY: s3cret\r\nx: kept",
    "a client's secret": "CF-Access-Client-Secret: s3cret",
    "a header without quotes": "Invalid header value: s3cret\nkept",
    "a header field": 'invalid header field value "s3cret"',
    "camel case": "https://shop/kept?clientSecret=s3cret&authToken=s3cret&accessToken=s3cret",
    "a code of OAuth": "Redirect response '302 Found' for url 'https://kept/cb?code=s3cret&session=s3cret#id_token=s3cret'",
    "a key of an interface": "403 for url 'https://maps.example/kept?key=s3cret'",
    "a fragment": "https://kept/cb#access_token=s3cret",
    "a variable": "PGPASSWORD=s3cret AWS_SECRET_ACCESS_KEY=s3cret kept",
    "YAML": "password: s3cret\nhost: kept",
    "a field": "token: s3cret, kept",
    "JSON in JSON": r'{"body": "{\"password\": \"s3cret\", \"x\": \"kept\"}"}',
    "an object of pika": "URLParameters(credentials=PlainCredentials('u', 's3cret'), host='kept')",
    "a pair for basic authentication": "get(auth=('user', 's3cret'), to='kept')",
    "a connection string": "AccountName=kept;AccountKey=s3cret==;EndpointSuffix=core",
    "a key": "{'private_key': 's3cret', 'SECRET_KEY': 's3cret', 'x': 'kept'}",
    "a command": "Command 'login --user kept --access-token s3cret' returned 1",
    "no scheme": "dial tcp: user:s3cret@db:3306 refused, kept",
    "no scheme, slashes": "//user:s3cret@kept/",
    "PEM": "-----BEGIN RSA PRIVATE KEY-----\nMIIs3cret+/\n-----END RSA PRIVATE KEY----- kept",
    "PEM, cut off": "kept -----BEGIN PRIVATE KEY-----\nMIIs3cret",
    "GitHub": "ghp_s3cretAAAAAAAAAAAA kept",
    "Slack": "POST https://hooks.slack.com/services/T0/B0/s3cret: kept",
    "Stripe": "sk_live_s3cretAAAA, kept",
    "a sasl of Kafka": 'sasl_jaas=\'PlainLoginModule required username="u" password="s3cret";\'',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_secret_is_hidden_and_the_rest_stays(text):
    found = redacted(text)
    assert "s3cret" not in found
    assert "REDACTED" in found
    assert ("kept" in found) is ("kept" in text)


@pytest.mark.parametrize(
    "text",
    [
        "Basic authentication is not enough",
        "401 Unauthorized",
        "Unexpected token: }",
        "KeyError: 'token'",
        "write to shop@example.com",
        "http://localhost:8080/a@b.example",
        "http://shop/@me?at=3",
        "authorization is missing",
        '  File "/srv/secret/token.py", line 3, in password',
        "the passwords do not match",
        "shop.InvalidPassword: the two differ",
        "cryptography.fernet.InvalidToken: bad",
        "Token expired",
        "the token is invalid",
        "Duplicate entry 'x' for key 'PRIMARY'",
        "primary_key=True, max_tokens=100, config=5, key: 5",
        "status code=404",
        "author: Joe; authority: shop; monkey=5",
        "Digest authentication failed",
        "mailto:joe@example.com",
        "https://shop/?page=3&q=a#top",
        "<Response [200]>",
    ],
)
def test_what_is_no_secret_stays_as_it_is(text):
    assert redacted(text) == text


@pytest.mark.parametrize("end", ["", "@"])
def test_the_time_grows_with_the_text_and_no_faster(end):
    parts = ["a://", "a://a:", "://a@", "a%3a%2f%2f", "cookie:", "x-a-", "x-", "'\\", "header value '", "Basic a",
             "Bearer ", "token='", "eyJa.", "auth", "password", "a", "@"]  # fmt: skip
    parts += ["token: ", "key=", "-key: ", "password=\\\"", "sig=(", "cookie={", "<Cookie ", "header value: ", "-a-",
              "a:", "/u:", "user:" + "x" * 127, "BEGIN A PRIVATE KEY-----", "ghp_", "?code=", "auth", "credential(",
              "Digest a="]  # fmt: skip
    for part in parts:
        took = []
        for size in (32_768, 262_144):
            text = (part * size)[:size] + end
            began = time.perf_counter()
            redacted(text)
            took.append(time.perf_counter() - began)
        assert took[1] < 40 * took[0] + 0.1, part
        assert took[0] < 1, part


def test_a_text_without_end_is_cut_and_shows_nothing_of_a_secret_at_the_cut(monkeypatch):
    monkeypatch.setattr(_notices, "_MOST_CHARACTERS", 40)
    message, stacktrace = _notices.exception_shown(ValueError("x" * 20 + " amqp://user:s3cret@host" + "y" * 900))
    assert message == "x" * 20 + " amqp://REDACTED@hos..."
    assert len(stacktrace) == 43


def events_of(run):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    run(provider)
    (span,) = exporter.get_finished_spans()
    (event,) = span.events
    assert span.status.status_code is StatusCode.ERROR
    return event, span


def test_a_header_that_the_client_refuses_is_not_in_the_span():
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        # h11 looks at the headers once there is a connection, which the kernel makes by itself.
        url, headers = f"http://127.0.0.1:{server.server_address[1]}/", {"authorization": "Bearer s3cret\n"}

        def run(provider):
            client = httpx.Client(transport=TraceContextTransport(httpx.HTTPTransport(), tracer_provider=provider))
            with client, pytest.raises(httpx.LocalProtocolError, match="s3cret"):
                client.get(url, headers=headers)

        event, span = events_of(run)
    assert event.name == "exception"
    assert event.attributes["exception.type"] == span.attributes["error.type"] == "httpx.LocalProtocolError"
    assert "Illegal header value" in event.attributes["exception.message"]
    assert "Traceback (most recent call last)" in event.attributes["exception.stacktrace"]
    assert "s3cret" not in str(span.to_json())


class Secret(RuntimeError):
    def __init__(self):
        super().__init__("amqp://user:s3cret@rabbit/vhost is down")


async def fails(scope, receive, send):
    raise Secret


def test_an_exception_of_the_application_is_redacted_on_asgi():
    def run(provider):
        app = asgi.TraceContextMiddleware(fails, tracer_provider=provider, propagator=MeshPropagator())
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        with pytest.raises(Secret, match="s3cret"):
            asyncio.run(app(scope, None, None))

    event, span = events_of(run)
    assert event.attributes["exception.message"] == "amqp://REDACTED@rabbit/vhost is down"
    assert "s3cret" not in span.to_json()


def test_what_a_call_of_grpc_raises_is_redacted():
    def run(provider):
        try:
            raise Secret
        except Secret as error:
            begin_client("/shop.Pricing/Quote", {}, provider.get_tracer("app")).complete("UNAVAILABLE", error)

    event, span = events_of(run)
    assert event.attributes["exception.message"] == "amqp://REDACTED@rabbit/vhost is down"
    assert "s3cret" not in span.to_json()


def test_an_exception_that_has_no_text_leaves_the_rest_of_the_span():
    class Silent(Exception):
        def __str__(self):
            raise RuntimeError

    def run(provider):
        def refuse(request):
            raise Silent

        with pytest.raises(Silent):
            httpx.Client(transport=TraceContextTransport(httpx.MockTransport(refuse), tracer_provider=provider)).get(
                "http://shop.internal"
            )

    with pytest.raises(ValueError, match="not enough values"):
        events_of(run)


def test_what_the_applications_own_spans_have_recorded_is_exported_redacted():
    provider, _ = build_provider(Settings(exporter="none"))
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(GuardedSpanExporter(exporter, "collector", 60)))
    with pytest.raises(Secret), provider.get_tracer("app").start_as_current_span("work"):
        raise Secret
    (span,) = exporter.get_finished_spans()
    assert span.events[0].attributes["exception.message"] == "amqp://REDACTED@rabbit/vhost is down"
    assert "s3cret" not in span.to_json()


@pytest.mark.parametrize("part", ["a://", "a://b:c", "x%3a%2f%2f", "a://b:cccccc", "a://b@", ":@", "a:b@c://d%40"])
def test_a_target_costs_no_more_than_a_few_times_a_plain_one_whatever_it_holds(part):
    for text in (part * 65_536)[:65_536], (part * 65_536)[:65_536] + "@", (part * 500)[:2_000] + "@":
        began = time.perf_counter()
        for _ in range(10):
            request_path(text)
        assert time.perf_counter() - began < 0.05, (part, len(text))


def test_a_traceback_in_our_log_is_redacted(caplog):
    formatter = logging.Formatter()
    try:
        raise Secret
    except Secret:
        LOGGER.warning("it raised", exc_info=True)
    (record,) = caplog.records
    assert "REDACTED@rabbit" in formatter.format(record)
    assert "s3cret" not in formatter.format(record)
    assert "Traceback" in formatter.format(record)
    assert "REDACTED@rabbit" in JsonFormatter().format(record)
    assert "s3cret" not in JsonFormatter().format(record)
    LOGGER.warning("nothing raised", exc_info=True)
    assert formatter.format(caplog.records[-1]).startswith("nothing raised")


def test_what_is_escaped_and_what_is_printed_of_a_url_show_no_password_either():
    assert escaped("amqp://user:s3/s3cret@rabbit Bearer s3cret", 200) == "amqp://***@rabbit Bearer REDACTED"
    assert without_secrets("amqp://user:s3/s3cret@rabbit/vhost?token=s3cret") == "amqp://rabbit/vhost?..."


TARGETS = [
    ("/items/7", "/items/7"),
    ("/items/7:cancel", "/items/7:cancel"),
    ("http://user:s3cret@shop/items/7", "/items/7"),
    ("HTTP://shop:80/items/7", "/items/7"),
    ("http://shop", "/"),
    ("http://user:s3/cret@shop/items/7", "/items/7"),
    ("//user:s3cret@shop/items/7", "//REDACTED@shop/items/7"),
    ("/proxy/http://user:s3cret@shop/items/7", "/proxy/http://REDACTED@shop/items/7"),
    ("user:s3cret@shop:443", "shop:443"),
    ("shop:443", "shop:443"),
    ("*", "*"),
]


@pytest.mark.parametrize(("target", "path"), TARGETS)
def test_the_path_of_a_span_is_a_path_whatever_the_form_of_the_target(target, path):
    assert (request_path(target) if ":" in target else target) == path
    found = {}
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    options = {"tracer_provider": provider, "propagator": MeshPropagator()}

    async def app(scope, receive, send):
        found["asgi"] = scope["path"]
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    async def sent(message):
        pass

    def wsgi_app(environ, start_response):
        found["wsgi"] = environ["PATH_INFO"]
        start_response("200 OK", [])
        return []

    scope = {"type": "http", "method": "GET", "path": target, "headers": []}
    asyncio.run(asgi.TraceContextMiddleware(app, **options)(scope, None, sent))
    list(wsgi.TraceContextMiddleware(wsgi_app, **options)({"REQUEST_METHOD": "GET", "PATH_INFO": target}, print))
    assert [span.attributes["url.path"] for span in exporter.get_finished_spans()] == [path, path]
    assert found == {"asgi": target, "wsgi": target}


def test_an_absolute_form_target_does_not_pass_by_exclude():
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    options = {"tracer_provider": provider, "propagator": MeshPropagator(), "exclude": ["/health"]}

    async def app(scope, receive, send):
        pass

    scope = {"type": "http", "method": "GET", "path": "http://user:pw@shop/health/live", "headers": []}
    asyncio.run(asgi.TraceContextMiddleware(app, **options)(scope, None, None))
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "http://user:pw@shop/health/live"}
    list(wsgi.TraceContextMiddleware(lambda environ, start_response: [], **options)(environ, print))
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize("url", ["http://user:s3cret@shop/", "http%3A%2F%2Fuser%3As3cret%40shop"])
def test_a_url_in_a_query_has_no_password(url):
    query = f"next={url}&kept=1"
    assert "s3cret" not in redact_query(query)
    assert "kept=1" in redact_query(query)


def test_what_the_page_says_leaves_the_query_out():
    page = (Path(__file__).parents[1] / "docs" / "pipeline.md").read_text()
    source = "class WithoutQuery" + page.partition("class WithoutQuery")[2].partition("\n\n\n")[0]
    found = {"SpanProcessor": SpanProcessor}
    exec(source, found)
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.add_span_processor(found["WithoutQuery"]())
    options = {"tracer_provider": provider, "propagator": MeshPropagator()}

    async def app(scope, receive, send):
        transport = TraceContextTransport(httpx.MockTransport(lambda request: httpx.Response(200)), **options)
        httpx.Client(transport=transport).get("http://shop.internal/a?name=alice")

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"name=alice", "headers": []}
    asyncio.run(asgi.TraceContextMiddleware(app, **options)(scope, None, None))
    client, server = exporter.get_finished_spans()
    assert client.attributes["url.full"] == "http://shop.internal/a"
    assert server.attributes["url.query"] == "REDACTED"
    assert "alice" not in client.to_json() + server.to_json()
