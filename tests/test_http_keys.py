"""API keys: nothing without one, nothing beyond its scopes, and nothing learnt by guessing."""

import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from harness import RunningServer
from site_of import Site

from imserver import http_keys
from imserver.config import Config
from imserver.config_api import Scope
from imserver.http_app import api_routes
from imserver.http_metrics import Metrics
from imserver.server import Server

SCOPES: tuple[str, ...] = get_args(Scope)
SECRETS = {scope: f"{scope}-{'s' * 32}" for scope in SCOPES}
KEYS: list[dict[str, Any]] = [
    {"name": scope, "secret": SECRETS[scope], "scopes": [scope]} for scope in SCOPES
] + [{"name": "none", "secret": "n" * 32}]

_server = Server(Config())
ROUTES = api_routes(_server, "0", Metrics(_server, "0"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = Config(
        listen="127.0.0.1:0",
        http="127.0.0.1:0",
        data_dir=str(tmp_path_factory.mktemp("keys") / "data"),
        api={"keys": KEYS},  # type: ignore[arg-type]
    )
    running = RunningServer(config)
    yield running
    running.stop()


def ask(site: Site, method: str, path: str) -> int:
    """The status of a request that names nothing that there is: it changes nothing."""
    path = path.replace("{topic:path}", "room:none").replace("{user}", "nobody")
    path = path.replace("{id}", "1").replace("/v1/drain", "/v1/drain?refused=1")
    return site.ask(method, path, {} if method == "POST" else None).status


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_a_route_asks_for_a_key_with_its_scope(running: RunningServer, route: Any) -> None:
    for headers in (
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer " + "x" * 40},
        {"authorization": f"Basic {SECRETS['admin']}"},
        {"authorization": SECRETS["admin"]},
        {"authorization": f"Bearer {SECRETS['admin'][:-1]}"},
        {"authorization": f"Bearer {SECRETS['admin']}x"},
        {"cookie": f"key={SECRETS['admin']}"},
    ):
        path = route.path.replace("{topic:path}", "a").replace("{user}", "a")
        path = path.replace("{id}", "1") + f"?key={SECRETS['admin']}"
        answer = Site(running).ask(route.method, path, None, headers)
        assert answer.problem == (401, 401)
        assert answer.headers["www-authenticate"] == 'Bearer realm="imserver"'
    for scope, secret in SECRETS.items():
        status = ask(Site(running, secret), route.method, route.path)
        if route.scope is None or scope in (route.scope, "admin"):
            assert status not in (401, 403, 500), (scope, status)
        else:
            assert status == 403, (scope, status)
    assert ask(Site(running, "n" * 32), route.method, route.path) == (403 if route.scope else 200)


def test_every_scope_opens_something() -> None:
    assert {route.scope for route in ROUTES} | {"admin", None} == {*SCOPES, None}


def test_two_keys_are_none(running: RunningServer) -> None:
    line = f"Authorization: Bearer {SECRETS['admin']}\r\n".encode()
    request = b"GET /v1/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    assert b" 200 OK" in Site(running).raw(request + line + b"\r\n")
    assert b" 401 Unauthorized" in Site(running).raw(request + line + line + b"\r\n")


def test_a_guess_is_compared_with_every_key_whole_and_in_constant_time(
    running: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by a clock: by what is compared. Digests have one length and no prefix of the secret."""
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def counting(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(http_keys.hmac, "compare_digest", counting)
    for guess in ("x", "x" * 1_000, SECRETS["publish"], SECRETS["admin"][:20], "n" * 32):
        compared.clear()
        Site(running, guess).get("/v1/version")
        assert compared == [(32, 32)] * len(KEYS), "the same work, whatever is right"


def test_secrets_are_shown_nowhere(running: RunningServer) -> None:
    site = Site(running, SECRETS["admin"])
    for path in ("/v1/config", "/v1/openapi.json", "/v1/stats", "/metrics"):
        text = site.get(path).body.decode()
        assert not [secret for secret in SECRETS.values() if secret in text], path
    shown = site.get("/v1/config").json["api"]["keys"]
    assert shown[0] == {
        "name": "publish",
        "secret": "***",
        "secret_file": "",
        "scopes": ["publish"],
    }


def test_without_keys_nobody_gets_in(start_server: Callable[..., RunningServer]) -> None:
    site = Site(start_server(http="127.0.0.1:0", dev=False), "s" * 40)
    assert site.get("/v1/version").problem == (401, 401)
    assert site.get("/livez").status == 200
    assert site.get("/readyz").status == 200


def test_a_secret_in_a_file_is_read_once_at_the_start(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text("f" * 40 + "\n")
    keys = {"keys": [{"name": "f", "secret_file": str(file)}]}
    running = start_server(http="127.0.0.1:0", dev=False, api=keys)
    file.unlink()
    assert Site(running, "f" * 40).get("/v1/version").status == 200


def test_in_dev_no_key_is_asked(start_server: Callable[..., RunningServer]) -> None:
    running = start_server(http="127.0.0.1:0")
    assert Site(running).get("/v1/stats").status == 200
    assert Site(running, "whatever").get("/v1/stats").status == 200
