"""Frames and rooms, as the four peers in Python share them: to whom goes what.

It believes the name in HELLO and judges nothing. A frame that makes no sense raises, and ends the
connection it came from.
"""

import json
from collections.abc import Collection, Iterator
from struct import pack
from typing import Final, Generic, TypeVar

_HELLO, _WELCOME, _SUBSCRIBE, _SUBSCRIBED, _MESSAGE = 1, 2, 3, 4, 7
_HEAD_BYTES: Final = 8
_NAMES_AT: Final = 36  # in a MESSAGE: topic, tag and sender

Client = TypeVar("Client")


class Rooms(Generic[Client]):
    """Who is in which room."""

    def __init__(self) -> None:
        self._members: dict[bytes, set[Client]] = {}
        self._topics: dict[Client, list[bytes]] = {}

    def take(self, client: Client, frame: bytes) -> tuple[Collection[Client], bytes]:
        """What a frame of this client leads to: the clients that are to hear something, and
        what that is."""
        kind = frame[4]
        if kind == _MESSAGE:
            topic = frame[_NAMES_AT : _NAMES_AT + frame[32]]
            return self._members.get(topic, ()), frame
        if kind == _HELLO:
            return (client,), _answer(_WELCOME, frame)
        if kind == _SUBSCRIBE:
            topic = json.loads(frame[_HEAD_BYTES:])["topic"].encode()
            self._members.setdefault(topic, set()).add(client)
            self._topics.setdefault(client, []).append(topic)
            return (client,), _answer(_SUBSCRIBED, frame)
        raise ValueError(f"a frame of type {kind}")

    def leave(self, client: Client) -> None:
        """It is in no room any more. Twice is once."""
        for topic in self._topics.pop(client, ()):
            members = self._members.get(topic, set())
            members.discard(client)
            if not members:
                self._members.pop(topic, None)


def _answer(kind: int, asked: bytes) -> bytes:
    body = b"{}"
    return pack(">IBB", len(body) + 4, kind, asked[5]) + asked[6:8] + body


def cut(received: bytearray) -> Iterator[bytes]:
    """The whole frames in it; they are removed once the iterator is through."""
    at = 0
    while len(received) - at >= _HEAD_BYTES:
        end = at + 4 + int.from_bytes(received[at : at + 4])
        if end > len(received):
            break
        yield bytes(received[at:end])
        at = end
    del received[:at]
