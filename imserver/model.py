"""Messages, and the four ways their bodies are written.

A body is opaque to the server, which forwards its bytes; only the two ends read it. Its codec
travels in the flags of the frame, so that a reader needs to know nothing in advance.

Not here: frames and their layout (protocol), and what the server itself says (bodies).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgpack  # type: ignore[import-untyped, unused-ignore]
import msgspec

if TYPE_CHECKING:
    from google.protobuf.struct_pb2 import Value

CODEC_BYTES: Final = 0
CODEC_JSON: Final = 1
CODEC_MSGPACK: Final = 2
CODEC_PROTOBUF: Final = 3

#: Codecs by the names that settings and the client use.
CODECS: Final[Mapping[str, int]] = {
    "bytes": CODEC_BYTES,
    "json": CODEC_JSON,
    "msgpack": CODEC_MSGPACK,
    "protobuf": CODEC_PROTOBUF,
}

#: Integers beyond this are not exact in a double, which is all that Protobuf's Value has.
_EXACT = 2**53


class Message(msgspec.Struct, frozen=True, gc=False):
    """One published message, as it was delivered.

    `seq` is its place in the topic, 0 where the topic keeps none. `time_ms` counts from the
    Unix epoch, by the server's clock. `id` is the sender's own number for it. `flags` are those
    of the frame without the codec; `attempt` is 0 except on redelivery.
    """

    topic: str
    tag: str
    sender: str
    body: bytes
    codec: int = CODEC_BYTES
    id: int = 0
    seq: int = 0
    time_ms: int = 0
    flags: int = 0
    attempt: int = 0

    def value(self) -> Any:
        """The body, decoded: bytes as they are, everything else as Python values.

        A Protobuf body is taken for a google.protobuf.Value, which is what `encode_value`
        writes; parse `body` yourself where the application has its own message types.
        ValueError when the body is not what its codec says.
        """
        return decode_value(self.body, self.codec)


def encode_value(value: Any, codec: int) -> bytes:
    """A value as the bytes of a body: dicts, lists, text, numbers, booleans, None, bytes.

    In JSON and Protobuf bytes become base64 text; Protobuf (google.protobuf.Value) has no
    integers beyond 2**53. ValueError for what the codec cannot carry, ImportError for
    Protobuf without its package.
    """
    try:
        if codec == CODEC_JSON:
            return msgspec.json.encode(value)
        if codec == CODEC_MSGPACK:
            plain = msgspec.to_builtins(value, builtin_types=(bytes,), str_keys=True)
            packed: bytes = msgpack.packb(plain)
            return packed
        if codec == CODEC_PROTOBUF:
            return to_protobuf(msgspec.to_builtins(value, str_keys=True)).SerializeToString()
        return bytes(memoryview(value))
    except (TypeError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise ValueError(f"not a value that this codec can carry: {error}") from error


def decode_value(body: bytes, codec: int) -> Any:
    """The value that `encode_value` wrote. ValueError for anything else, whatever it is."""
    try:
        if codec == CODEC_JSON:
            return msgspec.json.decode(body)
        if codec == CODEC_MSGPACK:
            return msgpack.unpackb(body)
        if codec == CODEC_PROTOBUF:
            from google.protobuf.message import DecodeError
            from google.protobuf.struct_pb2 import Value

            try:
                return from_protobuf(Value.FromString(body))
            except DecodeError as error:
                raise ValueError(f"not a google.protobuf.Value: {error}") from error
    except (TypeError, RecursionError, msgspec.MsgspecError) as error:
        raise ValueError(f"not a body of this codec: {error}") from error
    return bytes(body)


def to_protobuf(value: Any) -> "Value":
    """Plain values (dict, list, str, int, float, bool, None) as a google.protobuf.Value."""
    from google.protobuf.struct_pb2 import ListValue, NullValue, Struct, Value

    if value is None:
        return Value(null_value=NullValue.NULL_VALUE)
    if isinstance(value, bool):
        return Value(bool_value=value)
    if isinstance(value, int | float):
        if isinstance(value, int) and abs(value) > _EXACT:
            raise ValueError(f"Protobuf's Value carries integers up to 2**53, not {value}")
        return Value(number_value=value)
    if isinstance(value, str):
        return Value(string_value=value)
    if isinstance(value, dict):
        fields = {key: to_protobuf(item) for key, item in value.items()}
        return Value(struct_value=Struct(fields=fields))
    return Value(list_value=ListValue(values=[to_protobuf(item) for item in value]))


def from_protobuf(value: "Value") -> Any:
    """The other way. Whole numbers come back as int: Value does not tell 1 from 1.0."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {key: from_protobuf(item) for key, item in value.struct_value.fields.items()}
    if kind == "list_value":
        return [from_protobuf(item) for item in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) <= _EXACT else number
    return None if kind in (None, "null_value") else getattr(value, kind)
