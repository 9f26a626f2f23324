"""Results as JSON, and the table that is made of it. Tables are never typed.

A result file holds every sample with its target, so that it can be judged and shown long after
the scenarios have changed. Medians and ratios are computed when it is shown; a ratio is that of
two samples of the same repeat, taken one after the other.
"""

import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import machine
from bench.process import Placement
from bench.scenarios import Sample, Scenario, Settings

RESULTS: Final = Path(__file__).parent / "results"
FORMAT: Final = 1
_OURS: Final = "imserver"
_BEGIN, _END = "<!-- bench: begin -->", "<!-- bench: end -->"

Report = dict[str, Any]  # the JSON, as documented by new_report and add


class Verdict(NamedTuple):
    """`found` is None where a target was not measured. `is_disturbed` when at least half of the
    samples behind it carry a remark: then it should be taken again on a quiet machine."""

    scenario: str
    found: float | None
    limit: float
    of: str
    is_disturbed: bool

    @property
    def is_met(self) -> bool:
        return self.found is not None and self.found <= self.limit

    def __str__(self) -> str:
        if self.found is None:
            return "not measured"
        return ("met" if self.is_met else "MISSED") + (", disturbed" if self.is_disturbed else "")


def new_report(settings: Settings, where: Placement) -> Report:
    """A report without results yet."""
    return {
        "format": FORMAT,
        "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": machine.commit(),
        "machine": machine.card(where),
        "settings": asdict(settings),
        "skipped": {},  # peer: why
        "failed": [],
        "results": {},
    }


def add(report: Report, scenario: Scenario, peer: str, sample: Sample) -> None:
    """One more sample of a peer."""
    empty = {
        "title": scenario.title,
        "unit": scenario.unit,
        "target": asdict(scenario.target),
        "samples": {},
    }
    result = report["results"].setdefault(scenario.name, empty)
    result["samples"].setdefault(peer, []).append(asdict(sample))


def save(report: Report, directory: Path = RESULTS) -> Path:
    """Write it, named after its time and commit."""
    directory.mkdir(parents=True, exist_ok=True)
    stamp = report["taken"].replace(":", "").replace("-", "")
    path = directory / f"{stamp}-{report['commit'].replace('+', '-dirty') or 'nocommit'}.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read(path: Path | None = None) -> Report:
    """A saved report, by default the newest. ValueError when there is none to be read."""
    if path is None:
        path = max(RESULTS.glob("*.json"), default=None)
        if path is None:
            raise ValueError(f"no results in {RESULTS}: take some with --save")
    report: Report = json.loads(path.read_text(encoding="utf-8"))
    if report.get("format") != FORMAT:
        raise ValueError(f"{path} is of format {report.get('format')}, this reads {FORMAT}")
    return report


def verdicts(report: Report) -> list[Verdict]:
    """One for each scenario in the report."""
    return [_verdict(name, result) for name, result in report["results"].items()]


def _verdict(name: str, result: Mapping[str, Any]) -> Verdict:
    target = result["target"]
    ours = _values(result, _OURS)
    found = _ratios(result) if target["of"] == "floor" else ours
    middle = statistics.median(found) if found else None
    return Verdict(name, middle, target["limit"], target["of"], _is_disturbed(result))


def _is_disturbed(result: Mapping[str, Any]) -> bool:
    peers = (_OURS, "floor") if result["target"]["of"] == "floor" else (_OURS,)
    samples = [sample for peer in peers for sample in result["samples"].get(peer, ())]
    return 2 * sum(bool(sample["remarks"]) for sample in samples) >= max(len(samples), 1)


def _values(result: Mapping[str, Any], peer: str) -> list[float]:
    return [sample["value"] for sample in result["samples"].get(peer, ())]


def _ratios(result: Mapping[str, Any]) -> list[float]:
    pairs = zip(_values(result, _OURS), _values(result, "floor"), strict=False)
    return [ours / floor for ours, floor in pairs if floor > 0]


def table(report: Report) -> list[list[str]]:
    """Rows of cells, the head first: medians with the range of all repeats."""
    peers = _peers(report)
    rows = [["case", "unit", *peers, "of floor", "target", "verdict"]]
    for name, result in report["results"].items():
        verdict = _verdict(name, result)
        cells = [_range(_values(result, peer)) for peer in peers]
        limit = f"≤ {verdict.limit:g}" + (" of floor" if verdict.of == "floor" else "")
        ratio = _range(_ratios(result))
        rows.append([result["title"], result["unit"], *cells, ratio, limit, str(verdict)])
    return rows


def _peers(report: Report) -> list[str]:
    seen = {peer: None for result in report["results"].values() for peer in result["samples"]}
    return sorted(seen, key=lambda peer: (peer == _OURS, peer != "floor", peer))


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle = _number(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({_number(min(values))}..{_number(max(values))})"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def remarks(report: Report) -> list[str]:
    """What a reader must know to believe the numbers, one line each."""
    lines = [f"{peer} was skipped: {why}" for peer, why in report["skipped"].items()]
    lines += [f"failed: {text.splitlines()[0]}" for text in report["failed"]]
    places: dict[str, list[str]] = {}
    for name, result in report["results"].items():
        for peer, samples in result["samples"].items():
            said = [remark for sample in samples for remark in sample["remarks"]]
            for remark in sorted(set(said)):
                share = f"{name}, {peer} ({said.count(remark)} of {len(samples)})"
                places.setdefault(remark, []).append(share)
    lines += [f"{remark}: {'; '.join(where)}" for remark, where in places.items()]
    if report["machine"]["server_cpu"] == report["machine"]["generator_cpu"]:
        lines.append("server and generator shared one CPU: ratios are rough")
    return lines


def markdown(report: Report) -> str:
    """The whole report: card, table, remarks."""
    card = report["machine"]
    kind = "virtual machine" if card["virtual"] else "machine"
    where = f"{card['cpu']}, {card['cpus']} CPUs ({kind}), Linux {card['kernel']}"
    how = f"{report['settings']['repeats']} repeats of {report['settings']['seconds']:g} s"
    intro = (
        f"Taken {report['taken']} at commit {report['commit'] or 'unknown'} on {where}, "
        f"{card['compiler']}, Python {card['python']}; {how}, medians with ranges."
    )
    notes = "".join(f"- {line}\n" for line in remarks(report))
    return f"{intro}\n\n{_aligned(table(report))}" + (f"\n{notes}" if notes else "")


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(cells: Iterable[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |\n"

    rule = line("-" * width for width in widths)
    return line(rows[0]) + rule + "".join(line(row) for row in rows[1:])


def refresh(document: Path, report: Report) -> None:
    """Replace the table in a document, between its two marks; a new one gets a heading."""
    block = f"{_BEGIN}\n{markdown(report)}{_END}"
    if not document.exists():
        document.write_text(f"# Benchmarks\n\n{block}\n", encoding="utf-8")
        return
    text = document.read_text(encoding="utf-8")
    head, begin, rest = text.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{document} lacks the marks {_BEGIN} and {_END}")
    document.write_text(f"{head}{block}{tail}", encoding="utf-8")
