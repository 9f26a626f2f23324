"""What client and server tell each other about the connection: the control bodies.

Each is a map with fixed fields, written in the codec that the frame's flags name. A handful a
connection, so clarity beats speed here; the frames that come by the million (MESSAGE, ACK)
have no map and are laid out in protocol.

Fields that are not known are ignored and fields with a default may be left out: old and new
peers understand each other. Everything else is refused.

Not here: whether a topic or an identifier is well formed (protocol), or allowed (routing).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

import msgspec
from msgspec import Meta

from imserver.errors import Closed, ErrorCode, ImError
from imserver.model import (
    CODEC_BYTES,
    CODEC_JSON,
    CODEC_PROTOBUF,
    decode_value,
    encode_value,
    from_protobuf,
    to_protobuf,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message as ProtobufMessage

#: What a signed 64-bit column of a store can hold.
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Small = Annotated[int, Meta(ge=0, le=2**32 - 1)]
AtLeastOne = Annotated[int, Meta(ge=1, le=2**32 - 1)]


class Body(msgspec.Struct, omit_defaults=True):
    """What all control bodies are."""


class Hello(Body):
    """A client introduces itself. `user` in place of `token` is for --dev servers only."""

    version: Small
    token: str | None = None
    user: str | None = None
    device: str = "default"
    client: str = ""  # name/version of the software, for the server's logs


class Heartbeat(Body):
    """Silent for `interval_ms`: send a PING. Unanswered `max_missed` times: dead."""

    interval_ms: AtLeastOne
    timeout_ms: AtLeastOne
    max_missed: AtLeastOne


class Limits(Body):
    """`max_frame` in bytes, head included; `window` in unacknowledged messages a topic."""

    max_frame: AtLeastOne
    window: AtLeastOne
    subscriptions: AtLeastOne


class Reconnect(Body):
    """Wait a random time in 0..min(max_ms, base_ms * factor**attempts) before reconnecting."""

    base_ms: AtLeastOne
    factor: Annotated[float, Meta(ge=1, le=1000)]
    max_ms: AtLeastOne


class Welcome(Body):
    """The login stands. `time` is the server's, in ms since the Unix epoch."""

    user: str
    session: str
    node: str
    time: Count
    heartbeat: Heartbeat
    limits: Limits
    reconnect: Reconnect


class Subscribe(Body):
    """`after` asks for everything behind that seq; None: the stored cursor, else the head.
    `epoch` is the numbering that the client knows; when it is another one by now, `after` means
    nothing and everything that is kept is sent."""

    topic: str
    tags: str = "*"
    after: Count | None = None
    durable: bool = False
    epoch: str = ""


class Subscribed(Body):
    """`first` and `head` are the first and the last seq that the topic has, and the subscription
    continues behind `cursor`; `missed` messages behind it are gone by retention. When `epoch`
    differs from an earlier one, the topic was numbered anew and old numbers mean nothing.
    `durable`: acknowledgements are expected."""

    topic: str
    head: Count = 0
    cursor: Count = 0
    epoch: str = ""
    first: Count = 0
    missed: Count = 0
    durable: bool = False


class Unsubscribe(Body):
    topic: str


class Unsubscribed(Body):
    """`code` is 0 for the answer to an UNSUBSCRIBE, else the error that ended it unasked."""

    topic: str
    code: Small = 0


class Call(Body):
    method: str
    params: Any = None


class Result(Body):
    result: Any = None


class Error(Body):
    """Why a request was refused; `id` and `topic` name the message, where it was one."""

    code: Small
    message: str = ""
    retry_after_ms: Count = 0
    id: int = 0
    topic: str = ""

    def __post_init__(self) -> None:
        # A publisher may use all 64 bits, which is more than Meta can bound.
        if not 0 <= self.id < 2**64:
            raise ValueError("id must be in 0..2**64-1")

    @classmethod
    def of(cls, error: ImError) -> Self:
        return cls(error.code, error.message, error.retry_after_ms, error.id, error.topic)

    def exception(self) -> ImError:
        return ImError(self.code, self.message, self.retry_after_ms, id=self.id, topic=self.topic)


class Goaway(Body):
    """The connection will end with `code`. `alternatives` are addresses, "host:port"."""

    code: Small
    reason: str = ""
    retry_after_ms: Count = 0
    alternatives: list[str] = []

    @classmethod
    def of(cls, closed: Closed) -> Self:
        return cls(closed.code, closed.message, closed.retry_after_ms, list(closed.alternatives))

    def exception(self) -> Closed:
        return Closed(self.code, self.reason, self.retry_after_ms, alternatives=self.alternatives)


B = TypeVar("B", bound=Body)


def write_body(body: Body, codec: int) -> bytes:
    """The bytes of a control body. ValueError when `params` or `result` hold something that
    the codec cannot carry; ImError 415 for Protobuf without its package."""
    if codec == CODEC_PROTOBUF:
        message = _protobuf_class(type(body))()
        try:
            _fill(message, msgspec.to_builtins(body, str_keys=True))
        except (TypeError, RecursionError) as error:
            raise ValueError(f"not a value that Protobuf can carry: {error}") from error
        return message.SerializeToString()
    if codec == CODEC_BYTES:
        raise ValueError("a control body is a map: JSON, MessagePack or Protobuf, not bytes")
    return encode_value(body, codec)


def read_body(kind: type[B], codec: int, data: bytes) -> B:
    """The control body in `data`. ImError 400 for codec bytes, 415 for Protobuf without its
    package, 422 for everything that is not such a body."""
    if codec == CODEC_BYTES:
        raise ImError(ErrorCode.BAD_FRAME, "a control body needs a codec in the flags")
    try:
        if codec == CODEC_JSON:
            return msgspec.json.decode(data, type=kind)
        if codec == CODEC_PROTOBUF:
            return msgspec.convert(_parse(kind, data), kind)
        return msgspec.convert(decode_value(data, codec), kind)
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise ImError(ErrorCode.BAD_BODY, f"{kind.__name__.upper()}: {error}") from error


def _protobuf_class(kind: type[Body]) -> "type[ProtobufMessage]":
    try:
        from imserver import control_pb2
    except ImportError as error:
        text = "Protobuf needs the extra: pip install 'imserver[protobuf]'"
        raise ImError(ErrorCode.CODEC_UNAVAILABLE, text) from error
    found: type[ProtobufMessage] = getattr(control_pb2, kind.__name__)
    return found


def _fill(message: "ProtobufMessage", plain: dict[str, Any]) -> None:
    for name, item in plain.items():
        if name in ("params", "result"):
            getattr(message, name).CopyFrom(to_protobuf(item))
        elif isinstance(item, dict):
            _fill(getattr(message, name), item)
        elif isinstance(item, list):
            getattr(message, name).extend(item)
        else:
            setattr(message, name, item)


def _parse(kind: type[Body], data: bytes) -> dict[str, Any]:
    from_bytes = _protobuf_class(kind).FromString
    from google.protobuf.message import DecodeError

    try:
        return _to_map(from_bytes(data))
    except DecodeError as error:
        raise ValueError(f"not Protobuf: {error}") from error


def _to_map(message: "ProtobufMessage") -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for field, item in message.ListFields():
        if field.name in ("params", "result"):
            plain[field.name] = from_protobuf(item)
        elif field.message_type is not None:
            plain[field.name] = _to_map(item)
        else:
            is_text = isinstance(item, str)
            plain[field.name] = list(item) if isinstance(item, Sequence) and not is_text else item
    return plain
