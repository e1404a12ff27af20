// OpenTelemetry as a Node.js service sets it up: before the libraries that it instruments. What ends is kept in `spans`.
"use strict";

const { context, propagation, trace } = require("@opentelemetry/api");
const { AsyncLocalStorageContextManager } = require("@opentelemetry/context-async-hooks");
const { CompositePropagator, W3CBaggagePropagator, W3CTraceContextPropagator } = require("@opentelemetry/core");
const { registerInstrumentations } = require("@opentelemetry/instrumentation");
const { InMemorySpanExporter, SimpleSpanProcessor, TracerProvider } = require("@opentelemetry/sdk-trace");

const exporter = new InMemorySpanExporter();

function start(...instrumentations) {
  const provider = new TracerProvider({ spanProcessors: [new SimpleSpanProcessor({ exporter })] });
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
  propagation.setGlobalPropagator(
    new CompositePropagator({ propagators: [new W3CTraceContextPropagator(), new W3CBaggagePropagator()] }),
  );
  trace.setGlobalTracerProvider(provider);
  registerInstrumentations({ instrumentations, tracerProvider: provider });
}

// What is current: ids in hex, and baggage as an object.
function current() {
  const span = trace.getActiveSpan()?.spanContext();
  const members = propagation.getActiveBaggage()?.getAllEntries() ?? [];
  return {
    trace_id: span?.traceId ?? "",
    span_id: span?.spanId ?? "",
    baggage: Object.fromEntries(members.map(([key, entry]) => [key, entry.value])),
  };
}

// Runs `send` in a span of its own with baggage current, and returns that span's ids.
async function inSpan(name, baggage, send) {
  const members = Object.fromEntries(Object.entries(baggage ?? {}).map(([key, value]) => [key, { value }]));
  const carrying = propagation.setBaggage(context.active(), propagation.createBaggage(members));
  return context.with(carrying, () =>
    trace.getTracer("interop").startActiveSpan(name, async (span) => {
      try {
        await send();
        return current();
      } finally {
        span.end();
      }
    }),
  );
}

function spans() {
  return exporter.getFinishedSpans().map((span) => ({
    name: span.name,
    kind: span.kind,
    trace_id: span.spanContext().traceId,
    span_id: span.spanContext().spanId,
    parent_id: span.parentSpanContext?.spanId ?? "",
    links: span.links.map((link) => ({ trace_id: link.context.traceId, span_id: link.context.spanId })),
  }));
}

// Answers one JSON object per line of standard input with what `handle` resolves to; ends with the input.
function serve(handle) {
  const lines = require("node:readline").createInterface({ input: process.stdin });
  let last = Promise.resolve();
  lines.on("line", (line) => {
    last = last
      .then(() => handle(JSON.parse(line)))
      .catch((fault) => ({ error: fault.stack }))
      .then((answer) => process.stdout.write(JSON.stringify(answer ?? {}) + "\n"));
  });
  lines.on("close", () => process.exit(0));
}

module.exports = { current, inSpan, serve, spans, start };
