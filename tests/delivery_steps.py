"""What tests of delivery say and see on the stage, in a few words."""

from typing import Any

import pytest
from delivery_stage import TOPIC, Stage

from imserver.delivery import Settings
from imserver.errors import ImError
from imserver.model import Message
from imserver.protocol import encode_message
from imserver.timeline import DeadLetter

#: Three attempts and waits of 5 to 20 s.
SETTINGS = Settings(attempts=3, backoff_max_ms=20_000)


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


def letter(stage: Stage, seq: int) -> DeadLetter:
    frame = encode_message(TOPIC, "bob", b"", seq=seq)
    return DeadLetter("ann", "phone", TOPIC, seq, "unacknowledged", 3, 1_700_000_000_000, frame)
