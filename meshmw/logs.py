"""Put trace and span ids on log records: a filter, a format, JSON, and a processor for structlog.

They put the ids on the access logs of uvicorn, hypercorn and gunicorn too. Servers write these outside the request's
context, so the server's adapter notes which request a task serves. Without a span there are no ids, and never ids of
zeros.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Mapping, MutableMapping
from typing import Any, Final
from urllib.parse import unquote

from opentelemetry import trace
from opentelemetry.trace import SpanContext

from meshmw._lifecycle import serving
from meshmw._notices import redacted

__all__ = ("FORMAT", "JsonFormatter", "TraceContextFilter", "add_trace_context", "ids_of")

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s%(trace)s: %(message)s"
"""A format that shows ` trace_id=... span_id=...` where there is a span; it needs `TraceContextFilter`."""

# gunicorn hands the whole environ to its formatter, each key in lower case.
_GUNICORN_OPERATION: Final = "{meshmw.operation}e"
_ACCESS: Final = frozenset({"uvicorn.access", "hypercorn.access", "gunicorn.access"})
_SERVER_ERRORS: Final = frozenset({"uvicorn.error", "hypercorn.error", "gunicorn.error"})
_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_IDS: Final = ("trace_id", "span_id", "trace_flags")


class TraceContextFilter(logging.Filter):
    """Puts `trace_id`, `span_id`, `trace_flags` and `trace` on every record; empty texts where there is no span.

    `trace` is ` trace_id=... span_id=...`, with a space before it. Put the filter on handlers: on a logger it sees
    nothing of the loggers below. What a record brings along under these names stays.
    """

    def __init__(self) -> None:
        super().__init__()
        serving.want()

    def filter(self, record: logging.LogRecord) -> bool:
        """Add to the record, and let it pass."""
        ids = ids_of(record)
        for name in _IDS:
            if not hasattr(record, name):
                setattr(record, name, ids.get(name, ""))
        if not hasattr(record, "trace"):
            # A record may have an attribute of one of these names for another purpose.
            record.trace = "".join(f" {name}={ids[name]}" for name in _IDS[:2] if name in ids)
        return True


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON, with the ids where there is a span, and with what `extra` brought.

    Needs no filter where records are formatted in the thread that logs. Behind a `QueueHandler`, put
    `TraceContextFilter` on that.
    """

    def __init__(self) -> None:
        super().__init__()
        serving.want()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        extra = {key: value for key, value in vars(record).items() if key not in _PLAIN and key not in (*_IDS, "trace")}
        line = extra | {
            "timestamp": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **ids_of(record),
        }
        if record.exc_info:
            line["exception"] = redacted(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = record.stack_info
        return _as_json(line)


def _as_json(line: dict[str, Any]) -> str:
    try:
        text = json.dumps(line, default=repr, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        # A key that is no text, a number that is none in JSON, or something that holds itself.
        text = json.dumps({key: each if isinstance(each, str) else repr(each) for key, each in line.items()})
    # Undecodable bytes become lone surrogates, which UTF-8 cannot hold; it can hold their escapes.
    return text.encode("utf-8", "backslashreplace").decode()


def add_trace_context(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the ids to an event of structlog; a processor, also for records of the standard library's loggers."""
    record = event.get("_record")
    ids = ids_of(record) if isinstance(record, logging.LogRecord) else _ids(trace.get_current_span().get_span_context())
    for name, value in ids.items():
        event.setdefault(name, value)
    return event


def ids_of(record: logging.LogRecord) -> dict[str, str]:
    """Return `trace_id`, `span_id` and `trace_flags` of a record, in hexadecimal; nothing without a span."""
    own = {name: value for name in _IDS if (value := getattr(record, name, ""))}
    if own:
        return own
    served = _served_context(record) if record.name in _ACCESS or record.name in _SERVER_ERRORS else None
    return _ids(served or trace.get_current_span().get_span_context())


def _ids(context: SpanContext) -> dict[str, str]:
    if not context.is_valid:
        return {}
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
        "trace_flags": f"{context.trace_flags:02x}",
    }


def _served_context(record: logging.LogRecord) -> SpanContext | None:
    """Return the span context of the request that a server logs, or None where the record is about another one."""
    arguments: Any = record.args
    if isinstance(arguments, Mapping):
        span = getattr(arguments.get(_GUNICORN_OPERATION), "span", None)
        if isinstance(span, trace.Span):
            return span.get_span_context()
    served = serving.noted()
    return served.span_context if served is not None and _is_about(served, record, arguments) else None


def _is_about(served: serving.Served, record: logging.LogRecord, arguments: Any) -> bool:
    if record.name in _SERVER_ERRORS:
        # On these loggers, only the record of an application's exception comes from the task that served.
        return record.exc_info is not None
    if isinstance(arguments, Mapping):
        method, path = arguments.get("m"), arguments.get("U")
    else:
        # uvicorn: client address, method, path with query, HTTP version, status
        _, method, path = [*(arguments or ()), None, None, None][:3]
    return method == served.method and unquote(str(path).partition("?")[0]) == served.path


def __dir__() -> list[str]:
    return sorted(__all__)
