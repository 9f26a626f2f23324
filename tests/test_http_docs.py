"""docs/http-api.md: its examples do what it says, and a program can mount the application."""

import asyncio
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from harness import RunningServer, dev_config
from site_of import Answer, Site
from starlette.applications import Starlette
from starlette.routing import Mount

from imserver import Server
from imserver.errors import ErrorCode
from imserver.http_problem import status_of

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/http-api.md").read_text()
CURLS = re.findall(r"^```sh\n(curl .*?)```$", TEXT, flags=re.M | re.S)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = str(tmp_path_factory.mktemp("docs") / "data")
    running = RunningServer(dev_config(http="127.0.0.1:0", data_dir=data))
    yield f"http://{Site(running).host}"
    running.stop()


def test_there_is_an_example_for_every_call() -> None:
    sections = re.split(r"^### ", TEXT.split("\n## Pages\n")[0], flags=re.M)[1:]
    assert len(sections) > 20
    assert [section.splitlines()[0] for section in sections if "```sh\ncurl" not in section] == []


# Draining comes last.
@pytest.mark.parametrize("curl", sorted(CURLS, key=lambda curl: "drain" in curl))
def test_an_example_works(url: str, curl: str) -> None:
    command = curl.replace("curl ", "curl -sS -o /dev/null -w '%{http_code}' --max-time 20 ", 1)
    done = subprocess.run(
        ["bash", "-c", command],
        env={"IM": url, "KEY": "x", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    wanted = re.search(r"# fails: (\d+)", curl)
    assert done.stdout == (wanted[1] if wanted else "202" if "drain" in curl else "200"), curl


def test_every_refusal_is_in_the_table() -> None:
    rows = {int(code) for code in re.findall(r"^\| (\d{3}) \| ", TEXT, flags=re.M)}
    ours = {status_of(code) for code in ErrorCode} - {ErrorCode.LOST}
    assert rows == ours, "410 is about what is delivered, which HTTP does not do"


def test_the_example_of_mounting_is_that_of_the_program() -> None:
    shown = TEXT.split("```python\n")[1].split("```")[0]
    assert shown in (ROOT / "examples/mounted.py").read_text()


class Host(uvicorn.Server):
    """As in a thread: without signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def test_a_program_mounts_it_below_a_path_of_its_own() -> None:
    """In a real ASGI server of the program's own, where it works and ends with the program."""
    server = Server(dev_config())
    app = Starlette(routes=[Mount("/im", server.http_app)])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = Host(uvicorn.Config(app, log_config=None, lifespan="off"))
        serving = asyncio.create_task(host.serve([listener]))
        site = Site(listener.getsockname())

        async def get(path: str, method: str = "GET", body: Any = None) -> Answer:
            return await asyncio.to_thread(site.ask, method, path, body)

        assert (await get("/im/readyz")).json == {"status": "unready", "reason": "not running"}
        for path in ("/im/v1/stats", "/im/metrics", "/im/client.json"):
            assert (await get(path)).problem == (503, 503)
        async with server:
            assert (await get("/im/readyz")).status == 200
            assert (await get("/im/client.json")).json["port"] == server.address[1]
            assert (await get("/im/v1/users/ann/presence")).json == {"user": "ann", "devices": []}
            message = {"topic": "room:a", "body": 1}
            assert (await get("/im/v1/publish", "POST", message)).status == 200
            assert (await get("/im/nothing")).problem == (404, 404)
            assert (await get("/v1/stats")).status == 404
        assert (await get("/im/v1/stats")).problem == (503, 503)
        host.should_exit = True
        await serving
