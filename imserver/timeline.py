"""The port of the store: the durable log of each topic, and who has read how far.

A topic's timeline is its MESSAGE frames, numbered 1, 2, 3, ... without holes. What is appended
is kept before anybody hears of it: the future of `append()` resolves after the flush, never
before, and then the frames are the very bytes that subscribers and history get.

    T1  seq is dense in each topic, and fixed together with the append.
    T2  what a future resolved with survives the process and, where the adapter has a disk, the
        power.
    T3  a cursor only moves forward, unless `back` says otherwise.
    T4  what cannot be read is told as a gap, never left out.
    T5  a store that failed to write does nothing more: everything is refused with 507.

Adapters: `timeline_sqlite` on a disk, `timeline_memory` for tests. tests/test_timeline.py and
test_timeline_readers.py are the one suite for all of them. Not here: who may read what (routing),
windows and redelivery.
"""

import time
from asyncio import Future
from collections.abc import Callable, Collection, Iterable
from typing import Final, NamedTuple, Protocol

from imserver.errors import ErrorCode, ImError

#: How long a publish that is repeated with RETRY is recognised.
DEDUPE_MS: Final = 600_000
#: How many publishes are remembered for it, in 66 MB. More within the window: the oldest go.
DEDUPE_MAX: Final = 1_048_576
#: Bytes of appends that wait for the disk; more are refused.
WAITING_MAX_BYTES: Final = 33_554_432

#: A page of a timeline ends at whichever comes first; one frame is always in it.
PAGE_FRAMES: Final = 256
PAGE_BYTES: Final = 1_048_576

#: Members of one topic. Each costs 60 bytes on the disk, and a session that is subscribed.
MEMBERS_MAX: Final = 100_000
#: Topics that one user is a member of; all are subscribed to at each login.
MEMBERSHIPS_MAX: Final = 1_024


class Clock:
    """The time of day, for people; and for what is old the time of the store. That goes on from
    `time_ms`, where it was left (a new store: 0), and passes while a server has the store open: a
    clock that is set, or wrong when a server starts, changes the times shown and nothing else.
    What is kept for 30 days is kept for 30 days of service."""

    def __init__(
        self,
        time_ms: int = 0,
        *,
        wall_s: Callable[[], float] = time.time,
        steady_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall_s, self._steady_s = wall_s, steady_s
        self._start_ms = (time_ms or self.wall_ms()) - int(steady_s() * 1000)

    def wall_ms(self) -> int:
        return max(0, int(self._wall_s() * 1000))

    def store_ms(self) -> int:
        return self._start_ms + int(self._steady_s() * 1000)


class StoreError(Exception):
    """The store cannot be opened, or cannot do what an operator asks. The message names the
    directory and says what to do."""


class StoreInUse(StoreError):
    """Another process has the store open."""


class Appended(NamedTuple):
    """What became of the frames of one append.

    `frames` are they, in their order, with seq and time filled in, DURABLE set and RETRY
    cleared. `repeated` are the numbers (from 0) of those that were kept before: their seq and
    time are the first ones, they go to nobody again. `refused` are those whose id stands for
    other content (409): they have seq 0 and are not kept.
    """

    frames: bytes
    messages: int
    repeated: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()


class Gap(NamedTuple):
    """Messages that were kept and cannot be read: `first` to `last`, inclusive."""

    first: int
    last: int
    reason: str


class Page(NamedTuple):
    """Part of a timeline: everything from `first` to `last`, as whole frames in their order, but
    for the `gaps`. Empty when `last < first`. Messages between what was asked for and `first`
    are gone by retention."""

    first: int
    last: int
    frames: bytes
    messages: int
    gaps: tuple[Gap, ...] = ()


class Extent(NamedTuple):
    """What a topic keeps: `first` to `head`, nothing when `first > head`. A topic that never
    was has first 1 and head 0."""

    topic: str
    first: int
    head: int


class Cursor(NamedTuple):
    """Up to `seq`, this device has acknowledged."""

    user: str
    device: str
    topic: str
    seq: int


class Member(NamedTuple):
    """A user of a topic that has members; what came up to `since_seq` was before their time."""

    user: str
    since_seq: int


class Mark(NamedTuple):
    """What a user has read of a topic, on whichever device: everything up to `seq`, 0 when
    nothing was ever said of it. `since_seq` is the member's, 0 for who is none."""

    seq: int
    since_seq: int
    first: int
    head: int

    @property
    def unread(self) -> int:
        """What is kept, came in the user's time and was not read."""
        return max(0, self.head - max(self.seq, self.since_seq, self.first - 1))


class DeadLetter(NamedTuple):
    """A message that one subscriber did not get in all its attempts.

    `is_taken` while it is on its way once more (`take_dead`), or set aside before its attempts
    have been used up. `id` is the store's number for it, 0 before there is one; there is one
    letter for each (user, device, topic, seq).
    """

    user: str
    device: str
    topic: str
    seq: int
    reason: str
    attempts: int
    time_ms: int
    frame: bytes
    id: int = 0
    is_taken: bool = False


class Timeline(Protocol):
    """The store of one server. All of it is called from one event loop."""

    @property
    def epoch(self) -> int:
        """A random number of the store. Another one means that history was lost: cursors and
        seqs from before it mean nothing now."""

    @property
    def failure(self) -> str:
        """Why the store has stopped for good; empty while it works."""

    # Timelines

    def append(self, frames: bytes, device: str = "") -> "Future[Appended]":
        """Keep whole MESSAGE frames, any number of them for any topics, published from one
        device. ImError 503 when too much waits already (see `room`), 507 when the store has
        stopped; the future may end with 507 too, and with 400 when they are no frames.

        A frame with RETRY and an id other than 0 is looked for among the publishes of (sender,
        device, id) in the last 10 minutes, restarts included; see `Appended`.
        """

    async def room(self) -> None:
        """Returns when `append` would not answer 503; ImError 507 when that will never be."""

    async def extent(self, topic: str) -> Extent: ...

    async def topics(self, after: str = "", limit: int = 100) -> list[Extent]:
        """In the order of their names (as bytes), those behind `after`."""

    async def read(
        self, topic: str, after: int = 0, limit: int = PAGE_FRAMES, max_bytes: int = PAGE_BYTES
    ) -> Page:
        """The messages that follow `after`, oldest first."""

    async def read_back(
        self, topic: str, before: int, limit: int = PAGE_FRAMES, max_bytes: int = PAGE_BYTES
    ) -> Page:
        """The last messages before `before`, also oldest first."""

    async def trim(self, topic: str, before: int) -> int:
        """Forget what stands before `before`; the number of messages forgotten."""

    async def retain(self, topic: str, *, max_age_ms: int = 0, max_count: int = 0) -> int:
        """Forget what is older, and all but the newest `max_count`; 0 for no limit. Age is
        judged by whole commits and may keep a little more. The number of messages forgotten."""

    # Members and read marks

    async def join(
        self, topic: str, users: Collection[str], *, since_seq: int | None = None
    ) -> list[str]:
        """Make users members of a topic, of all that is behind `since_seq`, by default its head;
        those who were none before. All or none of them: ImError 442 when the topic or one of
        them would be past MEMBERS_MAX or MEMBERSHIPS_MAX."""

    async def leave(self, topic: str, users: Collection[str]) -> list[str]:
        """Those who were members until now. Marks and cursors stay."""

    async def members(self, topic: str, after: str = "", limit: int = 1_000) -> list[Member]:
        """In the order of their names, those behind `after`."""

    async def memberships(self, user: str) -> list[str]:
        """The topics that a user is a member of, in the order of their names."""

    async def mark_read(self, user: str, topic: str, seq: int) -> int:
        """Say that a user has read everything up to `seq`; what stands now: it only moves
        forward, and never beyond the head."""

    async def marks(self, user: str, topics: Collection[str]) -> dict[str, Mark]:
        """For each of these topics, whether or not there are such."""

    # Cursors

    async def cursor(self, user: str, device: str, topic: str) -> int | None:
        """None when this device has none there."""

    async def cursors(self, user: str) -> list[Cursor]:
        """All of a user, by device and topic."""

    async def cursors_of(
        self, topic: str, after: tuple[str, str] = ("", ""), limit: int = 1_000
    ) -> list[Cursor]:
        """All of a topic by user and device, those behind the (user, device) `after`."""

    async def put_cursors(self, cursors: Collection[Cursor], *, back: bool = False) -> None:
        """Move cursors forward; one that stands further ahead stays, unless `back`."""

    async def expire_cursors(self, max_age_ms: int) -> int:
        """Forget cursors that were not put for so long; how many there were. What was set aside
        for them becomes a dead letter."""

    # Dead letters

    async def put_dead(
        self, letters: Collection[DeadLetter], cursors: Collection[Cursor] = ()
    ) -> list[int]:
        """Keep dead letters, taken or not, and move cursors past them, both or neither; their
        ids. One there was before is replaced, and keeps its id."""

    async def dead(
        self, *, topic: str = "", user: str = "", after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        """Dead letters by their ids, those behind `after`; of one topic or user, where given."""

    async def dead_of(
        self, topic: str, seq: int, after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        """The letters of one message by their ids, taken or not, those behind `after`."""

    async def take_dead(self, ids: Iterable[int]) -> list[DeadLetter]:
        """Mark letters as under way again, their attempts counted from 0, and return them,
        without those that are already. They stay in the store until `drop_dead` (delivered) or
        `put_dead` (failed again)."""

    async def aside(
        self, user: str, device: str, topic: str, after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        """The taken letters of one subscriber by their ids, those behind `after`."""

    async def drop_dead(self, ids: Iterable[int]) -> int:
        """Delete letters; how many there were."""

    async def expire_dead(self, max_age_ms: int) -> int:
        """Delete letters that were put longer ago than that, but no taken ones; how many there
        were."""

    async def dead_counts(self, *, taken: bool = False) -> dict[str, int]:
        """How many letters there are by reason, with the taken ones only if `taken`."""

    async def close(self) -> None:
        """Write what was accepted, then end. Twice is once."""


def stopped(failure: str) -> ImError:
    """T5: what everybody hears from a store that has failed."""
    return ImError(ErrorCode.NOT_DURABLE, f"the store has stopped: {failure}")


def too_many(users: Iterable[str]) -> ImError:
    """Why nobody joined: these are members of too much, or nobody is and the topic is full."""
    names = sorted(users)[:10]
    if not names:
        text = f"a topic has at most {MEMBERS_MAX} members"
    else:
        text = f"at most {MEMBERSHIPS_MAX} memberships, which {', '.join(names)} would exceed"
    return ImError(ErrorCode.TOO_MANY_SUBSCRIPTIONS, text)


def is_full(waiting_bytes: int) -> bool:
    """Whether an append has to be refused. The last one accepted may go over the bound."""
    return waiting_bytes >= WAITING_MAX_BYTES


def full() -> ImError:
    return ImError(ErrorCode.OVERLOADED, "the disk is slower than the traffic", 100)


def cut(frames: bytes, limit: int, max_bytes: int) -> tuple[int, int]:
    """How many frames from the start fit, and their bytes. At least one, if there is one."""
    at = count = 0
    while at < len(frames) and count < limit:
        end = at + 4 + int.from_bytes(frames[at : at + 4])
        if count and end > max_bytes:
            break
        at, count = end, count + 1
    return count, at


def cut_back(frames: bytes, limit: int, max_bytes: int) -> tuple[int, int]:
    """How many frames up to the end fit, and where they start."""
    starts = list(frame_starts(frames))
    count, start = 0, len(frames)
    for at in reversed(starts):
        if count == limit or (count and len(frames) - at > max_bytes):
            break
        count, start = count + 1, at
    return count, start


def frame_starts(frames: bytes) -> Iterable[int]:
    """Where each of these whole frames begins."""
    at = 0
    while at < len(frames):
        yield at
        at += 4 + int.from_bytes(frames[at : at + 4])
