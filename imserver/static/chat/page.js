/**
 * The chat page: its parts put together. The address says which conversation is open
 * (`#room:lobby`), so that Back, bookmarks and reloads work; the session says what is in it; and
 * after any change everything is drawn again, which costs little where little has changed.
 */

import { ask, byId, coalesced, say } from "../dom.js";
import { Banner } from "./banner.js";
import { Composer } from "./composer.js";
import { enter, findServer } from "./entrance.js";
import { isName, login, setLogin } from "./identity.js";
import { People } from "./people.js";
import { Session } from "./session.js";
import { Sidebar } from "./sidebar.js";
import { Timeline } from "./timeline.js";

const LOBBY = "room:lobby";
const LOOK_AROUND_MS = 4_000;
const PHONE = matchMedia("(max-width: 700px)");

const render = coalesced(draw);
const banner = new Banner();
const sidebar = new Sidebar();
const composer = new Composer({
  send: (text) => {
    open.dividerSeq = null;
    session.send(open, text);
    timeline.toEnd();
  },
  type: () => session.type(open),
});
const people = new People((user) => show(dmTopic(user)));
const timeline = new Timeline({
  earlier: () => session.earlier(open),
  retry: (one) => session.deliver(open, one),
  discard: (one) => {
    open.discard(one);
    render();
  },
  seen: render,
});

let server = null;
let session = null;
let open = null; // the conversation that is shown
let typingEnds = 0; // the timer of who stops first

// What is open

function show(topic) {
  location.hash = encodeURI(topic);
}

const dmTopic = (user) => ["dm", ...[session.user, user].sort()].join(":");

function topicOfAddress() {
  try {
    return decodeURI(location.hash.slice(1));
  } catch {
    return "";
  }
}

/** Follow the address. A wide page always has something open. */
function route() {
  if (!session?.user) return;
  let topic = topicOfAddress();
  if (!topic && !PHONE.matches)
    topic = session.conversations.keys().next().value ?? (server.dev ? LOBBY : "");
  const before = open;
  open = topic ? session.open(topic) : null;
  if (open !== before) {
    if (before) before.dividerSeq = null;
    if (open) welcome(open);
  }
  render();
}

/** Mark what is new in it, once that is known, and put the cursor where one writes. */
async function welcome(conversation) {
  session.lookAround(conversation);
  if (!PHONE.matches) composer.focus();
  await conversation.ready;
  if (conversation !== open) return;
  markNew();
  conversation.isWelcomed = true;
  session.lookAround(conversation);
  render();
}

/** A line above the first message that nobody has seen. */
function markNew() {
  if (!open?.unread) return;
  const isNew = ({ seq, sender }) => seq > open.readSeq && sender !== session.user;
  open.dividerSeq = open.messages.find(isNew)?.seq ?? null;
}

function isSeen() {
  return open?.isWelcomed && document.visibilityState === "visible" && timeline.isAtEnd;
}

// Drawing

function draw() {
  if (!session) return;
  if (!session.user && session.link.state === "closed") {
    const { message, code } = session.link.reason;
    askAgain(`The server said no: ${message} (${code}).`);
    return;
  }
  byId("app").hidden = false;
  banner.render(session.link);
  document.body.dataset.view = open ? "conversation" : "list";
  byId("conversation").hidden = !open && PHONE.matches;
  byId("open").hidden = !open;
  byId("none").hidden = open !== null;
  if (open) drawOpen();
  sidebar.render(session, open);
  let unread = 0;
  let until = Infinity;
  for (const conversation of session.conversations.values()) {
    unread += conversation.unread;
    until = Math.min(until, conversation.typing().until);
    if (conversation !== open || timeline.isAtEnd) conversation.trim();
  }
  clearTimeout(typingEnds);
  if (until < Infinity) typingEnds = setTimeout(render, until - Date.now() + 1);
  document.title = `${unread ? `(${unread}) ` : ""}${open ? `${open.name} · ` : ""}imserver chat`;
  session.settle();
}

function drawOpen() {
  if (isSeen()) session.see(open);
  say(byId("title"), open.name);
  byId("title-sign").hidden = open.kind !== "room";
  byId("leave").hidden = open.kind !== "room";
  byId("hint").hidden = open.kind !== "room" || !server.dev;
  byId("refusal").hidden = !open.refusal;
  byId("rejoin").hidden = session.link.state !== "open";
  if (open.refusal) say(byId("refusal-text"), `${open.refusal.message} (${open.refusal.code})`);
  composer.render(open);
  people.render(open, session);
  timeline.render(open, session);
  const { users } = open.typing();
  const names = users.length > 2 ? `${users.length} people` : users.join(" and ");
  say(byId("typing-who"), users.length ? `${names} ${users.length > 1 ? "are" : "is"} typing` : "");
  byId("typing").hidden = !users.length;
}

/** For those who listen: what came just now. */
function announce(conversation, message) {
  const where = conversation === open ? "" : ` in ${conversation.name}`;
  say(byId("announcer"), `${message.sender}${where}: ${message.text.slice(0, 300)}`);
}

// Who is here

function begin(found) {
  let wasUser = "";
  session = new Session(
    server.url,
    found,
    () => {
      if (session.user && !wasUser) {
        wasUser = session.user;
        if (server.dev && !session.conversations.size && !topicOfAddress()) show(LOBBY);
        route();
      }
      render();
    },
    announce,
  );
  render();
}

/** The login was refused: ask for another. */
async function askAgain(why) {
  session = null;
  byId("app").hidden = true;
  setLogin(null);
  begin(await enter(server, why));
}

async function start() {
  try {
    server = await findServer();
  } catch (error) {
    say(
      byId("entrance-error"),
      `This page does not find its server: ${error.message}. Reload it in a moment.`,
    );
    byId("entrance").hidden = false;
    return;
  }
  begin(login() ?? (await enter(server)));
}

// What people do

async function askForTopic(kind) {
  const dialog = byId(`${kind}-dialog`);
  const field = byId(`${kind}-name`);
  field.value = "";
  if (!(await ask(dialog))) return;
  const name = field.value.trim();
  show(kind === "room" ? `room:${name.replace(/^#/, "")}` : dmTopic(name));
}

byId("join-room").addEventListener("click", () => askForTopic("room"));
byId("write-to").addEventListener("click", () => askForTopic("dm"));
byId("dm-name").addEventListener("input", ({ target }) => {
  const text = target.value.trim();
  target.setCustomValidity(!text || isName(text) ? "" : "Letters, digits, and any of _ . @ - but no spaces.");
});
for (const button of document.querySelectorAll("dialog [data-cancel]"))
  button.addEventListener("click", () => button.closest("dialog").close());
byId("back").addEventListener("click", () => show(""));
byId("rejoin").addEventListener("click", () => session.rejoin(open));
byId("leave").addEventListener("click", () => {
  session.leave(open);
  open = null;
  show("");
  route();
});
byId("sign-out").addEventListener("click", () => {
  setLogin(null);
  history.replaceState(null, "", location.pathname);
  location.reload(); // nothing of this person stays on the page
});

document.addEventListener("keydown", (event) => {
  if (!session || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape" && people.isCovering) people.show(false);
  else if (event.key === "Escape" && PHONE.matches) show("");
  else if (event.key === "Escape") sidebar.focus();
});

addEventListener("hashchange", route);
PHONE.addEventListener("change", route);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") markNew();
  render();
});
addEventListener("beforeunload", (event) => {
  if (session?.isSending) event.preventDefault();
});

setInterval(() => {
  if (session && document.visibilityState === "visible") session.lookAround(open);
}, LOOK_AROUND_MS);

start();
