"""The report: saved, merged, judged, printed and drawn from the samples and nothing else."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import progress, report, report_plots, report_tables
from bench.__main__ import chosen_settings, main, parse, plan
from bench.peers import ROOT
from bench.progress import Clock
from bench.report_verdicts import ahead, best_peer, of_floor, own_growth, rows_of, verdicts
from bench.scenarios import SCENARIOS
from imserver.load_process import placement

TINY = ["--quick", "--seconds", "0.05", "--only", "pipelined", "--peer", "floor"]


def samples(*values: float, remark: str = "") -> list[dict[str, Any]]:
    remarks = [remark] if remark else []
    return [
        {"repeat": repeat, "value": value, "details": {}, "remarks": remarks}
        for repeat, value in enumerate(values)
    ]


def row(title: str, targets: dict[str, float], **peers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": title,
        "unit": "µs",
        "view": "case",
        "series": "",
        "x": 0,
        "targets": [{"of": of, "limit": limit} for of, limit in targets.items()],
        "taken": "2030-01-02T03:04:05Z",
        "commit": "0123456789ab",
        "samples": peers,
    }


def in_series(x: int, **peers: list[dict[str, Any]]) -> dict[str, Any]:
    return {**row(f"at {x}", {}, **peers), "view": "series", "series": "connections", "x": x}


@pytest.fixture
def saved() -> report.Report:
    threads = [{**samples(1.0)[0], "details": {"possible": 1.5, "cpus": 2.0}}]
    loads = {f"{load}_{name}": 10.0 for load in (10, 50, 90) for name in ("p50", "p90", "p99")}
    loads |= {f"{load}_{name}": 99.0 for load in (10, 50, 90) for name in ("p99.9", "max")}
    loads |= {f"{load}_rate": 1_000.0 * load for load in (10, 50, 90)}
    return {
        "format": 2,
        "taken": "2030-01-02T03:04:05Z",
        "commit": "0123456789ab",
        "machine": {
            "cpu": "A CPU",
            "cpus": 2,
            "virtual": True,
            "kernel": "6.1",
            "compiler": "gcc 12",
            "python": "3.11",
            "server_cpu": 0,
            "generator_cpu": 1,
        },
        "settings": {"repeats": 3, "seconds": 2.0},
        "interrupted": False,
        "peers": {"redis": {"title": "Redis 7", "lacks": "no login"}},
        "skipped": {"picows": "not installed"},
        "failed": [{"scenario": "idle", "peer": "redis", "text": "no\nmore"}],
        "series": {"connections": {"title": "of all", "axis": "connections", "flat": 0.15}},
        "results": {
            "ping-pong": row(
                "ping-pong",
                {"floor": 1.15, "ahead": 1.6},
                floor=samples(5, 10, 6),
                imserver=samples(6, 11, 9, remark="disturbed"),
                redis=samples(12, 15, 18),
                nats=samples(10, 30, 20),
            ),
            "idle": row("idle", {"value": 400}, imserver=samples(1234.5, remark="disturbed")),
            "held-gil": row("held", {"value": 2}, floor=[]),
            "threads": row("threads", {"more": 1}, imserver=threads),
            "connections-100": in_series(
                100, floor=samples(5, 5), imserver=samples(5, 6), go=samples(9)
            ),
            "connections-1000": in_series(1_000, floor=samples(8, 9), imserver=samples(9, 11)),
            "latency": {
                **row("latency", {}, imserver=[{**samples(10)[0], "details": loads}]),
                "view": "latency",
            },
        },
    }


def test_a_ratio_is_that_of_neighbours(saved: report.Report) -> None:
    ping_pong = saved["results"]["ping-pong"]
    assert of_floor(ping_pong) == pytest.approx([1.2, 1.1, 1.5])
    assert ahead(ping_pong) == pytest.approx([10 / 6, 15 / 11, 2.0])
    assert best_peer(ping_pong) == "redis"  # by its median, though nats was ahead once
    ping_pong["samples"]["floor"][0:1] = []  # a failed sample must not shift the others
    assert of_floor(ping_pong) == pytest.approx([1.1, 1.5])


def test_each_target_has_a_verdict(saved: report.Report) -> None:
    assert [(one.subject, one.of, str(one)) for one in verdicts(saved)] == [
        ("ping-pong", "floor", "MISSED, disturbed"),
        ("ping-pong", "ahead", "met, disturbed"),
        ("idle", "value", "MISSED, disturbed"),
        ("held-gil", "value", "not measured"),
        ("threads", "more", "MISSED"),  # as fast as one is not faster
        ("connections", "flat", "MISSED"),
    ]


def test_growth_is_of_our_part_and_not_of_the_kernels(saved: report.Report) -> None:
    rows = rows_of(saved, "connections")
    # Our part: 0 and 1 µs at 100, 1 and 2 µs at 1,000; a message cost 5 and 6 µs.
    assert own_growth(rows) == pytest.approx([0.0, (1 / 5 + 1 / 6) / 2])
    rows[1]["samples"]["floor"] = []
    assert own_growth(rows) == [0.0, None]


def test_the_tables_are_made_from_the_saved_samples(saved: report.Report) -> None:
    rows = report_tables.cases(saved)
    assert rows[1] == [
        "ping-pong",
        "µs",
        "9.00 (6.00..11.0)",
        "6.00 (5.00..10.0)",
        "1.20 (1.10..1.50)",
        "redis 15.0 (12.0..18.0)",
        "1.67 (1.36..2.00)",
        "≤ 1.15 × floor; ≥ 1.6 × ahead",
        "MISSED, disturbed; met, disturbed",
    ]
    assert rows[2][2:] == ["1,234", "", "", "", "", "≤ 400", "MISSED, disturbed"]
    assert rows[-1][0] == "growth of our part, 100 to 1,000 connections (connections)"
    assert report_tables.peers(saved) == [
        ["server", "version", "ping-pong, µs", "what it does not do, and imserver does"],
        ["floor", "", "6.00", ""],
        ["imserver", "", "9.00", ""],
        ["nats", "", "20.0", ""],
        ["redis", "Redis 7", "15.0", "no login"],
    ]
    servers = [row[0] for row in report_tables.series(saved, "connections")[1:3]]
    assert servers == ["floor", "imserver"]  # go was in one row only
    assert report_tables.series(saved, "connections")[-1] == ["growth of our part", "+0%", "+18%"]
    assert report_tables.latency(saved)[1][:4] == ["imserver", "10 %", "10,000", "10.0"]
    text = report_tables.markdown(saved)
    assert "picows was skipped: not installed" in text
    assert "failed: idle, redis: no\n" in text
    assert "disturbed: ping-pong, imserver (3 of 3); idle, imserver (1 of 1)" in text
    assert "room for 1.50" in text
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        assert len({len(line) for line in table.splitlines()}) == 1


def test_what_is_kept_has_tables_of_its_own(saved: report.Report) -> None:
    def durable(*per_s: float) -> list[dict[str, Any]]:
        rates = [{"deliveries_per_s": rate, "flushes_per_s": 100.0} for rate in per_s]
        return [{**samples(2.0)[0], "repeat": at, "details": one} for at, one in enumerate(rates)]

    unseen = [{**samples(1.0)[0], "details": {"deliveries_per_s": 9.0, "flushes_per_s": 0.0}}]
    names = ("p50", "p90", "p99", "p99.9", "max")
    found = dict.fromkeys(names, 400.0) | {f"flush_{name}": 150.0 for name in names}
    saved["results"] = {
        "durable": row("durable", {}, imserver=durable(30_000, 50_000, 40_000), redis=unseen),
        "durable-unflushed": row("same", {}, imserver=durable(1), nats=durable(2_000)),
        "durable-latency": row("latency", {}, imserver=[{**samples(1)[0], "details": found}]),
    }
    assert report_tables.kept(saved)[1:] == [
        ["imserver", "2.00", "40,000", "100", "400"],
        ["redis", "1.00", "", "", ""],  # nobody knows how often its disk flushed
        ["nats", "2.00", "2,000", "100", "20.0"],
    ]
    assert [line[:3] for line in report_tables.receipts(saved)[1:]] == [
        ["a receipt, imserver", "400", "400"],
        ["a flush beside imserver", "150", "150"],
    ]
    text = report_tables.markdown(saved)
    assert "### Durable publish" in text
    assert "### A receipt" in text
    saved["results"] = {}
    assert "### Durable publish" not in report_tables.markdown(saved)
    assert "### A receipt" not in report_tables.markdown(saved)


def test_a_named_peer_is_the_one_to_be_ahead_of(saved: report.Report) -> None:
    ping_pong = saved["results"]["ping-pong"]
    ping_pong["targets"] = [
        {"of": "ahead", "limit": 2.2, "peer": peer} for peer in ("nats", "redis")
    ]
    found = {one.peer: one for one in verdicts(saved) if one.subject == "ping-pong"}
    assert ahead(ping_pong, "nats") == pytest.approx([10 / 6, 30 / 11, 20 / 9])
    assert (found["nats"].is_met, found["redis"].is_met) == (True, False)
    assert found["nats"].target == "≥ 2.2 × ahead of nats"


def test_a_report_survives_the_file(
    saved: report.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    path = report.save(saved)
    assert path == tmp_path / "20300102T030405Z-0123456789ab.json"
    assert report.read(path) == report.read() == saved
    path.write_text(json.dumps({**saved, "format": 0}))
    with pytest.raises(ValueError, match="format 0"):
        report.read(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="format None"):
        report.read(path)
    path.write_text("no")
    with pytest.raises(ValueError, match="no JSON"):
        report.read(path)


def test_a_row_that_is_taken_again_replaces_the_old_one(saved: report.Report) -> None:
    newer = {**saved, "failed": [], "results": {"idle": row("idle", {}, imserver=samples(300))}}
    newer["results"]["idle"]["commit"] = "ba9876543210"
    merged = report.merge(saved, newer, {"idle": {("imserver", 0)}})
    assert list(merged["results"]) == list(saved["results"])
    assert merged["failed"] == []  # that one was of the old row
    assert report_tables.cases(merged)[2][2] == "300"
    assert "idle was taken 2030-01-02T03:04:05Z at commit ba9876543210" in str(
        report_tables.remarks({**merged, "results": {"idle": merged["results"]["idle"]}})
    )


@pytest.mark.parametrize(
    "planned",
    [{("imserver", 0), ("redis", 0)}, {("imserver", 0), ("imserver", 1)}],
    ids=["a peer is missing", "a repeat is missing"],
)
def test_a_row_that_is_not_whole_replaces_none(
    saved: report.Report, planned: set[tuple[str, int]]
) -> None:
    newer = {**saved, "results": {"idle": row("idle", {}, imserver=samples(300))}}
    assert report.merge(saved, newer, {"idle": planned}) == saved


@pytest.mark.parametrize(
    ("part", "name"), [("machine", "cpu"), ("machine", "kernel"), ("settings", "seconds")]
)
def test_rows_of_another_machine_or_of_other_settings_are_refused(
    saved: report.Report, part: str, name: str
) -> None:
    newer = {**saved, part: {**saved[part], name: "another"}}
    with pytest.raises(ValueError, match=f"another {part}: {name} was .*, and is another"):
        report.merge(saved, newer, {})


def test_rows_that_are_added_tell_of_the_machine_what_was_not_told(saved: report.Report) -> None:
    newer = {**saved, "machine": {**saved["machine"], "load_average": 9, "file_system": "ext4"}}
    merged = report.merge(saved, {**newer, "results": {}}, {})
    assert merged["machine"]["file_system"] == "ext4"
    assert "files on ext4" in report_tables.markdown(merged)
    assert "files on" not in report_tables.markdown(saved)


def test_refreshing_a_document_changes_the_tables_only(
    saved: report.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_tables, "RESULTS", tmp_path / "results")
    document = tmp_path / "benchmarks.md"
    report_tables.refresh(document, saved)
    once = document.read_text()
    document.write_text(f"Before.\n{once}After.\n")
    report_tables.refresh(document, saved)
    assert document.read_text() == f"Before.\n{once}After.\n"
    document.write_text("no marks")
    with pytest.raises(ValueError, match="marks"):
        report_tables.refresh(document, saved)


@pytest.mark.skipif(bool(report_plots.obstacle()), reason=report_plots.obstacle())
def test_plots_are_the_same_bytes_from_the_same_numbers(
    saved: report.Report, tmp_path: Path
) -> None:
    drawn = [report_plots.draw(saved, tmp_path / name) for name in ("one", "two")]
    assert drawn[0] == drawn[1] == ["connections", "peers", "latency"]
    for name in drawn[0]:
        pictures = [(tmp_path / place / f"{name}.svg").read_bytes() for place in ("one", "two")]
        assert pictures[0] == pictures[1]
        assert b"imserver" in pictures[0]
        assert f"{name}.svg)" in report_tables.markdown(saved, drawn[0])


def test_without_matplotlib_the_pictures_that_are_there_stay(
    saved: report.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_plots, "obstacle", lambda: "no matplotlib")
    monkeypatch.setattr(report_tables, "RESULTS", tmp_path)
    (tmp_path / "peers.svg").write_text("a picture")
    report_tables.refresh(tmp_path / "benchmarks.md", saved)
    text = (tmp_path / "benchmarks.md").read_text()
    assert re.findall(r"!\[.*\]\((.*)\)", text) == [f"../bench/{tmp_path.name}/peers.svg"]
    assert (tmp_path / "peers.svg").read_text() == "a picture"


def test_render_prints_a_saved_report(
    saved: report.Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = report.save(saved, tmp_path / "saved.json")
    assert main(["render", str(path)]) == 0
    assert capsys.readouterr().out == report_tables.markdown(saved)
    assert main(["render", str(tmp_path / "none.json")]) == 2


# --- a run ---------------------------------------------------------------------------------------


@pytest.fixture
def own_cpus() -> Iterator[None]:
    """Whatever a run pins itself to ends with it."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


def test_a_run_prints_the_tables_and_checks_them(
    own_cpus: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(TINY) == 0
    shown = capsys.readouterr()
    assert "| pipelined to oneself" in shown.out
    assert re.search(r"\[1/1, \d+:\d\d left\] pipelined, floor", shown.err)
    assert main([*TINY, "--check"]) == 1  # there is no verdict without imserver


#: Of ours alone, so that it is whole on any machine.
OURS_ALONE = ["--seconds", "0.1", "--repeats", "1", "--only", "threads"]


@pytest.fixture
def older(saved: report.Report, tmp_path: Path) -> Path:
    """A report of this machine, into which OURS_ALONE may go."""
    settings = chosen_settings(parse(OURS_ALONE))
    here = report.new_report(settings, placement())
    alike = {**saved, "machine": here["machine"], "settings": here["settings"]}
    return report.save(alike, tmp_path / "saved.json")


def test_a_run_goes_into_an_older_one(
    older: Path, own_cpus: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = report.read(older)
    assert main([*OURS_ALONE, "--save", "--into", str(older)]) == 0
    assert f"saved as {older}" in capsys.readouterr().out
    merged = report.read(older)
    assert list(merged["results"]) == list(before["results"])
    assert merged["results"]["threads"]["samples"]["imserver"][0]["details"]["cpus"] > 0
    assert merged["taken"] == before["taken"]


@pytest.mark.parametrize(
    ("changed", "text"),
    [(["--seconds", "0.2"], "of another settings: seconds"), (["--into", "none.json"], "none")],
)
def test_a_run_that_does_not_belong_into_an_older_one_does_not_begin(
    older: Path, changed: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*OURS_ALONE, "--save", "--into", str(older), *changed]) == 2
    shown = capsys.readouterr()
    assert text in shown.err
    assert "left]" not in shown.err


@pytest.mark.parametrize("options", [[], ["--save", "--peer", "floor"]])
def test_a_run_with_some_peers_or_unsaved_goes_into_nothing(options: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--into", "saved.json", *options])


def test_an_interrupted_run_keeps_what_it_has(
    tmp_path: Path,
    own_cpus: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class StopsAtTheThird(progress.Lines):
        def begin(self, what: str) -> None:
            super().begin(what)
            if self._clock.step == 3:
                sys.exit(143)

    @contextmanager
    def shown(steps_s: Sequence[float]) -> Iterator[progress.Progress]:
        yield StopsAtTheThird(Clock(steps_s))

    monkeypatch.setattr(progress, "shown", shown)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert main([*TINY, "--repeats", "5", "--save"]) == 143
    assert "the run was interrupted" in capsys.readouterr().out
    assert len(report.read()["results"]["pipelined"]["samples"]["floor"]) == 2


def test_an_interrupted_run_puts_no_partial_row_into_an_older_one(older: Path) -> None:
    before = report.read(older)
    before["settings"]["repeats"] = 5
    report.save(before, older)
    command = [sys.executable, "-m", "bench", *OURS_ALONE, "--repeats", "5"]
    with subprocess.Popen(
        [*command, "--save", "--into", str(older)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("[2/"):
                child.send_signal(signal.SIGTERM)
                break
        out, _ = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM
    assert "not saved, since samples are missing: threads" in out
    assert report.read(older)["results"] == before["results"]


def test_a_failed_sample_is_told_and_the_run_goes_on(
    own_cpus: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit of open files that the server cannot live with."""
    monkeypatch.setenv("IMSERVER_LIMITS__MAX_CONNECTIONS", "10")
    assert main(["--quick", "--seconds", "0.05", "--only", "pipelined"]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"failed: pipelined, imserver: connection \d+: refused by the server", shown)
    assert re.search(r"\| pipelined .*\| not measured", shown)


def test_the_servers_and_rows_of_a_series_take_turns() -> None:
    options = parse(["--only", "connections", "--repeats", "2", "--peer", "floor"])
    planned = plan(options, chosen_settings(options))
    sizes = [100, 1_000, 5_000, 10_000, 19_000]
    assert [(one.repeat, one.scenario.x) for one in planned] == [
        (repeat, x) for repeat in (0, 1) for x in sizes
    ]
    options = parse(["--only", "ping-pong", "--repeats", "2"])
    peers = [one.peer for one in plan(options, chosen_settings(options))]
    assert peers == [*SCENARIOS[0].peers] * 2


def test_every_scenario_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    *listed, summary = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in listed} == {scenario.name for scenario in SCENARIOS}
    assert re.fullmatch(r"\d+ samples, about \d+ minutes", summary)


def test_the_time_left_learns_from_the_time_taken() -> None:
    clock = Clock([2.0, 4.0, 6.0])
    assert clock.left_s() == pytest.approx(12.0)
    clock.step = 2
    assert clock.left_s() < 1.0  # what was thought to take 6 s took none
