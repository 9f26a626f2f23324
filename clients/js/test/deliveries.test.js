/**
 * The decisions of an application over many connections, against a model of the server.
 *
 * The model keeps what a server promises: messages in order from its stored cursor on, at most a
 * window ahead of the acknowledged one, what was set aside by itself. Connections are lost between
 * any two steps with whatever is under way, and the stored cursor may be an old one. The steps are
 * random; a failure names its seed.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { wire } from "../imserver.js";
import { connected, followed, FrameType } from "./fake.js";

const TOPIC = "room:1";
const WINDOW = 3;
const RUNS = Number(process.env.RUNS ?? 20);
const STEPS = 120;

function randomFrom(seed) {
  // mulberry32
  return (below) => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

class Deliveries {
  committed = 0;
  stored = 0; // the cursor on the disk
  acked = 0;
  sent = 0; // on this connection
  aside = new Set();
  decided = new Map();
  handed = new Set();
  hands = [];
  failure = null;
  #reading = null;
  #pong = null;

  constructor(fake, subscription, conversation, random) {
    Object.assign(this, { fake, subscription, random });
    this.#listen(conversation);
  }

  // The server

  async #listen(conversation) {
    this.conversation = conversation;
    for (let frame; (frame = await conversation.read());) {
      if (this.conversation !== conversation) return; // lost on its way
      if (frame.type === FrameType.PONG) this.#pong();
      else
        try {
          this.#take(frame.type, wire.decodePosition(frame).seq);
        } catch (error) {
          this.failure ??= error;
        }
    }
  }

  #take(type, seq) {
    assert.ok(seq <= this.sent, `${seq} is beyond what was sent on this connection`);
    if (type === FrameType.NACK) {
      assert.ok(this.aside.has(seq) || seq > this.acked, `an ACK has overtaken the NACK of ${seq}`);
      this.aside.add(seq);
    } else if (seq <= this.acked) {
      assert.ok(!this.aside.has(seq) || this.decided.get(seq) === "ack", `${seq} was taken for done`);
      this.aside.delete(seq);
    } else {
      for (let passed = this.acked + 1; passed <= seq; passed++) {
        const verdict = this.decided.get(passed);
        assert.ok(verdict, `${passed} was never decided about`);
        assert.ok(verdict === "ack" || this.aside.has(passed), `the NACK of ${passed} is lost`);
      }
      this.acked = seq;
    }
    this.#pass();
  }

  /** What is set aside does not hold up the cursor. */
  #pass() {
    while (this.aside.has(this.acked + 1) && this.acked < this.sent) this.acked++;
  }

  async lose(back = this.random(4)) {
    this.conversation.leave();
    this.conversation = null;
    const conversation = await this.fake.nextWelcomed();
    this.stored = Math.max(this.stored, this.acked - back);
    this.acked = this.sent = this.stored;
    await conversation.grant({ durable: true, epoch: "e1", cursor: this.stored, head: this.committed });
    this.#listen(conversation);
  }

  commit() {
    this.committed += 1 + this.random(3);
  }

  send(count = 1 + this.random(4)) {
    while (count-- && this.sent < Math.min(this.committed, this.acked + WINDOW)) {
      this.sent++;
      if (!this.aside.has(this.sent)) this.conversation.deliverKept(TOPIC, this.sent);
    }
  }

  timeOut() {
    this.#pass();
    for (let seq = this.acked + 1; seq <= this.sent; seq++)
      if (!this.aside.has(seq)) this.conversation.redeliver(TOPIC, seq);
  }

  sendAside() {
    const all = [...this.aside];
    if (all.length) this.#sendAside(all[this.random(all.length)]);
  }

  #sendAside(seq) {
    if (seq <= this.acked) this.conversation.setAside(TOPIC, seq);
    else this.conversation.redeliver(TOPIC, seq);
  }

  /** Returns when everything under way has arrived, in both directions. */
  async settle() {
    const answered = new Promise((resolve) => (this.#pong = resolve));
    this.conversation.write(wire.encodeFrame(FrameType.PING, undefined, 1));
    await answered;
  }

  // The application

  async handOut() {
    this.#reading ??= this.subscription.next().then(({ value }) => {
      this.#reading = null;
      assert.ok(value.redelivered || !this.handed.has(value.seq), `${value.seq} was handed out twice`);
      this.handed.add(value.seq);
      // Of two copies it works on one: it decides in the order in which it was handed them.
      if (!this.hands.includes(value.seq)) this.hands.push(value.seq);
    });
    await Promise.race([this.#reading, new Promise(setImmediate)]);
  }

  /** In order, as a loop over the subscription does. What is done stays done. */
  decide(isGood = this.random(2) === 0) {
    const seq = this.hands.shift();
    if (seq === undefined) return;
    isGood ||= this.decided.get(seq) === "ack";
    this.decided.set(seq, isGood ? "ack" : "nack");
    if (isGood) this.subscription.ack(seq);
    else this.subscription.nack(seq);
  }

  /** Out of order, as when several are worked on at a time. */
  nackAnother() {
    if (this.hands.length < 2 || this.decided.get(this.hands[1]) === "ack") return;
    const [seq] = this.hands.splice(1, 1);
    this.decided.set(seq, "nack");
    this.subscription.nack(seq);
  }

  /** What comes again after a NACK is settled by itself, whatever is before it. */
  ackAnother() {
    const at = this.hands.findIndex((seq, n) => n > 0 && this.decided.get(seq) === "nack");
    if (at < 0) return;
    const [seq] = this.hands.splice(at, 1);
    this.decided.set(seq, "ack");
    this.subscription.ack(seq);
  }

  async step() {
    const steps = [
      ...["commit", "commit", "send", "send", "send", "timeOut", "sendAside", "settle", "lose"],
      ...["handOut", "handOut", "handOut", "decide", "decide", "nackAnother", "ackAnother"],
    ];
    await this[steps[this.random(steps.length)]]();
    if (this.failure) throw this.failure;
  }

  /** The connection holds from now on: everything is settled. */
  async finish() {
    for (let round = 0; round < 3 * this.committed + 9; round++) {
      if (this.acked === this.committed && !this.aside.size) break;
      this.send(WINDOW);
      if (round % 3 === 2) {
        this.timeOut();
        for (const seq of this.aside) this.#sendAside(seq);
      }
      await this.settle();
      do await this.handOut();
      while (this.subscription.size);
      while (this.hands.length) this.decide(true);
      await new Promise(setImmediate);
      await this.settle();
      if (this.failure) throw this.failure;
    }
    assert.deepEqual([this.acked, this.aside.size], [this.committed, 0]);
    assert.deepEqual(this.handed, new Set(Array.from({ length: this.committed }, (_, n) => n + 1)));
  }
}

test("whatever is lost and repeated, every message is decided about once", async (t) => {
  const first = Number(process.env.SEED ?? Date.now() % 1e9);
  for (let seed = first; seed < first + RUNS; seed++) {
    const { fake, client, conversation } = await connected(t);
    const subscription = await followed(client, conversation);
    const deliveries = new Deliveries(fake, subscription, conversation, randomFrom(seed));
    try {
      for (let n = 0; n < STEPS; n++) await deliveries.step();
      await deliveries.finish();
    } catch (error) {
      throw new Error(`SEED=${seed}: ${error.message}`, { cause: error });
    }
    fake.stop();
  }
});
