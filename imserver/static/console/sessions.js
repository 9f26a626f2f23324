/** Who is connected: search, look, disconnect. */

import { ask, byId, element, say } from "../dom.js";
import { get, path, post } from "./api.js";
import { actions, cell, List } from "./list.js";

const PAGE = 50;
const TYPED_MS = 250;
/** A connection is listed until what was queued for it has left. */
const CLOSING_MS = 1_000;

export class Sessions {
  #list = new List({
    caption: "Sessions",
    columns: ["User", "Device", "Topics", "Session", ""],
    load: (after) => this.#load(after),
    row: (session) => this.#row(session),
    empty: [
      "Nobody is here",
      "No session fits. Open the chat page in another window, or look for something else.",
    ],
  });
  #timer = null;

  constructor() {
    byId("sessions-list").append(this.#list.node);
    byId("sessions-search").addEventListener("input", () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.show(), TYPED_MS);
    });
    byId("sessions-reload").addEventListener("click", () => this.show());
  }

  show() {
    return this.#list.reload();
  }

  async #load(after) {
    const search = byId("sessions-search").value.trim();
    const page = await get("sessions", { search, after, limit: PAGE });
    return { items: page.sessions, after: page.after };
  }

  #row(session) {
    const { id, user, device, subscriptions, topics } = session;
    const more = subscriptions > topics.length ? ` and ${subscriptions - topics.length} more` : "";
    return [
      cell("User", element("b", {}, user)),
      cell("Device", device),
      cell("Topics", topics.join(", ") + more || "none"),
      cell("Session", element("code", {}, id)),
      actions(
        element(
          "button",
          {
            type: "button",
            class: "button small danger",
            "aria-label": `Disconnect ${user}`,
            onclick: () => this.#disconnect(user),
          },
          "Disconnect",
        ),
      ),
    ];
  }

  async #disconnect(user) {
    say(byId("disconnect-user"), user);
    if (!(await ask(byId("disconnect-dialog")))) return;
    try {
      const { count } = await post(path("users", user, "disconnect"));
      say(byId("sessions-said"), `${count} ${count === 1 ? "connection" : "connections"} of ${user} closed.`);
    } catch (error) {
      this.#list.fail(error);
      return;
    }
    await this.show();
    setTimeout(() => this.show(), CLOSING_MS);
  }
}
