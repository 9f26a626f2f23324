"""The compiled connection core: I/O threads that own the sockets and never take the GIL.

Its docstrings are here because this is the contract: `imserver.gateway` is the only importer.
Events come out of `poll()`, commands go in by the other methods; both are copies into bounded
queues, so no call waits for the network. A connection is named by a number that is never used
again while anybody can remember it: its I/O thread in the highest byte, its slot in the lowest
four. Slots count from 0 and are used again after EVENT_CLOSED. A command for a connection that has
gone is ignored. Call it from one thread at a time.
"""

from typing import Final, final

#: (kind, connection, a, b, data); what a, b and data are is told beside each kind.
Event = tuple[int, int, int, int, bytes]

#: First frame. a = flags, b = request, data = one byte n, n bytes of peer address, HELLO body.
#: The connection is paused: answer with welcome(), or send() and close().
EVENT_HELLO: Final[int]
#: SUBSCRIBE, UNSUBSCRIBE (paused: end with ENDS_PAUSE) or CALL (end with ENDS_CALL).
#: a = type | flags << 8, b = request, data = body.
EVENT_FRAME: Final[int]
#: The first MESSAGE on a topic, which waits. data = topic, not yet judged. Answer with decide().
EVENT_ASK: Final[int]
#: A MESSAGE on a topic decided HOOK. data = the frame. Counts as a call: end with ENDS_CALL.
EVENT_MESSAGE: Final[int]
#: The core refused a frame. a = error code, b = request, data = u64 id of the message or 0, topic.
#: Paused: answer with an ERROR by send(..., ENDS_PAUSE).
EVENT_REFUSED: Final[int]
#: The last event of every connection that had an EVENT_HELLO or an EVENT_UPGRADE. a = close code,
#: 0: the peer went.
EVENT_CLOSED: Final[int]

#: Messages to be kept are not: a = error code, data = one byte n, n bytes of topic, their u64 ids.
#: Nobody is paused.
EVENT_UNKEPT: Final[int]
#: What keep() was given is kept: connection = its token, data = seq and time, two native u64; or,
#: with a = error code, it is not.
EVENT_KEPT: Final[int]
#: A durable subscription is behind and may be sent more: b = its number, data = acked, sent, room,
#: three native u64. Answer with feed().
EVENT_WANT: Final[int]
#: How far durable subscriptions have got: data = for each native u32 number, u32 1 when it has
#: ended, u64 acked, u64 sent. Every 500 ms those that changed, and each at its end.
EVENT_CURSORS: Final[int]
#: A NACK; or, once there was one or a redeliver(), an ACK of what had been acknowledged. a = type,
#: b = number, data = seq, acked, sent, three native u64. Paused: answer with send(..., ENDS_PAUSE).
EVENT_POSITION: Final[int]
#: The answer to redeliver(), unless the event queue was full: a = 1 sent, 0 refused; b = number.
EVENT_REDELIVERED: Final[int]

#: A request for WebSocket. data = one byte n, n bytes of peer address, the head of the request.
#: Paused: answer with upgrade(), or close() with a response. EVENT_CLOSED will follow.
EVENT_UPGRADE: Final[int]
#: A message of a PLAIN connection: a = TEXT or BINARY; b = 0: a part, and more of it follows.
#: Counts as a call: end with taken().
EVENT_WEB: Final[int]

#: What a request becomes: frames in binary messages of WebSocket, or messages for Python.
WEB: Final[int]
PLAIN: Final[int]
#: Kinds of messages of WebSocket, and what goes on with one.
TEXT: Final[int]
BINARY: Final[int]
CONTINUATION: Final[int]
#: Whether this build knows compression.
HAS_ZLIB: Final[bool]

#: What a command ends besides its own effect: nothing, the pause, or one call of the connection.
ENDS_NOTHING: Final[int]
ENDS_PAUSE: Final[int]
ENDS_CALL: Final[int]

#: Verdicts: publish live and refuse what is to be kept, hand each message to Python, refuse with a
#: code, keep where the DURABLE flag asks for it, keep all.
ALLOW: Final[int]
HOOK: Final[int]
DENY: Final[int]
KEEP_ASKED: Final[int]
KEEP: Final[int]

@final
class Core:
    """The connections of one server.

    `threads=0` starts no thread: then every `poll()` takes one turn in the caller's thread. All
    sizes and times are bounds a client cannot cross; `imserver.config` documents each. Raises
    ValueError for a bound outside its range, MemoryError when memory or descriptors are missing.
    """

    def __new__(
        cls,
        *,
        threads: int,
        max_connections: int,
        max_frame_bytes: int,
        hello_bytes: int,
        handshake_ms: int,
        interval_ms: int,
        timeout_ms: int,
        max_missed: int,
        outbox_soft_bytes: int,
        outbox_hard_bytes: int,
        stall_ms: int,
        subscriptions: int,
        rights: int,
        calls: int,
        pool_bytes: int,
        max_message_bytes: int,
        deflate: bool,
    ) -> Core: ...
    def fileno(self) -> int:
        """Readable while poll() has something to return, or, with threads=0, to do."""
    def start(self) -> None:
        """Start the I/O threads. Once; OSError when the system refuses them."""
    def stop(self) -> None:
        """End the threads; sockets close with the object. Later commands do nothing."""
    def listen(self, fd: int) -> None:
        """Accept from a listening, non-blocking stream socket, which the core owns from here."""
    def adopt(self, fd: int) -> None:
        """Take a connected, non-blocking stream socket for a client's, which the core owns from
        here."""
    def unlisten(self) -> None:
        """Close the listening socket; connections stay."""
    def poll(self) -> list[Event]:
        """What has happened, in order per connection; at most 256 events a call."""
    def goodbye(self, codec: int, code: int, frame: bytes) -> None:
        """The GOAWAY frame for a close code in one codec; before start(), 64 in all."""
    def welcome(self, conn: int, user: bytes, device: bytes, frame: bytes) -> None:
        """Accept a HELLO: the connection is `user`'s from now on; `frame` is the WELCOME."""
    def send(self, conn: int, frame: bytes, ends: int = ...) -> None:
        """Queue a frame."""
    def upgrade(self, conn: int, transport: int, response: bytes, deflates: bool = False) -> None:
        """Accept an EVENT_UPGRADE: sends the response; then the connection is WEB or PLAIN, with
        `deflates` of messages that may be compressed."""
    def say(self, conn: int, opcode: int, message: bytes, is_last: bool = True) -> None:
        """Send a frame of a message, up to max_frame_bytes, on a PLAIN connection; ignored on
        others. The first is TEXT or BINARY, all that follow CONTINUATION."""
    def taken(self, conn: int) -> None:
        """End one EVENT_WEB of a connection."""
    def decide(self, conn: int, topic: bytes, verdict: int, code: int = ...) -> None:
        """Keep the verdict on publishing to `topic`, until revoke(); `code` is DENY's error."""
    def subscribe(
        self, conn: int, topic: bytes, tags: bytes, frame: bytes, ends: int = ...
    ) -> None:
        """Deliver `topic` to the connection, filtered by b"*" or b"a||b"; then send `frame`."""
    def follow(
        self,
        conn: int,
        number: int,
        topic: bytes,
        tags: bytes,
        cursor: int,
        window: int,
        frame: bytes,
        ends: int = ...,
    ) -> None:
        """Deliver what follows `cursor` in the topic, at most `window` messages ahead of the ACKs;
        0: nothing is acknowledged. Replaces a subscription of the connection to the topic.
        `number` names this one in events and commands and is never used again."""
    def feed(self, conn: int, number: int, frames: bytes, last: int, head: int) -> None:
        """Answer an EVENT_WANT: the messages of the timeline up to `last`, of `head`; those that
        cannot be read may be missing."""
    def redeliver(self, conn: int, number: int, frames: bytes, silence_ms: int) -> None:
        """Send messages again, unless the peer does not read or has been silent for so long; then
        it is asked for a sign of life."""
    def advance(self, conn: int, number: int, seq: int) -> None:
        """Take everything up to `seq`, of what was sent, as acknowledged."""
    def unsubscribe(self, conn: int, topic: bytes, frame: bytes, ends: int = ...) -> None:
        """Stop delivering; then send `frame` unless it is empty."""
    def publish(self, frame: bytes, conn: int = ..., ends: int = ...) -> None:
        """Route a MESSAGE frame to its subscribers, with DURABLE by way of the store; `conn` is
        its origin, who gets the RECEIPT."""
    def keep(self, frame: bytes, token: int) -> None:
        """The same with DURABLE for the program itself: EVENT_KEPT tells what became of it."""
    def broadcast(self, frame: bytes) -> None:
        """Send a MESSAGE frame to every active connection."""
    def revoke(self, conn: int, topic: bytes = ...) -> None:
        """Forget the verdicts on all topics, or on one: the next message asks again."""
    def drain(self, conn: int, frame: bytes) -> None:
        """Enter the state draining; `frame` is the GOAWAY that says until when."""
    def close(self, conn: int, code: int, frame: bytes = ...) -> None:
        """Send what is queued and the GOAWAY `frame`, or the goodbye of `code`; then close."""
    def stats(self) -> dict[str, int]:
        """Counters and gauges of all threads, summed; `docs/operations.md` explains each."""

@final
class Batch:
    """The per-message part of the store's commits, off the GIL.

    add() ... topics() → seal() → blobs(), then parts(), added() → clear(). `seed` is the secret of
    the store; `receipts` publishes of the last `window_ms` are remembered to recognise repeats.
    Call it from one thread at a time.
    """

    def __new__(cls, *, seed: int, receipts: int, window_ms: int) -> Batch: ...
    def clear(self) -> None:
        """Begin the next commit. What was published stays known."""
    def add(self, frames: bytes, device: bytes) -> None:
        """Take whole MESSAGE frames, one behind the other, of one device. ValueError when they
        are not that, MemoryError when they are too many; nothing is taken then."""
    def topics(self) -> list[bytes]:
        """The topics of what was added, each once."""
    def seal(self, heads: list[int], time_ms: int, clock_ms: int) -> None:
        """Fill in seq and time. `heads` are the last seqs of the topics; `clock_ms` does not
        jump."""
    def blobs(self) -> list[tuple[bytes, bytes, int]]:
        """What to write: (frames, devices, checksum), in this order."""
    def parts(self) -> list[tuple[int, int, int, int, int, int, int]]:
        """The index: (number of the topic, first seq, count, number of the blob, offset, length,
        checksum). After blobs()."""
    def added(self) -> list[tuple[bytes, int, tuple[int, ...], tuple[int, ...]]]:
        """For each add(): its frames as they are kept, their count, the numbers of those that
        repeat an earlier publish (seq and time are the first's) and of those whose id stands for
        other content (seq 0)."""
    def recall(self, frames: bytes, devices: bytes, clock_ms: int) -> None:
        """Make the publishes in a blob known again. ValueError when it is none."""

@final
class Journal:
    """What the clients of a core publish to be kept, for the store's one thread.

    collect() → seal and commit the batch → settle() → clear the batch. `fd` is an event descriptor
    that is written to when there is news; it stays the caller's. close() before the core stops.
    """

    def __new__(cls, core: Core, fd: int) -> Journal: ...
    def collect(self, batch: Batch, bytes_max: int) -> int:
        """Add what waits to a batch, about so much; returns how many it holds."""
    def settle(self, batch: Batch, code: int = ...) -> None:
        """After the flush: receipts and live delivery of what was collected, as the batch says; or
        refuse all of it with an error code."""
    def sleeps(self) -> bool:
        """From now on `fd` is written to. False when something has come meanwhile."""
    def close(self) -> None:
        """Take nothing more."""

def checksum(data: bytes) -> int:
    """That of blobs and parts, signed."""

def count_frames(frames: bytes, topic: bytes, seq: int) -> int:
    """How many frames of `topic` with consecutive seqs from `seq` on these are; 0 if not only
    that."""
