/** What the store keeps: topics, and of one of them its history and its members. */

import { byId, element, say } from "../dom.js";
import { iso, whole } from "../time.js";
import { get, path } from "./api.js";
import { cell, List } from "./list.js";

const PAGE = 50;

/** What a message says, for people: its text where it has one, else its value. */
export function bodyText({ body }) {
  if (typeof body === "string") return body;
  return typeof body?.text === "string" ? body.text : JSON.stringify(body);
}

export class Topics {
  #topic = "";
  #topics = new List({
    caption: "Topics",
    columns: ["Topic", "First", "Head"],
    load: async (after) => {
      const page = await get("topics", { after: after ?? "" });
      return { items: page.topics, after: page.after };
    },
    row: ({ topic, first, head }) => [
      cell("Topic", element("a", { href: `#topics/${encodeURIComponent(topic)}` }, topic)),
      cell("First", String(first)),
      cell("Head", String(head)),
    ],
    empty: ["Nothing is kept yet", "Durable messages appear here: write one on the chat page."],
  });
  #history = new List({
    caption: "History, the newest first",
    columns: ["Seq", "When", "Sender", "Tag", "Body"],
    load: (before) => this.#page(before),
    row: (message) => [
      cell("Seq", String(message.seq)),
      cell("When", element("time", { datetime: iso(message.time_ms) }, whole(message.time_ms))),
      cell("Sender", element("b", {}, message.sender)),
      cell("Tag", message.tag || "–"),
      cell("Body", element("span", { class: "body" }, bodyText(message))),
    ],
    empty: ["Nothing is kept", "The topic's messages are gone by retention, or it never had one."],
  });
  #members = new List({
    caption: "Members",
    columns: ["User", "Since", "Read", "Unread"],
    load: async (after) => {
      const page = await get(path("topics", this.#topic, "members"), { after: after ?? "" });
      return { items: page.members, after: page.after };
    },
    row: ({ user, since_seq, read, unread }) => [
      cell("User", element("b", {}, user)),
      cell("Since", String(since_seq)),
      cell("Read", String(read)),
      cell("Unread", String(unread)),
    ],
    empty: ["No members", "Whoever may subscribe reads it. Direct messages and groups have members."],
  });

  constructor() {
    byId("topics-list").append(this.#topics.node);
    byId("topic-history").append(this.#history.node);
    byId("topic-members").append(this.#members.node);
    byId("topics-reload").addEventListener("click", () => this.show(this.#topic));
    byId("topic-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const topic = byId("topic-name").value.trim();
      if (topic) location.hash = `#topics/${encodeURIComponent(topic)}`;
    });
  }

  /** All, or one of them. */
  async show(topic) {
    this.#topic = topic;
    byId("topics-all").hidden = topic !== "";
    byId("topic-one").hidden = topic === "";
    if (!topic) return this.#topics.reload();
    say(byId("topic-title"), topic);
    return Promise.all([this.#history.reload(), this.#members.reload()]);
  }

  /** The newest above, so a page is turned around, and the next is before its first. */
  async #page(before) {
    const page = await get(path("topics", this.#topic, "history"), { before, limit: PAGE });
    return { items: page.messages.toReversed(), after: page.before };
  }
}
