/** One message as elements: who, what, when, and how far mine has got. */

import { element, icon } from "../dom.js";
import { clock, iso, whole } from "../time.js";

/** What is longer is cut: a page that hangs serves nobody. */
const SHOWN_CHARS = 10_000;
const HUES = 8;
const LINK = /https?:\/\/[^\s<>"]+/g;
const ONLY_EMOJI = /^(?:\p{Extended_Pictographic}[\u{FE0F}\u{200D}\u{1F3FB}-\u{1F3FF}]*){1,6}$/u;

/** A person's colour and letters, the same everywhere. */
export function avatar(user, isOnline = null) {
  let hue = 0;
  for (const letter of user) hue = (hue * 31 + letter.codePointAt(0)) % 9973;
  const letters = [...user.replace(/[^\p{L}\p{N}]+/gu, "")].slice(0, 2).join("") || "?";
  return element(
    "span",
    { class: "avatar", "aria-hidden": "true", dataset: { hue: hue % HUES } },
    letters,
    isOnline === null ? null : element("span", { class: isOnline ? "dot good" : "dot" }),
  );
}

/** Text with its links; nothing else in it means anything. */
function linked(text) {
  const nodes = [];
  let end = 0;
  for (const { 0: found, index } of text.matchAll(LINK)) {
    const address = trimmed(found);
    if (!URL.canParse(address)) continue;
    nodes.push(text.slice(end, index));
    nodes.push(
      element("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, address),
    );
    end = index + address.length;
  }
  return [...nodes, text.slice(end)];
}

/** Without the sentence's own ending, and without a bracket that was opened before it. */
function trimmed(address) {
  const bare = address.replace(/[.,;:!?'*]+$/, "");
  return bare.endsWith(")") && !bare.includes("(") ? bare.slice(0, -1) : bare;
}

/** The state of a message of mine, for the eye and for the ear. */
function progress(one, isLinkOpen) {
  const [name, words] =
    one.state === "failed"
      ? ["alert", "not delivered"]
      : one.state === "sending"
        ? ["clock", isLinkOpen ? "sending" : "waits for the connection"]
        : one.seq
          ? ["check", `kept by the server as number ${one.seq}`]
          : ["check", "delivered"];
  return element(
    "span",
    { class: `progress ${one.state ?? "kept"}`, title: words },
    icon(name),
    element("span", { class: "unseen" }, words),
  );
}

/** `around.isFirst`: the first in a row of the same person; `around.isLast`: the last. */
export function messageRow(message, around, actions) {
  const isMine = message.sender === actions.me;
  const cut = message.text.length > SHOWN_CHARS;
  const text = cut ? `${message.text.slice(0, SHOWN_CHARS)}…` : message.text;
  const kind = ["message", isMine && "mine", around.isFirst && "first", around.isLast && "last"];
  const isEmoji = ONLY_EMOJI.test(text.trim());
  const time = element(
    "time",
    { datetime: iso(message.time), title: whole(message.time) },
    clock(message.time),
  );
  const isShown = around.isLast || message.state;
  return element(
    "li",
    { class: kind.filter(Boolean).join(" ") },
    !isMine && around.isLast ? avatar(message.sender) : null,
    element(
      "div",
      { class: isEmoji ? "bubble emoji" : "bubble" },
      element("p", { class: around.isFirst && !isMine ? "who" : "unseen" }, isMine ? "You" : message.sender),
      element("p", { class: "text", dir: "auto" }, linked(text)),
    ),
    isShown
      ? element("div", { class: "meta" }, time, isMine ? progress(message, actions.isLinkOpen) : null)
      : null,
    message.state === "failed" ? failure(message, actions) : null,
  );
}

function failure(message, actions) {
  const reason = `Not delivered: ${message.error.message} (${message.error.code ?? "no number"})`;
  return element(
    "div",
    { class: "failure" },
    element("span", { class: "error" }, reason),
    element(
      "button",
      { type: "button", class: "button small", onclick: () => actions.retry(message) },
      "Try again",
    ),
    element(
      "button",
      { type: "button", class: "button small plain", onclick: () => actions.discard(message) },
      "Discard",
    ),
  );
}
