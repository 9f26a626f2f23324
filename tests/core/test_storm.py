"""The whole core in a storm of clients, without an interpreter and under sanitizers.

storm.c plays the control plane, storm_clients.c the clients over TCP and WebSocket, storm_plain.c
those with plain messages. What is tested is in them: every well-behaved peer receives each message
once, whole and in order, whatever the others do, and in the end the core has given everything back.
storm_store.c and storm_followers.c do the same for what is kept: a receipt is a promise, a refusal
reaches nobody, and who follows gets all of it.
"""

from pathlib import Path

import pytest
from building import CHECKED, CORE, HERE, build, run


@pytest.fixture(scope="module", params=CHECKED)
def storm(request, tmp_path_factory) -> list[str | Path]:
    folder = tmp_path_factory.mktemp(request.param)
    parts = ["storm", "storm_clients", "storm_messages", "storm_plain", "storm_web"]
    sources = [*CORE, *(HERE / f"{part}.c" for part in parts)]
    return build(folder / "storm", CHECKED[request.param], sources)


@pytest.fixture(scope="module", params=CHECKED)
def storm_of_store(request, tmp_path_factory) -> list[str | Path]:
    folder = tmp_path_factory.mktemp(request.param)
    sources = [*CORE, HERE / "storm_store.c", HERE / "storm_followers.c"]
    return build(folder / "storm_store", CHECKED[request.param], sources)


@pytest.mark.parametrize("io_threads", [0, 1, 2, 3])
def test_everybody_receives_everything_once_and_in_order(storm, io_threads) -> None:
    result = run(*storm, io_threads, 1)
    assert result.returncode == 0, result.stderr[-6000:]
    assert f"storm: {io_threads} threads" in result.stdout


@pytest.mark.parametrize("seed", [2, 3])
def test_so_it_is_whatever_the_dice_say(storm, seed) -> None:
    result = run(*storm, 2, seed)
    assert result.returncode == 0, result.stderr[-6000:]


@pytest.mark.parametrize("io_threads", [0, 1, 2, 3])
def test_what_is_receipted_reaches_every_follower_once_and_in_order(
    storm_of_store, io_threads
) -> None:
    result = run(*storm_of_store, io_threads, io_threads + 1)
    assert result.returncode == 0, result.stderr[-6000:]
    assert f"storm: {io_threads} threads" in result.stdout
