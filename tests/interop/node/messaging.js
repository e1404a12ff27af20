// A service that sends to and consumes from RabbitMQ or Kafka: node messaging.js rabbitmq|kafka ADDRESS
"use strict";

const { AmqplibInstrumentation } = require("@opentelemetry/instrumentation-amqplib");
const { KafkaJsInstrumentation } = require("@opentelemetry/instrumentation-kafkajs");
const tracing = require("./tracing");

tracing.start(new AmqplibInstrumentation(), new KafkaJsInstrumentation());

const [system, address] = process.argv.slice(2);

// Resolves to what the consumer of one message sees: what is current, and the headers as text.
function seen(headers, body) {
  const texts = Object.entries(headers ?? {}).map(([key, value]) => [key, [value].flat().map(String)]);
  return { ...tracing.current(), headers: Object.fromEntries(texts), body: String(body) };
}

async function rabbitmq() {
  const connection = await require("amqplib").connect(address);
  const channel = await connection.createConfirmChannel();
  return {
    async send(queue, body) {
      channel.sendToQueue(queue, Buffer.from(body));
      await channel.waitForConfirms();
    },
    async receive(queue) {
      const { promise, resolve, reject } = Promise.withResolvers();
      const consumer = await channel.consume(queue, (message) => {
        if (!message) return reject(new Error("the queue is gone"));
        resolve(seen(message.properties.headers, message.content));
        channel.ack(message);
      });
      const found = await promise;
      await channel.cancel(consumer.consumerTag);
      return found;
    },
  };
}

async function kafka() {
  const { Kafka, logLevel } = require("kafkajs");
  const client = new Kafka({ brokers: [address], logLevel: logLevel.ERROR });
  const producer = client.producer();
  await producer.connect();
  return {
    async send(topic, body) {
      await producer.send({ topic, messages: [{ value: body, partition: 0 }] });
    },
    async receive(topic) {
      const groupId = `node-${process.pid}-${topic}`;
      const consumer = client.consumer({ groupId, sessionTimeout: 1000, heartbeatInterval: 200 });
      await consumer.connect();
      await consumer.subscribe({ topic, fromBeginning: true });
      const { promise, resolve } = Promise.withResolvers();
      await consumer.run({ eachMessage: async ({ message }) => resolve(seen(message.headers, message.value)) });
      const found = await promise;
      await consumer.disconnect();
      return found;
    },
  };
}

const client = { rabbitmq, kafka }[system]();

tracing.serve(async ({ command, destination, body, baggage }) => {
  const { send, receive } = await client;
  if (command === "send") return tracing.inSpan("order", baggage, () => send(destination, body));
  if (command === "receive") return receive(destination);
  return { spans: tracing.spans() };
});
