/** Times, sizes and counts as people read them, in the language of their browser. */

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const SECONDS = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const WHOLE = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const DAY = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const DAY_OF_YEAR = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "long", year: "numeric" });
const NEAR = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" });
const SHORT = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const DAY_MS = 86_400_000;

export const seconds = (ms) => SECONDS.format(ms);
export const clock = (ms) => CLOCK.format(ms);
export const whole = (ms) => WHOLE.format(ms);
export const iso = (ms) => new Date(ms).toISOString();

const midnight = (ms) => new Date(ms).setHours(0, 0, 0, 0);

export const isSameDay = (a, b) => midnight(a) === midnight(b);

/** "today", "yesterday", "Monday, 3 March"; with the year when it is another one. */
export function day(ms, now = Date.now()) {
  const days = Math.round((midnight(ms) - midnight(now)) / DAY_MS);
  if (days > -2 && days < 2) return NEAR.format(days, "day");
  const isThisYear = new Date(ms).getFullYear() === new Date(now).getFullYear();
  return (isThisYear ? DAY : DAY_OF_YEAR).format(ms);
}

/** For a list: the time of today, the day of anything older. */
export function brief(ms, now = Date.now()) {
  return isSameDay(ms, now)
    ? clock(ms)
    : new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" }).format(ms);
}

/** 950, 1.2K, 3.4M; below ten with a digit behind the point, where there is one. */
export function count(number) {
  if (number === null || number === undefined || Number.isNaN(number)) return "–";
  if (Math.abs(number) >= 1000) return SHORT.format(number);
  return String(Number(number.toFixed(number < 10 ? 1 : 0)));
}

/** 900 B, 1.5 KiB, 20 MiB. */
export function bytes(number) {
  if (number === null || number === undefined || Number.isNaN(number)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; number >= 1024 && at < units.length - 1; at++) number /= 1024;
  return `${at && number < 10 ? number.toFixed(1) : Math.round(number)} ${units[at]}`;
}

/** 4 s, 12 min, 3 h 20 min, 5 d. */
export function span(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return `${Math.floor(hours / 24)} d`;
}
