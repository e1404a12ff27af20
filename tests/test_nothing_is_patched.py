"""Nothing is monkeypatched: what meshmw imports and configures leaves every other module's functions as they were."""

from __future__ import annotations

from tests.programs import run_parts

PROGRAM = """
import sys, types
import aiohttp, aiokafka, aio_pika, celery.app.amqp, celery.app.trace, celery.signals, concurrent.futures
import confluent_kafka, fastapi, flask, grpc, grpc.aio, httpx, httpx2
import kafka, multiprocessing, pika, requests, starlette.applications, threading, urllib.request
import asyncio.events, asyncio.tasks, logging
import opentelemetry.context, opentelemetry.propagate, opentelemetry.trace
import opentelemetry.sdk.trace, opentelemetry.sdk.trace.export, opentelemetry.sdk.metrics
import opentelemetry.exporter.otlp.proto.grpc.trace_exporter, opentelemetry.exporter.otlp.proto.http.trace_exporter

CODE = (types.FunctionType, types.BuiltinFunctionType, staticmethod, classmethod, property, type)

def code_of(places):
    "Every function, class and method by its place; what is no code may change, as a global provider does."
    found = {}
    for place in places:
        for name, value in list(vars(sys.modules[place]).items()):
            if isinstance(value, CODE):
                found[place, name] = id(value)
            if isinstance(value, type) and value.__module__ == place:
                found |= {(place, name, each): id(it) for each, it in list(vars(value).items()) if isinstance(it, CODE)}
    return found

places = [name for name in list(sys.modules) if name.partition(".")[0] != "meshmw" and name != "__main__"]
before = code_of(places)
kept = [value for place in places for value in vars(sys.modules[place]).values()]  # so that no id is given twice
"""

USE = """
import meshmw, meshmw.asgi, meshmw.celery, meshmw.concurrency, meshmw.flask, meshmw.grpc, meshmw.httpx, meshmw.httpx2
import meshmw.aiohttp, meshmw.kafka, meshmw.logs, meshmw.rabbitmq, meshmw.requests, meshmw.wsgi
"""

COMPARE = """
meshmw.configure(meshmw.Settings(exporter="otlp", endpoint="127.0.0.1:9", metrics="otlp", service_name="shop"))
app = fastapi.FastAPI()
app.add_middleware(meshmw.asgi.TraceContextMiddleware)
meshmw.flask.init_app(flask.Flask("shop"))
meshmw.celery.instrument(celery.Celery("shop"))
meshmw.httpx.Client().close()
meshmw.requests.Session().close()
after = code_of(places)
changed = sorted(place for place in before if after.get(place) != before[place])
print(len(before), changed)
"""


def test_no_other_modules_code_is_replaced():
    done = run_parts(PROGRAM, USE, COMPARE)
    number, _, changed = done.stdout.partition(" ")
    assert changed == "[]\n"
    assert int(number) > 10_000
