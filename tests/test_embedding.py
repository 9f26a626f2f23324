"""imserver inside somebody else's program: any loop, no side effects, and a GIL that is not ours."""

import asyncio
import ctypes
import logging
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from harness import dev_config

from imserver import Server
from imserver.client import Client

README = Path(__file__).parent.parent / "README.md"
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def test_the_example_of_the_readme_runs() -> None:
    code = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)[0]
    assert len(code.strip().splitlines()) <= 16
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "$server Hello from the server\n", done.stderr


@pytest.mark.parametrize("codec", ["json", "msgpack", "protobuf"])
@pytest.mark.parametrize("threads", [0, 1, 2])
@pytest.mark.parametrize("loop", LOOPS)
def test_clients_talk_on_any_loop(loop: str, threads: int, codec: str) -> None:
    async def main() -> None:
        async with Server(dev_config(threads=threads)) as server:
            async with (
                Client(server.address, user="alice", codec=codec) as alice,
                Client(server.address, user="bob", codec=codec) as bob,
            ):
                messages = await alice.subscribe("room:a", tags="news||sport")
                await bob.publish("room:a", {"text": "skip"}, tag="other")
                await bob.publish("room:a", {"text": "hi", "n": [1, None, 2.5]}, tag="news")
                async for message in messages:
                    assert message.value() == {"text": "hi", "n": [1, None, 2.5]}
                    assert (message.sender, message.tag) == ("bob", "news")
                    break
                presence = await alice.call("presence", {"users": ["bob"]})
                assert presence["bob"]["online"]

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


def our_threads() -> set[str]:
    """Those of this process, without the loop's own executor, which resolves addresses."""
    return {t.name for t in threading.enumerate() if not t.name.startswith("asyncio_")}


async def test_a_server_leaves_its_host_as_it_was() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    handlers, level = list(logging.root.handlers), logging.root.level
    threads, tasks = our_threads(), asyncio.all_tasks()
    async with Server(dev_config(threads=2)):
        assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
        assert (list(logging.root.handlers), logging.root.level) == (handlers, level)
    assert our_threads() == threads
    assert asyncio.all_tasks() == tasks


async def test_http_leaves_the_host_as_it_was_too() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access")]

    def set_up() -> list[Any]:
        return [(list(one.handlers), one.level, one.propagate) for one in (logging.root, *loggers)]

    logging_before = set_up()
    tasks = asyncio.all_tasks()
    async with Server(dev_config(http="127.0.0.1:0")) as server:
        assert server.http_address
        reader, writer = await asyncio.open_connection(*server.http_address)
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
        assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
        assert set_up() == logging_before
    writer.close()
    assert asyncio.all_tasks() == tasks


def test_who_wants_no_http_loads_none() -> None:
    program = (
        "import asyncio, sys\n"
        "from imserver import Config, Server\n"
        "async def main():\n"
        "    async with Server(Config(listen='127.0.0.1:0', dev=True)): pass\n"
        "asyncio.run(main())\n"
        "print([name for name in ('starlette', 'uvicorn', 'prometheus_client') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


async def test_two_servers_live_in_one_process() -> None:
    async with Server(dev_config()) as one, Server(dev_config()) as other:
        assert one.address != other.address
        async with (
            Client(one.address, user="bob") as here,
            Client(other.address, user="bob") as there,
        ):
            messages = await there.subscribe("room:a")
            await here.publish("room:a", "not for you")
            await there.publish("room:a", "for you")
            async for message in messages:
                assert message.value() == "for you"
                break


async def test_a_server_can_be_started_again() -> None:
    for _ in range(3):
        async with Server(dev_config()) as server, Client(server.address, user="bob") as bob:
            await bob.call("presence", {"users": []})


def test_messages_flow_while_python_holds_the_gil(
    start_server: Callable[..., object],
) -> None:
    """The clients are a process of their own; here a thread holds the GIL for two seconds at a
    time, in a C function that does not release it. A hundred round trips pass meanwhile."""
    running = start_server(threads=1)
    program = (
        "import asyncio, sys\n"
        "from imserver.client import Client\n"
        "async def main():\n"
        f"    async with Client({running.address!r}, user='bob') as bob:\n"  # type: ignore[attr-defined]
        "        messages = await bob.subscribe('room:a')\n"
        "        async def round_trip():\n"
        "            await bob.publish('room:a', b'x')\n"
        "            async for message in messages:\n"
        "                return\n"
        "        await round_trip()\n"
        "        print('ready', flush=True)\n"
        "        sys.stdin.readline()\n"
        "        for _ in range(100):\n"
        "            await round_trip()\n"
        "        print('done', flush=True)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdin
        assert client.stdout
        assert client.stdout.readline() == "ready\n"
        client.stdin.write("go\n")
        client.stdin.flush()
        ctypes.PyDLL(None).sleep(2)  # holds the GIL
        import select

        ready, _, _ = select.select([client.stdout], [], [], 0)
        assert ready, "no round trips while the GIL was held"
        assert client.stdout.readline() == "done\n"
