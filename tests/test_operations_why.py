"""What is told of a message that a cursor is past, by the store and by real followers."""

from typing import Any

import pytest
from delivery_stage import TOPIC, Stage

from imserver.delivery import Settings
from imserver.operations import Operations

#: Two attempts and waits of 5 to 20 s.
SETTINGS = Settings(attempts=2, backoff_max_ms=20_000)


@pytest.fixture
def stage() -> Stage:
    return Stage(SETTINGS)


async def publish(stage: Stage, *tags: str) -> None:
    for tag in tags:
        stage.commit(await stage.publish(1, tag))
        await stage.settle()


async def states(stage: Stage, *seqs: int) -> list[str]:
    """Of the only device there is, for each of these messages."""
    operations = Operations(stage.timeline, followers=stage.delivery.followers)
    told: list[dict[str, Any]] = [await operations.why(TOPIC, seq) for seq in seqs]
    return [device["state"] for one in told for device in one["devices"]]


async def test_what_was_acknowledged_is_known_as_long_as_the_connection(stage: Stage) -> None:
    await publish(stage, "", "")
    sub = await stage.subscribe()
    await publish(stage, "", "", "")
    stage.core.ack(sub.number, 4)
    await stage.turn(1)
    assert await states(stage, 2, 3, 4, 5) == ["passed", "acknowledged", "acknowledged", "sent"]
    stage.core.end(sub.conn)
    await stage.settle()
    assert await states(stage, 2, 3, 4, 5) == ["passed", "passed", "passed", "waiting"]


async def test_what_the_tags_keep_back_was_not_acknowledged(stage: Stage) -> None:
    sub = await stage.subscribe(tags="x||y")
    await publish(stage, "x", "z", "y", "z")
    stage.core.ack(sub.number, 3)
    await stage.turn(1)
    expected = ["acknowledged", "not for its tags", "acknowledged", "not for its tags"]
    assert await states(stage, 1, 2, 3, 4) == expected
    stage.core.end(sub.conn)
    await stage.settle()
    assert await states(stage, 2) == ["passed"], "which tags it had asked for is not kept"


async def test_a_dead_letter_that_is_deleted_was_not_acknowledged(stage: Stage) -> None:
    sub = await stage.subscribe()
    await publish(stage, "", "")
    await stage.turn(41)
    await publish(stage, "")
    stage.core.ack(sub.number, 3)
    await stage.turn(1)
    assert await states(stage, 1, 2, 3) == ["dead letter", "dead letter", "acknowledged"]
    operations = Operations(stage.timeline)
    assert (await operations.purge())["count"] == 2
    assert await states(stage, 1, 2, 3) == ["passed", "passed", "acknowledged"]


async def test_one_refused_to_its_end_and_deleted_was_not_acknowledged(stage: Stage) -> None:
    sub = await stage.subscribe()
    await publish(stage, "")
    await stage.delivery.on_nack(sub.number, 1)
    assert await states(stage, 1) == ["set aside"]
    await stage.turn(41)
    assert await states(stage, 1) == ["dead letter"]
    await Operations(stage.timeline).purge()
    assert await states(stage, 1) == ["passed"]


async def test_without_acknowledgements_it_is_known_what_was_sent(stage: Stage) -> None:
    await publish(stage, "x", "x")
    await stage.subscribe(after=1, window=0, tags="x")
    await publish(stage, "x", "z")
    await stage.turn(1)
    expected = ["before it began", "sent, unasked", "sent, unasked", "not for its tags"]
    assert await states(stage, 1, 2, 3, 4) == expected
