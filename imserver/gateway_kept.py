"""CALLs that the store answers: what was said, who has read how far, who belongs to a topic.

They wait for a disk, so they run as tasks of the gateway, bounded and with a time-out like those
of hooks. Who asks is judged before and again after the wait: a right may have ended meanwhile.

A message's body is given as the value it holds where its codec is JSON or MessagePack and the
session's codec can carry it: whoever shows history decodes one thing. Everything else is base64;
frames as they were are had by SUBSCRIBE with `after`.

Not here: CALLs answered from memory, and the methods by name (gateway_calls).
"""

from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from imserver.errors import ErrorCode, ImError
from imserver.membership import Membership
from imserver.model import CODEC_JSON, CODEC_MSGPACK, CODECS, Message, encode_value
from imserver.model_session import Session
from imserver.protocol import check_topic, decode_message
from imserver.routing import Routing
from imserver.sessions import Sessions
from imserver.timeline import PAGE_FRAMES, Page, Timeline, frame_starts

#: Topics in one question.
TOPICS_MAX: Final = 256
#: Numbers up to here are the same in every codec; a sender's number beyond is given as text.
EXACT_MAX: Final = 2**53
#: Bytes that a list costs around each of its items, and a RESULT around the whole, at most.
ITEM_BYTES: Final = 8
AROUND_BYTES: Final = 256

Seq = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class AskHistory(msgspec.Struct):
    topic: str
    after: Seq | None = None
    before: Seq | None = None
    limit: Annotated[int, Meta(ge=1, le=PAGE_FRAMES)] = 50


class AskRead(msgspec.Struct):
    topic: str
    seq: Seq


class AskUnread(msgspec.Struct):
    topics: Annotated[list[str], Meta(max_length=TOPICS_MAX)] | None = None


class AskLeave(msgspec.Struct):
    topic: str


class Kept:
    """The answers of one store, each as long as a frame can hold."""

    def __init__(
        self,
        timeline: Timeline,
        membership: Membership,
        routing: Routing,
        sessions: Sessions,
        max_frame_bytes: int,
    ) -> None:
        self._timeline = timeline
        self._membership = membership
        self._routing = routing
        self._sessions = sessions
        self._max_frame_bytes = max_frame_bytes

    async def history(self, session: Session, asked: AskHistory) -> dict[str, Any]:
        topic = self._check(session, asked.topic)
        if asked.after is not None and asked.before is not None:
            raise ImError(ErrorCode.BAD_BODY, "params: after or before, not both")
        is_back, room = asked.after is None, self._max_frame_bytes
        if asked.after is not None:
            page = await self._timeline.read(topic, asked.after, asked.limit, room)
        else:
            before = 2**63 - 1 if asked.before is None else asked.before
            page = await self._timeline.read_back(topic, before, asked.limit, room)
        head = (await self._timeline.extent(topic)).head
        self._check(session, topic)
        fitting = _fit(page, session.codec, room, is_back)
        return {**fitting, "head": head, "epoch": f"{self._timeline.epoch:x}"}

    async def read(self, session: Session, asked: AskRead) -> dict[str, int]:
        topic = self._check(session, asked.topic)
        return {"read": await self._timeline.mark_read(session.user, topic, asked.seq)}

    async def unread(self, session: Session, asked: AskUnread) -> dict[str, Any]:
        if asked.topics is None:
            topics = await self._membership.topics_of(session.user)
        else:
            topics = [self._check(session, topic) for topic in asked.topics]
        marks = await self._timeline.marks(session.user, topics)
        return {
            topic: {"head": mark.head, "read": mark.seq, "unread": mark.unread}
            for topic, mark in marks.items()
            if may_see(self._routing, self._sessions, session, topic)
        }

    async def members(self, session: Session, topic: str, after: str, limit: int) -> list[str]:
        """None for a topic without any."""
        found = await self._timeline.members(topic, after, limit)
        self._check(session, topic)
        return [member.user for member in found]

    async def leave(self, session: Session, asked: AskLeave) -> dict[str, bool]:
        """Without a right: nobody has to stay where they may not read."""
        left = await self._membership.leave(asked.topic, [session.user])
        return {"left": bool(left)}

    def _check(self, session: Session, topic: str) -> str:
        if not may_see(self._routing, self._sessions, session, check_topic(topic)):
            raise ImError(ErrorCode.FORBIDDEN)
        return topic


def may_see(routing: Routing, sessions: Sessions, session: Session, topic: str) -> bool:
    """Who may subscribe, and who is subscribed: a member, without a right in the token."""
    if routing.may_subscribe(session.user, session.rights, topic):
        return True
    return topic in sessions.topics(session)


_CODEC_NAMES: Final = {number: name for name, number in CODECS.items()}


def _fit(page: Page, codec: int, room: int, is_back: bool) -> dict[str, Any]:
    """As much of a page as fits, beginning where the page before it ended: at its end for those
    who read back. At least one message, if need be without its body."""
    starts = [*frame_starts(page.frames), len(page.frames)]
    messages = [decode_message(page.frames[a:b]) for a, b in pairwise(starts)]
    gaps = [gap._asdict() for gap in page.gaps]
    room = left = room - len(encode_value(gaps, codec)) - AROUND_BYTES
    first, last = page.first, page.last
    entries: list[dict[str, Any]] = []
    for message in reversed(messages) if is_back else messages:
        entry, size = _entry(message, codec, room)
        if entries and size > left:
            first, last = (message.seq + 1, last) if is_back else (first, message.seq - 1)
            break
        left -= size
        entries.append(entry)
    gaps = [gap for gap in gaps if first <= gap["first"] and gap["last"] <= last]
    shown = entries[::-1] if is_back else entries
    return {"messages": shown, "first": first, "last": last, "gaps": gaps}


def _entry(message: Message, codec: int, room: int) -> tuple[dict[str, Any], int]:
    """A message as a client sees it in history, and its bytes in a list."""
    entry: dict[str, Any] = {
        "seq": message.seq,
        "time_ms": message.time_ms,
        "sender": message.sender,
        "tag": message.tag,
        "id": message.id if message.id <= EXACT_MAX else str(message.id),
        "flags": message.flags,
        "codec": _CODEC_NAMES[message.codec],
    }
    size = 0
    for form, body in _forms(message):
        entry |= {"form": form, "body": body}
        try:
            size = len(encode_value(entry, codec)) + ITEM_BYTES
        except ValueError:
            continue  # a value that this codec cannot carry
        if size <= room:
            break
    return entry, size


def _forms(message: Message) -> Iterator[tuple[str, Any]]:
    """The body in the ways it can be given, the best one first."""
    if message.codec in (CODEC_JSON, CODEC_MSGPACK):
        with suppress(ValueError):
            yield "value", message.value()
    yield "base64", b64encode(message.body).decode()
    yield "omitted", None
