"use strict";

const { seen } = require("./tracing");

// What the consumer of one message sees: what is current, and the body.
const processed = (body) => ({ found: seen(), body: body === null ? null : String(body) });

// Runs `use` with a channel of its own.
async function withChannel(address, use) {
  const connection = await require("amqplib").connect(address);
  try {
    return await use(await connection.createConfirmChannel());
  } finally {
    await connection.close();
  }
}

const rabbitmq = {
  call: ({ address, destination, body }) =>
    withChannel(address, async (channel) => {
      channel.sendToQueue(destination, Buffer.from(body));
      await channel.waitForConfirms();
    }),
  receive: ({ address, destination }) =>
    withChannel(address, async (channel) => {
      const { promise, resolve, reject } = Promise.withResolvers();
      const consumer = await channel.consume(destination, (message) => {
        if (!message) return reject(new Error("the queue is gone"));
        resolve(processed(message.content));
        channel.ack(message);
      });
      const found = await promise;
      await channel.cancel(consumer.consumerTag);
      return found;
    }),
};

function client(address) {
  const { Kafka, logLevel } = require("kafkajs");
  return new Kafka({ brokers: [address], logLevel: logLevel.ERROR });
}

const kafka = {
  // Sends a message, or a tombstone where there is no body.
  async call({ address, destination, body }) {
    const producer = client(address).producer();
    await producer.connect();
    await producer.send({ topic: destination, messages: [{ key: "key", value: body ?? null, partition: 0 }] });
    await producer.disconnect();
  },
  async receive({ address, destination }) {
    const groupId = `node-${process.pid}-${destination}`;
    const consumer = client(address).consumer({ groupId, sessionTimeout: 1000, heartbeatInterval: 200 });
    await consumer.connect();
    await consumer.subscribe({ topic: destination, fromBeginning: true });
    const { promise, resolve } = Promise.withResolvers();
    await consumer.run({ eachMessage: async ({ message }) => resolve(processed(message.value)) });
    const found = await promise;
    await consumer.disconnect();
    return found;
  },
};

module.exports = { kafka, rabbitmq };
