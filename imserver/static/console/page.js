/**
 * The console: its parts put together. The address says which part is shown (`#sessions`,
 * `#topics/room:lobby`), and while the page can be seen the server is asked for its counters each
 * second. Where a key is needed, it is asked for before anything else.
 */

import { byId, say } from "../dom.js";
import { get, hasKey, setKey } from "./api.js";
import { Letters } from "./letters.js";
import { Overview } from "./overview.js";
import { EVERY_MS, Samples } from "./samples.js";
import { Sessions } from "./sessions.js";
import { Settings } from "./settings.js";
import { Topics } from "./topics.js";

const WANTS_A_KEY = new Set([401, 403]); // or another one, with the scope
const NAMES = ["overview", "sessions", "topics", "letters", "settings"];

const samples = new Samples();
const overview = new Overview();
const parts = {
  sessions: new Sessions(),
  topics: new Topics(),
  letters: new Letters(),
  settings: new Settings(),
};
let isAnswering = false;

/** Resolves when a key was given. */
function askForKey(why) {
  byId("app").hidden = true;
  byId("entrance").hidden = false;
  say(byId("entrance-error"), why);
  byId("entrance-key").value = "";
  byId("entrance-key").focus();
  return new Promise((resolve) => {
    byId("entrance-form").onsubmit = (event) => {
      event.preventDefault();
      const key = byId("entrance-key").value.trim();
      if (!key) return say(byId("entrance-error"), "A key is needed.");
      setKey(key);
      byId("entrance").hidden = true;
      return resolve();
    };
  });
}

async function poll() {
  if (document.visibilityState !== "visible") return;
  try {
    samples.add(await get("stats"));
    isAnswering = true;
    say(byId("trouble"), "");
  } catch (error) {
    samples.add(null);
    isAnswering = false;
    say(byId("trouble"), error.words);
    if (WANTS_A_KEY.has(error.code)) await signIn(error.words);
  }
  byId("trouble-bar").hidden = isAnswering;
  byId("live-dot").className = isAnswering ? "dot good" : "dot bad";
  say(byId("live"), isAnswering ? "Live" : "No answer");
  overview.render(samples, isAnswering);
}

async function run() {
  for (;;) {
    const beganMs = performance.now();
    await poll();
    await new Promise((resolve) =>
      setTimeout(resolve, Math.max(100, EVERY_MS - (performance.now() - beganMs))),
    );
  }
}

function route() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  const part = NAMES.includes(name) ? name : "overview";
  for (const one of NAMES) byId(one).hidden = one !== part;
  for (const link of document.querySelectorAll(".tabs a")) {
    if (link.hash === `#${part}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${byId(part).dataset.title} · imserver console`;
  if (part === "overview") overview.render(samples, isAnswering);
  else parts[part].show(decodeURIComponent(rest.join("/")));
}

/** Find out who the server is; ask for a key as long as it wants another one. */
async function signIn(why = "") {
  if (why) {
    setKey(null);
    await askForKey(why);
  }
  for (;;) {
    try {
      const { node, version } = await get("version");
      say(byId("who"), `${node} · ${version}`);
      await get("stats");
      break;
    } catch (error) {
      if (WANTS_A_KEY.has(error.code)) await askForKey(hasKey() ? error.words : "");
      else break; // the bar tells, and the next second asks again
    }
  }
  byId("sign-out").hidden = !hasKey();
  byId("app").hidden = false;
  route();
}

for (const button of document.querySelectorAll("dialog [data-cancel]"))
  button.addEventListener("click", () => button.closest("dialog").close());
byId("sign-out").addEventListener("click", () => {
  setKey(null);
  location.reload();
});
addEventListener("hashchange", route);

await signIn();
run();
