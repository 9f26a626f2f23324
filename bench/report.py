"""Results as JSON: every sample with its row's targets, so that it can be judged and shown long
after the scenarios have changed.

    format, taken, commit, machine, settings, interrupted
    peers     name: title, lacks
    skipped   peer: why
    failed    [{scenario, peer, text}]
    series    name: title, axis, flat
    results   name: title, unit, view, series, x, targets, taken, commit,
              samples: {peer: [{repeat, value, details, remarks}]}

What is made of it: report_verdicts, report_tables, report_plots.
"""

import json
import time
from collections.abc import Mapping, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench import machine
from bench.scenario import Sample, Scenario, Settings
from bench.scenarios import SERIES
from imserver.load_process import Placement

RESULTS: Final = Path(__file__).parent / "results"
FORMAT: Final = 2
#: What of the machine has to be the same for rows to stand in one table.
_MACHINE: Final = (
    "cpu", "cpus", "memory_mb", "virtual", "file_system", "kernel", "compiler", "python",
    "server_cpu", "generator_cpu",
)  # fmt: skip

Report = dict[str, Any]
Result = Mapping[str, Any]  # one row of it


def new_report(settings: Settings, where: Placement) -> Report:
    """A report without results yet."""
    return {
        "format": FORMAT,
        "taken": _now(),
        "commit": machine.commit(),
        "machine": machine.card(where),
        "settings": asdict(settings),
        "interrupted": False,
        "peers": {},
        "skipped": {},
        "failed": [],
        "series": {one.name: asdict(one) for one in SERIES},
        "results": {},
    }


def add(report: Report, scenario: Scenario, peer: str, repeat: int, sample: Sample) -> None:
    """One more sample of a peer."""
    empty = {
        "title": scenario.title,
        "unit": scenario.unit,
        "view": scenario.view,
        "series": scenario.series,
        "x": scenario.x,
        "targets": [asdict(target) for target in scenario.targets],
        "taken": _now(),
        "commit": report["commit"],
        "samples": {},
    }
    result = report["results"].setdefault(scenario.name, empty)
    result["samples"].setdefault(peer, []).append({"repeat": repeat, **asdict(sample)})


def fail(report: Report, scenario: Scenario, peer: str, text: str) -> None:
    """A sample that could not be taken, and why."""
    report["failed"].append({"scenario": scenario.name, "peer": peer, "text": text})


def merge(into: Report, newer: Report, planned: Mapping[str, Set[tuple[str, int]]]) -> Report:
    """The older report with whole rows of the newer one in place of its own: those of which all
    that was planned, by peer and repeat, was measured. A row is replaced with all of its peers,
    since ratios hold within a run only. Of the machine the older one tells, unless it is of
    before something was told. ValueError when the two do not belong together."""
    check_alike(into, newer)
    retaken = {name: newer["results"][name] for name in whole(newer, planned)}
    failed = [one for one in into["failed"] if one["scenario"] not in retaken]
    return {
        **into,
        "machine": {**newer["machine"], **into["machine"]},
        "series": {**into["series"], **newer["series"]},
        "peers": {**into["peers"], **newer["peers"]},
        "failed": failed,
        "results": {**into["results"], **retaken},
    }


def whole(report: Report, planned: Mapping[str, Set[tuple[str, int]]]) -> list[str]:
    """The rows in which no sample is missing: none failed, no peer was skipped, and the run was
    not interrupted in it."""
    taken = {
        name: {(peer, one["repeat"]) for peer, samples in row["samples"].items() for one in samples}
        for name, row in report["results"].items()
    }
    return [name for name, samples in taken.items() if samples >= planned[name]]


def check_alike(into: Report, newer: Report) -> None:
    """ValueError when rows of the two reports may not stand in one table, which tells of one
    machine and of one way to measure."""
    for part, names in (("machine", _MACHINE), ("settings", tuple(newer["settings"]))):
        for name in names:
            was, now = (report[part].get(name) for report in (into, newer))
            if was is not None and was != now:
                raise ValueError(f"it is of another {part}: {name} was {was}, and is {now}")


def save(report: Report, path: Path | None = None) -> Path:
    """Write it, by default named after its time and commit."""
    if path is None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        stamp = report["taken"].replace(":", "").replace("-", "")
        commit = report["commit"].replace("+", "-dirty") or "nocommit"
        path = RESULTS / f"{stamp}-{commit}.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read(path: Path | None = None) -> Report:
    """A saved report, by default the newest. ValueError when there is none to be read."""
    if path is None:
        path = max(RESULTS.glob("*.json"), default=None)
        if path is None:
            raise ValueError(f"no results in {RESULTS}: take some with --save")
    try:
        report: Report = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        found = report.get("format") if isinstance(report, dict) else None
        raise ValueError(f"{path} is of format {found}, this reads {FORMAT}")
    return report


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
