"use strict";

const grpc = require("@grpc/grpc-js");
const { seen } = require("./tracing");

const bytes = { requestSerialize: Buffer.from, requestDeserialize: Buffer.from };
const answers = { responseSerialize: Buffer.from, responseDeserialize: Buffer.from };
const service = {
  unary_unary: { path: "/lab.S/unary_unary", requestStream: false, responseStream: false, ...bytes, ...answers },
  stream_stream: { path: "/lab.S/stream_stream", requestStream: true, responseStream: true, ...bytes, ...answers },
};

const reply = () => JSON.stringify(seen());

const methods = {
  unary_unary: (call, done) => done(null, reply()),
  stream_stream(call) {
    call.on("data", () => call.write(reply()));
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
async function call({ address, method }) {
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

module.exports = { call, listen };
