"""The frames of WebSocket, their mask and their text, each beside a plain model (P1, P2)."""

import codecs
import struct
from itertools import pairwise

import pytest
from door import PROPERTY, GuardedPage, Span, ffi, lib
from hypothesis import example, given
from hypothesis import strategies as st

KEY = b"\x37\xfa\x21\x3d"


def masked(data: bytes, key: bytes = KEY) -> bytes:
    return bytes(byte ^ key[n % 4] for n, byte in enumerate(data))


def client_frame(opcode: int, payload: bytes, *, fin: bool = True, key: bytes = KEY) -> bytes:
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65536:
        length = b"\xfe" + struct.pack(">H", size)
    else:
        length = b"\xff" + struct.pack(">Q", size)
    return bytes([fin << 7 | opcode]) + length + key + masked(payload, key)


def read(
    data: bytes, cuts: list[int], *, may_deflate: bool = False
) -> tuple[list[tuple[int, bool, bytes]], int]:
    """The frames in `data` when it comes in pieces, and the last outcome. Payloads are unmasked
    to in front of where they lay, as the server does."""
    ws = ffi.new("struct im_websocket *", {"may_deflate": may_deflate})
    frames: list[tuple[int, bool, bytes]] = []
    payload = b""
    for start, end in pairwise([0, *sorted(cuts), len(data)]):
        room = ffi.new("uint8_t[]", data[start:end] + b"?")
        span = ffi.new("struct im_span *", (room, end - start))
        at = 0
        while span.len or (ws.is_inside and not ws.left):
            if not ws.is_inside:
                status = lib.im_websocket_head(ws, span)
                if status == lib.IM_BAD:
                    return frames, status
                if status == lib.IM_MORE:
                    break
                payload = b""
            got = lib.im_websocket_take(ws, span, room + at)
            payload += bytes(ffi.buffer(room + at, got))
            at += got
            if not ws.is_inside:
                frames.append((ws.opcode, ws.is_last, payload))
    return frames, lib.IM_OK


@given(
    frames=st.lists(
        st.tuples(st.sampled_from([1, 2, 9, 10]), st.binary(max_size=125) | st.just(b"x" * 70_000)),
        max_size=4,
    ),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
@PROPERTY
def test_frames_are_the_same_wherever_they_are_cut(frames, cuts) -> None:
    frames = [(op, data[:125] if op > 8 else data) for op, data in frames]
    data = b"".join(client_frame(op, payload) for op, payload in frames)
    cuts = [cut for cut in cuts if cut <= len(data)]
    assert read(data, cuts) == ([(op, True, payload) for op, payload in frames], lib.IM_OK)


def test_a_message_in_fragments_has_its_opcode_throughout() -> None:
    data = client_frame(1, b"a", fin=False) + client_frame(9, b"!") + client_frame(0, b"b")
    assert read(data, [])[0] == [(1, False, b"a"), (9, True, b"!"), (1, True, b"b")]


BAD = {
    "reserved bits": b"\xc1\x80" + KEY,
    "unknown data opcode": b"\x83\x80" + KEY,
    "unknown control opcode": b"\x8b\x80" + KEY,
    "no mask": b"\x81\x05hello",
    "a control frame in fragments": b"\x09\x80" + KEY,
    "a control frame too long": b"\x89\xfe\x00\x7e" + KEY,
    "a continuation of nothing": b"\x80\x80" + KEY,
    "a message within a message": client_frame(2, b"a", fin=False) + client_frame(2, b"b"),
    "a length longer than need be": b"\x82\xfe\x00\x7d" + KEY,
    "a long length longer than need be": b"\x82\xff" + bytes(6) + b"\xff\xff" + KEY,
    "a length with its highest bit": b"\x82\xff\x80" + bytes(7) + KEY,
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_what_rfc_6455_forbids_is_bad(data: bytes, piece: int) -> None:
    assert read(data, list(range(piece, len(data), piece)))[1] == lib.IM_BAD


COMPRESSED = client_frame(0x41, b"a", fin=False)  # a text begins
STILL_BAD = {
    "a compressed ping": b"\xc9\x80" + KEY,
    "a compressed close": b"\xc8\x80" + KEY,
    "a continuation that says it again": COMPRESSED + client_frame(0x40, b"b"),
    "another reserved bit": b"\xa1\x80" + KEY,
    "the third reserved bit": b"\xd1\x80" + KEY,
}


@pytest.mark.parametrize("data", STILL_BAD.values(), ids=STILL_BAD)
@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_compression_is_said_by_the_first_frame_of_a_message_alone(data, piece: int) -> None:
    assert read(data, list(range(piece, len(data), piece)), may_deflate=True)[1] == lib.IM_BAD


def test_compression_is_said_only_where_it_was_agreed_to() -> None:
    whole = COMPRESSED + client_frame(9, b"!") + client_frame(0, b"b")
    assert read(whole, [], may_deflate=True)[0] == [
        (1, False, b"a"),
        (9, True, b"!"),
        (1, True, b"b"),
    ]
    assert read(whole, [])[1] == lib.IM_BAD


@given(st.binary(max_size=64))
@PROPERTY
def test_no_byte_past_the_span_is_read(data: bytes) -> None:
    page = GuardedPage(4096)
    ws, span = ffi.new("struct im_websocket *"), ffi.new("struct im_span *", page.span(data))
    room = ffi.new("uint8_t[]", 64)
    while span.len:
        if not ws.is_inside and lib.im_websocket_head(ws, span) != lib.IM_OK:
            break
        lib.im_websocket_take(ws, span, room)


@given(data=st.binary(max_size=300), key=st.binary(min_size=4, max_size=4), gap=st.integers(0, 14))
@example(data=bytes(range(256)) * 40, key=KEY, gap=6)
@PROPERTY
def test_a_mask_comes_off_into_the_same_bytes(data: bytes, key: bytes, gap: int) -> None:
    room = ffi.new("uint8_t[]", bytes(gap) + data + b"?")
    turned = ffi.new("uint8_t[4]", key)
    lib.im_mask(room, room + gap, len(data), turned)
    assert bytes(ffi.buffer(room, len(data))) == masked(data, key)
    assert bytes(ffi.buffer(turned, 4)) == (key * 2)[len(data) % 4 :][:4]


@given(data=st.binary(max_size=40) | st.text(max_size=40).map(str.encode), cut=st.integers(0, 40))
@example(data=b"\xed\xa0\x80", cut=1)
@example(data=b"\xf4\x90\x80\x80", cut=2)
@example(data="ascii and then \N{PILE OF POO}".encode(), cut=17)
@PROPERTY
def test_text_is_judged_as_python_judges_it(data: bytes, cut: int) -> None:
    state = ffi.new("struct im_utf8 *")
    pieces = [Span(data[:cut]), Span(data[cut:])]
    is_text = all(lib.im_utf8_feed(state, piece.value) for piece in pieces)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(data)
    except UnicodeDecodeError:
        assert not is_text
        return
    assert is_text
    assert lib.im_utf8_is_whole(state) == (decoder.getstate()[0] == b"")


def test_text_is_judged_at_its_first_wrong_byte() -> None:
    for wrong in (
        b"\x80",
        b"\xc0",
        b"\xc1",
        b"\xf5",
        b"\xe0\x9f",
        b"\xed\xa0",
        b"\xf0\x8f",
        b"\xff",
    ):
        state, piece = ffi.new("struct im_utf8 *"), Span(b"fine" + wrong)
        assert not lib.im_utf8_feed(state, piece.value), wrong


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, 2**40])
def test_our_heads_are_as_short_as_they_can_be(size: int) -> None:
    room = ffi.new("uint8_t[10]")
    length = lib.im_websocket_write(room, 0x82, size)
    head = bytes(ffi.buffer(room, length))
    expected = (
        bytes([size])
        if size < 126
        else b"\x7e" + struct.pack(">H", size)
        if size < 65_536
        else b"\x7f" + struct.pack(">Q", size)
    )
    assert head == b"\x82" + expected


def test_close_codes_are_those_of_the_rfc() -> None:
    allowed = {code for code in range(6000) if lib.im_websocket_may_close(code)}
    assert allowed == {*range(1000, 1015), *range(3000, 5000)} - {1004, 1005, 1006}
