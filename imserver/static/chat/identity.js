/**
 * Who this tab is, and what it remembers.
 *
 * The name, the token and the device belong to the tab (sessionStorage), so that two windows can be
 * two people and a reload is the same one. The rooms of a person belong to the browser
 * (localStorage). A device is a place in every conversation on the server, hence one for each tab.
 */

const ROOMS_MAX = 200;
const IDENTIFIER = /^[A-Za-z0-9_.@-]{1,64}$/;

/** Storage that is forbidden or full remembers nothing, and the page works. */
function read(storage, key) {
  try {
    return JSON.parse(globalThis[storage].getItem(`imserver.${key}`));
  } catch {
    return null;
  }
}

function write(storage, key, value) {
  try {
    if (value === null) globalThis[storage].removeItem(`imserver.${key}`);
    else globalThis[storage].setItem(`imserver.${key}`, JSON.stringify(value));
  } catch {
    // As above.
  }
}

export const isName = (text) => IDENTIFIER.test(text);

/** What a token says, unverified: the server judges it, the page only wants its device. */
function claims(token) {
  try {
    return JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
  } catch {
    return {};
  }
}

function newDevice() {
  const bytes = crypto.getRandomValues(new Uint8Array(6));
  return `web-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** How this tab logs in: `{ user }` or `{ token }`, and its device. Null before somebody said. */
export function login() {
  const kept = read("sessionStorage", "login");
  if (!kept?.user && !kept?.token) return null;
  let device = read("sessionStorage", "device");
  if (!isName(device ?? "")) write("sessionStorage", "device", (device = newDevice()));
  return { ...kept, device: (kept.token && claims(kept.token).im?.device) || device };
}

export function setLogin(kept) {
  write("sessionStorage", "login", kept);
}

/** The rooms that this person has joined, in that order. */
export function rooms(user) {
  const kept = read("localStorage", `rooms.${user}`);
  return Array.isArray(kept) ? kept.filter((topic) => typeof topic === "string").slice(0, ROOMS_MAX) : [];
}

export function setRooms(user, topics) {
  write("localStorage", `rooms.${user}`, topics.slice(-ROOMS_MAX));
}
