"""Who belongs to which topics, and what a login therefore reads without asking.

`user:<id>` belongs to its user, `dm:<a>:<b>` to the two it names from its first message on, and
every other topic to those whom the application made members (`Server.join`). Members are kept in
the store. What changes is told at once, so that sessions that are here are subscribed or
unsubscribed now, and the others at their login.

    B1  `on_joined` and `on_left` are called after the store has it, in its order, and also when
        whoever ordered it has stopped waiting.
    B2  `topics_of` names nothing that was left while it was read.

Being a member is no right: whether a member may read is routing's answer, as for everybody. Not
here: the subscriptions themselves (gateway), whose names a topic carries (routing).
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from typing import Any, Final, TypeVar

from imserver.errors import ErrorCode, ImError
from imserver.names import check_identifier, check_topic
from imserver.routing import is_addressable, owners
from imserver.timeline import Timeline

#: Direct conversations that are known to have members, at about 150 bytes each. Others cost a
#: look into the store at the first publish of each connection.
SETTLED_MAX: Final = 65_536
#: Users who join or leave in one commit; 100,000 at once would hold up all others.
USERS_A_COMMIT: Final = 1_000

T = TypeVar("T")

#: Something has become true of a user and a topic.
Change = Callable[[str, str], None]


class Membership:
    """The members of one server's topics. `is_kept` tells whether a topic's messages are ever
    kept: an inbox that keeps nothing needs no subscription by itself."""

    def __init__(
        self,
        timeline: Timeline,
        *,
        is_kept: Callable[[str], bool],
        on_joined: Change,
        on_left: Change,
    ) -> None:
        self._timeline = timeline
        self._is_kept = is_kept
        self._on_joined = on_joined
        self._on_left = on_left
        self._settled: dict[str, None] = {}  # in the order of their coming
        self._reads: dict[str, list[set[str]]] = {}  # user -> what they left during each read
        self._tasks: set[asyncio.Task[Any]] = set()

    async def topics_of(self, user: str) -> list[str]:
        """What a login of this user is subscribed to by itself, the inbox first."""
        left: set[str] = set()
        reads = self._reads.setdefault(user, [])
        reads.append(left)
        try:
            found = await self._timeline.memberships(user)
        finally:
            reads[:] = (one for one in reads if one is not left)
            if not reads:
                del self._reads[user]
        inbox = f"user:{user}"
        own = [inbox] if self._is_kept(inbox) else []
        return own + [topic for topic in found if topic not in left]

    async def join(self, topic: str, users: Collection[str]) -> None:
        """Make users members, from the next message on; those who are stay what they are. ImError
        403 for whom the topic cannot have (`check_member`), 442 when a bound would be passed;
        of more than USERS_A_COMMIT users some may have joined then."""
        self._check(topic, users)
        await self._surely(self._join(topic, users, None))

    async def leave(self, topic: str, users: Collection[str]) -> list[str]:
        """End memberships; those who were members until now."""
        self._check(topic, users)
        return await self._surely(self._leave(topic, users))

    def is_settled(self, topic: str) -> bool:
        """Whether `before_publish` has nothing to do, which it need not be awaited for."""
        return topic in self._settled or not topic.startswith("dm:")

    async def before_publish(self, topic: str) -> None:
        """The first message of a dm makes both its members, before it is kept. One who leaves
        later stays out until `join`."""
        if self.is_settled(topic):
            return
        users = owners(topic)
        self._check(topic, users)
        is_new = not (await self._timeline.extent(topic)).head
        if is_new and not await self._timeline.members(topic, limit=1):
            await self._surely(self._join(topic, users, 0))
        if len(self._settled) >= SETTLED_MAX:
            del self._settled[next(iter(self._settled))]
        self._settled[topic] = None

    async def close(self) -> None:
        """Wait for what was ordered, before the store is closed."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _check(self, topic: str, users: Iterable[str]) -> None:
        check_topic(topic)
        for user in users:
            check_member(topic, check_identifier(user))

    async def _join(self, topic: str, users: Collection[str], since_seq: int | None) -> None:
        for some in _portions(users):
            for user in await self._timeline.join(topic, some, since_seq=since_seq):
                self._on_joined(user, topic)

    async def _leave(self, topic: str, users: Collection[str]) -> list[str]:
        gone: list[str] = []
        for some in _portions(users):
            for user in await self._timeline.leave(topic, some):
                gone.append(user)
                for left in self._reads.get(user, ()):
                    left.add(topic)
                self._on_left(user, topic)
        return gone

    async def _surely(self, work: Coroutine[Any, Any, T]) -> T:
        """B1: to its end, whoever stops waiting."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)


def _portions(users: Collection[str]) -> Iterator[list[str]]:
    """Each of them once, in portions for one commit."""
    ones = list(dict.fromkeys(users))
    for at in range(0, len(ones), USERS_A_COMMIT):
        yield ones[at : at + USERS_A_COMMIT]


def check_member(topic: str, user: str) -> None:
    """ImError 403 when a topic cannot have this member: a dm belongs to the two it names, an
    inbox to nobody else and needs no member, "$" topics to the server."""
    if topic.startswith("$") or not is_addressable(topic):
        raise ImError(ErrorCode.FORBIDDEN, f"{topic} can have no members")
    if topic.startswith("user:"):
        raise ImError(ErrorCode.FORBIDDEN, "an inbox has its user and no members")
    if topic.startswith("dm:") and user not in owners(topic):
        raise ImError(ErrorCode.FORBIDDEN, f"{user} is not one of the two of {topic}")
