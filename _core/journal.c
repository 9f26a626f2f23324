/*
 * journal.c - the way to the store and back.
 *
 * The workload: as many messages as come by in one flush of the disk, some
 * thousand, from all threads. On the way there a message costs a record of 48
 * bytes; on the way back it is patched where it lies, and lent to every thread
 * that wants it in the order of the commit.
 */
#define _GNU_SOURCE
#include "journal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "conn.h"
#include "fanout.h"

/* The store may commit as fast as we deliver; sockets must not wait. */
#define COMMITS_A_TURN 1024u

/* Frames of one message; a run of the smallest ones has fewer. */
#define IDS_MAX 128u

/* A RECEIPT: head, id, seq, time. */
#define RECEIPT_LEN (IM_HEAD_LEN + 24u)

/* How long a thread without room is given before it is tried again. */
#define FULL_WAIT_US 50u

/* What a message takes from its pool. */
static uint64_t cost_of(const struct im_loop *loop, const struct im_msg *msg)
{
    return im_msg_room(&loop->pool, msg) + sizeof *msg;
}

enum im_status im_journal_put(struct im_loop *loop, struct im_msg *msg,
                              struct im_origin origin)
{
    uint64_t cost = cost_of(loop, msg);
    struct im_record record = {.kind = IM_COMMAND_COMMIT,
                               .conn = (uintptr_t)msg};
    struct im_span part = {(const uint8_t *)&origin, sizeof origin};

    IM_ASSERT(msg->refs == 1);
    /* One alone may be as large as it likes. */
    if ((loop->journal_bytes &&
         loop->journal_bytes + cost > loop->core->config.pool_bytes / 2) ||
        im_queue_push(&loop->journal, record, &part, 1) != IM_OK)
        return IM_FULL;
    loop->journal_bytes += cost;
    loop->journalled = true;
    im_stat_add(&loop->stats.journalled, 1);
    return IM_OK;
}

enum im_status im_journal_refuse(struct im_loop *loop, struct im_origin origin,
                                 uint16_t code, struct im_span frames)
{
    uint8_t ids[8 * IDS_MAX];
    struct im_frame frame;
    struct im_message message = {0};
    size_t len = 0;

    if (origin.is_token) /* Python knows what it has published */
        return im_loop_tell(loop,
                            (struct im_record){.kind = IM_EVENT_KEPT,
                                               .a = code,
                                               .conn = origin.conn},
                            NULL, 0);
    for (struct im_span rest = frames; rest.len && len < sizeof ids;) {
        if (im_frame_peek(rest, IM_FRAME_MAX, &frame) != IM_OK ||
            im_message_peek(&frame, &message) != IM_OK)
            break;
        memcpy(ids + len, frame.at + 24, 8);
        len += 8;
        rest.at += frame.size;
        rest.len -= frame.size;
    }
    uint8_t topic_len = (uint8_t)message.topic.len;
    struct im_span parts[] = {{&topic_len, 1}, message.topic, {ids, len}};
    struct im_record record = {
        .kind = IM_EVENT_UNKEPT, .a = code, .conn = origin.conn};
    return im_loop_tell(loop, record, parts, 3);
}

void im_journal_refuse_token(struct im_loop *loop, uint64_t token)
{
    struct im_origin origin = {.conn = token, .is_token = 1};

    if (im_journal_refuse(loop, origin, IM_ERROR_OVERLOADED,
                          (struct im_span){0}) != IM_OK &&
        loop->owed_count < IM_KEEPING_MAX)
        loop->owed_tokens[loop->owed_count++] = token;
}

static void tell_owed(struct im_loop *loop)
{
    struct im_record record = {.kind = IM_EVENT_KEPT, .a = IM_ERROR_OVERLOADED};

    while (loop->owed_count) {
        record.conn = loop->owed_tokens[loop->owed_count - 1];
        if (im_loop_tell(loop, record, NULL, 0) != IM_OK) {
            loop->commits_wait = true;
            return;
        }
        loop->owed_count--;
    }
}

/* RECEIPT for each frame, in one message. */
static void send_receipts(struct im_loop *loop, uint32_t slot,
                          const struct im_msg *msg)
{
    struct im_msg *receipts =
        im_pool_take(&loop->pool, msg->frames * RECEIPT_LEN, IM_FOR_CONTROL);
    if (!receipts) {
        im_stat_add(&loop->stats.pool_refusals, 1);
        im_conn_doom(loop, slot, IM_CLOSE_OVERLOADED);
        return;
    }
    const uint8_t *from = msg->bytes;
    uint8_t *to = receipts->bytes;
    for (uint32_t left = msg->frames; left; left--) {
        im_store_u64(to, (uint64_t)(RECEIPT_LEN - 4) << 32 |
                             (uint64_t)IM_RECEIPT << 24);
        memcpy(to + 8, from + 24, 8);
        memcpy(to + 16, from + 8, 16);
        from += im_load_u32(from) + 4;
        to += RECEIPT_LEN;
    }
    if (!im_conn_put(loop, slot, receipts, IM_FOR_CONTROL))
        im_msg_drop(&loop->pool, receipts);
}

/* Tells the publisher. False when Python has no room to hear it. */
static bool answer(struct im_loop *loop, const struct im_msg *msg,
                   uint16_t code, struct im_origin origin)
{
    struct im_span whole = {msg->bytes, msg->len};
    uint32_t slot = origin.is_token ? IM_NONE : im_conn_slot(loop, origin.conn);

    if (origin.is_token && !code) {
        uint64_t place[] = {im_load_u64(msg->bytes + 8),
                            im_load_u64(msg->bytes + 16)};
        struct im_span part = {(const uint8_t *)place, sizeof place};
        struct im_record record = {.kind = IM_EVENT_KEPT, .conn = origin.conn};
        if (im_loop_tell(loop, record, &part, 1) != IM_OK)
            return false;
    } else if (code && (origin.is_token || slot != IM_NONE)) {
        if (im_journal_refuse(loop, origin, code, whole) != IM_OK)
            return false;
    } else if (slot != IM_NONE) {
        send_receipts(loop, slot, msg);
    }
    im_stat_add(code ? &loop->stats.unkept : &loop->stats.receipts,
                msg->frames);
    return true;
}

void im_journal_take(struct im_loop *loop)
{
    const struct im_record *record;

    loop->commits_wait = false;
    tell_owed(loop);
    for (uint32_t left = COMMITS_A_TURN;
         left && (record = im_queue_peek(&loop->commits)); left--) {
        struct im_msg *msg = (struct im_msg *)(uintptr_t)record->conn;
        bool is_ours = msg->owner == loop->pool.owner;
        uint32_t skip = IM_NONE;
        struct im_origin origin;

        memcpy(&origin, im_record_bytes(record), sizeof origin);
        if (is_ours) {
            if (!answer(loop, msg, record->a, origin)) {
                loop->commits_wait = true;
                return;
            }
            loop->journal_bytes -= cost_of(loop, msg);
            if (msg->bytes[5] & IM_NO_ECHO && !origin.is_token)
                skip = im_conn_slot(loop, origin.conn);
        }
        im_queue_consume(&loop->commits, record);
        if (origin.is_new)
            im_fanout_relayed(loop, msg, skip);
        else
            im_msg_drop(&loop->pool, msg);
        if (loop->unflushed >= IM_UNFLUSHED_MAX) {
            im_loop_flush(loop);
            return; /* the next turn goes on, after sockets and commands */
        }
    }
}

enum im_status im_journal_open(struct im_journal *journal, struct im_core *core,
                               int fd)
{
    *journal = (struct im_journal){.core = core};
    IM_ASSERT(core->store_fd < 0);
    /* A thread may write to it after the store has ended: one of our own, or
     * the number could be that of another file by then. */
    core->store_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return core->store_fd < 0 ? IM_FULL : IM_OK;
}

void im_journal_close(struct im_journal *journal)
{
    free(journal->entries);
    *journal = (struct im_journal){0};
}

static bool make_room(struct im_journal *journal)
{
    if (journal->count < journal->room)
        return true;
    uint32_t room = journal->room ? journal->room * 2 : 256;
    struct im_journal_entry *entries =
        realloc(journal->entries, room * sizeof *entries);
    if (!entries)
        return false;
    journal->entries = entries;
    journal->room = room;
    return true;
}

static bool collect_from(struct im_journal *journal, struct im_batch *batch,
                         uint32_t thread, uint64_t bytes_max)
{
    struct im_queue *queue = &journal->core->loops[thread].journal;
    const struct im_record *record;

    while (batch->len < bytes_max && (record = im_queue_peek(queue))) {
        struct im_journal_entry entry = {
            .msg = (struct im_msg *)(uintptr_t)record->conn,
            .first = batch->frame_count,
            .thread = thread};
        struct im_span frames = {entry.msg->bytes, entry.msg->len};

        memcpy(&entry.origin, im_record_bytes(record), sizeof entry.origin);
        if (!make_room(journal) ||
            im_batch_add(batch, frames, entry.origin.device) != IM_OK)
            return false;
        journal->entries[journal->count++] = entry;
        im_queue_consume(queue, record);
    }
    return true;
}

uint32_t im_journal_collect(struct im_journal *journal, struct im_batch *batch,
                            uint64_t bytes_max)
{
    const struct im_core *core = journal->core;

    for (uint32_t i = 0; i < core->loop_count; i++)
        if (!collect_from(journal, batch, i, bytes_max))
            break;
    return journal->count;
}

/* The places of a message's frames in their topic, where it lies (J1). */
static enum im_batch_fate patch(struct im_journal_entry *entry,
                                const struct im_batch *batch)
{
    uint8_t *to = entry->msg->bytes;

    for (uint32_t i = 0; i < entry->msg->frames; i++) {
        const struct im_batch_frame *frame = &batch->frames[entry->first + i];
        memcpy(to + 5, batch->bytes + frame->at + 5, 19); /* flags to time */
        to += frame->size;
    }
    return batch->frames[entry->first].fate;
}

static void push(struct im_journal *journal, uint32_t thread,
                 struct im_record record, struct im_origin origin)
{
    struct im_core *core = journal->core;
    struct im_loop *loop = &core->loops[thread];
    struct im_span part = {(const uint8_t *)&origin, sizeof origin};

    while (im_queue_push(&loop->commits, record, &part, 1) != IM_OK) {
        if (atomic_load_explicit(&core->stopping, memory_order_acquire))
            return;
        im_loop_wake(loop);
        usleep(FULL_WAIT_US);
    }
}

/* The other threads that have an interest, one bit each. */
static uint32_t wanting(const struct im_journal *journal,
                        const struct im_journal_entry *entry)
{
    const struct im_core *core = journal->core;
    const struct im_msg *msg = entry->msg;
    struct im_span topic = {msg->bytes + IM_MESSAGE_LEN, msg->bytes[32]};
    uint32_t threads = 0;

    if (core->loop_count == 1)
        return 0;
    uint64_t hash = im_topic_hash(&core->loops[0].topics, topic);
    for (uint32_t i = 0; i < core->loop_count; i++)
        if (i != entry->thread && im_topics_wants(&core->loops[i].topics, hash))
            threads |= 1u << i;
    return threads;
}

static void settle(struct im_journal *journal, struct im_journal_entry *entry,
                   const struct im_batch *batch, uint16_t code)
{
    struct im_record record = {.kind = IM_COMMAND_COMMIT,
                               .conn = (uintptr_t)entry->msg};
    enum im_batch_fate fate = code ? IM_CONFLICT : patch(entry, batch);

    record.a = code ? code : fate == IM_CONFLICT ? IM_ERROR_CONFLICT : 0;
    entry->origin.is_new = fate == IM_KEPT;
    if (fate == IM_KEPT) {
        uint32_t threads = wanting(journal, entry);
        if (threads)
            im_msg_lend(entry->msg, (uint32_t)__builtin_popcount(threads));
        for (uint32_t i = 0; threads; i++, threads >>= 1)
            if (threads & 1)
                push(journal, i, record, entry->origin);
    }
    push(journal, entry->thread, record, entry->origin);
}

void im_journal_settle(struct im_journal *journal, const struct im_batch *batch,
                       uint16_t code)
{
    struct im_core *core = journal->core;

    for (uint32_t i = 0; i < journal->count; i++)
        settle(journal, &journal->entries[i], batch, code);
    journal->count = 0;
    if (!atomic_load_explicit(&core->stopping, memory_order_acquire))
        for (uint32_t i = 0; i < core->loop_count; i++)
            if (!im_queue_is_empty(&core->loops[i].commits))
                im_loop_wake(&core->loops[i]);
}

bool im_journal_sleeps(struct im_journal *journal)
{
    struct im_core *core = journal->core;

    atomic_store(&core->store_asleep, true);
    for (uint32_t i = 0; i < core->loop_count; i++)
        if (!im_queue_is_empty(&core->loops[i].journal)) {
            atomic_store(&core->store_asleep, false);
            return false;
        }
    return true;
}
