// A service with OpenTelemetry JS, which takes a JSON object per line, and answers each with one. What it is told to
// start with, and what it sees, are headers: the propagator reads and writes them.
"use strict";

const { AmqplibInstrumentation } = require("@opentelemetry/instrumentation-amqplib");
const { GrpcInstrumentation } = require("@opentelemetry/instrumentation-grpc");
const { HttpInstrumentation } = require("@opentelemetry/instrumentation-http");
const { KafkaJsInstrumentation } = require("@opentelemetry/instrumentation-kafkajs");
const tracing = require("./tracing");

tracing.start(
  new AmqplibInstrumentation(),
  new GrpcInstrumentation(),
  new HttpInstrumentation(),
  new KafkaJsInstrumentation(),
);

const protocols = {
  grpc: require("./grpc"),
  http: require("./http"),
  kafka: require("./messaging").kafka,
  rabbitmq: require("./messaging").rabbitmq,
};

tracing.serve(({ command, protocol, headers, ...asked }) => {
  if (command === "listen") return protocols[protocol].listen();
  if (command === "receive") return protocols[protocol].receive(asked);
  if (command === "spans") return { spans: tracing.spans() };
  return tracing.inSpan("order", headers, () => protocols[protocol].call(asked));
});
