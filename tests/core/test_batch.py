"""A group commit beside a dictionary of lists (batch.h: B1 to B4)."""

import struct

import pytest
from door import MACHINE, PROPERTY, Span, ffi, lib, text
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from imserver import _core
from imserver.protocol import DURABLE, RETRY, encode_message

HEAD = struct.Struct(">QQ")
#: Of every size around a blob's, mostly small.
SIZES = st.one_of(st.integers(0, 40), st.sampled_from([5_000, 100_000, 262_000, 270_000]))
TOPICS = st.integers(0, 200).map("room:{}".format)
PUBLISHES = st.tuples(
    TOPICS, SIZES, st.integers(0, 6), st.booleans(), st.sampled_from(["ann", "bob"])
)
BLOCKS = st.tuples(st.lists(PUBLISHES, max_size=12), st.integers(0, 2))


def frame_of(publish: tuple, body: bytes) -> bytes:
    topic, size, id, is_retry, sender = publish
    flags = RETRY if is_retry else 0
    return encode_message(topic, sender, body * size, id=id, flags=flags)


def patched(frame: bytes, seq: int, time_ms: int) -> bytes:
    flags = frame[5] & ~RETRY | DURABLE
    return frame[:5] + bytes([flags]) + frame[6:8] + HEAD.pack(seq, time_ms) + frame[24:]


class BatchModel:
    """Timelines by topic, and what each publish became."""

    def __init__(self) -> None:
        self.timelines: dict[str, list[bytes]] = {}
        self.known: dict[tuple, tuple[bytes, int, int]] = {}

    def publish(self, publish: tuple, frame: bytes, device: int, time_ms: int) -> tuple[int, bytes]:
        topic, _, id, is_retry, sender = publish
        key, content = (sender, device, id), patched(frame, 0, 0)
        if id and is_retry and key in self.known:
            first, seq, at_ms = self.known[key]
            if first == content:
                return lib.IM_REPEATED, patched(frame, seq, at_ms)
            return lib.IM_CONFLICT, patched(frame, 0, 0)
        timeline = self.timelines.setdefault(topic, [])
        kept = patched(frame, len(timeline) + 1, time_ms)
        timeline.append(kept)
        if id:
            self.known[key] = (content, len(timeline), time_ms)
        return lib.IM_KEPT, kept


class BatchMachine(RuleBasedStateMachine):
    """Commit after commit, each read back from its blobs."""

    Model = BatchModel

    @initialize(seed=st.integers(0, 2**64 - 1))
    def start(self, seed: int) -> None:
        self.it = ffi.new("struct im_batch *")
        assert lib.im_batch_init(self.it, seed, 10_000, 1_000_000) == lib.IM_OK
        self.model = self.Model()
        self.heads: dict[str, int] = {}
        self.now = 0

    @rule(blocks=st.lists(BLOCKS, max_size=8))
    def commit(self, blocks: list) -> None:
        it, self.now = self.it, self.now + 1
        lib.im_batch_clear(it)
        expected = []
        for publishes, device in blocks:
            frames = [frame_of(publish, b"abc"[device : device + 1]) for publish in publishes]
            span = Span(b"".join(frames))
            assert lib.im_batch_add(it, span.value, device) == lib.IM_OK
            for publish, frame in zip(publishes, frames, strict=True):
                expected.append((device, *self.model.publish(publish, frame, device, self.now)))
        topics = [text(lib.im_batch_topic(it, n)).decode() for n in range(it.topic_count)]
        assert len(set(topics)) == len(topics)
        heads = ffi.new("uint64_t[]", [self.heads.get(topic, 0) for topic in topics] + [0])
        assert lib.im_batch_seal(it, heads, self.now, self.now) == lib.IM_OK
        self.check_frames(expected)
        self.check_blobs(topics, sum(fate == lib.IM_KEPT for _, fate, _ in expected))

    def check_frames(self, expected: list) -> None:
        assert self.it.frame_count == len(expected)
        for number, (device, fate, bytes_) in enumerate(expected):
            frame = self.it.frames[number]
            assert (frame.fate, frame.device) == (fate, device)
            assert bytes(ffi.buffer(self.it.bytes + frame.at, frame.size)) == bytes_

    def check_blobs(self, topics: list[str], kept: int) -> None:
        it, written = self.it, []
        for number in range(it.blob_count):
            blob = it.blobs[number]
            frames = ffi.new("uint8_t[]", blob.len)
            devices = ffi.new("uint8_t[]", 8 * blob.count)
            checksum = lib.im_batch_write(it, number, frames, devices)
            assert checksum == lib.im_batch_checksum(frames, blob.len)
            assert blob.len <= lib.IM_BLOB_MAX or blob.count == 1
            written.append(bytes(frames))
            kept -= blob.count
        assert kept == 0
        ends = dict.fromkeys(range(it.blob_count), 0)
        for number in range(it.part_count):
            part = it.parts[number]
            topic = topics[part.topic]
            assert part.offset == ends[part.blob], "parts lie side by side"
            ends[part.blob] += part.len
            frames = written[part.blob][part.offset : part.offset + part.len]
            head = self.heads.get(topic, 0)
            assert part.first_seq == head + 1
            self.heads[topic] = head + part.count
            assert frames == b"".join(self.model.timelines[topic][head : head + part.count])
            span, name = Span(frames), Span(topic.encode())
            assert lib.im_batch_count(span.value, name.value, head + 1) == part.count
            assert part.checksum == lib.im_batch_checksum(span.value.at, part.len)
        assert ends == {number: len(frames) for number, frames in enumerate(written)}

    def teardown(self) -> None:
        if hasattr(self, "it"):
            assert self.heads == {t: len(frames) for t, frames in self.model.timelines.items()}
            lib.im_batch_free(self.it)


TestBatch = BatchMachine.TestCase
TestBatch.settings = settings(MACHINE, max_examples=40, stateful_step_count=12)


@PROPERTY
@given(cut=st.integers(1, 80), byte=st.integers(0, 47), value=st.integers(0, 255))
def test_what_are_no_frames_is_taken_as_none(cut: int, byte: int, value: int) -> None:
    good = encode_message("room:a", "ann", b"hi")
    changed = good[:byte] + bytes([value]) + good[byte + 1 :]
    for block in (good + good[:-cut], good + changed):
        batch = _core.Batch(seed=1, receipts=10, window_ms=10)
        batch.add(good, b"")
        try:
            batch.add(block, b"")
        except ValueError:
            assert batch.topics() == [b"room:a"]
            batch.seal([0], 1, 1)
            assert len(batch.blobs()[0][0]) == len(good)


def test_what_was_written_is_recalled() -> None:
    batch = _core.Batch(seed=9, receipts=10, window_ms=1_000)
    frame = encode_message("room:a", "ann", b"hi", id=5)
    batch.add(frame, b"phone")
    batch.seal([3], 50, 50)
    ((frames, devices, _),) = batch.blobs()
    after = _core.Batch(seed=9, receipts=10, window_ms=1_000)
    after.recall(frames, devices, 60)
    again = encode_message("room:a", "ann", b"hi", id=5, flags=RETRY)
    after.add(again, b"phone")
    after.add(again, b"tablet")
    after.seal([4], 70, 70)
    assert [block[2] for block in after.added()] == [(0,), ()]
    assert after.added()[0][0] == frames
    for bad in ((frames[:-1], devices), (frames, devices[:-1])):
        with pytest.raises(ValueError, match="not what a batch wrote"):
            after.recall(*bad, 60)


def test_a_batch_has_an_end() -> None:
    batch = _core.Batch(seed=9, receipts=10, window_ms=1_000)
    big = encode_message("room:a", "ann", b"x" * 16_000_000)
    for _ in range(4):
        batch.add(big, b"")
    with pytest.raises(MemoryError):
        batch.add(big, b"")
    with pytest.raises(ValueError, match="one head a topic"):
        batch.seal([], 0, 0)
    with pytest.raises(ValueError, match="receipts"):
        _core.Batch(seed=9, receipts=0, window_ms=1)


@PROPERTY
@given(data=st.binary(min_size=1, max_size=600), bit=st.integers(0, 4_799))
def test_a_flipped_bit_changes_the_checksum(data: bytes, bit: int) -> None:
    at, mask = bit // 8 % len(data), 1 << bit % 8
    flipped = data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]
    assert _core.checksum(flipped) != _core.checksum(data)


@PROPERTY
@given(change=st.sampled_from(["topic", "seq", "tail", "type", "hole"]))
def test_only_a_topic_s_consecutive_frames_are_counted(change: str) -> None:
    frames = [encode_message("room:a", "ann", b"x", seq=seq) for seq in (4, 5, 6)]
    assert _core.count_frames(b"".join(frames), b"room:a", 4) == 3
    topic, seq = b"room:a", 4
    if change == "topic":
        topic = b"room:b"
    elif change == "seq":
        seq = 5
    elif change == "tail":
        frames[2] = frames[2][:-1]
    elif change == "type":
        frames[1] = frames[1][:4] + b"\x08" + frames[1][5:]
    else:
        del frames[1]
    assert _core.count_frames(b"".join(frames), topic, seq) == 0
