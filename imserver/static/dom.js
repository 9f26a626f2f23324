/**
 * Elements for both pages. Whatever comes from people or the server becomes text, never markup:
 * nothing here or elsewhere uses innerHTML.
 */

const SVG = "http://www.w3.org/2000/svg";

/** `element("p", { class: "who", onclick }, "text", child)`: attributes, `on…` listeners, and
 * `dataset` as an object. Children that are null or false are left out. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** One of the symbols in the page's sprite. What it means is said beside it, or by a label. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

export const byId = (id) => document.getElementById(id);

/** Make `nodes` the children of `parent`. Those that stay are not touched, so that focus and
 * selection in them survive. */
export function arrange(parent, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...parent.childNodes]) if (!wanted.has(child)) child.remove();
  let at = parent.firstChild;
  for (const node of nodes) {
    if (node === at) at = at.nextSibling;
    else parent.insertBefore(node, at);
  }
}

/** Set text only where it is another one: a live region would be read again. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Run `work` once, after whatever is going on, however often it is asked for. A hidden tab slows
 * its timers down to one a minute, but not messages to itself. */
export function coalesced(work) {
  const { port1, port2 } = new MessageChannel();
  let isAsked = false;
  port1.onmessage = () => {
    isAsked = false;
    work();
  };
  return () => {
    if (!isAsked) port2.postMessage(null);
    isAsked = true;
  };
}

/** Arrow keys, Home and End among the items of a list of which Tab reaches one. */
export function roving(list, selector) {
  list.addEventListener("keydown", (event) => {
    const items = [...list.querySelectorAll(selector)];
    const at = items.indexOf(document.activeElement);
    const last = items.length - 1;
    const steps = {
      ArrowDown: at + 1,
      ArrowUp: at - 1,
      ArrowRight: at + 1,
      ArrowLeft: at - 1,
      Home: 0,
      End: last,
    };
    if (at < 0 || !(event.key in steps)) return;
    event.preventDefault();
    items[Math.min(last, Math.max(0, steps[event.key]))].focus();
  });
}

/** Ask in a dialog that has a form; resolves with true when it was sent, false when it was left. */
export function ask(dialog) {
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
  });
}
