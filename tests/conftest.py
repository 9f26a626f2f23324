"""Fixtures: servers to talk to. What they are is in harness.py."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from harness import Run, RunningServer, dev_config
from hypothesis import HealthCheck, settings

from imserver import Server
from imserver.cli import main

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
