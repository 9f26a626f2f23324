"""A server that is killed, cut off, starved and lied to by its disk, under traffic.

torture.py has the processes, torture_clients.py the traffic, history.py the verdict. What the
store does alone under the same faults, call by call, is in test_timeline_faults. `make torture`
runs the first of these for a thousand cycles.
"""

import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Peer
from history import History
from torture import DRAIN_S, FAULTY, Child, is_good, torture
from torture_clients import Crowd, Publisher

from imserver.protocol import DURABLE, FrameReader, FrameType, decode_message, encode_message

pytestmark = pytest.mark.timeout(240)

#: What a scenario is killed at: every so-many-th call.
CALLS = {"fdatasync": 1, "pwrite64": 20}

needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


async def test_thirty_kills_lose_nothing(tmp_path: Path) -> None:
    verdict = await torture(tmp_path / "data", 30, most_s=0.4, publishes=100)
    assert is_good(verdict), verdict
    assert verdict.in_flight, "it was killed at work"


async def test_killed_while_it_recovers_it_loses_nothing(tmp_path: Path) -> None:
    verdict = await torture(tmp_path / "data", 5, seed=2, during_start=True)
    assert is_good(verdict), verdict


async def test_so_it_is_with_two_threads(tmp_path: Path) -> None:
    verdict = await torture(tmp_path / "data", 5, seed=3, threads=2)
    assert is_good(verdict), verdict


async def test_receipts_before_the_flush_are_found(tmp_path: Path) -> None:
    """The planted bug: a harness that cannot see it proves nothing."""
    verdict = await torture(tmp_path / "data", 6, seed=4, program=FAULTY, most_s=0.3, drain_s=5)
    assert verdict.violations.keys() & {"lost", "forked"}, verdict


def test_a_publisher_repeats_what_is_open_before_it_says_anything_new() -> None:
    """Else the disorder that the history finds would be the harness's own."""
    publisher = Publisher(History({}), "ann", 1, ["room:1"], in_flight=3)
    sent = bytearray()
    publisher.send = sent.extend  # type: ignore[method-assign]
    publisher.open = {1: encode_message("room:1", "ann", b"x", id=1)}
    publisher.last_id, publisher.most = 1, 3
    publisher.go_on()
    assert not sent, "it was not welcomed yet"
    publisher.is_welcome = True
    publisher.welcomed()
    ids = [decode_message(frame.data).id for frame in FrameReader(1 << 20).feed(sent)]
    assert ids == [1, 2, 3]


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    child = Child(tmp_path / "data")
    yield child
    child.close()


@pytest.fixture
def crowd() -> Crowd:
    return Crowd(seed=5)


async def move(crowd: Crowd, child: Child) -> None:
    """Start another server, and send everybody there."""
    child.start()
    await child.listening()
    crowd.moved(child.port)
    for one in crowd.all:
        one.cut()


async def is_settled(crowd: Crowd) -> None:
    await crowd.finish(DRAIN_S)
    verdict = crowd.history.verdict()
    assert is_good(verdict), verdict


async def test_told_to_stop_under_load_it_loses_nothing(child: Child, crowd: Crowd) -> None:
    try:
        child.start()
        await child.listening()
        await crowd.come(child.port)
        for _ in range(3):
            crowd.publish(200)
            await asyncio.sleep(0.2)
            assert await child.terminate() == 0, child.log()
            child.start()
            await child.listening()
        await is_settled(crowd)
    finally:
        await crowd.leave()


async def test_cut_off_anywhere_nobody_loses_anything(child: Child, crowd: Crowd) -> None:
    """Publishers behind a random byte of a message, subscribers wherever they are in what they read
    and acknowledge."""
    dice = random.Random(6)
    try:
        child.start()
        await child.listening()
        await crowd.come(child.port)
        for _ in range(100):
            crowd.publish(5)
            dice.choice(crowd.all).cut()
            await asyncio.sleep(dice.uniform(0, 0.03))
        await is_settled(crowd)
        assert sum(one.connections for one in crowd.all) > len(crowd.all)
    finally:
        await crowd.leave()


def test_a_second_server_on_the_directory_is_refused(tmp_path: Path) -> None:
    async def play() -> None:
        first, second = Child(tmp_path / "data"), Child(tmp_path / "data")
        try:
            first.start()
            await first.listening()
            second.start()
            assert await asyncio.to_thread(second.process.wait, 30) == 1
            assert f"in use by process {first.process.pid}" in second.log()
        finally:
            first.close()
            second.close()

    asyncio.run(play())


@needs_strace
@pytest.mark.parametrize(
    "fault",
    [
        "fdatasync:error=EIO:when=60+",
        "fdatasync:error=EIO:when=75",
        "pwrite64:error=ENOSPC:when=300+",
        "pwrite64:error=EIO:when=350",
        "fdatasync:signal=SIGKILL:when=60",
        "fdatasync:signal=SIGKILL:when=70",
        "pwrite64:signal=SIGKILL:when=333",
    ],
)
async def test_a_call_that_fails_costs_no_receipt(child: Child, crowd: Crowd, fault: str) -> None:
    try:
        # -D: the server is our child, and strace its shadow.
        child.start("strace", "-D", "-qq", "-f", "-o", "/dev/null", "-e", f"inject={fault}")
        await child.listening()
        await crowd.come(child.port)
        crowd.publish(60)
        await crowd.finish(2)  # it comes to nothing, or to its end
        child.close()
        child = Child(child.directory)
        await move(crowd, child)
        await is_settled(crowd)
    finally:
        await crowd.leave()
        child.close()


async def scenario(directory: Path, fault: str = "") -> bool:
    """Twenty publishes, one after the other, and two who read, acknowledge and refuse, from the
    start of a server on a new directory. strace kills it at the call that `fault` names; then it is
    started again, undisturbed. Whether it was killed."""
    crowd = Crowd(seed=7, publishers=1, subscribers=2, in_flight=1)
    child = Child(directory)
    trace = ["strace", "-D", "-qq", "-f", "-o", f"{directory}.strace"]
    trace += ["-e", f"trace={','.join(CALLS)}", *(["-e", f"inject={fault}"] if fault else [])]
    child.start(*trace)

    async def nurse() -> None:
        while child.process.poll() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        child.start()

    nursing = asyncio.create_task(nurse())
    try:
        await crowd.come(child.port)
        crowd.publish(20)
        await is_settled(crowd)
        return nursing.done()
    finally:
        nursing.cancel()
        await crowd.leave()
        child.close()


@needs_strace
async def test_killed_at_every_flush_of_a_scenario_it_loses_nothing(tmp_path: Path) -> None:
    """Also at every twentieth write. Every write, flush and truncation of the store by itself is in
    test_timeline_faults."""
    assert not await scenario(tmp_path / "undisturbed")
    text = (tmp_path / "undisturbed.strace").read_text()
    by_thread = Counter(
        re.findall(rf"^(\d+) +({'|'.join(CALLS)})\(", text, re.M)
    )  # as strace counts
    most = {call: max(n for (_, one), n in by_thread.items() if one == call) for call in CALLS}
    moments = [(call, n) for call, step in CALLS.items() for n in range(1, most[call] + 1, step)]
    places = asyncio.Semaphore(8)

    async def killed(call: str, n: int) -> bool:
        async with places:
            return await scenario(tmp_path / f"{call}{n}", f"{call}:signal=SIGKILL:when={n}")

    kills = await asyncio.gather(*(killed(call, n) for call, n in moments))
    assert sum(kills) > 0.8 * len(moments), "it was hardly ever killed"


@needs_strace
async def test_a_slow_flush_holds_up_neither_live_traffic_nor_pings(child: Child) -> None:
    child.start()
    await child.listening()
    assert await child.terminate() == 0  # a store that is there flushes little when it is opened
    slow = "inject=fdatasync:delay_enter=1s"
    child.start("strace", "-D", "-qq", "-f", "-o", "/dev/null", "--seccomp-bpf", "-e", slow)
    await child.listening()

    def play() -> None:
        ann, bob = (Peer(("127.0.0.1", child.port)) for _ in range(2))
        ann.login("ann")
        bob.login("bob")
        bob.subscribe("room:1")
        ann.publish("room:1", "ann", b"kept", id=1, flags=DURABLE)
        ann.publish("room:1", "ann", b"live", id=2)
        assert bob.expect(FrameType.MESSAGE).endswith(b"live")
        ann.ping()  # nothing but its PONG has come
        ann.expect(FrameType.RECEIPT)
        assert bob.expect(FrameType.MESSAGE).endswith(b"kept")
        ann.close()
        bob.close()

    await asyncio.to_thread(play)


FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


@pytest.mark.skipif(not FAKETIME, reason="libfaketime is not installed")
async def test_a_clock_that_jumps_changes_the_times_shown_and_nothing_else(
    child: Child, tmp_path: Path
) -> None:
    """The clock of all threads, by years and an hour, both ways. Nobody loses a connection, what is
    refused comes again, and a server that starts in the past or the future knows its repeats and
    the places of those who were away."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    fake = ["env", f"LD_PRELOAD={FAKETIME}", f"FAKETIME_TIMESTAMP_FILE={clock}"]
    fake += ["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1"]
    crowd = Crowd(seed=8, publishers=2, subscribers=2)
    try:
        child.start(*fake)
        await child.listening()
        await crowd.come(child.port)
        for jump in ("+10y", "-10y", "+3600", "+0"):
            clock.write_text(jump)
            crowd.publish(10)
            await is_settled(crowd)
        assert {one.connections for one in crowd.all} == {1}
        times = [time for kept in crowd.history.receipts.values() for _, time in kept]
        assert max(times) - min(times) > 19 * 365 * 86_400_000, "the clock was not faked"
        for start in ("-10y", "+3600", "+10y"):
            crowd.publish(50)
            await asyncio.sleep(0.02)
            child.kill()
            clock.write_text(start)
            child.start(*fake)
            await child.listening()
            await is_settled(crowd)
    finally:
        await crowd.leave()


class Disk:
    """A file system in a file, of its own size and for its own death."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.image = folder / "disk.img"
        self.at = folder / "disk"
        self.at.mkdir()
        with self.image.open("wb") as file:
            file.truncate(megabytes << 20)
        self._run("mkfs.ext4", "-q", "-m", "0", str(self.image))
        self.mount(self.image)

    def mount(self, image: Path) -> None:
        self._run("mount", "-o", "loop,commit=600", str(image), str(self.at))

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.at)], capture_output=True, timeout=30)

    @staticmethod
    def _run(*command: str) -> None:
        path = os.environ["PATH"] + ":/usr/sbin:/sbin"
        done = subprocess.run(command, capture_output=True, env={"PATH": path}, timeout=30)
        if done.returncode:
            pytest.skip(f"{command[0]} is not possible here: {done.stderr.decode()[-200:]}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if not shutil.which("mkfs.ext4", path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
        pytest.skip("mkfs.ext4 is not installed")
    disk = Disk(tmp_path, 64)
    yield disk
    disk.unmount()


async def test_the_power_goes_and_what_had_a_receipt_is_there(
    disk: Disk, tmp_path: Path, crowd: Crowd
) -> None:
    """The disk as it is at one moment, without what the system still held in memory."""
    child = Child(disk.at / "data")
    try:
        child.start()
        await child.listening()
        await crowd.come(child.port)
        for _ in range(3):
            crowd.publish(100)
            await asyncio.sleep(0.3)
        child.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.1)  # receipts that had left are counted
        image = tmp_path / "after.img"
        shutil.copyfile(disk.image, image)
        child.close()
        disk.unmount()
        disk.mount(image)
        child = Child(disk.at / "data")
        await move(crowd, child)
        await is_settled(crowd)
    finally:
        await crowd.leave()
        child.close()


async def test_a_full_disk_costs_no_receipt_and_is_mended_by_room(disk: Disk, crowd: Crowd) -> None:
    ballast = disk.at / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        except OSError:
            pass
        file.truncate(file.tell() - (5 << 20))
    child = Child(disk.at / "data")
    try:
        child.start()
        await child.listening()
        await crowd.come(child.port)
        crowd.publish(800)
        await crowd.finish(8)
        assert crowd.in_flight, "there is no room for all of it"
        assert "has stopped" in child.log()
        assert await child.terminate() == 0
        ballast.unlink()
        child.start()
        await child.listening()
        await is_settled(crowd)
    finally:
        await crowd.leave()
        child.close()
