"""The load generator and the servers it is pointed at: what it counts is what happened. No test
looks at a speed. The scenarios are in test_bench_scenarios, the report in test_bench_report."""

import os
import random
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import process
from bench.layouts import one_to_all, rooms, to_oneself
from bench.peers import ROOT, adapter
from bench.peers.floor import floor
from bench.peers.imserver import imserver
from imserver import load_process
from imserver.load import FAILURE, Generator, Histogram, LoadError, Step, Wire

LOOPBACK = "127.0.0.1"


@pytest.fixture
def where() -> load_process.Placement:
    return load_process.placement()


# --- the generator against the floor -------------------------------------------------------------


@pytest.mark.parametrize(
    ("connections", "depth", "burst"), [(1, 1, 1), (20, 1, 1), (5, 64, 1), (3, 32, 32)]
)
def test_everything_sent_to_the_floor_comes_back(
    where: load_process.Placement, connections: int, depth: int, burst: int
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


def test_a_burst_reaches_every_other_connection_of_the_floor(where: load_process.Placement) -> None:
    with (
        floor("fanout", "jwt", where) as server,
        Generator(server.adapter.wire, 51) as load,
    ):
        one_to_all(load, server.adapter, 50)
        load.open(server.address)
        traffic = load.check(load.run(20, depth=8, burst=8, messages=80))
    assert (traffic.sent, traffic.received, traffic.sends) == (80, 4_000, 10)


def test_an_open_loop_sends_what_was_asked_for_and_keeps_the_time(
    where: load_process.Placement,
) -> None:
    with floor("echo", "jwt", where) as server, Generator(server.adapter.wire, 7) as load:
        to_oneself(load, server.adapter, 7)
        load.open(server.address)
        traffic = load.check(load.run(0.25, rate=2_000))
    # All of the 500, but for what a machine that is busy with others has not let it send in time.
    assert 0 < traffic.sent == traffic.lateness.count <= 500
    assert traffic.wall_s >= 0.249


def test_what_is_overdue_is_sent_in_parts_between_which_replies_are_read() -> None:
    """To a fake server whose PING is there before the first message: the PONG does not wait for
    all that are due."""
    ping, pong = control(11, b""), adapter.FRAMES.pong
    frame = pack(">IBBH", 20, 7, 0, 0) + bytes(16)
    listener = socket.create_server((LOOPBACK, 0))
    with Generator(adapter.FRAMES, 1) as load:
        load.add(load.group(1), frames=[frame])
        load.open(listener.getsockname())
        link, _ = listener.accept()
        link.sendall(ping)
        traffic = load.run(10, rate=10**9, messages=500, drain_s=0)
    with link, link.makefile("rb") as stream:
        heard = stream.read()
    listener.close()
    assert traffic.sent == 500
    assert len(heard) == 500 * len(frame) + len(pong)
    assert 0 <= heard.find(pong) <= 64 * len(frame)


def test_a_generator_that_others_keep_from_its_cpu_has_still_worked(
    where: load_process.Placement,
) -> None:
    """Time that another process had while it looked in vain is not taken off its own."""
    before = os.sched_getaffinity(0)
    load_process.pin(where.generator)
    with (
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other,
        floor("echo", "jwt", where) as server,
        Generator(server.adapter.wire, 1, spins=True) as load,
    ):
        try:
            to_oneself(load, server.adapter, 1)
            load.open(server.address)
            traffic = load.check(load.run(0.3, rate=2_000))
        finally:
            other.kill()
            os.sched_setaffinity(0, before)
    assert 0 < traffic.busy < 1


def test_large_bursts_wait_for_the_kernel_and_lose_nothing(where: load_process.Placement) -> None:
    """Far more under way than socket buffers hold: short sends and cut frames on both sides."""
    frame = pack(">I", 30_000) + bytes(30_000)
    with floor("echo", "jwt", where) as server, Generator(Wire(), 2) as load:
        for _ in range(2):
            load.add(load.group(1), frames=[frame])
        load.open(server.address)
        traffic = load.check(load.run(20, depth=400, messages=2_000))
    assert traffic.received == 2_000


def test_frames_of_a_connection_take_turns() -> None:
    """Three of them in bursts of two, to a fake server that remembers them."""
    frames = [pack(">I", 20) + bytes([65 + kind]) * 12 + bytes(8) for kind in range(3)]
    heard: list[int] = []
    listener = socket.create_server((LOOPBACK, 0))

    def echo() -> None:
        link, _ = listener.accept()
        with link, link.makefile("rb") as stream:
            while frame := stream.read(24):
                heard.append(frame[4] - 65)
                link.sendall(frame)

    thread = threading.Thread(target=echo)
    thread.start()
    with Generator(Wire(), 1) as load:
        number = load.add(load.group(1), frames=frames)
        load.open(listener.getsockname())
        load.check(load.run(10, depth=2, burst=2, messages=10))
        load.republish(number, frames[1:])
        load.check(load.run(10, depth=2, burst=2, messages=4))
    thread.join(10)
    listener.close()
    assert heard == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, *[1, 2, 1, 2]]


def test_stamps_differ_and_stand_where_the_wire_says() -> None:
    """At another place in what is published than in the replies, of a fake server."""
    heard: list[bytes] = []
    listener = socket.create_server((LOOPBACK, 0))

    def answer() -> None:
        link, _ = listener.accept()
        with link, link.makefile("rb") as stream:
            while frame := stream.read(32):
                heard.append(frame)
                link.sendall(pack(">I", 8) + frame[8:16])

    thread = threading.Thread(target=answer)
    thread.start()
    with Generator(Wire(stamp_at=8), 1) as load:
        load.add(load.group(1), frames=[pack(">I", 28) + bytes(28)])
        load.open(listener.getsockname())
        traffic = load.check(load.run(10, depth=8, burst=8, messages=64))
    thread.join(10)
    listener.close()
    assert len({frame[8:16] for frame in heard}) == 64
    assert {frame[:8] + frame[16:] for frame in heard} == {pack(">I", 28) + bytes(20)}
    assert traffic.latency.count == 64
    assert traffic.latency.max < 20 * 10**9


def test_a_group_in_which_everybody_publishes_takes_turns(where: load_process.Placement) -> None:
    with (
        imserver("fanout", "jwt", where) as server,
        Generator(server.adapter.wire, 20) as load,
    ):
        rooms(load, server.adapter, 20)
        load.open(server.address)
        traffic = load.check(load.run(10, depth=1, messages=40))
    assert (traffic.sent, traffic.received) == (40, 400)


def test_a_mute_connection_is_owed_nothing_and_lost_without_loss() -> None:
    """A fake server that sends to it until its socket is full, and then closes it."""
    listener = socket.create_server((LOOPBACK, 0))
    with Generator(Wire(), 1) as load:
        load.add(load.group(1), is_mute=True)
        load.open(listener.getsockname())
        link, _ = listener.accept()
        link.setblocking(False)
        while select.select([], [link], [], 0.1)[1]:
            link.send(bytes(65_536))
        traffic = load.check(load.run(0.05))
        assert (traffic.receives, load.muted_gone) == (0, 0)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
        link.close()
        load.check(load.run(0.05))
        assert load.muted_gone == 1
    listener.close()


def test_steps_for_an_open_connection_run_at_the_next_opening() -> None:
    fake = FakeServer({1: control(2), 3: control(4)})
    try:
        with Generator(adapter.FRAMES, 1) as load:
            number = load.add(load.group(1), script=[Step(control(1), 2)])
            load.open(fake.address, timeout_s=10)
            assert fake.heard == [1]
            load.extend(number, [Step(control(3), 4), Step(control(3), 4)])
            opening = load.open(fake.address, timeout_s=10)
            assert opening.wall_s > 0
            load.check(load.run(0))
    finally:
        fake.close()
    assert fake.heard == [1, 3, 3]


def test_a_server_that_dies_is_an_error_and_no_number(where: load_process.Placement) -> None:
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
        "import time\nfrom imserver import load_process\nfrom bench.peers.floor import floor\n"
        "with floor('echo', 'jwt', load_process.placement()) as server:\n"
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
        assert select.select([floor], [], [], 10)[0], "the floor outlived its harness"
    finally:
        os.close(floor)


def test_a_server_is_ended_when_a_scenario_fails(where: load_process.Placement) -> None:
    with pytest.raises(ZeroDivisionError), floor("echo", "jwt", where) as server:
        raise ZeroDivisionError
    assert not Path(f"/proc/{server.pid}").exists()


def test_the_usage_of_a_process_has_that_of_its_children(where: load_process.Placement) -> None:
    """While they run, and when they have ended."""
    burn = "import sys, time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\n"
    script = (
        "import subprocess, sys\n"
        f"with subprocess.Popen([sys.executable, '-c', {burn + 'sys.stdin.read()'!r}],\n"
        "                      stdin=-1, stdout=-1) as child:\n"
        "    child.stdout.readline()\n    print('runs', flush=True)\n    sys.stdin.readline()\n"
        "    child.stdin.close()\n    child.wait()\n    print('ended', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for said in ("runs", "ended"):
            assert parent.stdout.readline().strip() == said
            own = int(Path(f"/proc/{parent.pid}/schedstat").read_text().split()[0])
            assert load_process.usage(parent.pid).cpu_ns - own > 180 * 10**6
            parent.stdin.write("\n")
            parent.stdin.flush()


@pytest.mark.parametrize(
    ("server", "generator", "seconds"), [(0, 1, 2.0), (0, 0, 1.0), (1, 1, 3.0), (1, 0, 2.0)]
)
def test_what_was_stolen_is_a_mean_of_the_cpus_in_use(
    server: int, generator: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    rows = f"cpu  0 0 0 0 0 0 0 {9 * tick}\n" + "".join(
        f"cpu{cpu} 0 0 0 0 0 0 0 {stolen * tick} 0 0\n" for cpu, stolen in ((0, 1), (1, 3), (2, 5))
    )
    monkeypatch.setattr(Path, "read_text", lambda self: rows)
    where = load_process.Placement(server, generator, frozenset({0, 1, 2}))
    assert process.stolen_s(where) == seconds


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
            with pytest.raises(LoadError, match="no reply: HTTP/"):
                load.open(fake.address, timeout_s=10)
    finally:
        fake.close()


def test_what_the_generator_cannot_hold_is_refused() -> None:
    with Generator(Wire(kinds={0: FAILURE}), 1) as load:
        with pytest.raises(LoadError):
            load.add(0)  # no such group
        with pytest.raises(LoadError, match="nobody hears"):
            load.group(0)
        group = load.group(1)
        with pytest.raises(LoadError):
            load.add(group, frames=[b"1234567"])  # no room for the stamp
        with pytest.raises(LoadError, match="one length"):
            load.add(group, frames=[bytes(8), bytes(9)])
        number = load.add(group)
        with pytest.raises(LoadError, match="only listens"):
            load.republish(number, [bytes(8)])
        with pytest.raises(LoadError):
            load.add(group)
        with pytest.raises(LoadError):
            load.group(1)
    with pytest.raises(LoadError):
        Generator(Wire(max_bytes=1 << 20), 1)
    with pytest.raises(LoadError):
        Generator(Wire(stamp_from_end=7), 1)  # the stamp has 8 bytes
    with Generator(Wire(stamp_at=24), 1) as load:
        load.add(load.group(1), frames=[bytes(32)])
    with Generator(Wire(stamp_at=24), 1) as load, pytest.raises(LoadError):
        load.add(load.group(1), frames=[bytes(31)])


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
