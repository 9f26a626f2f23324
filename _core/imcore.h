/*
 * imcore.h - the threads together: what Python holds in its hand.
 */
#pragma once

#include <pthread.h>

#include "loop.h"

struct im_core {
    struct im_config config;
    uint64_t seed; /* of the topic hashes */
    struct im_goodbye goodbyes[IM_GOODBYES_MAX];
    uint32_t goodbye_count;
    uint32_t loop_count;
    struct im_loop *loops;
    pthread_t threads[IM_THREADS_MAX];
    uint32_t running;    /* threads started */
    int event_fd;        /* readable when Python has news */
    uint32_t event_turn; /* the thread whose events Python takes next */
    _Atomic bool stopping;
    int store_fd; /* written to when the store has news */
    /* Python has seen everything and waits for event_fd. */
    _Alignas(IM_CACHE_LINE) _Atomic bool listener_asleep;
    /* The store has taken everything and waits for store_fd. */
    _Alignas(IM_CACHE_LINE) _Atomic bool store_asleep;
};

/* A core, to be given back with im_core_free. IM_BAD for a configuration that
 * cannot work, IM_FULL when descriptors or memory are missing. */
enum im_status im_core_new(const struct im_config *config,
                           struct im_core **made);
void im_core_free(struct im_core *core);

/* Before im_core_start: the GOAWAY frame for a close code and a codec. */
enum im_status im_core_goodbye(struct im_core *core, uint8_t codec,
                               uint16_t code, struct im_span frame);

/* The frame set for that code, or an empty span. */
struct im_span im_core_goodbye_for(const struct im_core *core, uint8_t codec,
                                   uint16_t code);

/* Starts the threads; IM_FULL when one cannot be started. */
enum im_status im_core_start(struct im_core *core);

/* Ends the threads, then closes every connection and descriptor. Idempotent. */
void im_core_stop(struct im_core *core);

/* Python's side of the border. One Python thread at a time, as the GIL sees
 * to. */

/* Queues a command for the thread of record.conn (or `number`). IM_FULL: the
 * queue is, try again soon; IM_BAD: it can never hold this. */
enum im_status im_core_command(struct im_core *core, uint32_t number,
                               struct im_record record,
                               const struct im_span *parts, size_t count);

/* The next event of any thread, or NULL; valid until im_core_event_done. */
const struct im_record *im_core_event(struct im_core *core, uint32_t *number);
void im_core_event_done(struct im_core *core, uint32_t number,
                        const struct im_record *record);

/* Nothing left to take: from now on event_fd wakes the listener. False when
 * something arrived meanwhile; event_fd is readable then, in case the listener
 * leaves some of it. */
bool im_core_listener_sleeps(struct im_core *core);

/* An I/O thread has news. */
void im_core_wake_listener(struct im_core *core);

/* An I/O thread has put something into its journal. */
void im_core_wake_store(struct im_core *core);

/* The counters of all threads, summed. */
void im_core_stats(const struct im_core *core, uint64_t *sums);

static inline uint32_t im_conn_thread(uint64_t id)
{
    return (uint32_t)(id >> 56);
}
