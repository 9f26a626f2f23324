/** Who is in the open conversation, and who of them is here; a name begins a direct message. A
 * conversation of two needs no list. */

import { arrange, byId, element, roving, say } from "../dom.js";
import { avatar } from "./message.js";

/** Below it the list covers the conversation. */
const WIDE = matchMedia("(min-width: 1100px)");
/** More names than anybody reads; the rest is a number. */
const SHOWN = 200;

export class People {
  #panel = byId("people");
  #toggle = byId("toggle-people");
  #items = new Map(); // user -> { shape, node }
  #isWanted = WIDE.matches;
  #write;

  /** `write(user)` begins a direct message. */
  constructor(write) {
    this.#write = write;
    roving(byId("members"), "button:enabled");
    this.#toggle.addEventListener("click", () => this.show(this.#panel.hidden));
    byId("close-people").addEventListener("click", () => this.show(false));
    WIDE.addEventListener("change", () => this.show(WIDE.matches));
  }

  /** Whether it covers the conversation. */
  get isCovering() {
    return !this.#panel.hidden && !WIDE.matches;
  }

  show(isOpen) {
    const hadFocus = this.#panel.contains(document.activeElement);
    this.#isWanted = isOpen;
    this.#panel.hidden = !isOpen;
    this.#toggle.setAttribute("aria-expanded", String(isOpen));
    if (hadFocus && !isOpen) this.#toggle.focus();
  }

  render(conversation, session) {
    const isCrowd = conversation.kind !== "dm" && conversation.kind !== "inbox";
    this.#toggle.hidden = !isCrowd;
    this.#panel.hidden = !isCrowd || !this.#isWanted;
    this.#toggle.setAttribute("aria-expanded", String(this.#isWanted));
    const isHere = (user) => user === session.user || (session.presence.get(user) ?? false);
    const users = [...conversation.members].sort((a, b) => isHere(b) - isHere(a) || a.localeCompare(b));
    const kept = new Map();
    const nodes = users.slice(0, SHOWN).map((user) => {
      const item = this.#item(user, isHere(user), user === session.user);
      kept.set(user, item);
      return item.node;
    });
    arrange(byId("members"), nodes);
    this.#items = kept;
    const here = users.filter(isHere).length;
    say(byId("members-count"), `${here} of ${users.length} here`);
    say(byId("subtitle"), subtitle(conversation, here, isHere));
  }

  #pick(user) {
    if (this.isCovering) this.show(false);
    this.#write(user);
  }

  #item(user, isHere, isMe) {
    const before = this.#items.get(user);
    if (before?.shape === isHere) return before;
    const node = element(
      "li",
      {},
      element(
        "button",
        {
          type: "button",
          class: "person",
          disabled: isMe,
          title: isMe ? null : `Write to ${user}`,
          onclick: () => this.#pick(user),
        },
        avatar(user, isHere),
        element("span", { class: "name" }, user),
        element("span", { class: "state" }, isMe ? "you" : isHere ? "online" : "away"),
      ),
    );
    return { shape: isHere, node };
  }
}

function subtitle({ kind, peer, members }, here, isHere) {
  if (kind === "dm") return isHere(peer) ? "online" : "away";
  if (kind === "inbox") return "messages from programs";
  if (!members.length) return "";
  return `${here} ${here === 1 ? "person" : "people"} here`;
}
