"""Who is kept out before any route: browsers on other sites' errands, and what health tells."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import RunningServer, dev_config
from site_of import Site

from imserver import Config, Server


@pytest.fixture
def site(start_server: Callable[..., RunningServer]) -> Site:
    return Site(start_server(http="127.0.0.1:0"))


PATHS = ["/", "/livez", "/client.json", "/static/x"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:7480", "127.0.0.1.evil.example", "localhost.evil.example",
     "localhost@evil.example", "127.0.0.2", "0.0.0.0", "[::]", "", "localhost:7480:7480", "[::1"],
)  # fmt: skip
def test_a_name_that_another_site_has_given_us_is_refused(site: Site, path: str, host: str) -> None:
    assert site.get(path, host=host).problem == (403, 403)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:7480", "[::1]:7480"])
def test_the_names_of_this_machine_are_ours(site: Site, host: str) -> None:
    assert site.get("/livez", host=host).status == 200


def test_a_request_without_a_host_is_refused(site: Site) -> None:
    assert site.raw(b"GET /livez HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost", "http://localhost:1", "file://", "",
     "http://127.0.0.1.evil.example", "ftp://{host}", "http://{host}.evil.example", "http://{host}/"],
)  # fmt: skip
def test_a_page_of_another_origin_is_refused(site: Site, origin: str) -> None:
    for path in PATHS:
        assert site.get(path, origin=origin.format(host=site.host)).problem == (403, 403)


def test_our_own_pages_are_let_in(site: Site) -> None:
    assert site.get("/livez", origin=f"http://{site.host}").status == 200


def test_nobody_reads_our_answers_from_elsewhere(site: Site) -> None:
    for path in ("/livez", "/nothing", "/client.json"):
        headers = site.get(path).headers
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert not [name for name in headers if name.lower().startswith("access-control")]
        assert "server" not in headers


def test_a_server_that_works_is_alive_and_ready(site: Site) -> None:
    assert site.get("/livez").json == {"status": "alive", "reason": ""}
    ready = site.get("/readyz")
    assert (ready.status, ready.json) == (200, {"status": "ready", "reason": ""})


def test_a_server_that_leaves_is_alive_and_not_ready(
    start_server: Callable[..., RunningServer],
) -> None:
    running = start_server(http="127.0.0.1:0")
    site = Site(running)
    peer = running.user("bob")
    draining = asyncio.run_coroutine_threadsafe(running.server.drain(20), running._loop)
    assert peer.receive()
    answer = site.get("/readyz")
    assert (answer.status, answer.json) == (503, {"status": "unready", "reason": "leaving"})
    assert site.get("/livez").status == 200
    peer.close()
    draining.result(20)
    assert site.get("/readyz").status == 503, "and not when it has drained, either"


def test_a_server_whose_store_has_failed_is_not_ready(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    running = start_server(http="127.0.0.1:0", data_dir=str(tmp_path / "data"))
    assert running.server._store
    running.server._store._writer.failure = "FullError: disk"
    answer = Site(running).get("/readyz")
    assert answer.json == {"status": "unready", "reason": "the store has stopped"}
    running.server._store._writer.failure = ""


async def test_without_the_setting_there_is_no_http() -> None:
    async with Server(dev_config()) as server:
        assert server.http_address is None
    assert Config().http == ""


async def test_an_address_in_use_stops_the_start_and_leaves_nothing_open(tmp_path: Path) -> None:
    async with Server(dev_config(http="127.0.0.1:0")) as server:
        assert server.http_address
        taken = f"127.0.0.1:{server.http_address[1]}"
        other = Server(dev_config(http=taken, data_dir=str(tmp_path)))
        with pytest.raises(OSError, match="in use") as error:
            await other.start()
        assert error.value.filename == taken
    async with Server(dev_config(http=taken, data_dir=str(tmp_path))) as server:
        assert server.http_address == ("127.0.0.1", int(taken.partition(":")[2]))


@pytest.mark.parametrize(
    "client", [("192.0.2.1", 5), ("::ffff:192.0.2.1", 5), None, ("", 0), ["x"]]
)
async def test_with_dev_a_mounted_application_is_for_this_machine_only(client: Any) -> None:
    """As an ASGI server of the program would ask it, one that listens to everybody."""
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": "http", "method": "GET", "path": "/livez", "query_string": b"",
             "headers": [(b"host", b"localhost")]}  # fmt: skip
    async with Server(dev_config()) as server:
        await server.http_app({**scope, "client": client}, receive, send)
        await server.http_app({**scope, "client": ("127.0.0.1", 5)}, receive, send)
    assert [message["status"] for message in said if "status" in message] == [403, 200]
