"""The JavaScript client: its own tests in Node, and in a real browser, against a real server.

What it does against a fake server is in clients/js/test, next to it.
"""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import launched
from harness import RunningServer, dev_config

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "clients" / "js"
TESTS = sorted(path.name for path in (PACKAGE / "test").glob("*.test.js"))
OLDEST_NODE = 18
WAIT_S = 110


@pytest.fixture(scope="module")
def node() -> str:
    """A node with the packages that the tests need, as package-lock.json has them."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if not found or not npm:
        pytest.skip("node and npm are not installed")
    version = run([found, "--version"]).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"node {version} is older than {OLDEST_NODE}")
    lock, installed = PACKAGE / "package-lock.json", PACKAGE / "node_modules/.package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        done = run([npm, "ci", "--no-audit", "--no-fund"])
        if done.returncode:
            pytest.skip(f"npm ci did not work: {done.stderr[-300:]}")
        installed.touch()
    return found


def run(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=PACKAGE,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


class Site(http.server.ThreadingHTTPServer):
    """The files of the checkout, and POST /restart for tests that run elsewhere."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(ROOT)))
        self.origin = f"http://127.0.0.1:{self.server_port}"
        self.restart: Callable[[], None]


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Site

    def do_POST(self) -> None:
        self.server.restart()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield site
        site.shutdown()
        thread.join()


class Restartable:
    """A server with a store, which comes back at the same address."""

    def __init__(self, data_dir: Path, origin: str) -> None:
        config = {
            "data_dir": str(data_dir),
            "reconnect": {"base_ms": 50, "max_ms": 200},
            "drain": {"spread_ms": 100},
            "websocket": {"origins": [origin]},
        }
        self.running = RunningServer(dev_config(**config))
        host, port = self.running.address
        self.url = f"ws://{host}:{port}/ws"
        self.config = dev_config(**config, listen=f"{host}:{port}")

    def restart(self) -> None:
        self.running.stop()
        self.running = RunningServer(self.config)


@pytest.fixture
def server(tmp_path: Path, site: Site) -> Iterator[Restartable]:
    server = Restartable(tmp_path, site.origin)
    site.restart = server.restart
    yield server
    server.running.stop()


# In Node


@pytest.mark.parametrize("name", TESTS)
def test_the_tests_of_the_client_pass(
    node: str, server: Restartable, site: Site, name: str
) -> None:
    env = {"IMSERVER_URL": server.url, "IMSERVER_RESTART": f"{site.origin}/restart"}
    done = run([node, "--test", "--test-reporter=tap", f"test/{name}"], **env)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(re.findall(r"^# (pass|fail|skipped) (\d+)$", done.stdout, re.MULTILINE))
    assert int(counts["pass"]) > 0
    assert (counts["fail"], counts["skipped"]) == ("0", "0")


# The package


def test_the_types_are_those_of_the_module(node: str) -> None:
    done = run([node, "node_modules/typescript/bin/tsc", "--noEmit", "-p", "test"])
    assert done.returncode == 0, done.stdout


def test_the_package_holds_what_belongs_to_it(node: str) -> None:
    npm = shutil.which("npm")
    assert npm
    (packed,) = json.loads(run([npm, "pack", "--dry-run", "--json"]).stdout)
    names = {file["path"] for file in packed["files"]}
    assert names == {"LICENSE", "README.md", "imserver.d.ts", "imserver.js", "package.json"}
    assert (PACKAGE / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    manifest = json.loads((PACKAGE / "package.json").read_text())
    assert "dependencies" not in manifest
    assert manifest["engines"]["node"] == f">={OLDEST_NODE}"
    assert f'"imserver-js/{manifest["version"]}"' in (PACKAGE / "imserver.js").read_text()


# In a browser


@pytest.fixture
def browser() -> Iterator[Any]:
    with launched() as one:
        yield one


READER = """async (url) => {
  const { connect } = await import("/clients/js/imserver.js");
  window.client = await connect(url, { user: "bob", device: "tab" });
  window.states = [client.state];
  client.addEventListener("state", (event) => states.push(event.detail.state));
  window.seen = [];
  const subscription = await client.subscribe("room:1", { durable: true });
  (async () => {
    for await (const message of subscription) {
      seen.push([message.seq, message.body.n, message.sender]);
      subscription.ack(message);
    }
  })();
  return [client.user, client.state];
}"""

WRITER = """async ([url, count]) => {
  const { connect } = await import("/clients/js/imserver.js");
  window.client ??= await connect(url, { user: "ann", device: "tab" });
  window.receipts = Array.from({ length: count }, (_, n) =>
    client.publish("room:1", { n }, { durable: true }));
  return receipts.length;
}"""


def test_in_a_browser_nothing_is_lost_while_the_server_restarts(
    browser: Any, server: Restartable, site: Site
) -> None:
    reader, writer = browser.new_page(), browser.new_page()
    for page in (reader, writer):
        page.goto(site.origin)  # any page of that origin
    assert reader.evaluate(READER, server.url) == ["bob", "open"]
    writer.evaluate(WRITER, [server.url, 50])
    reader.wait_for_function("seen.length === 50")
    server.running.stop()
    writer.wait_for_function("client.state === 'connecting'")
    writer.evaluate(WRITER, [server.url, 50])  # while nobody is there
    server.restart()
    seqs = writer.evaluate("Promise.all(receipts).then((all) => all.map(({ seq }) => seq))")
    assert seqs == list(range(51, 101))
    reader.wait_for_function("seen.length >= 100")
    seen = reader.evaluate("seen")
    assert seen == [[seq, (seq - 1) % 50, "ann"] for seq in range(1, 101)]
    states = reader.evaluate("states")
    assert states[0] == states[-1] == "open"
    assert "connecting" in states
    for page in (reader, writer):
        page.evaluate("client.close()")
        assert page.evaluate("client.state") == "closed"


def test_the_example_page_is_a_chat(browser: Any, server: Restartable, site: Site) -> None:
    pages = {name: browser.new_page() for name in ("ann", "bob")}
    for name, page in pages.items():
        page.goto(f"{site.origin}/examples/chat.html?user={name}&server={server.url}")
        page.get_by_text("connected as").wait_for()
    for name, page in pages.items():
        page.get_by_label("Message").fill(f"hello from <{name}>")
        page.get_by_label("Message").press("Enter")
    for page in pages.values():
        for name in pages:
            page.get_by_text(f"{name}: hello from <{name}>").wait_for()
    server.running.stop()
    pages["bob"].get_by_text("reconnecting").wait_for()
    server.restart()
    pages["bob"].get_by_text("connected as").wait_for()
    pages["bob"].get_by_label("Message").fill("still here")
    pages["bob"].get_by_label("Message").press("Enter")
    pages["ann"].get_by_text("bob: still here").wait_for()
