"""What tests of kept messages read and say over bare sockets."""

from collections.abc import Callable
from typing import Any

from harness import JSON, Peer, RunningServer

from imserver.model import Message
from imserver.protocol import (
    DURABLE,
    Call,
    FrameType,
    Position,
    Receipt,
    Subscribe,
    Subscribed,
    decode_body,
    decode_message,
    decode_receipt,
    encode_bare,
    encode_frame,
    encode_message,
    encode_position,
)

ROOM = "room:lobby"
Start = Callable[..., RunningServer]


class Reader:
    """What a peer reads, sorted: messages in one list, everything else as it is asked for."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.messages: list[Message] = []
        self.others: list[tuple[int, bytes]] = []

    def read(self) -> None:
        frame = self.peer.receive()
        assert frame is not None, "the connection ended"
        type, flags, request, body = frame
        if type == FrameType.MESSAGE:
            whole = (len(body) + 4).to_bytes(4) + bytes((type, flags)) + request.to_bytes(2) + body
            self.messages.append(decode_message(whole))
        elif type == FrameType.PING:
            self.peer.send(encode_bare(FrameType.PONG, request))
        elif type != FrameType.SUBSCRIBED or request:
            self.others.append((type, body))

    def expect(self, type: FrameType) -> Any:
        while not any(kind == type for kind, _ in self.others):
            self.read()
        at = next(i for i, (kind, _) in enumerate(self.others) if kind == type)
        _, body = self.others.pop(at)
        return decode_receipt(body) if type == FrameType.RECEIPT else decode_body(type, JSON, body)

    def take(self, count: int) -> list[Message]:
        while len(self.messages) < count:
            self.read()
        taken, self.messages = self.messages[:count], self.messages[count:]
        return taken

    def subscribe(self, topic: str = ROOM, **fields: Any) -> Subscribed:
        body = Subscribe(topic, **fields)
        self.peer.send(encode_frame(FrameType.SUBSCRIBE, body, JSON, 2))
        answer = self.expect(FrameType.SUBSCRIBED)
        assert isinstance(answer, Subscribed)
        return answer

    def call(self, method: str, params: Any) -> Any:
        self.peer.send(encode_frame(FrameType.CALL, Call(method, params), JSON, 5))
        return self.expect(FrameType.RESULT).result

    def ack(self, seq: int, topic: str = ROOM, type: FrameType = FrameType.ACK) -> None:
        self.peer.send(encode_position(type, Position(seq, topic)))

    def is_still(self) -> bool:
        """Nothing but what was taken has come, by the time that a PING is answered."""
        self.peer.send(encode_bare(FrameType.PING, 77))
        self.expect_pong()
        return not self.messages

    def expect_pong(self) -> None:
        while not any(kind == FrameType.PONG for kind, _ in self.others):
            self.read()
        self.others = [other for other in self.others if other[0] != FrameType.PONG]


def reader(server: RunningServer, name: str, device: str = "test") -> Reader:
    return Reader(server.user(name, device))


def keep(
    author: Reader, sender: str, count: int = 1, first_id: int = 1, topic: str = ROOM, **fields: Any
) -> list[Receipt]:
    """Publish so many with DURABLE, and wait for their receipts."""
    flags = DURABLE | fields.pop("flags", 0)
    body = fields.pop("body", b"x")
    author.peer.send(
        *(
            encode_message(topic, sender, body, id=first_id + i, flags=flags, **fields)
            for i in range(count)
        )
    )
    return [author.expect(FrameType.RECEIPT) for _ in range(count)]


def seqs(messages: list[Message]) -> list[int]:
    return [message.seq for message in messages]
