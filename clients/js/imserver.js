/**
 * The imserver client for browsers and Node: publish, subscribe, call, and stay connected.
 *
 *     import { connect } from "./imserver.js";
 *     const client = await connect("ws://127.0.0.1:7400/ws", { user: "ann" });
 *     const receipt = await client.publish("room:lobby", { text: "hi" }, { durable: true });
 *     for await (const message of await client.subscribe("room:lobby")) console.log(message.body);
 *
 * A lost connection is made again by itself, at the times and places that the server advertised,
 * and subscriptions are renewed. Messages of live topics that pass in between are not seen;
 * durable ones are, and durable publishes are repeated until they have their receipts.
 *
 * The frames are those of docs/protocol.md over a WebSocket, the behaviour that of the Python
 * client (imserver/client*.py), with one difference: a WebSocket cannot be told to stop reading.
 *
 *   J1  every wait is bounded: by a timeout of its caller or by the heartbeat.
 *   J2  every queue is bounded, and what does not fit is refused or reported with a number.
 *   J3  of durable topics nothing is lost: what came twice is handed out once, and nothing is
 *       acknowledged that was not handed out.
 *
 * In this file: errors, names, frames (`wire`), a place in a topic (Place), what waits to be read
 * (Reader, Subscription), what waits for a receipt (Publishes), one connection (Link), where the
 * next one goes and when (Itinerary), and the whole of it (Client).
 */

const SUBPROTOCOL = "im.v1";
const SOFTWARE = "imserver-js/0.1.0";

// Errors

/** Why one request was refused. The numbers are those of docs/protocol.md, and API. */
export const ErrorCode = Object.freeze({
  BAD_FRAME: 400,
  UNAUTHORIZED: 401,
  FORBIDDEN: 403,
  NOT_FOUND: 404,
  METHOD_NOT_ALLOWED: 405,
  TIMEOUT: 408,
  CONFLICT: 409,
  LOST: 410,
  TOO_LARGE: 413,
  CODEC_UNAVAILABLE: 415,
  BAD_BODY: 422,
  TOO_MANY_REQUESTS: 429,
  TOO_MANY_SUBSCRIPTIONS: 442,
  INTERNAL: 500,
  OVERLOADED: 503,
  NOT_DURABLE: 507,
});

/** Why a connection was ended. */
export const CloseCode = Object.freeze({
  UNAUTHORIZED: 4001,
  FORBIDDEN: 4003,
  BAD_PROTOCOL: 4004,
  VERSION_UNSUPPORTED: 4005,
  REPLACED: 4009,
  KICKED: 4010,
  FRAME_TOO_LARGE: 4013,
  INTERNAL: 4100,
  HEARTBEAT_LOST: 4108,
  SLOW_CONSUMER: 4109,
  TOKEN_EXPIRED: 4112,
  TOO_MANY_CONNECTIONS: 4129,
  OVERLOADED: 4153,
  HANDSHAKE_TIMEOUT: 4160,
  RESTART: 4201,
  REBALANCE: 4202,
  MOVED: 4301,
});

const NAMES = new Map([
  [0, "the connection was lost"],
  ...[ErrorCode, CloseCode].flatMap((table) =>
    Object.entries(table).map(([name, code]) => [code, name.toLowerCase().replaceAll("_", " ")]),
  ),
]);

/** The same request may succeed later, with nothing changed. */
const RETRY_LATER = new Set([
  ErrorCode.TIMEOUT,
  ErrorCode.TOO_MANY_REQUESTS,
  ErrorCode.INTERNAL,
  ErrorCode.OVERLOADED,
]);

/** A request was refused, or the connection ended: then `code` is a close code, 0 without one. */
export class ImError extends Error {
  constructor(code, message = "", { retryAfterMs = 0, topic = "", id = 0, alternatives = [] } = {}) {
    super(message || NAMES.get(code) || "no further explanation");
    this.name = "ImError";
    this.code = code;
    this.retryAfterMs = retryAfterMs;
    this.topic = topic;
    this.id = id;
    this.alternatives = alternatives;
  }

  toString() {
    return `${this.name} ${this.code}: ${this.message}`;
  }
}

/** What a close code asks of the client: by range, so that it obeys codes younger than itself. */
function actionOf(code) {
  if (code >= 4000 && code < 4100) return "stop";
  if (code >= 4200 && code < 4300) return "reconnect";
  if (code >= 4300 && code < 4400) return "move";
  return "back off";
}

const fromServer = (text) => new ImError(CloseCode.BAD_PROTOCOL, `from the server: ${text}`);

// Names

const toBytes = new TextEncoder();
const toText = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const UNFIT = /[\p{Cc}\p{Surrogate}]/u; // control characters, and halves of characters
const UNFIT_TAG = /[\p{Cc}\p{Surrogate} |*]/u;

function refuse(text) {
  throw new ImError(ErrorCode.BAD_BODY, text);
}

function checkText(text, what, least, most) {
  if (typeof text !== "string") refuse(`${what} is text`);
  const { length } = toBytes.encode(text);
  if (length < least || length > most) refuse(`${what} is ${least} to ${most} bytes long`);
  return text;
}

function checkTopic(topic) {
  if (UNFIT.test(checkText(topic, "a topic", 1, 255))) refuse("a topic has no control characters");
  return topic;
}

function checkTag(tag) {
  if (UNFIT_TAG.test(checkText(tag, "a tag", 0, 64)))
    refuse('a tag has no control characters, spaces, "|" or "*"');
  if (tag.startsWith("$"))
    throw new ImError(ErrorCode.FORBIDDEN, 'tags that begin with "$" are the server\'s');
  return tag;
}

function checkTags(expression) {
  const tags = checkText(expression, "tags", 1, 1024)
    .split("||")
    .map((tag) => tag.replace(/^ +| +$/g, ""));
  if (tags.length === 1 && tags[0] === "*") return "*";
  if (tags.length > 16) refuse("at most 16 tags in one expression");
  for (const tag of tags)
    if (UNFIT_TAG.test(checkText(tag, "a tag in tags", 1, 64))) refuse('tags are "*" or tags joined by "||"');
  return tags.join("||");
}

function checkIdentifier(identifier) {
  if (!/^[A-Za-z0-9_.@-]{1,64}$/.test(identifier)) refuse("users and devices are [A-Za-z0-9_.@-]{1,64}");
  return identifier;
}

// Frames

const VERSION = 1;
const HEAD_BYTES = 8;
const MESSAGE_BYTES = 36; // the head and the fixed part of a MESSAGE
const FLAGS_AT = 5;

const FrameType = Object.freeze({
  HELLO: 1,
  WELCOME: 2,
  SUBSCRIBE: 3,
  SUBSCRIBED: 4,
  UNSUBSCRIBE: 5,
  UNSUBSCRIBED: 6,
  MESSAGE: 7,
  RECEIPT: 8,
  ACK: 9,
  NACK: 10,
  PING: 11,
  PONG: 12,
  CALL: 13,
  RESULT: 14,
  ERROR: 15,
  GOAWAY: 16,
});

const Flag = Object.freeze({ DURABLE: 1, RETRY: 2, REDELIVERED: 4, NO_ECHO: 8, HISTORY: 16 });
const FLAGS = 0x3f;
const CODEC_SHIFT = 6;
const CODECS = ["bytes", "json", "msgpack", "protobuf"];
const CODEC_JSON = 1;

/** A frame of `bytes` with its head written, and a view of it. */
function newFrame(bytes, type, flags, request) {
  if (bytes > 0xffffff) throw new ImError(ErrorCode.TOO_LARGE, `a frame of ${bytes} bytes`);
  const frame = new Uint8Array(bytes);
  const view = new DataView(frame.buffer);
  view.setUint32(0, bytes - 4);
  view.setUint8(4, type);
  view.setUint8(FLAGS_AT, flags);
  view.setUint16(6, request);
  return [frame, view];
}

/** A whole number as u64; beyond 2^53 only as text, which is how `readId` shows it. */
function putU64(view, at, value) {
  if (typeof value === "string") {
    view.setBigUint64(at, BigInt(value));
    return;
  }
  if (!Number.isSafeInteger(value) || value < 0)
    throw new ImError(ErrorCode.BAD_BODY, `not a whole number below 2^53: ${value}`);
  view.setUint32(at, Math.floor(value / 2 ** 32));
  view.setUint32(at + 4, value % 2 ** 32);
}

/** A seq or a time: the server counts from 1 and in ms, and 2^53 of either do not come. */
function readU64(view, at) {
  const value = view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4);
  if (!Number.isSafeInteger(value)) throw fromServer("a number beyond 2^53");
  return value;
}

/** The number that another client gave its message: text beyond 2^53, as in a page of history. */
function readId(view, at) {
  const value = view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4);
  return Number.isSafeInteger(value) ? value : view.getBigUint64(at).toString();
}

/** A control frame, in JSON; `body` undefined for PING and PONG, which have none. */
function encodeFrame(type, body = undefined, request = 0) {
  if (body === undefined) return newFrame(HEAD_BYTES, type, 0, request)[0];
  const data = toBytes.encode(JSON.stringify(body));
  const [frame] = newFrame(HEAD_BYTES + data.length, type, CODEC_JSON << CODEC_SHIFT, request);
  frame.set(data, HEAD_BYTES);
  return frame;
}

/** A MESSAGE; `body` are bytes, and `codec` says what they hold. */
function encodeMessage({
  topic,
  tag = "",
  sender,
  body,
  id = 0,
  flags = 0,
  codec = 0,
  seq = 0,
  time = 0,
  attempt = 0,
}) {
  const parts = [topic, tag, sender].map((text) => toBytes.encode(text));
  parts.push(body);
  const bytes = parts.reduce((sum, part) => sum + part.length, MESSAGE_BYTES);
  const [frame, view] = newFrame(bytes, FrameType.MESSAGE, flags | (codec << CODEC_SHIFT), 0);
  putU64(view, 8, seq);
  putU64(view, 16, time);
  putU64(view, 24, id);
  for (const [n, part] of parts.slice(0, 3).entries()) view.setUint8(32 + n, part.length);
  view.setUint8(35, attempt);
  let at = MESSAGE_BYTES;
  for (const part of parts) {
    frame.set(part, at);
    at += part.length;
  }
  return frame;
}

/** An ACK or a NACK. */
function encodePosition(type, seq, topic) {
  const name = toBytes.encode(topic);
  const [frame, view] = newFrame(HEAD_BYTES + 8 + name.length, type, 0, 0);
  putU64(view, HEAD_BYTES, seq);
  frame.set(name, HEAD_BYTES + 8);
  return frame;
}

/** The frames in a binary message of the server: whole ones, one after the other. */
function* decodeFrames(data) {
  for (let at = 0; at < data.length;) {
    const view = new DataView(data.buffer, data.byteOffset + at, data.length - at);
    const bytes = view.byteLength < HEAD_BYTES ? 0 : view.getUint32(0) + 4;
    if (bytes < HEAD_BYTES || bytes > view.byteLength) throw fromServer("what is no frame");
    yield decodeFrame(data.subarray(at, at + bytes));
    at += bytes;
  }
}

function decodeFrame(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const [type, flags, request] = [view.getUint8(4), view.getUint8(FLAGS_AT), view.getUint16(6)];
  return { type, flags: flags & FLAGS, codec: flags >> CODEC_SHIFT, request, data, view };
}

/** The map in a control frame. */
function decodeBody({ type, codec, data }) {
  let body;
  try {
    body = codec === CODEC_JSON && JSON.parse(toText.decode(data.subarray(HEAD_BYTES)));
  } catch {
    body = null;
  }
  if (typeof body !== "object" || body === null) throw fromServer(`a frame of type ${type} without a map`);
  return body;
}

function decodeReceipt({ data, view }) {
  if (data.length !== HEAD_BYTES + 24) throw fromServer("a RECEIPT that is none");
  return { id: readU64(view, 8), seq: readU64(view, 16), time: readU64(view, 24) };
}

function decodePosition({ data, view }) {
  if (data.length <= HEAD_BYTES + 8) throw fromServer("an ACK or a NACK that is none");
  return { seq: readU64(view, 8), topic: toText.decode(data.subarray(16)) };
}

function decodeMessage({ flags, codec, data, view }, codecs = { json: JSON_CODEC }) {
  if (data.length < MESSAGE_BYTES) throw fromServer("a MESSAGE that is none");
  const topicAt = MESSAGE_BYTES;
  const tagAt = topicAt + view.getUint8(32);
  const senderAt = tagAt + view.getUint8(33);
  const bodyAt = senderAt + view.getUint8(34);
  if (bodyAt > data.length) throw fromServer("a MESSAGE whose lengths contradict each other");
  let names;
  try {
    names = [
      [topicAt, tagAt],
      [tagAt, senderAt],
      [senderAt, bodyAt],
    ].map(([from, to]) => toText.decode(data.subarray(from, to)));
  } catch {
    throw fromServer("a MESSAGE with names that are not UTF-8");
  }
  const message = new Message(data.subarray(bodyAt), codec, codecs);
  [message.topic, message.tag, message.sender] = names;
  message.id = readId(view, 24);
  message.seq = readU64(view, 8);
  message.time = readU64(view, 16);
  message.flags = flags;
  message.attempt = view.getUint8(35);
  return message;
}

/** One message, as it was delivered. */
class Message {
  #codecs;
  #value;
  #isDecoded = false;

  constructor(bytes, codec, codecs) {
    this.topic = this.tag = this.sender = "";
    this.id = this.seq = this.time = this.flags = this.attempt = 0;
    this.bytes = bytes;
    this.codec = CODECS[codec];
    this.#codecs = codecs;
  }

  /** Decoded; the bytes themselves where there is no codec for them, or they are not what it
   * says: a body that another user garbled must not throw in everybody's loop. */
  get body() {
    if (!this.#isDecoded) {
      this.#isDecoded = true;
      try {
        const codec = this.#codecs[this.codec];
        this.#value = codec ? codec.decode(this.bytes) : this.bytes;
      } catch {
        this.#value = this.bytes;
      }
    }
    return this.#value;
  }

  get durable() {
    return (this.flags & Flag.DURABLE) !== 0;
  }

  get redelivered() {
    return (this.flags & Flag.REDELIVERED) !== 0;
  }
}

const JSON_CODEC = {
  encode(value) {
    const text = JSON.stringify(value);
    if (text === undefined) throw new TypeError("not a value that JSON can carry");
    return toBytes.encode(text);
  },
  decode: (bytes) => JSON.parse(toText.decode(bytes)),
};

function asBytes(body) {
  if (body instanceof ArrayBuffer) return new Uint8Array(body);
  return ArrayBuffer.isView(body) ? new Uint8Array(body.buffer, body.byteOffset, body.byteLength) : null;
}

/** The wire itself, for tests and for those who need a frame in their hands. */
export const wire = Object.freeze({
  FrameType,
  Flag,
  CODECS,
  encodeFrame,
  encodeMessage,
  encodePosition,
  decodeFrames,
  decodeBody,
  decodeMessage,
  decodePosition,
  decodeReceipt,
});

// Waiting

/** Runs a task after this turn of the event loop. Not a timer: a tab in the background runs those
 * once a minute, and an acknowledgement may not wait so long. */
const soon =
  globalThis.setImmediate ??
  (() => {
    const { port1, port2 } = new MessageChannel();
    const tasks = [];
    port1.onmessage = () => tasks.shift()();
    return (task) => {
      tasks.push(task);
      port2.postMessage(null);
    };
  })();

const later = (task, ms) => setTimeout(task, Math.min(ms, 2 ** 31 - 1));
const between = (low, high) => low + Math.random() * (high - low);

function deferred() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  made.promise.catch(() => {}); // perhaps nobody waits for it
  return made;
}

/** Values in their order: for await. Ends after `end()`, by throwing when it was with an error. */
class Queue {
  items = [];
  isEnded = false;
  #error = null;
  #news = deferred();

  push(item) {
    this.items.push(item);
    this.#wake();
  }

  end(error) {
    if (this.isEnded) return;
    this.isEnded = true;
    this.#error = error;
    this.#wake();
  }

  async next(take = (item) => item) {
    for (;;) {
      while (this.items.length) {
        const value = take(this.items.shift());
        if (value !== undefined) return { value, done: false };
      }
      if (this.#error) throw this.#error;
      if (this.isEnded) return { value: undefined, done: true };
      await this.#news.promise;
    }
  }

  #wake() {
    this.#news.resolve();
    this.#news = deferred();
  }
}

// A place in a topic

/** Messages that were set aside and are undecided. Of more the oldest may come once more. */
const ASIDES_MAX = 1024;

/**
 * A subscription's place in its topic: what came, what was handed out, what was decided, across
 * all its connections. imserver/client_cursor.py tells why each step is as it is.
 *
 *   K1  nothing is acknowledged that was not handed out and sent on this very connection.
 *   K2  an ACK leaves after the NACKs of all messages that it passes.
 *   K3  what is remembered of single messages is bounded.
 */
class Place {
  epoch;
  missed = 0;
  acked = 0; // by the application
  seen = 0; // the newest that was taken
  handed = 0; // the newest that was handed out
  #after;
  #hasBegun = false;
  #send = null; // on the present connection
  #window = 0;
  #sent = 0; // the newest on this connection
  #unsettled = new Set(); // what was sent on this connection and has neither ACK nor NACK, in order
  #nacked = new Set(); // what was beyond `acked` when it was said
  #asides = new Map(); // set aside and in the application's hands: whether acknowledged since
  #waiting = new Map(); // what waits to be handed out: whether it is set aside
  #apart = new Set(); // the server's cursor is past these, and it has said so
  #queued = 0; // what waits and what of it has no seq
  #stale = 0; // how many of them are numbered as no one numbers any more
  #isDue = false;

  constructor(topic, isDurable, after = undefined, epoch = "") {
    this.topic = topic;
    this.isDurable = isDurable;
    this.epoch = epoch;
    this.#after = after;
  }

  /** How to ask for it, the first time or again. */
  question(tags) {
    const after = this.#hasBegun && !this.isDurable ? this.seen : this.#after;
    return { topic: this.topic, tags, after, durable: this.isDurable, epoch: this.epoch };
  }

  get isOpen() {
    return this.#send !== null;
  }

  /** The server has agreed. True when the topic was numbered anew. */
  begin({ cursor = 0, head = 0, epoch = "", missed = 0 }, window, send) {
    const known = Math.max(this.seen, this.#after ?? 0);
    const isAnew = (this.epoch !== "" && epoch !== this.epoch) || head < known;
    if (isAnew || !this.#hasBegun) {
      this.seen = this.acked = cursor;
      this.handed = 0;
      this.#stale = this.#queued;
      this.#nacked.clear();
      this.#asides.clear();
      this.#waiting.clear();
    } else {
      this.seen = Math.max(this.seen, cursor);
      this.acked = Math.max(this.acked, cursor);
    }
    this.#sent = cursor;
    this.#unsettled.clear();
    this.#hasBegun = true;
    this.#after = undefined;
    this.#apart.clear();
    this.#send = send;
    this.#window = window;
    this.epoch = epoch;
    this.missed += missed;
    return isAnew;
  }

  /** Nothing more comes or goes until it begins again. */
  pause() {
    this.flush();
    this.#send = null;
  }

  /** Whether a message that came is to be handed out. */
  take({ seq, flags }) {
    if (!this.isOpen) return false; // of a subscription before this one, or after the last word
    if (seq && !this.#takes(seq, flags)) return false;
    this.#queued++;
    return true;
  }

  #takes(seq, flags) {
    if (flags & Flag.REDELIVERED) {
      const isApart = (flags & Flag.HISTORY) !== 0;
      if (isApart) {
        this.#apart.add(seq);
        // The cursor is past it: an ACK of a later one would not be for this one.
        for (const passed of this.#unsettled) if (passed <= seq) this.#unsettled.delete(passed);
      }
      if (this.#waiting.has(seq)) return false;
      // Not for its time but by itself: a NACK has come first, here or in a former life.
      const isAside = isApart || seq > this.seen || this.#nacked.has(seq);
      if (seq <= this.acked && !isAside) return false; // under way when the first was acknowledged
      this.#waiting.set(seq, isAside);
      return true;
    }
    this.#sent = Math.max(this.#sent, seq);
    if (this.#nacked.has(seq)) {
      this.#say(FrameType.NACK, seq);
      return false;
    }
    if (this.isDurable) this.#unsettled.add(seq);
    if (seq <= this.seen) {
      this.#plan();
      return false;
    }
    this.seen = seq;
    if (this.isDurable) {
      this.#waiting.set(seq, false);
      this.#prune(seq);
    }
    return true;
  }

  /** Whether a message that waited is still to be handed out, as it is now. */
  hand({ seq, flags }) {
    this.#queued--;
    if (this.#stale) {
      this.#stale--;
      return true;
    }
    const isAside = this.#waiting.get(seq) || this.#nacked.has(seq); // or refused while it waited
    this.#waiting.delete(seq);
    if (isAside) {
      this.#asides.set(seq, false);
      if (this.#asides.size > ASIDES_MAX) this.#asides.delete(this.#asides.keys().next().value);
    } else if (flags & Flag.REDELIVERED && seq <= this.acked) {
      return false; // the first delivery has been acknowledged meanwhile
    } else {
      this.handed = Math.max(this.handed, seq);
    }
    return true;
  }

  /** Everything up to `seq`; but one that was set aside alone. */
  ack(seq) {
    if (this.#asides.has(seq)) this.#asides.set(seq, true);
    else if (seq > 0 && seq <= this.handed) this.acked = Math.max(this.acked, seq);
    else return;
    this.#nacked.delete(seq);
    this.#plan();
  }

  /** This one later, the others go on. */
  nack(seq) {
    const wasAside = this.#asides.delete(seq);
    if (!wasAside && !(seq > 0 && seq <= this.handed)) return;
    this.flush();
    if (seq > this.acked) this.#nacked.add(seq);
    if (seq <= this.#sent || this.#apart.has(seq)) {
      this.#apart.delete(seq);
      this.#unsettled.delete(seq);
      this.#say(FrameType.NACK, seq);
    }
  }

  /** Say what is acknowledged, where that is news. */
  flush() {
    this.#isDue = false;
    if (!this.#send) return;
    let upto = 0;
    for (const seq of this.#unsettled) {
      if (seq > this.acked && !this.#asides.get(seq)) break;
      this.#unsettled.delete((upto = seq));
      this.#asides.delete(seq);
    }
    if (upto) this.#say(FrameType.ACK, upto);
    // Behind what is unsettled an ACK would be taken for that, too.
    const [first = Infinity] = this.#unsettled;
    for (const [seq, isDone] of this.#asides)
      if (isDone && (this.#apart.has(seq) || (seq < first && seq <= this.#sent))) {
        this.#asides.delete(seq);
        this.#apart.delete(seq);
        this.#say(FrameType.ACK, seq);
      }
  }

  #plan() {
    // One ACK a turn of the loop, however many messages it stands for.
    if (this.#isDue) return;
    this.#isDue = true;
    soon(() => this.flush());
  }

  #say(type, seq) {
    this.#send?.(encodePosition(type, seq, this.topic));
  }

  #prune(seq) {
    // The server sends `seq` only when everything a window before it is settled.
    if (this.#nacked.size > 2 * this.#window)
      for (const nacked of this.#nacked) if (nacked <= seq - this.#window) this.#nacked.delete(nacked);
  }
}

// What waits to be read

/**
 * The messages of one topic that have come and were not read. A durable subscription is sent a
 * window and no more. One with `after` that is not read for long is left, and taken up again
 * behind the last message that came. Of a live one the oldest are dropped, and reported (410).
 */
class Reader {
  opened = deferred();
  isOpened = false;
  isResting = false; // left until there is room again
  said = {}; // the latest SUBSCRIBED
  dropped = 0;
  #queue = new Queue();
  #isOverflowing = false;

  constructor(topic, tags, place, isJoined, client) {
    this.topic = topic;
    this.tags = tags;
    this.place = place;
    this.isJoined = isJoined; // by the server, unasked
    this.client = client;
    this.subscription = new Subscription(this);
  }

  get isEnded() {
    return this.#queue.isEnded;
  }

  get size() {
    return this.#queue.items.length;
  }

  question() {
    return this.place ? this.place.question(this.tags) : { topic: this.topic, tags: this.tags };
  }

  put(message) {
    if (this.isEnded || (this.place && !this.place.take(message))) return;
    this.#queue.push(message);
    if (this.size < this.client.queueMessages || this.place?.isDurable) return;
    if (this.place) {
      this.isResting = true;
      this.place.pause();
      this.client.rest(this);
    } else if (this.size > this.client.queueMessages) {
      this.#queue.items.shift();
      this.dropped++;
      if (!this.#isOverflowing) {
        this.#isOverflowing = true;
        const text = `${this.topic} is not read fast enough; the oldest messages are dropped`;
        this.client.report(new ImError(ErrorCode.LOST, text, { topic: this.topic }));
      }
    }
  }

  next() {
    return this.#queue.next((message) => {
      if (this.size <= this.client.queueMessages / 2) {
        this.#isOverflowing = false;
        if (this.isResting) {
          this.isResting = false;
          this.client.open(this);
        }
      }
      return !this.place || this.place.hand(message) ? message : undefined;
    });
  }

  /** Nothing more will come; what is queued can still be read. */
  end(error) {
    this.place?.pause();
    this.opened.reject(error ?? new ImError(ErrorCode.TIMEOUT, "closed meanwhile"));
    this.#queue.end(error);
  }

  async close() {
    this.end(null);
    this.#queue.items.length = 0;
    await this.client.leave(this);
  }
}

/** What the application holds of a Reader. */
class Subscription {
  #reader;

  constructor(reader) {
    this.#reader = reader;
  }

  get topic() {
    return this.#reader.topic;
  }

  get durable() {
    return this.#reader.place?.isDurable ?? false;
  }

  /** Continues behind it: the last that was acknowledged, or with `after` handed out. */
  get cursor() {
    const { place, said } = this.#reader;
    if (!place) return said.cursor ?? 0;
    return place.isDurable ? place.acked : Math.max(place.handed, said.cursor ?? 0);
  }

  get head() {
    return Math.max(this.#reader.said.head ?? 0, this.#reader.place?.seen ?? 0);
  }

  get first() {
    return this.#reader.said.first ?? 0;
  }

  get epoch() {
    return this.#reader.said.epoch ?? "";
  }

  /** Messages that were gone by retention, or were dropped here, in sum. */
  get missed() {
    return this.#reader.dropped + (this.#reader.place?.missed ?? 0);
  }

  /** How many messages wait to be read. */
  get size() {
    return this.#reader.size;
  }

  next() {
    return this.#reader.next();
  }

  // Without `return`: leaving a loop early does not unsubscribe, another loop goes on.
  [Symbol.asyncIterator]() {
    return { next: () => this.next() };
  }

  ack(message) {
    this.#durablePlace().ack(message.seq ?? message);
  }

  nack(message) {
    this.#durablePlace().nack(message.seq ?? message);
  }

  /** Unsubscribe. What waits to be read is gone. */
  close() {
    return this.#reader.close();
  }

  #durablePlace() {
    if (!this.durable) throw new TypeError("only durable subscriptions acknowledge");
    return this.#reader.place;
  }
}

// What waits for its receipt, or to be sent

/** More than a disk takes in one commit at its usual pace, and a bounded number to repeat. */
const MAX_PUBLISHES = 1024;
const MAX_PUBLISH_BYTES = 4 << 20;

/**
 * Messages on their way: durable ones until their receipt, live ones until the socket has them.
 *
 *   P1  at most MAX_PUBLISHES wait, and MAX_PUBLISH_BYTES of frames; further ones are refused.
 *   P2  ids go upwards, and each connection sees those that it is sent in this order, except what
 *       the server itself has put off.
 *   P3  every promise ends: with the receipt, the refusal, its own time, or the client's end.
 */
class Publishes {
  #link = null;
  #waiting = new Map(); // by id, in their order
  #bytes = 0;
  #unsent = 0; // live ones that wait for a connection or its room
  #poll = null;

  /** Sent now, or when there is a connection with room. The receipt; null when not durable. */
  add({ id, topic, frame, isDurable, timeoutMs }) {
    if (!isDurable && this.#link && !this.#link.isFull && !this.#unsent) {
      this.#link.send(frame);
      return Promise.resolve(null);
    }
    const { size } = this.#waiting;
    if (size >= MAX_PUBLISHES || (size && this.#bytes + frame.length > MAX_PUBLISH_BYTES)) {
      const text = `${size} messages wait already`;
      return Promise.reject(new ImError(ErrorCode.TOO_MANY_REQUESTS, text, { topic, id }));
    }
    const one = { id, topic, frame, isDurable, ...deferred() };
    Object.assign(one, { link: null, attempts: 0, pause: null, deadline: null });
    this.#waiting.set(id, one);
    this.#bytes += frame.length;
    if (!isDurable) this.#unsent++;
    if (timeoutMs !== undefined) one.deadline = later(() => this.#timeOut(one, "in time"), timeoutMs);
    if (isDurable && this.#link) this.#repeat(one);
    else this.#drain();
    return one.promise;
  }

  /** There is a connection again: everything unanswered, before anything new. */
  resume(link) {
    this.#link = link;
    for (const one of this.#waiting.values()) if (one.isDurable && !one.pause) this.#repeat(one);
    this.#drain();
  }

  /** Nothing more can be sent; receipts may still come. */
  suspend() {
    this.#link = null;
  }

  /** Whether a receipt may still come on this connection. */
  isOwed(link) {
    for (const one of this.#waiting.values()) if (one.link === link) return true;
    return false;
  }

  received(receipt) {
    const one = this.#waiting.get(receipt.id);
    if (!one) return;
    one.resolve(receipt);
    this.#forget(one);
  }

  /** False when the error is about none of these. */
  refused(error) {
    const one = this.#waiting.get(error.id);
    if (!one || one.topic !== error.topic) return false;
    if (!RETRY_LATER.has(error.code)) {
      this.#fail(one, error);
    } else if (one.link) {
      const waitMs = error.retryAfterMs + backOffMs(one.attempts++, one.link.welcome.reconnect);
      one.link = null;
      one.pause = later(() => {
        one.pause = null;
        if (this.#link) this.#repeat(one);
      }, waitMs);
    }
    return true;
  }

  /** Wait until those that wait now have been answered; the others fail with 408. */
  async settled(timeoutMs) {
    const all = Promise.allSettled([...this.#waiting.values()].map((one) => one.promise));
    await within(all, timeoutMs, "").catch(() => {});
    for (const one of [...this.#waiting.values()]) this.#timeOut(one, "before the client was closed");
  }

  end(error) {
    for (const one of [...this.#waiting.values()]) this.#fail(one, error);
  }

  #repeat(one) {
    if (!this.#fits(one)) return;
    if (one.link || one.attempts) {
      one.frame = one.frame.slice(); // the other may still be on its way to a socket
      one.frame[FLAGS_AT] |= Flag.RETRY;
    }
    this.#link.send(one.frame);
    one.link = this.#link;
  }

  /** This server may take shorter frames than the one before. */
  #fits(one) {
    const { maxFrameBytes } = this.#link;
    if (one.frame.length > maxFrameBytes) this.#fail(one, tooLarge(one.frame, maxFrameBytes, one));
    return one.frame.length <= maxFrameBytes;
  }

  /** Send the live ones while there is room. A WebSocket does not tell when there is: ask again. */
  #drain() {
    if (!this.#unsent || !this.#link || this.#poll) return;
    for (const one of this.#waiting.values()) {
      if (one.isDurable) continue;
      if (this.#link.isFull) break;
      if (!this.#fits(one)) continue;
      this.#link.send(one.frame);
      one.resolve(null);
      this.#forget(one);
    }
    if (this.#unsent)
      this.#poll = later(() => {
        this.#poll = null;
        this.#drain();
      }, 10);
  }

  #timeOut(one, when) {
    const text = one.isDurable
      ? `no receipt ${when}: nobody knows whether the message is kept`
      : `no connection with room ${when}`;
    this.#fail(one, new ImError(ErrorCode.TIMEOUT, text, one));
  }

  #fail(one, error) {
    one.reject(error);
    this.#forget(one);
  }

  #forget(one) {
    if (!this.#waiting.delete(one.id)) return;
    this.#bytes -= one.frame.length;
    if (!one.isDurable) this.#unsent--;
    clearTimeout(one.pause);
    clearTimeout(one.deadline);
  }
}

function tooLarge(frame, max, { topic, id }) {
  const text = `a frame of ${frame.length} bytes; the server takes ${max}`;
  return new ImError(ErrorCode.TOO_LARGE, text, { topic, id });
}

function within(promise, ms, text) {
  let timer;
  const timeout = new Promise((_, reject) => {
    timer = later(() => reject(new ImError(ErrorCode.TIMEOUT, text)), ms);
  });
  return Promise.race([promise, timeout]).finally(() => clearTimeout(timer));
}

// One connection

/** What leaves in one WebSocket message at most, unless one frame is longer. */
const GATHER_BYTES = 16 << 10;

/** What a polite sender leaves in the socket's buffer. */
const BUFFER_BYTES = 256 << 10;

/** Half of the numbers there are: one whose caller gave up is not used again before its answer. */
const MAX_REQUESTS = 1 << 15;

/** How long answers may still arrive after GOAWAY, and the peer take to close. */
const LINGER_MS = 10_000;

/**
 * A connection from HELLO to its end; `closed` resolves once, after everything else was told. The
 * owner hears `welcomed`, `subscribed`, `message`, `receipt`, `notice` and `leaves`.
 */
class Link {
  welcome = null;
  maxFrameBytes = 64 << 10;
  closed;
  #resolveClosed;
  #socket;
  #owner;
  #requests = new Map();
  #lastRequest = 1; // HELLO's
  #out = [];
  #outBytes = 0;
  #reason = null; // of GOAWAY, or our own
  #refusal = null; // of HELLO
  #trouble = "";
  #isClosing = false;
  #isEnded = false;
  #timer; // the handshake's, then the heartbeat's, then of the end
  #heardMs = 0;
  #spokeMs = 0;
  #unanswered = 0; // PINGs since the server was last heard

  constructor(socket, hello, owner, timeoutMs) {
    this.#socket = socket;
    this.#owner = owner;
    this.closed = new Promise((resolve) => (this.#resolveClosed = resolve));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.#write(encodeFrame(FrameType.HELLO, hello, 1));
    socket.onmessage = ({ data }) => this.#received(data);
    socket.onerror = ({ message = "" }) => (this.#trouble ||= message);
    socket.onclose = ({ code, reason }) =>
      this.#end(code >= 4000 ? new ImError(code, reason) : new ImError(0, reason || this.#trouble));
    const text = "the server did not answer in time";
    this.#timer = later(() => this.abort(new ImError(0, text)), timeoutMs);
  }

  // Sending

  /** Queue a frame; what is sent in one turn of the event loop leaves together. */
  send(frame) {
    if (!this.#out.length) soon(() => this.#flush());
    this.#out.push(frame);
    this.#outBytes += frame.length;
  }

  /** Send a control frame. Its answer; ImError as it was refused, 408 when none came in time or
   * the connection ended first: nobody knows whether it was carried out. */
  request(type, body, timeoutMs) {
    const answer = deferred();
    let number = (this.#lastRequest % 0xffff) + 1;
    if (this.#requests.size >= MAX_REQUESTS) {
      answer.reject(new ImError(ErrorCode.TOO_MANY_REQUESTS, "too many unanswered requests"));
      return answer.promise;
    }
    while (this.#requests.has(number)) number = (number % 0xffff) + 1;
    const frame = encodeFrame(type, body, number);
    if (frame.length > this.maxFrameBytes) {
      answer.reject(tooLarge(frame, this.maxFrameBytes, {}));
      return answer.promise;
    }
    this.#lastRequest = number;
    this.#requests.set(number, answer);
    this.send(frame);
    const timer = later(() => {
      this.#requests.delete(number);
      answer.reject(new ImError(ErrorCode.TIMEOUT, "no answer in time"));
      this.#settle();
    }, timeoutMs);
    answer.promise.catch(() => {}).then(() => clearTimeout(timer));
    return answer.promise;
  }

  get isUsable() {
    return this.welcome !== null && this.#reason === null && !this.#isEnded;
  }

  get isFull() {
    return this.#outBytes + this.#socket.bufferedAmount >= BUFFER_BYTES;
  }

  /** End the connection once what was sent has left. */
  close(reason = null) {
    if (this.#isClosing || this.#isEnded) return;
    this.#reason ??= reason;
    this.#flush();
    this.#isClosing = true;
    clearTimeout(this.#timer);
    this.#timer = later(() => this.#end(this.#reason), LINGER_MS);
    this.#socket.close(1000);
  }

  /** End it here and now. */
  abort(reason) {
    this.#reason = reason;
    this.#end(reason);
  }

  #flush() {
    let gathered = [];
    let bytes = 0;
    const leave = () => {
      if (gathered.length) this.#write(gathered.length === 1 ? gathered[0] : join(gathered, bytes));
      gathered = [];
      bytes = 0;
    };
    for (const frame of this.#out) {
      if (bytes + frame.length > GATHER_BYTES) leave();
      gathered.push(frame);
      bytes += frame.length;
    }
    leave();
    this.#out.length = this.#outBytes = 0;
  }

  #write(bytes) {
    if (this.#isClosing || this.#isEnded) return;
    this.#spokeMs = performance.now();
    this.#socket.send(bytes);
  }

  // Receiving

  #received(data) {
    this.#heardMs = performance.now();
    this.#unanswered = 0;
    try {
      if (!(data instanceof ArrayBuffer)) throw fromServer("text");
      for (const frame of decodeFrames(new Uint8Array(data))) {
        if (this.#isClosing || this.#isEnded) return;
        this.#onFrame(frame);
      }
    } catch (error) {
      this.abort(error instanceof ImError ? error : new ImError(0, `the client failed: ${error}`));
    }
  }

  #onFrame(frame) {
    const { type, request } = frame;
    if (type === FrameType.MESSAGE) {
      this.#owner.message(frame);
    } else if (type === FrameType.PING) {
      this.send(encodeFrame(FrameType.PONG, undefined, request));
    } else if (type === FrameType.RECEIPT) {
      this.#owner.receipt(decodeReceipt(frame));
      this.#settle();
    } else if (type !== FrameType.PONG && type <= FrameType.GOAWAY) {
      this.#onBody(type, request, decodeBody(frame)); // of what is newer nothing is for us
    }
  }

  #onBody(type, request, body) {
    if (type === FrameType.GOAWAY) {
      this.#leave(body);
    } else if (!this.welcome) {
      if (type === FrameType.WELCOME) this.#begin(body);
      else if (type === FrameType.ERROR) this.#refusal = errorOf(body);
    } else {
      if (type === FrameType.SUBSCRIBED) this.#owner.subscribed(this, body, request !== 0);
      const answer = this.#requests.get(request);
      if (answer) {
        this.#requests.delete(request);
        if (type === FrameType.ERROR) answer.reject(errorOf(body));
        else answer.resolve(body);
      } else if (request === 0 && type !== FrameType.SUBSCRIBED) {
        this.#owner.notice(type, body);
      }
      this.#settle();
    }
  }

  // Begin, liveness, end

  #begin(welcome) {
    const { heartbeat, limits, reconnect } = welcome;
    const numbers = [heartbeat?.interval_ms, heartbeat?.timeout_ms, heartbeat?.max_missed];
    numbers.push(limits?.max_frame, limits?.window);
    numbers.push(reconnect?.base_ms, reconnect?.factor, reconnect?.max_ms);
    if (!numbers.every((number) => number >= 1)) throw fromServer("a WELCOME without its numbers");
    this.welcome = welcome;
    this.maxFrameBytes = limits.max_frame;
    clearTimeout(this.#timer);
    this.#timer = later(() => this.#beat(), heartbeat.interval_ms);
    this.#owner.welcomed(this);
  }

  /** PING when either side has been silent for long; give up on a dead server. It is PINGs that
   * are counted and not time: in a tab in the background, and in a notebook that slept, timers
   * are late, and what the server sent meanwhile waits to be read. */
  #beat() {
    const { interval_ms, timeout_ms, max_missed } = this.welcome.heartbeat;
    const now = performance.now();
    const unheardMs = now - this.#heardMs;
    const silentMs = now - this.#spokeMs;
    if (this.#unanswered >= max_missed) {
      this.abort(new ImError(CloseCode.HEARTBEAT_LOST, "the server is silent"));
      return;
    }
    const isQuiet = unheardMs >= interval_ms - 1; // timers may be a little early
    if (isQuiet || silentMs >= interval_ms - 1) this.#write(encodeFrame(FrameType.PING));
    if (isQuiet) this.#unanswered++;
    const nextMs = isQuiet ? timeout_ms : interval_ms - Math.max(unheardMs, now - this.#spokeMs);
    this.#timer = later(() => this.#beat(), Math.max(nextMs, 1));
  }

  /** GOAWAY: let what was asked be answered, then close. */
  #leave({ code, reason, retry_after_ms, alternatives }) {
    this.#reason = new ImError(code, reason, { retryAfterMs: retry_after_ms, alternatives });
    this.#owner.leaves(this);
    clearTimeout(this.#timer);
    this.#timer = later(() => this.#end(this.#reason), LINGER_MS);
    this.#settle();
  }

  /** After GOAWAY: close when nothing more is to come. */
  #settle() {
    if (this.#reason && !this.#requests.size && !this.#owner.isOwed(this)) this.close();
  }

  #end(closed) {
    if (this.#isEnded) return;
    this.#isEnded = true;
    closed = this.#reason ??= closed;
    const refusal = this.#refusal;
    if (refusal && refusal.code !== closed.code) {
      // The ERROR explains; the close code that follows says what to do about it.
      const retryAfterMs = Math.max(closed.retryAfterMs, refusal.retryAfterMs);
      const { alternatives } = closed;
      closed = new ImError(closed.code, refusal.message, { retryAfterMs, alternatives });
    }
    clearTimeout(this.#timer);
    const socket = this.#socket;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.onerror = () => {};
    socket.close(); // without waiting for the answer of a peer that may be gone
    this.#owner.leaves(this);
    const unanswered =
      actionOf(closed.code) === "stop"
        ? closed
        : new ImError(ErrorCode.TIMEOUT, "the connection ended before the answer came");
    for (const answer of this.#requests.values()) answer.reject(unanswered);
    this.#requests.clear();
    this.#resolveClosed(closed);
  }
}

function join(frames, bytes) {
  const all = new Uint8Array(bytes);
  let at = 0;
  for (const frame of frames) {
    all.set(frame, at);
    at += frame.length;
  }
  return all;
}

function errorOf({ code, message, retry_after_ms, id, topic }) {
  return new ImError(code, message, { retryAfterMs: retry_after_ms, id, topic });
}

// Where the next connection goes, and when

/** Until a WELCOME says otherwise. */
const FIRST_RECONNECT = { base_ms: 500, factor: 2, max_ms: 30_000 };

/** A random time up to a bound that grows with every attempt that led to nothing. */
function backOffMs(attempts, { base_ms, factor, max_ms }) {
  return between(0, Math.min(max_ms, base_ms * factor ** Math.min(attempts, 64)));
}

class Itinerary {
  #home;
  #elsewhere = [];
  #attempts = 0;

  constructor(home) {
    this.#home = this.url = home;
  }

  /** Choose the next address; returns the ms to wait first. */
  after(closed, livedMs, welcome) {
    // Being welcomed proves little; having lived for a heartbeat does.
    if (welcome && livedMs >= welcome.heartbeat.interval_ms) this.#attempts = 0;
    const action = actionOf(closed.code);
    if (action === "move") this.#elsewhere = closed.alternatives.flatMap((host) => this.#at(host));
    this.url = this.#elsewhere.shift() ?? this.#home;
    const attempts = this.#attempts++;
    const jitterMs = backOffMs(attempts, welcome?.reconnect ?? FIRST_RECONNECT);
    if (action === "back off") return closed.retryAfterMs + jitterMs;
    return between(0, closed.retryAfterMs) + (attempts === 0 ? 0 : jitterMs);
  }

  /** The home address at another "host:port"; none where it is no such thing. */
  #at(address) {
    try {
      const [url, other] = [new URL(this.#home), new URL(`ws://${address}`)];
      if (other.host !== address.toLowerCase() && `${other.host}:80` !== address.toLowerCase()) return [];
      [url.hostname, url.port] = [other.hostname, other.port || "80"];
      return [url.href];
    } catch {
      return [];
    }
  }
}

// The client

/** Calls that wait for a connection. */
const MAX_WAITING = 1024;

/** What the application hears of: `detail` says more. */
class ClientEvent extends Event {
  constructor(type, detail) {
    super(type);
    this.detail = detail;
  }
}

/** A user's connection to a server, kept alive. `connect` makes one and starts it. */
export class Client extends EventTarget {
  #url;
  #options;
  #codecs;
  #itinerary;
  #link = null; // to send on
  #reading = null; // the same and, after GOAWAY, on to its end
  #welcome = null;
  #isStarted = false;
  #final = null; // why there will be no other connection
  #last = null; // why there is none at the moment
  #pause = null; // between two connections
  #waiters = new Set();
  #readers = new Map(); // by topic
  #publishes = new Publishes();
  #joined = null; // subscriptions that the server made, once somebody asks for them
  #unheard = new Map(); // their topics, while nobody does: whether they are durable
  // Microseconds since 1970: upwards from run to run, and exact in a number.
  #lastId = Date.now() * 1000;

  constructor(url, options = {}) {
    super();
    this.#url = new URL(url).href;
    this.#options = {
      device: "default",
      name: SOFTWARE,
      codec: "json",
      queueMessages: 1024,
      connectTimeoutMs: 10_000,
      waitTimeoutMs: 10_000,
      WebSocket: globalThis.WebSocket,
      ...options,
    };
    const { device, user, codec, msgpack, WebSocket } = this.#options;
    checkIdentifier(device);
    if (user !== undefined) checkIdentifier(user);
    this.#codecs = { json: JSON_CODEC, msgpack };
    if (!this.#codecs[codec]) throw new TypeError(`codec is json, or msgpack with its codec: ${codec}`);
    if (!WebSocket) throw new TypeError("there is no WebSocket here: pass its class as an option");
    this.#itinerary = new Itinerary(this.#url);
  }

  // Life

  /** Connect. Tries for `connectTimeoutMs`, then rejects with why it failed. */
  async start() {
    if (this.#isStarted) throw new TypeError("started already");
    this.#isStarted = true;
    this.#travel().catch((error) => {
      const closed = new ImError(0, `the client failed: ${error}`);
      this.#finish(closed, closed);
    });
    try {
      await this.#usable(this.#options.connectTimeoutMs);
    } catch (error) {
      const last = this.#last;
      this.#stop();
      throw error.code === ErrorCode.TIMEOUT && last ? last : error;
    }
    return this;
  }

  /** Send what was published and acknowledged, then disconnect. Waits for receipts up to
   * `waitTimeoutMs`; those that are missing then fail with 408. Subscriptions end. */
  async close() {
    if (this.#isStarted && !this.#final) {
      await this.#publishes.settled(this.#options.waitTimeoutMs);
      const link = this.#reading;
      this.#stop();
      await link?.closed;
    }
  }

  get user() {
    return this.#welcome?.user ?? "";
  }

  get session() {
    return this.#welcome?.session ?? "";
  }

  /** What the server said when it last welcomed us. */
  get welcome() {
    return this.#welcome;
  }

  get state() {
    if (this.#final) return "closed";
    return this.#link ? "open" : "connecting";
  }

  // Verbs

  /** Send a message. With `durable` the receipt, when the server has it on its disk; else null,
   * when the socket has it: a refusal then comes as an "error" event. */
  async publish(topic, body, { durable = false, tag = "", echo = true, codec, retryMs } = {}) {
    checkTopic(topic);
    checkTag(tag);
    this.#checkRunning();
    if (!this.#welcome) await this.#usable(this.#options.waitTimeoutMs);
    const bytes = asBytes(body);
    const name = codec ?? (bytes ? "bytes" : this.#options.codec);
    if (!CODECS.includes(name) || (!bytes && !this.#codecs[name]))
      throw new TypeError(`no codec ${name} for this body`);
    const id = ++this.#lastId;
    const frame = encodeMessage({
      topic,
      tag,
      sender: this.#welcome.user,
      body: bytes ?? this.#codecs[name].encode(body),
      id,
      flags: (durable ? Flag.DURABLE : 0) | (echo ? 0 : Flag.NO_ECHO),
      codec: CODECS.indexOf(name),
    });
    const max = this.#welcome.limits.max_frame;
    if (frame.length > max) throw tooLarge(frame, max, { topic, id });
    const timeoutMs = durable ? retryMs : this.#options.waitTimeoutMs;
    return this.#publishes.add({ id, topic, frame, isDurable: durable, timeoutMs });
  }

  /** Receive a topic. Rejects when refused: 507 where the server keeps nothing, 409 for a topic
   * that this client already reads, 408 without an answer in time. */
  async subscribe(topic, { tags = "*", durable = false, after, epoch = "" } = {}) {
    checkTopic(topic);
    this.#checkRunning();
    const before = this.#readers.get(topic);
    if (before && !before.isJoined)
      throw new ImError(ErrorCode.CONFLICT, `already subscribed to ${topic}`, { topic });
    const place = durable || after !== undefined ? new Place(topic, durable, after, epoch) : null;
    const reader = this.#reader(topic, checkTags(tags), place, false);
    before?.end(null); // it is this one's from now on
    this.#unheard.delete(topic);
    this.#open(reader); // or with the others, when there is a connection
    try {
      const text = `no answer about ${topic} in time`;
      await within(reader.opened.promise, this.#options.waitTimeoutMs, text);
    } catch (error) {
      this.#giveUp(reader, error);
      throw error;
    }
    return reader.subscription;
  }

  /** Ask the server. Rejects as it refused, with 408 when there was no answer in time or the
   * connection ended first: it may have been done. */
  async call(method, params = null, { timeoutMs = 10_000 } = {}) {
    const beganMs = performance.now();
    const link = await this.#usable(timeoutMs);
    const leftMs = timeoutMs - (performance.now() - beganMs);
    return (await link.request(FrameType.CALL, { method, params }, leftMs)).result ?? null;
  }

  /** The subscriptions that the server makes by itself: inbox, conversations, groups. A client
   * that never asks leaves them, and their messages wait for a connection that does. */
  joined() {
    if (!this.#joined) {
      this.#joined = new Queue();
      if (this.#final) this.#joined.end(null);
      for (const reader of this.#readers.values())
        if (reader.isJoined) this.#joined.push(reader.subscription);
      for (const [topic, isDurable] of this.#unheard) this.#takeUp(topic, isDurable);
      this.#unheard.clear();
    }
    return {
      next: () => this.#joined.next(),
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  }

  // Connections

  async #travel() {
    while (!this.#final) {
      const beganMs = performance.now();
      const closed = (this.#last = await this.#connection(this.#itinerary.url));
      if (this.#final) return;
      if (actionOf(closed.code) === "stop") {
        this.#finish(closed, closed);
        return;
      }
      const livedMs = performance.now() - beganMs;
      const delayMs = this.#itinerary.after(closed, livedMs, this.#welcome);
      this.#tell("state", { state: "connecting", reason: closed, delayMs });
      this.#pause = deferred();
      const timer = later(this.#pause.resolve, delayMs);
      // A browser says when there is a network again; who was refused waits all the same.
      if (closed.code === 0) globalThis.addEventListener?.("online", this.#pause.resolve);
      await this.#pause.promise;
      globalThis.removeEventListener?.("online", this.#pause.resolve);
      clearTimeout(timer);
    }
  }

  /** One attempt: from connecting to why it ended. */
  async #connection(url) {
    const { token, user, device, name, connectTimeoutMs, WebSocket } = this.#options;
    const hello = { version: VERSION, user, device, client: name };
    try {
      // The application's function: whatever it throws, try again later.
      if (token)
        hello.token = await within(
          Promise.resolve(typeof token === "function" ? token() : token),
          connectTimeoutMs,
          "no token in time",
        );
    } catch (error) {
      return new ImError(0, `no token: ${error}`);
    }
    if (this.#final) return this.#final;
    const socket = new WebSocket(url, [SUBPROTOCOL]);
    this.#reading = new Link(socket, hello, this.#owner, connectTimeoutMs);
    const closed = await this.#reading.closed;
    this.#reading = null;
    return closed;
  }

  #stop() {
    const link = this.#reading;
    for (const { place } of this.#readers.values()) place?.flush();
    const reason = new ImError(0, "the client is closed");
    if (link?.welcome) link.close(reason);
    else link?.abort(reason);
    this.#finish(reason, null);
  }

  /** `error` is what those who read should see. */
  #finish(final, error) {
    if (this.#final) return;
    this.#final = final;
    this.#link = null;
    this.#pause?.resolve();
    this.#publishes.end(final);
    for (const { reject, timer } of this.#waiters) {
      clearTimeout(timer);
      reject(final);
    }
    this.#waiters.clear();
    for (const reader of [...this.#readers.values()]) this.#forget(reader, error);
    this.#joined?.end(error);
    this.#tell("state", { state: "closed", reason: final, delayMs: null });
  }

  /** A connection; 408 when there is none for so long. */
  #usable(timeoutMs) {
    this.#checkRunning();
    if (this.#link) return Promise.resolve(this.#link);
    if (this.#waiters.size >= MAX_WAITING)
      return Promise.reject(new ImError(ErrorCode.TOO_MANY_REQUESTS, "too many wait for a connection"));
    return new Promise((resolve, reject) => {
      const waiter = { resolve, reject };
      waiter.timer = later(() => {
        this.#waiters.delete(waiter);
        reject(new ImError(ErrorCode.TIMEOUT, "no connection in time"));
      }, timeoutMs);
      this.#waiters.add(waiter);
    });
  }

  #checkRunning() {
    if (!this.#isStarted) throw new TypeError("not started: use connect() or start()");
    if (this.#final) throw this.#final;
  }

  // What a Link reports

  #owner = {
    welcomed: (link) => {
      this.#link = link;
      this.#welcome = link.welcome;
      // Before anybody can publish on it: a publisher sees its own first message.
      for (const reader of this.#readers.values()) if (!reader.isJoined) this.#open(reader);
      this.#publishes.resume(link);
      for (const { resolve, timer } of this.#waiters) {
        clearTimeout(timer);
        resolve(link);
      }
      this.#waiters.clear();
      this.#tell("state", { state: "open", reason: null, delayMs: null });
    },

    leaves: (link) => {
      if (this.#link !== link) return;
      for (const { place } of this.#readers.values()) place?.pause();
      this.#publishes.suspend();
      this.#link = null;
      if (!this.#final) this.#tell("state", { state: "connecting", reason: null, delayMs: null });
    },

    isOwed: (link) => this.#publishes.isOwed(link),

    receipt: (receipt) => this.#publishes.received(receipt),

    message: (frame) => {
      const message = decodeMessage(frame, this.#codecs);
      const reader = this.#readers.get(message.topic);
      if (reader) reader.put(message);
      else this.#tell("message", message);
    },

    subscribed: (link, body, isAsked) => {
      if (![body.head ?? 0, body.cursor ?? 0].every(Number.isSafeInteger))
        throw fromServer("a SUBSCRIBED with a number beyond 2^53");
      let reader = this.#readers.get(body.topic);
      if (reader && !isAsked && !reader.isJoined && !reader.place?.isOpen) return; // ours will replace it
      if (!reader && isAsked) return;
      reader ??= this.#join(body);
      reader.said = body;
      if (reader.place?.begin(body, link.welcome.limits.window, (frame) => link.send(frame))) {
        const text = `${body.topic} is numbered anew; what is kept comes again`;
        this.#report(new ImError(ErrorCode.LOST, text, { topic: body.topic }));
      }
      this.#tell("subscribed", { topic: body.topic, subscription: reader.subscription });
    },

    /** UNSUBSCRIBED or ERROR that no request waits for. */
    notice: (type, body) => {
      if (type === FrameType.UNSUBSCRIBED) {
        this.#unheard.delete(body.topic);
        const { topic, code } = body;
        const reader = this.#readers.get(topic);
        if (reader) this.#forget(reader, code ? new ImError(code, "", { topic }) : null);
      } else if (type === FrameType.ERROR) {
        const error = errorOf(body);
        if (!this.#publishes.refused(error)) this.#report(error);
      }
    },
  };

  // Subscriptions

  /** What a Reader asks for. */
  #hooks = {
    open: (reader) => this.#open(reader),
    leave: (reader) => this.#leave(reader),
    rest: (reader) => this.#unsubscribe(reader),
    report: (error) => this.#report(error),
  };

  #reader(topic, tags, place, isJoined) {
    const client = { ...this.#hooks, queueMessages: this.#options.queueMessages };
    const reader = new Reader(topic, tags, place, isJoined, client);
    this.#readers.set(topic, reader);
    return reader;
  }

  /** The server has subscribed us. */
  #join({ topic, durable = false }) {
    const reader = this.#reader(topic, "*", durable ? new Place(topic, true) : null, true);
    this.#unheard.delete(topic);
    if (this.#joined) this.#joined.push(reader.subscription);
    else soon(() => this.#ignore(reader));
    return reader;
  }

  /** Nobody listens: it would become dead letters here. */
  #ignore(reader) {
    if (this.#joined || this.#readers.get(reader.topic) !== reader) return;
    this.#unheard.set(reader.topic, reader.place !== null);
    this.#leave(reader);
  }

  /** Somebody listens at last. */
  #takeUp(topic, isDurable) {
    if (this.#readers.has(topic)) return;
    const reader = this.#reader(topic, "*", isDurable ? new Place(topic, true) : null, true);
    this.#joined.push(reader.subscription);
    this.#open(reader);
  }

  /** Ask for a subscription, for the first time or again. */
  #open(reader) {
    const link = this.#link;
    if (!link || reader.isEnded || reader.isResting) return;
    link.request(FrameType.SUBSCRIBE, reader.question(), this.#options.waitTimeoutMs).then(
      () => {
        reader.isOpened = true;
        reader.opened.resolve();
      },
      (error) => {
        if (!link.isUsable) return; // the next connection asks again
        if (reader.isOpened && RETRY_LATER.has(error.code)) {
          const { base_ms, max_ms } = link.welcome.reconnect;
          const again = () => this.#link === link && this.#open(reader);
          later(again, error.retryAfterMs + between(base_ms, max_ms));
        } else {
          this.#giveUp(reader, error);
        }
      },
    );
  }

  /** It was refused; or not answered, and then the server may have agreed. */
  #giveUp(reader, error) {
    if (error.code === ErrorCode.TIMEOUT && this.#readers.get(reader.topic) === reader)
      this.#unsubscribe(reader);
    this.#forget(reader, error);
  }

  async #leave(reader) {
    if (this.#readers.get(reader.topic) === reader) await this.#unsubscribe(reader);
    this.#forget(reader, null);
  }

  /** Resolves in any case: without an answer it is gone with its connection. */
  async #unsubscribe({ topic }) {
    const timeoutMs = this.#options.waitTimeoutMs;
    await this.#link?.request(FrameType.UNSUBSCRIBE, { topic }, timeoutMs).catch(() => {});
  }

  #forget(reader, error) {
    reader.end(error);
    if (this.#readers.get(reader.topic) !== reader) return;
    this.#readers.delete(reader.topic);
    this.#tell("unsubscribed", { topic: reader.topic, error });
  }

  // Events

  #report(error) {
    this.#tell("error", error);
  }

  #tell(type, detail) {
    // Later: what a listener does must not meet us in the middle of something.
    queueMicrotask(() => this.dispatchEvent(new ClientEvent(type, detail)));
  }
}

/** A client that has connected. */
export function connect(url, options) {
  return new Client(url, options).start();
}
