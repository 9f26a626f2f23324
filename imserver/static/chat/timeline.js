/**
 * The messages of the open conversation, oldest above. It stays at its end while new ones come,
 * unless somebody has scrolled up: then it stays where they read, whatever is added above or below.
 */

import { arrange, byId, element, say } from "../dom.js";
import { day, isSameDay } from "../time.js";
import { messageRow } from "./message.js";

/** Messages of one person within it stand together. */
const TOGETHER_MS = 5 * 60_000;
const NEAR_END_PX = 60;
const NEAR_START_PX = 240;

export class Timeline {
  #scroller = byId("scroller");
  #list = byId("messages");
  #jump = byId("jump");
  #rows = new Map(); // message -> { shape, node }
  #days = new Map(); // midnight -> separator
  #divider = element("li", { class: "divider" }, element("span", {}, "New"));
  #conversation = null;
  #isAtEnd = true;
  #hooks;

  /** `hooks`: `earlier`, `retry`, `discard`, `seen`. */
  constructor(hooks) {
    this.#hooks = hooks;
    this.#scroller.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    new ResizeObserver(() => this.#isAtEnd && this.toEnd()).observe(this.#scroller);
    this.#jump.addEventListener("click", () => this.toEnd());
  }

  get isAtEnd() {
    return this.#isAtEnd;
  }

  toEnd() {
    this.#isAtEnd = true;
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#jump.hidden = true;
    this.#hooks.seen();
  }

  render(conversation, session) {
    const isOther = conversation !== this.#conversation;
    if (isOther) {
      this.#conversation = conversation;
      this.#rows.clear();
      this.#days.clear();
      this.#isAtEnd = true;
    }
    const anchor = this.#isAtEnd ? null : this.#firstInView();
    arrange(this.#list, this.#nodes(conversation, session));
    this.#list.setAttribute("aria-busy", String(conversation.isLoading));
    this.#start(conversation);
    const moved = anchor && this.#rows.get(anchor.message)?.node;
    if (moved) this.#scroller.scrollTop += moved.offsetTop - anchor.top;
    if (this.#isAtEnd) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#jump.hidden = this.#isAtEnd;
    say(byId("jump-count"), conversation.unread ? `${conversation.unread} new` : "Latest");
    if (isOther || this.#scroller.scrollTop < NEAR_START_PX) this.#hooks.earlier();
  }

  #nodes(conversation, session) {
    const actions = {
      me: session.user,
      isLinkOpen: session.link.state === "open",
      retry: this.#hooks.retry,
      discard: this.#hooks.discard,
    };
    const messages = [...conversation.messages, ...conversation.outgoing];
    const nodes = [];
    const kept = new Map();
    messages.forEach((message, at) => {
      const before = messages[at - 1];
      const after = messages[at + 1];
      if (!before || !isSameDay(before.time, message.time)) nodes.push(this.#day(message.time));
      const isDivider = message.seq && message.seq === conversation.dividerSeq;
      if (isDivider) nodes.push(this.#divider);
      const around = {
        isFirst: isDivider || !isTogether(before, message),
        isLast: !isTogether(message, after) || after.seq === (conversation.dividerSeq ?? -1),
      };
      const row = this.#row(message, around, actions);
      kept.set(message, row);
      nodes.push(row.node);
    });
    this.#rows = kept;
    return nodes;
  }

  /** A message is drawn once, and again when something about it has changed. */
  #row(message, around, actions) {
    const isWaiting = message.state === "sending" && !actions.isLinkOpen;
    const shape = [around.isFirst, around.isLast, message.state, isWaiting].join();
    const row = this.#rows.get(message);
    return row?.shape === shape ? row : { shape, node: messageRow(message, around, actions) };
  }

  #day(time) {
    const words = day(time);
    let node = this.#days.get(words);
    if (!node) {
      node = element("li", { class: "day" }, element("span", {}, words));
      this.#days.set(words, node);
    }
    return node;
  }

  /** What stands above the first message. */
  #start({ isLoading, isComplete, keeps, messages, outgoing }) {
    const isEmpty = !messages.length && !outgoing.length;
    const words = isLoading
      ? "Loading…"
      : !keeps
        ? "Nothing is kept here: who is away misses what is said."
        : isComplete && !isEmpty
          ? "This is where the conversation begins."
          : "";
    say(byId("start"), words);
    byId("nothing").hidden = isLoading || !isEmpty;
  }

  #onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    this.#isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    this.#jump.hidden = this.#isAtEnd;
    if (this.#isAtEnd) this.#hooks.seen();
    if (scrollTop < NEAR_START_PX) this.#hooks.earlier();
  }

  /** A message, and where it is; its row may be drawn anew. */
  #firstInView() {
    const top = this.#scroller.scrollTop + this.#scroller.offsetTop;
    for (const [message, { node }] of this.#rows)
      if (node.offsetTop + node.offsetHeight > top) return { message, top: node.offsetTop };
    return null;
  }
}

function isTogether(one, next) {
  return (
    one !== undefined &&
    next !== undefined &&
    one.sender === next.sender &&
    next.time - one.time < TOGETHER_MS &&
    isSameDay(one.time, next.time)
  );
}
