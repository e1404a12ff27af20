"""What a type checker says of a program that uses meshmw."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
ROOT = Path(__file__).parents[1]


def checked(tmp_path, program):
    """Return what mypy says of a program: what it reveals, in order, and the code of each error with its line."""
    file = tmp_path / "program.py"
    file.write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(file)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not said.stderr
    lines = program.splitlines()
    revealed = re.findall(r'note: Revealed type is "(.*)"', said.stdout)
    errors = [(code, lines[int(at) - 1].strip()) for at, code in re.findall(r":(\d+): error: .*\[(.*)\]", said.stdout)]
    return revealed, errors


MESSAGING = """
import aio_pika.abc
import confluent_kafka

from meshmw import kafka, rabbitmq


def send(producer: confluent_kafka.Producer, channel: aio_pika.abc.AbstractChannel) -> None:
    reveal_type(kafka.instrument(producer, keep_existing=True))
    reveal_type(rabbitmq.instrument(channel, parent="link"))
    kafka.instrument(producer).sent("orders")


def process(consumer: object, queue: aio_pika.abc.AbstractQueue) -> bytes:
    reveal_type(kafka.consume(consumer))
    reveal_type(rabbitmq.consume([b"body"]))
    reveal_type(rabbitmq.aconsume(queue.iterator()))
    kafka.consume(consumer, parent="chidl")
    kafka.batch_span([], parent="link")
    kafka.consumer_span(consumer, propagater=None)
    with rabbitmq.consumer_span(consumer) as span:
        reveal_type(span)
        return b"in a block that swallows nothing"
"""


def test_messaging_keeps_the_clients_types_and_knows_its_options(tmp_path):
    revealed, errors = checked(tmp_path, MESSAGING)
    assert revealed == [
        "confluent_kafka.cimpl.Producer",
        "aio_pika.abc.AbstractChannel",
        "typing.Iterator[meshmw._lifecycle.clients.Delivery[Any]]",
        "typing.Iterator[meshmw._lifecycle.clients.Delivery[bytes]]",
        "typing.AsyncIterator[meshmw._lifecycle.clients.Delivery[aio_pika.abc.AbstractIncomingMessage]]",
        "opentelemetry.trace.span.Span",
    ]
    assert errors == [
        ("attr-defined", 'kafka.instrument(producer).sent("orders")'),
        ("arg-type", 'kafka.consume(consumer, parent="chidl")'),
        ("call-arg", 'kafka.batch_span([], parent="link")'),
        ("call-arg", "kafka.consumer_span(consumer, propagater=None)"),
    ]


PLAIN = """
import httpx

import meshmw

reveal_type(meshmw.configure(meshmw.Settings(service_name="shop")))
meshmw.configur()
meshmw.Settings(service_nam="shop")
meshmw.asgi.TraceContextMiddlewear


async def app(scope: meshmw.asgi.Scope, receive: meshmw.asgi.Receive, send: meshmw.asgi.Send) -> None: ...


reveal_type(meshmw.asgi.TraceContextMiddleware(app, trust="restart"))
meshmw.asgi.TraceContextMiddleware(app, server_spans="Auto")
meshmw.wsgi.TraceContextMiddleware(print, exclud=["/healthz"])
reveal_type(meshmw.httpx.Client(base_url="http://shop"))
with meshmw.httpx.Client() as client:
    reveal_type(client.get("http://shop"))
"""


def test_a_name_that_does_not_exist_is_refused(tmp_path):
    revealed, errors = checked(tmp_path, PLAIN)
    assert revealed == [
        "meshmw._telemetry.handle.Telemetry",
        "meshmw.asgi.TraceContextMiddleware",
        "meshmw.httpx.Client",
        "httpx._models.Response",
    ]
    refused = ("configur(", "service_nam=", "Middlewear", '"Auto"', "exclud=")
    lines = [line for line in PLAIN.splitlines() if any(each in line for each in refused)]
    assert [line for line in PLAIN.splitlines() if line in {line for _, line in errors}] == lines
