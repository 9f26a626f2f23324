/**
 * What /v1/stats said in the last ten minutes, and what follows from it. Counters become rates;
 * where the server was away or began anew there is a hole, not a zero.
 */

export const EVERY_MS = 1_000;
const KEPT = 600;
/** What takes its time is judged by those of the last seconds: one alone is an accident. */
const JUDGED = 10;
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
    const stats = answer && { ...answer.counts, commits: answer.commits, loop_lag: answer.loop_lag };
    this.#samples.push({ at, stats });
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

  /** Milliseconds within which `share` of what was timed lately was done; null when nothing was. */
  within(share, read) {
    return this.#samples.map(({ stats }, at) => {
      const before = this.#samples[Math.max(0, at - JUDGED)].stats;
      return before && stats ? quantile(share, read(before), read(stats)) : null;
    });
  }
}

/** From counts by upper bound; evenly between two bounds, as nothing else is known. */
function quantile(share, before, { bounds_ms, counts }) {
  const fresh = counts.map((count, at) => count - before.counts[at]);
  const all = fresh.reduce((sum, count) => sum + count, 0);
  if (all <= 0 || fresh.some((count) => count < 0)) return null;
  let below = 0;
  for (const [at, count] of fresh.entries()) {
    const floor = bounds_ms[at - 1] ?? 0;
    if (count && below + count >= share * all)
      return floor + ((bounds_ms[at] ?? floor) - floor) * ((share * all - below) / count);
    below += count;
  }
  return null;
}

function growth(before, { at, stats }, read) {
  if (!before?.stats || !stats || at <= before.at || at - before.at > HOLE_S) return null;
  const from = read(before.stats);
  const to = read(stats);
  if (from === undefined || to === undefined || to < from) return null;
  return (to - from) / (at - before.at);
}
