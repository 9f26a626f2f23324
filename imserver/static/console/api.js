/** The HTTP API as the console uses it. The key stays in this tab, and leaves it only as a header. */

const KEY = "imserver.key";
const TIMEOUT_MS = 10_000;

/** What the API refused: its number, and its words. 0: it did not answer. */
export class ApiError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }

  /** For people. */
  get words() {
    return this.code ? `${this.code} · ${this.message}` : this.message;
  }
}

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** A path below `v1/`, with parts that may hold anything. */
export const path = (...parts) => parts.map(encodeURIComponent).join("/");

export function get(where, query = {}) {
  const given = Object.entries(query).filter(
    ([, value]) => value !== "" && value !== null && value !== undefined,
  );
  const tail = given.length ? `?${new URLSearchParams(given)}` : "";
  return request(`${where}${tail}`, { method: "GET" });
}

export function post(where, body = {}) {
  const headers = { "content-type": "application/json" };
  return request(where, { method: "POST", headers, body: JSON.stringify(body) });
}

async function request(where, { headers = {}, ...options }) {
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    response = await fetch(`v1/${where}`, { ...options, headers, signal, cache: "no-store" });
  } catch {
    throw new ApiError(0, "The server does not answer.");
  }
  const body = await response.json().catch(() => null);
  if (response.ok) return body;
  const { code = response.status, detail = "", title = response.statusText } = body ?? {};
  throw new ApiError(code, detail ? `${title}: ${detail}` : title);
}
