"""The operator's way into a running server: bounded, private, and the same answers as without."""

import asyncio
import json
import os
import re
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from harness import read_all
from msgspec import Meta

from imserver import control
from imserver.control import SOCKET, ControlServer, NoControl, connect
from imserver.errors import ErrorCode, ImError
from imserver.operations import Operations
from imserver.timeline_memory import MemoryTimeline


async def add(a: int, b: Annotated[int, Meta(le=10)] = 1) -> int:
    return a + b


async def echo(text: str) -> str:
    return text


async def refuse() -> None:
    raise ImError(ErrorCode.CONFLICT, "no")


async def fail() -> None:
    raise RuntimeError("a secret")


async def hang() -> None:
    await asyncio.Event().wait()


METHODS = {"add": add, "echo": echo, "refuse": refuse, "fail": fail, "hang": hang}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ControlServer]:
    server = ControlServer(tmp_path, METHODS, method_s=0.2)
    await server.start()
    yield server
    await server.close()


async def refused(ask: Any, method: str, **params: Any) -> tuple[int, str]:
    with pytest.raises(ImError) as error:
        await ask(method, **params)
    return error.value.code, error.value.message


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)


async def test_a_method_is_called_by_name_and_answers(
    server: ControlServer, tmp_path: Path
) -> None:
    async with connect(tmp_path) as ask:
        assert await ask("add", a=1, b=2) == 3
        assert await ask("add", a=1) == 2
        assert await ask("echo", text="é\n") == "é\n"


async def test_what_is_refused_and_what_fails_has_a_number(
    server: ControlServer, tmp_path: Path
) -> None:
    async with connect(tmp_path) as ask:
        assert await refused(ask, "refuse") == (409, "no")
        assert await refused(ask, "fail") == (500, ErrorCode.INTERNAL.meaning)
        assert (await refused(ask, "nothing"))[0] == 404
        assert (await refused(ask, "hang"))[0] == 408
        for params in ({}, {"a": "1"}, {"a": 1, "b": 11}, {"a": 1, "c": 1}):
            assert (await refused(ask, "add", **params))[0] == 422
        assert await ask("add", a=1) == 2, "the connection goes on"


@pytest.mark.parametrize(
    "line", [b"x\n", b"[]\n", b"{}\n", b'{"method":1}\n', b'{"method":"add","x":1}\n', b"\xff\n"]
)
async def test_a_line_that_is_no_request_is_told_so(
    server: ControlServer, tmp_path: Path, line: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(tmp_path / SOCKET))
        told = await asyncio.to_thread(exchange, peer, line)
        assert told["error"]["code"] == 422
        told = await asyncio.to_thread(exchange, peer, b'{"method":"add","params":{"a":1}}\n')
        assert told == {"result": 2}


def exchange(peer: socket.socket, *data: bytes) -> Any:
    peer.settimeout(20)
    for some in data:
        peer.sendall(some)
    received = b""
    while not received.endswith(b"\n"):
        some = peer.recv(65536)
        if not some:
            return None
        received += some
    return json.loads(received)


async def test_a_request_in_pieces_is_one(server: ControlServer, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(tmp_path / SOCKET))
        line = b'{"method":"add","params":{"a":1}}\n'
        pieces = [line[n : n + 1] for n in range(len(line))]
        assert await asyncio.to_thread(exchange, peer, *pieces) == {"result": 2}


async def test_a_line_that_never_ends_is_cut_off(server: ControlServer, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(tmp_path / SOCKET))
        told = await asyncio.to_thread(exchange, peer, b"x" * (control.REQUEST_MAX + 65536))
        assert told["error"]["code"] == 413
        assert await asyncio.to_thread(peer.recv, 1) == b""


async def test_an_answer_has_a_bound_too(
    server: ControlServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ANSWER_MAX", 1_000)
    async with connect(tmp_path) as ask:
        assert len(await ask("echo", text="x" * 900)) == 900
        assert (await refused(ask, "echo", text="x" * 1_000))[0] == 413


async def test_a_large_answer_arrives_whole(server: ControlServer, tmp_path: Path) -> None:
    control_server = ControlServer(tmp_path / "big", {"big": big})
    (tmp_path / "big").mkdir()
    await control_server.start()
    async with connect(tmp_path / "big") as ask:
        assert await ask("big") == "x" * 5_000_000
    await control_server.close()


async def big() -> str:
    return "x" * 5_000_000


async def test_who_says_nothing_or_reads_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "IDLE_S", 0.05)
    monkeypatch.setattr(control, "WRITE_S", 0.05)
    server = ControlServer(tmp_path, {"big": big})
    await server.start()
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as deaf:
        for peer in (silent, deaf):
            peer.settimeout(20)
            peer.connect(str(tmp_path / SOCKET))
        deaf.sendall(b'{"method":"big"}\n')
        assert await asyncio.to_thread(silent.recv, 1) == b""
        await until(lambda: not server._tasks)
        assert len(await asyncio.to_thread(read_all, deaf)) < 5_000_000
    await server.close()


async def test_one_connection_too_many_is_refused_and_the_others_go_on(
    server: ControlServer, tmp_path: Path
) -> None:
    peers = [socket.socket(socket.AF_UNIX) for _ in range(control.CONNECTIONS_MAX)]
    line = b'{"method":"add","params":{"a":1}}\n'
    for peer in peers:
        peer.connect(str(tmp_path / SOCKET))
        assert await asyncio.to_thread(exchange, peer, line) == {"result": 2}
    for _ in range(20):  # as a command does it, whichever of the two is faster
        async with connect(tmp_path) as ask:
            code, text = await refused(ask, "add", a=1)
        assert (code, text) == (503, "8 operators are connected; wait until one has ended")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.settimeout(20)
        silent.connect(str(tmp_path / SOCKET))
        assert await asyncio.to_thread(silent.recv, 1) == b"", "nor is it waited for"
    assert await asyncio.to_thread(exchange, peers[0], line) == {"result": 2}
    for peer in peers:
        peer.close()
    await until(lambda: not server._tasks)
    async with connect(tmp_path) as ask:
        assert await ask("add", a=1) == 2


async def test_only_the_owner_can_open_it_however_open_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        server = ControlServer(tmp_path, METHODS)
        await server.start()
    finally:
        os.umask(before)
    assert (tmp_path / SOCKET).stat().st_mode & 0o777 == 0o600
    await server.close()
    assert not (tmp_path / SOCKET).exists()
    await server.close()


async def test_a_directory_with_a_long_name_has_a_socket_too(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 150)
    directory.mkdir()
    server = ControlServer(directory, METHODS)
    await server.start()
    async with connect(directory) as ask:
        assert await ask("add", a=1) == 2
    await server.close()


async def test_what_a_killed_server_left_behind_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(tmp_path / SOCKET))
    with pytest.raises(NoControl, match="Connection refused"):
        async with connect(tmp_path):
            pass
    server = ControlServer(tmp_path, METHODS)
    await server.start()
    async with connect(tmp_path) as ask:
        assert await ask("add", a=1) == 2
    await server.close()


async def test_where_nobody_listens_is_said(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(NoControl, match="No such file or directory"):
            async with connect(directory):
                pass


async def test_closing_ends_those_who_wait(tmp_path: Path) -> None:
    server = ControlServer(tmp_path, METHODS, method_s=20)
    await server.start()
    async with connect(tmp_path) as ask:
        asked = asyncio.create_task(ask("hang"))
        await until(lambda: bool(server._tasks))
        await server.close()
        with pytest.raises(
            NoControl, match=r"control.sock: (the server has ended|Connection reset)"
        ):
            await asked


async def test_a_server_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    server = ControlServer(tmp_path, METHODS, method_s=20)
    await server.start()
    async with connect(tmp_path, timeout_s=0.05) as ask:
        with pytest.raises(NoControl, match="no answer in 0 s"):
            await ask("hang")
    await server.close()


def test_the_loop_that_serve_runs_on_does_the_same(tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def talk() -> None:
        server = ControlServer(tmp_path, METHODS | {"big": big}, method_s=0.2)
        await server.start()
        assert (tmp_path / SOCKET).stat().st_mode & 0o777 == 0o600
        async with connect(tmp_path) as ask:
            assert await ask("add", a=1) == 2
            assert len(await ask("big")) == 5_000_000
            assert (await refused(ask, "hang"))[0] == 408
            await server.close()
            with pytest.raises(NoControl):
                await ask("add", a=1)
        assert not (tmp_path / SOCKET).exists()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(talk())


def test_every_method_is_documented() -> None:
    text = (Path(__file__).parent.parent / "docs/operations.md").read_text()
    listed = text.split("Methods: ")[1].split(". What")[0]
    methods = Operations(MemoryTimeline()).methods
    assert set(re.findall(r"`([a-z.]+)`", listed)) == set(methods)
