"""The judge of the torture tests must see each crime, and none where there is none."""

from collections.abc import Callable
from typing import Any

import pytest
from history import History, Publish

from imserver.protocol import REDELIVERED, Message, Receipt

TOPIC = "room:1"


def message(seq: int, **changes: Any) -> Message:
    fields = {"topic": TOPIC, "sender": "ann", "body": b"%d" % seq, "id": seq, "seq": seq}
    return Message(**({"tag": ""} | fields | changes))


def honest() -> History:
    """Three messages, one of them without a receipt; bob got one of them twice, in two ways."""
    history = History({"bob": {TOPIC}, "eve": {"room:2"}})
    for number in (1, 2, 3):
        history.publish(Publish("ann", number), TOPIC, b"%d" % number)
        history.delivery("bob", 1, message(number))
    for number in (1, 3):
        history.receipt(Publish("ann", number), Receipt(number, number, 10))
    history.delivery("bob", 1, message(2, flags=REDELIVERED, attempt=1))
    history.delivery("bob", 2, message(3))
    return history


def test_a_good_run_is_called_good() -> None:
    verdict = honest().verdict()
    assert not verdict.violations
    assert (verdict.published, verdict.receipted, verdict.delivered) == (3, 2, 3)
    assert (verdict.duplicates, verdict.unknown) == (2, 1)
    assert honest().owed == 0


CRIMES: dict[str, Callable[[History], object]] = {
    "lost": lambda history: (
        history.receipts.update({Publish("ann", 4): {(4, 1)}})
        or history.publish(Publish("ann", 4), TOPIC, b"4")
    ),
    "hole": lambda history: (
        history.publish(Publish("ann", 9), TOPIC, b"9") or history.delivery("bob", 1, message(9))
    ),
    "phantom": lambda history: history.delivery("bob", 1, message(4)),
    "misdelivered": lambda history: history.delivery("eve", 1, message(1)),
    "reordered": lambda history: history.delivery("bob", 2, message(2)),
    "forked": lambda history: history.receipt(Publish("ann", 1), Receipt(1, 5, 10)),
    "dropped": lambda history: history.nack("bob", TOPIC, 3),
    "accused": lambda history: history.error(409, "it contradicts something"),
}


@pytest.mark.parametrize("crime", CRIMES)
def test_each_crime_is_seen(crime: str) -> None:
    history = honest()
    CRIMES[crime](history)
    assert crime in history.verdict().violations


def test_another_body_is_a_phantom() -> None:
    history = honest()
    history.delivery("bob", 3, message(1, body=b"other"))
    assert "phantom" in history.verdict().violations


def test_what_is_owed_is_counted() -> None:
    history = History({"bob": {TOPIC}, "eve": {TOPIC}})
    history.publish(Publish("ann", 1), TOPIC, b"1")
    assert history.owed == 0
    history.delivery("bob", 1, message(1))
    history.receipt(Publish("ann", 1), Receipt(1, 1, 10))
    assert history.owed == 1
    for _ in range(2):
        history.delivery("eve", 1, message(1))
        assert history.owed == 0


def test_a_publisher_whose_messages_change_places_is_reordered() -> None:
    history = History({"bob": {TOPIC}})
    for number, seq in ((1, 2), (2, 1)):
        history.publish(Publish("ann", number), TOPIC, b"x")
        history.receipt(Publish("ann", number), Receipt(number, seq, 10))
    for number, seq in ((2, 1), (1, 2)):
        history.delivery("bob", 1, message(seq, id=number, body=b"x"))
    assert history.verdict().violations.keys() == {"reordered"}


def test_what_was_refused_is_owed_until_it_comes_again() -> None:
    history = honest()
    history.nack("bob", TOPIC, 2)
    history.ack("bob", TOPIC, 3)
    assert history.owed == 1
    history.delivery("bob", 2, message(2, flags=REDELIVERED, attempt=2))
    assert history.owed == 0
    assert not history.verdict().violations
    assert history.verdict().forgotten == 0


def test_repeats_of_what_was_acknowledged_are_counted_apart() -> None:
    history = honest()
    history.ack("bob", TOPIC, 2)
    history.delivery("bob", 3, message(2))
    history.delivery("bob", 3, message(3))
    verdict = history.verdict()
    assert not verdict.violations
    assert (verdict.duplicates, verdict.forgotten) == (4, 1)


def test_a_failing_disk_is_an_excuse() -> None:
    history = honest()
    history.error(507, "the store has stopped")
    assert not history.verdict().violations
