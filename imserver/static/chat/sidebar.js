/** The conversations of this person: rooms and groups, direct messages, each with what is unread. */

import { arrange, byId, element, icon, roving, say } from "../dom.js";
import { brief } from "../time.js";
import { avatar } from "./message.js";

export class Sidebar {
  #items = new Map(); // topic -> { shape, node }
  #list = byId("conversations");
  #open = null;

  constructor() {
    roving(this.#list, "a");
    this.#list.addEventListener("focusin", ({ target }) => target.matches("a") && this.#enterAt(target));
  }

  render(session, open) {
    const all = [...session.conversations.values()].filter((one) => one.kind !== "inbox" || one.last);
    const people = all
      .filter(({ kind }) => kind === "dm")
      .sort((a, b) => (b.last?.time ?? 0) - (a.last?.time ?? 0));
    const rooms = all.filter(({ kind }) => kind !== "dm").sort((a, b) => a.name.localeCompare(b.name));
    const kept = new Map();
    const nodes = (some) =>
      some.map((conversation) => {
        const item = this.#item(conversation, session, conversation === open);
        kept.set(conversation.topic, item);
        return item.node;
      });
    arrange(byId("rooms"), nodes(rooms));
    arrange(byId("people-list"), nodes(people));
    byId("no-people").hidden = people.length > 0;
    this.#items = kept;
    this.#doorway(open);
    this.#me(session);
  }

  /** Where Tab comes in: at the conversation that is open, or where the focus was last. */
  #doorway(open) {
    const links = [...this.#list.querySelectorAll("a")];
    const isAnother = open !== this.#open;
    this.#open = open;
    const current = links.find((link) => link.getAttribute("aria-current"));
    if (isAnother && current) this.#enterAt(current);
    else if (links.length && !links.some((link) => link.tabIndex === 0)) this.#enterAt(current ?? links[0]);
  }

  #enterAt(target) {
    for (const link of this.#list.querySelectorAll("a")) link.tabIndex = link === target ? 0 : -1;
  }

  focus() {
    this.#list.querySelector('a[tabindex="0"]')?.focus();
  }

  /** Drawn again when it looks different, with the focus where it was. */
  #item(conversation, session, isOpen) {
    const isOnline = conversation.kind === "dm" ? (session.presence.get(conversation.peer) ?? false) : null;
    const typing = conversation.typing().users.length > 0;
    const { last, unread } = conversation;
    const shape = [isOpen, isOnline, typing, unread, last?.time, last?.text, last?.state].join("\n");
    const before = this.#items.get(conversation.topic);
    if (before?.shape === shape) return before;
    const parts = [
      isOnline === null
        ? element("span", { class: "sign" }, icon(conversation.kind === "inbox" ? "inbox" : "hash"))
        : avatar(conversation.peer, isOnline),
      element(
        "span",
        { class: "about" },
        element("span", { class: "name" }, conversation.name),
        element("span", { class: "preview" }, typing ? "typing…" : preview(conversation, session.user)),
      ),
      element(
        "span",
        { class: "aside" },
        last ? element("time", {}, brief(last.time)) : null,
        unread
          ? element(
              "span",
              { class: "badge strong" },
              unread > 99 ? "99+" : String(unread),
              element("span", { class: "unseen" }, " unread"),
            )
          : null,
      ),
      isOnline === null ? null : element("span", { class: "unseen" }, isOnline ? "online" : "away"),
    ];
    const node =
      before?.node ??
      element("li", {}, element("a", { href: `#${encodeURI(conversation.topic)}`, tabindex: "-1" }));
    const link = node.firstChild;
    link.replaceChildren(...parts.filter(Boolean));
    if (isOpen) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    return { shape, node };
  }

  #me({ user, link }) {
    const words = { open: "Connected", connecting: "Connecting…", closed: "Disconnected" }[link.state];
    const kind = { open: "dot good", connecting: "dot warn", closed: "dot bad" }[link.state];
    byId("me-dot").className = kind;
    say(byId("me-name"), user || "…");
    say(byId("me-state"), words);
    if (user && !byId("me-avatar").firstChild) byId("me-avatar").append(avatar(user));
  }
}

function preview({ last, kind }, me) {
  if (!last) return kind === "dm" ? "Say hello" : "Nothing said yet";
  const who = last.sender === me ? "You: " : kind === "dm" ? "" : `${last.sender}: `;
  return `${who}${last.text.slice(0, 120)}`;
}
