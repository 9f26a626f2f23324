"""The pages in Debian's chromium, driven by Playwright, before a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from chromium import launched  # noqa: E402
from people import People  # noqa: E402
from playwright.sync_api import Browser  # noqa: E402
from serving import Serving, Start  # noqa: E402


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One a module: while Playwright runs, no test beside it may have an event loop."""
    with launched() as one:
        yield one


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server for the tests of a module."""
    running = Serving(tmp_path_factory.mktemp("served"), DELIVERY__ATTEMPTS="1")
    running.start()
    yield running
    running.stop()


@pytest.fixture
def people(browser: Browser, served: Serving) -> Iterator[People]:
    """Who visits the pages. At the end nothing may have gone wrong in any of their tabs."""
    visiting = People(browser, served.url)
    yield visiting
    visiting.leave()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Start]:
    """serve(dev=True, **settings): a server of the test's own."""
    started: list[Serving] = []

    def start(**settings: object) -> Serving:
        started.append(Serving(tmp_path, **settings))  # type: ignore[arg-type]
        started[-1].start()
        return started[-1]

    yield start
    for running in started:
        running.stop()
