"""The machine of delivery_machine.py: nothing wrong is found in delivery, and in one that is wrong
on purpose it is.
"""

from typing import Any

import pytest
from delivery_machine import DeliveryMachine
from delivery_stage import FaultyTimeline
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    run_state_machine_as_test,
)

from imserver.delivery_asides import Asides
from imserver.delivery_follower import Aside, Follower
from imserver.delivery_redelivery import Redelivery

MACHINE = settings(
    deadline=None,
    max_examples=150,
    stateful_step_count=50,
    suppress_health_check=list(HealthCheck),
)
TestDelivery = DeliveryMachine.TestCase
TestDelivery.settings = MACHINE


# Delivery that is wrong on purpose: the machine must find each of these.

#: The same search every time, and no time spent on a nicer counterexample.
SEARCH = settings(
    MACHINE,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    max_examples=400,
    report_multiple_bugs=False,
)


def cursor_before_the_letter(patch: pytest.MonkeyPatch) -> None:
    bury = Redelivery._bury

    async def early(self: Any, follower: Follower, used_up: int) -> None:
        await self._means.timeline.put_cursors([follower.cursor(used_up)])
        await bury(self, follower, used_up)

    patch.setattr(Redelivery, "_bury", early)


def letter_before_the_cursor(patch: pytest.MonkeyPatch) -> None:
    put_dead = FaultyTimeline.put_dead

    async def apart(self: Any, letters: Any, cursors: Any = ()) -> list[int]:
        ids = await put_dead(self, letters)
        await self.put_cursors(cursors)
        return ids

    patch.setattr(FaultyTimeline, "put_dead", apart)


def nack_that_is_not_kept(patch: pytest.MonkeyPatch) -> None:
    async def remember(self: Any, follower: Follower, seq: int, frame: bytes) -> None:
        follower.asides[seq] = Aside(0, follower.times_sent(seq), "nack")
        self._plan(follower, seq, 5.0)

    patch.setattr(Asides, "_set_aside", remember)


def rounds_that_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Follower, "end_round", lambda self: setattr(self, "round_at", 0))


def refusals_that_are_counted(patch: pytest.MonkeyPatch) -> None:
    answered = Redelivery.answered
    patch.setattr(
        Redelivery, "answered", lambda self, one, flight, sent: answered(self, one, flight, True)
    )


def one_attempt_too_many(patch: pytest.MonkeyPatch) -> None:
    used_up = Follower.used_up.fget
    assert used_up is not None

    def late(self: Follower) -> int:
        self.attempts += 1
        try:
            return int(used_up(self))
        finally:
            self.attempts -= 1

    patch.setattr(Follower, "used_up", property(late))


def gaps_that_are_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Redelivery, "_report_gone", lambda *what: None)


def cursor_one_too_far(patch: pytest.MonkeyPatch) -> None:
    beyond = Follower.beyond_asides

    def further(self: Follower, acked: int) -> int:
        end = beyond(self, acked)
        return end + 1 if acked < end < self.sent else end

    patch.setattr(Follower, "beyond_asides", further)


def rows_that_are_not_loaded(patch: pytest.MonkeyPatch) -> None:
    """Rows set aside are not known after a restart."""

    async def load(self: Any, follower: Follower) -> None:
        follower.has_more_asides = False

    patch.setattr(Asides, "load", load)


@pytest.mark.parametrize(
    "mistake",
    [
        cursor_before_the_letter,
        letter_before_the_cursor,
        nack_that_is_not_kept,
        rounds_that_are_not_counted,
        refusals_that_are_counted,
        one_attempt_too_many,
        gaps_that_are_left_out,
        cursor_one_too_far,
        rows_that_are_not_loaded,
    ],
    ids=lambda mistake: mistake.__name__,
)
def test_the_machine_finds_the_mistake(mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(DeliveryMachine, settings=SEARCH)
