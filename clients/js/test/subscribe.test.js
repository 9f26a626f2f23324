/** Subscriptions: what is handed out, what is acknowledged when, and what comes again. */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  connected,
  fakeFor,
  Flag,
  FrameType,
  followed,
  newClient,
  read,
  subscribed,
  WELCOME,
} from "./fake.js";
import { wire } from "../imserver.js";

// Live

test("messages come as they were sent, to a loop that may be left and taken up again", async (t) => {
  const { client, conversation } = await connected(t);
  const subscription = await subscribed(
    client,
    conversation,
    "room:1",
    {},
    { head: 9, cursor: 9, first: 2, epoch: "e" },
  );
  const { topic, durable, head, cursor, first, epoch, missed } = subscription;
  assert.deepEqual([topic, durable, head, cursor, first, epoch, missed], ["room:1", false, 9, 9, 2, "e", 0]);
  const seen = [];
  for (const last of [2, 4]) {
    conversation.deliver("room:1", last - 1, last);
    for await (const message of subscription) {
      seen.push([message.topic, message.sender, message.body]);
      if (message.body === last) break;
    }
  }
  assert.deepEqual(
    seen,
    [1, 2, 3, 4].map((body) => ["room:1", "bob", body]),
  );
});

test("closing unsubscribes and ends the loop", async (t) => {
  const { client, conversation } = await connected(t);
  const subscription = await subscribed(client, conversation);
  const reading = subscription.next();
  const closing = subscription.close();
  const { request, topic } = await conversation.expect(FrameType.UNSUBSCRIBE);
  conversation.say(FrameType.UNSUBSCRIBED, { topic }, request);
  await closing;
  assert.deepEqual(await reading, { value: undefined, done: true });
  assert.deepEqual(await client.heard.unsubscribed.take(), { topic: "room:1", error: null });
  await subscribed(client, conversation); // and again
});

test("a refused subscription says why, and the topic is free again", async (t) => {
  const { client, conversation } = await connected(t);
  const asking = client.subscribe("room:1");
  const { request } = await conversation.expect(FrameType.SUBSCRIBE);
  await assert.rejects(client.subscribe("room:1"), { code: 409 });
  conversation.say(FrameType.ERROR, { code: 403, message: "closed to you" }, request);
  await assert.rejects(asking, { code: 403, message: "closed to you" });
  await subscribed(client, conversation);
});

test("a subscription without an answer is 408 and taken back", async (t) => {
  const { client, conversation } = await connected(t, { waitTimeoutMs: 30 });
  await assert.rejects(client.subscribe("room:1"), { code: 408 });
  await conversation.expect(FrameType.SUBSCRIBE);
  assert.equal((await conversation.expect(FrameType.UNSUBSCRIBE)).topic, "room:1");
});

test("bad names are refused here", async (t) => {
  const { client, conversation } = await connected(t);
  for (const tags of ["", "a||", "a b", "*||a", Array(17).fill("a").join("||"), "a".repeat(1025)])
    await assert.rejects(client.subscribe("t", { tags }), { code: 422 });
  await assert.rejects(client.subscribe("a\u0000"), { code: 422 });
  await conversation.pong();
});

test("the server ends a subscription, and says why", async (t) => {
  const { client, conversation } = await connected(t);
  const subscription = await subscribed(client, conversation);
  conversation.deliver("room:1", "last");
  conversation.say(FrameType.UNSUBSCRIBED, { topic: "room:1", code: 403 });
  assert.deepEqual(await read(subscription, 1), ["last"]);
  await assert.rejects(subscription.next(), { code: 403, topic: "room:1" });
  assert.equal((await client.heard.unsubscribed.take()).error.code, 403);
});

test("of a live topic that nobody reads the oldest are dropped, and that is told once", async (t) => {
  const { client, conversation } = await connected(t, { queueMessages: 10 });
  const subscription = await subscribed(client, conversation);
  conversation.deliver("room:1", ...Array(25).keys());
  await conversation.pong();
  const error = await client.heard.error.take();
  assert.deepEqual([error.code, error.topic], [410, "room:1"]);
  assert.deepEqual([subscription.size, subscription.missed], [10, 15]);
  assert.deepEqual(await read(subscription, 10), [15, 16, 17, 18, 19, 20, 21, 22, 23, 24]);
  conversation.deliver("room:1", ...Array(11).keys());
  assert.equal((await client.heard.error.take()).code, 410);
});

test("what may succeed later is asked for again, after a reconnect", async (t) => {
  let { fake, client, conversation } = await connected(t);
  const subscription = await subscribed(client, conversation);
  conversation.leave();
  conversation = await fake.nextWelcomed();
  const { request } = await conversation.expect(FrameType.SUBSCRIBE);
  conversation.say(FrameType.ERROR, { code: 503, retry_after_ms: 1 }, request);
  await conversation.grant();
  conversation.deliver("room:1", "at last");
  assert.deepEqual(await read(subscription, 1), ["at last"]);
});

// Acknowledgements

test("the server is asked for a durable subscription", async (t) => {
  const { client, conversation } = await connected(t);
  const options = { tags: "a||b", durable: true, after: 7, epoch: "e0" };
  const asking = client.subscribe("room:1", options);
  const asked = await conversation.grant({ durable: true, cursor: 7, head: 9, missed: 3, epoch: "e0" });
  assert.deepEqual(asked, { topic: "room:1", ...options });
  const { epoch, missed, cursor, head, durable } = await asking;
  assert.deepEqual([epoch, missed, cursor, head, durable], ["e0", 3, 7, 9, true]);
});

test("acks of one turn are one frame", async (t) => {
  const { client, conversation } = await connected(t);
  const subscription = await followed(client, conversation);
  conversation.deliverKept("room:1", 1, 2, 3, 4);
  for (let n = 0; n < 3; n++) subscription.ack((await subscription.next()).value);
  assert.equal(subscription.cursor, 3);
  assert.equal(await conversation.expect(FrameType.ACK), 3);
  subscription.ack((await subscription.next()).value.seq);
  assert.equal(await conversation.expect(FrameType.ACK), 4);
  await conversation.pong();
});

test("a NACK does not come behind the ACK that passes it", async (t) => {
  const { client, conversation } = await connected(t);
  const subscription = await followed(client, conversation);
  conversation.deliverKept("room:1", 1, 2, 3);
  await read(subscription, 3);
  subscription.ack(1);
  subscription.nack(2);
  subscription.ack(3);
  assert.equal(await conversation.expect(FrameType.ACK), 1);
  assert.equal(await conversation.expect(FrameType.NACK), 2);
  assert.equal(await conversation.expect(FrameType.ACK), 3);
});

test("what was set aside is acknowledged by itself", async (t) => {
  const { client, conversation } = await connected(t);
  const subscription = await followed(client, conversation, { cursor: 8, head: 9 });
  conversation.setAside("room:1", 5); // of the last session
  conversation.deliverKept("room:1", 9);
  const [first, second] = [(await subscription.next()).value, (await subscription.next()).value];
  assert.deepEqual([first.seq, first.redelivered, second.redelivered], [5, true, false]);
  subscription.ack(second);
  subscription.ack(first);
  const acks = [await conversation.expect(FrameType.ACK), await conversation.expect(FrameType.ACK)];
  assert.deepEqual(acks.sort(), [5, 9]);
});

test("a dead letter that is sent once more is acknowledged by itself, whatever is undecided", async (t) => {
  const { client, conversation } = await connected(t);
  const subscription = await followed(client, conversation);
  conversation.deliverKept("room:1", 1, 2, 3);
  await read(subscription, 3);
  conversation.setAside("room:1", 2); // the server's cursor is past 1 and 2: they were dead
  subscription.ack((await subscription.next()).value);
  assert.equal(await conversation.expect(FrameType.ACK), 2);
  await conversation.pong();
});

test("nothing is acknowledged that was not handed out", async (t) => {
  const { client, conversation } = await connected(t);
  const subscription = await followed(client, conversation);
  conversation.deliverKept("room:1", 1, 2);
  await subscription.next();
  for (const seq of [0, -1, 2, 99]) {
    subscription.ack(seq);
    subscription.nack(seq);
  }
  await conversation.pong();
});

test("only durable subscriptions acknowledge", async (t) => {
  const { client, conversation } = await connected(t);
  const subscription = await subscribed(client, conversation);
  assert.throws(() => subscription.ack(1), /durable/);
  assert.throws(() => subscription.nack(1), /durable/);
});

test("what has no place in the topic is handed out and not acknowledged", async (t) => {
  const { client, conversation } = await connected(t);
  const subscription = await followed(client, conversation);
  conversation.deliver("room:1", "typing");
  conversation.deliverKept("room:1", 1);
  for (const body of ["typing", 1]) {
    const { value } = await subscription.next();
    assert.equal(value.body, body);
    subscription.ack(value);
  }
  assert.equal(await conversation.expect(FrameType.ACK), 1);
});

test("what is redelivered and still waits is not there twice", async (t) => {
  const { client, conversation } = await connected(t);
  const subscription = await followed(client, conversation);
  conversation.deliverKept("room:1", 1, 2, 3);
  assert.deepEqual(await read(subscription, 1), [1]);
  conversation.redeliver("room:1", 1, 2, 3);
  await conversation.pong();
  assert.deepEqual(await read(subscription, 3), [2, 3, 1]);
  assert.equal(subscription.size, 0);
});

test("what was acknowledged while it came again is not handed out", async (t) => {
  const { client, conversation } = await connected(t);
  const subscription = await followed(client, conversation);
  conversation.deliverKept("room:1", 1);
  const { value: slow } = await subscription.next();
  conversation.redeliver("room:1", 1);
  conversation.deliverKept("room:1", 2);
  await conversation.pong();
  subscription.ack(slow);
  assert.deepEqual(await read(subscription, 1), [2]);
  conversation.redeliver("room:1", 1);
  assert.equal(await conversation.expect(FrameType.ACK), 1);
  await conversation.pong();
  assert.equal(subscription.size, 0);
});

test("what is refused while it waits to be handed out again is settled by itself", async (t) => {
  const { client, conversation } = await connected(t);
  const subscription = await followed(client, conversation);
  conversation.deliverKept("room:1", 1, 2);
  await read(subscription, 2);
  conversation.redeliver("room:1", 2);
  await conversation.pong();
  subscription.nack(2);
  assert.equal(await conversation.expect(FrameType.NACK), 2);
  subscription.ack((await subscription.next()).value);
  await conversation.pong(); // 1 is not decided about: an ACK of 2 would be taken for it, too
  subscription.ack(1);
  assert.equal(await conversation.expect(FrameType.ACK), 1);
  assert.equal(await conversation.expect(FrameType.ACK), 2);
});

test("what is remembered of single messages is bounded", async (t) => {
  let { fake, client, conversation } = await connected(t);
  const subscription = await followed(client, conversation, { cursor: 2000, head: 3000 });
  const asides = Array.from({ length: 1025 }, (_, n) => n + 1);
  conversation.setAside("room:1", ...asides);
  await read(subscription, asides.length);
  subscription.ack(1); // the oldest: forgotten, and may come once more
  subscription.ack(2);
  assert.equal(await conversation.expect(FrameType.ACK), 2);
  for (let seq = 2001; seq <= 2200; seq++) {
    conversation.deliverKept("room:1", seq);
    subscription.nack((await subscription.next()).value);
    assert.equal(await conversation.expect(FrameType.NACK), seq);
  }
  conversation.leave();
  conversation = await fake.nextWelcomed();
  await conversation.grant({ durable: true, epoch: "e1", cursor: 2000, head: 3000 });
  conversation.deliverKept("room:1", 2001, 2200); // the first is more than a window away
  assert.equal(await conversation.expect(FrameType.NACK), 2200);
});

test("acks leave before the client does", async (t) => {
  const { client, conversation } = await connected(t);
  const subscription = await followed(client, conversation);
  conversation.deliverKept("room:1", 1);
  subscription.ack((await subscription.next()).value);
  await client.close();
  assert.equal(await conversation.expect(FrameType.ACK), 1);
  await conversation.expectEnd();
});

test("acks leave before the UNSUBSCRIBE", async (t) => {
  const { client, conversation } = await connected(t);
  const subscription = await followed(client, conversation);
  conversation.deliverKept("room:1", 1);
  subscription.ack((await subscription.next()).value);
  subscription.close();
  assert.equal(await conversation.expect(FrameType.ACK), 1);
  const { request, topic } = await conversation.expect(FrameType.UNSUBSCRIBE);
  conversation.say(FrameType.UNSUBSCRIBED, { topic }, request);
  subscription.ack(1);
  await conversation.pong();
});

// After a lost connection

test("what is still here is not handed out twice", async (t) => {
  let { fake, client, conversation } = await connected(t);
  const subscription = await followed(client, conversation);
  conversation.deliverKept("room:1", 1, 2, 3);
  const { value: inHands } = await subscription.next();
  conversation.leave();
  conversation = await fake.nextWelcomed();
  const again = await conversation.grant({ durable: true, epoch: "e1", head: 4 });
  assert.deepEqual(again, { topic: "room:1", tags: "*", durable: true, epoch: "e1" });
  conversation.deliverKept("room:1", 1, 2, 3, 4);
  assert.deepEqual(await read(subscription, 3), [2, 3, 4]);
  subscription.ack(inHands);
  assert.equal(await conversation.expect(FrameType.ACK), 1);
});

test("decisions that were lost are said again as the messages come", async (t) => {
  let { fake, client, conversation } = await connected(t);
  const subscription = await followed(client, conversation);
  conversation.deliverKept("room:1", 1, 2, 3, 4);
  await read(subscription, 4);
  conversation.leave();
  await client.heard.state.take();
  subscription.ack(1);
  subscription.nack(2);
  subscription.ack(3);
  conversation = await fake.nextWelcomed();
  await conversation.grant({ durable: true, epoch: "e1", head: 4 });
  await conversation.pong(); // nothing before it has come
  for (const seq of [1, 2, 3, 4]) {
    conversation.deliverKept("room:1", seq);
    if (seq === 2) assert.equal(await conversation.expect(FrameType.NACK), 2);
    if (seq === 1 || seq === 3) while ((await conversation.expect(FrameType.ACK)) < seq);
  }
  subscription.ack(4);
  assert.equal(await conversation.expect(FrameType.ACK), 4);
});

test("what was refused, came again and was acknowledged is settled although the NACK was lost", async (t) => {
  let { fake, client, conversation } = await connected(t);
  const subscription = await followed(client, conversation);
  conversation.deliverKept("room:1", 1, 2, 3);
  await read(subscription, 3);
  subscription.ack(1);
  subscription.nack(2);
  subscription.nack(3);
  conversation.redeliver("room:1", 3); // the server has not heard the NACK, and never will
  await read(subscription, 1);
  conversation.leave();
  await client.heard.state.take();
  subscription.ack(3);
  conversation = await fake.nextWelcomed();
  await conversation.grant({ durable: true, epoch: "e1", cursor: 1, head: 3 });
  conversation.deliverKept("room:1", 3); // 2 is set aside
  assert.equal(await conversation.expect(FrameType.ACK), 3);
});

test("dead letters that are sent once more together are acknowledged one by one", async (t) => {
  const { conversation, client } = await connected(t);
  const subscription = await followed(client, conversation);
  conversation.deliverKept("room:1", 1, 2, 3);
  await read(subscription, 3);
  conversation.setAside("room:1", 1, 2, 3); // the cursor is past them: they were dead
  for (const _ of [1, 2, 3]) subscription.ack((await subscription.next()).value);
  const acks = [];
  while (acks.length < 3) acks.push(await conversation.expect(FrameType.ACK));
  assert.deepEqual(acks, [1, 2, 3]);
});

test("redelivered after a reconnect is handed out", async (t) => {
  let { fake, client, conversation } = await connected(t);
  const subscription = await followed(client, conversation);
  conversation.deliverKept("room:1", 1);
  assert.deepEqual(await read(subscription, 1), [1]);
  conversation.leave();
  conversation = await fake.nextWelcomed();
  await conversation.grant({ durable: true, epoch: "e1", head: 1 });
  conversation.redeliver("room:1", 1);
  assert.deepEqual(await read(subscription, 1), [1]);
});

for (const epoch of ["e2", "e1"])
  test(`a new numbering (epoch ${epoch}) is told and starts from nothing`, async (t) => {
    let { fake, client, conversation } = await connected(t);
    const subscription = await followed(client, conversation);
    conversation.deliverKept("room:1", 1, 2, 3, 4, 5, 6, 7, 8, 9);
    await read(subscription, 8); // 9 waits
    conversation.leave();
    conversation = await fake.nextWelcomed();
    // With the old epoch it is a copy of the store that was put back: its head tells.
    await conversation.grant({ durable: true, epoch, head: 3 });
    const { code, topic } = await client.heard.error.take();
    assert.deepEqual([code, topic, subscription.epoch], [410, "room:1", epoch]);
    conversation.deliverKept("room:1", 1, 2, 3);
    await conversation.pong();
    subscription.ack(8); // means nothing any more
    subscription.ack((await subscription.next()).value); // the 9 that waited: neither
    await conversation.pong();
    assert.deepEqual(await read(subscription, 2), [1, 2]);
    subscription.ack(2);
    assert.equal(await conversation.expect(FrameType.ACK), 2);
  });

// Behind a seq, without acknowledgements

test("behind a seq it resumes where it ended", async (t) => {
  let { fake, client, conversation } = await connected(t);
  const subscription = await subscribed(
    client,
    conversation,
    "room:1",
    { after: 3 },
    { cursor: 3, head: 5, epoch: "e1" },
  );
  conversation.deliverKept("room:1", 4, 5);
  assert.deepEqual(await read(subscription, 2), [4, 5]);
  assert.deepEqual([subscription.cursor, subscription.durable], [5, false]);
  conversation.leave();
  conversation = await fake.nextWelcomed();
  const again = await conversation.grant({ cursor: 5, head: 6, epoch: "e1" });
  assert.deepEqual(again, { topic: "room:1", tags: "*", after: 5, durable: false, epoch: "e1" });
  conversation.deliverKept("room:1", 6);
  assert.deepEqual(await read(subscription, 1), [6]);
});

test("behind a seq it is left while nobody reads it, and taken up where it was left", async (t) => {
  const { client, conversation } = await connected(t, { queueMessages: 4 });
  const said = { head: 9, epoch: "e1" };
  const subscription = await subscribed(client, conversation, "room:1", { after: 0 }, said);
  conversation.deliverKept("room:1", 1, 2, 3, 4, 5, 6);
  const { request, topic } = await conversation.expect(FrameType.UNSUBSCRIBE);
  conversation.deliverKept("room:1", 7); // was under way
  conversation.say(FrameType.UNSUBSCRIBED, { topic }, request);
  await conversation.pong();
  assert.equal(subscription.size, 4);
  assert.deepEqual(await read(subscription, 2), [1, 2]);
  assert.equal((await conversation.grant({ ...said, cursor: 4 })).after, 4);
  conversation.deliverKept("room:1", 5);
  assert.deepEqual(await read(subscription, 3), [3, 4, 5]);
});

test("what is left stays left over a reconnect, until it is read", async (t) => {
  let { fake, client, conversation } = await connected(t, { queueMessages: 2 });
  const said = { head: 9, epoch: "e1" };
  const subscription = await subscribed(client, conversation, "room:1", { after: 0 }, said);
  conversation.deliverKept("room:1", 1, 2, 3);
  await conversation.expect(FrameType.UNSUBSCRIBE);
  conversation.leave();
  conversation = await fake.nextWelcomed();
  await conversation.pong();
  assert.deepEqual(await read(subscription, 1), [1]);
  assert.equal((await conversation.grant({ ...said, cursor: 2 })).after, 2);
  conversation.deliverKept("room:1", 3);
  assert.deepEqual(await read(subscription, 2), [2, 3]);
});

// Unasked

test("what the server subscribes us to comes by joined(), also what came before anybody could ask", async (t) => {
  const fake = await fakeFor(t);
  const client = newClient(t, fake);
  const starting = client.start();
  const conversation = await fake.next();
  const { request } = await conversation.expect(FrameType.HELLO);
  conversation.write(
    wire.encodeFrame(FrameType.WELCOME, WELCOME, request),
    wire.encodeFrame(FrameType.SUBSCRIBED, { topic: "user:ann", durable: true, head: 1 }),
    wire.encodeMessage({
      topic: "user:ann",
      sender: "bob",
      body: Uint8Array.of(1),
      seq: 1,
      flags: Flag.DURABLE,
    }),
  );
  await starting;
  const joined = client.joined();
  const { value: inbox } = await joined.next();
  assert.deepEqual([inbox.topic, inbox.durable], ["user:ann", true]);
  inbox.ack((await inbox.next()).value);
  assert.equal(await conversation.expect(FrameType.ACK), 1);
  conversation.say(FrameType.SUBSCRIBED, { topic: "group:7", durable: true });
  assert.equal((await joined.next()).value.topic, "group:7");
});

test("what nobody listens to is left in the store, and taken up when somebody does", async (t) => {
  const { client, conversation } = await connected(t);
  conversation.say(FrameType.SUBSCRIBED, { topic: "group:7", durable: true });
  const { request, topic } = await conversation.expect(FrameType.UNSUBSCRIBE);
  assert.equal(topic, "group:7");
  conversation.say(FrameType.UNSUBSCRIBED, { topic }, request);
  await conversation.pong();
  const joined = client.joined();
  const asked = await conversation.grant({ durable: true });
  assert.deepEqual([asked.topic, asked.durable], ["group:7", true]);
  conversation.deliverKept("group:7", 1);
  assert.deepEqual(await read((await joined.next()).value, 1), [1]);
});

test("what was left and then subscribed to is not joined any more", async (t) => {
  const { client, conversation } = await connected(t);
  conversation.say(FrameType.SUBSCRIBED, { topic: "group:7", durable: true });
  const left = async () => {
    const { request, topic } = await conversation.expect(FrameType.UNSUBSCRIBE);
    conversation.say(FrameType.UNSUBSCRIBED, { topic }, request);
    await conversation.pong();
  };
  await left();
  const subscription = await subscribed(client, conversation, "group:7");
  subscription.close();
  await left();
  client.joined();
  await conversation.pong();
});

test("a joined subscription goes on over a reconnect, and ends with the membership", async (t) => {
  let { fake, client, conversation } = await connected(t);
  const joined = client.joined();
  for (const seq of [1, 2]) {
    conversation.say(FrameType.SUBSCRIBED, { topic: "group:7", durable: true, head: seq, epoch: "e1" });
    conversation.deliverKept("group:7", ...Array.from({ length: seq }, (_, n) => n + 1));
    if (seq === 1) {
      var { value: group } = await joined.next();
      assert.deepEqual(await read(group, 1), [1]);
      conversation.leave();
      conversation = await fake.nextWelcomed();
      await conversation.pong(); // it is the server who subscribes us
    }
  }
  assert.deepEqual(await read(group, 1), [2]);
  conversation.say(FrameType.UNSUBSCRIBED, { topic: "group:7", code: 403 });
  await assert.rejects(group.next(), { code: 403 });
  await client.close();
  assert.equal((await joined.next()).done, true);
});

test("a subscription that is asked for meanwhile is not begun by the one that is not", async (t) => {
  const { client, conversation } = await connected(t);
  const asking = client.subscribe("group:7", { durable: true });
  const { request } = await conversation.expect(FrameType.SUBSCRIBE);
  const said = { topic: "group:7", durable: true, missed: 2 };
  conversation.say(FrameType.SUBSCRIBED, said);
  conversation.say(FrameType.SUBSCRIBED, said, request);
  assert.equal((await asking).missed, 2);
});

test("a subscription takes over from what was joined", async (t) => {
  const { client, conversation } = await connected(t);
  const joined = client.joined();
  conversation.say(FrameType.SUBSCRIBED, { topic: "room:1", durable: true, epoch: "e1" });
  const { value: before } = await joined.next();
  const asking = client.subscribe("room:1", { durable: true });
  const { request } = await conversation.expect(FrameType.SUBSCRIBE);
  conversation.deliverKept("room:1", 1); // for the one before: it comes again
  conversation.say(FrameType.SUBSCRIBED, { topic: "room:1", durable: true, epoch: "e1", head: 1 }, request);
  conversation.deliverKept("room:1", 1);
  const subscription = await asking;
  subscription.ack((await subscription.next()).value);
  assert.equal(await conversation.expect(FrameType.ACK), 1);
  assert.deepEqual([subscription.size, (await before.next()).done], [0, true]);
});
