"""The wire as JSON text, for people with a plain WebSocket tool.

    > {"type": "hello", "user": "ann", "version": 1}
    < {"type": "welcome", "user": "ann", ...}
    > {"type": "subscribe", "topic": "room:lobby", "request": 1}
    > {"type": "message", "topic": "room:lobby", "body": {"text": "hi"}}

An object is a frame: `type` is its name, `request` its number, everything else the fields of its
body as docs/protocol.md has them. Bodies of messages are JSON values, or base64 under `base64`.

Not here: sockets (gateway_text), and whether anybody may (the core and Python, as for all frames).
"""

import base64
import binascii
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from imserver.errors import ErrorCode, ImError
from imserver.protocol import (
    CODEC_BYTES,
    CODEC_JSON,
    DURABLE,
    HEAD_LEN,
    HISTORY,
    NO_ECHO,
    REDELIVERED,
    RETRY,
    Frame,
    FrameType,
    Message,
    Position,
    check_topic,
    codec_flags,
    decode_body,
    decode_message,
    decode_position,
    decode_receipt,
    encode_bare,
    encode_frame,
    encode_message,
    encode_position,
)

_FLAGS: Final = {
    "durable": DURABLE,
    "retry": RETRY,
    "redelivered": REDELIVERED,
    "no_echo": NO_ECHO,
    "history": HISTORY,
}
_TYPES: Final = {type.name.lower(): type for type in FrameType}
_SPARE_BYTES: Final = 1_024
T = TypeVar("T")
Request = Annotated[int, Meta(ge=0, le=65_535)]


class _Typed(msgspec.Struct):
    type: str
    request: Request = 0


class _Said(msgspec.Struct):
    """A message as people write it."""

    topic: str
    tag: str = ""
    body: msgspec.Raw = msgspec.Raw()
    base64: str | None = None
    id: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    durable: bool = False
    retry: bool = False
    no_echo: bool = False


class _Place(msgspec.Struct):
    topic: str
    seq: Annotated[int, Meta(ge=0, le=2**63 - 1)]


def read_text(text: str, sender: str) -> bytes:
    """The frame that an object stands for; messages are from `sender`. ImError 400 and 422 for
    what is none."""
    typed = _decode(text, _Typed)
    type = _TYPES.get(typed.type)
    if type is None:
        raise ImError(ErrorCode.BAD_FRAME, f"types are {', '.join(_TYPES)}")
    if type == FrameType.MESSAGE:
        return _message(_decode(text, _Said), sender)
    if type in (FrameType.ACK, FrameType.NACK):
        place = _decode(text, _Place)
        position = Position(place.seq, check_topic(place.topic))
        return encode_position(type, position, typed.request)
    if type in (FrameType.PING, FrameType.PONG):
        return encode_bare(type, typed.request)
    body = decode_body(type, CODEC_JSON, text.encode())
    return encode_frame(type, body, CODEC_JSON, typed.request)


def write_text(frame: Frame) -> str:
    """A frame of the server as an object."""
    plain: dict[str, Any] = {"type": FrameType(frame.type).name.lower()}
    if frame.request:
        plain["request"] = frame.request
    if frame.type == FrameType.MESSAGE:
        plain |= _plain_message(frame.data)
    elif frame.type == FrameType.RECEIPT:
        id, seq, time_ms = decode_receipt(frame.body)
        plain |= {"id": id, "seq": seq, "time": time_ms}
    elif frame.type in (FrameType.ACK, FrameType.NACK):
        plain |= decode_position(frame.body)._asdict()
    elif len(frame.data) > HEAD_LEN:
        plain |= msgspec.json.decode(frame.body)
    return msgspec.json.encode(plain).decode()


def _decode(text: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ImError(ErrorCode.BAD_BODY, f"not an object of ours: {error}") from error


def _message(said: _Said, sender: str) -> bytes:
    if bool(bytes(said.body)) == (said.base64 is not None):
        raise ImError(ErrorCode.BAD_BODY, "body or base64, one of them", id=said.id)
    flags = sum(bit for name, bit in _FLAGS.items() if getattr(said, name, False))
    if said.base64 is None:
        body, codec = bytes(said.body), CODEC_JSON
    else:
        codec = CODEC_BYTES
        try:
            body = base64.b64decode(said.base64, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImError(ErrorCode.BAD_BODY, f"not base64: {error}", id=said.id) from error
    try:
        return encode_message(
            said.topic, sender, body, tag=said.tag, id=said.id, flags=flags | codec_flags(codec)
        )
    except ValueError as error:
        raise ImError(ErrorCode.BAD_BODY, str(error), id=said.id) from error


def _plain_message(data: bytes) -> dict[str, Any]:
    message = decode_message(data)
    plain: dict[str, Any] = {
        "topic": message.topic,
        "sender": message.sender,
        "seq": message.seq,
        "time": message.time_ms,
        "id": message.id,
    }
    if message.tag:
        plain["tag"] = message.tag
    if message.attempt:
        plain["attempt"] = message.attempt
    plain |= {name: True for name, bit in _FLAGS.items() if message.flags & bit}
    return plain | _plain_body(message)


def _plain_body(message: Message) -> dict[str, Any]:
    """What JSON cannot say, or only in many more bytes, comes as the bytes it is."""
    try:
        if message.codec != CODEC_BYTES:
            body = msgspec.json.encode(message.value())
            if len(body) <= 2 * len(message.body) + _SPARE_BYTES:
                return {"body": msgspec.Raw(body)}
    except (ValueError, TypeError, RecursionError, OverflowError, ImportError):
        pass
    return {"base64": base64.b64encode(message.body).decode()}
