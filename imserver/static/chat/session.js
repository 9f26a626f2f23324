/**
 * One person's connection and all conversations of it: what the page shows comes from here, and
 * what people do goes through here.
 *
 *   W1  a message is acknowledged when the page has shown it (`settle`), not when it came: what a
 *       closing tab had in its hands comes again.
 *   W2  whatever fails is said where it belongs: a message beside itself, a topic in its place.
 *   W3  typing notices are live and throttled, and none waits for a connection.
 */

import { Client, ErrorCode } from "../imserver.js";
import { Conversation } from "./conversation.js";
import { rooms, setRooms } from "./identity.js";

const TYPING = "typing"; // the tag of live notices
const TYPING_EVERY_MS = 2_500;
const PAGE = 40;
const START_AGAIN_MS = 2_000;
const PEOPLE_MAX = 1_000; // users in one question

export class Session {
  user = "";
  conversations = new Map(); // by topic
  presence = new Map(); // user -> whether online
  /** "connecting" | "open" | "closed", why the last connection ended, and when the next try is. */
  link = { state: "connecting", reason: null, retryAt: null };
  #client = null;
  #changed;
  #arrived;
  #unsettled = new Set(); // conversations with messages to acknowledge
  #typedAt = 0;

  /** `changed` is called after anything has, `arrived` with what others wrote just now. */
  constructor(url, login, changed, arrived) {
    this.#changed = changed;
    this.#arrived = arrived;
    this.#start(url, login);
  }

  /** Whether something of mine is not on the server yet. */
  get isSending() {
    return [...this.conversations.values()].some(({ outgoing }) =>
      outgoing.some((one) => one.state === "sending"),
    );
  }

  /** A server that is not there yet is waited for; one that refuses us is believed. */
  async #start(url, login) {
    for (;;) {
      this.#client = new Client(url, { ...login, name: "imserver-chat" });
      this.#client.addEventListener("state", ({ detail }) => this.#onState(detail));
      this.#client.addEventListener("error", ({ detail }) => this.#onError(detail));
      try {
        await this.#client.start();
        return;
      } catch (error) {
        if (error.code >= 4000 && error.code < 4100) return;
        this.link = { state: "connecting", reason: error, retryAt: Date.now() + START_AGAIN_MS };
        this.#changed();
        await new Promise((resolve) => setTimeout(resolve, START_AGAIN_MS));
      }
    }
  }

  #onState({ state, reason, delayMs }) {
    this.link = { state, reason, retryAt: delayMs === null ? null : Date.now() + delayMs };
    if (state === "open" && !this.user) this.#begin();
    else if (state === "open") for (const one of this.conversations.values()) this.#refresh(one);
    this.#changed();
  }

  /** There is a connection again: ask for what could not be asked, and what may have changed. */
  #refresh(conversation) {
    if (conversation.refusal?.code === ErrorCode.TIMEOUT) this.rejoin(conversation);
    else if (conversation.messages.length) this.#mark(conversation);
    else this.#load(conversation);
  }

  #begin() {
    this.user = this.#client.user;
    this.#followJoined();
    for (const topic of rooms(this.user)) this.open(topic);
  }

  #onError(error) {
    const conversation = this.conversations.get(error.topic);
    if (!conversation) return;
    const sending = conversation.outgoing.find((one) => one.state === "sending");
    if (error.id && sending) conversation.failed(sending, error);
    else if (error.code === ErrorCode.LOST) {
      conversation.forget();
      this.#load(conversation);
    }
    this.#changed();
  }

  // Conversations

  /** The conversation of a topic, joined if it was not. */
  open(topic) {
    let conversation = this.conversations.get(topic);
    if (!conversation) {
      conversation = new Conversation(topic, this.user);
      this.conversations.set(topic, conversation);
      if (conversation.kind === "room") this.#remember();
      conversation.ready = this.#join(conversation);
    }
    return conversation;
  }

  leave(conversation) {
    this.conversations.delete(conversation.topic);
    this.#remember();
    conversation.subscription?.close();
    this.#changed();
  }

  #remember() {
    const topics = [...this.conversations.values()].filter(({ kind }) => kind === "room");
    setRooms(
      this.user,
      topics.map(({ topic }) => topic),
    );
  }

  async #join(conversation) {
    const { topic } = conversation;
    try {
      conversation.refusal = null;
      const subscription = await this.#client.subscribe(topic, { durable: true }).catch((error) => {
        if (error.code !== ErrorCode.NOT_DURABLE) throw error;
        conversation.keeps = false;
        return this.#client.subscribe(topic);
      });
      this.#follow(conversation, subscription);
      await this.#load(conversation);
    } catch (error) {
      conversation.refusal = error;
    }
    this.#changed();
  }

  /** Ask again for what was refused, or not answered. */
  rejoin(conversation) {
    conversation.ready = this.#join(conversation);
    this.#changed();
  }

  /** What the server subscribes us to by itself: the inbox, groups, direct messages. */
  async #followJoined() {
    try {
      for await (const subscription of this.#client.joined()) {
        const { topic } = subscription;
        const conversation = this.conversations.get(topic) ?? new Conversation(topic, this.user);
        this.conversations.set(topic, conversation);
        conversation.refusal = null;
        this.#follow(conversation, subscription);
        conversation.ready = this.#load(conversation);
      }
    } catch {
      // The end of the connection, which `link` tells.
    }
  }

  async #follow(conversation, subscription) {
    conversation.subscription = subscription;
    let ending = null;
    try {
      for await (const message of subscription) this.#onMessage(conversation, message);
    } catch (error) {
      ending = error;
    }
    if (conversation.subscription !== subscription || this.#client.state === "closed") return;
    conversation.subscription = null;
    conversation.refusal = ending;
    this.#changed();
  }

  #onMessage(conversation, message) {
    if (message.sender !== this.user) this.#saw(conversation, message.sender);
    if (message.tag === TYPING) {
      if (message.sender !== this.user) conversation.typed(message.sender);
    } else {
      const entry = conversation.take(message);
      if (entry && message.sender !== this.user) this.#arrived(conversation, entry);
    }
    if (message.seq) {
      conversation.unsettled = message;
      this.#unsettled.add(conversation);
    }
    this.#changed();
  }

  /** What came has been shown. */
  settle() {
    for (const conversation of this.#unsettled)
      if (conversation.subscription?.durable) conversation.subscription.ack(conversation.unsettled);
    this.#unsettled.clear();
  }

  // History and marks

  async #load(conversation) {
    if (!conversation.keeps) return;
    await Promise.all([this.earlier(conversation), this.#mark(conversation)]);
  }

  /** Load what came before the messages that are held; not before it is subscribed, else what
   * came between the two would be missing. */
  async earlier(conversation) {
    const { subscription, isLoading, isComplete, keeps } = conversation;
    if (!subscription || isLoading || isComplete || !keeps) return;
    conversation.isLoading = true;
    this.#changed();
    const before = conversation.firstSeq || undefined;
    try {
      conversation.takePage(
        await this.#client.call("history", { topic: conversation.topic, before, limit: PAGE }),
      );
    } catch (error) {
      if (error.code === ErrorCode.NOT_DURABLE) conversation.keeps = false;
    }
    conversation.isLoading = false;
    this.#changed();
  }

  async #mark(conversation) {
    if (!conversation.keeps) return;
    const { topic } = conversation;
    try {
      conversation.setMarks((await this.#client.call("unread", { topics: [topic] }))[topic]);
      this.#changed();
    } catch {
      // A count that is missing is asked for again with the next connection.
    }
  }

  /** Somebody looks at the end of a conversation. */
  see(conversation) {
    const seq = conversation.see();
    if (seq && this.link.state === "open")
      this.#client.call("read", { topic: conversation.topic, seq }).catch(() => {});
  }

  // Sending

  send(conversation, text) {
    this.#typedAt = 0;
    this.deliver(conversation, conversation.compose(text));
  }

  /** Once more, or for the first time. The client repeats it until there is an answer. */
  async deliver(conversation, one) {
    Object.assign(one, { state: "sending", error: null });
    this.#changed();
    try {
      await conversation.ready;
      const body = { text: one.text, ref: one.ref };
      const receipt = await this.#client.publish(conversation.topic, body, { durable: conversation.keeps });
      if (receipt) conversation.kept(one, receipt);
    } catch (error) {
      conversation.failed(one, error);
    }
    this.#changed();
  }

  /** Tell the others that I type; a notice in a while is enough. */
  type(conversation) {
    const now = Date.now();
    if (this.link.state !== "open" || !conversation.isWritable || now - this.#typedAt < TYPING_EVERY_MS)
      return;
    this.#typedAt = now;
    this.#client.publish(conversation.topic, null, { tag: TYPING, echo: false }).catch(() => {});
  }

  // People

  /** Ask who is in a conversation, and who of those I talk with is here. */
  async lookAround(conversation) {
    if (this.link.state !== "open") return;
    try {
      if (conversation?.kind === "dm") conversation.members = [...new Set([this.user, conversation.peer])];
      else if (conversation?.subscription) {
        const params = { topic: conversation.topic, limit: PEOPLE_MAX };
        conversation.members = await this.#client.call("members", params);
      }
      const peers = [...this.conversations.values()].map(({ peer }) => peer).filter(Boolean);
      const users = [...new Set([...peers, ...(conversation?.members ?? [])])].slice(0, PEOPLE_MAX);
      if (users.length) this.#keepPresence(await this.#client.call("presence", { users }));
    } catch {
      // Asked again in a moment.
    }
    this.#changed();
  }

  /** Who speaks is here; the next look around tells of the others. */
  #saw(conversation, user) {
    this.presence.set(user, true);
    if (!user.startsWith("$") && !conversation.members.includes(user)) conversation.members.push(user);
  }

  #keepPresence(found) {
    this.presence = new Map(Object.entries(found).map(([user, { online }]) => [user, online]));
  }
}
