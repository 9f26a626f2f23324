/**
 * A fake server for the client's tests: it says exactly what a test wants said.
 *
 * It speaks the real protocol over real WebSockets, but every frame of its side is written by the
 * test. All times are set to milliseconds; no test asserts how long anything took.
 */
import assert from "node:assert/strict";
import { WebSocket, WebSocketServer } from "ws";
import { Client, wire } from "../imserver.js";

export const { FrameType, Flag } = wire;

export const WELCOME = Object.freeze({
  user: "ann",
  session: "s1",
  node: "fake",
  time: 0,
  heartbeat: { interval_ms: 60_000, timeout_ms: 1000, max_missed: 2 },
  limits: { max_frame: 65_536, window: 64, subscriptions: 100 },
  reconnect: { base_ms: 1, factor: 2, max_ms: 5 },
});
export const HASTY = { interval_ms: 20, timeout_ms: 10, max_missed: 2 };

/** Values that a test waits for, in their order. */
export class Mailbox {
  #values = [];
  #wanted = [];

  put(value) {
    if (this.#wanted.length) this.#wanted.shift()(value);
    else this.#values.push(value);
  }

  take() {
    if (this.#values.length) return Promise.resolve(this.#values.shift());
    return new Promise((resolve) => this.#wanted.push(resolve));
  }
}

/** The fake's side of one connection. */
export class Conversation {
  #frames = new Mailbox();

  constructor(socket) {
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.on("message", (data) => {
      for (const frame of wire.decodeFrames(new Uint8Array(data))) this.#frames.put(frame);
    });
    socket.on("close", (code) => {
      this.closeCode = code;
      this.#frames.put(null);
    });
  }

  /** The next frame, null at the end of the connection. */
  read() {
    return this.#frames.take();
  }

  /** The next frame that is no PING, decoded. */
  async expect(type) {
    for (;;) {
      const frame = await this.read();
      assert.ok(frame, `the client left, type ${type} was expected`);
      if (frame.type === FrameType.PING && type !== FrameType.PING) continue;
      assert.equal(frame.type, type);
      if (type === FrameType.MESSAGE) return wire.decodeMessage(frame);
      if (type === FrameType.ACK || type === FrameType.NACK) return wire.decodePosition(frame).seq;
      if (type === FrameType.PING || type === FrameType.PONG) return frame.request;
      return { ...wire.decodeBody(frame), request: frame.request };
    }
  }

  async expectEnd() {
    for (let frame; (frame = await this.read());) assert.equal(frame.type, FrameType.PING);
  }

  write(...frames) {
    this.socket.send(Buffer.concat(frames));
  }

  say(type, body, request = 0) {
    this.write(wire.encodeFrame(type, body, request));
  }

  deliver(topic, ...bodies) {
    this.write(...bodies.map((body) => message({ topic, body })));
  }

  /** Messages with a place in the topic; each body is its seq. */
  deliverKept(topic, ...seqs) {
    this.write(...seqs.map((seq) => message({ topic, body: seq, seq, flags: Flag.DURABLE })));
  }

  redeliver(topic, ...seqs) {
    const flags = Flag.DURABLE | Flag.REDELIVERED;
    this.write(...seqs.map((seq) => message({ topic, body: seq, seq, flags, attempt: 1 })));
  }

  /** Once more what the cursor is past. */
  setAside(topic, ...seqs) {
    const flags = Flag.DURABLE | Flag.REDELIVERED | Flag.HISTORY;
    this.write(...seqs.map((seq) => message({ topic, body: seq, seq, flags })));
  }

  /** The next MESSAGEs. */
  async published(count = 1) {
    const messages = [];
    while (messages.length < count) messages.push(await this.expect(FrameType.MESSAGE));
    return messages;
  }

  receipt(id, seq = 1, time = 5) {
    const frame = new Uint8Array(32);
    const view = new DataView(frame.buffer);
    view.setUint32(0, 28);
    view.setUint8(4, FrameType.RECEIPT);
    [id, seq, time].forEach((number, n) => view.setBigUint64(8 + 8 * n, BigInt(number)));
    this.write(frame);
  }

  /** Returns when the client has read everything so far. Nothing but PONG may come. */
  async pong() {
    this.write(wire.encodeFrame(FrameType.PING, undefined, 99));
    assert.equal(await this.expect(FrameType.PONG), 99);
  }

  async welcome(fields = {}) {
    const hello = await this.expect(FrameType.HELLO);
    this.say(FrameType.WELCOME, { ...WELCOME, ...fields }, hello.request);
    return hello;
  }

  /** Read a SUBSCRIBE and agree. */
  async grant(fields = {}) {
    const { request, ...asked } = await this.expect(FrameType.SUBSCRIBE);
    this.say(FrameType.SUBSCRIBED, { topic: asked.topic, ...fields }, request);
    return asked;
  }

  /** GOAWAY with a code, or just gone. */
  leave(code = 0, fields = {}) {
    if (!code) {
      this.socket.terminate();
      return;
    }
    this.say(FrameType.GOAWAY, { code, ...fields });
    this.socket.close(code >= 1000 && code < 5000 && code !== 1001 ? code : 1000);
  }
}

function message({ topic, body, ...fields }) {
  const bytes = new TextEncoder().encode(JSON.stringify(body));
  return wire.encodeMessage({ topic, sender: "bob", body: bytes, codec: 1, ...fields });
}

export class FakeServer {
  #waiting = new Mailbox();

  async start(options = {}) {
    const handleProtocols = () => "im.v1";
    this.server = new WebSocketServer({ host: "127.0.0.1", port: 0, handleProtocols, ...options });
    this.server.on("connection", (socket) => this.#waiting.put(new Conversation(socket)));
    await new Promise((resolve) => this.server.once("listening", resolve));
    this.address = `127.0.0.1:${this.server.address().port}`;
    this.url = `ws://${this.address}/ws`;
    return this;
  }

  next() {
    return this.#waiting.take();
  }

  async nextWelcomed(fields) {
    const conversation = await this.next();
    await conversation.welcome(fields);
    return conversation;
  }

  stop() {
    for (const socket of this.server.clients) socket.terminate();
    this.server.close();
  }
}

/** A fake server for one test. */
export async function fakeFor(t) {
  const fake = await new FakeServer().start();
  t.after(() => fake.stop());
  return fake;
}

/** A client that has not started, and what it tells. */
export function newClient(t, fake, options = {}) {
  const client = new Client(fake.url, { user: "ann", WebSocket, ...options });
  client.heard = {
    state: new Mailbox(),
    error: new Mailbox(),
    unsubscribed: new Mailbox(),
    message: new Mailbox(),
  };
  for (const [type, mailbox] of Object.entries(client.heard))
    client.addEventListener(type, (event) => mailbox.put(event.detail));
  t.after(async () => {
    fake.stop();
    await client.close().catch(() => {});
  });
  return client;
}

/** A fake, a client that is connected to it, and their conversation. */
export async function connected(t, { welcome, ...options } = {}) {
  const fake = await fakeFor(t);
  const client = newClient(t, fake, { waitTimeoutMs: 500, ...options });
  const [, conversation] = await Promise.all([client.start(), fake.nextWelcomed(welcome)]);
  assert.equal((await client.heard.state.take()).state, "open");
  return { fake, client, conversation };
}

export async function subscribed(client, conversation, topic = "room:1", options = {}, fields = {}) {
  const [subscription] = await Promise.all([client.subscribe(topic, options), conversation.grant(fields)]);
  return subscription;
}

/** A durable subscription to room:1; `fields` are those of SUBSCRIBED. */
export function followed(client, conversation, fields = {}) {
  return subscribed(
    client,
    conversation,
    "room:1",
    { durable: true },
    { durable: true, epoch: "e1", ...fields },
  );
}

export async function read(subscription, count) {
  const bodies = [];
  while (bodies.length < count) bodies.push((await subscription.next()).value.body);
  return bodies;
}

export async function refusal(promise) {
  const error = await promise.then(
    (value) => assert.fail(`it was not refused: ${value}`),
    (error) => error,
  );
  return [error.code, error.id, error.topic];
}
