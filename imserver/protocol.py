"""The wire, version 1: bytes in, values out, and back. docs/protocol.md is the reference.

The core parses the frames of a server; this module writes what the server says and is both
directions for the client. No sockets, no clock, no await, so tests need none either.

    P1  nothing is read past a frame, whatever its length fields say.
    P2  a length over the limit is refused on its fourth byte, not after its body was awaited.

Not here: the maps inside control frames (bodies), what topics and tags look like (names),
and who may send what (routing).
"""

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from imserver.bodies import (
    Body,
    Call,
    Error,
    Goaway,
    Heartbeat,
    Hello,
    Limits,
    Reconnect,
    Result,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    Welcome,
    read_body,
    write_body,
)
from imserver.errors import CloseCode, Closed, ErrorCode, ImError
from imserver.model import (
    CODEC_BYTES,
    CODEC_JSON,
    CODEC_MSGPACK,
    CODEC_PROTOBUF,
    CODECS,
    Message,
)
from imserver.names import check_identifier, check_tag, check_tags, check_topic

__all__ = [
    "CODECS",
    "CODEC_BYTES",
    "CODEC_JSON",
    "CODEC_MSGPACK",
    "CODEC_PROTOBUF",
    "DURABLE",
    "HEAD_LEN",
    "HISTORY",
    "MAX_FRAME_BYTES",
    "MESSAGE_LEN",
    "NO_ECHO",
    "REDELIVERED",
    "RETRY",
    "VERSION",
    "Body",
    "Call",
    "Error",
    "Frame",
    "FrameReader",
    "FrameType",
    "Goaway",
    "Heartbeat",
    "Hello",
    "Limits",
    "Message",
    "Position",
    "Receipt",
    "Reconnect",
    "Result",
    "Subscribe",
    "Subscribed",
    "Unsubscribe",
    "Unsubscribed",
    "Welcome",
    "check_identifier",
    "check_tag",
    "check_tags",
    "check_topic",
    "codec_flags",
    "codec_of",
    "decode_body",
    "decode_message",
    "decode_position",
    "decode_receipt",
    "encode_bare",
    "encode_frame",
    "encode_message",
    "encode_position",
    "encode_receipt",
    "read_body",
]

VERSION: Final = 1
HEAD_LEN: Final = 8  # length, type, flags, request
MESSAGE_LEN: Final = 36  # the head and the fixed part of a MESSAGE
MAX_FRAME_BYTES: Final = 2**24 - 1  # what the format can hold; servers allow less

DURABLE: Final = 1
RETRY: Final = 2
REDELIVERED: Final = 4
NO_ECHO: Final = 8
HISTORY: Final = 16
_CODEC_SHIFT = 6
_FLAGS = 0x3F

_HEAD = Struct(">IBBH")
_MESSAGE = Struct(">IBBHQQQBBBB")
_RECEIPT = Struct(">QQQ")
_SEQ = Struct(">Q")


class FrameType(IntEnum):
    HELLO = 1
    WELCOME = 2
    SUBSCRIBE = 3
    SUBSCRIBED = 4
    UNSUBSCRIBE = 5
    UNSUBSCRIBED = 6
    MESSAGE = 7
    RECEIPT = 8
    ACK = 9
    NACK = 10
    PING = 11
    PONG = 12
    CALL = 13
    RESULT = 14
    ERROR = 15
    GOAWAY = 16


_BODIES: Final[dict[int, type[Body]]] = {
    FrameType.HELLO: Hello,
    FrameType.WELCOME: Welcome,
    FrameType.SUBSCRIBE: Subscribe,
    FrameType.SUBSCRIBED: Subscribed,
    FrameType.UNSUBSCRIBE: Unsubscribe,
    FrameType.UNSUBSCRIBED: Unsubscribed,
    FrameType.CALL: Call,
    FrameType.RESULT: Result,
    FrameType.ERROR: Error,
    FrameType.GOAWAY: Goaway,
}


class Frame(NamedTuple):
    """One whole frame. `data` are its bytes, head included; `flags` hold the codec too."""

    type: int
    flags: int
    request: int
    data: bytes

    @property
    def body(self) -> bytes:
        return self.data[HEAD_LEN:]

    @property
    def codec(self) -> int:
        return self.flags >> _CODEC_SHIFT


class Receipt(NamedTuple):
    """The message with this `id` is kept, as number `seq` of its topic."""

    id: int
    seq: int
    time_ms: int


class Position(NamedTuple):
    """What an ACK or a NACK speaks of: a message of a topic."""

    seq: int
    topic: str


def codec_flags(codec: int) -> int:
    """The bits of the flags byte that name a codec."""
    return codec << _CODEC_SHIFT


def codec_of(flags: int) -> int:
    return flags >> _CODEC_SHIFT


def encode_frame(type: FrameType, body: Body, codec: int, request: int = 0) -> bytes:
    """A frame with a control body. ValueError when the codec cannot carry it."""
    return _frame(type, codec_flags(codec), request, write_body(body, codec))


def encode_bare(type: FrameType, request: int = 0) -> bytes:
    """A frame without a body: PING, PONG."""
    return _HEAD.pack(HEAD_LEN - 4, type, 0, request)


def decode_body(type: int, codec: int, body: bytes) -> Body:
    """The control body of a frame. ImError 400 for a type that has none and for codec bytes,
    415 for a codec that is not installed, 422 for a body that is not as documented."""
    kind = _BODIES.get(type)
    if kind is None:
        raise ImError(ErrorCode.BAD_FRAME, f"frames of type {type} have no control body")
    return read_body(kind, codec, body)


def encode_message(
    topic: str,
    sender: str,
    body: bytes,
    *,
    tag: str = "",
    id: int = 0,
    flags: int = 0,
    codec: int = CODEC_BYTES,
    seq: int = 0,
    time_ms: int = 0,
    attempt: int = 0,
) -> bytes:
    """A MESSAGE frame. A codec may be given in `flags` or as `codec`. The texts are not
    judged beyond their length: ValueError when one is too long for the layout, ImError 413
    when the whole is."""
    names = topic.encode(), tag.encode(), sender.encode()
    topic_len, tag_len, sender_len = map(len, names)
    length = MESSAGE_LEN - 4 + topic_len + tag_len + sender_len + len(body)
    if not (0 < topic_len < 256 and tag_len <= 64 and 0 < sender_len <= 64):
        raise ValueError("topic 1..255, tag 0..64, sender 1..64 bytes")
    if length + 4 > MAX_FRAME_BYTES:
        raise ImError(ErrorCode.TOO_LARGE, f"a frame holds at most {MAX_FRAME_BYTES} bytes")
    head = _MESSAGE.pack(
        length,
        FrameType.MESSAGE,
        flags | codec_flags(codec),
        0,
        seq,
        time_ms,
        id,
        topic_len,
        tag_len,
        sender_len,
        attempt,
    )
    return b"".join((head, *names, body))


def decode_message(frame: bytes) -> Message:
    """A whole MESSAGE frame as a value. ImError 400 when it is not laid out as one."""
    if len(frame) < MESSAGE_LEN:
        raise ImError(ErrorCode.BAD_FRAME, "a MESSAGE is at least 36 bytes long")
    (length, type, flags, _, seq, time_ms, id, topic_len, tag_len, sender_len, attempt) = (
        _MESSAGE.unpack_from(frame)
    )
    tag_at = MESSAGE_LEN + topic_len
    sender_at = tag_at + tag_len
    body_at = sender_at + sender_len
    if type != FrameType.MESSAGE or length + 4 != len(frame) or body_at > len(frame):
        raise ImError(ErrorCode.BAD_FRAME, "the lengths in this MESSAGE contradict each other")
    if not topic_len or not sender_len or tag_len > 64 or sender_len > 64:
        raise ImError(ErrorCode.BAD_FRAME, "topic 1..255, tag 0..64, sender 1..64 bytes")
    try:
        topic = frame[MESSAGE_LEN:tag_at].decode()
        tag = frame[tag_at:sender_at].decode()
        sender = frame[sender_at:body_at].decode()
    except UnicodeDecodeError as error:
        raise ImError(ErrorCode.BAD_FRAME, "topic, tag and sender are UTF-8") from error
    codec, bits = flags >> _CODEC_SHIFT, flags & _FLAGS
    return Message(topic, tag, sender, frame[body_at:], codec, id, seq, time_ms, bits, attempt)


def encode_receipt(receipt: Receipt, request: int = 0) -> bytes:
    return _frame(FrameType.RECEIPT, 0, request, _RECEIPT.pack(*receipt))


def decode_receipt(body: bytes) -> Receipt:
    if len(body) != _RECEIPT.size:
        raise ImError(ErrorCode.BAD_FRAME, "a RECEIPT is 24 bytes after the head")
    return Receipt(*_RECEIPT.unpack(body))


def encode_position(type: FrameType, position: Position, request: int = 0) -> bytes:
    """An ACK or a NACK."""
    return _frame(type, 0, request, _SEQ.pack(position.seq) + position.topic.encode())


def decode_position(body: bytes) -> Position:
    if len(body) <= _SEQ.size:
        raise ImError(ErrorCode.BAD_FRAME, "ACK and NACK are a u64 seq and a topic")
    return Position(_SEQ.unpack_from(body)[0], check_topic(body[_SEQ.size :]))


def _frame(type: FrameType, flags: int, request: int, body: bytes) -> bytes:
    if len(body) + HEAD_LEN > MAX_FRAME_BYTES:
        raise ImError(ErrorCode.TOO_LARGE, f"a frame holds at most {MAX_FRAME_BYTES} bytes")
    return _HEAD.pack(len(body) + HEAD_LEN - 4, type, flags, request) + body


class FrameReader:
    """Cuts a stream into frames, however it was split on its way.

    Holds at most one unfinished frame of `max_frame_bytes` and what was fed last. Iterating
    may stop anywhere; the rest waits, in order, for the next iteration.
    """

    def __init__(self, max_frame_bytes: int) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes, and iterate over the frames that are whole now.

        Raises `Closed` with 4004 or 4013 where the stream stops being frames. There is no way
        to find the next frame after that: the connection must end.
        """
        self._buffer += data
        return iter(self)

    def __iter__(self) -> Iterator[Frame]:
        buffer, at = self._buffer, 0
        try:
            while len(buffer) - at >= 4:
                length = int.from_bytes(buffer[at : at + 4])
                if not HEAD_LEN <= length + 4 <= MAX_FRAME_BYTES:
                    raise Closed(CloseCode.BAD_PROTOCOL, f"a frame of length {length}")
                if length + 4 > self.max_frame_bytes:
                    raise Closed(CloseCode.FRAME_TOO_LARGE, f"a frame of {length + 4} bytes")
                end = at + 4 + length
                if end > len(buffer):
                    return
                data = bytes(memoryview(buffer)[at:end])
                _, type, flags, request = _HEAD.unpack_from(data)
                at = end
                yield Frame(type, flags, request, data)
        finally:
            del buffer[:at]
