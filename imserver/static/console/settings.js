/** Every setting in force, by section; the server has hidden the secrets. */

import { byId, element, say } from "../dom.js";
import { get } from "./api.js";

/** `{ a: { b: 1 } }` as ["a.b", "1"]; lists of sections by number. */
function* flat(value, name = "") {
  const isSection =
    value !== null &&
    typeof value === "object" &&
    (!Array.isArray(value) || value.some((one) => typeof one === "object"));
  if (!isSection) yield [name, typeof value === "string" ? value || "(empty)" : JSON.stringify(value)];
  else for (const [key, one] of Object.entries(value)) yield* flat(one, name ? `${name}.${key}` : key);
}

export class Settings {
  constructor() {
    byId("settings-search").addEventListener("input", () => this.#filter());
  }

  async show() {
    try {
      this.#draw(await get("config"));
      say(byId("settings-error"), "");
    } catch (error) {
      say(byId("settings-error"), error.words ?? String(error));
    }
  }

  #draw(config) {
    const sections = new Map();
    for (const [name, value] of flat(config)) {
      const section = name.includes(".") ? name.split(".")[0] : "server";
      if (!sections.has(section)) sections.set(section, []);
      sections
        .get(section)
        .push(element("div", { dataset: { name } }, element("dt", {}, name), element("dd", {}, value)));
    }
    byId("settings-list").replaceChildren(
      ...[...sections].map(([section, rows]) =>
        element(
          "section",
          { class: "panel" },
          element("h3", {}, section),
          element("dl", { class: "facts" }, rows),
        ),
      ),
    );
    this.#filter();
  }

  #filter() {
    const wanted = byId("settings-search").value.trim().toLowerCase();
    for (const section of byId("settings-list").children) {
      const rows = [...section.querySelectorAll("[data-name]")];
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
      section.hidden = rows.every((row) => row.hidden);
    }
  }
}
