/** Where a message is written: Enter sends, Shift+Enter begins a line, drafts stay with their
 * conversation. */

import { byId, say } from "../dom.js";

/** A frame holds 64 KiB by default; a character is up to four bytes, and quotes are escaped. */
const TEXT_CHARS = 8_000;
const HEIGHT_MAX_PX = 160;

export class Composer {
  #form = byId("composer");
  #text = byId("text");
  #drafts = new Map(); // topic -> text
  #topic = null;
  #hooks;

  /** `hooks`: `send(text)`, `type()`. */
  constructor(hooks) {
    this.#hooks = hooks;
    this.#text.maxLength = TEXT_CHARS;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.#text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#send();
    });
    this.#text.addEventListener("input", () => {
      this.#fit();
      if (this.#text.value.trim()) this.#hooks.type();
    });
  }

  render(conversation) {
    this.#form.hidden = !conversation.isWritable;
    if (conversation.topic === this.#topic) return;
    if (this.#topic !== null) this.#drafts.set(this.#topic, this.#text.value);
    this.#topic = conversation.topic;
    this.#text.value = this.#drafts.get(conversation.topic) ?? "";
    say(byId("text-label"), `Message to ${conversation.name}`);
    this.#text.placeholder = `Message ${conversation.kind === "room" ? "#" : ""}${conversation.name}`;
    this.#fit();
  }

  focus() {
    this.#text.focus({ preventScroll: true });
  }

  #send() {
    const text = this.#text.value.trim();
    if (!text) return;
    this.#text.value = "";
    this.#fit();
    this.#hooks.send(text);
    this.focus();
  }

  /** As high as its lines, up to a few. */
  #fit() {
    this.#text.style.height = "auto";
    this.#text.style.height = `${Math.min(this.#text.scrollHeight + 2, HEIGHT_MAX_PX)}px`;
    byId("send").disabled = !this.#text.value.trim();
  }
}
