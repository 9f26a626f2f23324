"""`imserver bench`, as people run it: a process, a server of its own or one that runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from harness import RunningServer

from imserver import Config
from imserver.auth import issue
from imserver.cli_bench import CannotBench, Subject, measure, own_server
from imserver.config import Auth, Key, Limits
from imserver.load_process import placement

AUTH = Auth(keys=(Key(algorithm="HS256", secret="s" * 48),))


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    around = {key: at for key, at in os.environ.items() if not key.startswith("IMSERVER_")}
    command = [sys.executable, "-m", "imserver", "bench", "--seconds", "0.1", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=around | environment
    )


@pytest.fixture
def guarded() -> Iterator[RunningServer]:
    """A server that wants tokens."""
    server = RunningServer(Config(listen="127.0.0.1:0", auth=AUTH))
    yield server
    server.stop()


def token(**claims: Any) -> str:
    rights = {"publish": ["room:*"], "subscribe": ["room:*"]} | claims
    return issue(AUTH, "ann", **rights)


def children_of(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_server_of_its_own_is_measured_and_ended() -> None:
    done = bench(IMSERVER_LISTEN="nonsense")  # settings from around are not its
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("case       deliveries/s  server CPU, µs each")
    assert [line.split()[0] for line in lines[1:5]] == [
        "ping-pong",
        "pipelined",
        "fan-out",
        "latency",
    ]
    assert "measuring ping-pong" in done.stderr


def test_json_has_all_of_it() -> None:
    found = json.loads(bench("--json", "--threads", "2").stdout)
    assert found["server"] == "own, --threads 2"
    assert found["version"] == version("imserver")
    assert found["cpu"] in Path("/proc/cpuinfo").read_text()
    cases = {case["case"]: case for case in found["cases"]}
    assert list(cases) == ["ping-pong", "latency", "pipelined", "fan-out"]
    assert all(cases[name]["server_us"] > 0 for name in ("ping-pong", "pipelined", "fan-out"))
    latency_us = cases["latency"]["latency_us"]
    assert 0 < latency_us["p50"] <= latency_us["p99.9"] <= latency_us["max"]


@pytest.mark.parametrize(
    ("cpus", "one", "several"),
    [({0}, {0}, {0}), ({2, 5}, {2}, {2, 5}), ({2, 5, 6, 7}, {2}, {2, 6, 7})],
)
def test_several_threads_have_the_cpus_that_the_generator_leaves(
    cpus: set[int], one: set[int], several: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cpus)
    assert ({placement().server}, placement().of_threads) == (one, several)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_all_threads_of_our_server_run_where_it_is_said(threads: str) -> None:
    where = placement()
    with own_server(where, threads) as subject:
        allowed = {
            frozenset(os.sched_getaffinity(int(task.name)))
            for task in Path(f"/proc/{subject.pid}/task").iterdir()
        }
    assert allowed == {subject.cpus}
    assert subject.cpus == ({where.server} if threads == "1" else where.of_threads)


def test_a_server_that_has_ended_is_told() -> None:
    """One that runs, under the number of a process that does not any more."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    server = RunningServer(Config(listen="127.0.0.1:0", dev=True))
    try:
        with pytest.raises(CannotBench, match="ping-pong: the server has ended"):
            measure(Subject(server.address, {"user": "bench"}, gone.pid), placement(), 0.1)
    finally:
        server.stop()


def test_a_server_that_runs_is_measured_with_a_token(guarded: RunningServer) -> None:
    where = "{}:{}".format(*guarded.address)
    done = bench("--server", where, "--json", IMSERVER_TOKEN=token())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["server"], found["server_cpus"]) == (where, None)
    assert [case["server_us"] for case in found["cases"]] == [None] * 4
    assert guarded.stats()["messages_in"] > 0


def test_a_refusal_is_told(guarded: RunningServer) -> None:
    where = "{}:{}".format(*guarded.address)
    done = bench("--server", where, "--token", token(subscribe=[]))
    assert done.returncode == 1
    assert "403" in done.stderr
    done = bench("--server", where, "--token", token(device="phone"))
    assert "one device only" in done.stderr
    done = bench("--server", where, "--token", "nonsense")
    assert "names no user" in done.stderr


def test_a_server_that_is_too_small_is_told() -> None:
    server = RunningServer(
        Config(listen="127.0.0.1:0", dev=True, limits=Limits(max_connections=20))
    )
    try:
        done = bench("--server", "{}:{}".format(*server.address), "--user", "ann")
    finally:
        server.stop()
    assert (done.returncode, "ping-pong: connection" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--server", "127.0.0.1:1", "--user", "ann"], 1, "no server at 127.0.0.1:1"),
        (["--server", "nowhere", "--user", "ann"], 1, "nowhere"),
        (["--server", "127.0.0.1:1"], 2, "who are you?"),
        (["--user", "ann"], 2, "--server"),
        (["--threads", "99"], 1, "the server did not start: bad configuration: threads"),
        (["--seconds", "0"], 2, "0.1"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(arguments: list[str], code: int, text: str) -> None:
    done = bench(*arguments)
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_server_is_left_behind_when_it_is_killed(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "imserver", "bench", "--seconds", "30"],
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stderr is not None
        assert "measuring ping-pong" in child.stderr.readline()
        (server,) = children_of(child.pid)
        child.send_signal(number)
        child.stderr.close()
        if number == signal.SIGTERM:
            child.kill()  # it is in C until its 30 s are over
    deadline_s = time.monotonic() + 10
    while Path(f"/proc/{server}/stat").exists() and time.monotonic() < deadline_s:
        if Path(f"/proc/{server}/stat").read_text().split(")")[1].split()[0] == "Z":
            break  # init has not looked yet
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{server}").exists()
