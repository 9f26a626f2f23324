/**
 * The client and a real server, which tests/test_js_client.py starts, and restarts when it is asked:
 * IMSERVER_URL is its WebSocket, a POST to IMSERVER_RESTART returns when it is back.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { WebSocket } from "ws";
import { connect, ImError } from "../imserver.js";

const { IMSERVER_URL, IMSERVER_RESTART } = process.env;
const skip = IMSERVER_URL ? false : "no server: pytest tests/test_js_client.py runs this with one";

/** A topic that no other test has. */
let topics = 0;
const room = () => `room:${process.pid}.${Date.now()}.${++topics}`;

async function join(t, user, options = {}) {
  const client = await connect(IMSERVER_URL, { user, device: `d${++topics}`, WebSocket, ...options });
  t.after(() => client.close());
  return client;
}

async function take(subscription, count) {
  const messages = [];
  while (messages.length < count) messages.push((await subscription.next()).value);
  return messages;
}

async function restart() {
  const answer = await fetch(IMSERVER_RESTART, { method: "POST" });
  assert.equal(answer.status, 200);
}

test("two users talk", { skip }, async (t) => {
  const [ann, bob] = [await join(t, "ann"), await join(t, "bob")];
  const topic = room();
  const [hers, his] = [await ann.subscribe(topic), await bob.subscribe(topic, { tags: "news || alert" })];
  await bob.publish(topic, "not for him", { tag: "other" });
  await bob.publish(topic, { text: "grüß dich" }, { tag: "news" });
  await bob.publish(topic, Uint8Array.of(0, 255), { tag: "alert", echo: false });
  await ann.publish(topic, [1], { tag: "alert" });
  const seen = (await take(hers, 4)).map(({ sender, tag, body }) => [sender, tag, body]);
  // Of one sender in order; between two there is none.
  assert.deepEqual(
    seen.filter(([sender]) => sender === "bob"),
    [
      ["bob", "other", "not for him"],
      ["bob", "news", { text: "grüß dich" }],
      ["bob", "alert", Uint8Array.of(0, 255)],
    ],
  );
  assert.deepEqual(
    (await take(his, 2)).map(({ body }) => body),
    [{ text: "grüß dich" }, [1]],
  );
});

test("what has a receipt is in the history, and a reader that was away gets it", { skip }, async (t) => {
  const topic = room();
  const device = `d${++topics}`;
  const before = await join(t, "bob", { device });
  await before.subscribe(topic, { durable: true });
  await before.close();
  const ann = await join(t, "ann");
  const receipts = await Promise.all([0, 1, 2].map((n) => ann.publish(topic, { n }, { durable: true })));
  assert.deepEqual(
    receipts.map(({ seq }) => seq),
    [1, 2, 3],
  );
  assert.ok(receipts.every(({ time }) => Math.abs(time - Date.now()) < 60_000));

  const bob = await join(t, "bob", { device });
  const subscription = await bob.subscribe(topic, { durable: true });
  assert.deepEqual([subscription.cursor, subscription.head, subscription.first], [0, 3, 1]);
  const messages = await take(subscription, 3);
  assert.deepEqual(
    messages.map(({ seq, body, durable, id }) => [seq, body.n, durable, id]),
    [
      [1, 0, true, receipts[0].id],
      [2, 1, true, receipts[1].id],
      [3, 2, true, receipts[2].id],
    ],
  );
  subscription.ack(messages[2]);
  const page = await bob.call("history", { topic, before: 3, limit: 1 });
  assert.deepEqual([page.head, page.messages.map(({ seq, body }) => [seq, body.n])], [3, [[2, 1]]]);
  assert.deepEqual(await bob.call("read", { topic, seq: 2 }), { read: 2 });
  assert.equal((await bob.call("unread", { topics: [topic] }))[topic].unread, 1);
  const behind = await ann.subscribe(topic, { after: 1 });
  assert.deepEqual(
    (await take(behind, 2)).map(({ seq }) => seq),
    [2, 3],
  );
});

test("what is refused here comes again, and is settled by itself", { skip }, async (t) => {
  const [ann, bob] = [await join(t, "ann"), await join(t, "bob")];
  const topic = room();
  const subscription = await bob.subscribe(topic, { durable: true });
  for (const n of [1, 2, 3]) await ann.publish(topic, n, { durable: true });
  const [one, two, three] = await take(subscription, 3);
  subscription.ack(one);
  subscription.nack(two);
  subscription.ack(three);
  const [again] = await take(subscription, 1);
  assert.deepEqual([again.seq, again.body, again.redelivered, again.attempt > 0], [2, 2, true, true]);
  subscription.ack(again);
});

test("direct messages and the inbox come by joined()", { skip }, async (t) => {
  const [ann, bob] = [await join(t, "ann"), await join(t, "bob")];
  const joined = bob.joined();
  const topics = [(await joined.next()).value.topic];
  assert.deepEqual(topics, ["user:bob"]);
  const body = { text: "psst", at: Date.now() };
  await ann.publish("dm:ann:bob", body, { durable: true });
  const { value: dm } = await joined.next();
  assert.deepEqual([dm.topic, dm.durable], ["dm:ann:bob", true]);
  for await (const message of dm) {
    dm.ack(message);
    if (message.body.at === body.at) break;
  }
});

test("presence and members", { skip }, async (t) => {
  const [ann, bob] = [await join(t, "ann", { device: "here" }), await join(t, "bob")];
  const topic = room();
  await ann.subscribe(topic);
  await bob.subscribe(topic);
  assert.deepEqual(await bob.call("members", { topic }), ["ann", "bob"]);
  const { ann: there, nobody } = await bob.call("presence", { users: ["ann", "nobody"] });
  assert.deepEqual([there.online, there.devices.includes("here"), nobody.online], [true, true, false]);
});

test("refusals have their numbers", { skip }, async (t) => {
  const ann = await join(t, "ann");
  await assert.rejects(ann.subscribe("user:bob"), { name: "ImError", code: 403 });
  await assert.rejects(ann.call("no such method"), { code: 404 });
  await assert.rejects(ann.call("history", { topic: 7 }), { code: 422 });
  await assert.rejects(ann.publish("dm:bob:eve", "x", { durable: true }), { code: 403, topic: "dm:bob:eve" });
  const told = new Promise((resolve) => ann.addEventListener("error", resolve, { once: true }));
  await ann.publish("dm:bob:eve", "x");
  const { detail } = await told;
  assert.ok(detail instanceof ImError);
  assert.deepEqual([detail.code, detail.topic], [403, "dm:bob:eve"]);
});

test("the same user and device connects again, and the first one stops", { skip }, async (t) => {
  const first = await join(t, "ann", { device: "same" });
  const subscription = await first.subscribe(room());
  await join(t, "ann", { device: "same" });
  await assert.rejects(subscription.next(), { code: 4009 });
  assert.equal(first.state, "closed");
});

test("what arrives faster than it is read is all there in the end", { skip }, async (t) => {
  const [ann, bob] = [await join(t, "ann"), await join(t, "bob", { queueMessages: 16 })];
  const topic = room();
  const count = 300; // more than a window
  for (let n = 0; n < count; n += 100)
    await Promise.all(Array.from({ length: 100 }, (_, m) => ann.publish(topic, n + m, { durable: true })));
  const behind = await bob.subscribe(topic, { after: 0 });
  const durable = await ann.subscribe(topic, { durable: true, after: 0 });
  for (const subscription of [behind, durable]) {
    for (let seq = 1; seq <= count; seq++) {
      const { value } = await subscription.next();
      assert.deepEqual([value.seq, value.body], [seq, seq - 1]);
      if (seq % 50 === 0 && subscription.durable) subscription.ack(value);
    }
  }
});

test("over restarts of the server nothing is lost, and nothing is handed out twice", { skip }, async (t) => {
  const [ann, bob] = [await join(t, "ann"), await join(t, "bob")];
  const topic = room();
  const subscription = await bob.subscribe(topic, { durable: true });
  const count = 600;
  const receipts = [];
  const publishing = (async () => {
    for (let n = 0; n < count; n++) {
      receipts.push(ann.publish(topic, n, { durable: true }));
      if (n % 20 === 19)
        await Promise.race([receipts.at(-1), new Promise((resolve) => setTimeout(resolve, 40))]);
    }
  })();
  const seen = [];
  const reading = (async () => {
    for await (const message of subscription) {
      seen.push(message);
      subscription.ack(message);
      if (new Set(seen.map(({ seq }) => seq)).size === count) break;
    }
  })();
  for (let n = 0; n < 2; n++) {
    while (seen.length < (n + 1) * 100) await new Promise((resolve) => setTimeout(resolve, 5));
    await restart();
  }
  await publishing;
  const seqs = (await Promise.all(receipts)).map(({ seq }) => seq);
  assert.deepEqual(
    seqs,
    Array.from({ length: count }, (_, n) => n + 1),
  );
  await reading;
  const fresh = seen.filter(({ redelivered }) => !redelivered);
  assert.deepEqual(
    fresh.map(({ seq, body }) => [seq, body]),
    seqs.map((seq, n) => [seq, n]),
  );
  assert.equal(subscription.cursor, count);
});
