"""The binding: the core as Python holds it. No algorithms, no policy.

One crossing a batch: poll() copies what has happened out of the queues, and a
command is a copy into one. Both sides own what they were given.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.unistd cimport close, usleep

from imcore cimport *

Event = tuple[int, int, int, int, bytes]

EVENT_HELLO = IM_EVENT_HELLO
EVENT_FRAME = IM_EVENT_FRAME
EVENT_ASK = IM_EVENT_ASK
EVENT_MESSAGE = IM_EVENT_MESSAGE
EVENT_REFUSED = IM_EVENT_REFUSED
EVENT_CLOSED = IM_EVENT_CLOSED
EVENT_UNKEPT = IM_EVENT_UNKEPT
EVENT_KEPT = IM_EVENT_KEPT
EVENT_WANT = IM_EVENT_WANT
EVENT_CURSORS = IM_EVENT_CURSORS
EVENT_POSITION = IM_EVENT_POSITION
EVENT_REDELIVERED = IM_EVENT_REDELIVERED
EVENT_UPGRADE = IM_EVENT_UPGRADE
EVENT_WEB = IM_EVENT_WEB

WEB = IM_TRANSPORT_WEB
PLAIN = IM_TRANSPORT_PLAIN
TEXT = IM_WS_TEXT
BINARY = IM_WS_BINARY
CONTINUATION = IM_WS_CONTINUATION
HAS_ZLIB = im_deflate_is_built()

ENDS_NOTHING = IM_ENDS_NOTHING
ENDS_PAUSE = IM_ENDS_PAUSE
ENDS_CALL = IM_ENDS_CALL

ALLOW = IM_ALLOW
HOOK = IM_HOOK
DENY = IM_DENY
KEEP_ASKED = IM_KEEP_ASKED
KEEP = IM_KEEP

# Events of one poll(): a crossing is long paid for, the loop of the embedding
# program gets its turn in between, and a login storm does not blow up the heap.
cdef enum:
    EVENTS_A_POLL = 256

# How long a full command queue is given before it is tried again. The thread
# that empties it never waits for us.
cdef enum:
    FULL_WAIT_US = 50


cdef im_span span(bytes data):
    return im_span(<const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef inline im_record order(uint16_t kind, uint64_t conn, uint16_t a=0, uint32_t b=0) noexcept:
    return im_record(size=0, len=0, kind=kind, a=a, b=b, conn=conn)


cdef uint32_t lengths_of(bytes topic, bytes tags) except? 0:
    if not 1 <= len(topic) <= IM_TOPIC_MAX or not 1 <= len(tags) <= IM_FILTER_LEN_MAX:
        raise ValueError("a topic has 1 to 255 bytes, a tag expression 1 to 1,024")
    return <uint32_t>(len(topic) | len(tags) << 16)


@cython.final
cdef class Core:
    """The connections of one server; imserver/_core.pyi has the contract."""

    cdef im_core *_core
    cdef bint _started
    cdef bint _stopped

    def __cinit__(
        self,
        *,
        uint32_t threads,
        uint32_t max_connections,
        uint32_t max_frame_bytes,
        uint32_t hello_bytes,
        uint32_t handshake_ms,
        uint32_t interval_ms,
        uint32_t timeout_ms,
        uint32_t max_missed,
        uint32_t outbox_soft_bytes,
        uint32_t outbox_hard_bytes,
        uint32_t stall_ms,
        uint32_t subscriptions,
        uint32_t rights,
        uint32_t calls,
        uint64_t pool_bytes,
        uint32_t max_message_bytes,
        bint deflate,
    ):
        cdef im_config config = im_config(
            threads=threads,
            max_connections=max_connections,
            max_frame_bytes=max_frame_bytes,
            hello_bytes=hello_bytes,
            handshake_ms=handshake_ms,
            interval_ms=interval_ms,
            timeout_ms=timeout_ms,
            max_missed=max_missed,
            outbox_soft_bytes=outbox_soft_bytes,
            outbox_hard_bytes=outbox_hard_bytes,
            stall_ms=stall_ms,
            subscriptions=subscriptions,
            rights=rights,
            calls=calls,
            pool_bytes=pool_bytes,
            max_message_bytes=max_message_bytes,
            deflate=deflate,
        )
        cdef im_status status = im_core_new(&config, &self._core)
        if status == IM_BAD:
            raise ValueError("a limit of the core is out of its range")
        if status != IM_OK:
            raise MemoryError("the core found no memory or no descriptors")

    def __dealloc__(self):
        if self._core is not NULL:
            with nogil:
                im_core_free(self._core)

    def fileno(self):
        if self._core.config.threads == 0:
            return self._core.loops[0].epoll_fd
        return self._core.event_fd

    def start(self):
        if self._started:
            raise RuntimeError("a core starts once")
        self._started = True
        if im_core_start(self._core) != IM_OK:
            self._stopped = True
            raise OSError("the core could not start its threads")

    def stop(self):
        self._stopped = True
        with nogil:
            im_core_stop(self._core)

    def listen(self, int fd):
        if self._stopped:
            close(fd)
            return
        self._command(0, order(IM_COMMAND_LISTEN, 0, 0, <uint32_t>fd), NULL, 0)

    def adopt(self, int fd):
        if self._stopped:
            close(fd)
            return
        self._command(0, order(IM_COMMAND_ADOPT, 0, 0, <uint32_t>fd), NULL, 0)

    def unlisten(self):
        self._command(0, order(IM_COMMAND_UNLISTEN, 0), NULL, 0)

    def poll(self):
        cdef const im_record *record
        cdef uint32_t number = 0
        cdef list events = []

        if self._core.config.threads == 0 and not self._stopped:
            with nogil:
                im_loop_turn(self._core.loops, 0)
        while len(events) < EVENTS_A_POLL:
            record = im_core_event(self._core, &number)
            if record is NULL:
                if im_core_listener_sleeps(self._core):
                    break
                continue
            events.append((
                record.kind,
                record.conn,
                record.a,
                record.b,
                PyBytes_FromStringAndSize(<const char *>im_record_bytes(record), record.len),
            ))
            im_core_event_done(self._core, number, record)
        return events

    def goodbye(self, uint8_t codec, uint16_t code, bytes frame not None):
        if self._started:
            raise RuntimeError("goodbyes are set before the core starts")
        if im_core_goodbye(self._core, codec, code, span(frame)) != IM_OK:
            raise MemoryError("too many goodbyes")

    def welcome(
        self, uint64_t conn, bytes user not None, bytes device not None, bytes frame not None
    ):
        cdef im_span *parts = [span(user), span(device), span(frame)]
        cdef uint16_t user_len = <uint16_t>len(user)
        if not 1 <= len(user) <= IM_USER_MAX or not 1 <= len(device) <= IM_USER_MAX:
            raise ValueError("a user and a device have 1 to 64 bytes")
        self._tell(order(IM_COMMAND_WELCOME, conn, user_len, <uint32_t>len(device)), parts, 3)

    def send(self, uint64_t conn, bytes frame not None, uint16_t ends=IM_ENDS_NOTHING):
        cdef im_span part = span(frame)
        self._tell(order(IM_COMMAND_SEND, conn, ends), &part, 1)

    def upgrade(
        self, uint64_t conn, uint16_t transport, bytes response not None, bint deflates=False
    ):
        cdef im_span part = span(response)
        if transport not in (IM_TRANSPORT_WEB, IM_TRANSPORT_PLAIN):
            raise ValueError("a request becomes WEB or PLAIN")
        self._tell(order(IM_COMMAND_UPGRADE, conn, transport, deflates), &part, 1)

    def say(self, uint64_t conn, uint32_t opcode, bytes message not None, bint is_last=True):
        cdef im_span part = span(message)
        if opcode > IM_WS_BINARY:
            raise ValueError("a message is TEXT or BINARY, or their CONTINUATION")
        self._tell(order(IM_COMMAND_WEB, conn, 0, opcode | (0 if is_last else IM_WEB_MORE)), &part, 1)

    def taken(self, uint64_t conn):
        self._tell(order(IM_COMMAND_WEB, conn, IM_ENDS_CALL), NULL, 0)

    def decide(self, uint64_t conn, bytes topic not None, uint32_t verdict, uint16_t code=0):
        cdef im_span part = span(topic)
        if not 1 <= len(topic) <= IM_TOPIC_MAX or not IM_ALLOW <= verdict <= IM_KEEP:
            raise ValueError("a verdict is one of five, on a topic of 1 to 255 bytes")
        self._tell(order(IM_COMMAND_DECIDE, conn, code, verdict), &part, 1)

    def subscribe(
        self,
        uint64_t conn,
        bytes topic not None,
        bytes tags not None,
        bytes frame not None,
        uint16_t ends=IM_ENDS_PAUSE,
    ):
        cdef im_span *parts = [span(topic), span(tags), span(frame)]
        self._tell(order(IM_COMMAND_SUBSCRIBE, conn, ends, lengths_of(topic, tags)), parts, 3)

    def follow(
        self,
        uint64_t conn,
        uint32_t number,
        bytes topic not None,
        bytes tags not None,
        uint64_t cursor,
        uint16_t window,
        bytes frame not None,
        uint16_t ends=IM_ENDS_PAUSE,
    ):
        cdef im_begin begin = im_begin(cursor=cursor, number=number, window=window)
        cdef im_span first = im_span(<const uint8_t *>&begin, sizeof(begin))
        cdef im_span *parts = [first, span(topic), span(tags), span(frame)]
        self._tell(order(IM_COMMAND_FOLLOW, conn, ends, lengths_of(topic, tags)), parts, 4)

    def feed(
        self, uint64_t conn, uint32_t number, bytes frames not None, uint64_t last, uint64_t head
    ):
        cdef uint64_t *ends = [last, head]
        cdef im_span *parts = [im_span(<const uint8_t *>ends, 16), span(frames)]
        self._tell(order(IM_COMMAND_FEED, conn, 0, number), parts, 2)

    def redeliver(self, uint64_t conn, uint32_t number, bytes frames not None, uint16_t silence_ms):
        cdef im_span part = span(frames)
        self._tell(order(IM_COMMAND_REDELIVER, conn, silence_ms, number), &part, 1)

    def advance(self, uint64_t conn, uint32_t number, uint64_t seq):
        cdef im_span part = im_span(<const uint8_t *>&seq, 8)
        self._tell(order(IM_COMMAND_ADVANCE, conn, 0, number), &part, 1)

    def unsubscribe(
        self,
        uint64_t conn,
        bytes topic not None,
        bytes frame not None,
        uint16_t ends=IM_ENDS_NOTHING,
    ):
        cdef im_span *parts = [span(topic), span(frame)]
        self._tell(order(IM_COMMAND_UNSUBSCRIBE, conn, ends, <uint32_t>len(topic)), parts, 2)

    def publish(self, bytes frame not None, uint64_t conn=0, uint16_t ends=IM_ENDS_NOTHING):
        cdef im_span part = span(frame)
        self._tell(order(IM_COMMAND_PUBLISH, conn, ends), &part, 1)

    def keep(self, bytes frame not None, uint64_t token):
        cdef im_span *parts = [im_span(<const uint8_t *>&token, 8), span(frame)]
        self._tell(order(IM_COMMAND_PUBLISH, 0, 0, 1), parts, 2)

    def broadcast(self, bytes frame not None):
        cdef im_span part = span(frame)
        cdef uint32_t number
        for number in range(self._core.loop_count):
            self._command(number, order(IM_COMMAND_BROADCAST, 0), &part, 1)

    def revoke(self, uint64_t conn, bytes topic not None=b""):
        cdef im_span part = span(topic)
        self._tell(order(IM_COMMAND_REVOKE, conn), &part, 1)

    def drain(self, uint64_t conn, bytes frame not None):
        cdef im_span part = span(frame)
        self._tell(order(IM_COMMAND_DRAIN, conn), &part, 1)

    def close(self, uint64_t conn, uint16_t code, bytes frame not None=b""):
        cdef im_span part = span(frame)
        self._tell(order(IM_COMMAND_CLOSE, conn, code), &part, 1)

    def stats(self):
        cdef uint64_t sums[IM_STAT_MAX]
        memset(sums, 0, sizeof(sums))
        im_core_stats(self._core, sums)
        return {im_stat_names[i].decode(): sums[i] for i in range(IM_STAT_COUNT)}

    cdef int _tell(self, im_record record, const im_span *parts, size_t count) except -1:
        return self._command(im_conn_thread(record.conn), record, parts, count)

    cdef int _command(
        self, uint32_t number, im_record record, const im_span *parts, size_t count
    ) except -1:
        cdef im_status status
        while not self._stopped:
            status = im_core_command(self._core, number, record, parts, count)
            if status == IM_OK:
                return 0
            if status == IM_BAD:
                raise ValueError("larger than the core can take")
            # Full: the thread empties it without our help, soon.
            if not self._started:
                raise RuntimeError("too many commands before the core was started")
            PyErr_CheckSignals()
            with nogil:
                if self._core.config.threads == 0:
                    im_loop_turn(self._core.loops, 0)
                else:
                    usleep(FULL_WAIT_US)
        return 0


include "store.pxi"
