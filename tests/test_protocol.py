"""The wire, byte for byte: what docs/protocol.md shows, every control body in every codec,
every way to split a stream, and bodies that are wrong."""

import contextlib
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from imserver import bodies, protocol
from imserver.errors import Closed, ImError
from imserver.model import CODECS, Message, decode_value, encode_value
from imserver.protocol import FrameReader, FrameType

MAPS = {"json": 1, "msgpack": 2, "protobuf": 3}
DOCS = (Path(__file__).parent.parent / "docs" / "protocol.md").read_text()
GOLDEN = re.findall(r"^```golden\n(.*)\n((?:.|\n)*?)```$", DOCS, re.MULTILINE)


def read_all(data: bytes, max_frame_bytes: int = 1 << 20) -> list[protocol.Frame]:
    return list(FrameReader(max_frame_bytes).feed(data))


def refusal(code: int, call: Any, *args: Any) -> ImError:
    with pytest.raises(ImError) as caught:
        call(*args)
    assert caught.value.code == code
    return caught.value


def outcome(call: Any, *args: Any) -> int:
    """0 when the call worked, else the number it was refused with."""
    try:
        call(*args)
    except ImError as error:
        return error.code
    return 0


# The examples in the docs


def parse_golden(title: str, dump: str) -> tuple[FrameType, dict[str, str], Any, bytes]:
    match = re.fullmatch(r"([A-Z]+)((?: \w+=\w+)*)(?: (\{.*\}))?", title)
    assert match, title
    options = dict(option.split("=") for option in match[2].split())
    data = bytes.fromhex(re.sub(r"#.*", "", dump))
    return FrameType[match[1]], options, json.loads(match[3] or "null"), data


@pytest.mark.parametrize(("title", "dump"), GOLDEN, ids=[title[:40] for title, _ in GOLDEN])
def test_an_example_in_the_docs_is_what_we_read_and_write(title: str, dump: str):
    type, options, fields, data = parse_golden(title, dump)
    request, codec = int(options.get("request", 0)), CODECS[options.get("codec", "bytes")]
    flags = int(options.get("flags", 0))

    [frame] = read_all(data)
    assert (frame.type, frame.request, frame.data) == (type, request, data)
    assert (frame.codec, frame.flags) == (codec, flags | codec << 6)

    if type == FrameType.MESSAGE:
        fields["body"] = fields["body"].encode()
        assert protocol.decode_message(data) == Message(codec=codec, flags=flags, **fields)
        assert protocol.encode_message(codec=codec, flags=flags, **fields) == data
    elif type == FrameType.RECEIPT:
        assert protocol.decode_receipt(frame.body) == protocol.Receipt(**fields)
        assert protocol.encode_receipt(protocol.Receipt(**fields)) == data
    elif type in (FrameType.ACK, FrameType.NACK):
        assert protocol.decode_position(frame.body) == protocol.Position(**fields)
        assert protocol.encode_position(type, protocol.Position(**fields)) == data
    elif fields is None:
        assert protocol.encode_bare(type, request) == data
    else:
        body = protocol.decode_body(type, codec, frame.body)
        assert body == msgspec.convert(fields, body.__class__)
        assert protocol.encode_frame(type, body, codec, request) == data


def test_the_docs_show_every_frame_type():
    assert {parse_golden(*golden)[0] for golden in GOLDEN} == set(FrameType)


def test_the_docs_number_the_frame_types_as_the_code_does():
    table = re.findall(r"^\| (\d+) \| ([A-Z]+) \|", DOCS, re.MULTILINE)
    assert {name: int(number) for number, name in table} == dict(FrameType.__members__)
    for name in FrameType.__members__:
        assert f"\n### {name}\n" in DOCS


@pytest.mark.parametrize(
    "kind", [*protocol._BODIES.values(), bodies.Heartbeat, bodies.Limits, bodies.Reconnect]
)
def test_the_docs_and_the_protobuf_schema_name_every_field(kind: type[bodies.Body]):
    from imserver import control_pb2

    names = list(kind.__struct_fields__)
    assert names == list(getattr(control_pb2, kind.__name__).DESCRIPTOR.fields_by_name)
    parent = {"Heartbeat": "WELCOME", "Limits": "WELCOME", "Reconnect": "WELCOME"}
    title = parent.get(kind.__name__, kind.__name__.upper())
    section = DOCS.split(f"\n### {title}\n")[1].split("\n### ")[0]
    for name in names:
        assert f"| {name} |" in section or f"`{name}`" in section


# Control bodies

count = st.integers(0, 2**63 - 1)
small = st.integers(0, 2**32 - 1)
positive = st.integers(1, 2**32 - 1)
text = st.text(max_size=40)
scalar = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | text
)
finite = scalar.filter(lambda value: value not in (float("inf"), float("-inf")))
value = st.recursive(
    finite, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4)
)
heartbeat = st.builds(bodies.Heartbeat, positive, positive, positive)
limits = st.builds(bodies.Limits, positive, positive, positive)
reconnect = st.builds(bodies.Reconnect, positive, st.floats(1, 1000), positive)
any_body: st.SearchStrategy[tuple[FrameType, bodies.Body]] = st.one_of(
    st.tuples(st.just(type), built)
    for type, built in {
        FrameType.HELLO: st.builds(
            bodies.Hello, small, st.none() | text, st.none() | text, text, text
        ),
        FrameType.WELCOME: st.builds(
            bodies.Welcome, text, text, text, count, heartbeat, limits, reconnect
        ),
        FrameType.SUBSCRIBE: st.builds(
            bodies.Subscribe, text, text, st.none() | count, st.booleans()
        ),
        FrameType.SUBSCRIBED: st.builds(bodies.Subscribed, text, count, count, text),
        FrameType.UNSUBSCRIBE: st.builds(bodies.Unsubscribe, text),
        FrameType.UNSUBSCRIBED: st.builds(bodies.Unsubscribed, text, small),
        FrameType.CALL: st.builds(bodies.Call, text, value),
        FrameType.RESULT: st.builds(bodies.Result, value),
        FrameType.ERROR: st.builds(
            bodies.Error, small, text, count, st.integers(0, 2**64 - 1), text
        ),
        FrameType.GOAWAY: st.builds(bodies.Goaway, small, text, count, st.lists(text)),
    }.items()
)


@given(any_body, st.sampled_from(sorted(MAPS.values())), st.integers(0, 0xFFFF))
def test_a_control_body_comes_back_as_it_was(
    typed: tuple[FrameType, bodies.Body], codec: int, request: int
):
    type, body = typed
    [frame] = read_all(protocol.encode_frame(type, body, codec, request))
    assert (frame.type, frame.codec, frame.request) == (type, codec, request)
    assert protocol.decode_body(type, codec, frame.body) == body


@given(st.sampled_from(list(protocol._BODIES)), st.integers(0, 3), st.binary(max_size=60))
def test_a_body_of_noise_is_read_or_refused_by_number(type: int, codec: int, noise: bytes):
    assert outcome(protocol.decode_body, type, codec, noise) in ((0, 422) if codec else (400,))


@given(any_body, st.sampled_from(sorted(MAPS.values())), st.data())
def test_a_damaged_body_is_read_or_refused_by_number(
    typed: tuple[FrameType, bodies.Body], codec: int, data: st.DataObject
):
    type, body = typed
    raw = bytearray(protocol.encode_frame(type, body, codec)[8:])
    assume(raw)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    assert outcome(protocol.decode_body, type, codec, bytes(raw)) in (0, 422)


BAD_HELLOS: dict[str, Any] = {
    "nothing in it": {},
    "a list": [1],
    "a number": 1,
    "none": None,
    "a version of text": {"version": "1"},
    "a true version": {"version": True},
    "a broken version": {"version": 1.5},
    "a version below zero": {"version": -1},
    "a version of 33 bits": {"version": 2**32},
    "a token of digits": {"version": 1, "token": 5},
    "no device at all": {"version": 1, "device": None},
}


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("bad", BAD_HELLOS.values(), ids=BAD_HELLOS)
def test_a_map_that_is_no_hello_is_422(bad: Any, codec: str):
    refusal(422, protocol.decode_body, 1, CODECS[codec], encode_value(bad, CODECS[codec]))


@pytest.mark.parametrize(
    ("codec", "raw"),
    [
        ("json", b""),
        ("json", b"{"),
        ("json", b'{"topic":"a"} x'),
        ("json", b'{"topic":"\xff"}'),
        ("json", b'{"topic":"\\ud800"}'),
        ("json", b'{"topic":"a","after":18446744073709551616}'),
        ("json", b'{"topic":"a","x":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
        ("msgpack", b""),
        ("msgpack", b"\x81"),
        ("msgpack", b"\xc1"),
        ("msgpack", msgpack.packb({"topic": "a"}) + b"\x00"),
        ("msgpack", msgpack.packb({"topic": b"a"})),
        ("msgpack", b"\x81\xa5topic\xa1\xff"),
        ("msgpack", b"\x81\x01\xa1a"),
        ("msgpack", b"\xdf\xff\xff\xff\xff"),
        ("msgpack", b"\x91" * 10_000 + b"\xc0"),
        ("protobuf", b""),
        ("protobuf", b"\x0a\x05ab"),
        ("protobuf", b"\x0a\x01\xff"),
        ("protobuf", b"\x0b\x0b\x0b"),
        ("protobuf", b"\x0a\x01a\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
    ],
    ids=lambda part: part if isinstance(part, str) else repr(part[:12]),
)
def test_what_is_no_subscribe_in_its_codec_is_422(codec: str, raw: bytes):
    refusal(422, protocol.decode_body, FrameType.SUBSCRIBE, CODECS[codec], raw)


def test_a_control_body_without_a_codec_is_400():
    refusal(400, protocol.decode_body, FrameType.HELLO, 0, b'{"version":1}')


@pytest.mark.parametrize("type", [0, 7, 8, 9, 10, 11, 12, 17, 255])
def test_frames_without_a_control_body_are_400(type: int):
    refusal(400, protocol.decode_body, type, 1, b"{}")


def test_protobuf_without_its_package_is_415(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "imserver.control_pb2", None)
    monkeypatch.delattr("imserver.control_pb2", raising=False)
    refusal(415, protocol.decode_body, FrameType.HELLO, 3, b"\x08\x01")
    refusal(415, protocol.encode_frame, FrameType.HELLO, bodies.Hello(1), 3)


def test_unknown_fields_are_ignored():
    hello = {"version": 1, "colour": "green"}
    for codec in (1, 2):
        decoded = protocol.decode_body(1, codec, encode_value(hello, codec))
        assert decoded == bodies.Hello(1)
    assert protocol.decode_body(1, 3, b"\x08\x01\xfa\x01\x01x") == bodies.Hello(1)


def test_what_a_codec_cannot_carry_is_a_value_error():
    for codec in MAPS.values():
        with pytest.raises(ValueError, match="carry"):
            protocol.encode_frame(FrameType.RESULT, bodies.Result(object()), codec)
    with pytest.raises(ValueError, match="2\\*\\*53"):
        protocol.encode_frame(FrameType.RESULT, bodies.Result(2**53 + 1), 3)
    with pytest.raises(ValueError, match="not bytes"):
        protocol.encode_frame(FrameType.RESULT, bodies.Result(1), 0)


def test_errors_cross_the_wire_and_stay_themselves():
    error = ImError(429, "slower", 250, id=7, topic="room:1")
    back = bodies.Error.of(error).exception()
    assert vars(back) == vars(error)
    closed = Closed(4301, "over there", 5, alternatives=["b:1", "c:2"])
    assert vars(bodies.Goaway.of(closed).exception()) == vars(closed)


# Message bodies


@given(value, st.sampled_from(sorted(MAPS.values())))
@example({"a": [1, 2.5, None, True, "é"]}, 3)
def test_a_value_comes_back_from_its_codec(value: Any, codec: int):
    assert decode_value(encode_value(value, codec), codec) == value


def test_bytes_are_bytes():
    assert encode_value(memoryview(b"ab"), 0) == b"ab"
    assert decode_value(b"ab", 0) == b"ab"
    assert decode_value(encode_value({"raw": b"\xff"}, 2), 2) == {"raw": b"\xff"}
    with pytest.raises(ValueError, match="carry"):
        encode_value("text", 0)


@given(st.binary(max_size=60), st.integers(1, 3))
def test_noise_is_a_value_or_a_value_error(noise: bytes, codec: int):
    with contextlib.suppress(ValueError):
        Message("t", "", "s", noise, codec).value()


# MESSAGE

u64 = st.integers(0, 2**64 - 1)


def utf8(least: int, most: int) -> st.SearchStrategy[str]:
    return st.text(min_size=least, max_size=most).filter(
        lambda text: least <= len(text.encode()) <= most
    )


messages = st.builds(
    Message,
    topic=utf8(1, 255),
    tag=utf8(0, 64),
    sender=utf8(1, 64),
    body=st.binary(max_size=300),
    codec=st.integers(0, 3),
    id=u64,
    seq=u64,
    time_ms=u64,
    flags=st.integers(0, 63),
    attempt=st.integers(0, 255),
)


@given(messages)
def test_a_message_comes_back_as_it_was(message: Message):
    frame = protocol.encode_message(**msgspec.structs.asdict(message))
    assert protocol.decode_message(frame) == message
    assert len(read_all(frame)) == 1


@given(messages, st.data())
def test_a_damaged_message_is_read_or_refused_by_number(message: Message, data: st.DataObject):
    raw = bytearray(protocol.encode_message(**msgspec.structs.asdict(message)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    keep = data.draw(st.integers(0, len(raw)))
    assert outcome(protocol.decode_message, bytes(raw[:keep])) in (0, 400)


def test_a_message_that_does_not_fit_is_not_written():
    for topic, tag, sender in [("", "", "s"), ("t" * 256, "", "s"), ("t", "g" * 65, "s")]:
        with pytest.raises(ValueError, match="sender 1"):
            protocol.encode_message(topic, sender, b"", tag=tag)
    with pytest.raises(ValueError, match="sender 1"):
        protocol.encode_message("t", "s" * 65, b"")
    refusal(413, protocol.encode_message, "t", "s", bytes(2**24))


@pytest.mark.parametrize("body", [b"", bytes(7), bytes(8), bytes(23), bytes(25)])
def test_fixed_bodies_of_the_wrong_size_are_400(body: bytes):
    refusal(400, protocol.decode_receipt, body)
    if len(body) <= 8:
        refusal(400, protocol.decode_position, body)


# FrameReader


def stream() -> tuple[bytes, list[bytes]]:
    frames = [
        protocol.encode_frame(FrameType.HELLO, bodies.Hello(1, user="ann"), 1, 1),
        protocol.encode_bare(FrameType.PING, 9),
        protocol.encode_message("room:1", "ann", b"x" * 20, tag="a"),
        protocol.encode_bare(FrameType.PONG),
    ]
    return b"".join(frames), frames


def feed_in_pieces(pieces: Iterable[bytes]) -> list[bytes]:
    reader = FrameReader(1000)
    return [frame.data for piece in pieces for frame in reader.feed(piece)]


def test_every_split_in_two_gives_the_same_frames():
    data, frames = stream()
    for cut in range(len(data) + 1):
        assert feed_in_pieces([data[:cut], data[cut:]]) == frames


def test_single_bytes_give_the_same_frames():
    data, frames = stream()
    assert feed_in_pieces(data[i : i + 1] for i in range(len(data))) == frames


@given(st.lists(st.integers(0, 200), max_size=8))
def test_any_split_gives_the_same_frames(cuts: list[int]):
    data, frames = stream()
    edges = sorted({0, *(min(cut, len(data)) for cut in cuts), len(data)})
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert feed_in_pieces(pieces) == frames


def test_a_reader_that_is_left_early_goes_on_where_it_stopped():
    data, frames = stream()
    reader = FrameReader(1000)
    seen = []
    for frame in reader.feed(data):
        seen.append(frame.data)
        break
    for frame in reader.feed(data):
        seen.append(frame.data)
        break
    seen += [frame.data for frame in reader]
    assert seen == frames + frames


@pytest.mark.parametrize("length", [0, 1, 3, 2**24 - 4, 2**31 - 1, 2**32 - 1])
def test_a_length_that_no_frame_has_is_4004(length: int):
    with pytest.raises(Closed) as caught:
        read_all(length.to_bytes(4))
    assert caught.value.code == 4004


@pytest.mark.parametrize("length", [97, 98, 65_536, 2**24 - 5])
def test_a_length_over_the_limit_is_4013_on_its_fourth_byte(length: int):
    with pytest.raises(Closed) as caught:
        read_all(length.to_bytes(4), max_frame_bytes=100)
    assert caught.value.code == 4013


def test_a_frame_of_exactly_the_limit_is_read():
    frame = (96).to_bytes(4) + bytes(96)
    assert [found.data for found in read_all(frame, max_frame_bytes=100)] == [frame]


def test_frames_before_a_broken_length_are_still_read():
    data, frames = stream()
    reader = FrameReader(1000)
    seen = []
    with pytest.raises(Closed):
        seen.extend(frame.data for frame in reader.feed(data + bytes(4)))
    assert seen == frames
