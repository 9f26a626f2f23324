"""The parser of frames beside a reference in Python (frame.h: F1, F2).

The spans stand at the end of a page behind which nothing may be read: a parser that trusts a
length field does not fail these tests, it ends them.
"""

import itertools
import struct
from dataclasses import dataclass

import pytest
from door import PROPERTY, GuardedPage, ffi, lib, text
from hypothesis import example, given
from hypothesis import strategies as st

MAX = 300  # the frame limit of most tests
FRAME_MAX = 2**24 - 1
DURABLE, RETRY, REDELIVERED, NO_ECHO, HISTORY, CODECS = 1, 2, 4, 8, 16, 0xC0
MESSAGE = 7


@pytest.fixture(scope="module")
def page() -> GuardedPage:
    return GuardedPage(8192)


@dataclass(frozen=True)
class Frame:
    """What both parsers say: the outcome, the size if it is known, and the head."""

    status: int
    size: int = 0
    type: int = 0
    flags: int = 0
    request: int = 0


def reference_peek(data: bytes, frame_max: int) -> Frame:
    if len(data) < 4:
        return Frame(lib.IM_MORE)
    size = struct.unpack(">I", data[:4])[0] + 4
    if size < 8 or size > FRAME_MAX:
        return Frame(lib.IM_BAD)
    if size > frame_max:
        return Frame(lib.IM_FULL)
    if len(data) < size:
        return Frame(lib.IM_MORE, size)
    return Frame(lib.IM_OK, size, *struct.unpack(">BBH", data[4:8]))


def peek(span, frame_max: int):
    frame = ffi.new("struct im_frame *")
    return lib.im_frame_peek(span, frame_max, frame), frame


def seen(span, frame_max: int) -> Frame:
    status, frame = peek(span, frame_max)
    if status == lib.IM_OK:
        assert frame.at == span.at
        return Frame(status, frame.size, frame.type, frame.flags, frame.request)
    return Frame(status, frame.size)


def frame_of(body: bytes, type: int = 13, flags: int = 64, request: int = 0) -> bytes:
    return struct.pack(">IBBH", 4 + len(body), type, flags, request) + body


bodies = st.binary(max_size=40)
frames = st.builds(
    frame_of, bodies, st.integers(0, 255), st.integers(0, 255), st.integers(0, 65535)
)


@PROPERTY
@given(st.lists(frames, max_size=6), st.binary(max_size=12))
def test_every_split_of_a_stream_gives_the_same_frames(page, stream, garbage) -> None:
    data = b"".join(stream) + garbage
    for end in range(len(data) + 1):
        at, found = 0, []
        while True:
            judged = seen(page.span(data[at:end]), MAX)
            assert judged == reference_peek(data[at:end], MAX)
            if judged.status != lib.IM_OK:
                break
            found.append(data[at : at + judged.size])
            at += judged.size
        whole = [frame for i, frame in enumerate(stream) if sum(map(len, stream[: i + 1])) <= end]
        assert found[: len(whole)] == whole


EDGES = {
    "0": (0, lib.IM_BAD),
    "1": (1, lib.IM_BAD),
    "3": (3, lib.IM_BAD),
    "4": (4, lib.IM_OK),
    "max-1": (MAX - 5, lib.IM_OK),
    "max": (MAX - 4, lib.IM_OK),
    "max+1": (MAX - 3, lib.IM_FULL),
    "the largest of all": (FRAME_MAX - 4, lib.IM_FULL),
    "one more": (FRAME_MAX - 3, lib.IM_BAD),
    "2^24": (2**24, lib.IM_BAD),
    "2^31-1": (2**31 - 1, lib.IM_BAD),
    "2^31": (2**31, lib.IM_BAD),
    "2^32-1": (2**32 - 1, lib.IM_BAD),
    "GET ": (int.from_bytes(b"GET "), lib.IM_BAD),
}


@pytest.mark.parametrize("edge", EDGES)
def test_a_length_is_judged_on_its_fourth_byte(page, edge) -> None:
    length, expected = EDGES[edge]
    head = struct.pack(">I", length)
    for end in range(4):
        assert seen(page.span(head[:end]), MAX) == Frame(lib.IM_MORE)
    judged = seen(page.span(head), MAX)
    if expected != lib.IM_OK:
        assert judged == Frame(expected)
        return
    assert judged == Frame(lib.IM_MORE, length + 4)
    whole = head + bytes(length)
    assert seen(page.span(whole[:-1]), MAX) == Frame(lib.IM_MORE, length + 4)
    assert seen(page.span(whole), MAX) == Frame(lib.IM_OK, length + 4)


def test_the_largest_limit_admits_the_largest_frame(page) -> None:
    judged = seen(page.span(struct.pack(">I", FRAME_MAX - 4)), FRAME_MAX)
    assert judged == Frame(lib.IM_MORE, FRAME_MAX)


@PROPERTY
@given(st.binary(max_size=64), st.integers(8, 64))
@example(b"\xff" * 8, 8)
def test_garbage_is_judged_like_the_reference_and_never_read_past(page, data, limit) -> None:
    assert seen(page.span(data), limit) == reference_peek(data, limit)


# MESSAGE


def message_of(
    topic, tag, sender, body=b"", *, head=b"\0" * 16, id=0, attempt=0, lens=None
) -> bytes:
    lengths = lens or (len(topic), len(tag), len(sender))
    fixed = head + struct.pack(">Q4B", id, *lengths, attempt)
    return frame_of(fixed + topic + tag + sender + body, MESSAGE)


def reference_message(data: bytes):
    """(topic, tag, sender, id), or None where the frame breaks the layout."""
    if len(data) < 36:
        return None
    topic_len, tag_len, sender_len = data[32:35]
    if not topic_len or tag_len > 64 or not 1 <= sender_len <= 64:
        return None
    ends = [36, 36 + topic_len, 36 + topic_len + tag_len, 36 + topic_len + tag_len + sender_len]
    if ends[-1] > len(data):
        return None
    parts = [data[a:b] for a, b in itertools.pairwise(ends)]
    return (*parts, int.from_bytes(data[24:32]))


def seen_message(page, data: bytes):
    status, frame = peek(page.span(data), 8192)
    assert status == lib.IM_OK
    message = ffi.new("struct im_message *")
    status = lib.im_message_peek(frame, message)
    if status != lib.IM_OK:
        assert status == lib.IM_BAD
        return None
    return text(message.topic), text(message.tag), text(message.sender), message.id


@PROPERTY
@given(
    st.binary(min_size=1, max_size=255),
    st.binary(max_size=64),
    st.binary(min_size=1, max_size=64),
    st.binary(max_size=64),
    st.integers(0, 2**64 - 1),
)
def test_the_parts_of_a_message_are_found_in_place(page, topic, tag, sender, body, id) -> None:
    data = message_of(topic, tag, sender, body, id=id)
    assert seen_message(page, data) == (topic, tag, sender, id)


@PROPERTY
@given(
    st.binary(max_size=80),
    st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)),
)
@example(b"t" * 3, (1, 1, 1))
@example(b"t" * 2, (1, 1, 1))
@example(b"", (255, 64, 64))
def test_lying_lengths_within_a_message_are_bad_and_never_read_past(page, rest, lens) -> None:
    data = message_of(b"", b"", b"", rest, lens=lens)
    assert seen_message(page, data) == reference_message(data)


@pytest.mark.parametrize("size", range(8, 36))
def test_a_message_that_ends_within_its_fixed_part_is_bad(page, size) -> None:
    assert seen_message(page, frame_of(b"\x01" * (size - 8), MESSAGE)) is None


@pytest.mark.parametrize(
    ("topic", "tag", "sender", "fits"),
    [
        (1, 0, 1, True),
        (255, 64, 64, True),
        (0, 0, 1, False),
        (1, 65, 1, False),
        (1, 0, 0, False),
        (1, 0, 65, False),
    ],
)
def test_topic_tag_and_sender_have_bounds(page, topic, tag, sender, fits) -> None:
    data = message_of(b"t" * topic, b"g" * tag, b"s" * sender)
    assert (seen_message(page, data) is not None) == fits


# Runs of messages


def alike(one: bytes, other: bytes) -> bool:
    """Whether two whole MESSAGEs differ in nothing but length, id and body."""
    names_end = 36 + sum(one[32:35])
    return one[4:24] == other[4:24] and one[32:names_end] == other[32:names_end]


run_frames = st.lists(
    st.builds(
        lambda topic, tag, flags, head, id, body: (
            message_of(topic, tag, b"s", body, head=bytes([head]) + b"\0" * 15, id=id)[:5]
            + bytes([flags])
            + message_of(topic, tag, b"s", body, head=bytes([head]) + b"\0" * 15, id=id)[6:]
        ),
        st.sampled_from([b"topic", b"topic", b"topic", b"other"]),
        st.sampled_from([b"", b"", b"", b"t"]),
        st.sampled_from([0, 0, 0, RETRY]),
        st.sampled_from([0, 0, 0, 0, 1]),
        st.integers(0, 2**64 - 1),
        st.binary(max_size=30),
    ),
    min_size=1,
    max_size=12,
)


@PROPERTY
@given(run_frames, st.binary(max_size=50), st.integers(0, 600))
def test_a_run_is_as_long_as_frames_differ_in_id_and_body_only(page, run, garbage, limit) -> None:
    data = b"".join(run) + garbage
    status, frame = peek(page.span(data), 8192)
    assert status == lib.IM_OK
    lib.im_frame_extend(frame, sum(run[0][32:35]), limit)
    count, size = 1, len(run[0])
    for other in run[1:]:
        if not alike(run[0], other) or size + len(other) > limit:
            break
        count, size = count + 1, size + len(other)
    if frame.count > len(run):  # garbage can be a message too
        assert limit >= frame.size > len(b"".join(run))
    else:
        assert (frame.count, frame.size, frame.ahead) == (count, size, len(data) - size)


@PROPERTY
@given(run_frames, st.data())
def test_a_run_ends_before_a_frame_that_is_cut_or_lies(page, run, data) -> None:
    whole = b"".join(run[:1] * 3)
    cut = data.draw(st.integers(0, len(run[0]) - 1))
    for ending in (run[0][:cut], b"\xff\xff\xff\xff" + run[0][4:], bytes(4) + run[0][4:]):
        _, frame = peek(page.span(whole + ending), 8192)
        lib.im_frame_extend(frame, sum(run[0][32:35]), 8192)
        assert (frame.count, frame.size) == (3, len(whole))


# What clients may send


def may_send(page, data: bytes) -> bool:
    status, frame = peek(page.span(data), 8192)
    assert status == lib.IM_OK
    return lib.im_frame_check_client(frame) == lib.IM_OK


def test_a_client_may_set_only_the_flags_of_its_frame(page) -> None:
    for type in range(256):
        known = CODECS | ((DURABLE | RETRY | NO_ECHO) if type == MESSAGE else 0)
        body = bytes(28) if type == MESSAGE else b""
        for flags in range(256):
            assert may_send(page, frame_of(body, type, flags)) == (flags & ~known == 0)


@PROPERTY
@given(st.integers(8, 35), st.integers(1, 255))
def test_what_only_the_server_fills_in_is_empty(page, at, value) -> None:
    data = bytearray(message_of(b"t", b"", b"s"))
    data[at] = value
    servers = at < 24 or at == 35  # seq, time, attempt
    assert may_send(page, bytes(data)) == (not servers)


def test_a_message_has_no_request_number(page) -> None:
    data = bytearray(message_of(b"t", b"", b"s"))
    assert may_send(page, bytes(data))
    data[7] = 1
    assert not may_send(page, bytes(data))


@pytest.mark.parametrize("length", [0, 1, 8, 9, 8 + 254, 8 + 255, 8 + 256, 600])
def test_an_ack_names_a_topic_of_1_to_255_bytes(page, length) -> None:
    body = bytes(range(256)) * 3
    _, frame = peek(page.span(frame_of(body[:length], 9)), 8192)
    topic = ffi.new("struct im_span *")
    status = lib.im_ack_peek(frame, topic)
    assert (status == lib.IM_OK) == (9 <= length <= 8 + 255)
    if status == lib.IM_OK:
        assert text(topic) == body[8:length]
