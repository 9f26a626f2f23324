/**
 * A list that the API gives in pages, as a table: what is loaded is shown, `More` loads the next
 * page, errors stand above with number and text, and an empty list says what to do.
 */

import { element } from "../dom.js";
import { ApiError } from "./api.js";

export class List {
  #load;
  #row;
  #body = element("tbody");
  #table;
  #empty;
  #error = element("p", { class: "error", role: "alert" });
  #more = element(
    "button",
    { type: "button", class: "button", hidden: true, onclick: () => this.#page(this.#after) },
    "More",
  );
  #after = null;
  #asked = 0;

  /** `load(after)` gives `{ items, after }`; `row(item)` the cells; `empty` what to say of none. */
  constructor({ caption, columns, load, row, empty }) {
    this.#load = load;
    this.#row = row;
    this.#empty = element(
      "div",
      { class: "empty", hidden: true },
      element("strong", {}, empty[0]),
      element("p", {}, empty[1]),
    );
    const head = element(
      "thead",
      {},
      element(
        "tr",
        {},
        columns.map((name) =>
          element("th", { scope: "col" }, name || element("span", { class: "unseen" }, "Actions")),
        ),
      ),
    );
    this.#table = element(
      "table",
      { class: "table", hidden: true },
      element("caption", { class: "unseen" }, caption),
      head,
      this.#body,
    );
    const frame = element("div", { class: "frame" }, this.#table, this.#empty);
    this.node = element("div", { class: "list" }, this.#error, frame, this.#more);
  }

  /** From the beginning. */
  reload() {
    return this.#page(null);
  }

  async #page(after) {
    const asked = ++this.#asked;
    let page;
    try {
      page = await this.#load(after);
      this.fail(null);
    } catch (error) {
      if (asked === this.#asked) this.fail(error);
      return;
    }
    if (asked !== this.#asked) return; // an older question's answer
    const rows = page.items.map((item) => element("tr", {}, this.#row(item)));
    if (after === null) this.#body.replaceChildren(...rows);
    else this.#body.append(...rows);
    const count = this.#body.childElementCount;
    this.#table.hidden = !count;
    this.#empty.hidden = count > 0;
    this.#after = page.after ?? null;
    this.#more.hidden = this.#after === null;
  }

  fail(error) {
    if (error && !(error instanceof ApiError)) throw error;
    this.#error.textContent = error?.words ?? "";
  }
}

/** A cell; `label` is its column's name where a phone shows rows as cards. */
export const cell = (label, ...content) =>
  element("td", { dataset: { label } }, element("span", {}, ...content));

/** The last one, with what can be done. */
export const actions = (...buttons) =>
  element("td", { class: "last" }, element("div", { class: "buttons" }, ...buttons));
