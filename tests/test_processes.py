"""The commands as people run them: real processes, terminals and signals."""

import fcntl
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Peer

from imserver.protocol import (
    DURABLE,
    REDELIVERED,
    FrameType,
    Position,
    Subscribe,
    encode_frame,
    encode_position,
)

IMSERVER = [sys.executable, "-m", "imserver"]
WAIT_S = 30.0


class Process:
    """A program on a pseudo-terminal, read until a pattern shows."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.terminal, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*IMSERVER, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that ^C is a signal
            cwd=directory,
            env=os.environ | {"TERM": "dumb", "COLUMNS": "120"},
        )
        os.close(theirs)
        self.output = ""

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def expect(self, pattern: str) -> re.Match[str]:
        """Waits for the pattern in what comes next."""
        end = time.monotonic() + WAIT_S
        while not (match := re.search(pattern, self.output)):
            ready, _, _ = select.select([self.terminal], [], [], max(0, end - time.monotonic()))
            assert ready, f"{pattern!r} did not come; there was: {self.output!r}"
            try:
                data = os.read(self.terminal, 4096)
            except OSError:  # the other side of the terminal is closed
                data = b""
            assert data, f"it ended before {pattern!r}; there was: {self.output!r}"
            self.output += data.decode()
        self.output = self.output[match.end() :]
        return match

    def wait(self) -> int:
        """Its exit status, when everything it wrote has been read."""
        end = time.monotonic() + WAIT_S
        while True:
            ready, _, _ = select.select([self.terminal], [], [], max(0, end - time.monotonic()))
            assert ready, f"it goes on; there was: {self.output!r}"
            try:
                self.output += os.read(self.terminal, 4096).decode()
            except OSError:  # nobody holds the other side any more
                return self.process.wait(WAIT_S)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.terminal)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[type[Process]]:
    started: list[Process] = []

    def start(*arguments: str) -> Process:
        started.append(Process(tmp_path, *arguments))
        return started[-1]

    yield start  # type: ignore[misc]
    for process in started:
        process.end()


def serve(run: type[Process], *arguments: str) -> tuple[Process, str]:
    server = run("serve", "--dev", "--listen", "127.0.0.1:0", "--http", "", *arguments)
    port = server.expect(r"127\.0\.0\.1:(\d+)")[1]
    return server, f"127.0.0.1:{port}"


def connect(address: str) -> Peer:
    host, port = address.split(":")
    return Peer((host, int(port)))


@pytest.mark.parametrize("threads", ["0", "1", "2"])
def test_two_people_chat_in_two_terminals(run: type[Process], threads: str) -> None:
    _, address = serve(run, "--threads", threads)
    alice = run("chat", "lobby", "--user", "alice", "--server", address)
    bob = run("chat", "lobby", "--user", "bob", "--server", address)
    alice.expect("lobby")
    bob.expect("lobby")
    alice.type("hello bob\n")
    bob.expect(r"alice: hello bob")
    bob.type("grüß dich, alice\n")
    alice.expect(r"bob: grüß dich, alice")
    alice.type("\x04")
    assert alice.wait() == 0
    bob.type("\x03")
    assert bob.wait() in (0, 130)


def test_sigterm_says_goodbye_and_exits_with_0(run: type[Process]) -> None:
    server, address = serve(run)
    bob = connect(address)
    bob.login("bob")
    server.process.send_signal(signal.SIGTERM)
    assert bob.expect(FrameType.GOAWAY)
    bob.close()
    assert server.wait() == 0


def test_sigterm_does_not_wait_for_ever_for_those_who_stay(
    run: type[Process], tmp_path: Path
) -> None:
    config = tmp_path / "imserver.toml"
    config.write_text("[drain]\ntimeout_ms = 300\nspread_ms = 100\n")
    server, address = serve(run, "--config", str(config))
    bob = connect(address)
    bob.login("bob")
    server.process.send_signal(signal.SIGTERM)
    assert bob.expect(FrameType.GOAWAY)
    assert bob.expect(FrameType.GOAWAY)  # the end of its patience
    assert bob.receive() is None
    assert server.wait() == 0


def test_the_newcomer_is_told_what_to_do_next(run: type[Process]) -> None:
    server, _ = serve(run)
    server.expect("(?i)insecure")
    server.expect("imserver chat")


def test_an_unsafe_dev_server_is_refused(run: type[Process]) -> None:
    server = run("serve", "--dev", "--listen", "0.0.0.0:0")
    assert server.wait() == 78
    assert "loopback" in server.output


def test_a_port_in_use_is_one_clear_line(run: type[Process]) -> None:
    _, address = serve(run)
    second = run("serve", "--dev", "--listen", address, "--http", "")
    assert second.wait() != 0
    assert "Traceback" not in second.output
    assert address.split(":")[1] in second.output


def http_of(run: type[Process], *arguments: str) -> tuple[Process, str]:
    """A server with HTTP, and its address, which the newcomer is told."""
    options = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", *arguments)
    server = run("serve", "--dev", *options)
    return server, server.expect(r"http://(127\.0\.0\.1:\d+)/chat")[1]


def ask(address: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(
        f"http://{address}{path}", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=WAIT_S) as response:
        return response.status, response.read()


def test_a_server_tells_where_its_pages_are_and_is_ready(run: type[Process]) -> None:
    server, address = http_of(run)
    server.expect(f"http://{address}/")
    assert ask(address, "/readyz")[0] == 200
    assert b"imserver_info" in ask(address, "/metrics")[1]
    with socket.create_connection(tuple(address.split(":")), timeout=WAIT_S) as idle:
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0, "a connection that says nothing is not waited for"
        assert idle.recv(1) == b""
    assert "Traceback" not in server.output


def test_a_server_that_is_drained_over_http_ends(run: type[Process]) -> None:
    server, address = http_of(run)
    message = b'{"topic": "room:a", "body": 1, "durable": true}'
    assert b'"seq":1' in ask(address, "/v1/publish", message)[1]
    assert ask(address, "/v1/drain", b"{}")[0] == 202
    assert server.wait() == 0
    assert "Traceback" not in server.output


def test_an_http_port_in_use_is_one_clear_line(run: type[Process]) -> None:
    _, address = http_of(run)
    second = run("serve", "--dev", "--listen", "127.0.0.1:0", "--http", address)
    assert second.wait() == 1
    assert f"{address} is in use" in second.output
    assert "--http" in second.output
    assert "Traceback" not in second.output


def test_a_message_goes_from_publish_to_tail(run: type[Process], tmp_path: Path) -> None:
    """With a token, as in production: HS256, rights as claims."""
    config = tmp_path / "imserver.toml"
    config.write_text(
        'listen = "127.0.0.1:0"\nhttp = ""\n[[auth.keys]]\nkid = "k"\nalgorithm = "HS256"\n'
        'secret = "0123456789abcdef0123456789abcdef"\n'
    )
    server = run("serve", "--config", str(config))
    address = "127.0.0.1:" + server.expect(r"127\.0\.0\.1:(\d+)")[1]

    def token(user: str, *rights: str) -> str:
        made = subprocess.run(
            [*IMSERVER, "token", user, "--config", str(config), *rights],
            capture_output=True,
            check=True,
            text=True,
            timeout=WAIT_S,
        )
        return made.stdout.strip()

    reader, writer = token("ann", "--subscribe", "room:x"), token("ben", "--publish", "room:x")
    tail = run("tail", "room:x", "--count", "1", "--server", address, "--token", reader)
    for _ in range(20):
        done = subprocess.run(
            [*IMSERVER, "publish", "room:x", "good news", "--server", address, "--token", writer],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        if tail.process.poll() is not None:
            break
        time.sleep(0.1)
    assert tail.wait() == 0
    assert "good news" in tail.output
    refused = subprocess.run(
        [*IMSERVER, "publish", "room:y", "no", "--server", address, "--token", writer],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert refused.returncode != 0
    assert "403" in refused.stderr


def test_what_is_kept_waits_for_its_reader(run: type[Process]) -> None:
    _, address = serve(run)
    login = ("--user", "ann", "--server", address)
    for number in (1, 2, 3):
        kept = run("publish", "room:x", f"message {number}", "--durable", *login)
        kept.expect(f"kept in room:x as {number}")
        assert kept.wait() == 0
    late = run("tail", "room:x", "--after", "1", "--count", "2", *login)
    late.expect("message 2")
    late.expect("message 3")
    assert late.wait() == 0
    first = run("tail", "room:x", "--durable", "--after", "0", "--count", "2", *login)
    first.expect("message 1")
    first.expect("message 2")
    assert first.wait() == 0
    again = run("tail", "room:x", "--durable", "--count", "1", *login)
    again.expect("message 3")
    assert again.wait() == 0


def test_an_operator_asks_a_server_that_serves(run: type[Process]) -> None:
    server, address = serve(run)
    ann, bob = connect(address), connect(address)
    ann.login("ann", "phone")
    bob.login("bob", "desk")
    asked = Subscribe(topic="room:a", durable=True)
    ann.send(encode_frame(FrameType.SUBSCRIBE, asked, 1, 2))
    while (frame := ann.receive()) and frame[2] != 2:  # until the answer: the inbox comes unasked
        pass
    bob.publish("room:a", "bob", b"hello", flags=DURABLE, id=7)
    bob.expect(FrameType.RECEIPT)
    ann.expect(FrameType.MESSAGE)
    for _ in range(50):  # what has been sent is told to the control plane twice a second
        why = run("why", "room:a", "bob/7")
        why.expect(r"room:a 1 of bob/7 was committed")
        state = why.expect(r"ann/phone +yes +0 +(.*)\r\n")[1]
        assert why.wait() == 0
        if state != "not sent yet":
            break
    assert re.match(r"sent, \d times, not acknowledged, again in \d s", state)
    history = run("topic", "history", "room:a")
    history.expect("1 bob: hello")
    ann.close()
    bob.close()
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    away = run("why", "room:a", "1")
    away.expect(r"ann/phone +no +0 +waits for the device")
    assert away.wait() == 0


def test_a_dead_letter_is_redriven_to_a_device_that_is_here(
    run: type[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMSERVER_DELIVERY__ATTEMPTS", "1")
    _, address = serve(run)
    ann = connect(address)
    ann.login("ann", "phone")
    asked = Subscribe(topic="room:a", durable=True)
    ann.send(encode_frame(FrameType.SUBSCRIBE, asked, 1, 2))
    while (frame := ann.receive()) and frame[2] != 2:
        pass
    ann.publish("room:a", "ann", b"hello", flags=DURABLE, id=7)
    awaited = {FrameType.RECEIPT, FrameType.MESSAGE}
    while awaited:
        frame = ann.receive()
        assert frame is not None
        awaited.discard(FrameType(frame[0]))
    ann.send(encode_position(FrameType.NACK, Position(1, "room:a")))
    ann.ping()
    listed = run("dlq", "list")
    listed.expect(r"1 +room:a +1 +ann/phone +nack +1 ")
    assert listed.wait() == 0
    redriven = run("dlq", "redrive", "--topic", "room:a")
    redriven.expect("1 sent once more")
    assert redriven.wait() == 0
    again = ann.receive()
    assert again is not None
    assert (again[0], again[1] & REDELIVERED) == (FrameType.MESSAGE, REDELIVERED)
    ann.send(encode_position(FrameType.ACK, Position(1, "room:a")))
    ann.ping()
    none = run("dlq", "list", "--taken")
    none.expect("in the whole store: none")
    assert none.wait() == 0
    ann.close()
