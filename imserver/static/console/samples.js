/**
 * What /v1/stats said in the last ten minutes, and what follows from it. Counters become rates;
 * where the server was away or began anew there is a hole, not a zero.
 */

export const EVERY_MS = 1_000;
const KEPT = 600;
/** Two answers further apart say nothing about a moment between. */
const HOLE_S = 5;

export class Samples {
  #samples = []; // { at, stats }, `at` in seconds; stats null while there was no answer

  /** The latest answer. */
  told = null;

  /** Its counters and gauges by name. */
  get latest() {
    return this.#samples.at(-1)?.stats ?? null;
  }

  /** An answer, or null where none came. Its time is the page's: a clock that is set moves no line. */
  add(answer, at = Date.now() / 1000) {
    if (answer) this.told = answer;
    this.#samples.push({ at, stats: answer?.counts ?? null });
    if (this.#samples.length > KEPT) this.#samples.shift();
  }

  get times() {
    return this.#samples.map(({ at }) => at);
  }

  /** A gauge: what `read(stats)` is at each time; null where it is not told. */
  gauge(read) {
    return this.#samples.map(({ stats }) => (stats ? (read(stats) ?? null) : null));
  }

  /** A counter as its growth a second. */
  rate(read) {
    return this.#samples.map((one, at) => growth(this.#samples[at - 1], one, read));
  }
}

function growth(before, { at, stats }, read) {
  if (!before?.stats || !stats || at <= before.at || at - before.at > HOLE_S) return null;
  const from = read(before.stats);
  const to = read(stats);
  if (from === undefined || to === undefined || to < from) return null;
  return (to - from) / (at - before.at);
}
