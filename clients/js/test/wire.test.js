/** The wire, byte for byte: what docs/protocol.md shows, and what this client says and refuses. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import * as msgpack from "@msgpack/msgpack";
import { CloseCode, ErrorCode, ImError, wire } from "../imserver.js";

const DOCS = readFileSync(new URL("../../../docs/protocol.md", import.meta.url), "utf8");
const GOLDEN = [...DOCS.matchAll(/^```golden\n(.*)\n([^`]*)```$/gm)];
const TITLE = /^([A-Z]+)((?: \w+=\w+)*)(?: (\{.*\}))?$/;
const FROM_CLIENT = ["HELLO", "SUBSCRIBE", "UNSUBSCRIBE", "CALL"];
const { FrameType, Flag } = wire;

const bytesOf = (dump) => Uint8Array.from(Buffer.from(dump.replaceAll(/#.*|\s/g, ""), "hex"));
const frames = (data) => [...wire.decodeFrames(data)];

function parseGolden([, title, dump]) {
  const [, type, words, json = "null"] = title.match(TITLE);
  const options = Object.fromEntries(
    words
      .trim()
      .split(" ")
      .filter(Boolean)
      .map((word) => word.split("=")),
  );
  // A number that is not exact here is text, as `message.id` is.
  const fields = JSON.parse(json.replaceAll(/"id":(\d{17,})/g, '"id":"$1"'));
  return { type, options, fields, data: bytesOf(dump) };
}

for (const golden of GOLDEN)
  test(`an example in the docs is what we read and write: ${golden[1].slice(0, 60)}`, () => {
    const { type, options, fields, data } = parseGolden(golden);
    const request = Number(options.request ?? 0);
    const codec = wire.CODECS.indexOf(options.codec ?? "bytes");
    const flags = Number(options.flags ?? 0);
    const [frame] = frames(data);
    assert.deepEqual(frame.data, data);
    assert.deepEqual(
      [frame.type, frame.flags, frame.codec, frame.request],
      [FrameType[type], flags, codec, request],
    );
    if (type === "MESSAGE") {
      const { time_ms: time = 0, body, tag, seq = 0, attempt = 0, ...names } = fields;
      const message = wire.decodeMessage(frame);
      const wanted = { ...names, tag, seq, attempt, time, flags };
      for (const [name, value] of Object.entries(wanted)) assert.equal(message[name], value, name);
      assert.equal(Buffer.from(message.bytes).toString(), body);
      assert.equal(message.codec, options.codec);
      assert.deepEqual(wire.encodeMessage({ ...wanted, body: Buffer.from(body), codec }), data);
    } else if (type === "RECEIPT") {
      const { time_ms: time, ...rest } = fields;
      assert.deepEqual(wire.decodeReceipt(frame), { ...rest, time });
    } else if (type === "ACK" || type === "NACK") {
      assert.deepEqual(wire.decodePosition(frame), fields);
      assert.deepEqual(wire.encodePosition(FrameType[type], fields.seq, fields.topic), data);
    } else if (fields === null) {
      assert.deepEqual(wire.encodeFrame(FrameType[type], undefined, request), data);
    } else if (options.codec === "json") {
      assert.deepEqual(wire.decodeBody(frame), fields);
      if (FROM_CLIENT.includes(type))
        assert.deepEqual(wire.encodeFrame(FrameType[type], fields, request), data);
    } else if (options.codec === "msgpack") {
      // Control bodies are JSON here; the example shows that the codec one passes in would fit.
      assert.deepEqual(msgpack.decode(data.subarray(8)), fields);
      assert.deepEqual(msgpack.encode(fields), data.subarray(8));
    } else {
      assert.equal(options.codec, "protobuf"); // which this client does not speak: it is told so
      assert.throws(() => wire.decodeBody(frame), { code: 4004 });
    }
  });

test("the docs show every frame type, numbered as here", () => {
  assert.deepEqual(
    new Set(GOLDEN.map((golden) => parseGolden(golden).type)),
    new Set(Object.keys(FrameType)),
  );
  const rows = [...DOCS.matchAll(/^\| (\d+) \| ([A-Z]+) \|/gm)];
  assert.deepEqual(Object.fromEntries(rows.map(([, number, name]) => [name, Number(number)])), FrameType);
});

test("the docs list the same codes, and which errors may be tried again", () => {
  const table = (anchor) =>
    Object.fromEntries(
      [...DOCS.matchAll(new RegExp(`^\\| <a id="${anchor}-(\\d+)"></a>\\d+ \\| (\\w+) \\|`, "gm"))].map(
        ([, code, name]) => [name.toUpperCase(), Number(code)],
      ),
    );
  assert.deepEqual(table("error"), ErrorCode);
  assert.deepEqual(table("close"), CloseCode);
});

test("numbers beyond 2^53 are refused, and ids of others are text", () => {
  const message = { topic: "t", sender: "ann", body: new Uint8Array() };
  for (const id of [-1, 1.5, 2 ** 53, NaN])
    assert.throws(() => wire.encodeMessage({ ...message, id }), { name: "ImError", code: 422 });
  for (const id of [0, 1, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1, "9007199254740992", "18446744073709551615"])
    assert.equal(wire.decodeMessage(frames(wire.encodeMessage({ ...message, id }))[0]).id, id);
  const [frame] = frames(wire.encodeMessage({ ...message, seq: "9007199254740992" }));
  assert.throws(() => wire.decodeMessage(frame), { name: "ImError", code: 4004 });
});

test("several frames in one message are read in their order", () => {
  const pings = [1, 2, 3].map((request) => wire.encodeFrame(FrameType.PING, undefined, request));
  assert.deepEqual(
    frames(new Uint8Array(Buffer.concat(pings))).map((frame) => frame.request),
    [1, 2, 3],
  );
});

test("what is no whole frame is refused, wherever it ends", () => {
  const whole = wire.encodeMessage({ topic: "t", sender: "ann", body: new Uint8Array(9) });
  for (let cut = 1; cut < whole.length; cut++)
    assert.throws(() => frames(whole.subarray(0, cut)), { code: 4004 }, `cut at ${cut}`);
  assert.throws(() => frames(Uint8Array.of(0, 0, 0, 3, 11, 0, 0)), { code: 4004 });
});

test("a MESSAGE whose lengths contradict each other, or with names that are no text, is refused", () => {
  const whole = wire.encodeMessage({ topic: "topic", sender: "ann", body: new Uint8Array(3) });
  for (const at of [32, 33, 34]) {
    const frame = whole.slice();
    frame[at] = 255;
    assert.throws(() => wire.decodeMessage(frames(frame)[0]), { code: 4004 });
  }
  whole[36] = 0xff;
  assert.throws(() => wire.decodeMessage(frames(whole)[0]), { code: 4004 });
});

test("a body is what its codec says, and bytes where it is not", () => {
  const read = (body, codec, codecs) =>
    wire.decodeMessage(frames(wire.encodeMessage({ topic: "t", sender: "a", body, codec }))[0], codecs).body;
  const json = new TextEncoder().encode('{"a":[1,null,"é"]}');
  assert.deepEqual(read(json, 1), { a: [1, null, "é"] });
  assert.deepEqual(read(json, 0), json);
  assert.deepEqual(read(json, 3), json);
  assert.deepEqual(read(json.subarray(1), 1), json.subarray(1));
  assert.deepEqual(read(Uint8Array.of(0xff), 1), Uint8Array.of(0xff));
  const packed = msgpack.encode({ a: 1, b: Uint8Array.of(1) });
  assert.deepEqual(read(packed, 2), packed);
  assert.deepEqual(read(packed, 2, { msgpack }), { a: 1, b: Uint8Array.of(1) });
});

test("an error says its number, and what it means", () => {
  const error = new ImError(429);
  assert.equal(String(error), "ImError 429: too many requests");
  assert.deepEqual([error.retryAfterMs, error.topic, error.id], [0, "", 0]);
  assert.ok(error instanceof Error);
  assert.equal(new ImError(1234, "no cats").message, "no cats");
  assert.equal(Flag.HISTORY, 16);
});
