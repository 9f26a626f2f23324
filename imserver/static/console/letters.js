/** Dead letters: messages that a device did not take in all its attempts. Show, redrive, purge. */

import { ask, byId, element, say } from "../dom.js";
import { iso, whole } from "../time.js";
import { get, post } from "./api.js";
import { actions, cell, List } from "./list.js";
import { bodyText } from "./topics.js";

const REASONS = { nack: "refused", unacknowledged: "not acknowledged" };

const why = ({ reason, attempts }) =>
  `${REASONS[reason] ?? reason}, ${attempts} ${attempts === 1 ? "attempt" : "attempts"}`;

/** A letter and its message, as names and values. */
function factsOf({ user, device, topic, seq, time_ms, message, ...letter }) {
  return {
    For: `${user} / ${device}`,
    Topic: topic,
    Seq: String(seq),
    Why: why(letter),
    When: whole(time_ms),
    Sender: message.sender,
    Published: whole(message.time_ms),
    ...(message.tag && { Tag: message.tag }),
  };
}

export class Letters {
  #chosen = new Set(); // ids
  #list = new List({
    caption: "Dead letters",
    columns: ["Choose", "Number", "For", "Topic", "Seq", "Why", "When", ""],
    load: (after) => this.#load(after),
    row: (letter) => this.#row(letter),
    empty: [
      "No dead letters",
      "Everything was delivered, or is still being tried. This is how it should look.",
    ],
  });

  constructor() {
    byId("letters-list").append(this.#list.node);
    byId("letters-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.show();
    });
    byId("letters-reload").addEventListener("click", () => this.show());
    byId("letters-redrive").addEventListener("click", () => this.#redrive([...this.#chosen]));
    byId("letters-purge").addEventListener("click", () => this.#purge([...this.#chosen]));
  }

  show() {
    this.#chosen.clear();
    this.#count();
    return this.#list.reload();
  }

  async #load(after) {
    const topic = byId("letters-topic").value.trim();
    const user = byId("letters-user").value.trim();
    const page = await get("dead", { topic, user, after });
    return { items: page.letters, after: page.after };
  }

  #row(letter) {
    const { id, user, device, topic, seq, time_ms } = letter;
    const name = `letter ${id}`;
    const button = (words, kind, onclick) =>
      element(
        "button",
        { type: "button", class: `button small ${kind}`, "aria-label": `${words} ${name}`, onclick },
        words,
      );
    return [
      cell(
        "Choose",
        element("input", {
          type: "checkbox",
          "aria-label": `Choose ${name}`,
          onchange: ({ target }) => this.#choose(id, target.checked),
        }),
      ),
      cell("Number", String(id)),
      cell("For", element("b", {}, user), ` / ${device}`),
      cell("Topic", topic),
      cell("Seq", String(seq)),
      cell("Why", why(letter)),
      cell("When", element("time", { datetime: iso(time_ms) }, whole(time_ms))),
      actions(
        button("Show", "", () => this.#show(id)),
        button("Redrive", "", () => this.#redrive([id])),
        button("Purge", "danger", () => this.#purge([id])),
      ),
    ];
  }

  #choose(id, isChosen) {
    if (isChosen) this.#chosen.add(id);
    else this.#chosen.delete(id);
    this.#count();
  }

  #count() {
    const { size } = this.#chosen;
    byId("letters-chosen").hidden = !size;
    say(byId("letters-count"), `${size} chosen`);
  }

  async #show(id) {
    await this.#do(async () => {
      const letter = await get(`dead/${id}`);
      say(byId("letter-title"), `Dead letter ${id}`);
      const facts = Object.entries(factsOf(letter));
      byId("letter-facts").replaceChildren(
        ...facts.map(([name, value]) =>
          element("div", {}, element("dt", {}, name), element("dd", {}, value)),
        ),
      );
      say(byId("letter-body"), bodyText(letter.message));
      ask(byId("letter-dialog"));
    });
  }

  async #redrive(ids) {
    const words = ids.length === 1 ? `letter ${ids[0]}` : `${ids.length} letters`;
    say(byId("redrive-what"), words);
    if (await ask(byId("redrive-dialog"))) await this.#change("dead/redrive", ids, "on the way once more");
  }

  async #purge(ids) {
    const words = ids.length === 1 ? `letter ${ids[0]}` : `${ids.length} letters`;
    say(byId("purge-what"), words);
    if (await ask(byId("purge-dialog"))) await this.#change("dead/purge", ids, "deleted");
  }

  async #change(where, ids, done) {
    await this.#do(async () => {
      const { count } = await post(where, { ids });
      say(byId("letters-said"), `${count} ${count === 1 ? "letter is" : "letters are"} ${done}.`);
      await this.show();
    });
  }

  async #do(work) {
    try {
      await work();
      this.#list.fail(null);
    } catch (error) {
      this.#list.fail(error);
    }
  }
}
