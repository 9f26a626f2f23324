"""What became of a message: whether it was accepted, and what each device has of it.

Told from what the store knows (the message, cursors, dead letters) and, where the server runs,
from its followers: what they have been sent is kept nowhere else.
"""

from collections.abc import Iterable
from typing import Any, Final, Protocol

import msgspec

from imserver.protocol import Message, decode_message
from imserver.routing import owners
from imserver.timeline import PAGE_FRAMES, Cursor, DeadLetter, Timeline, frame_starts

#: How far back a message is looked for by its sender's number, which no index has.
FIND_MAX: Final = 100_000
#: Devices in one answer, and users who have none.
DEVICES_MAX: Final = 256
#: Dead letters of one message that are looked at; each has the whole of it.
LETTERS_MAX: Final = 1_000


class Follower(Protocol):
    """A device that reads a topic now: `delivery.FollowerState`."""

    @property
    def user(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def is_acked(self) -> bool: ...
    @property
    def acked(self) -> int: ...
    @property
    def sent(self) -> int: ...
    @property
    def times_sent(self) -> int: ...
    @property
    def due_in_s(self) -> float | None: ...
    @property
    def began(self) -> int: ...
    @property
    def last_dead(self) -> int: ...
    @property
    def tags(self) -> frozenset[str] | None: ...


def plain(message: Message) -> dict[str, Any]:
    """A message as values that JSON has: the body's own where its codec has such, else text."""
    fields = ("topic", "seq", "time_ms", "sender", "id", "tag")
    try:
        body = message.value()
        if not isinstance(body, bytes):
            body = msgspec.to_builtins(body, str_keys=True)
    except (ValueError, TypeError, ImportError):
        body = message.body
    if isinstance(body, bytes):
        body = body.decode(errors="backslashreplace")
    return {**{name: getattr(message, name) for name in fields}, "body": body}


async def find(timeline: Timeline, topic: str, sender: str, id: int) -> dict[str, Any]:
    """The newest message of a topic to which this sender gave this number; `seq` is 0 when it
    is not among `oldest` to `head`, the last FIND_MAX that are kept."""
    _, first, head = await timeline.extent(topic)
    oldest = max(first, head + 1 - FIND_MAX)
    number, before = id.to_bytes(8), head + 1
    while before > oldest:
        page = await timeline.read_back(topic, before, min(PAGE_FRAMES, before - oldest))
        for at in reversed(list(frame_starts(page.frames))):
            # Decoding all of them would keep the loop of a server from its work.
            if page.frames[at + 24 : at + 32] == number:
                end = at + 4 + int.from_bytes(page.frames[at : at + 4])
                message = decode_message(page.frames[at:end])
                if message.sender == sender:
                    return {"seq": message.seq, "oldest": oldest, "head": head}
        before = min(page.first, before - 1)
    return {"seq": 0, "oldest": oldest, "head": head}


async def why(
    timeline: Timeline,
    followers: Iterable[Follower],
    topic: str,
    seq: int,
    user: str,
    after: tuple[str, str] | None,
) -> dict[str, Any]:
    """What became of a message, and a page of devices; with a `user` only theirs. `state` is
    "kept", "not accepted", "forgotten" (by retention) or "unreadable"; `absent` are users it is
    for who have no device that reads the topic, told where all fit into one page."""
    extent = await timeline.extent(topic)
    told: dict[str, Any] = {**extent._asdict(), "seq": seq, "devices": [], "absent": []}
    if not 0 < seq <= extent.head:
        return {**told, "state": "not accepted", "message": None, "after": None}
    page = await timeline.read(topic, seq - 1, 1)
    is_kept = page.messages == 1 and page.first == seq and not page.gaps
    message = decode_message(page.frames) if is_kept else None
    told["message"] = plain(message) if message else None
    told["state"] = "kept" if is_kept else "forgotten" if seq < extent.first else "unreadable"

    found = await timeline.cursors_of(topic, after or (user, ""), DEVICES_MAX)
    cursors = [cursor for cursor in found if user in ("", cursor.user)]
    is_last = len(cursors) < DEVICES_MAX
    told["after"] = None if is_last else cursors[-1][:2]
    readers = [one for one in followers if user in ("", one.user)]
    acking = {(one.user, one.device): one for one in readers if one.is_acked}
    letters = await _letters(timeline, topic, seq)
    told["devices"] = [
        _device(seq, message, cursor, acking.get(cursor[:2]), letters.get(cursor[:2]))
        for cursor in cursors
    ]
    if after is None:
        told["devices"] += [_unasked(seq, message, one) for one in readers if not one.is_acked]
        if is_last:
            present = {device["user"] for device in told["devices"]}
            told["absent"] = await _absent(timeline, topic, user, present)
    return told


def _device(
    seq: int,
    message: Message | None,
    cursor: Cursor,
    follower: Follower | None,
    letter: DeadLetter | None,
) -> dict[str, Any]:
    """What a device with a cursor has of a message. A cursor that is past it tells no more than
    that ("passed"); what it was passed for is known where that happened on this connection."""
    acked = max(cursor.seq, follower.acked if follower else 0)
    told: dict[str, Any] = {"user": cursor.user, "device": cursor.device, "cursor": acked}
    told |= {"is_online": follower is not None, "attempts": None, "reason": "", "letter": 0}
    told["due_in_s"] = None
    if letter:
        state = "set aside" if letter.is_taken else "dead letter"
        told |= {"attempts": letter.attempts, "reason": letter.reason, "letter": letter.id}
    elif follower and seq > follower.began and _is_kept_back(message, follower):
        state = "not for its tags"
    elif seq <= acked:
        is_known = follower and message and seq > max(follower.began, follower.last_dead)
        state = "acknowledged" if is_known else "passed"
    elif follower and seq <= follower.sent:
        state = "sent"
        told["attempts"] = follower.times_sent if seq == follower.acked + 1 else None
        told["due_in_s"] = follower.due_in_s
    else:
        state = "waiting"
    return {**told, "state": state}


def _unasked(seq: int, message: Message | None, follower: Follower) -> dict[str, Any]:
    """Who reads without acknowledgements has no cursor, so nothing is known when they have
    gone."""
    if seq <= follower.began:
        state = "before it began"
    elif _is_kept_back(message, follower):
        state = "not for its tags"
    else:
        state = "sent, unasked" if seq <= follower.sent else "waiting"
    return {
        "user": follower.user,
        "device": follower.device,
        "cursor": None,
        "is_online": True,
        "attempts": None,
        "reason": "",
        "letter": 0,
        "due_in_s": None,
        "state": state,
    }


def _is_kept_back(message: Message | None, follower: Follower) -> bool:
    return message is not None and follower.tags is not None and message.tag not in follower.tags


async def _letters(timeline: Timeline, topic: str, seq: int) -> dict[tuple[str, str], DeadLetter]:
    letters: dict[tuple[str, str], DeadLetter] = {}
    after = 0
    while len(letters) < LETTERS_MAX:
        found = await timeline.dead_of(topic, seq, after)
        letters |= {(one.user, one.device): one._replace(frame=b"") for one in found}
        if not found:
            break
        after = found[-1].id
    return letters


async def _absent(timeline: Timeline, topic: str, user: str, present: set[str]) -> list[str]:
    members = [member.user for member in await timeline.members(topic, limit=DEVICES_MAX + 1)]
    if topic.startswith(("user:", "dm:")):
        members = [*members, *owners(topic)]
    if len(members) > DEVICES_MAX:
        return []
    return sorted(one for one in set(members) - present if user in ("", one))
