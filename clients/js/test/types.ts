/** The declarations, used as an application would; and what they must refuse. Only compiled. */
import * as msgpack from "@msgpack/msgpack";
import {
  Client,
  CloseCode,
  connect,
  ErrorCode,
  ImError,
  wire,
  type Message,
  type Receipt,
} from "../imserver.js";

const client: Client = await connect("ws://127.0.0.1:7400/ws", {
  token: async () => "t",
  device: "tab",
  msgpack,
});
const receipt: Receipt = await client.publish("room:1", { text: "hi" }, { durable: true, retryMs: 1000 });
const none: null = await client.publish("room:1", new Uint8Array(), { tag: "a", echo: false });
const durable: boolean = Math.random() > 0.5;
const either: Receipt | null = await client.publish("room:1", "x", { durable });
const seq: number = receipt.seq + (either?.time ?? 0);

const subscription = await client.subscribe<{ text: string }>("room:1", {
  durable: true,
  after: seq,
  tags: "a||b",
});
for await (const message of subscription) {
  const text: string = message.body.text;
  const typed: Message<{ text: string }> = message;
  if (message.redelivered && text) subscription.nack(typed);
  else subscription.ack(message.seq);
}
for await (const joined of client.joined()) joined.ack((await joined.next()).value!);

client.addEventListener(
  "state",
  ({ detail }) => detail.state === "open" && detail.reason?.retryAfterMs.toFixed(),
);
client.addEventListener(
  "error",
  ({ detail }) => detail.code === ErrorCode.LOST || detail.code === CloseCode.KICKED,
);
client.addEventListener(
  "unsubscribed",
  ({ detail }) => detail.error instanceof ImError && detail.topic.length,
);
const page = await client.call<{ head: number }>("history", { topic: "room:1" }, { timeoutMs: 1 });
const frame: Uint8Array = wire.encodeFrame(wire.FrameType.PING!);

// @ts-expect-error: there is no such event
client.addEventListener("opened", () => {});
// @ts-expect-error: the user is the server's to say
client.user = "eve";
// @ts-expect-error: only a durable publish has a receipt
const wrong: Receipt = await client.publish("room:1", "x");
// @ts-expect-error: a topic is text
await client.subscribe(7);

export { none, page, frame, wrong };
