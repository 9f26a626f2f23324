/** Publishes: one promise each, and no message twice, whatever happens to connections. */
import assert from "node:assert/strict";
import { test } from "node:test";
import * as msgpack from "@msgpack/msgpack";
import { connected, Flag, FrameType, refusal } from "./fake.js";

const FAR = { reconnect: { base_ms: 1e6, factor: 2, max_ms: 1e6 } };

/** Publish 0, 1, ... durably. */
const kept = (client, count = 1, options = {}) =>
  Array.from({ length: count }, (_, n) => {
    const receipt = client.publish("room:1", n, { durable: true, ...options });
    receipt.catch(() => {});
    return receipt;
  });

test("a receipt resolves its own promise, in any order", async (t) => {
  const { client, conversation } = await connected(t);
  const receipts = kept(client, 3);
  const messages = await conversation.published(3);
  assert.deepEqual(
    messages.map((message) => message.flags),
    [Flag.DURABLE, Flag.DURABLE, Flag.DURABLE],
  );
  assert.deepEqual(
    messages.map((message) => message.id - messages[0].id),
    [0, 1, 2],
  );
  assert.ok(Number.isSafeInteger(messages[0].id));
  for (const n of [2, 1, 0]) conversation.receipt(messages[n].id, 10 + n);
  for (const n of [0, 1, 2])
    assert.deepEqual(await receipts[n], { id: messages[n].id, seq: 10 + n, time: 5 });
});

test("a publish that is not durable is null, and says how it is to be delivered", async (t) => {
  const { client, conversation } = await connected(t);
  assert.equal(await client.publish("room:1", { a: 1 }, { tag: "news", echo: false }), null);
  const [message] = await conversation.published();
  const { topic, tag, sender, flags, codec, body, seq, time, attempt } = message;
  assert.deepEqual([topic, tag, sender, flags, codec], ["room:1", "news", "ann", Flag.NO_ECHO, "json"]);
  assert.deepEqual([body, seq, time, attempt], [{ a: 1 }, 0, 0, 0]);
});

test("bytes stay bytes, and a codec is one that there is", async (t) => {
  const { client, conversation } = await connected(t, { msgpack });
  const bytes = Uint8Array.of(1, 2, 3, 4);
  await client.publish("t", bytes);
  await client.publish("t", bytes.buffer);
  await client.publish("t", new DataView(bytes.buffer, 1, 2));
  await client.publish("t", bytes, { codec: "protobuf" });
  await client.publish("t", [1, "a"], { codec: "msgpack" });
  const sent = await conversation.published(5);
  assert.deepEqual(
    sent.map((message) => [message.codec, [...message.bytes]]),
    [
      ["bytes", [1, 2, 3, 4]],
      ["bytes", [1, 2, 3, 4]],
      ["bytes", [2, 3]],
      ["protobuf", [1, 2, 3, 4]],
      ["msgpack", [...msgpack.encode([1, "a"])]],
    ],
  );
  for (const [body, codec] of [
    [[1], "protobuf"],
    [[1], "bytes"],
    [[1], "xml"],
    [bytes, "xml"],
  ])
    await assert.rejects(client.publish("t", body, { codec }), TypeError);
  for (const body of [undefined, () => 1, 10n]) await assert.rejects(client.publish("t", body), TypeError);
});

test("bad names and frames that are too long are refused here", async (t) => {
  const { client, conversation } = await connected(t);
  for (const topic of ["", "a\n", "\ud800", "é".repeat(128), 7])
    await assert.rejects(client.publish(topic, 1), { name: "ImError", code: 422 });
  for (const tag of ["a b", "a|b", "*", "x".repeat(65)])
    await assert.rejects(client.publish("t", 1, { tag }), { code: 422 });
  await assert.rejects(client.publish("t", 1, { tag: "$mine" }), { code: 403 });
  for (const durable of [false, true])
    await assert.rejects(client.publish("t", new Uint8Array(65_536), { durable }), { code: 413, topic: "t" });
  await client.publish("é".repeat(127), new Uint8Array(65_536 - 36 - 254 - 3));
  assert.equal((await conversation.published())[0].topic, "é".repeat(127));
});

for (const code of [403, 409, 413, 507, 1234])
  test(`a refusal with ${code} is its promise's and nobody else's`, async (t) => {
    const { client, conversation } = await connected(t);
    const [first, second] = kept(client, 2);
    const [one, two] = await conversation.published(2);
    conversation.say(FrameType.ERROR, { code, id: one.id, topic: "room:1" });
    conversation.receipt(two.id);
    assert.deepEqual(await refusal(first), [code, one.id, "room:1"]);
    assert.equal((await second).id, two.id);
  });

test("what is unanswered is sent again in order with its ids", async (t) => {
  let { fake, client, conversation } = await connected(t);
  const receipts = kept(client, 4);
  const before = await conversation.published(4);
  conversation.receipt(before[1].id);
  await receipts[1];
  conversation.leave();
  conversation = await fake.nextWelcomed();
  const again = await conversation.published(3);
  assert.deepEqual(
    again.map(({ id, body }) => [id, body]),
    [0, 2, 3].map((n) => [before[n].id, n]),
  );
  for (const { id, flags } of again) {
    assert.equal(flags, Flag.DURABLE | Flag.RETRY);
    conversation.receipt(id);
  }
  await Promise.all(receipts);
});

test("old ones come before new ones", async (t) => {
  let { fake, client, conversation } = await connected(t);
  const receipts = kept(client);
  await conversation.published();
  conversation.leave();
  await client.heard.state.take();
  const live = client.publish("room:1", "live");
  receipts.push(client.publish("room:1", "kept", { durable: true, echo: false }));
  conversation = await fake.nextWelcomed();
  const messages = await conversation.published(3);
  assert.deepEqual(
    messages.map((message) => message.body),
    [0, "kept", "live"],
  );
  // Never sent before, so it is not a repeat.
  const flags = [Flag.DURABLE | Flag.RETRY, Flag.DURABLE | Flag.NO_ECHO, 0];
  assert.deepEqual(
    messages.map((message) => message.flags),
    flags,
  );
  assert.equal(await live, null);
  for (const { id } of messages.slice(0, 2)) conversation.receipt(id);
  await Promise.all(receipts);
});

test("a receipt that comes twice or for nobody disturbs nothing", async (t) => {
  const { client, conversation } = await connected(t);
  const [receipt] = kept(client);
  const [{ id }] = await conversation.published();
  for (const seq of [7, 8]) conversation.receipt(id, seq);
  conversation.receipt(99);
  assert.equal((await receipt).seq, 7);
  await conversation.pong();
});

for (const code of [429, 500, 503])
  test(`what the server puts off with ${code} is tried again`, async (t) => {
    const { client, conversation } = await connected(t);
    const [receipt] = kept(client);
    const [{ id }] = await conversation.published();
    for (let n = 0; n < 3; n++) {
      conversation.say(FrameType.ERROR, { code, retry_after_ms: 1, id, topic: "room:1" });
      const [again] = await conversation.published();
      assert.deepEqual([again.id, again.flags], [id, Flag.DURABLE | Flag.RETRY]);
    }
    conversation.receipt(id);
    await receipt;
  });

test("what was put off is not forgotten by a reconnect", async (t) => {
  let { fake, client, conversation } = await connected(t);
  const [receipt] = kept(client);
  const [{ id }] = await conversation.published();
  conversation.say(FrameType.ERROR, { code: 503, retry_after_ms: 50, id, topic: "room:1" });
  conversation.leave();
  conversation = await fake.nextWelcomed();
  const [again] = await conversation.published();
  conversation.receipt(again.id);
  assert.equal((await receipt).id, id);
});

test("what was put off waits its time, over a reconnect, too", async (t) => {
  let { fake, client, conversation } = await connected(t, { waitTimeoutMs: 20 });
  const [receipt] = kept(client);
  const [{ id }] = await conversation.published();
  conversation.say(FrameType.ERROR, { code: 503, retry_after_ms: 1e6, id, topic: "room:1" });
  await conversation.pong();
  conversation.leave();
  conversation = await fake.nextWelcomed();
  await conversation.pong();
  await client.close();
  assert.deepEqual(await refusal(receipt), [408, id, "room:1"]);
});

test("after its time a publish is 408, and not sent again", async (t) => {
  const { fake, client, conversation } = await connected(t);
  const [receipt] = kept(client, 1, { retryMs: 10 });
  const [{ id }] = await conversation.published();
  assert.deepEqual(await refusal(receipt), [408, id, "room:1"]);
  conversation.leave();
  await (await fake.nextWelcomed()).pong();
});

test("without a connection a live publish waits for one, and then is 408", async (t) => {
  const { client, conversation } = await connected(t, { welcome: FAR, waitTimeoutMs: 30 });
  conversation.leave();
  await client.heard.state.take();
  await assert.rejects(client.publish("room:1", "x"), { code: 408, topic: "room:1" });
});

test("told to stop all promises end with why", async (t) => {
  const { client, conversation } = await connected(t);
  const receipts = kept(client, 2);
  await conversation.published(2);
  conversation.leave(4010, { reason: "kicked" });
  for (const receipt of receipts) await assert.rejects(receipt, { code: 4010, message: "kicked" });
  await assert.rejects(client.publish("room:1", "", { durable: true }), { code: 4010 });
});

test("closing waits for the receipts across a reconnect", async (t) => {
  let { fake, client, conversation } = await connected(t);
  const receipts = kept(client, 2);
  const closing = client.close();
  await conversation.published(2);
  conversation.leave();
  conversation = await fake.nextWelcomed();
  for (const { id } of await conversation.published(2)) conversation.receipt(id);
  await closing;
  await Promise.all(receipts);
});

test("closing does not wait for ever", async (t) => {
  const { client, conversation } = await connected(t, { waitTimeoutMs: 20 });
  const [receipt] = kept(client);
  const [{ id }] = await conversation.published();
  await client.close();
  assert.deepEqual(await refusal(receipt), [408, id, "room:1"]);
});

test("GOAWAY lets the receipts come first", async (t) => {
  const { fake, client, conversation } = await connected(t);
  const receipts = kept(client, 2);
  const messages = await conversation.published(2);
  conversation.say(FrameType.GOAWAY, { code: 4201 });
  await conversation.pong();
  conversation.receipt(messages[0].id);
  conversation.say(FrameType.ERROR, { code: 403, id: messages[1].id, topic: "room:1" });
  assert.equal((await receipts[0]).id, messages[0].id);
  assert.equal((await refusal(receipts[1]))[0], 403);
  await conversation.expectEnd();
  await (await fake.nextWelcomed()).pong(); // nothing is repeated
});

for (const [what, count, bytes] of [
  ["messages", 1024, 1],
  ["bytes", 64, 65_000],
])
  test(`what waits is bounded in ${what}, and more is refused`, async (t) => {
    let { fake, client, conversation } = await connected(t);
    conversation.leave();
    await client.heard.state.take();
    const body = new Uint8Array(bytes);
    const publish = (n) => client.publish("room:1", body, { durable: n % 2 === 0 });
    const waiting = Array.from({ length: count }, (_, n) => publish(n));
    const more = await Promise.allSettled([publish(0), publish(1)]);
    for (const { reason } of more) assert.deepEqual([reason.code, reason.topic], [429, "room:1"]);
    conversation = await fake.nextWelcomed();
    for (const { id, durable } of await conversation.published(count)) if (durable) conversation.receipt(id);
    await Promise.all(waiting);
    await client.publish("room:1", "there is room again");
  });

test("a publisher that waits for each live publish is slowed down and not refused", async (t) => {
  const { client, conversation } = await connected(t);
  const body = new Uint8Array(60_000);
  const count = 200; // three times what may wait
  const publishing = (async () => {
    for (let n = 0; n < count; n++) await client.publish("room:1", body);
  })();
  await conversation.published(count);
  await publishing;
});

test("a frame that the next server does not take fails alone", async (t) => {
  let { fake, client, conversation } = await connected(t);
  const long = client.publish("room:1", new Uint8Array(2000), { durable: true });
  const [short] = kept(client);
  await conversation.published(2);
  conversation.leave();
  conversation = await fake.nextWelcomed({ limits: { max_frame: 1000, window: 64, subscriptions: 9 } });
  assert.equal((await refusal(long))[0], 413);
  const [again] = await conversation.published();
  conversation.receipt(again.id);
  await short;
});

test("so does a live one that waited for it", async (t) => {
  const { fake, client, conversation } = await connected(t);
  conversation.leave();
  await client.heard.state.take();
  const [long, short] = [new Uint8Array(2000), "short"].map((body) => client.publish("room:1", body));
  long.catch(() => {});
  const limits = { max_frame: 1000, window: 64, subscriptions: 9 };
  const next = await fake.nextWelcomed({ limits });
  assert.equal((await next.published())[0].body, "short");
  assert.equal((await refusal(long))[0], 413);
  assert.equal(await short, null);
});

test("frames of one turn leave in few messages, none of which is long", async (t) => {
  const { client, conversation } = await connected(t);
  const sizes = [];
  conversation.socket.on("message", (data) => sizes.push(data.byteLength));
  const bodies = [
    ...Array(100).fill(new Uint8Array(10)),
    ...Array(9).fill(new Uint8Array(4000)),
    new Uint8Array(30_000),
  ];
  for (const body of bodies) client.publish("t", body);
  await conversation.published(bodies.length);
  assert.ok(sizes.length <= 5, `${sizes}`);
  assert.deepEqual(
    sizes.filter((size) => size > 16_384),
    [30_000 + 36 + 1 + 3],
  );
});

test("an error about another topic is not its own", async (t) => {
  const { client, conversation } = await connected(t);
  const [receipt] = kept(client);
  const [{ id }] = await conversation.published();
  conversation.say(FrameType.ERROR, { code: 403, id, topic: "room:2" });
  assert.equal((await client.heard.error.take()).topic, "room:2");
  conversation.receipt(id);
  await receipt;
});
