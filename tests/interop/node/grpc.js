// A gRPC server and client with OpenTelemetry JS: node grpc.js
"use strict";

const { GrpcInstrumentation } = require("@opentelemetry/instrumentation-grpc");
const tracing = require("./tracing");

tracing.start(new GrpcInstrumentation());

const grpc = require("@grpc/grpc-js");

const bytes = { requestSerialize: Buffer.from, requestDeserialize: Buffer.from };
const answers = { responseSerialize: Buffer.from, responseDeserialize: Buffer.from };
const service = {
  unary_unary: { path: "/lab.S/unary_unary", requestStream: false, responseStream: false, ...bytes, ...answers },
  stream_stream: { path: "/lab.S/stream_stream", requestStream: true, responseStream: true, ...bytes, ...answers },
};

// What a handler of one call sees: what is current, and the metadata as text.
const seen = (call) => JSON.stringify({ ...tracing.current(), metadata: call.metadata.getMap() });

const methods = {
  unary_unary: (call, reply) => reply(null, seen(call)),
  stream_stream(call) {
    call.on("data", () => call.write(seen(call)));
    call.on("end", () => call.end());
  },
};

function listen() {
  const server = new grpc.Server();
  server.addService(service, methods);
  const { promise, resolve, reject } = Promise.withResolvers();
  const listening = (fault, port) => (fault ? reject(fault) : resolve({ port }));
  server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), listening);
  return promise;
}

// Calls a method once, or talks twice over one stream; resolves to what came back.
async function call(address, method) {
  const Client = grpc.makeGenericClientConstructor(service, "lab.S");
  const client = new Client(address, grpc.credentials.createInsecure());
  const { promise, resolve, reject } = Promise.withResolvers();
  if (method === "unary_unary") {
    client.unary_unary("{}", (fault, answer) => (fault ? reject(fault) : resolve([JSON.parse(answer)])));
  } else {
    const stream = client.stream_stream();
    const found = [];
    stream.on("data", (answer) => found.push(JSON.parse(answer)));
    stream.on("end", () => resolve(found));
    stream.on("error", reject);
    for (let number = 0; number < 2; number += 1) stream.write("{}");
    stream.end();
  }
  const found = await promise;
  client.close();
  return found;
}

tracing.serve(async ({ command, address, method, baggage }) => {
  if (command === "listen") return listen();
  if (command === "spans") return { spans: tracing.spans() };
  let found = null;
  const sent = await tracing.inSpan("order", baggage, async () => {
    found = await call(address, method);
  });
  return { sent, found };
});
