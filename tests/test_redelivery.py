"""Delivery without a core: what is not acknowledged comes again, and what becomes of it.

On the stage of delivery_stage.py; the state machine over the same is test_delivery_machine.py.
"""

import asyncio
import logging
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from delivery_stage import TOPIC, Stage
from delivery_steps import SETTINGS, attempts, published, seqs, silence
from msgspec.structs import replace

from imserver.config import ConfigError
from imserver.delivery import Settings
from imserver.delivery_follower import Follower
from imserver.delivery_frames import as_history, as_redelivered
from imserver.delivery_schedule import Schedule
from imserver.protocol import DURABLE, HISTORY, REDELIVERED, decode_message, encode_message
from imserver.timeline_sqlite import SqliteTimeline


@pytest.fixture
def stage() -> Stage:
    return Stage(SETTINGS)


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
