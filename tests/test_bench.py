"""The benchmark harness itself: what it counts is what happened. No test looks at a speed."""

import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import process, report
from bench.__main__ import main, parse
from bench.generator import FAILURE, Generator, Histogram, LoadError, Step, Wire
from bench.peers import ROOT, adapter
from bench.peers.floor import floor
from bench.scenarios import QUICK, SCENARIOS, Closed, closed_loop, one_to_all, to_oneself

LOOPBACK = "127.0.0.1"


@pytest.fixture
def own_cpus() -> Iterator[None]:
    """Whatever a test pins itself to ends with it."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def where() -> process.Placement:
    return process.placement()


# --- the generator against the floor -------------------------------------------------------------


@pytest.mark.parametrize(
    ("connections", "depth", "burst"), [(1, 1, 1), (20, 1, 1), (5, 64, 1), (3, 32, 32)]
)
def test_everything_sent_to_the_floor_comes_back(
    where: process.Placement, connections: int, depth: int, burst: int
) -> None:
    with (
        floor("echo", "jwt", where) as server,
        Generator(server.adapter.wire, connections) as load,
    ):
        to_oneself(load, server.adapter, connections)
        load.open(server.address)
        for _ in range(2):  # what one run leaves behind would show in the next
            traffic = load.run(20, depth=depth, burst=burst, messages=4_000)
            assert traffic.is_whole
            assert traffic.sent == traffic.received == traffic.latency.count == 4_000


def test_a_burst_reaches_every_other_connection_of_the_floor(where: process.Placement) -> None:
    with (
        floor("fanout", "jwt", where) as server,
        Generator(server.adapter.wire, 51) as load,
    ):
        one_to_all(load, server.adapter, 50)
        load.open(server.address)
        traffic = load.check(load.run(20, depth=8, burst=8, messages=80))
    assert (traffic.sent, traffic.received, traffic.sends) == (80, 4_000, 10)


def test_an_open_loop_sends_what_was_asked_for_and_keeps_the_time(where: process.Placement) -> None:
    with floor("echo", "jwt", where) as server, Generator(server.adapter.wire, 7) as load:
        to_oneself(load, server.adapter, 7)
        load.open(server.address)
        traffic = load.check(load.run(0.25, rate=2_000))
    assert traffic.sent == traffic.lateness.count == 500
    assert traffic.wall_s >= 0.249


def test_large_bursts_wait_for_the_kernel_and_lose_nothing(where: process.Placement) -> None:
    """Far more under way than socket buffers hold: short sends and cut frames on both sides."""
    frame = pack(">I", 30_000) + bytes(30_000)
    with floor("echo", "jwt", where) as server, Generator(Wire(), 2) as load:
        for _ in range(2):
            load.add(load.group(1), frame=frame)
        load.open(server.address)
        traffic = load.check(load.run(20, depth=400, messages=2_000))
    assert traffic.received == 2_000


def test_a_scenario_makes_a_sample(where: process.Placement, own_cpus: None) -> None:
    sample = closed_loop(Closed("echo", to_oneself, 4, 2), "floor", QUICK, where)
    assert sample.value > 0
    assert set(sample.details) >= {"server_busy", "generator_busy", "p50", "p99.9"}


def test_a_server_that_dies_is_an_error_and_no_number(where: process.Placement) -> None:
    with floor("echo", "jwt", where) as server, Generator(server.adapter.wire, 3) as load:
        to_oneself(load, server.adapter, 3)
        load.open(server.address)
        os.kill(server.pid, 9)
        traffic = load.run(0.3, depth=1, drain_s=0.1)
        assert traffic.lost == 3
        with pytest.raises(LoadError, match="3 connections lost"):
            load.check(traffic)


def test_no_server_is_left_behind_when_the_harness_is_killed() -> None:
    script = (
        "import time\nfrom bench import process\nfrom bench.peers.floor import floor\n"
        "with floor('echo', 'jwt', process.placement()) as server:\n"
        "    print(server.pid, flush=True)\n    time.sleep(60)\n"
    )
    harness = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert harness.stdout is not None
        floor = os.pidfd_open(int(harness.stdout.readline()))
    finally:
        harness.kill()
        harness.communicate()
    try:
        import select

        assert select.select([floor], [], [], 10)[0], "the floor outlived its harness"
    finally:
        os.close(floor)


def test_a_server_is_ended_when_a_scenario_fails(where: process.Placement) -> None:
    with pytest.raises(ZeroDivisionError), floor("echo", "jwt", where) as server:
        raise ZeroDivisionError
    assert not Path(f"/proc/{server.pid}").exists()


# --- scripts, against a fake ---------------------------------------------------------------------


class FakeServer:
    """A fake of imserver: answers each frame by a table, one connection after another."""

    def __init__(self, answers: dict[int, bytes], greeting: bytes = b"") -> None:
        self._answers, self._greeting = answers, greeting
        self.heard: list[int] = []
        self._listener = socket.create_server((LOOPBACK, 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while True:
                link, _ = self._listener.accept()
                with link, link.makefile("rb") as frames:
                    link.sendall(self._greeting)
                    while head := frames.read(8):
                        body = frames.read(int.from_bytes(head[:4]) - 4)
                        self.heard.append(head[4])
                        answer = head + body if head[4] == 7 else self._answers.get(head[4], b"")
                        # In two pieces, so that the generator has to keep the first.
                        link.sendall(answer[:5])
                        link.sendall(answer[5:])
        except OSError:
            return  # the listener was closed

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


def control(type: int, body: bytes = b"{}") -> bytes:
    return pack(">IBBH", 4 + len(body), type, 64, 0) + body


def test_a_script_logs_in_subscribes_and_answers_pings() -> None:
    fake = FakeServer({1: control(2), 3: control(4)}, greeting=control(11, b""))
    try:
        frames = adapter.frames(adapter.by_name)
        with Generator(frames.wire, 1) as load:
            to_oneself(load, frames, 1)
            load.open(fake.address, timeout_s=10)
            traffic = load.check(load.run(10, depth=1, messages=5))
    finally:
        fake.close()
    assert traffic.received == 5
    assert sorted(fake.heard) == [1, 3, 7, 7, 7, 7, 7, 12]
    assert fake.heard[-5:] == [7] * 5


def test_a_refusal_is_told_with_its_text() -> None:
    fake = FakeServer({1: control(15, b'{"code":401}')})
    try:
        frames = adapter.frames(lambda number: {"token": "?"})
        with Generator(frames.wire, 1) as load:
            load.add(load.group(1), script=frames.login(0))
            with pytest.raises(LoadError, match=r'refused.*"code":401'):
                load.open(fake.address, timeout_s=10)
    finally:
        fake.close()


def test_silence_during_a_script_ends_after_the_time_out() -> None:
    fake = FakeServer({})
    try:
        with Generator(adapter.FRAMES, 1) as load:
            load.add(load.group(1), script=[Step(control(1), awaits=2)])
            with pytest.raises(LoadError, match="0 of 1 connections"):
                load.open(fake.address, timeout_s=0.2)
    finally:
        fake.close()


def test_bytes_that_are_no_frame_lose_the_connection() -> None:
    fake = FakeServer({1: b"HTTP/1.1 400 Bad Request\r\n\r\n"})
    try:
        with Generator(adapter.FRAMES, 1) as load:
            load.add(load.group(1), script=[Step(control(1), awaits=2)])
            with pytest.raises(LoadError, match=r"no reply: HTTP/1\.1 400"):
                load.open(fake.address, timeout_s=10)
    finally:
        fake.close()


def test_what_the_generator_cannot_hold_is_refused() -> None:
    with Generator(Wire(kinds={0: FAILURE}), 1) as load:
        with pytest.raises(LoadError):
            load.add(0)  # no such group
        group = load.group(1)
        with pytest.raises(LoadError):
            load.add(group, frame=b"1234567")  # no room for the stamp
        load.add(group)
        with pytest.raises(LoadError):
            load.add(group)
        with pytest.raises(LoadError):
            load.group(1)
    with pytest.raises(LoadError):
        Generator(Wire(max_bytes=1 << 20), 1)
    with pytest.raises(LoadError):
        Generator(Wire(stamp_from_end=7), 1)  # the stamp has 8 bytes


# --- percentiles ---------------------------------------------------------------------------------

DURATIONS = st.one_of(st.integers(0, 300), st.integers(0, 2**40 - 1))


@settings(deadline=None)
@given(
    values=st.lists(DURATIONS, min_size=1, max_size=200),
    share=st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0]),
)
def test_percentiles_agree_with_a_sorted_list(values: list[int], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    ordered = sorted(values)
    exact = ordered[max(1, -int(-share * len(values) // 1)) - 1]
    assert exact <= histogram.at(share) <= exact + exact // 128
    assert (histogram.count, histogram.max) == (len(values), ordered[-1])


def test_histograms_add_up() -> None:
    one, other, both = Histogram(), Histogram(), Histogram()
    chance = random.Random(7)
    for index in range(2_000):
        value = chance.randrange(10**9)
        (one if index % 3 else other).record(value)
        both.record(value)
    one.add(other)
    shares = [0.5, 0.9, 0.99, 0.999, 1.0]
    assert [one.at(share) for share in shares] == [both.at(share) for share in shares]
    assert one.count == both.count
    assert Histogram().at(0.5) == 0


# --- the report ----------------------------------------------------------------------------------


def sample(value: float, *remarks: str) -> dict[str, object]:
    return {"value": value, "details": {}, "remarks": list(remarks)}


@pytest.fixture
def saved() -> report.Report:
    def result(title: str, unit: str, of: str, limit: float, **values: list[object]) -> object:
        target = {"limit": limit, "of": of}
        return {"title": title, "unit": unit, "target": target, "samples": values}

    return {
        "format": 1,
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
        "skipped": {"redis": "not installed"},
        "failed": [],
        "results": {
            "ping-pong": result(
                "ping-pong",
                "µs",
                "floor",
                1.3,
                floor=[sample(5), sample(10), sample(6)],
                imserver=[sample(6), sample(11), sample(9, "disturbed")],
            ),
            "idle": result("idle", "bytes", "value", 400, imserver=[sample(1234.5, "disturbed")]),
            "held-gil": result("held", "times", "value", 2, floor=[]),
        },
    }


def test_a_ratio_is_that_of_neighbours(saved: report.Report) -> None:
    verdicts = {one.scenario: one for one in report.verdicts(saved)}
    assert verdicts["ping-pong"].found == pytest.approx(1.2)  # the median of 1.2, 1.1 and 1.5
    assert [str(one) for one in verdicts.values()] == ["met", "MISSED, disturbed", "not measured"]


def test_the_table_is_made_from_the_saved_samples(saved: report.Report) -> None:
    rows = report.table(saved)
    assert rows[0] == ["case", "unit", "floor", "imserver", "of floor", "target", "verdict"]
    assert rows[1][2:] == [
        "6.00 (5.00..10.0)",
        "9.00 (6.00..11.0)",
        "1.20 (1.10..1.50)",
        "≤ 1.3 of floor",
        "met",
    ]
    assert rows[2][3:] == ["1,234", "", "≤ 400", "MISSED, disturbed"]
    text = report.markdown(saved)
    assert "redis was skipped: not installed" in text
    assert "disturbed: ping-pong, imserver (1 of 3); idle, imserver (1 of 1)" in text
    table = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    assert len(table) == 5
    assert len({len(line) for line in table}) == 1


def test_a_report_survives_the_file(saved: report.Report, tmp_path: Path) -> None:
    path = report.save(saved, tmp_path)
    assert path.name == "20300102T030405Z-0123456789ab.json"
    assert report.read(path) == saved
    path.write_text(json.dumps({**saved, "format": 0}))
    with pytest.raises(ValueError, match="format 0"):
        report.read(path)


def test_refreshing_a_document_changes_the_table_only(saved: report.Report, tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    report.refresh(document, saved)
    once = document.read_text()
    document.write_text(f"Before.\n{once}After.\n")
    report.refresh(document, saved)
    assert document.read_text() == f"Before.\n{once}After.\n"
    document.write_text("no marks")
    with pytest.raises(ValueError, match="marks"):
        report.refresh(document, saved)


def test_render_prints_a_saved_report(
    saved: report.Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = report.save(saved, tmp_path)
    assert main(["render", str(path)]) == 0
    assert capsys.readouterr().out == report.markdown(saved)
    assert main(["render", str(tmp_path / "none.json")]) == 2


def test_a_run_prints_the_table_and_checks_it(
    own_cpus: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--quick", "--seconds", "0.05", "--only", "pipelined", "--peer", "floor"]
    assert main(run) == 0
    assert "| pipelined to oneself" in capsys.readouterr().out
    assert main([*run, "--check"]) == 1  # there is no verdict without imserver


def test_every_scenario_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [scenario.name for scenario in SCENARIOS]
    assert parse([]).command == "run"
