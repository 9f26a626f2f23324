/** How the server does at this moment, as numbers, and in the last ten minutes, as lines. */

import { arrange, byId, element, say } from "../dom.js";
import { bytes, count, span } from "../time.js";
import { Chart } from "./charts.js";
import { cell } from "./list.js";

const gauge = (read) => (samples) => samples.gauge(read);
const rate = (read) => (samples) => samples.rate(read);
const within = (share, read) => (samples) => samples.within(share, read);
const commits = (share) => within(share, (s) => s.commits);
const last = (values) => values.findLast((value) => value !== null);
const millis = (number) => (number === null || number === undefined ? "–" : `${count(number)} ms`);
const dead = (s) => (s.delivery_dead_unacknowledged ?? 0) + (s.delivery_dead_nack ?? 0);

const TILES = [
  {
    label: "connections",
    of: gauge((s) => s.connections),
    format: count,
    note: (s) => `${count(s.sessions)} sessions of ${count(s.users)} users`,
  },
  {
    label: "messages a second",
    of: rate((s) => s.messages_in),
    format: count,
    note: (s) => `${count(s.messages_in)} since the start`,
  },
  {
    label: "deliveries a second",
    of: rate((s) => s.deliveries),
    format: count,
    note: (s) => `${count(s.subscriptions)} subscriptions`,
  },
  {
    label: "commit latency",
    of: commits(0.5),
    format: millis,
    note: (_, samples) => `99 of 100 within ${millis(last(commits(0.99)(samples)))}`,
  },
  {
    label: "event queue",
    of: gauge((s) => s.event_queue),
    format: count,
    note: (_, samples) => `loop lag ${millis(last(within(0.99, (s) => s.loop_lag)(samples)))}`,
  },
  {
    label: "dead letters",
    of: gauge(dead),
    format: count,
    note: () => "since the start",
    isBad: (value) => value > 0,
  },
];

const CHARTS = [
  {
    title: "Connections",
    format: count,
    steps: "whole",
    lines: [
      { label: "connections", of: gauge((s) => s.connections) },
      { label: "sessions", of: gauge((s) => s.sessions) },
    ],
  },
  {
    title: "Messages a second",
    format: count,
    lines: [
      { label: "deliveries", of: rate((s) => s.deliveries) },
      { label: "published", of: rate((s) => s.messages_in) },
      { label: "kept", of: rate((s) => s.receipts) },
    ],
  },
  {
    title: "Commit latency",
    format: millis,
    lines: [
      { label: "half", of: commits(0.5) },
      { label: "99 of 100", of: commits(0.99) },
    ],
  },
  {
    title: "Event queue",
    format: count,
    steps: "whole",
    lines: [
      { label: "waiting for Python", of: gauge((s) => s.event_queue) },
      { label: "hooks at work", of: gauge((s) => s.hook_tasks + s.hook_messages) },
    ],
  },
  {
    title: "Bytes a second",
    format: bytes,
    steps: "binary",
    lines: [
      { label: "out", of: rate((s) => s.bytes_out) },
      { label: "in", of: rate((s) => s.bytes_in) },
    ],
  },
  {
    title: "Trouble a second",
    format: count,
    steps: "whole",
    lines: [
      { label: "redeliveries", of: rate((s) => s.redelivered) },
      { label: "refusals", of: rate((s) => s.refusals) },
      { label: "slow readers", of: rate((s) => s.slow_readers) },
    ],
  },
];

const NODE = ["Node", "State", "Version", "Up for", "Connections"];

export class Overview {
  #tiles = TILES.map((tile) => ({
    ...tile,
    value: element("dd", {}, "–"),
    said: element("dd", { class: "note" }, ""),
  }));
  #charts = CHARTS.map((spec) => new Chart(spec));

  constructor() {
    arrange(
      byId("tiles"),
      this.#tiles.map(({ label, value, said }) =>
        element("div", { class: "tile" }, element("dt", {}, label), value, said),
      ),
    );
    arrange(
      byId("charts"),
      this.#charts.map(({ node }) => node),
    );
  }

  render(samples, isAnswering) {
    const { latest: stats, told } = samples;
    if (stats) {
      for (const { of, format, note, isBad, value, said } of this.#tiles) {
        const now = last(of(samples));
        say(value, format(now));
        say(said, note(stats, samples));
        value.classList.toggle("bad", Boolean(isBad?.(now)));
      }
    }
    for (const chart of this.#charts) chart.update(samples);
    const state = isAnswering ? told?.unready || "ready" : "not answering";
    const uptime = told ? span(told.time_ms - told.since_ms) : "–";
    const cells = [told?.node ?? "–", state, told?.version ?? "–", uptime, count(stats?.connections)];
    if (!byId("nodes").firstChild)
      byId("nodes").append(
        element(
          "tr",
          {},
          NODE.map((name) => cell(name)),
        ),
      );
    [...byId("nodes").querySelectorAll("td > span")].forEach((node, at) => say(node, cells[at]));
  }
}
