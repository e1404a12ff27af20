"""The README's Kafka examples, run as they stand."""

import re
from pathlib import Path

import kafka
import pytest
from opentelemetry import trace

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


class Enough(Exception):
    pass


def test_the_readmes_examples_run(kafka_broker, destination, monkeypatch):
    section = README.partition("\n## Kafka\n")[2].partition("\n## ")[0]
    examples = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    send, process = [
        text.replace("kafka:9092", kafka_broker).replace("orders", destination).replace("workers", destination)
        for text in examples
    ]
    names = {}
    exec(send, names)
    names["producer"].close()
    # As an application would say it: a group is quicker with these than with the client's defaults.
    for name, milliseconds in (("session_timeout_ms", 1000), ("heartbeat_interval_ms", 200)):
        monkeypatch.setitem(kafka.KafkaConsumer.DEFAULT_CONFIG, name, milliseconds)
    seen = []

    def handle(value):
        seen.append((value, trace.get_current_span().get_span_context().is_valid))
        if len(seen) == 2:
            raise Enough

    names = {"handle": handle}
    with pytest.raises(Enough):
        exec(process, names)
    names["consumer"].close()
    assert [value for value, _ in seen] == [b"teapot", b"teapot"]
    assert not trace.get_current_span().get_span_context().is_valid
