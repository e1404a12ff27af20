"""A program that uses process pools; prints one line of JSON. Arguments: scenario, start method, endpoint."""

import concurrent.futures
import json
import multiprocessing
import os
import sys

from opentelemetry import baggage, propagate, trace
from opentelemetry.context import get_current

import meshmw
from meshmw._context.current import Current
from meshmw.concurrency import ProcessPoolExecutor, ThreadPoolExecutor, run_in_executor

TRACER = trace.get_tracer("program")
ARRIVED = {
    "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01",
    "tracestate": "a=1",
    "baggage": "user=7;secret",
    "x-request-id": "id-7",
}
initialized = None


def work(number):
    with TRACER.start_as_current_span(f"work {number}"):
        return describe()


def describe():
    headers = {}
    meshmw.inject(headers)
    headers.pop("x-meshmw-sent", None)
    return {"pid": os.getpid(), "headers": headers, "user": baggage.get_baggage("user")}


def initialize(text):
    global initialized
    initialized = text
    with TRACER.start_as_current_span("initializer"):
        pass


def what_was_initialized():
    return initialized


def set_own_provider(endpoint):
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource({"service.name": "own"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    trace.set_tracer_provider(provider)


def settings(endpoint, exporter="otlp"):
    return meshmw.Settings(service_name="program", exporter=exporter, endpoint=endpoint, baggage_max_members=70)


def spans(context, endpoint, exporter):
    # Made before configure(), as an executor of a module is.
    executor = ProcessPoolExecutor(2, context, initialize, ("text",))
    telemetry = meshmw.configure(settings(endpoint, exporter))
    with TRACER.start_as_current_span("before"):
        pass
    # From here on the exporter has a connection, which a forked child must not use.
    telemetry.force_flush()
    with Current(propagate.extract(ARRIVED)), executor:
        with TRACER.start_as_current_span("request") as request:
            submitted = executor.submit(work, 1)
            mapped = executor.map(work, [2, 3, 4], chunksize=2)
        with TRACER.start_as_current_span("another"):
            results = [submitted.result(60), *mapped]
        outside = executor.submit(describe).result(60)
        text = executor.submit(what_was_initialized).result(60)
    span_id = f"{request.get_span_context().span_id:016x}"
    return {"own": os.getpid(), "request": span_id, "results": results, "outside": outside, "initialized": text}


def spans_over_grpc(context, endpoint):
    return spans(context, endpoint, "otlp")


def spans_over_http(context, endpoint):
    return spans(context, endpoint, "otlp-http")


def own_provider(context, endpoint):
    set_own_provider(endpoint)
    meshmw.configure(settings(endpoint))
    initializer = None if context.get_start_method() == "fork" else set_own_provider
    with (
        TRACER.start_as_current_span("request"),
        ProcessPoolExecutor(1, context, initializer, (endpoint,) if initializer else ()) as executor,
    ):
        return executor.submit(work, 1).result(60)


def not_configured(context, endpoint):
    with Current(propagate.get_global_textmap().extract(ARRIVED)), ProcessPoolExecutor(1, context) as executor:
        return executor.submit(describe).result(60)


def one_task_per_child(context, endpoint):
    meshmw.configure(settings(endpoint))
    executor = ProcessPoolExecutor(1, context, max_tasks_per_child=1)
    with TRACER.start_as_current_span("request"), executor:
        return [result["pid"] for result in executor.map(work, range(2))]


def dead_collector(context, endpoint):
    meshmw.configure(settings("127.0.0.1:9"))
    with TRACER.start_as_current_span("request"), ProcessPoolExecutor(1, context) as executor:
        return executor.submit(work, 1).result(60)["user"]


def loops(context, endpoint):
    """Return what tasks see that reach processes through loops and threads."""
    import asyncio

    meshmw.configure(settings(endpoint, "none"))

    async def main():
        with ProcessPoolExecutor(1, context) as ours, concurrent.futures.ProcessPoolExecutor(1, context) as standard:
            calls = [run_in_executor(executor, describe) for executor in (ours, standard)]
            calls.append(asyncio.get_running_loop().run_in_executor(ours, describe))
            return [(await call)["headers"] for call in calls]

    def from_a_thread():
        with ProcessPoolExecutor(1, context) as executor:
            return executor.submit(describe).result(60)["headers"]

    with Current(propagate.extract(ARRIVED)), ThreadPoolExecutor(1) as threads:
        return [*asyncio.run(main()), threads.submit(from_a_thread).result(60)]


if __name__ == "__main__":
    scenario, method, endpoint = sys.argv[1:]
    print(json.dumps(globals()[scenario](multiprocessing.get_context(method), endpoint)))
    assert get_current() == {}
