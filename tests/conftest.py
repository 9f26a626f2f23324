"""Fixtures: servers to talk to, and stores. What they are is in harness.py and stores.py."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from harness import Run, RunningServer, dev_config
from hypothesis import HealthCheck, settings
from stores import Turned

from imserver import Server
from imserver.cli import main
from imserver.timeline import Clock, Timeline
from imserver.timeline_memory import MemoryTimeline
from imserver.timeline_sqlite import SqliteTimeline

settings.register_profile(
    "ci", deadline=None, max_examples=50, suppress_health_check=list(HealthCheck)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(params=[0, 1, 2], ids=lambda threads: f"threads={threads}", scope="session")
def threads(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="session")
def shared_server(threads: int) -> Iterator[RunningServer]:
    running = RunningServer(dev_config(threads=threads))
    yield running
    running.stop()


@pytest.fixture
def server(shared_server: RunningServer) -> Iterator[RunningServer]:
    """The server with default settings, one a thread count. Leaves no connection behind."""
    yield shared_server
    shared_server.forget_peers()


@pytest.fixture
def start_server() -> Iterator[Callable[..., RunningServer]]:
    """start_server(prepare=None, **config): a server of the test's own."""
    started: list[RunningServer] = []

    def start(prepare: Callable[[Server], None] | None = None, **sections: Any) -> RunningServer:
        started.append(RunningServer(dev_config(**sections), prepare))
        return started[-1]

    yield start
    for running in started:
        running.stop()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """run("token", "ann", env={...}): the command in this process, with no settings around."""
    for name in os.environ:
        if name.startswith("IMSERVER_"):
            monkeypatch.delenv(name)

    def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(main, arguments, env=env, prog_name="imserver")

    return run


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """serve(prepare=None, **config): a server with a store, in the same directory every time."""
    started: list[RunningServer] = []

    def start(prepare: Callable[[Server], None] | None = None, **sections: Any) -> RunningServer:
        for running in started:
            running.stop()
        started[:] = [RunningServer(dev_config(data_dir=str(tmp_path), **sections), prepare)]
        return started[0]

    yield start
    for running in started:
        running.stop()


@pytest.fixture
def wall() -> Turned:
    return Turned()


@pytest.fixture
def steady() -> Turned:
    return Turned()


@pytest.fixture(params=["memory", "sqlite"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, wall: Turned, steady: Turned
) -> AsyncIterator[Timeline]:
    if request.param == "memory":
        opened: Timeline = MemoryTimeline(Clock(wall_s=wall, steady_s=steady))
    else:
        opened = await SqliteTimeline.open(tmp_path / "data", wall_s=wall, steady_s=steady)
    yield opened
    await opened.close()


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """disk(): opens the store in one directory, again and again."""
    opened: list[SqliteTimeline] = []

    async def open(**options: Any) -> SqliteTimeline:
        while opened:
            await opened.pop().close()
        opened.append(await SqliteTimeline.open(tmp_path / "data", **options))
        return opened[0]

    yield open
    for store in opened:
        await store.close()
