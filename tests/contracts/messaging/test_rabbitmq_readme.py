"""The README's RabbitMQ examples, run as they stand."""

import ast
import asyncio
import re
from pathlib import Path

import aio_pika
import pika
import pytest
from opentelemetry import trace

from tests.contracts.messaging.rabbitmq_clients import SECONDS

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


class Enough(Exception):
    pass


@pytest.fixture
def examples(destination):
    section = README.partition("\n## RabbitMQ\n")[2].partition("\n## ")[0]
    found = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(found) == 2
    return [text.replace("orders", destination) for text in found]


def test_aio_pikas_example_runs(rabbitmq_broker, examples):
    async def handle(body):
        assert body == b"teapot"
        raise Enough

    async def use():
        async with await aio_pika.connect(rabbitmq_broker) as connection:
            code = compile(examples[0], "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            with pytest.raises(Enough):
                await asyncio.wait_for(eval(code, {"connection": connection, "handle": handle}), SECONDS)

    asyncio.run(use())
    assert not trace.get_current_span().get_span_context().is_valid


def test_pikas_example_runs(rabbitmq_broker, examples, destination):
    seen = []

    def handle(body):
        seen.append(body)
        raise Enough

    with pika.BlockingConnection(pika.URLParameters(rabbitmq_broker)) as connection, connection.channel() as channel:
        channel.queue_declare(destination)
        with pytest.raises(Enough):
            exec(examples[1], {"channel": channel, "handle": handle})
    assert seen == [b"teapot"]
    assert not trace.get_current_span().get_span_context().is_valid
