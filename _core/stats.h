/*
 * stats.h - what a thread counts. One list, from which the struct, the names
 * that Python shows and the sums are made.
 *
 * Each thread writes its own counters and anybody may read them at any time:
 * plain loads and stores on every machine we know, atomic for the language.
 */
#pragma once

#include <stdatomic.h>

#include "base.h"

/* Counters only grow. */
#define IM_COUNTERS(X)                                                         \
    X(turns)          /* wake-ups of the thread */                             \
    X(accepted)       /* connections taken */                                  \
    X(accept_refused) /* no descriptor, slot or memory left */                 \
    X(to_handshake)   /* transitions into each state */                        \
    X(to_authenticating)                                                       \
    X(to_active)                                                               \
    X(to_draining)                                                             \
    X(to_closing)                                                              \
    X(to_closed)                                                               \
    X(suspects)        /* a peer missed a heartbeat */                         \
    X(revivals)        /* ... and was heard again */                           \
    X(deaths)          /* ... or was given up */                               \
    X(slow_readers)    /* closed: bytes or time without progress */            \
    X(protocol_errors) /* closed: no frame, or the wrong one first */          \
    X(receives)        /* calls that read */                                   \
    X(bytes_in)                                                                \
    X(frames_in)                                                               \
    X(messages_in) /* publications, of clients and the application */          \
    X(deliveries)  /* references put into outboxes by fan-out */               \
    X(sends)       /* calls that wrote */                                      \
    X(bytes_out)                                                               \
    X(refusals)    /* frames answered with an error */                         \
    X(asks)        /* publications that waited for a verdict */                \
    X(events)      /* records for Python */                                    \
    X(commands)    /* records from Python */                                   \
    X(relays)      /* messages lent to another thread */                       \
    X(event_waits) /* a connection waited for room in the event queue */       \
    X(store_waits) /* ... or until the store had written something */          \
    X(journalled)  /* messages handed to the store */                          \
    X(receipts)    /* ... and found kept by it */                              \
    X(unkept)      /* ... or refused: conflict, failure */                     \
    X(acks)        /* acknowledgements taken */                                \
    X(fed)         /* messages sent from the timeline */                       \
    X(redelivered) /* ... once more */                                         \
    X(upgrades)    /* connections that became WebSocket */                     \
    X(inflated)    /* messages of WebSocket that came compressed */            \
    X(deflated)    /* ... and that were sent so */                             \
    X(deflate_saved_bytes)                                                     \
    X(pool_refusals) /* the message pool was dry */

/* Gauges go up and down. */
#define IM_GAUGES(X)                                                           \
    X(connections)                                                             \
    X(in_handshake) /* connections in each state */                            \
    X(in_authenticating)                                                       \
    X(in_active)                                                               \
    X(in_draining)                                                             \
    X(in_closing)                                                              \
    X(subscriptions)                                                           \
    X(rights)                                                                  \
    X(topics)                                                                  \
    X(cursors)       /* durable subscriptions */                               \
    X(journal_bytes) /* message memory in the hands of the store */            \
    X(messages)      /* messages and buffers taken from the pool */            \
    X(pool_spare_bytes)

#define IM_FIELD(name) _Atomic uint64_t name;
struct im_stats {
    IM_COUNTERS(IM_FIELD)
    IM_GAUGES(IM_FIELD)
};
#undef IM_FIELD

#define IM_STAT_COUNT (sizeof(struct im_stats) / sizeof(_Atomic uint64_t))

/* Room for all of them, for those who cannot ask for sizeof. */
#define IM_STAT_MAX 64
_Static_assert(IM_STAT_COUNT <= IM_STAT_MAX, "IM_STAT_MAX");

extern const char *const im_stat_names[];

static inline void im_stat_set(_Atomic uint64_t *stat, uint64_t value)
{
    atomic_store_explicit(stat, value, memory_order_relaxed);
}

static inline uint64_t im_stat_get(const _Atomic uint64_t *stat)
{
    return atomic_load_explicit(stat, memory_order_relaxed);
}

/* Only the thread that owns the counter adds to it. */
static inline void im_stat_add(_Atomic uint64_t *stat, uint64_t value)
{
    im_stat_set(stat, im_stat_get(stat) + value);
}
