// OpenTelemetry as a Node.js service sets it up: before the libraries that it instruments. What ends is kept in `spans`.
"use strict";

const { context, propagation, ROOT_CONTEXT, trace } = require("@opentelemetry/api");
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

// What is current, as headers.
function seen() {
  const headers = {};
  propagation.inject(context.active(), headers);
  return headers;
}

// Runs `act` in a span of its own below what the headers say, and tells what that span sees and `act` finds.
async function inSpan(name, headers, act) {
  return context.with(propagation.extract(ROOT_CONTEXT, headers ?? {}), () =>
    trace.getTracer("peer").startActiveSpan(name, async (span) => {
      try {
        return { sent: seen(), found: await act() };
      } finally {
        span.end();
      }
    }),
  );
}

function spans() {
  return exporter.getFinishedSpans().map((span) => ({
    trace_id: span.spanContext().traceId,
    span_id: span.spanContext().spanId,
    parent_id: span.parentSpanContext?.spanId ?? "0".repeat(16),
    kind: span.kind,
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

module.exports = { inSpan, seen, serve, spans, start };
