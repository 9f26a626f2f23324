"""Delivery without a core: windows, acknowledgements, redelivery, dead letters, what is gone.

On the stage of delivery_stage.py; the state machine over the same is test_delivery_machine.py.
"""

import asyncio
import logging
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from delivery_stage import TOPIC, Stage
from msgspec.structs import replace

from imserver import delivery, delivery_cursors, delivery_follower
from imserver.config import ConfigError
from imserver.delivery import Settings
from imserver.delivery_follower import Follower
from imserver.delivery_frames import as_history, as_redelivered
from imserver.delivery_schedule import Schedule
from imserver.errors import ErrorCode, ImError
from imserver.model import Message
from imserver.protocol import DURABLE, HISTORY, REDELIVERED, decode_message, encode_message
from imserver.timeline import Cursor, DeadLetter
from imserver.timeline_sqlite import SqliteTimeline

#: Three attempts and waits of 5 to 20 s.
SETTINGS = Settings(attempts=3, backoff_max_ms=20_000)


@pytest.fixture
def stage() -> Stage:
    return Stage(SETTINGS)


async def published(stage: Stage, count: int, tag: str = "") -> None:
    stage.commit(await stage.publish(count, tag))
    await stage.settle()


def seqs(messages: list[Message]) -> list[int]:
    return [message.seq for message in messages]


def attempts(messages: list[Message]) -> list[tuple[int, int]]:
    return [(message.seq, message.attempt) for message in messages]


async def silence(stage: Stage, count: int = 1) -> None:
    """So many waits, whatever chance makes of them."""
    for _ in range(count):
        await stage.turn(20.5)


async def refused(answer: Any) -> ImError:
    with pytest.raises(ImError) as error:
        await answer
    return error.value


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


# Redelivery


async def test_what_is_not_acknowledged_comes_again_with_its_attempt(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 2)
    await stage.turn(4)
    assert attempts(sub.inbox) == [(1, 0), (2, 0)]
    await stage.turn(2)
    assert attempts(sub.inbox[2:]) == [(1, 1), (2, 1)]
    assert all(message.flags == DURABLE | REDELIVERED for message in sub.inbox[2:])


async def test_attempts_are_counted_for_each_message() -> None:
    stage = Stage(Settings(attempts=8, backoff_max_ms=20_000))
    sub = await stage.subscribe()
    for seq in range(1, 6):
        await published(stage, 1)
        await stage.turn(7)
        stage.core.ack(sub.number, seq // 3)
    await silence(stage, 2)
    for number, message in enumerate(sub.inbox):
        assert message.attempt == seqs(sub.inbox[:number]).count(message.seq)
    last = dict(attempts(sub.inbox))
    assert last[2] > last[5] > 0


async def test_a_reader_that_makes_progress_is_not_disturbed(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 20)
    for seq in range(1, 20):
        await stage.turn(4)
        stage.core.ack(sub.number, seq)
    assert seqs(sub.inbox) == list(range(1, 21))


async def test_nothing_comes_again_before_it_had_the_whole_wait(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 1)
    await stage.turn(4)
    await published(stage, 1)
    await stage.turn(2)
    assert attempts(sub.inbox) == [(1, 0), (2, 0), (1, 1)]


async def test_waits_grow_by_chance_within_their_bounds() -> None:
    stage = Stage(Settings(attempts=255, ack_wait_ms=1_000, backoff_max_ms=16_000))
    sub = await stage.subscribe()
    await published(stage, 1)
    times_s = [stage.now_s]
    while len(times_s) < 100:
        await stage.turn(0.25)
        if len(sub.inbox) > len(times_s):
            times_s.append(stage.now_s)
    waits_s = [after - before for before, after in pairwise(times_s)]
    assert waits_s[0] <= 1.75
    for number, wait_s in enumerate(waits_s):
        assert 1.0 <= wait_s <= min(16, 2**number) + 0.75
    assert max(waits_s) > 12
    assert min(waits_s[10:]) < 5


async def test_a_silent_peer_is_fed_nothing_and_no_attempt_is_counted(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 1)
    stage.core.silent.add(sub.conn)
    await silence(stage, 20)
    assert attempts(sub.inbox) == [(1, 0)]
    assert stage.delivery.counts["refusals"] > 20
    stage.core.silent.clear()
    await stage.turn(6)
    assert attempts(sub.inbox) == [(1, 0), (1, 1)]


async def test_an_order_that_is_never_answered_is_given_again(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 1)
    await stage.turn(4.5)
    stage.core.redeliver = lambda *order: None  # type: ignore[method-assign]
    await stage.turn(3)
    del stage.core.redeliver
    await stage.turn(20)
    assert attempts(sub.inbox)[:2] == [(1, 0), (1, 1)]


async def test_a_large_window_is_sent_again_in_pages(stage: Stage) -> None:
    sub = await stage.subscribe(window=2_000)
    await stage.settle()
    await published(stage, 700)
    await stage.turn(6)
    assert attempts(sub.inbox[700:]) == [(seq, 1) for seq in range(1, 701)]


async def test_an_acknowledgement_between_two_pages_ends_the_round(stage: Stage) -> None:
    sub = await stage.subscribe(window=2_000)
    await stage.settle()
    await published(stage, 700)
    await stage.turn(4.5)
    redeliver = stage.core.redeliver

    def acked(conn: int, number: int, frames: bytes) -> None:
        redeliver(conn, number, frames)
        stage.core.ack(number, 10)
        stage.core.report()

    stage.core.redeliver = acked  # type: ignore[method-assign]
    await stage.turn(1)
    del stage.core.redeliver
    assert attempts(sub.inbox[700:]) == [(seq, 1) for seq in range(1, 257)]
    count = len(sub.inbox)
    await stage.turn(12)
    again = dict(attempts(sub.inbox[count:][:690]))
    assert again == {seq: 2 if seq <= 256 else 1 for seq in range(11, 701)}


async def test_what_the_filter_keeps_back_is_neither_sent_again_nor_dead(stage: Stage) -> None:
    sub = await stage.subscribe(tags="a||b")
    for tag in ("a", "x", "b", "x"):
        await published(stage, 1, tag)
    stage.core.ack(sub.number, 1)
    await silence(stage, 5)
    assert attempts(sub.inbox) == [(1, 0), (3, 0), (3, 1), (3, 2)]
    assert list(stage.timeline.letters("ann", "phone", is_taken=False)) == [3]
    assert stage.timeline.stored("ann", "phone") == 4


# Dead letters


async def test_after_the_last_attempt_it_is_a_dead_letter_and_the_cursor_is_past_it(
    stage: Stage,
) -> None:
    sub = await stage.subscribe()
    await published(stage, 2)
    await silence(stage, 5)
    assert attempts(sub.inbox) == [(seq, n) for n in range(3) for seq in (1, 2)]
    letters = await stage.timeline.dead()
    assert [(one.seq, one.reason, one.attempts) for one in letters] == [
        (1, "unacknowledged", 3),
        (2, "unacknowledged", 3),
    ]
    assert decode_message(letters[0].frame).attempt == 0
    assert stage.timeline.stored("ann", "phone") == 2
    assert sub.acked == 2
    assert stage.delivery.counts["dead.unacknowledged"] == 2
    await published(stage, 1)
    assert seqs(sub.inbox)[-1] == 3


async def test_a_later_message_keeps_its_attempts_when_an_earlier_one_dies(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 1)
    await silence(stage)
    await published(stage, 1)
    await silence(stage, 8)
    assert [n for seq, n in attempts(sub.inbox) if seq == 1] == [0, 1, 2]
    assert [n for seq, n in attempts(sub.inbox) if seq == 2] == [0, 1, 2]


async def test_one_attempt_is_one_delivery() -> None:
    stage = Stage(Settings(attempts=1))
    sub = await stage.subscribe()
    await published(stage, 1)
    await stage.turn(4)
    await published(stage, 1)
    await stage.turn(2)
    assert seqs(sub.inbox) == [1, 2]
    assert list(stage.timeline.letters("ann", "phone", is_taken=False)) == [1]
    await stage.turn(6)
    assert list(stage.timeline.letters("ann", "phone", is_taken=False)) == [1, 2]


async def test_a_store_that_refuses_dead_letters_moves_no_cursor(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "imserver.delivery")
    sub = await stage.subscribe()
    await published(stage, 1)
    await stage.turn(60)
    stage.timeline._dead.clear()
    stage = Stage(SETTINGS)
    sub = await stage.subscribe()
    await published(stage, 1)
    while stage.delivery.followers(TOPIC)[0].times_sent < 3:
        await stage.turn(1)
    stage.timeline.failures = 1_000_000
    await silence(stage, 10)
    assert stage.timeline.stored("ann", "phone") == sub.acked == 0
    assert await stage.timeline.dead() == []
    stage.timeline.failures = 0
    await silence(stage, 4)
    assert [one.seq for one in await stage.timeline.dead()] == [1]
    assert sub.acked == 1
    said = [record.levelname for record in caplog.records]
    assert said == ["ERROR", "INFO"]


async def test_what_retention_takes_before_it_is_acknowledged_is_reported(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 5)
    await stage.timeline.trim(TOPIC, 4)
    await silence(stage)
    assert stage.gone == [(sub.conn, TOPIC, 1, 3, "expired")]
    assert set(seqs(sub.inbox[5:])) == {4, 5}
    assert sub.acked >= 3


async def test_what_is_damaged_before_it_is_acknowledged_is_reported(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 2)
    stage.timeline.damaged = {1, 2}
    await silence(stage)
    assert stage.gone == [(sub.conn, TOPIC, seq, seq, "damaged") for seq in (1, 2)]
    assert sub.acked == 2


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


def letter(stage: Stage, seq: int) -> DeadLetter:
    frame = encode_message(TOPIC, "bob", b"", seq=seq)
    return DeadLetter("ann", "phone", TOPIC, seq, "unacknowledged", 3, 1_700_000_000_000, frame)


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


# Ends


async def test_the_same_device_again_takes_the_subscription_over(stage: Stage) -> None:
    old = await stage.subscribe()
    await published(stage, 1)
    new = await stage.subscribe()
    await stage.settle()
    await silence(stage)
    assert len(old.inbox) == 1
    assert attempts(new.inbox)[:2] == [(1, 0), (1, 1)]
    assert [state.number for state in stage.delivery.followers(TOPIC)] == [new.number]
    stage.core.end(old.conn)
    await stage.settle()
    assert len(stage.delivery) == 1


async def test_nothing_is_kept_of_who_has_gone(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 2)
    await stage.delivery.on_nack(sub.number, 2)
    await stage.turn(4.5)
    stage.core.end(sub.conn)
    await silence(stage, 3)
    inner = stage.delivery
    assert len(inner) == 0
    for table in (inner._by_conn, inner._by_key, inner._queue, inner._retries, inner._failing):
        assert len(table) == 0
    for schedule in (inner._redelivery.deadlines, inner._asides.schedule, inner._means.flights):
        assert len(schedule) == 0


async def test_stopping_ends_what_is_being_done(stage: Stage) -> None:
    await stage.subscribe()
    read = asyncio.Event()
    stage.timeline.read = lambda *what: read.wait()
    await stage.step()
    await stage.step()
    await stage.delivery.stop()
    await asyncio.sleep(0)
    assert not stage.delivery.is_busy
    stage.delivery.tick()
    assert not stage.delivery.is_busy


async def test_people_can_see_how_far_a_follower_is(stage: Stage) -> None:
    sub = await stage.subscribe()
    await published(stage, 4)
    await stage.delivery.on_nack(sub.number, 3)
    stage.core.ack(sub.number, 1)
    await stage.turn(1)
    (state,) = stage.delivery.followers(TOPIC)
    assert state[:8] == (sub.number, sub.conn, "ann", "phone", True, 1, 4, 1)
    assert state.due_in_s is not None
    assert 0 < state.due_in_s <= 5
    assert state.asides == (3,)
    assert stage.delivery.followers("room:b") == []


async def test_all_of_it_on_a_disk(tmp_path: Path) -> None:
    timeline = await SqliteTimeline.open(tmp_path / "data")
    stage = Stage(SETTINGS, timeline=timeline)
    sub = await stage.subscribe()
    await published(stage, 4)
    await stage.delivery.on_nack(sub.number, 2)
    stage.core.ack(sub.number, 3)
    for _ in range(8):
        for _ in range(40):
            stage.now_s += 0.5
            stage.core.report()
            await stage.step()
            stage.delivery.tick()
        while stage.delivery.is_busy or stage.core.orders or stage.core.events:
            await stage.step()
            await asyncio.sleep(0.001)
    letters = await timeline.dead()
    assert {(one.seq, one.reason, one.attempts, one.is_taken) for one in letters} == {
        (2, "nack", 3, False),
        (4, "unacknowledged", 3, False),
    }
    assert await timeline.cursor("ann", "phone", TOPIC) == 4
    assert await stage.delivery.redrive([one.id for one in letters]) == 2
    assert len(await timeline.aside("ann", "phone", TOPIC)) == 2
    await stage.delivery.stop()
    await timeline.close()


# The parts


def follower(attempts: int = 3) -> Follower:
    names = ("ann", "phone", TOPIC)
    return Follower(1, 1, names, cursor=0, is_acked=True, tags="*", attempts=attempts)


def test_rounds_tell_how_often_each_message_was_sent() -> None:
    """Against a count for each message."""
    rng = Random(3)
    for attempts_max in (1, 2, 3, 8):
        one = follower(attempts_max)
        counts: dict[int, int] = {}
        for _ in range(500):
            sent = one.sent + rng.randrange(4)
            counts.update(dict.fromkeys(range(one.sent + 1, sent + 1), 1))
            if rng.random() < 0.3:
                one.move(rng.randint(one.acked, sent), sent)
            one.move(one.acked, sent)
            one.armed = sent
            one.move(max(one.acked, one.used_up), sent)
            if one.armed > one.acked:
                one.round_at = rng.randint(one.acked, one.armed)
                for seq in range(one.acked + 1, one.round_at + 1):
                    counts[seq] += 1
            for seq in range(one.acked + 1, one.sent + 1):
                assert one.times_sent(seq) == counts[seq] <= attempts_max
            one.end_round()
            for seq in range(one.acked + 1, one.sent + 1):
                assert one.times_sent(seq) == counts[seq]
                assert (seq <= one.used_up) == (counts[seq] == attempts_max)
            assert len(one.rounds) < max(2, attempts_max)


def test_a_schedule_gives_what_is_due_once_and_stays_small() -> None:
    schedule: Schedule[int] = Schedule()
    for round in range(1_000):
        for key in range(10):
            schedule.set(key, round + key / 10)
    assert len(schedule._heap) <= 2 * 10 + 65
    schedule.drop(3)
    assert schedule.due(999.55) == [0, 1, 2, 4, 5]
    assert schedule.due(999.55) == []
    assert 5 not in schedule
    assert schedule.when(6) == 999.6


def test_frames_are_patched_and_nothing_else() -> None:
    one = encode_message("room:ü", "ann", b"\x04" * 9, tag="t", seq=7, flags=DURABLE)
    (history,) = [decode_message(as_history(one))]
    assert history == replace(decode_message(one), flags=DURABLE | HISTORY)
    again = decode_message(as_redelivered([(7, one)], lambda seq: seq))
    assert again == replace(decode_message(one), flags=DURABLE | REDELIVERED, attempt=7)


def test_a_wait_longer_than_its_bound_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"delivery\.ack_wait_ms"):
        Settings(ack_wait_ms=10, backoff_max_ms=9)
