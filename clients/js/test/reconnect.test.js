/** The client and the end of its connections: when it comes back, where, and when it stops. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { WebSocket } from "ws";
import { Client, connect, wire } from "../imserver.js";
import { connected, fakeFor, FrameType, HASTY, newClient, read, subscribed } from "./fake.js";

// Login

test("connect says who we are and resolves with a client that is open", async (t) => {
  const fake = await fakeFor(t);
  const connecting = connect(fake.url, { user: "ann", device: "tab-1", name: "test/1", WebSocket });
  const conversation = await fake.next();
  const { request, ...hello } = await conversation.welcome();
  assert.deepEqual(hello, { version: 1, user: "ann", device: "tab-1", client: "test/1" });
  assert.equal(conversation.socket.protocol, "im.v1");
  const client = await connecting;
  assert.deepEqual([client.user, client.session, client.state], ["ann", "s1", "open"]);
  assert.equal(client.welcome.limits.window, 64);
  await client.close();
  assert.equal(client.state, "closed");
});

test("a refused login stops the client and says why", async (t) => {
  const fake = await fakeFor(t);
  const client = newClient(t, fake, { token: "old" });
  const starting = client.start();
  const conversation = await fake.next();
  const { request } = await conversation.expect(FrameType.HELLO);
  conversation.say(FrameType.ERROR, { code: 401, message: "the token has expired" }, request);
  conversation.leave(4001);
  await assert.rejects(starting, { name: "ImError", code: 4001, message: "the token has expired" });
  await assert.rejects(client.publish("room:1", "x"), { code: 4001 });
  assert.equal(client.state, "closed");
});

test("a token is asked for before every connection", async (t) => {
  const fake = await fakeFor(t);
  const tokens = ["one", "two"];
  const client = newClient(t, fake, { user: undefined, token: async () => tokens.shift() });
  const starting = client.start();
  let conversation = await fake.next();
  assert.equal((await conversation.welcome()).token, "one");
  await starting;
  conversation.leave(4112);
  conversation = await fake.next();
  assert.equal((await conversation.welcome()).token, "two");
});

test("a token that cannot be had is tried for again, and then told", async (t) => {
  const client = newClient(t, await fakeFor(t), {
    connectTimeoutMs: 50,
    token: () => Promise.reject(new Error("the token service is down")),
  });
  await assert.rejects(client.start(), { code: 0, message: /token service is down/ });
});

test("nobody there is an error without a code", async () => {
  const client = new Client("ws://127.0.0.1:1/ws", { user: "ann", WebSocket, connectTimeoutMs: 50 });
  await assert.rejects(client.start(), { name: "ImError", code: 0, message: /ECONNREFUSED/ });
  assert.equal(client.state, "closed");
});

test("a server that says nothing is left in time", async (t) => {
  const fake = await fakeFor(t);
  const client = newClient(t, fake, { connectTimeoutMs: 30 });
  await assert.rejects(client.start(), { name: "ImError" });
  const conversation = await fake.next();
  await conversation.expect(FrameType.HELLO);
  await conversation.expectEnd();
});

for (const [what, say] of [
  ["text", (socket) => socket.send("hello")],
  ["what are no frames", (socket) => socket.send(Buffer.from("SSH-2.0-OpenSSH_9.2\r\n"))],
  ["a WELCOME without its numbers", (socket) => socket.send(wire.encodeFrame(FrameType.WELCOME, {}, 1))],
])
  test(`a server that sends ${what} stops the client`, async (t) => {
    const fake = await fakeFor(t);
    const starting = newClient(t, fake).start();
    const conversation = await fake.next();
    await conversation.expect(FrameType.HELLO);
    say(conversation.socket);
    await assert.rejects(starting, { code: 4004 });
  });

test("a WebSocket that may not be made ends the client, as ws: in a page of https: does", async (t) => {
  class Insecure {
    constructor() {
      throw new Error("SecurityError");
    }
  }
  const client = newClient(t, await fakeFor(t), { WebSocket: Insecure });
  await assert.rejects(client.start(), { code: 0, message: /SecurityError/ });
  assert.equal(client.state, "closed");
});

test("bad options are refused at once", () => {
  const options = { user: "ann", WebSocket };
  assert.throws(() => new Client("not an address", options), TypeError);
  assert.throws(() => new Client("ws://a/ws", { ...options, device: "my tab" }), { code: 422 });
  assert.throws(() => new Client("ws://a/ws", { ...options, codec: "msgpack" }), /msgpack/);
  assert.throws(() => new Client("ws://a/ws", { ...options, WebSocket: null }), /WebSocket/);
});

// Close codes

for (const code of [4000, 4001, 4009, 4010, 4099])
  test(`${code} stops and tells everybody`, async (t) => {
    const { client, conversation } = await connected(t);
    const subscription = await subscribed(client, conversation);
    const calling = client.call("slow");
    await conversation.expect(FrameType.CALL);
    conversation.deliver("room:1", "last");
    conversation.leave(code, { reason: "because" });
    await assert.rejects(calling, { code, message: "because" });
    assert.deepEqual(await read(subscription, 1), ["last"]);
    for (const waiting of [subscription.next(), client.publish("t", "x"), client.call("x")])
      await assert.rejects(waiting, { name: "ImError", code, message: "because" });
    assert.equal(client.state, "closed");
  });

for (const code of [0, 1001, 4100, 4109, 4199, 4200, 4201, 4299, 4300, 4399, 4400])
  test(`${code} reconnects and subscribes again`, async (t) => {
    const { fake, client, conversation: first } = await connected(t);
    const subscription = await subscribed(client, first, "room:1", { tags: " a || b" });
    const second = await subscribed(client, first, "room:2");
    first.leave(code, { retry_after_ms: 1 });
    const conversation = await fake.nextWelcomed();
    assert.deepEqual(await conversation.grant(), { topic: "room:1", tags: "a||b" });
    assert.equal((await conversation.grant()).topic, "room:2");
    conversation.deliver("room:1", "again");
    conversation.deliver("room:2", "here too");
    assert.deepEqual(await read(subscription, 1), ["again"]);
    assert.deepEqual(await read(second, 1), ["here too"]);
    const states = [];
    while (states.at(-1)?.state !== "open") states.push(await client.heard.state.take());
    const { reason, delayMs } = states.find((told) => told.reason);
    assert.deepEqual([reason.code, delayMs >= 0], [code, true]);
  });

test("a close code without GOAWAY counts, too", async (t) => {
  const { client, conversation } = await connected(t);
  const subscription = await subscribed(client, conversation);
  conversation.socket.close(4010, "kicked");
  await assert.rejects(subscription.next(), { code: 4010, message: "kicked" });
});

test("43xx goes where it is sent and home again", async (t) => {
  const { fake, conversation } = await connected(t);
  const other = await fakeFor(t);
  conversation.leave(4301, { alternatives: ["not:an:address", "", "a/b:1", other.address] });
  (await other.nextWelcomed()).leave();
  await fake.nextWelcomed();
});

test("43xx at the door is followed", async (t) => {
  const [fake, other] = [await fakeFor(t), await fakeFor(t)];
  const starting = newClient(t, fake).start();
  (await fake.next()).leave(4301, { alternatives: [other.address] });
  await other.nextWelcomed();
  await starting;
});

test("it keeps trying while the server is away", async (t) => {
  let { fake, client, conversation } = await connected(t);
  for (let n = 0; n < 5; n++) {
    conversation.leave();
    conversation = await fake.next();
  }
  await conversation.welcome();
  await client.publish("room:1", "back");
  assert.equal((await conversation.expect(FrameType.MESSAGE)).body, "back");
});

test("the wait is random up to an exponential bound, on top of what the server asked for", async (t) => {
  t.mock.method(Math, "random", () => 1);
  const reconnect = { base_ms: 1, factor: 2, max_ms: 5 };
  let { fake, client, conversation } = await connected(t, { welcome: { reconnect } });
  const delay = async () => {
    for (;;) {
      const { delayMs } = await client.heard.state.take();
      if (delayMs !== null) return delayMs;
    }
  };
  const waits = [];
  for (const [code, retry_after_ms] of [[0], [0], [4153, 20], [0], [4201, 20], [4100, 0]]) {
    conversation.leave(code, { retry_after_ms });
    waits.push(await delay());
    conversation = await fake.nextWelcomed({ reconnect });
  }
  assert.deepEqual(waits, [1, 2, 20 + 4, 5, 20 + 5, 5]);
});

test("only a connection that lasted starts the count anew", async (t) => {
  t.mock.method(Math, "random", () => 1);
  const lasting = { heartbeat: { interval_ms: 10, timeout_ms: 10, max_missed: 1000 } };
  let { fake, client, conversation } = await connected(t);
  const waits = [];
  for (const welcome of [{}, {}, lasting, lasting]) {
    conversation.leave();
    let state = await client.heard.state.take();
    while (state.delayMs === null) state = await client.heard.state.take();
    waits.push(state.delayMs);
    conversation = await fake.nextWelcomed(welcome);
    if (welcome !== lasting) continue;
    await conversation.expect(FrameType.PING);
    conversation.write(wire.encodeFrame(FrameType.PONG));
    await conversation.expect(FrameType.PING); // so it has lived for its interval
  }
  assert.deepEqual(waits, [1, 2, 4, 1]);
});

test("42xx names its own window for the first attempt", async (t) => {
  t.mock.method(Math, "random", () => 1);
  const { client, conversation } = await connected(t);
  conversation.leave(4201, { retry_after_ms: 20 });
  let state = await client.heard.state.take();
  while (state.delayMs === null) state = await client.heard.state.take();
  assert.deepEqual([state.delayMs, state.reason.code, state.reason.retryAfterMs], [20, 4201, 20]);
});

test("a browser that has a network again does not wait", async (t) => {
  const page = new EventTarget();
  for (const name of ["addEventListener", "removeEventListener"]) {
    globalThis[name] = page[name].bind(page);
    t.after(() => delete globalThis[name]);
  }
  const reconnect = { base_ms: 1e6, factor: 2, max_ms: 1e6 };
  const { fake, client, conversation } = await connected(t, { welcome: { reconnect } });
  conversation.leave();
  while ((await client.heard.state.take()).delayMs === null);
  await new Promise(setImmediate);
  page.dispatchEvent(new Event("online"));
  await fake.nextWelcomed();
});

test("GOAWAY lets a waiting call have its answer", async (t) => {
  const { fake, client, conversation } = await connected(t);
  const calling = client.call("slow");
  const { request } = await conversation.expect(FrameType.CALL);
  conversation.say(FrameType.GOAWAY, { code: 4201 });
  await conversation.pong(); // so the GOAWAY has been read
  assert.equal(client.state, "connecting");
  const publishing = client.publish("room:1", "on the next one");
  conversation.say(FrameType.RESULT, { result: [1, 2] }, request);
  assert.deepEqual(await calling, [1, 2]);
  await conversation.expectEnd();
  const next = await fake.nextWelcomed();
  assert.equal((await next.expect(FrameType.MESSAGE)).body, "on the next one");
  assert.equal(await publishing, null);
});

// Heartbeats

test("a client that has nothing to say sends PING and answers PING", async (t) => {
  const { conversation } = await connected(t, { welcome: { heartbeat: HASTY } });
  for (let n = 0; n < 3; n++) {
    await conversation.expect(FrameType.PING);
    conversation.write(wire.encodeFrame(FrameType.PONG));
  }
  conversation.write(wire.encodeFrame(FrameType.PING, undefined, 7));
  let frame = await conversation.read();
  while (frame.type === FrameType.PING) frame = await conversation.read();
  assert.deepEqual([frame.type, frame.request], [FrameType.PONG, 7]);
});

test("a server that is silent is asked, taken for dead, and left", async (t) => {
  const { fake, client, conversation } = await connected(t, { welcome: { heartbeat: HASTY } });
  let pings = 0;
  for (let frame; (frame = await conversation.read()); pings++) assert.equal(frame.type, FrameType.PING);
  assert.equal(pings, HASTY.max_missed);
  await fake.nextWelcomed();
  assert.equal((await client.heard.state.take()).state, "connecting");
  assert.equal((await client.heard.state.take()).reason.code, 4108);
});

// What is unknown

test("frames of a newer server are no reason to leave", async (t) => {
  const { conversation } = await connected(t);
  conversation.write(wire.encodeFrame(99, { news: true }, 5));
  await conversation.pong();
});

test("what nobody subscribed to is an event, and so are errors that no call waits for", async (t) => {
  const { client, conversation } = await connected(t);
  conversation.deliver("$system", "maintenance at noon");
  assert.equal((await client.heard.message.take()).body, "maintenance at noon");
  conversation.say(FrameType.ERROR, { code: 429, id: 7, topic: "room:1", retry_after_ms: 250 });
  const { code, id, topic, retryAfterMs } = await client.heard.error.take();
  assert.deepEqual([code, id, topic, retryAfterMs], [429, 7, "room:1", 250]);
});

// Calls

test("a call is answered, refused, or 408", async (t) => {
  const { client, conversation } = await connected(t);
  const calls = [client.call("a", { n: 1 }), client.call("b"), client.call("c", null, { timeoutMs: 30 })];
  const asked = [];
  while (asked.length < 3) asked.push(await conversation.expect(FrameType.CALL));
  assert.deepEqual(
    asked.map((call) => [call.method, call.params]),
    [
      ["a", { n: 1 }],
      ["b", null],
      ["c", null],
    ],
  );
  conversation.say(FrameType.ERROR, { code: 1234, message: "no cats", retry_after_ms: 5 }, asked[1].request);
  conversation.say(FrameType.RESULT, {}, asked[0].request);
  assert.equal(await calls[0], null);
  await assert.rejects(calls[1], { name: "ImError", code: 1234, message: "no cats", retryAfterMs: 5 });
  await assert.rejects(calls[2], { code: 408 });
  conversation.say(FrameType.ERROR, { code: 404 }, asked[2].request); // late: nobody's any more
  conversation.say(FrameType.ERROR, { code: 429 });
  assert.equal((await client.heard.error.take()).code, 429);
});

test("half of the request numbers may be in use, and no more", async (t) => {
  const { client, conversation } = await connected(t);
  const calls = Array.from({ length: 1 << 15 }, () => client.call("x"));
  await Promise.race([Promise.allSettled(calls), new Promise(setImmediate)]);
  await assert.rejects(client.call("one too many"), { code: 429 });
  const numbers = new Set();
  while (numbers.size < calls.length) numbers.add((await conversation.expect(FrameType.CALL)).request);
  assert.ok(!numbers.has(0));
  conversation.leave(4010);
  for (const { reason } of await Promise.allSettled(calls)) assert.equal(reason.code, 4010);
});

test("calls wait for a connection, so many and so long", async (t) => {
  const { client, conversation } = await connected(t, {
    welcome: { reconnect: { base_ms: 1e6, factor: 2, max_ms: 1e6 } },
  });
  conversation.leave();
  await client.heard.state.take();
  const waiting = Array.from({ length: 1024 }, () => client.call("x", null, { timeoutMs: 50 }));
  await assert.rejects(client.call("one too many"), { code: 429 });
  for (const result of await Promise.allSettled(waiting)) assert.equal(result.reason.code, 408);
});

test("a call whose connection ends is 408: it may have been done", async (t) => {
  const { client, conversation } = await connected(t);
  const calling = client.call("slow");
  await conversation.expect(FrameType.CALL);
  conversation.leave();
  await assert.rejects(calling, { code: 408, message: /before the answer/ });
});
