"""What an operator may ask of a store and order done to it, whether or not its server runs.

The same functions answer on a running server's control socket and over a store that a command
has opened itself. Their results are plain values, and bounded: what may be long comes in pages,
and `after` of one is where the next begins, none at the end.

Not here: the socket (control), and words for people (cli).
"""

from collections.abc import Awaitable, Callable, Iterable
from itertools import pairwise
from typing import Annotated, Any, Final

from msgspec import Meta

from imserver.control import Methods
from imserver.errors import ErrorCode, ImError
from imserver.operations_why import Follower, find, plain, why
from imserver.protocol import decode_message
from imserver.timeline import DeadLetter, Page, Timeline, frame_starts

#: Dead letters in one step: each has a frame of up to 64 KiB.
LETTERS_MAX: Final = 100

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Limit = Annotated[int, Meta(ge=1, le=1_000)]

#: Sends dead letters once more; how many there were.
Redrive = Callable[[list[int]], Awaitable[int]]


#: Those of a topic.
Followers = Callable[[str], Iterable[Follower]]


class Operations:
    """Over one store. A server that runs gives its own `redrive` and `followers`; without one,
    letters wait for the device to subscribe again, and nobody reads."""

    def __init__(
        self,
        timeline: Timeline,
        *,
        redrive: Redrive | None = None,
        followers: Followers | None = None,
    ) -> None:
        self._timeline = timeline
        self._send_again = redrive or self._take
        self._followers = followers or (lambda topic: ())

    @property
    def methods(self) -> Methods:
        return {
            "topic.list": self.topics,
            "topic.extent": self.extent,
            "topic.history": self.history,
            "topic.members": self.members,
            "topic.trim": self.trim,
            "dlq.list": self.dead,
            "dlq.show": self.letter,
            "dlq.redrive": self.redrive,
            "dlq.purge": self.purge,
            "dlq.counts": self.dead_counts,
            "find": self.find,
            "why": self.why,
        }

    # Topics

    async def topics(self, after: str = "", limit: Limit = 1_000) -> dict[str, Any]:
        found = await self._timeline.topics(after, limit)
        extents = [extent._asdict() for extent in found]
        return {"topics": extents, "after": found[-1].topic if len(found) == limit else None}

    async def extent(self, topic: str) -> dict[str, Any]:
        return (await self._timeline.extent(topic))._asdict()

    async def history(self, topic: str, after: Count = 0, limit: Limit = 50) -> dict[str, Any]:
        page = await self._timeline.read(topic, after, limit)
        return {**_plain_page(page), "after": page.last if page.last > after else None}

    async def history_back(self, topic: str, before: Count, limit: Limit = 50) -> dict[str, Any]:
        """The last messages before a seq, oldest first; `before` is where the page before them
        ends, none at the beginning."""
        page = await self._timeline.read_back(topic, before, limit)
        is_first = page.first <= max(1, (await self._timeline.extent(topic)).first)
        return {**_plain_page(page), "before": None if is_first else page.first}

    async def members(self, topic: str, after: str = "", limit: Limit = 100) -> dict[str, Any]:
        found = await self._timeline.members(topic, after, limit)
        members = []
        for member in found:
            mark = (await self._timeline.marks(member.user, [topic]))[topic]
            members.append({**member._asdict(), "read": mark.seq, "unread": mark.unread})
        return {"members": members, "after": found[-1].user if len(found) == limit else None}

    async def trim(self, topic: str, before: Count = 0, keep: Count = 0) -> dict[str, Any]:
        """Forget what stands before a seq, or all but the newest."""
        if bool(before) == bool(keep):
            raise ImError(ErrorCode.BAD_BODY, "before or keep, one of them")
        if not (await self._timeline.extent(topic)).head:
            raise ImError(ErrorCode.NOT_FOUND, f"there is no topic {topic}")
        if keep:
            forgotten = await self._timeline.retain(topic, max_count=keep)
        else:
            forgotten = await self._timeline.trim(topic, before)
        return {"forgotten": forgotten, **(await self._timeline.extent(topic))._asdict()}

    # Dead letters

    async def dead(
        self, topic: str = "", user: str = "", after: Count = 0, taken: bool = False
    ) -> dict[str, Any]:
        """A page of letters without their messages; with those that are under way once more
        only if `taken`."""
        found, next = await self._letters(topic, user, after)
        letters = [_plain_letter(one) for one in found if taken or not one.is_taken]
        return {"letters": letters, "after": next}

    async def letter(self, id: Count) -> dict[str, Any]:
        """One letter and its message."""
        found = await self._timeline.dead(after=id - 1, limit=1) if id else []
        if not found or found[0].id != id:
            raise ImError(ErrorCode.NOT_FOUND, f"there is no dead letter {id}")
        return {**_plain_letter(found[0]), "message": plain(decode_message(found[0].frame))}

    async def redrive(
        self, ids: list[Count] | None = None, topic: str = "", user: str = "", after: Count = 0
    ) -> dict[str, Any]:
        """Send those letters once more, or a page of those of a topic or a user."""
        ids, next = await self._chosen(ids, topic, user, after)
        return {"count": await self._send_again(ids) if ids else 0, "after": next}

    async def purge(
        self, ids: list[Count] | None = None, topic: str = "", user: str = "", after: Count = 0
    ) -> dict[str, Any]:
        """Delete letters, chosen as for `redrive`. What is under way once more stays: it has
        not failed yet."""
        ids, next = await self._chosen(ids, topic, user, after)
        return {"count": await self._timeline.drop_dead(ids) if ids else 0, "after": next}

    async def dead_counts(self, taken: bool = False) -> dict[str, int]:
        """All that `dead` lists, by reason."""
        return await self._timeline.dead_counts(taken=taken)

    async def _take(self, ids: list[int]) -> int:
        return len(await self._timeline.take_dead(ids))

    async def _letters(
        self, topic: str, user: str, after: int
    ) -> tuple[list[DeadLetter], int | None]:
        found = await self._timeline.dead(topic=topic, user=user, after=after, limit=LETTERS_MAX)
        return found, found[-1].id if len(found) == LETTERS_MAX else None

    async def _chosen(
        self, ids: list[int] | None, topic: str, user: str, after: int
    ) -> tuple[list[int], int | None]:
        if ids is None:
            found, next = await self._letters(topic, user, after)
            return [one.id for one in found if not one.is_taken], next
        chosen = []
        for id in ids[:LETTERS_MAX]:
            found = await self._timeline.dead(after=id - 1, limit=1)
            chosen += [one.id for one in found if one.id == id and not one.is_taken]
        return chosen, None

    # Why

    async def find(self, topic: str, sender: str, id: Annotated[int, Meta(ge=0)]) -> dict[str, Any]:
        if id >= 2**64:
            raise ImError(ErrorCode.BAD_BODY, "numbers of messages have 64 bits")
        return await find(self._timeline, topic, sender, id)

    async def why(
        self, topic: str, seq: Count, user: str = "", after: tuple[str, str] | None = None
    ) -> dict[str, Any]:
        return await why(self._timeline, self._followers(topic), topic, seq, user, after)


def _plain_page(page: Page) -> dict[str, Any]:
    starts = [*frame_starts(page.frames), len(page.frames)]
    messages = [plain(decode_message(page.frames[a:b])) for a, b in pairwise(starts)]
    return {"messages": messages, "gaps": [gap._asdict() for gap in page.gaps]}


def _plain_letter(letter: DeadLetter) -> dict[str, Any]:
    told = letter._asdict()
    del told["frame"]
    return told
