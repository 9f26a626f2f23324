"""The report as text that reads well in a terminal and is Markdown. Tables are never typed.

One table of cases, a line each; one with the peers; one for each series; one for latency.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from bench import report_plots
from bench.report import RESULTS, Report, Result
from bench.report_verdicts import (
    FLOOR,
    OURS,
    ahead,
    best_peer,
    middle,
    of_floor,
    of_row,
    of_series,
    others,
    own_growth,
    peers_of,
    rows_of,
    values,
)
from bench.scenarios_latency import LOADS

_BEGIN, _END = "<!-- bench: begin -->", "<!-- bench: end -->"
_PERCENTILES: Final = ("p50", "p90", "p99", "p99.9", "max")

Table = list[list[str]]  # rows of cells, the head first


def cases(report: Report) -> Table:
    """A line a case, medians with the range of all repeats, and verdicts."""
    rows = [
        ["case", "unit", "imserver", "floor", "× floor", "best peer", "ahead", "target", "verdict"]
    ]
    for name, result in _with_view(report, "case").items():
        # How a ratio or a difference compares with that of others tells nothing of who is ahead.
        is_cost = result["unit"] not in ("times", "ms")
        best = best_peer(result) if is_cost else ""
        found = of_row(name, result)
        rows.append(
            [
                result["title"],
                result["unit"],
                spread(values(result, OURS)),
                spread(values(result, FLOOR)),
                spread(of_floor(result)) if is_cost else "",
                f"{best} {spread(values(result, best))}" if best else "",
                spread(ahead(result)) if best else "",
                "; ".join(one.target for one in found),
                "; ".join(str(one) for one in found),
            ]
        )
    for name in report["series"]:
        if verdict := of_series(report, name):
            xs = [row["x"] for row in rows_of(report, name)]
            title = f"growth of our part, {xs[0]:,} to {xs[-1]:,} {report['series'][name]['axis']}"
            grown = "" if verdict.found is None else f"{verdict.found:+.0%}"
            beside = f"{title} ({name})"
            rows.append([beside, "share", grown, "", "", "", "", verdict.target, str(verdict)])
    return rows


def peers(report: Report) -> Table:
    """A line a peer, medians of the cases that others were measured in."""
    shown = {name: row for name, row in _with_view(report, "case").items() if others(row)}
    heads = (f"{name}, {row['unit']}" for name, row in shown.items())
    rows = [["server", "version", *heads, "what it does not do, and imserver does"]]
    for peer in _order({peer for row in shown.values() for peer in row["samples"]}):
        about = report["peers"].get(peer, {"title": "", "lacks": ""})
        found = (_median(values(row, peer)) for row in shown.values())
        rows.append([peer, about["title"], *found, about["lacks"]])
    return rows if shown else []


def series(report: Report, name: str) -> Table:
    """A column a row of the series, a line a server; and how our own part grows."""
    rows = rows_of(report, name)
    axis = report["series"][name]["axis"]
    table = [[axis, *(f"{row['x']:,}" for row in rows)]]
    for peer in _order(peers_of(rows)):
        table.append([peer, *(_median(values(row, peer)) for row in rows)])
    table.append(["imserver × floor", *(_median(of_floor(row)) for row in rows)])
    if report["series"][name]["flat"] is not None and rows:
        grown = own_growth(rows)
        table.append(["growth of our part", *("" if g is None else f"{g:+.0%}" for g in grown)])
    return table


def latency(report: Report) -> Table:
    """A line a server and load: medians of the percentiles, in microseconds."""
    rows = [["server", "load", "messages/s", *(f"{name}, µs" for name in _PERCENTILES)]]
    for result in _with_view(report, "latency").values():
        for peer in _order(result["samples"]):
            details = [sample["details"] for sample in result["samples"][peer]]
            for load in LOADS:
                found = [median(one[f"{load}_{name}"] for one in details) for name in _PERCENTILES]
                rate = median(one[f"{load}_rate"] for one in details)
                rows.append([peer, f"{load} %", f"{rate:,.0f}", *map(number, found)])
    return rows


def kept(report: Report) -> Table:
    """A line a server that keeps messages: what it does a second, and how many share a flush of
    the disk, as far as that can be seen."""
    rows = [["server", "µs", "messages/s", "flushes/s", "messages a flush"]]
    for name in ("durable", "durable-unflushed"):
        samples = report["results"].get(name, {"samples": {}})["samples"]
        for peer in _order(samples):
            if [peer] in [row[:1] for row in rows]:  # ours is in both
                continue
            details = [
                one["details"] for one in samples[peer] if one["details"].get("flushes_per_s")
            ]
            per_s = [one["deliveries_per_s"] for one in details]
            flushes = [one["flushes_per_s"] for one in details]
            shared = [a / b for a, b in zip(per_s, flushes, strict=True)]
            us = [one["value"] for one in samples[peer]]
            rows.append([peer, *map(_median, (us, per_s, flushes, shared))])
    return rows


def receipts(report: Report) -> Table:
    """Of the open loop: medians of the percentiles of a receipt, and of the disk alone, asked
    just before and after."""
    by_peer = report["results"].get("durable-latency", {"samples": {}})["samples"]
    rows = [["", *(f"{name}, µs" for name in _PERCENTILES)]]
    for peer in _order(by_peer):
        for title, kind in ((f"a receipt, {peer}", ""), (f"a flush beside {peer}", "flush_")):
            details = [one["details"] for one in by_peer[peer]]
            found = [[one[kind + name] for one in details] for name in _PERCENTILES]
            rows.append([title, *map(_median, found)])
    return rows


def remarks(report: Report) -> list[str]:
    """What a reader must know to believe the numbers, one line each."""
    lines = ["the run was interrupted: rows are missing"] if report["interrupted"] else []
    lines += [f"{peer} was skipped: {why}" for peer, why in report["skipped"].items()]
    for one in report["failed"]:
        lines.append(f"failed: {one['scenario']}, {one['peer']}: {one['text'].splitlines()[0]}")
    places: dict[str, list[str]] = {}
    for name, result in report["results"].items():
        for peer, samples in result["samples"].items():
            said = [remark for sample in samples for remark in sample["remarks"]]
            for remark in sorted(set(said)):
                share = f"{name}, {peer} ({said.count(remark)} of {len(samples)})"
                places.setdefault(remark, []).append(share)
        if result["commit"] != report["commit"]:
            lines.append(f"{name} was taken {result['taken']} at commit {result['commit']}")
    lines += [f"{remark}: {'; '.join(where)}" for remark, where in places.items()]
    if "threads" in report["results"]:
        lines += _on_threads(report["results"]["threads"])
    if report["machine"]["server_cpu"] == report["machine"]["generator_cpu"]:
        lines.append("server and generator shared one CPU: ratios are rough")
    return lines


def _on_threads(result: Result) -> list[str]:
    details = [sample["details"] for sample in result["samples"].get(OURS, ())]
    possible = middle(one["possible"] for one in details)
    if possible is None:
        return []
    cpus = details[0]["cpus"]
    return [f"threads: {cpus:g} CPUs, the generator's among them, leave room for {possible:.2f}"]


def markdown(report: Report, plots: Sequence[str] = ()) -> str:
    """The whole report; with the names of plots, links to these."""
    card = report["machine"]
    kind = "virtual machine" if card["virtual"] else "machine"
    where = f"{card['cpu']}, {card['cpus']} CPUs ({kind}), Linux {card['kernel']}"
    if card.get("file_system"):
        where += f", files on {card['file_system']}"
    how = f"up to {report['settings']['repeats']} repeats of {report['settings']['seconds']:g} s"
    parts = [
        f"Taken {report['taken']} at commit {report['commit'] or 'unknown'} on {where}, "
        f"{card['compiler']}, Python {card['python']}; {how}, medians with ranges.\n"
    ]

    def show(title: str, table: Table, *pictures: str) -> None:
        if len(table) > 1:
            links = "".join(f"\n![{title}]({link})\n" for link in pictures if link)
            parts.append(f"### {title}\n\n{aligned(table)}{links}")

    links = {name: f"../bench/{RESULTS.name}/{name}.svg" for name in plots}
    show("Cases and targets", cases(report))
    show("Peers", peers(report), links.get("peers", ""))
    for name, one in report["series"].items():
        if rows_of(report, name):
            show(_title(one["title"]), series(report, name), links.get(name, ""))
    show("Durable publish, 50 connections, 64 messages of each under way", kept(report))
    show("A receipt at 1,000 messages a second, from when a message was due", receipts(report))
    show("Latency, counted from when a message was due", latency(report), links.get("latency", ""))
    notes = "".join(f"- {line}\n" for line in remarks(report))
    if notes:
        parts.append(f"### Remarks\n\n{notes}")
    return "\n".join(parts)


def refresh(document: Path, report: Report) -> None:
    """Replace the tables in a document, between its two marks, and the plots in RESULTS; a new
    document gets a heading."""
    plots = report_plots.draw(report, RESULTS)
    block = f"{_BEGIN}\n{markdown(report, plots)}{_END}"
    if not document.exists():
        document.write_text(f"# Benchmarks\n\n{block}\n", encoding="utf-8")
        return
    text = document.read_text(encoding="utf-8")
    head, begin, rest = text.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{document} lacks the marks {_BEGIN} and {_END}")
    document.write_text(f"{head}{block}{tail}", encoding="utf-8")


def aligned(rows: Table) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(cells: Iterable[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |\n"

    return line(rows[0]) + line("-" * width for width in widths) + "".join(map(line, rows[1:]))


def spread(found: Sequence[float]) -> str:
    """The median, with the range of several."""
    if len(found) < 2:
        return _median(found)
    return f"{_median(found)} ({number(min(found))}..{number(max(found))})"


def number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _median(found: Sequence[float]) -> str:
    return number(median(found)) if found else ""


def _with_view(report: Report, view: str) -> dict[str, Result]:
    return {name: row for name, row in report["results"].items() if row["view"] == view}


def _order(found: Iterable[str]) -> list[str]:
    """The floor first, then us, then all others by name."""
    return sorted(found, key=lambda peer: (peer != FLOOR, peer != OURS, peer))


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]
