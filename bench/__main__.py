"""python -m bench: runs the scenarios, the servers in turn, and prints the table.

The servers alternate within a repeat (floor, imserver, floor, ...), so that a slow minute of the
machine hits both, and each sample gets a fresh process.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench import progress, report
from bench.generator import LoadError
from bench.peers import PEERS, ROOT, ServerError
from bench.process import pin, placement
from bench.scenarios import QUICK, SCENARIOS, Scenario, Settings

DOCUMENT = ROOT / "docs" / "benchmarks.md"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("run", "render", "list"), default="run")
    parser.add_argument(
        "file", nargs="?", type=Path, help="render: this result instead of the newest"
    )
    parser.add_argument("--only", action="append", choices=names, help="this scenario; repeatable")
    parser.add_argument("--peer", action="append", choices=PEERS, help="this server; repeatable")
    parser.add_argument("--quick", action="store_true", help="a short look, not to be quoted")
    parser.add_argument("--repeats", type=int, help="samples a server and scenario")
    parser.add_argument("--seconds", type=float, help="length of one sample")
    parser.add_argument("--dev", action="store_true", help="log in by name instead of a token")
    parser.add_argument("--save", action="store_true", help="keep the result in bench/results")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument(
        "--write", action="store_true", help="render: refresh the table in docs/benchmarks.md"
    )
    return parser.parse_args(arguments)


def chosen_settings(options: argparse.Namespace) -> Settings:
    chosen = QUICK if options.quick else Settings()
    if options.repeats is not None:
        chosen = replace(chosen, repeats=max(1, options.repeats))
    if options.seconds is not None:
        chosen = replace(chosen, seconds=max(0.05, options.seconds))
    return replace(chosen, auth="dev" if options.dev else "jwt")


def steps(options: argparse.Namespace, settings: Settings) -> list[tuple[Scenario, str]]:
    """What to measure, in order: the servers in turn within each repeat."""
    return [
        (scenario, peer)
        for scenario in SCENARIOS
        if not options.only or scenario.name in options.only
        for _ in range(min(settings.repeats, scenario.most_repeats))
        for peer in scenario.peers
        if not options.peer or peer in options.peer
    ]


def measure(planned: Sequence[tuple[Scenario, str]], settings: Settings) -> report.Report:
    """The report of a run. Peers that cannot start here are skipped by name; what fails is
    recorded, and the run goes on."""
    where = placement()
    found = report.new_report(settings, where)
    obstacles = {peer: PEERS[peer].obstacle() for peer in {peer: None for _, peer in planned}}
    found["skipped"] = {peer: why for peer, why in obstacles.items() if why}
    possible = [(scenario, peer) for scenario, peer in planned if not obstacles[peer]]
    pin(where.generator)
    with progress.shown(len(possible)) as display:
        for scenario, peer in possible:
            display.begin(f"{scenario.name}, {peer}")
            try:
                sample = scenario.measure(peer, settings, where)
            except (LoadError, ServerError) as error:
                found["failed"].append(f"{scenario.name}, {peer}: {error}")
                display.say(found["failed"][-1])
            else:
                report.add(found, scenario, peer, sample)
    return found


def run(options: argparse.Namespace) -> int:
    settings = chosen_settings(options)
    found = measure(steps(options, settings), settings)
    print(report.markdown(found), end="")
    if options.save:
        print(f"\nsaved as {report.save(found)}")
    is_missed = options.check and not all(one.is_met for one in report.verdicts(found))
    return 1 if is_missed or found["failed"] else 0


def render(options: argparse.Namespace) -> int:
    try:
        saved = report.read(options.file)
        print(report.markdown(saved), end="")
        if options.write:
            report.refresh(DOCUMENT, saved)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def show_list() -> int:
    for scenario in SCENARIOS:
        print(f"{scenario.name:16} {scenario.title} ({', '.join(scenario.peers)})")
    return 0


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    if options.command == "render":
        return render(options)
    return show_list() if options.command == "list" else run(options)


if __name__ == "__main__":
    # As an exception, so that servers are ended and the key of the run is deleted.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
