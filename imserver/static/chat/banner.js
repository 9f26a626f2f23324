/** What happens to the connection, in words, and what to do where it does not mend itself. */

import { byId, say } from "../dom.js";
import { span } from "../time.js";

const REPLACED = 4009;
const KICKED = 4010;

/** Why it ended, what the button says. `null` while all is well. */
function story({ state, reason, retryAt }) {
  const code = reason?.code ?? 0;
  if (state === "open") return null;
  if (state === "connecting") {
    if (!navigator.onLine) return ["This device is offline. What you write waits here and is sent later."];
    if (retryAt === null) return ["Connecting…"];
    const why = code >= 4200 && code < 4300 ? "The server restarts." : "The connection is lost.";
    return [`${why} What you write waits here and is sent later.`];
  }
  if (code === REPLACED) return ["You went on in another window.", "Use this window"];
  if (code === KICKED) return ["You were disconnected by an operator.", "Connect again"];
  return [`The server ended this: ${reason?.message ?? "no reason given"} (${code}).`, "Connect again"];
}

export function renderBanner(link) {
  const [words, button] = story(link) ?? [];
  const banner = byId("banner");
  banner.hidden = !words;
  banner.classList.toggle("bad", link.state === "closed");
  say(byId("banner-text"), words ?? "");
  const isWaiting = words && link.state === "connecting" && link.retryAt !== null;
  // Not for screen readers: a number each second says nothing new.
  say(byId("banner-countdown"), isWaiting ? `Trying again in ${span(link.retryAt - Date.now())}.` : "");
  byId("banner-button").hidden = !button;
  say(byId("banner-button"), button ?? "");
}
