/*
 * fanout.c - references to one message into many outboxes.
 *
 * The inner loop of the server: a delivery is a test of the filter, a pointer
 * into an outbox and, the first time this turn, a place on the dirty list. The
 * references are counted once for all. Members are in no order that memory
 * likes, so the connections some places ahead are fetched early.
 */
#include "fanout.h"

#include <sched.h>

#include "conn.h"
#include "follow.h"
#include "imcore.h"
#include "transport.h"

/* Far enough to hide a miss behind the work on the members before it. */
#define PREFETCH_AHEAD 8u

static void deliver(struct im_loop *loop, const struct im_topic *topic,
                    struct im_msg *msg, struct im_span tag, uint32_t skip)
{
    const struct im_member *members = topic->members;
    uint32_t count = topic->member_count, put = 0;

    im_filters_begin(&loop->filters);
    for (uint32_t i = 0; i < count; i++) {
        if (i + PREFETCH_AHEAD < count)
            __builtin_prefetch(&loop->conns[members[i + PREFETCH_AHEAD].conn],
                               1);
        if (members[i].filter != IM_FILTER_ALL &&
            !im_filter_match(&loop->filters, members[i].filter, tag))
            continue;
        if (members[i].conn != skip)
            put += im_conn_put(loop, members[i].conn, msg, IM_FOR_MESSAGE);
    }
    if (IM_UNLIKELY(topic->cursors != IM_NONE))
        put += im_follow_deliver(loop, topic, msg, tag, skip);
    if (put == 0)
        return;
    im_msg_share(&loop->pool, msg, put);
    im_stat_add(&loop->stats.deliveries, (uint64_t)put * msg->frames);
    loop->unflushed += put + msg->len / IM_UNFLUSHED_BYTES;
}

/* Hands a lent message to thread `to`. While its queue is full the sender
 * waits, which its sockets feel, and takes what is queued for itself, so that
 * two full threads cannot wait for each other. That delivers, but closes nobody
 * (C3). */
static void hand_over(struct im_loop *loop, uint32_t to, struct im_msg *msg)
{
    struct im_core *core = loop->core;
    struct im_queue *queue = &core->loops[to].relays[loop->number];
    struct im_record record = {.kind = IM_COMMAND_RELAY,
                               .conn = (uintptr_t)msg};

    while (im_queue_push(queue, record, NULL, 0) != IM_OK) {
        if (atomic_load_explicit(&core->stopping, memory_order_relaxed)) {
            im_msg_unlend(&loop->pool, msg);
            return;
        }
        im_loop_wake(&core->loops[to]);
        im_loop_take_relays(loop, false);
        sched_yield();
    }
    loop->waking |= 1u << to;
}

static uint32_t wanting(const struct im_loop *loop, uint64_t hash)
{
    const struct im_core *core = loop->core;
    uint32_t threads = 0;

    for (uint32_t i = 0; i < core->loop_count; i++)
        if (i != loop->number && im_topics_wants(&core->loops[i].topics, hash))
            threads |= 1u << i;
    return threads;
}

/* Makes delivered frames of published ones: the time, and no RETRY. */
static void stamp(struct im_msg *msg, uint64_t time_ms)
{
    uint8_t *at = msg->bytes;

    for (uint32_t left = msg->frames; left; left--) {
        at[5] &= (uint8_t)~IM_RETRY;
        im_store_u64(at + 16, time_ms);
        at += im_load_u32(at) + 4;
    }
}

void im_fanout_publish(struct im_loop *loop, struct im_msg *msg,
                       struct im_topic *topic, const struct im_message *message,
                       uint64_t hash, uint32_t skip)
{
    stamp(msg, loop->time_ms);

    /* Before the local delivery: a lent message is read by others, and nothing
     * writes into it after this. */
    uint32_t threads = loop->core->loop_count > 1 ? wanting(loop, hash) : 0;
    if (IM_UNLIKELY(threads)) {
        uint32_t count = (uint32_t)__builtin_popcount(threads);
        im_msg_lend(msg, count);
        im_stat_add(&loop->stats.relays, count);
        for (uint32_t i = 0; threads; i++, threads >>= 1)
            if (threads & 1)
                hand_over(loop, i, msg);
    }
    if (topic)
        deliver(loop, topic, msg, message->tag, skip);
    im_msg_drop(&loop->pool, msg);
}

void im_fanout_relayed(struct im_loop *loop, struct im_msg *msg, uint32_t skip)
{
    struct im_frame frame;
    struct im_message message;
    struct im_span whole = {msg->bytes, msg->len};

    if (im_frame_peek(whole, msg->len, &frame) == IM_OK &&
        im_message_peek(&frame, &message) == IM_OK) {
        uint64_t hash = im_topic_hash(&loop->topics, message.topic);
        struct im_topic *topic =
            im_topic_find(&loop->topics, message.topic, hash);
        if (topic)
            deliver(loop, topic, msg, message.tag, skip);
    }
    im_msg_drop(&loop->pool, msg);
}

void im_fanout_broadcast(struct im_loop *loop, struct im_msg *msg)
{
    stamp(msg, loop->time_ms);
    for (uint32_t slot = 0; slot < loop->conn_used; slot++) {
        uint8_t state = loop->conns[slot].state;
        if ((state != IM_STATE_ACTIVE && state != IM_STATE_DRAINING) ||
            loop->conns[slot].transport == IM_TRANSPORT_PLAIN)
            continue;
        if (!im_conn_put(loop, slot, msg, IM_FOR_MESSAGE))
            continue;
        im_msg_share(&loop->pool, msg, 1);
        im_stat_add(&loop->stats.deliveries, 1);
        loop->unflushed++;
    }
    im_msg_drop(&loop->pool, msg);
}
