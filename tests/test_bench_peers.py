"""The peers of the benchmark as they are: each installed one delivers everything once, the others
are skipped by name, and none is left behind."""

import os
import re
import resource
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import report
from bench.__main__ import Planned, measure
from bench.peers import PEERS, ROOT, STORES, Adapter, Server, Task
from bench.peers.nats import ask
from bench.scenario import QUICK
from bench.scenarios import _WEB, SCENARIOS
from imserver import load_process
from imserver.load import Generator

BODY = bytes(64)
LARGE = bytes(range(256)) * 64  # 16 KiB

HEARD = [name for name in PEERS if name not in STORES]
PROGRAMS = ["nats", "mosquitto", "redis", "go", *STORES]


@pytest.fixture(autouse=True)
def own_cpus() -> Iterator[None]:
    """Whatever a test pins itself to ends with it."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def where() -> load_process.Placement:
    return load_process.placement()


def need(name: str) -> None:
    if obstacle := PEERS[name].obstacle():
        pytest.skip(f"{name}: {obstacle}")


def to_oneself(load: Generator, adapter: Adapter, connections: int, body: bytes) -> None:
    for number in range(connections):
        topic = f"room:test-{number}"
        script = (*adapter.login(number), *adapter.subscribe(topic))
        load.add(load.group(1), frames=[adapter.publish(number, topic, body)], script=script)


# --- nothing is lost, nothing comes twice --------------------------------------------------------


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["64 bytes", "16 KiB"])
@pytest.mark.parametrize("name", PEERS)
def test_everything_sent_comes_back_once(
    name: str, body: bytes, where: load_process.Placement
) -> None:
    need(name)
    with (
        PEERS[name].start("echo", "jwt", where) as server,
        Generator(server.adapter.wire, 5) as load,
    ):
        to_oneself(load, server.adapter, 5, body)
        load.open(server.address, timeout_s=20)
        traffic = load.check(load.run(20, depth=8, messages=1_000))
        left = load.run(0.05)  # only listens: nothing comes late
    assert (traffic.sent, traffic.received, left.received) == (1_000, 1_000, 0)
    assert traffic.latency.count == (1_000 if server.adapter.wire.stamp_from_end else 0)


@pytest.mark.parametrize("name", HEARD)
def test_everyone_in_a_room_hears_everything_once(name: str, where: load_process.Placement) -> None:
    need(name)
    with (
        PEERS[name].start("fanout", "jwt", where) as server,
        Generator(server.adapter.wire, 21) as load,
    ):
        adapter = server.adapter
        room = load.group(20)
        frame = adapter.publish(0, "room:test", BODY)
        load.add(room, frames=[frame], script=adapter.login(0))
        for number in range(1, 21):
            script = (*adapter.login(number), *adapter.subscribe("room:test"))
            load.add(room, script=script)
        load.open(server.address, timeout_s=20)
        traffic = load.check(load.run(20, depth=32, burst=32, messages=320))
        left = load.run(0.05)
    assert (traffic.sent, traffic.received, left.received) == (320, 6_400, 0)
    assert traffic.latency.count == 6_400


@pytest.mark.parametrize("name", [name for name in HEARD if name != "floor"])
def test_only_those_in_a_room_hear_it(name: str, where: load_process.Placement) -> None:
    need(name)
    with (
        PEERS[name].start("fanout", "dev", where) as server,
        Generator(server.adapter.wire, 3) as load,
    ):
        adapter = server.adapter
        for number, (spoken, heard) in enumerate([("room:a", "room:b"), ("room:b", "room:c")]):
            script = (*adapter.login(number), *adapter.subscribe(heard))
            frame = adapter.publish(number, spoken, BODY)
            load.add(load.group(1), frames=[frame], script=script)
        load.open(server.address, timeout_s=20)
        traffic = load.run(20, depth=1, messages=2, drain_s=0.2)
    # The first publishes to a room where nobody is, the second to the first, whose group waits.
    assert (traffic.sent, traffic.received, traffic.lost) == (2, 1, 0)


# --- what is to be kept ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["floor", "imserver"])
def test_each_durable_message_has_one_receipt(name: str, where: load_process.Placement) -> None:
    need(name)
    with (
        PEERS[name].start("durable", "jwt", where) as server,
        Generator(server.adapter.wire, 5) as load,
    ):
        to_oneself(load, server.adapter, 5, BODY)
        load.open(server.address, timeout_s=20)
        traffic = load.check(load.run(20, depth=8, messages=1_000))
        left = load.run(0.05)
    assert (traffic.sent, traffic.received, left.received) == (1_000, 1_000, 0)
    assert traffic.latency.count == 1_000
    assert traffic.latency.max < 20 * 10**9  # a stamp read elsewhere would be years ago


def test_no_receipt_is_a_failure_where_nothing_is_kept(where: load_process.Placement) -> None:
    need("imserver")
    with (
        PEERS["imserver"].start("durable", "jwt", where) as server,
        Generator(server.adapter.wire, 1) as load,
    ):
        adapter = server.adapter
        frame = adapter.publish(0, "nothing:here", BODY)
        load.add(load.group(1), frames=[frame], script=adapter.login(0))
        load.open(server.address, timeout_s=20)
        traffic = load.run(20, depth=1, messages=1, drain_s=5)
    assert (traffic.received, traffic.lost) == (0, 1)


WEB: list[tuple[str, Task]] = [
    ("floor", "web"),
    *((name, task) for name in _WEB for task in ("web", "web-fanout")),  # type: ignore[misc]
]


@pytest.mark.parametrize(("name", "task"), WEB)
def test_rows_over_websocket_lose_nothing(
    name: str, task: Task, where: load_process.Placement
) -> None:
    need(name)
    with (
        PEERS[name].start(task, "jwt", where) as server,
        Generator(server.adapter.wire, 20) as load,
    ):
        to_oneself(load, server.adapter, 20, BODY)
        load.open(server.address, timeout_s=20)
        load.check(load.run(20, depth=64, burst=8, messages=5_000))


def said_by_redis(server: Server, *words: str) -> bytes:
    with socket.create_connection(server.address, 10) as link:
        link.sendall(" ".join(words).encode() + b"\r\n")
        return link.recv(1_000)


@pytest.mark.parametrize("name", STORES)
def test_what_is_answered_is_kept(name: str, where: load_process.Placement) -> None:
    need(name)
    with (
        PEERS[name].start("durable", "jwt", where) as server,
        Generator(server.adapter.wire, 5) as load,
    ):
        to_oneself(load, server.adapter, 5, BODY)
        load.open(server.address, timeout_s=20)
        load.check(load.run(20, depth=8, messages=1_000))
        if name == "jetstream":
            found = ask(server.address, "INFO")
            assert (found["state"]["messages"], found["config"]["storage"]) == (1_000, "file")
            return
        kept = [said_by_redis(server, "XLEN", f"room:test-{number}") for number in range(5)]
        assert sum(int(one[1:]) for one in kept) == 1_000
        flushes = b"always" if name == "redis-streams" else b"everysec"
        assert flushes in said_by_redis(server, "CONFIG", "GET", "appendfsync")
        assert b"yes" in said_by_redis(server, "CONFIG", "GET", "appendonly")


# --- missing and left behind ---------------------------------------------------------------------


@pytest.fixture
def no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the tools of the harness and no other program."""
    for tool in ("gcc", "prlimit", "setpriv", "taskset"):
        found = shutil.which(tool)
        assert found is not None, f"the harness needs {tool}"
        (tmp_path / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_what_is_not_installed_is_skipped_by_name(no_programs: None) -> None:
    pipelined = next(one for one in SCENARIOS if one.name == "pipelined")
    found = report.new_report(QUICK, load_process.placement())
    measure(found, [Planned(pipelined, name, 0) for name in (*PROGRAMS, "floor")], QUICK)
    assert list(found["skipped"]) == PROGRAMS
    assert found["skipped"]["nats"] == "no nats-server on the path: make peers"
    assert found["failed"] == []
    assert list(found["results"]["pipelined"]["samples"]) == ["floor"]


def test_a_missing_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    for name in ("uvloop", "picows", "websockets"):
        assert re.match(rf"no module .*{name}: make peers", PEERS[name].obstacle())
    assert PEERS["asyncio"].obstacle() == ""  # needs none


@pytest.mark.parametrize("name", PEERS)
def test_no_peer_outlives_a_harness_that_is_killed(name: str, tmp_path: Path) -> None:
    need(name)
    script = (
        "import time\nfrom pathlib import Path\nfrom imserver import load_process as process\n"
        "from bench.peers import PEERS, peer\n"
        f"peer.DATA = Path({str(tmp_path)!r})  # nobody is left to delete it\n"
        f"with PEERS[{name!r}].start('echo', 'jwt', process.placement()) as server:\n"
        "    print(server.pid, flush=True)\n    time.sleep(60)\n"
    )
    harness = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert harness.stdout is not None
        peer = os.pidfd_open(int(harness.stdout.readline()))
    finally:
        harness.kill()
        harness.communicate()
    try:
        assert select.select([peer], [], [], 10)[0], f"{name} outlived its harness"
    finally:
        os.close(peer)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_pinned_has_descriptors_and_ends(
    name: str, where: load_process.Placement
) -> None:
    need(name)
    with PEERS[name].start("echo", "jwt", where) as server:
        assert os.sched_getaffinity(server.pid) == {where.server}
        soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        assert soft >= 20_000 or soft == hard
    assert not Path(f"/proc/{server.pid}").exists()


# --- what the report says of them ----------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_title_has_the_version_of_the_program(name: str) -> None:
    need(name)
    assert re.fullmatch(
        r"(Redis|NATS|Mosquitto|Go) \d+\.\d+(| streams, .+| JetStream, .+)", PEERS[name].title()
    )


def test_the_table_of_peers_has_each_and_what_it_lacks() -> None:
    text = (ROOT / "bench" / "README.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \| .* \| (.*) \|$", text, re.MULTILINE))
    assert {name: rows.get(name) for name in PEERS} == {
        name: peer.lacks or "nothing" for name, peer in PEERS.items()
    }
