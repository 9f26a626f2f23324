/**
 * What is known of one topic: its messages, mine that are on their way, who types, what is unread.
 *
 * Kept messages stand in the order of their places (seq), live ones where they came. Pure: it
 * knows neither the connection (session.js) nor the page.
 *
 *   V1  a message with a place is there once, whether it came by history, live, or both.
 *   V2  mine is there once: as `outgoing` until it has come back or has its receipt.
 *   V3  what is held is bounded (`trim`), but while somebody reads far above the end; what was let
 *       go can be loaded again.
 */

/** More than anybody scrolls through at once; what is above is loaded when it is looked for. */
const HELD = 600;
const HELD_AFTER_TRIM = 300;
const TYPING_MS = 6_000;

const KINDS = { room: "room", dm: "dm", group: "group", user: "inbox" };

/** What people wrote, whoever's software sent it. */
function textOf(body) {
  if (typeof body === "string") return body;
  if (body instanceof Uint8Array) return `(${body.length} bytes)`;
  if (typeof body?.text === "string") return body.text;
  return JSON.stringify(body) ?? "";
}

function entryOf({ seq, time, time_ms, sender, id, body, form }) {
  const text = form === "omitted" ? "(a message too long to be shown here)" : textOf(body);
  return { seq, time: time ?? time_ms, sender, id, text, ref: body?.ref ?? "" };
}

export class Conversation {
  messages = [];
  outgoing = [];
  subscription = null;
  refusal = null; // why it cannot be read
  keeps = true; // whether its messages survive
  isComplete = false; // there is nothing before the first
  isLoading = false;
  unread = 0;
  readSeq = 0; // what this person has read, on any device
  dividerSeq = null; // where "new" began when it was opened
  members = [];
  #counted = 0; // up to this seq `unread` counts by the server's word
  #typing = new Map(); // user -> until when

  constructor(topic, me) {
    const [prefix, ...rest] = topic.split(":");
    this.topic = topic;
    this.me = me;
    this.kind = KINDS[prefix] ?? "other";
    this.name = this.kind === "other" ? topic : rest.join(":");
    if (this.kind === "inbox") this.name = "Inbox";
    this.peer = "";
    if (this.kind === "dm") this.name = this.peer = rest.find((user) => user !== me) ?? me;
  }

  /** Whether a person may write here; the inbox is written to by programs. */
  get isWritable() {
    return this.kind !== "inbox" && this.refusal === null;
  }

  get firstSeq() {
    return this.messages.find((message) => message.seq)?.seq ?? 0;
  }

  get lastSeq() {
    return this.messages.findLast((message) => message.seq)?.seq ?? 0;
  }

  /** The last thing said, by anybody. */
  get last() {
    return this.outgoing.at(-1) ?? this.messages.at(-1) ?? null;
  }

  /** A message came. What is shown of it; null when it was known. */
  take(delivered) {
    const entry = entryOf(delivered);
    this.#typing.delete(entry.sender);
    if (entry.sender === this.me) this.#forgetOutgoing(entry.ref);
    if (!this.#insert(entry)) return null;
    if (entry.sender !== this.me && (!entry.seq || entry.seq > this.#counted)) this.unread++;
    return entry;
  }

  /** A page of history: those before what is held, or the latest. */
  takePage({ messages, first, last }) {
    for (const message of messages) this.#insert(entryOf(message));
    this.isComplete ||= last < first || first <= 1;
  }

  /** What the server counts as read and unread. */
  setMarks({ head, read, unread }) {
    const newer = this.messages.filter(({ seq, sender }) => seq > Math.max(head, read) && sender !== this.me);
    this.#counted = head;
    this.readSeq = Math.max(this.readSeq, read);
    this.unread = unread + newer.length;
  }

  /** Somebody looks at it. The seq to tell the server, 0 when that is no news. */
  see() {
    const seq = this.lastSeq;
    this.unread = 0;
    this.#counted = Math.max(this.#counted, seq);
    if (seq <= this.readSeq) return 0;
    this.readSeq = seq;
    return seq;
  }

  /** The topic is numbered anew: what was held means nothing. */
  forget() {
    this.messages = [];
    this.isComplete = false;
    this.readSeq = this.#counted = 0;
  }

  /** Let go of the oldest, when nobody looks at them. */
  trim() {
    if (this.messages.length <= HELD) return;
    this.messages.splice(0, this.messages.length - HELD_AFTER_TRIM);
    this.isComplete = false;
  }

  // Mine

  /** A message of mine, to be delivered. */
  compose(text) {
    const ref = `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`;
    const one = { ref, text, sender: this.me, time: Date.now(), seq: 0, state: "sending", error: null };
    this.outgoing.push(one);
    return one;
  }

  /** It is kept. Its delivery may have come before or still come. */
  kept(one, { seq, time, id }) {
    this.#forgetOutgoing(one.ref);
    this.#insert({ seq, time, sender: this.me, id, text: one.text, ref: one.ref });
  }

  failed(one, error) {
    one.state = "failed";
    one.error = error;
  }

  discard(one) {
    this.#forgetOutgoing(one.ref);
  }

  // Typing

  typed(user, now = Date.now()) {
    this.#typing.set(user, now + TYPING_MS);
  }

  /** Those who type at this moment, and when the first of them will have stopped. */
  typing(now = Date.now()) {
    for (const [user, until] of this.#typing) if (until <= now) this.#typing.delete(user);
    return { users: [...this.#typing.keys()], until: Math.min(...this.#typing.values()) };
  }

  #insert(entry) {
    let at = this.messages.length;
    if (entry.seq) {
      while (at > 0 && !(this.messages[at - 1].seq && this.messages[at - 1].seq <= entry.seq)) at--;
      if (at > 0 && this.messages[at - 1].seq === entry.seq) return false;
      // Behind live ones that came before it: they have no place, only a time.
      while (at < this.messages.length && !this.messages[at].seq && this.messages[at].time <= entry.time)
        at++;
    }
    this.messages.splice(at, 0, entry);
    return true;
  }

  #forgetOutgoing(ref) {
    const at = ref ? this.outgoing.findIndex((one) => one.ref === ref) : -1;
    if (at >= 0) this.outgoing.splice(at, 1);
  }
}
