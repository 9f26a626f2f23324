"""Plain messages larger than what the core holds of one: they cross in parts, both ways."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from harness import RunningServer, dev_config
from hypothesis import given, settings
from hypothesis import strategies as st
from web import Web, close, frame, request

from imserver import Server
from imserver.websocket import WebSocket

Start = Callable[..., RunningServer]
FRAME = 4_096  # max_frame_bytes: what the core holds of a message
MOST = 2**20  # max_message_bytes
LIMITS = {
    "max_frame_bytes": FRAME,
    "hello_bytes": FRAME,
    "outbox_hard_bytes": 2**23,
    "outbox_soft_bytes": 2**22,
    "calls": 8,
}


class Gate:
    """A handler that answers when it may."""

    def __init__(self) -> None:
        self.is_open = True

    def serve(self, server: Server) -> None:
        @server.on_websocket("/echo")
        async def echo(socket: WebSocket) -> None:
            async for message in socket:
                while not self.is_open:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                socket.send(message)


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module")
def server(gate: Gate) -> Iterator[RunningServer]:
    config = dev_config(limits=LIMITS, websocket={"max_message_bytes": MOST})
    running = RunningServer(config, gate.serve)
    yield running
    running.stop()


@pytest.fixture
def echo(server: RunningServer) -> Iterator[Web]:
    web = Web(server.address, request("/echo"))
    yield web
    web.hang_up()


def receive_whole(web: Web) -> tuple[int, bytes]:
    """The next message; pongs are passed over."""
    while (received := web.receive()) is not None and received[0] == 10:
        pass
    assert received is not None
    return received


@pytest.mark.parametrize("size", [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME, 100_000, MOST])
def test_every_size_comes_back(echo: Web, size: int) -> None:
    data = (os.urandom(999) * (size // 999 + 1))[:size]
    echo.send(frame(2, data), frame(1, b"then"))
    assert receive_whole(echo) == (2, data)
    assert receive_whole(echo) == (1, b"then")


def test_a_byte_more_is_refused_before_it_comes(echo: Web) -> None:
    echo.send(frame(2, bytes(MOST // 2), fin=False))
    echo.send(frame(0, bytes(MOST // 2 + 1))[:14])
    assert echo.closed() == 1009


@given(
    sizes=st.lists(st.integers(0, 3 * FRAME), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 40_000), max_size=8),
)
@settings(max_examples=25)
def test_characters_are_whole_whatever_is_cut(
    server: RunningServer, sizes: list[int], cuts: list[int]
) -> None:
    """Characters of three bytes meet the ends of fragments, parts and reads."""
    text = ("\N{EURO SIGN}" * (sum(sizes) // 3)).encode()
    sent, at = b"", 0
    for n, size in enumerate(sizes):
        is_last = n == len(sizes) - 1
        part = text[at:] if is_last else text[at : at + size]
        sent += frame(0 if n else 1, part, fin=is_last) + frame(9)
        at += len(part)
    web = Web(server.address, request("/echo"))
    for start, end in pairwise([0, *sorted(cut for cut in cuts if cut < len(sent)), len(sent)]):
        web.send(sent[start:end])
    assert receive_whole(web) == (1, text)
    web.hang_up()


def test_text_that_is_none_is_told_in_the_middle(echo: Web) -> None:
    echo.send(frame(1, b"x" * 20_000 + b"\xff", fin=False))
    assert echo.closed() == 1007


def test_a_program_that_is_behind_is_not_sent_a_second_large_message(
    server: RunningServer, gate: Gate, echo: Web
) -> None:
    """Of ten, it has one at work, one that waits, and of the next as many parts as calls."""
    gate.is_open = False
    before = server.stats()["bytes_in"]
    messages = [bytes([n]) * MOST for n in range(5)]
    sending = [frame(2, message) for message in messages]
    echo.socket.setblocking(False)
    rest, taken = b"".join(sending), 0
    for _ in range(100):
        try:
            while sent := echo.socket.send(rest[:65_536]):
                rest = rest[sent:]
        except BlockingIOError:
            pass
        time.sleep(0.005)
        taken = server.stats()["bytes_in"] - before
    assert 2 * MOST <= taken < 3 * MOST
    gate.is_open = True
    echo.socket.setblocking(True)
    echo.socket.settimeout(20)
    got: list[tuple[int, bytes]] = []
    while len(got) < 5:
        if rest:
            echo.socket.sendall(rest)
            rest = b""
        got.append(receive_whole(echo))
    assert got == [(2, message) for message in messages]


def test_who_goes_in_the_middle_leaves_nothing(server: RunningServer) -> None:
    for n in range(20):
        web = Web(server.address, request("/echo"))
        web.send(frame(2, bytes(50_000))[: 5_000 * n + 20])
        if n % 2:
            web.send(close(1000))
        web.hang_up()
    for _ in range(1_000):
        if not server.stats()["connections"]:
            return
        time.sleep(0.01)
    raise AssertionError(server.stats())
