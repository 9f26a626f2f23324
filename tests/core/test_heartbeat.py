"""The sweep beside arithmetic on silences (heartbeat.h: H2), across the wrap of the clock."""

from dataclasses import dataclass

import pytest
from door import NONE, PROPERTY, ffi, lib
from hypothesis import example, given
from hypothesis import strategies as st

WRAP = 2**32
HANDSHAKE, LIVE, CLOSING = lib.IM_WATCH_HANDSHAKE, lib.IM_WATCH_LIVE, lib.IM_WATCH_CLOSING
ASK, DEAD, REVIVED = lib.IM_PULSE_ASK, lib.IM_PULSE_DEAD, lib.IM_PULSE_REVIVED
OVER = {HANDSHAKE: lib.IM_PULSE_HANDSHAKE_OVER, CLOSING: lib.IM_PULSE_CLOSING_OVER}


@dataclass(frozen=True)
class Durations:
    handshake_ms: int = 5000
    interval_ms: int = 30_000
    timeout_ms: int = 10_000
    closing_ms: int = 1000
    max_missed: int = 3


class Heartbeat:
    def __init__(self, slots: int, durations: Durations) -> None:
        self.it = ffi.new("struct im_heartbeat *")
        assert lib.im_heartbeat_init(self.it, slots) == lib.IM_OK
        for name, value in vars(durations).items():
            setattr(self.it, name, value)

    def watch(self, slot: int, watch: int, now_ms: int) -> None:
        lib.im_heartbeat_watch(self.it, slot, watch, now_ms % WRAP)

    def seen(self, slot: int, now_ms: int) -> None:
        lib.im_heartbeat_seen(self.it, slot, now_ms % WRAP)

    def sweep(self, now_ms: int) -> list[tuple[int, int]]:
        at, pulse = ffi.new("uint32_t *"), ffi.new("enum im_pulse *")
        news = []
        while (slot := lib.im_heartbeat_sweep(self.it, at, now_ms % WRAP, pulse)) != NONE:
            news.append((slot, pulse[0]))
        return news

    def free(self) -> None:
        lib.im_heartbeat_free(self.it)


class Silence:
    """One connection as the rule describes it, with a clock that does not wrap."""

    def __init__(self, durations: Durations, watch: int, now_ms: int) -> None:
        self.durations, self.watch, self.seen_ms = durations, watch, now_ms
        self.missed = 0

    def due(self, now_ms: int) -> int | None:
        """What a sweep at that time has to report: nothing early, nothing left for later."""
        silent_ms, wanted = now_ms - self.seen_ms, self.durations
        if self.watch != LIVE:
            limit = wanted.handshake_ms if self.watch == HANDSHAKE else wanted.closing_ms
            return OVER[self.watch] if silent_ms >= limit else None
        missed = 0
        if silent_ms >= wanted.interval_ms:
            missed = 1 + (silent_ms - wanted.interval_ms) // wanted.timeout_ms
        if missed > self.missed + 1:  # it was the sweep that slept: one miss at a time
            missed = self.missed + 1
            self.seen_ms = now_ms - wanted.interval_ms - (missed - 1) * wanted.timeout_ms
        if missed > wanted.max_missed:
            return DEAD
        before, self.missed = self.missed, missed
        if missed > before:
            return ASK
        return REVIVED if before and not missed else None


DURATIONS = st.builds(
    Durations,
    handshake_ms=st.integers(1, 400),
    interval_ms=st.integers(1, 400),
    timeout_ms=st.integers(1, 200),
    closing_ms=st.integers(1, 400),
    max_missed=st.integers(0, 4),
)


@PROPERTY
@given(
    DURATIONS,
    st.integers(0, 2000).map(lambda before: WRAP - before),
    st.lists(st.sampled_from([HANDSHAKE, LIVE, LIVE, LIVE, CLOSING]), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(1, 60), st.sets(st.integers(0, 7))), max_size=60),
)
@example(Durations(50, 50, 20, 50, 2), WRAP - 60, [LIVE, LIVE], [(10, {0})] * 20)
def test_silences_are_reported_when_due_and_once(durations, start_ms, watches, ticks) -> None:
    heartbeat = Heartbeat(8, durations)
    silences = {}
    for slot, watch in enumerate(watches):
        heartbeat.watch(slot, watch, start_ms)
        silences[slot] = Silence(durations, watch, start_ms)
    now_ms = start_ms
    for step_ms, heard in ticks:
        now_ms += step_ms
        for slot in heard & silences.keys():
            if silences[slot].watch == LIVE:
                heartbeat.seen(slot, now_ms)
                silences[slot].seen_ms = now_ms
        due = [(slot, silence.due(now_ms)) for slot, silence in silences.items()]
        assert heartbeat.sweep(now_ms) == [(slot, pulse) for slot, pulse in due if pulse]
    heartbeat.free()


@pytest.mark.parametrize("start_ms", [1000, WRAP - 100, WRAP - 30_001, WRAP - 59_999, WRAP])
def test_a_silent_peer_is_asked_three_times_and_then_given_up(start_ms) -> None:
    heartbeat = Heartbeat(4, Durations())
    heartbeat.watch(2, LIVE, start_ms)
    tick_ms = lib.im_heartbeat_tick_ms(heartbeat.it)
    reports = []
    for silent_ms in range(0, 61_000, tick_ms):
        reports += [(silent_ms, pulse) for _, pulse in heartbeat.sweep(start_ms + silent_ms)]
        if reports and reports[-1][1] == DEAD:
            break
    assert [pulse for _, pulse in reports] == [ASK, ASK, ASK, DEAD]
    for (at_ms, _), due_ms in zip(reports, (30_000, 40_000, 50_000, 60_000), strict=True):
        assert due_ms <= at_ms < due_ms + tick_ms
    heartbeat.free()


@pytest.mark.parametrize(("watch", "due_ms"), [(HANDSHAKE, 5000), (LIVE, 30_000), (CLOSING, 1000)])
@pytest.mark.parametrize("start_ms", [0, WRAP - 1, WRAP - 900, WRAP - 4999])
def test_nothing_is_reported_a_millisecond_early(watch, due_ms, start_ms) -> None:
    heartbeat = Heartbeat(1, Durations())
    heartbeat.watch(0, watch, start_ms)
    assert heartbeat.sweep(start_ms + due_ms - 1) == []
    assert heartbeat.sweep(start_ms + due_ms) == [(0, OVER.get(watch, ASK))]
    heartbeat.free()


def test_a_frame_is_a_sign_of_life_and_revives_a_suspect() -> None:
    heartbeat = Heartbeat(1, Durations())
    heartbeat.watch(0, LIVE, 0)
    assert heartbeat.sweep(30_000) == [(0, ASK)]
    heartbeat.seen(0, 30_500)
    assert heartbeat.sweep(30_600) == [(0, REVIVED)]
    assert heartbeat.sweep(30_700) == []
    assert heartbeat.sweep(60_499) == []
    assert heartbeat.sweep(60_500) == [(0, ASK)]
    heartbeat.free()


def test_after_a_long_sleep_of_our_own_everybody_is_asked_before_they_are_given_up() -> None:
    heartbeat = Heartbeat(2, Durations())
    heartbeat.watch(0, LIVE, 0)
    heartbeat.watch(1, LIVE, 0)
    woken_ms = 900_000
    assert heartbeat.sweep(woken_ms) == [(0, ASK), (1, ASK)]
    heartbeat.seen(1, woken_ms + 1)
    assert heartbeat.sweep(woken_ms + 2) == [(1, REVIVED)]
    reports = []
    for late_ms in range(250, 30_001, 250):
        reports += [(late_ms, pulse) for _, pulse in heartbeat.sweep(woken_ms + late_ms)]
    assert reports == [(10_000, ASK), (20_000, ASK), (30_000, DEAD)]
    heartbeat.free()


def test_who_is_not_watched_is_not_reported() -> None:
    heartbeat = Heartbeat(3, Durations())
    for slot in range(3):
        heartbeat.watch(slot, LIVE, 0)
    heartbeat.watch(1, lib.IM_WATCH_NONE, 0)
    assert heartbeat.sweep(30_000) == [(0, ASK), (2, ASK)]
    heartbeat.free()


@given(DURATIONS)
@PROPERTY
def test_a_tick_is_short_beside_the_shortest_duration(durations) -> None:
    heartbeat = Heartbeat(1, durations)
    tick_ms = lib.im_heartbeat_tick_ms(heartbeat.it)
    shortest = min(durations.handshake_ms, durations.interval_ms, durations.timeout_ms)
    assert 5 <= tick_ms <= 250
    assert tick_ms <= max(5, shortest // 8)
    heartbeat.free()
