"""The pages and their files: only what is in the folder, under a policy that lets nothing else in."""

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import RunningServer
from site_of import Site

from imserver import __version__, http_pages


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    static = tmp_path / "static"
    (static / "chat").mkdir(parents=True)
    (static / "console.html").write_text("<!doctype html>console")
    (static / "chat.html").write_text("<!doctype html>chat")
    (static / "chat/page.js").write_text("export {}")
    (static / "style.css").write_text("body {}")
    (tmp_path / "secret.txt").write_text("secret")
    monkeypatch.setattr(http_pages, "STATIC", static)
    return static


@pytest.fixture
def site(folder: Path, start_server: Callable[..., RunningServer]) -> Site:
    return Site(start_server(http="127.0.0.1:0"))


def test_pages_and_files_are_served_with_their_types(site: Site) -> None:
    for path, text, kind in (
        ("/", b"console", "text/html; charset=utf-8"),
        ("/chat", b"chat", "text/html; charset=utf-8"),
        ("/static/chat/page.js", b"export {}", "text/javascript; charset=utf-8"),
        ("/static/style.css", b"body {}", "text/css; charset=utf-8"),
    ):
        answer = site.get(path)
        assert answer.status == 200
        assert answer.body.endswith(text)
        assert answer.headers["content-type"] == kind
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-cache"


def test_a_page_runs_our_scripts_only_and_talks_to_this_server_only(site: Site) -> None:
    port = site_port(site)
    for host in (site.host, f"localhost:{site.address[1]}"):
        name = host.rpartition(":")[0]
        policy = site.get("/chat", host=host).headers["content-security-policy"]
        assert policy == (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
            f"connect-src 'self' ws://{name}:{port} wss://{name}:{port}; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'"
        )


def site_port(site: Site) -> int:
    port = site.get("/client.json").json["port"]
    assert isinstance(port, int)
    return port


def test_a_page_is_told_where_the_websocket_is(
    site: Site, start_server: Callable[..., RunningServer]
) -> None:
    running = start_server(http="127.0.0.1:0", dev=False)
    assert Site(running).get("/client.json").json == {
        "port": running.address[1],
        "path": "/ws",
        "dev": False,
        "version": __version__,
    }
    assert site.get("/client.json").json["dev"] is True


def test_a_file_that_has_not_changed_is_not_sent_again(site: Site) -> None:
    etag = site.get("/static/style.css").headers["etag"]
    again = site.get("/static/style.css", **{"if-none-match": etag})
    assert (again.status, again.body) == (304, b"")
    assert site.get("/static/style.css", **{"if-none-match": '"other"'}).status == 200
    head = site.ask("HEAD", "/static/style.css")
    assert (head.status, head.headers["etag"], head.body) == (200, etag, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/static/../secret.txt",
        "/static/..%2fsecret.txt",
        "/static/%2e%2e/secret.txt",
        "/static/..;/secret.txt",
        "/static/..\\secret.txt",
        "/static/chat/../../secret.txt",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/style.css%00.js",
        "/static/style.css/",
        "/static/chat",
        "/static/",
        "/static",
        "/STATIC/style.css",
        "/../secret.txt",
        "//secret.txt",
    ],
)
def test_there_is_no_way_out_of_the_folder(site: Site, path: str) -> None:
    assert site.get(path).problem == (404, 404)


def test_pages_take_no_other_method(site: Site) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        answer = site.ask(method, "/chat")
        assert answer.problem == (405, 405)
        assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
