"""Silent peers, slow readers, scarce descriptors: who is given up, when, and what others notice.

Settings are milliseconds; nothing asserts how long something took.
"""

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable

from harness import Peer, RunningServer

from imserver import Server
from imserver.protocol import FrameType, encode_bare, encode_message

HEARTBEAT = {"interval_ms": 80, "timeout_ms": 40, "max_missed": 3}


def frames_until_end(peer: Peer) -> list[tuple[int, bytes]]:
    frames = []
    while frame := peer.receive():
        frames.append((frame[0], frame[3]))
    return frames


def test_a_silent_peer_is_asked_three_times_and_given_up(
    start_server: Callable[..., RunningServer],
) -> None:
    running = start_server(heartbeat=HEARTBEAT, threads=1)
    silent = running.user("silent")
    frames = frames_until_end(silent)
    assert [type for type, _ in frames] == [FrameType.PING] * 3 + [FrameType.GOAWAY]
    assert json.loads(frames[-1][1])["code"] == 4108
    stats = running.stats()
    assert (stats["suspects"], stats["deaths"], stats["revivals"]) == (3, 1, 0)


def test_any_frame_is_a_sign_of_life(start_server: Callable[..., RunningServer]) -> None:
    running = start_server(heartbeat=HEARTBEAT, threads=1)
    bob = running.user("bob")
    for answer in (encode_bare(FrameType.PONG), encode_message("room:a", "bob", b"")):
        bob.expect(FrameType.PING)
        bob.send(answer)
    bob.expect(FrameType.PING)
    stats = running.stats()
    assert stats["deaths"] == 0
    assert stats["revivals"] >= 1


def test_a_busy_control_plane_is_not_the_silence_of_its_clients(
    start_server: Callable[..., RunningServer],
) -> None:
    running = start_server(heartbeat=HEARTBEAT, threads=1)
    bob = running.user("bob")
    running._loop.call_soon_threadsafe(time.sleep, 0.6)  # nothing of Python runs
    time.sleep(0.05)
    bob.publish("room:a", "bob")  # needs a verdict, so the connection is paused
    bob.send(encode_bare(FrameType.PING))
    while (frame := bob.receive()) and frame[0] != FrameType.PONG:
        assert frame[0] == FrameType.PING  # it was asked before the pause
    assert frame
    assert running.stats()["deaths"] == 0


def test_a_slow_reader_is_closed_and_the_others_go_on(
    start_server: Callable[..., RunningServer],
) -> None:
    running = start_server(limits={"outbox_hard_bytes": 1 << 19}, threads=1)
    slow, healthy, writer = running.peer(4096), running.user("healthy"), running.user("writer")
    slow.login("slow")
    for peer in (slow, healthy):
        peer.subscribe("room:a")
    count = 0
    while running.stats()["slow_readers"] == 0:
        writer.send(*(encode_message("room:a", "writer", b"x" * 8000) for _ in range(10)))
        for _ in range(10):
            healthy.expect(FrameType.MESSAGE)
        count += 10
        assert count < 20_000, "nobody was too slow"
    writer.publish("room:a", "writer", b"after")
    assert healthy.expect(FrameType.MESSAGE).endswith(b"after")
    # What it did not read is gone, but the stream stays whole to the goodbye.
    frames = frames_until_end(slow)
    assert all(type == FrameType.MESSAGE for type, _ in frames[:-1])
    if frames[-1][0] == FrameType.GOAWAY:
        assert json.loads(frames[-1][1])["code"] == 4109


def test_a_reader_without_progress_is_closed(start_server: Callable[..., RunningServer]) -> None:
    limits = {"stall_ms": 200, "outbox_hard_bytes": 8 << 20, "outbox_soft_bytes": 4 << 20}
    running = start_server(limits=limits, threads=1)
    slow, writer = running.peer(4096), running.user("writer")
    slow.login("slow")
    slow.subscribe("room:a")
    for _ in range(800):
        writer.publish("room:a", "writer", b"x" * 8000)
    writer.ping()
    for _ in range(1000):
        if running.stats()["slow_readers"]:
            break
        time.sleep(0.01)
    assert running.stats()["slow_readers"] == 1


def test_who_does_not_read_is_not_read(start_server: Callable[..., RunningServer]) -> None:
    running = start_server(threads=1)
    greedy = running.peer(4096)
    greedy.login("greedy")
    greedy.subscribe("room:echo")
    frame = encode_message("room:echo", "greedy", b"x" * 1000)
    greedy.socket.settimeout(1.0)
    sent = 0
    try:
        while sent < 100 << 20:
            sent += greedy.socket.send(frame[sent % len(frame) :])
    except TimeoutError:
        pass
    assert sent < 100 << 20, "the server took everything"
    assert running.stats()["slow_readers"] == 0
    greedy.socket.settimeout(20)
    for _ in range(sent // len(frame)):
        greedy.expect(FrameType.MESSAGE)


def settled_spare_bytes(running: RunningServer) -> int:
    """The gauge, once a tick has read it."""
    turns = running.stats()["turns"]
    while running.stats()["turns"] < turns + 3 or not running.stats()["pool_spare_bytes"]:
        time.sleep(0.05)
    return running.stats()["pool_spare_bytes"]


def test_clients_that_ask_and_do_not_read_take_nothing_from_others(
    start_server: Callable[..., RunningServer],
) -> None:
    """Forty send PINGs as fast as they are taken and read no PONG."""
    running = start_server(threads=1)
    bob = running.user("bob")
    bob.subscribe("room:a")
    pings = encode_bare(FrameType.PING) * 4096
    for i in range(40):
        deaf = running.peer(4096)
        deaf.login(f"deaf{i}")
        deaf.socket.setblocking(False)
        try:
            while True:
                deaf.socket.send(pings)
        except BlockingIOError:
            pass
    for _ in range(100):
        bob.publish("room:a", "bob", b"x" * 1000)
        assert bob.expect(FrameType.MESSAGE)
    assert running.stats()["pool_refusals"] == 0
    assert settled_spare_bytes(running) > 32 << 20


def test_a_promise_of_many_bytes_gets_little_memory(
    start_server: Callable[..., RunningServer],
) -> None:
    running = start_server(threads=1)
    bob = running.user("bob")
    bob.subscribe("room:a")
    for _ in range(1500):
        running.peer().send(b"\x00\x00\x1f\x00\x01\x40\x00\x00{")
    for i in range(300):
        liar = running.user(f"liar{i}")
        liar.send(b"\x00\x00\xff\x00\x07\x00\x00\x00.")
    bob.publish("room:a", "bob", b"x" * 60_000)
    assert len(bob.expect(FrameType.MESSAGE)) > 60_000
    assert running.stats()["pool_refusals"] == 0
    assert settled_spare_bytes(running) > 48 << 20


def test_a_slow_judge_is_not_a_slow_client(start_server: Callable[..., RunningServer]) -> None:
    def prepare(server: Server) -> None:
        @server.on_connect
        async def judge(login: object) -> None:
            await asyncio.sleep(1.5)

    running = start_server(prepare, threads=1, limits={"handshake_ms": 500})
    running.user("bob").ping()


def test_one_thread_cannot_starve_another(start_server: Callable[..., RunningServer]) -> None:
    """A publisher on one thread floods fifty readers on the other; who is on that thread too
    still gets its PONGs and can log in."""
    running = start_server(threads=2)
    readers = [running.user(f"reader{i}") for i in range(60)]
    for reader in readers:
        reader.subscribe("room:flood")
    flood = encode_message("room:flood", "writer", b"") * 500
    stop = threading.Event()

    def write() -> None:
        writer = Peer(running.address)
        writer.login("writer")
        writer.socket.settimeout(0.2)
        end = time.monotonic() + 20
        while not stop.is_set() and time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                writer.socket.sendall(flood)
        writer.close()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for i in range(10):
            running.user(f"calm{i}").ping()
    finally:
        stop.set()
        thread.join()


def test_five_thousand_connections_chat(start_server: Callable[..., RunningServer]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 20_000)), hard))
    running = start_server(limits={"max_connections": 6000, "handshake_ms": 60_000}, threads=2)
    peers = [running.peer() for _ in range(5000)]
    for i in range(0, 5000, 250):
        for peer in peers[i : i + 250]:
            peer.login(f"u{peers.index(peer, i)}")
            peer.subscribe("room:all" if peer is not peers[-1] else "room:last")
    peers[-1].publish("room:all", "u4999", b"hello")
    for peer in peers[:-1]:
        assert peer.expect(FrameType.MESSAGE).endswith(b"hello")
    assert running.stats()["connections"] == 5000
    peers[-1].ping()


def test_more_connections_than_allowed_are_turned_away(
    start_server: Callable[..., RunningServer],
) -> None:
    running = start_server(limits={"max_connections": 3}, threads=1)
    friends = [running.user(f"u{i}") for i in range(3)]
    stranger = running.peer()
    frame = stranger.receive()
    assert frame is None or json.loads(frame[3])["code"] == 4153
    for friend in friends:
        friend.ping()
    friends[0].close()
    for _ in range(500):
        if running.stats()["connections"] == 2:
            break
        time.sleep(0.01)
    running.user("welcome").ping()


def test_without_descriptors_the_server_lives_on(tmp_path: object) -> None:
    """In a process of its own, which has few descriptors; it must neither spin nor stop."""
    program = textwrap.dedent(
        """
        import asyncio, resource, socket
        from imserver import Config, Server

        async def main():
            config = Config(listen="127.0.0.1:0", dev=True, limits={"max_connections": 500})
            async with Server(config) as server:
                resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
                peers, refused = [], 0
                reader, writer = await asyncio.open_connection(*server.address)
                try:
                    while True:
                        peers.append(open("/dev/null"))
                except OSError:
                    peers.pop().close()
                last = socket.socket()  # the last descriptor there is
                last.connect(server.address)
                last.setblocking(False)
                for _ in range(400):
                    if server.stats()["accept_refused"]:
                        break
                    await asyncio.sleep(0.01)
                before = server.stats()["turns"]
                await asyncio.sleep(0.5)
                print(server.stats()["accept_refused"], server.stats()["turns"] - before < 1000)
                for peer in peers:
                    peer.close()
                reader, writer = await asyncio.open_connection(*server.address)
                writer.write(bytes.fromhex("0000000001000000"))
                print((await reader.read(1000))[4])

        asyncio.run(main())
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        timeout=60,
        text=True,
        check=False,
        env=os.environ | {"PYTHONFAULTHANDLER": "1"},
    )
    refused, calm, answer = done.stdout.split()
    assert int(refused) >= 1, done.stderr
    assert calm == "True", "it spins"
    assert int(answer) == FrameType.GOAWAY
