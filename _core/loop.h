/*
 * loop.h - everything one I/O thread owns, and its turn.
 *
 * A thread shares nothing but references to messages and queues. All memory a
 * connection could use without being asked is here, bounded at the start; no
 * globals, so a process may hold several cores.
 *
 * A turn: wait, apply what Python ordered, read what is readable, take what
 * other threads sent, retry what had to wait, flush every connection that was
 * written to once, tell Python. The order matters: everything that wants to
 * send has happened before the one flush.
 */
#pragma once

#include "cursors.h"
#include "deflate.h"
#include "event.h"
#include "filter.h"
#include "frame.h"
#include "heartbeat.h"
#include "outbox.h"
#include "pool.h"
#include "queue.h"
#include "rights.h"
#include "ring.h"
#include "stats.h"
#include "topics.h"
#include "webstate.h"

#define IM_THREADS_MAX 16u
#define IM_GOODBYES_MAX 64u

/* The bounds of a core; config.py has the reasons and defaults. */
struct im_config {
    uint32_t threads; /* 0: turns are taken by the caller */
    uint32_t max_connections;
    uint32_t max_frame_bytes;
    uint32_t hello_bytes;
    uint32_t handshake_ms;
    uint32_t interval_ms;
    uint32_t timeout_ms;
    uint32_t max_missed;
    uint32_t outbox_soft_bytes;
    uint32_t outbox_hard_bytes;
    uint32_t stall_ms;
    uint32_t subscriptions; /* of a connection; so are the next two */
    uint32_t rights;
    uint32_t calls;
    uint32_t max_message_bytes; /* of a plain WebSocket */
    uint32_t deflate;           /* 1: WebSockets may be compressed */
    uint64_t pool_bytes;        /* of a thread */
};

/* handshake -> authenticating -> active -> draining -> closing -> closed.
 * Closing: nothing is taken from it any more, what it is owed is sent, then it
 * has a moment to hang up; a close with unread bytes would reset the stream
 * and take the goodbye with it. */
enum im_state {
    IM_STATE_CLOSED = 0,
    IM_STATE_HANDSHAKE,
    IM_STATE_AUTHENTICATING,
    IM_STATE_ACTIVE,
    IM_STATE_DRAINING,
    IM_STATE_CLOSING
};

/* Why a connection is not read; none: it is. */
enum im_pause {
    IM_PAUSE_UPCALL = 1, /* Python has to answer first */
    IM_PAUSE_CALLS = 2,  /* too many calls are under way */
    IM_PAUSE_OUTBOX = 4, /* it does not read what it is owed */
    IM_PAUSE_EVENTS = 8, /* the event queue is full */
    IM_PAUSE_STORE = 16  /* the store has as much to write as it may */
};

enum im_mark {
    IM_MARK_DIRTY = 1,   /* on the dirty list: has something to flush */
    IM_MARK_QUEUED = 2,  /* on the resume list */
    IM_MARK_ARMED = 4,   /* EPOLLOUT is on: the kernel took less than all */
    IM_MARK_DEAF = 8,    /* EPOLLIN is off */
    IM_MARK_KNOWN = 16,  /* Python will be told that it closed */
    IM_MARK_DOOMED = 32, /* to be closed at the next flush */
    IM_MARK_SHUT = 64,   /* our side of the stream has ended */
    IM_MARK_LAGS = 128   /* a cursor waits until it has read what it is owed */
};

/* What fan-out touches comes first. Every byte counts ten thousand times. */
struct im_conn {
    struct im_outbox outbox;
    int fd;
    uint32_t generation;
    uint8_t state;
    uint8_t marks;
    uint8_t pause;
    uint8_t codec;
    uint8_t transport;
    uint8_t user_len;
    uint8_t hot_verdict;
    uint8_t calls;
    uint16_t hot_code;
    uint16_t close_code;
    uint32_t blocked_ms;  /* since when the kernel takes nothing */
    struct im_topic *hot; /* the topic it published to last, if decided */
    struct im_msg *tail;  /* unread bytes: an unfinished frame, or a backlog */
    uint32_t tail_want;   /* length of the unfinished frame; 0: a backlog */
    uint32_t subs;   /* first subscription; of a vacant slot the next one */
    uint32_t rights; /* newest right */
    uint16_t sub_count;
    uint16_t right_count;
};

/* Who a connection logged in as. Most names are short; a long one is apart. */
struct im_user {
    union {
        uint8_t inside[24];
        uint8_t *apart;
    };
    uint64_t device; /* im_receipt_device() */
};

/* What an idle connection with a subscription costs the core, arrays that have
 * just doubled included; 6 are the heartbeat's, 16 those of two lists. */
_Static_assert(sizeof(struct im_conn) + sizeof(struct im_user) + 6 + 16 +
                       2 * (sizeof(struct im_sub) + sizeof(struct im_member)) <=
                   200,
               "idle connection");

/* A GOAWAY frame to send with a close code, in one codec. */
struct im_goodbye {
    uint16_t code;
    uint8_t codec;
    uint32_t len;
    uint8_t *bytes;
};

/* What epoll reports besides connections, which have a thread number below
 * IM_THREADS_MAX in the highest byte. */
#define IM_SOURCE_LISTENER UINT64_MAX
#define IM_SOURCE_TIMER (UINT64_MAX - 1)
#define IM_SOURCE_WAKE (UINT64_MAX - 2)
#define IM_SOURCE_EVENTS (UINT64_MAX - 3) /* threads=0: Python has more */

/* Slots in order of arrival; a slot is on it once. */
struct im_list {
    uint32_t *slots;
    uint32_t count;
};

struct im_core;

struct im_loop {
    struct im_core *core;
    uint32_t number;
    int epoll_fd;
    int timer_fd;
    int wake_fd;
    int listen_fd; /* -1 when this thread does not accept */
    int spare_fd;  /* given up for a moment when descriptors run out */
    bool accept_paused;

    uint32_t now_ms;    /* monotonic, at the start of the turn */
    uint64_t time_ms;   /* since the Unix epoch, likewise */
    uint32_t unflushed; /* references put since the last flush, and bytes */
    uint32_t waking;    /* threads to wake after this turn, one bit each */
    bool told;          /* Python has news */
    bool again;         /* the resume list need not wait for Python */
    bool events_full;   /* somebody waits for room in the event queue */
    bool store_full;    /* ... until the store has written something */
    bool journalled;    /* the store has news */
    bool commits_wait;  /* what came back waits for room in the event queue */
    uint32_t report_ms; /* when cursors were reported last */

    struct im_conn *conns;
    struct im_user *users;
    struct im_web *webs;        /* memory only where somebody uses it */
    struct im_deflate *deflate; /* NULL unless it is on */
    uint32_t conn_count;        /* slots */
    uint32_t conn_used;         /* slots ever used */
    uint32_t conn_vacant;
    struct im_list dirty;
    struct im_list resume;

    struct im_ring ring;
    struct im_gather gather;
    struct im_pool pool;
    struct im_topics topics;
    struct im_filters filters;
    struct im_rights rights;
    struct im_cursors cursors;
    struct im_heartbeat heartbeat;

    struct im_queue events;   /* to Python */
    struct im_queue commands; /* from Python */
    struct im_queue *relays;  /* from each other thread, by number */
    uint32_t relay_count;
    struct im_queue journal; /* to the store */
    struct im_queue commits; /* from the store */
    uint64_t journal_bytes;  /* of this pool, in the hands of the store */
    uint64_t *owed_tokens;   /* of refused publications: Python has to hear */
    uint32_t owed_count;
    struct im_stats stats;

    /* Whether the thread sleeps, or is about to: who queues something for it
     * and finds this set clears it and writes to wake_fd. */
    _Alignas(IM_CACHE_LINE) _Atomic bool asleep;

    /* Connections placed here, those on their way included. */
    _Atomic uint32_t placed;
};

/* IM_FULL when descriptors or memory are missing; free it then, too. */
enum im_status im_loop_init(struct im_loop *loop, struct im_core *core,
                            uint32_t number);
void im_loop_free(struct im_loop *loop);

/* One turn; waits up to `wait_ms` (-1: for ever) when there is nothing to do.
 */
void im_loop_turn(struct im_loop *loop, int wait_ms);

/* Ends every connection without a word and closes all descriptors; the thread
 * must have ended before. Only stats and im_loop_free are left after this. */
void im_loop_end(struct im_loop *loop);

/* Any thread: there is something in a queue of `loop`. */
void im_loop_wake(struct im_loop *loop);

/* Takes what other threads queued for this one: messages and sockets. It may
 * not flush while a frame is dispatched (C3). */
void im_loop_take_relays(struct im_loop *loop, bool may_flush);

/* References put into outboxes before they are flushed in the middle of a turn:
 * about as many as fit into the second-level cache with their blocks. */
#define IM_UNFLUSHED_MAX 32768u

/* The bytes of a message that count as one reference more: so 4 MB of messages
 * are flushed as well, before they are all of a small pool. */
#define IM_UNFLUSHED_BYTES 128u

/* Sends what outboxes hold: at the end of the turn, and within it whenever
 * much has gathered. */
void im_loop_flush(struct im_loop *loop);
