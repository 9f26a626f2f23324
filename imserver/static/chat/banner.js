/** What happens to the connection, in words, and what to do where it does not mend itself. */

import { byId, say } from "../dom.js";
import { span } from "../time.js";

const TICK_MS = 1_000; // of the countdown
const REPLACED = 4009;
const KICKED = 4010;
const RESTARTS = { from: 4200, below: 4300 };

/** What is to be said, and what the button does say; null while all is well. */
function story({ state, reason, retryAt }) {
  const code = reason?.code ?? 0;
  if (state === "open") return null;
  if (state === "connecting") {
    if (!navigator.onLine) return ["This device is offline. What you write waits here and is sent later."];
    if (retryAt === null) return ["Connecting…"];
    const isRestart = code >= RESTARTS.from && code < RESTARTS.below;
    const why = isRestart ? "The server restarts." : "The connection is lost.";
    return [`${why} What you write waits here and is sent later.`];
  }
  if (code === REPLACED) return ["You went on in another window.", "Use this window"];
  if (code === KICKED) return ["You were disconnected by an operator.", "Connect again"];
  return [`The server ended this: ${reason?.message ?? "no reason given"} (${code}).`, "Connect again"];
}

export class Banner {
  #link = { state: "open" };

  constructor() {
    byId("banner-button").addEventListener("click", () => location.reload());
    addEventListener("online", () => this.#draw());
    addEventListener("offline", () => this.#draw());
    setInterval(() => this.#draw(), TICK_MS);
  }

  /** `link` is what the session knows of its connection. */
  render(link) {
    this.#link = link;
    this.#draw();
  }

  #draw() {
    const { state, retryAt } = this.#link;
    const [words = "", button = ""] = story(this.#link) ?? [];
    byId("banner").hidden = !words;
    byId("banner").classList.toggle("bad", state === "closed");
    say(byId("banner-text"), words);
    // Not for screen readers: a number each second says nothing new.
    const isWaiting = state === "connecting" && retryAt !== null && navigator.onLine;
    say(byId("banner-countdown"), isWaiting ? `Trying again in ${span(retryAt - Date.now())}.` : "");
    byId("banner-button").hidden = !button;
    say(byId("banner-button"), button);
  }
}
