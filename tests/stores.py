"""Messages, letters and clocks for the tests of stores; the stores are fixtures (conftest.py)."""

from itertools import pairwise
from pathlib import Path

from imserver import timeline
from imserver.protocol import decode_message, encode_message
from imserver.timeline import (
    DeadLetter,
    Timeline,
)

ROOT = Path(__file__).parent.parent


class Turned:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


def message(
    topic: str, body: str = "", *, id: int = 0, sender: str = "ann", flags: int = 0
) -> bytes:
    return encode_message(topic, sender, body.encode(), id=id, flags=flags)


def bodies(frames: bytes) -> list[str]:
    return [decode_message(one).body.decode() for one in split(frames)]


def split(frames: bytes) -> list[bytes]:
    starts = [*timeline.frame_starts(frames), len(frames)]
    return [frames[a:b] for a, b in pairwise(starts)]


def seqs(frames: bytes) -> list[int]:
    return [decode_message(one).seq for one in split(frames)]


async def fill(store: Timeline, topic: str, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        await store.append(message(topic, str(number)))


def dead(
    seq: int, *, user: str = "ann", topic: str = "room:a", reason: str = "attempts"
) -> DeadLetter:
    frame = encode_message(topic, "bob", b"!", seq=seq)
    return DeadLetter(user, "phone", topic, seq, reason, 8, 1_700_000_000_000 + seq, frame)
