"""MESSAGE frames out of the store, made ready to be sent again.

What the store keeps is what goes out, but for two bytes: flags, and the attempt of a redelivery.
They are patched in a copy; nothing is decoded.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from imserver.protocol import HISTORY, MESSAGE_LEN, REDELIVERED
from imserver.timeline import frame_starts

_FLAGS_AT: Final = 5
_SEQ_AT: Final = 8
_TOPIC_LEN_AT: Final = 32
_TAG_LEN_AT: Final = 33
_ATTEMPT_AT: Final = 35


def split(frames: bytes) -> Iterator[tuple[int, bytes]]:
    """Each frame, with its seq."""
    for at in frame_starts(frames):
        frame = frames[at : at + 4 + int.from_bytes(frames[at : at + 4])]
        yield int.from_bytes(frame[_SEQ_AT : _SEQ_AT + 8]), frame


def tag_of(frame: bytes) -> str:
    start = MESSAGE_LEN + frame[_TOPIC_LEN_AT]
    return frame[start : start + frame[_TAG_LEN_AT]].decode(errors="replace")


def as_history(frames: bytes) -> bytes:
    """The same frames with the HISTORY flag."""
    patched = bytearray(frames)
    for at in frame_starts(frames):
        patched[at + _FLAGS_AT] |= HISTORY
    return bytes(patched)


def as_redelivered(
    frames: Iterable[tuple[int, bytes]], attempt_of: Callable[[int], int], apart_upto: int = 0
) -> bytes:
    """Frames with their seqs, flagged REDELIVERED, each with the number of times it was sent
    before. Those up to `apart_upto` also HISTORY: each is to be acknowledged by itself."""
    patched = bytearray()
    for seq, frame in frames:
        at = len(patched)
        patched += frame
        patched[at + _FLAGS_AT] |= REDELIVERED | (HISTORY if seq <= apart_upto else 0)
        patched[at + _ATTEMPT_AT] = min(attempt_of(seq), 255)
    return bytes(patched)
