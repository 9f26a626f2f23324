"""python -m bench: runs the scenarios, the servers in turn, and prints the report.

The servers alternate within a repeat (floor, imserver, floor, ...) and so do the rows of a series,
so that a slow minute of the machine hits all of them, and each sample gets a fresh process.
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bench import progress, report, report_plots, report_tables
from bench.peers import PEERS, ROOT, ServerError
from bench.report_verdicts import FLOOR, OURS, verdicts
from bench.scenario import QUICK, Scenario, Settings
from bench.scenarios import SCENARIOS, SERIES
from imserver.load import LoadError
from imserver.load_process import pin, placement

DOCUMENT = ROOT / "docs" / "benchmarks.md"


class Planned(NamedTuple):
    """One sample to take."""

    scenario: Scenario
    peer: str
    repeat: int


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    names = sorted({one.name for one in SCENARIOS} | {one.name for one in SERIES})
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("run", "render", "list"), default="run")
    parser.add_argument(
        "file", nargs="?", type=Path, help="render: this result instead of the newest"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="NAME",
        help="this scenario or series of `list`; repeatable",
    )
    parser.add_argument("--peer", action="append", choices=PEERS, help="this server; repeatable")
    parser.add_argument("--quick", action="store_true", help="a short look, not to be quoted")
    parser.add_argument("--repeats", type=int, help="the most samples a server and scenario")
    parser.add_argument("--seconds", type=float, help="length of one sample")
    parser.add_argument("--dev", action="store_true", help="log in by name instead of a token")
    parser.add_argument("--save", action="store_true", help="keep the result in bench/results")
    parser.add_argument(
        "--into", type=Path, metavar="FILE", help="with --save: put the rows into this result"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument(
        "--write",
        action="store_true",
        help="render: refresh docs/benchmarks.md and the plots it shows",
    )
    options = parser.parse_args(arguments)
    if options.into and not options.save:
        parser.error("--into FILE is where --save saves: give both")
    if options.into and options.peer:
        parser.error("--into FILE replaces rows with all of their peers: leave --peer out")
    return options


def chosen_settings(options: argparse.Namespace) -> Settings:
    chosen = QUICK if options.quick else Settings()
    if options.repeats is not None:
        chosen = replace(chosen, repeats=max(1, options.repeats))
    if options.seconds is not None:
        chosen = replace(chosen, seconds=max(0.05, options.seconds))
    return replace(chosen, auth="dev" if options.dev else "jwt")


def plan(options: argparse.Namespace, settings: Settings) -> list[Planned]:
    """What to measure, in order: repeat after repeat of a case or series, in it row after row,
    and the servers in turn."""
    groups: dict[str, list[Scenario]] = {}
    for one in SCENARIOS:
        is_asked_for = not options.only or one.name in options.only or one.series in options.only
        if is_asked_for and _peers(one, options, settings):
            groups.setdefault(one.series or one.name, []).append(one)
    return [
        Planned(scenario, peer, repeat)
        for rows in groups.values()
        for repeat in range(settings.repeats)
        for scenario in rows
        if repeat < scenario.repeats
        for peer in _peers(scenario, options, settings)
    ]


def _peers(scenario: Scenario, options: argparse.Namespace, settings: Settings) -> list[str]:
    """Of a scenario, in this run. What is asked for by name is part of a quick run, too."""
    named = options.peer or ()
    found = [peer for peer in scenario.peers if not named or peer in named]
    if not settings.is_quick or scenario.quick == "all":
        return found
    if not scenario.quick and not options.only:
        return []
    return [peer for peer in found if peer in named or peer in (FLOOR, OURS)]


def measure(found: report.Report, planned: Sequence[Planned], settings: Settings) -> None:
    """Fill a report. Peers that cannot start here are skipped by name; what fails is recorded,
    and the run goes on."""
    where = placement()
    obstacles = {peer: PEERS[peer].obstacle() for peer in {one.peer: None for one in planned}}
    found["skipped"] = {peer: why for peer, why in obstacles.items() if why}
    found["peers"] = {
        peer: {"title": PEERS[peer].title(), "lacks": PEERS[peer].lacks}
        for peer, why in obstacles.items()
        if not why
    }
    possible = [one for one in planned if not obstacles[one.peer]]
    pin(where.generator)
    with progress.shown([one.scenario.about_s for one in possible]) as display:
        for scenario, peer, repeat in possible:
            display.begin(f"{scenario.name}, {peer}")
            try:
                sample = scenario.measure(peer, settings, where)
            except (LoadError, ServerError, OSError) as error:
                report.fail(found, scenario, peer, str(error))
                display.say(f"failed: {scenario.name}, {peer}: {error}")
            else:
                report.add(found, scenario, peer, repeat, sample)


def run(options: argparse.Namespace) -> int:
    settings = chosen_settings(options)
    into = report.read(options.into) if options.into else None
    found = report.new_report(settings, placement())
    if into:
        report.check_alike(into, found)
    planned = plan(options, settings)
    stopped_by = 0
    try:
        measure(found, planned, settings)
    except (KeyboardInterrupt, SystemExit) as stop:
        found["interrupted"] = True
        stopped_by = (
            stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 130
        )
    print(report_tables.markdown(found), end="")
    if into:
        samples: dict[str, set[tuple[str, int]]] = {}
        for one in planned:
            samples.setdefault(one.scenario.name, set()).add((one.peer, one.repeat))
        partial = sorted(samples.keys() - report.whole(found, samples))
        if partial:
            print(f"\nnot saved, since samples are missing: {', '.join(partial)}")
        report.save(report.merge(into, found, samples), options.into)
    if options.save:
        print(f"\nsaved as {options.into or report.save(found)}")
    is_missed = options.check and not all(one.is_met for one in verdicts(found))
    return stopped_by or (1 if is_missed or found["failed"] else 0)


def render(options: argparse.Namespace) -> int:
    saved = report.read(options.file)
    print(report_tables.markdown(saved), end="")
    if options.write:
        if why := report_plots.obstacle():
            print(f"the plots stay as they were: {why}", file=sys.stderr)
        report_tables.refresh(DOCUMENT, saved)
    return 0


def show_list(options: argparse.Namespace) -> int:
    settings = chosen_settings(options)
    planned = plan(options, settings)
    for scenario, peers in _shown(planned):
        print(f"{scenario.name:24} {scenario.title} ({', '.join(peers)})")
    minutes = sum(one.scenario.about_s for one in planned) / 60
    print(f"{len(planned)} samples, about {minutes:.0f} minutes")
    return 0


def _shown(planned: Sequence[Planned]) -> Iterator[tuple[Scenario, list[str]]]:
    for scenario in {one.scenario.name: one.scenario for one in planned}.values():
        yield scenario, list({one.peer: None for one in planned if one.scenario is scenario})


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    command = {"run": run, "render": render, "list": show_list}[options.command]
    try:
        return command(options)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    # As an exception, so that servers are ended, the key of the run is deleted, and what was
    # measured so far is shown and saved.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
