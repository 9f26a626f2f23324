/** Lines over the last minutes, by uPlot (static/vendor). */

import { element, say } from "../dom.js";
import { clock, seconds } from "../time.js";

const uPlot = globalThis.uPlot;
const HEIGHT_PX = 168;
/** A page that has just been opened shows half a minute, and then more, up to what is kept. */
const SHOWN_S = { least: 30, most: 600 };
const SYNC = "console";
/** Between ticks: powers of two for bytes, for what is counted nothing below one. */
const STEPS = {
  binary: Array.from({ length: 40 }, (_, at) => 2 ** at),
  whole: Array.from({ length: 36 }, (_, at) => [1, 2, 5][at % 3] * 10 ** Math.floor(at / 3)),
};
const SECONDS_BELOW_S = 240;
const DARK = matchMedia("(prefers-color-scheme: dark)");

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function timeTicks(plot, ticks) {
  const { min, max } = plot.scales.x;
  return ticks.map((tick) => (max - min < SECONDS_BELOW_S ? seconds : clock)(tick * 1000));
}

export class Chart {
  #spec;
  #plot = null;
  #holder = element("div", { class: "plot" });
  #values;
  #data;

  /** `spec`: `title`, `lines` of `{ label, of(samples) }`, `format(number)`, `steps`. */
  constructor(spec) {
    this.#spec = spec;
    this.#values = spec.lines.map(() => element("b", {}, "–"));
    const legend = spec.lines.map(({ label }, at) =>
      element(
        "li",
        {},
        element("span", { class: "swatch", dataset: { line: at } }),
        `${label} `,
        this.#values[at],
      ),
    );
    this.node = element(
      "figure",
      { class: "chart" },
      element("figcaption", {}, element("h3", {}, spec.title), element("ul", { class: "legend" }, legend)),
      this.#holder,
    );
    this.#holder.setAttribute("role", "img");
    new ResizeObserver(() => this.#fit()).observe(this.#holder);
    DARK.addEventListener("change", () => this.#draw());
  }

  update(samples) {
    const { lines, title, format } = this.#spec;
    this.#data = [samples.times, ...lines.map(({ of }) => of(samples))];
    const now = lines.map((_, at) => format(this.#data[at + 1].findLast((value) => value !== null)));
    now.forEach((text, at) => say(this.#values[at], text));
    this.#holder.setAttribute(
      "aria-label",
      `${title}: ${lines.map(({ label }, at) => `${label} ${now[at]}`).join(", ")}`,
    );
    if (this.#plot) this.#plot.setData(this.#data);
    else this.#draw();
  }

  #fit() {
    const width = this.#holder.clientWidth;
    if (!width) return;
    if (this.#plot) this.#plot.setSize({ width, height: HEIGHT_PX });
    else this.#draw();
  }

  /** Anew, since colours belong to a plot. */
  #draw() {
    const width = this.#holder.clientWidth;
    if (!width || !this.#data) return;
    this.#plot?.destroy();
    this.#plot = new uPlot(this.#options(width), this.#data, this.#holder);
  }

  #options(width) {
    const { lines, format, steps } = this.#spec;
    const axis = {
      stroke: colour("--muted"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
    };
    const font = `11px ${getComputedStyle(document.body).fontFamily}`;
    return {
      width,
      height: HEIGHT_PX,
      legend: { show: false },
      cursor: { sync: { key: SYNC }, y: false, drag: { x: false, y: false } },
      scales: {
        x: {
          time: true,
          range: (_, first, last) => [
            last - Math.min(SHOWN_S.most, Math.max(SHOWN_S.least, last - first)),
            last,
          ],
        },
        y: { range: (_, least, most) => [0, most > 0 ? most * 1.15 : 1] },
      },
      axes: [
        { ...axis, font, space: 90, size: 28, grid: { show: false }, values: timeTicks },
        { ...axis, font, size: 56, space: 32, incrs: STEPS[steps], values: (_, ticks) => ticks.map(format) },
      ],
      series: [
        {},
        ...lines.map(({ label }, at) => ({
          label,
          stroke: colour(`--line-${at}`),
          fill: at === 0 ? `${colour("--line-0")}1f` : undefined,
          width: 2,
          points: { show: false },
          spanGaps: false,
        })),
      ],
    };
  }
}
