"""Delivery without a core: where a subscription starts, how it catches up, and its cursor."""

import asyncio
from typing import Any

import pytest
from delivery_stage import TOPIC, Stage
from delivery_steps import SETTINGS, attempts, letter, published, refused, seqs, silence

from imserver import delivery, delivery_cursors
from imserver.protocol import DURABLE, HISTORY
from imserver.timeline import Cursor


@pytest.fixture
def stage() -> Stage:
    return Stage(SETTINGS)


# Where a subscription starts


async def test_a_first_subscription_starts_at_the_head_and_is_remembered(stage: Stage) -> None:
    await stage.publish(3)
    position = await stage.delivery.position("ann", "phone", TOPIC, None, None)
    assert position == (3, 3, 1, 0, False)
    await stage.publish(2)
    await stage.crash()
    position = await stage.delivery.position("ann", "phone", TOPIC, None, None)
    assert position == (3, 5, 1, 0, False)


async def test_after_sets_the_cursor_forward_and_back(stage: Stage) -> None:
    await stage.publish(9)
    for after in (7, 2):
        position = await stage.delivery.position("ann", "phone", TOPIC, after, None)
        assert position.cursor == after
        assert stage.timeline.stored("ann", "phone") == after


async def test_an_old_acknowledgement_does_not_undo_a_move_back(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 5)
    stage.core.ack(sub.number, 5)
    stage.core.report()
    await stage.step()
    await stage.delivery.position("ann", "phone", TOPIC, 1, None)
    await stage.turn(2)
    assert stage.timeline.stored("ann", "phone") == 1


async def test_a_cursor_that_was_not_put_yet_counts(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 5)
    stage.core.ack(sub.number, 4)
    stage.core.report()
    await stage.step()
    assert stage.timeline.stored("ann", "phone") == 0
    assert (await stage.delivery.position("ann", "phone", TOPIC, None, None)).cursor == 4


async def test_what_is_gone_by_retention_is_told_at_the_start_and_reported(stage: Stage) -> None:
    await stage.subscribe()
    await published(stage, 5)
    await stage.timeline.trim(TOPIC, 4)
    await stage.crash()
    position = await stage.delivery.position("ann", "phone", TOPIC, None, None)
    assert position == (0, 5, 4, 3, False)
    sub = await stage.subscribe()
    await stage.settle()
    assert seqs(sub.inbox) == [4, 5]
    assert stage.gone == [(sub.conn, TOPIC, 1, 3, "expired")]


@pytest.mark.parametrize(("after", "other_epoch"), [(99, False), (2, True), (None, True)])
async def test_another_history_starts_with_all_there_is(
    stage: Stage, after: int | None, other_epoch: bool
) -> None:
    await stage.publish(5)
    epoch = stage.timeline.epoch + 1 if other_epoch else stage.timeline.epoch
    position = await stage.delivery.position("ann", "phone", TOPIC, after, epoch)
    assert position == (0, 5, 1, 0, True)


async def test_in_another_history_the_cursor_of_the_store_still_holds(stage: Stage) -> None:
    await stage.publish(5)
    await stage.timeline.put_cursors([Cursor("ann", "phone", TOPIC, 3)])
    position = await stage.delivery.position("ann", "phone", TOPIC, 99, None)
    assert (position.cursor, position.reset) == (3, True)


async def test_a_subscription_without_acknowledgements_leaves_no_cursor(stage: Stage) -> None:
    await stage.publish(3)
    position = await stage.delivery.position("ann", "phone", TOPIC, 1, None, is_durable=False)
    assert position == (1, 3, 1, 0, False)
    sub = await stage.subscribe(window=0, after=1)
    await stage.settle()
    await silence(stage, 5)
    assert attempts(sub.inbox) == [(2, 0), (3, 0)]
    assert await stage.timeline.cursor("ann", "phone", TOPIC) is None


# Catching up


async def test_who_comes_back_gets_what_was_missed_flagged_as_history_and_then_live(
    stage: Stage,
) -> None:
    sub = await stage.subscribe()
    stage.core.end(sub.conn)
    await published(stage, 600)
    sub = await stage.subscribe(window=2_000)
    await stage.settle()
    assert seqs(sub.inbox) == list(range(1, 601))
    assert {message.flags for message in sub.inbox} == {DURABLE | HISTORY}
    await published(stage, 1)
    assert sub.inbox[-1].flags == DURABLE


async def test_a_reader_gets_no_more_than_its_window_ahead(stage: Stage) -> None:
    sub = await stage.subscribe(window=4)
    await published(stage, 20)
    assert seqs(sub.inbox) == [1, 2, 3, 4]
    for acked in range(1, 21):
        stage.core.ack(sub.number, min(acked, sub.sent))
        await stage.settle()
        assert sub.sent - sub.acked <= 4
    assert seqs(sub.inbox) == list(range(1, 21))


async def test_nobody_missed_anything_is_one_read(stage: Stage) -> None:
    await stage.publish(3)
    await stage.subscribe()
    await stage.settle()
    assert stage.timeline.reads == 1


async def test_a_page_is_bounded_in_bytes_but_a_large_message_goes_alone(stage: Stage) -> None:
    sub = await stage.subscribe()
    stage.core.end(sub.conn)
    await stage.publish(3, body=bytes(100_000))
    await stage.publish(1, body=bytes(200_000))
    sub = await stage.subscribe()
    sizes = []
    feed = stage.core.feed

    def measured(conn: int, number: int, frames: bytes, last: int, head: int) -> None:
        sizes.append(len(frames) // 100_000)
        feed(conn, number, frames, last, head)

    stage.core.feed = measured  # type: ignore[method-assign]
    await stage.settle()
    assert seqs(sub.inbox) == [1, 2, 3, 4]
    assert sizes == [1, 1, 1, 2]


async def test_damage_is_reported_and_delivery_goes_on_behind_it(stage: Stage) -> None:
    sub = await stage.subscribe()
    stage.core.end(sub.conn)
    await stage.publish(5)
    stage.timeline.damaged = {3}
    sub = await stage.subscribe()
    await stage.settle()
    assert seqs(sub.inbox) == [1, 2, 4, 5]
    assert stage.gone == [(sub.conn, TOPIC, 3, 3, "damaged")]


async def test_a_gap_wider_than_the_window_is_passed(stage: Stage) -> None:
    sub = await stage.subscribe(window=2)
    stage.core.end(sub.conn)
    await stage.publish(20)
    await stage.timeline.trim(TOPIC, 11)
    stage.timeline.damaged = set(range(12, 19))
    sub = await stage.subscribe(window=2)
    await stage.settle()
    stage.core.ack(sub.number, 11)
    await stage.settle()
    assert seqs(sub.inbox) == [11, 19, 20]
    missed = [seq for _, _, first, last, _ in stage.gone for seq in range(first, last + 1)]
    assert missed == [*range(1, 11), *range(12, 19)]


async def test_four_work_at_a_time_however_many_ask(stage: Stage) -> None:
    subs = [await stage.subscribe(f"u{number}") for number in range(50)]
    most = 0
    running = 0
    read = stage.timeline.read

    async def counted(*what: Any) -> Any:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return await read(*what)

    stage.timeline.read = counted
    await published(stage, 1)
    assert [seqs(sub.inbox) for sub in subs] == [[1]] * 50
    assert most == delivery.WORKERS == 4


# Cursors


async def test_cursors_are_put_within_a_second_in_one_batch(stage: Stage) -> None:
    subs = [await stage.subscribe(f"u{number}") for number in range(10)]
    await published(stage, 1)
    puts = []
    put = stage.timeline.put_cursors

    async def counted(cursors: Any, **options: Any) -> None:
        puts.append(len(cursors))
        await put(cursors, **options)

    stage.timeline.put_cursors = counted
    for sub in subs:
        stage.core.ack(sub.number, 1)
    await stage.turn(0.5)
    assert puts == [10]
    assert stage.timeline.stored("u7", "phone") == 1


async def test_cursors_that_the_store_refuses_wait_and_are_put_later(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 2)
    stage.core.ack(sub.number, 1)
    stage.timeline.failures = 1
    await stage.turn(0.5)
    stage.core.ack(sub.number, 2)
    await stage.turn(6)
    assert stage.timeline.stored("ann", "phone") == 2


async def test_what_waits_for_the_store_is_bounded(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_cursors, "WAITING_MAX", 3)
    stage.timeline.failures = 1_000
    cursors = delivery_cursors.Cursors(stage.timeline)
    for number in range(10):
        cursors.note(("ann", "phone", str(number)), 1)
        await refused(cursors.flush())
    assert len(cursors) == 3


async def test_a_drain_puts_all_cursors_or_says_that_it_cannot(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 1)
    stage.core.ack(sub.number, 1)
    stage.core.end(sub.conn)
    await stage.step()
    stage.timeline.failures = 1
    await refused(stage.delivery.flush())
    await stage.delivery.flush()
    assert stage.timeline.stored("ann", "phone") == 1


async def test_old_dead_letters_are_deleted_by_the_day(stage: Stage) -> None:
    await stage.timeline.put_dead([letter(stage, 1)])
    stage.timeline.days = 31
    await stage.timeline.put_dead([letter(stage, 2)])
    await stage.turn(3_500)
    assert len(await stage.timeline.dead()) == 2, "nothing is old in the first hour of a start"
    await stage.turn(200)
    assert [one.seq for one in await stage.timeline.dead()] == [2]


async def test_who_is_here_keeps_a_place_and_who_is_not_for_90_days(stage: Stage) -> None:
    timeline = stage.timeline
    await timeline.put_cursors([Cursor("bob", "phone", TOPIC, 0), Cursor("eve", "phone", TOPIC, 0)])
    await stage.subscribe()
    timeline.days = 89
    await stage.subscribe("bob")
    await stage.turn(3_700)
    timeline.days = 91
    stage.delivery.close(2)
    await stage.turn(3_700)
    assert await timeline.cursor("ann", "phone", TOPIC) == 0
    assert await timeline.cursor("bob", "phone", TOPIC) == 0
    assert await timeline.cursor("eve", "phone", TOPIC) is None
