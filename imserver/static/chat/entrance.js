/** Where somebody says who they are: a name on a server that runs with --dev, a token elsewhere. */

import { byId, say } from "../dom.js";
import { isName, login, setLogin } from "./identity.js";

/** Where the server is, and whether it believes names: `{ url, dev }`. */
export async function findServer() {
  const response = await fetch("client.json");
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  const { port, path, dev } = await response.json();
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  return { url: `${scheme}://${location.hostname}:${port}${path}`, dev };
}

/** Resolves with a login when the form was sent. `why` says what was wrong with the last one. */
export function enter({ dev }, why = "") {
  const form = byId("entrance-form");
  const field = byId(dev ? "entrance-name" : "entrance-token");
  byId("entrance").hidden = false;
  byId("entrance-by-name").hidden = !dev;
  byId("entrance-by-token").hidden = dev;
  say(byId("entrance-error"), why);
  field.focus();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      const text = field.value.trim();
      const wrong = dev
        ? !isName(text) && "A name has 1 to 64 letters, digits, and any of _ . @ - but no spaces."
        : !text && "A token is needed.";
      say(byId("entrance-error"), wrong || "");
      field.setAttribute("aria-invalid", String(Boolean(wrong)));
      if (wrong) return field.focus();
      setLogin(dev ? { user: text } : { token: text });
      byId("entrance").hidden = true;
      return resolve(login());
    };
  });
}
