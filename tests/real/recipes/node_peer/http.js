"use strict";

const http = require("node:http");
const { seen } = require("./tracing");

function listen() {
  const server = http.createServer((request, response) => response.end(JSON.stringify(seen())));
  const { promise, resolve } = Promise.withResolvers();
  server.listen(0, "127.0.0.1", () => resolve({ port: server.address().port }));
  return promise;
}

async function call({ address }) {
  const { promise, resolve, reject } = Promise.withResolvers();
  http.get(`http://${address}/`, { agent: false }, resolve).on("error", reject);
  const chunks = await (await promise).toArray();
  return [JSON.parse(chunks.join(""))];
}

module.exports = { call, listen };
