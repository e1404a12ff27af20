"""What became of a record that was handed to a client, and the end of its span.

Knows how each of three clients tells it. Must not import one before it has come along.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from meshmw.boundary.operation import Operation
from meshmw.kafka.records import field


class HandOver:
    """Is a block in which a record is handed to its client: the send is current, and over only where that raises.

    Args:
        operation: The send.
    """

    __slots__ = ("_current", "_operation")

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self._current = operation.current()

    def __enter__(self) -> None:
        self._current.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._current.__exit__(kind, error, at)
        if error is not None:
            failed(self._operation, error)


def failed(operation: Operation, error: BaseException) -> None:
    """End a send that failed."""
    operation.fail(error)
    operation.end()


def confirmed(operation: Operation, metadata: Any) -> None:
    """End a send that the broker has confirmed, with the place that it gave the record."""
    if operation.is_open:
        offset, partition = field(metadata, "offset"), field(metadata, "partition")
        if isinstance(partition, int):
            operation.span.set_attribute("messaging.destination.partition.id", str(partition))
        if isinstance(offset, int) and offset >= 0:
            operation.span.set_attribute("messaging.kafka.offset", offset)
    operation.end()


def settled(operation: Operation, future: Any) -> None:
    """End a send as its future ended."""
    if future.cancelled():
        operation.end()
    elif (error := future.exception()) is not None:
        failed(operation, error)
    else:
        confirmed(operation, future.result())


class DeliveryReport:
    """Takes the report of a delivery, hands it on, and ends the send.

    It ends at the latest when librdkafka lets go of it, which may be told to report nothing that went well.
    """

    __slots__ = ("_given", "_operation")

    def __init__(self, operation: Operation, given: Callable[[Any, Any], object] | None) -> None:
        self._operation = operation
        self._given = given

    def __call__(self, error: Any, message: Any) -> object:
        """Take what librdkafka reports: an error, or the message as the broker has it."""
        if error is None:
            confirmed(self._operation, message)
        else:
            from confluent_kafka import KafkaException

            failed(self._operation, KafkaException(error))
        return None if self._given is None else self._given(error, message)

    def __del__(self) -> None:
        self._operation.end()
