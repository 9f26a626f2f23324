"""Delivery without a core: messages that were refused or redriven, and take their own course."""

import asyncio
from typing import Any

import pytest
from delivery_stage import TOPIC, Stage
from delivery_steps import SETTINGS, attempts, letter, published, refused, seqs, silence

from imserver import delivery_follower
from imserver.delivery import Settings
from imserver.errors import ErrorCode, ImError
from imserver.protocol import REDELIVERED
from imserver.timeline import Cursor


@pytest.fixture
def stage() -> Stage:
    return Stage(SETTINGS)


# Set aside


async def test_a_refused_message_is_set_aside_and_the_cursor_passes_it(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 3)
    await stage.delivery.on_nack(sub.number, 1)
    assert stage.timeline.stored("ann", "phone") == 1
    row = stage.timeline.letters("ann", "phone", is_taken=True)[1]
    assert (row.reason, row.attempts) == ("nack", 1)
    stage.core.ack(sub.number, 3)
    await silence(stage)
    assert attempts(sub.inbox[3:]) == [(1, 1)]


async def test_several_set_aside_are_passed_when_the_one_before_is_acknowledged(
    stage: Stage,
) -> None:
    sub = await stage.subscribe()
    await published(stage, 5)
    await stage.delivery.on_nack(sub.number, 2)
    await stage.delivery.on_nack(sub.number, 3)
    assert sub.acked == stage.timeline.stored("ann", "phone") == 0
    stage.core.ack(sub.number, 1)
    await stage.turn(1)
    assert sub.acked == stage.timeline.stored("ann", "phone") == 3


async def test_a_cumulative_acknowledgement_does_not_cover_it_and_an_exact_one_does(
    stage: Stage,
) -> None:
    sub = await stage.subscribe()
    await published(stage, 3)
    stage.core.nack(sub.number, 2)
    await stage.settle()
    stage.core.ack(sub.number, 3)
    await stage.turn(1)
    assert list(stage.timeline.letters("ann", "phone", is_taken=True)) == [2]
    stage.core.ack(sub.number, 2)
    await stage.settle()
    assert stage.timeline.letters("ann", "phone", is_taken=True) == {}
    await silence(stage, 4)
    assert len(sub.inbox) == 3


async def test_the_last_refusal_makes_a_dead_letter(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 1)
    for _ in range(3):
        count = len(sub.inbox)
        await stage.delivery.on_nack(sub.number, 1)
        while len(sub.inbox) == count and stage.delivery.followers(TOPIC)[0].asides:
            await stage.turn(1)
    assert attempts(sub.inbox) == [(1, 0), (1, 1), (1, 2)]
    (letter,) = await stage.timeline.dead()
    assert (letter.reason, letter.attempts, letter.is_taken) == ("nack", 3, False)
    assert stage.delivery.counts["dead.nack"] == 1


async def test_silence_after_a_refusal_ends_the_same_way(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 1)
    await stage.delivery.on_nack(sub.number, 1)
    await silence(stage, 5)
    assert attempts(sub.inbox) == [(1, 0), (1, 1), (1, 2)]
    (letter,) = await stage.timeline.dead()
    assert (letter.reason, letter.attempts, letter.is_taken) == ("nack", 3, False)


async def test_it_dies_only_when_the_cursor_is_past_it() -> None:
    stage = Stage(Settings(attempts=1, ack_wait_ms=60_000))
    sub = await stage.subscribe()
    await published(stage, 2)
    await stage.delivery.on_nack(sub.number, 2)
    await stage.turn(20)
    assert (await stage.timeline.dead())[0].is_taken
    stage.core.ack(sub.number, 1)
    await stage.turn(200)
    assert not (await stage.timeline.dead())[0].is_taken
    assert stage.timeline.stored("ann", "phone") == 2


async def test_a_refusal_that_meets_a_redelivery_on_its_way_counts_both(stage: Stage) -> None:
    for is_silent, attempt in ((False, 2), (True, 1)):
        sub = await stage.subscribe(f"silent {is_silent}")
        await stage.settle()
        await published(stage, 1)
        while not stage.core.orders:  # until the redelivery is ordered and not yet sent
            stage.now_s += 0.25
            stage.core.report()
            await stage.step()
            stage.delivery.tick()
            for _ in range(20):
                await asyncio.sleep(0)
        await stage.delivery.on_nack(sub.number, sub.sent)
        stage.core.silent = {sub.conn} if is_silent else set()
        await stage.settle()
        stage.core.silent.clear()
        count = len(sub.inbox)
        while len(sub.inbox) == count:
            await stage.turn(1)
        assert sub.inbox[-1].attempt == attempt
        stage.core.end(sub.conn)
        await stage.settle()


async def test_a_restart_knows_what_is_set_aside_and_its_attempts(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 3)
    await stage.delivery.on_nack(sub.number, 2)
    while len(sub.inbox) < 4 or sub.inbox[-1].seq != 2:
        await stage.turn(0.25)
    await stage.crash()
    sub = await stage.subscribe()
    await stage.settle()
    assert seqs(sub.inbox) == [1, 3]
    stage.core.ack(sub.number, 3)
    await silence(stage, 3)
    assert attempts(sub.inbox[2:]) == [(2, 2)]
    assert [one.is_taken for one in await stage.timeline.dead()] == [False]


async def test_it_comes_again_though_retention_took_it_from_the_timeline(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 1)
    await stage.delivery.on_nack(sub.number, 1)
    await stage.timeline.trim(TOPIC, 2)
    await silence(stage)
    assert attempts(sub.inbox)[1] == (1, 1)


async def test_one_that_an_operator_purged_is_set_aside_no_more(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 1)
    await stage.delivery.on_nack(sub.number, 1)
    await stage.timeline.drop_dead([one.id for one in await stage.timeline.dead()])
    await silence(stage)
    assert len(sub.inbox) == 1
    assert stage.delivery.followers(TOPIC)[0].asides == ()


async def test_a_refusal_is_not_answered_before_it_is_kept(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 1)
    stage.timeline.failures = 1
    error = await refused(stage.delivery.on_nack(sub.number, 1))
    assert error.code == ErrorCode.OVERLOADED
    stage.timeline.fail_in, stage.timeline.failures = 1, 1  # the read works, the put does not
    await refused(stage.delivery.on_nack(sub.number, 1))
    assert stage.delivery.followers(TOPIC)[0].asides == ()
    await stage.turn(6)
    assert attempts(sub.inbox)[1] == (1, 1)


async def test_no_cursor_relies_on_a_refusal_that_is_being_written(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 2)
    written = asyncio.Event()
    put_dead = stage.timeline.put_dead

    async def failing(*what: Any) -> Any:
        await written.wait()
        raise ImError(ErrorCode.NOT_DURABLE, "the store has stopped: no space")

    stage.timeline.put_dead = failing
    nack = asyncio.create_task(stage.delivery.on_nack(sub.number, 2))
    await stage.step()
    stage.core.ack(sub.number, 1)
    await stage.turn(60)
    assert stage.timeline.stored("ann", "phone") == sub.acked == 1
    written.set()
    await refused(nack)
    stage.timeline.put_dead = put_dead
    await stage.turn(1)
    assert attempts(sub.inbox) == [(1, 0), (2, 0), (2, 1)]


async def test_who_refuses_too_much_is_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imserver.delivery_asides.ASIDES_MAX", 3)
    monkeypatch.setattr(delivery_follower, "ASIDES_MAX", 3)
    sub = await stage.subscribe()
    await published(stage, 4)
    for seq in (1, 2, 3):
        await stage.delivery.on_nack(sub.number, seq)
    error = await refused(stage.delivery.on_nack(sub.number, 4))
    assert error.code == ErrorCode.OVERLOADED
    assert error.retry_after_ms > 0


async def test_more_rows_than_fit_are_taken_up_as_others_go(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imserver.delivery_asides.ASIDES_MAX", 3)
    monkeypatch.setattr(delivery_follower, "ASIDES_MAX", 3)
    await stage.publish(10)
    await stage.timeline.put_cursors([Cursor("ann", "phone", TOPIC, 10)])
    letters = [letter(stage, seq)._replace(is_taken=True, attempts=0) for seq in range(1, 11)]
    await stage.timeline.put_dead(letters)
    sub = await stage.subscribe()
    for _ in range(20):
        await stage.turn(1)
        known = stage.delivery.followers(TOPIC)[0].asides
        assert len(known) <= 3
        for seq in known:
            if seq in seqs(sub.inbox):
                await stage.delivery.on_ack(sub.number, seq)
    assert sorted(seqs(sub.inbox)) == list(range(1, 11))
    assert await stage.timeline.dead() == []


async def test_what_waits_for_no_answer_cannot_be_refused(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 2)
    stage.core.ack(sub.number, 1)
    await stage.turn(1)
    for number, seq in ((sub.number, 1), (sub.number, 99), (999, 1)):
        error = await refused(stage.delivery.on_nack(number, seq))
        assert error.code == ErrorCode.NOT_FOUND
    await stage.delivery.on_ack(sub.number, 1)  # no news, and no error
    assert (await refused(stage.delivery.on_ack(999, 1))).code == ErrorCode.NOT_FOUND


async def test_what_the_tags_kept_back_cannot_be_refused(stage: Stage) -> None:
    sub = await stage.subscribe(tags="x")
    await published(stage, 1, "z")
    await published(stage, 1, "x")
    error = await refused(stage.delivery.on_nack(sub.number, 1))
    assert error.code == ErrorCode.NOT_FOUND
    assert await stage.timeline.dead() == []
    await stage.delivery.on_nack(sub.number, 2)
    assert [one.seq for one in await stage.timeline.dead()] == [2]


# Redrive


async def test_a_dead_letter_is_sent_once_more_to_whoever_is_here(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 1)
    await silence(stage, 5)
    (dead,) = await stage.timeline.dead()
    count = len(sub.inbox)
    assert await stage.delivery.redrive([dead.id, 999]) == 1
    await stage.turn(1)
    assert attempts(sub.inbox[count:]) == [(1, 0)]
    assert sub.inbox[-1].flags & REDELIVERED
    await stage.delivery.on_ack(sub.number, 1)
    assert await stage.timeline.dead() == []


async def test_and_to_who_is_not_when_they_come(stage: Stage) -> None:
    await stage.publish(1)
    await stage.timeline.put_dead([letter(stage, 1)], [Cursor("ann", "phone", TOPIC, 1)])
    assert await stage.delivery.redrive([1]) == 1
    assert await stage.delivery.redrive([1]) == 0
    sub = await stage.subscribe()
    await silence(stage, 6)
    assert attempts(sub.inbox) == [(1, 0), (1, 1), (1, 2)]
    (dead,) = await stage.timeline.dead()
    assert (dead.reason, dead.attempts, dead.is_taken) == ("unacknowledged", 3, False)
