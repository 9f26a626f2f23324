# What Cython sees of the core. The headers have the contracts.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from *:
    """
    #include "imcore.h"
    #include "transport.h"
    """


cdef extern from "imcore.h" nogil:
    enum im_status:
        IM_OK
        IM_MORE
        IM_BAD
        IM_FULL

    struct im_span:
        const uint8_t *at
        size_t len

    struct im_record:
        uint32_t size
        uint32_t len
        uint16_t kind
        uint16_t a
        uint32_t b
        uint64_t conn

    struct im_config:
        uint32_t threads
        uint32_t max_connections
        uint32_t max_frame_bytes
        uint32_t hello_bytes
        uint32_t handshake_ms
        uint32_t interval_ms
        uint32_t timeout_ms
        uint32_t max_missed
        uint32_t outbox_soft_bytes
        uint32_t outbox_hard_bytes
        uint32_t stall_ms
        uint32_t subscriptions
        uint32_t rights
        uint32_t calls
        uint32_t max_message_bytes
        uint32_t deflate
        uint64_t pool_bytes

    struct im_loop:
        int epoll_fd

    struct im_core:
        im_config config
        uint32_t loop_count
        im_loop *loops
        int event_fd

    const char *const im_stat_names[]

    enum:
        IM_COMMAND_LISTEN
        IM_COMMAND_UNLISTEN
        IM_COMMAND_WELCOME
        IM_COMMAND_SEND
        IM_COMMAND_DECIDE
        IM_COMMAND_SUBSCRIBE
        IM_COMMAND_UNSUBSCRIBE
        IM_COMMAND_PUBLISH
        IM_COMMAND_BROADCAST
        IM_COMMAND_REVOKE
        IM_COMMAND_DRAIN
        IM_COMMAND_CLOSE
        IM_COMMAND_FOLLOW
        IM_COMMAND_FEED
        IM_COMMAND_REDELIVER
        IM_COMMAND_ADVANCE
        IM_COMMAND_ADOPT
        IM_COMMAND_UPGRADE
        IM_COMMAND_WEB

        IM_EVENT_HELLO
        IM_EVENT_FRAME
        IM_EVENT_ASK
        IM_EVENT_MESSAGE
        IM_EVENT_REFUSED
        IM_EVENT_CLOSED
        IM_EVENT_UNKEPT
        IM_EVENT_KEPT
        IM_EVENT_WANT
        IM_EVENT_CURSORS
        IM_EVENT_POSITION
        IM_EVENT_REDELIVERED
        IM_EVENT_UPGRADE
        IM_EVENT_WEB

        IM_TRANSPORT_WEB
        IM_TRANSPORT_PLAIN
        IM_WS_CONTINUATION
        IM_WS_TEXT
        IM_WS_BINARY
        IM_WEB_MORE

        IM_ALLOW
        IM_HOOK
        IM_DENY
        IM_KEEP_ASKED
        IM_KEEP

        IM_ENDS_NOTHING
        IM_ENDS_PAUSE
        IM_ENDS_CALL

        IM_STAT_COUNT
        IM_STAT_MAX
        IM_USER_MAX
        IM_TOPIC_MAX
        IM_FILTER_LEN_MAX

    struct im_begin:
        uint64_t cursor
        uint32_t number
        uint32_t window

    bint im_deflate_is_built()
    const uint8_t *im_record_bytes(const im_record *record)
    im_status im_core_new(const im_config *config, im_core **made)
    void im_core_free(im_core *core)
    im_status im_core_goodbye(im_core *core, uint8_t codec, uint16_t code, im_span frame)
    im_status im_core_start(im_core *core)
    void im_core_stop(im_core *core)
    im_status im_core_command(
        im_core *core, uint32_t number, im_record record, const im_span *parts, size_t count
    )
    const im_record *im_core_event(im_core *core, uint32_t *number)
    void im_core_event_done(im_core *core, uint32_t number, const im_record *record)
    bint im_core_listener_sleeps(im_core *core)
    void im_core_stats(const im_core *core, uint64_t *sums)
    void im_loop_turn(im_loop *loop, int wait_ms)
    uint32_t im_conn_thread(uint64_t id)


cdef extern from "batch.h" nogil:
    enum:
        IM_KEPT
        IM_REPEATED
        IM_CONFLICT

    struct im_batch_frame:
        uint32_t at
        uint32_t size
        uint32_t fate

    struct im_batch_part:
        uint64_t first_seq
        uint64_t checksum
        uint32_t topic
        uint32_t blob
        uint32_t offset
        uint32_t len
        uint32_t count

    struct im_batch_blob:
        uint32_t count
        uint32_t len

    struct im_batch:
        uint64_t seed
        uint8_t *bytes
        uint32_t len
        im_batch_frame *frames
        uint32_t frame_count
        uint32_t topic_count
        im_batch_blob *blobs
        uint32_t blob_count
        im_batch_part *parts
        uint32_t part_count

    uint64_t im_receipt_device(im_span device)
    im_status im_batch_init(im_batch *, uint64_t seed, uint32_t receipts_max, uint64_t window_ms)
    void im_batch_free(im_batch *)
    void im_batch_clear(im_batch *)
    im_status im_batch_add(im_batch *, im_span frames, uint64_t device)
    im_span im_batch_topic(const im_batch *, uint32_t topic)
    im_status im_batch_seal(
        im_batch *, const uint64_t *heads, uint64_t time_ms, uint64_t clock_ms
    )
    uint64_t im_batch_write(im_batch *, uint32_t number, uint8_t *frames, uint8_t *devices)
    im_status im_batch_recall(
        im_batch *, im_span frames, im_span devices, uint64_t clock_ms
    )
    uint32_t im_batch_count(im_span frames, im_span topic, uint64_t seq)
    uint64_t im_batch_checksum(const uint8_t *at, size_t len)


cdef extern from "journal.h" nogil:
    struct im_journal:
        pass

    im_status im_journal_open(im_journal *, im_core *, int fd)
    void im_journal_close(im_journal *)
    uint32_t im_journal_collect(im_journal *, im_batch *, uint64_t bytes_max)
    void im_journal_settle(im_journal *, const im_batch *, uint16_t code)
    bint im_journal_sleeps(im_journal *)
