"""Messages by themselves, compressed and not, beside Python's own zlib (Z1, Z2)."""

import zlib
from typing import Any

import pytest
from door import PROPERTY, GuardedPage, Span, ffi, lib, text
from hypothesis import example, given
from hypothesis import strategies as st

MOST = 70_000
END = b"\x00\x00\xff\xff"

pytestmark = pytest.mark.skipif(not lib.im_deflate_is_built(), reason="a build without zlib")


class Deflate:
    """The structure of a thread. One for all tests: nothing may be left from call to call."""

    def __init__(self) -> None:
        made = ffi.new("struct im_deflate **")
        assert lib.im_deflate_new(MOST, made) == lib.IM_OK
        self.it = ffi.gc(made[0], lib.im_deflate_free)

    def expand(self, sent: bytes, most: int = MOST) -> bytes | int:
        """What the message was, or the outcome."""
        span = Span(sent)  # which holds the bytes
        return self.expand_span(span.value, most)

    def expand_span(self, span: Any, most: int = MOST) -> bytes | int:
        out = ffi.new("struct im_span *")
        status = lib.im_deflate_expand(self.it, span, most, out)
        return text(out) if status == lib.IM_OK else status

    def shrink(self, *parts: bytes) -> bytes | None:
        spans = [ffi.new("uint8_t[]", part) for part in parts]
        vector = ffi.new(
            "struct iovec[]", [(at, len(part)) for at, part in zip(spans, parts, strict=True)]
        )
        out = ffi.new("struct im_span *")
        return text(out) if lib.im_deflate_shrink(self.it, vector, len(parts), out) else None


@pytest.fixture(scope="module")
def deflate() -> Deflate:
    return Deflate()


def compressed(data: bytes, level: int = 6, bits: int = 15, memory: int = 8, cut: int = 0) -> bytes:
    """As some client would: `cut` is where it flushes in between."""
    shrinker = zlib.compressobj(level, zlib.DEFLATED, -bits, memory)
    first = shrinker.compress(data[:cut]) + (shrinker.flush(zlib.Z_FULL_FLUSH) if cut else b"")
    whole = first + shrinker.compress(data[cut:]) + shrinker.flush(zlib.Z_SYNC_FLUSH)
    return whole.removesuffix(END)


PAYLOADS = st.binary(max_size=400) | st.builds(
    lambda piece, count: (piece * count)[:MOST],
    st.binary(min_size=1, max_size=40),
    st.integers(1, 5_000),
)


@given(
    data=PAYLOADS,
    level=st.integers(0, 9),
    bits=st.integers(9, 15),
    memory=st.integers(1, 9),
    cut=st.integers(0, 500),
)
@example(data=b"", level=6, bits=15, memory=8, cut=0)
@PROPERTY
def test_what_any_client_compresses_is_read(deflate, data, level, bits, memory, cut) -> None:
    sent = compressed(data, level, bits, memory, cut)
    assert len(sent) <= lib.im_deflate_bound(len(data))
    assert deflate.expand(sent) == data


@given(parts=st.lists(PAYLOADS, min_size=1, max_size=5))
@PROPERTY
def test_what_is_sent_is_smaller_and_any_client_reads_it(deflate, parts) -> None:
    parts = [part[: lib.IM_DEFLATE_MAX // len(parts)] for part in parts]
    sent = deflate.shrink(*parts)
    data = b"".join(parts)
    if sent is not None:
        assert len(sent) < len(data)
        assert zlib.decompressobj(-15).decompress(sent + END) == data
    else:
        assert len(compressed(data, 1)) >= len(data)


def test_streams_that_end_within_a_message_follow_each_other(deflate) -> None:
    """RFC 7692, 7.2.3.4."""
    final = bytes.fromhex("f348cdc9c90700")
    assert deflate.expand(final + b"\0") == b"Hello"
    assert deflate.expand(final * 3 + b"\0") == b"Hello" * 3


def test_the_examples_of_the_rfc(deflate) -> None:
    for sent in ("f248cdc9c90700", "000500fAff48656c6c6f00", "f248050000 00ffffcac9c90700"):
        assert deflate.expand(bytes.fromhex(sent)) == b"Hello"


@given(data=st.binary(max_size=300), cut=st.integers(0, 300))
@example(data=compressed(b"hello " * 100), cut=5)
@PROPERTY
def test_what_is_no_message_is_told(deflate, data: bytes, cut: int) -> None:
    """Python's verdict is ours, but that what was cut is not taken for whole."""
    data = data[:cut]
    expander = zlib.decompressobj(-15)
    got = deflate.expand(data)
    try:
        expected = expander.decompress(data + END)
    except zlib.error:
        assert got == lib.IM_BAD
        return
    assert got == expected or got == lib.IM_BAD or expander.unused_data
    assert deflate.expand(compressed(b"the next one")) == b"the next one"  # Z2


def test_a_message_that_was_cut_is_not_whole(deflate) -> None:
    whole = compressed(bytes(range(256)) * 20)
    for cut in range(len(whole)):
        assert deflate.expand(whole[:cut]) == lib.IM_BAD, cut


def test_a_bomb_is_told_at_its_bound_and_a_byte(deflate) -> None:
    """Z1: 10 MB from 10 kB. With a bound in the middle, too."""
    bomb = compressed(bytes(10_000_000), 9)
    assert len(bomb) < 10_500
    assert deflate.expand(bomb) == lib.IM_FULL
    for most in (0, 1, 1_000, MOST):
        assert deflate.expand(compressed(bytes(most)), most) == bytes(most)
        assert deflate.expand(compressed(bytes(most + 1)), most) == lib.IM_FULL


def test_nothing_of_one_message_helps_another(deflate) -> None:
    """Z2: a message that refers to what came before it is none."""
    shrinker = zlib.compressobj(6, zlib.DEFLATED, -15)
    first = shrinker.compress(b"something to refer to") + shrinker.flush(zlib.Z_SYNC_FLUSH)
    second = shrinker.compress(b"something to refer to") + shrinker.flush(zlib.Z_SYNC_FLUSH)
    assert deflate.expand(first[:-4]) == b"something to refer to"
    assert deflate.expand(second[:-4]) == lib.IM_BAD
    twice = [deflate.shrink(b"hello hello hello hello hello") for _ in range(2)]
    assert twice[0] == twice[1]


@given(st.binary(max_size=64))
@PROPERTY
def test_no_byte_past_the_span_is_read(deflate, data: bytes) -> None:
    page = GuardedPage(4096)
    deflate.expand_span(page.span(data))
