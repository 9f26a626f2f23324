/*
 * follow.c - durable subscriptions at work.
 *
 * The workload: a reader at the head costs what any subscriber costs, two
 * comparisons more. For one that is behind Python is asked, reads the timeline
 * and feeds it here, until the window is full; and again when half is free.
 * Between the two no message is lost, repeated or out of order, since a cursor
 * takes only what follows what it was sent last (K2).
 *
 *   L1  at most one WANT of a cursor is unanswered.
 *   L2  a cursor that is behind and may be sent more is ASKED, or OWED a
 *       question, or waits for its connection to read (IM_MARK_LAGS).
 */
#include "follow.h"

#include "conn.h"
#include "imcore.h"

/* How often Python hears how far cursors have got; it writes them down in that
 * pace. */
#define REPORT_MS 500u
#define REPORTS_A_RECORD 128u

/* Fed messages of one slot of 4 KiB are sent as one, like a run. */
#define CHUNK_BYTES (4096u - (uint32_t)sizeof(struct im_msg))

static void add_changed(struct im_cursors *cursors, struct im_cursor *cursor)
{
    uint32_t at = (uint32_t)(cursor - cursors->slots);

    if (cursor->marks & IM_CURSOR_CHANGED)
        return;
    cursor->marks |= IM_CURSOR_CHANGED;
    cursor->prev_changed = IM_NONE;
    cursor->next_changed = cursors->changed;
    if (cursors->changed != IM_NONE)
        cursors->slots[cursors->changed].prev_changed = at;
    cursors->changed = at;
}

static void drop_changed(struct im_cursors *cursors, struct im_cursor *cursor)
{
    if (cursor->prev_changed != IM_NONE)
        cursors->slots[cursor->prev_changed].next_changed =
            cursor->next_changed;
    else
        cursors->changed = cursor->next_changed;
    if (cursor->next_changed != IM_NONE)
        cursors->slots[cursor->next_changed].prev_changed =
            cursor->prev_changed;
    cursor->marks &= (uint8_t)~IM_CURSOR_CHANGED;
}

/* Whether the connection reads fast enough to be sent `len` bytes more. To
 * whom nothing is owed anything may be sent: no flush would bring it up. */
static bool reads(const struct im_loop *loop, const struct im_conn *conn,
                  uint64_t len)
{
    return !conn->outbox.bytes || im_outbox_cost(&conn->outbox) + len <=
                                      loop->core->config.outbox_soft_bytes;
}

/* Asks Python to read the timeline for a cursor, when there is a point (L2). */
static void ask(struct im_loop *loop, struct im_cursor *cursor)
{
    struct im_conn *conn = &loop->conns[cursor->conn];

    cursor->marks &= (uint8_t)~IM_CURSOR_OWED;
    if (!im_cursor_may_ask(cursor))
        return;
    if (!reads(loop, conn, 1))
        conn->marks |= IM_MARK_LAGS;
    if (conn->marks & IM_MARK_LAGS)
        return; /* what was fed now would be refused again, and again */
    uint64_t told[] = {cursor->acked, cursor->sent, im_cursor_room(cursor)};
    struct im_span part = {(const uint8_t *)told, sizeof told};
    struct im_record record = {.kind = IM_EVENT_WANT,
                               .b = cursor->number,
                               .conn = im_conn_id(loop, cursor->conn)};
    if (im_loop_tell(loop, record, &part, 1) == IM_OK) {
        cursor->marks |= IM_CURSOR_ASKED;
    } else {
        cursor->marks |= IM_CURSOR_OWED;
        add_changed(&loop->cursors, cursor);
    }
}

void im_follow_moved(struct im_loop *loop, struct im_cursor *cursor)
{
    add_changed(&loop->cursors, cursor);
    ask(loop, cursor);
}

enum im_status im_follow_begin(struct im_loop *loop, uint32_t slot,
                               const struct im_begin *begin,
                               struct im_span topic, uint32_t filter)
{
    struct im_conn *conn = &loop->conns[slot];
    struct im_cursor first = {.acked = begin->cursor,
                              .number = begin->number,
                              .conn = slot,
                              .filter = filter,
                              .window = (uint16_t)begin->window};
    uint32_t at = im_cursor_open(&loop->cursors, &loop->topics, topic, &first,
                                 &conn->subs);
    if (at == IM_NONE)
        return IM_FULL;
    conn->sub_count++;
    ask(loop, &loop->cursors.slots[at]);
    return IM_OK;
}

void im_follow_end(struct im_loop *loop, uint32_t slot, uint32_t sub)
{
    struct im_conn *conn = &loop->conns[slot];
    uint32_t at = loop->topics.subs[sub].at & ~IM_SUB_APART;
    struct im_cursor *cursor = &loop->cursors.slots[at];

    struct im_report report = {.number = cursor->number,
                               .has_ended = 1,
                               .acked = cursor->acked,
                               .sent = cursor->sent};
    struct im_span part = {(const uint8_t *)&report, sizeof report};
    /* A full queue costs acknowledgements: repeats, no losses. */
    im_loop_tell(loop, (struct im_record){.kind = IM_EVENT_CURSORS}, &part, 1);
    if (cursor->marks & IM_CURSOR_CHANGED)
        drop_changed(&loop->cursors, cursor);
    im_filter_drop(&loop->filters, cursor->filter);
    im_cursor_close(&loop->cursors, &loop->topics, at, &conn->subs);
    conn->sub_count--;
}

struct im_cursor *im_follow_find(const struct im_loop *loop, uint32_t slot,
                                 struct im_span name)
{
    const struct im_topics *topics = &loop->topics;
    const struct im_topic *topic =
        im_topic_find(topics, name, im_topic_hash(topics, name));
    uint32_t sub = topic ? loop->conns[slot].subs : IM_NONE;

    while (sub != IM_NONE && topics->subs[sub].topic != topic)
        sub = topics->subs[sub].next;
    if (sub == IM_NONE || !(topics->subs[sub].at & IM_SUB_APART))
        return NULL;
    return &loop->cursors.slots[topics->subs[sub].at & ~IM_SUB_APART];
}

static struct im_cursor *find(struct im_loop *loop, uint32_t slot,
                              uint32_t number)
{
    uint32_t at = im_cursor_find(&loop->cursors, &loop->topics, number,
                                 loop->conns[slot].subs);
    return at == IM_NONE ? NULL : &loop->cursors.slots[at];
}

static bool passes(struct im_loop *loop, const struct im_cursor *cursor,
                   struct im_span tag)
{
    return cursor->filter == IM_FILTER_ALL ||
           im_filter_match(&loop->filters, cursor->filter, tag);
}

/* One cursor and a commit that has come; whether a reference was put. */
static bool offer(struct im_loop *loop, struct im_cursor *cursor,
                  struct im_msg *msg, uint64_t seq, bool is_for_it)
{
    struct im_conn *conn = &loop->conns[cursor->conn];

    if (!im_cursor_offer(cursor, seq, msg->frames)) {
        ask(loop, cursor);
        return false;
    }
    if (is_for_it && !reads(loop, conn, msg->len + IM_OUTBOX_REF_COST)) {
        cursor->marks &= (uint8_t)~IM_CURSOR_LIVE;
        conn->marks |= IM_MARK_LAGS;
        return false;
    }
    if (is_for_it && !im_conn_put(loop, cursor->conn, msg, IM_FOR_MESSAGE))
        return false; /* it is doomed */
    im_cursor_move(cursor, seq + msg->frames - 1, is_for_it);
    add_changed(&loop->cursors, cursor);
    return is_for_it;
}

uint32_t im_follow_deliver(struct im_loop *loop, const struct im_topic *topic,
                           struct im_msg *msg, struct im_span tag,
                           uint32_t skip)
{
    uint64_t seq = im_load_u64(msg->bytes + 8);
    uint32_t put = 0;

    for (uint32_t at = topic->cursors; at != IM_NONE;) {
        struct im_cursor *cursor = &loop->cursors.slots[at];
        bool is_for_it = cursor->conn != skip && passes(loop, cursor, tag);
        at = cursor->next;
        if (seq)
            put += offer(loop, cursor, msg, seq, is_for_it);
        else if (is_for_it)
            put += im_conn_put(loop, cursor->conn, msg, IM_FOR_MESSAGE);
    }
    return put;
}

/* Sends whole frames as one message. False when that is not possible now. What
 * is sent again was judged as a whole before. */
static bool put_chunk(struct im_loop *loop, struct im_cursor *cursor,
                      struct im_span frames, uint32_t count, bool is_again)
{
    struct im_conn *conn = &loop->conns[cursor->conn];

    if (!is_again && !reads(loop, conn, frames.len + IM_OUTBOX_REF_COST)) {
        conn->marks |= IM_MARK_LAGS;
        return false;
    }
    struct im_msg *msg =
        im_pool_take(&loop->pool, (uint32_t)frames.len, IM_FOR_MESSAGE);
    if (!msg) {
        im_stat_add(&loop->stats.pool_refusals, 1);
        cursor->marks |= IM_CURSOR_OWED; /* with the next report */
        return false;
    }
    memcpy(msg->bytes, frames.at, frames.len);
    msg->frames = (uint16_t)count;
    if (im_conn_put(loop, cursor->conn, msg, IM_FOR_MESSAGE)) {
        im_stat_add(&loop->stats.deliveries, count);
        loop->unflushed += 1 + msg->len / IM_UNFLUSHED_BYTES;
        return true;
    }
    im_msg_drop(&loop->pool, msg);
    return false;
}

/* What has been gathered of a page and not yet sent. */
struct chunk {
    struct im_span frames;
    uint32_t count;
    uint64_t last;
};

static bool send_chunk(struct im_loop *loop, struct im_cursor *cursor,
                       struct chunk *chunk, bool is_again)
{
    if (!chunk->count)
        return true;
    if (!put_chunk(loop, cursor, chunk->frames, chunk->count, is_again))
        return false;
    im_stat_add(is_again ? &loop->stats.redelivered : &loop->stats.fed,
                chunk->count);
    if (!is_again)
        im_cursor_move(cursor, chunk->last, true);
    *chunk = (struct chunk){{0}, 0, 0};
    return true;
}

/* Whole MESSAGE frames from the timeline, in order: those that pass the filter
 * are sent, the others passed over. False when it had to stop. */
static bool send_page(struct im_loop *loop, struct im_cursor *cursor,
                      struct im_span page, bool is_again)
{
    struct chunk chunk = {{0}, 0, 0};
    struct im_frame frame;
    struct im_message message;

    for (; page.len; page.at += frame.size, page.len -= frame.size) {
        if (im_frame_peek(page, IM_FRAME_MAX, &frame) != IM_OK ||
            frame.type != IM_MESSAGE ||
            im_message_peek(&frame, &message) != IM_OK)
            return false;
        uint64_t seq = im_load_u64(frame.at + 8);
        if (!is_again && seq <= cursor->sent)
            continue;
        im_filters_begin(&loop->filters);
        bool is_for_it = passes(loop, cursor, message.tag);
        if (!is_again && is_for_it && chunk.count >= im_cursor_room(cursor))
            break;
        bool is_next = seq == (chunk.count ? chunk.last : cursor->sent) + 1;
        if (chunk.count &&
            (!is_for_it || (!is_again && !is_next) ||
             chunk.frames.len + frame.size > CHUNK_BYTES ||
             chunk.frames.at + chunk.frames.len != frame.at) &&
            !send_chunk(loop, cursor, &chunk, is_again))
            return false;
        /* What is missing here cannot be read, or takes another course. */
        if (!is_again && (!is_for_it || !is_next))
            im_cursor_move(cursor, is_for_it ? seq - 1 : seq, false);
        if (!is_for_it)
            continue;
        if (!chunk.count)
            chunk.frames = (struct im_span){frame.at, 0};
        chunk.frames.len += frame.size;
        chunk.last = seq;
        chunk.count++;
    }
    return send_chunk(loop, cursor, &chunk, is_again) && !page.len;
}

/* The next number of a record. */
static uint64_t next_number(struct im_span *bytes)
{
    uint64_t number = 0;

    if (bytes->len >= sizeof number) {
        memcpy(&number, bytes->at, sizeof number);
        bytes->at += sizeof number;
        bytes->len -= sizeof number;
    }
    return number;
}

void im_follow_feed(struct im_loop *loop, uint32_t slot, uint32_t number,
                    struct im_span bytes)
{
    struct im_cursor *cursor = find(loop, slot, number);
    uint64_t last = next_number(&bytes), head = next_number(&bytes);

    if (!cursor)
        return;
    cursor->marks &= (uint8_t)~IM_CURSOR_ASKED;
    if (send_page(loop, cursor, bytes, false)) {
        im_cursor_move(cursor, last, false);
        im_cursor_fed(cursor, head);
    }
    if (cursor->marks & IM_CURSOR_OWED)
        add_changed(&loop->cursors, cursor);
    else
        im_follow_moved(loop, cursor);
}

void im_follow_redeliver(struct im_loop *loop, uint32_t slot, uint32_t number,
                         uint32_t silence_ms, struct im_span frames)
{
    struct im_conn *conn = &loop->conns[slot];
    struct im_cursor *cursor = find(loop, slot, number);
    uint32_t silent_ms = loop->now_ms - loop->heartbeat.seen_ms[slot];

    if (!cursor)
        return;
    bool is_silent = silent_ms >= silence_ms;
    if (is_silent)
        im_heartbeat_doubt(&loop->heartbeat, slot, loop->now_ms);
    /* All or nothing: Python counts what was sent. */
    bool is_sent = !is_silent && !(conn->marks & IM_MARK_ARMED) &&
                   reads(loop, conn, frames.len) &&
                   send_page(loop, cursor, frames, true);
    if (is_sent)
        cursor->marks |= IM_CURSOR_FORWARD;
    /* Python asks again when it hears nothing for long. */
    im_loop_tell(loop,
                 (struct im_record){.kind = IM_EVENT_REDELIVERED,
                                    .a = is_sent,
                                    .b = number,
                                    .conn = im_conn_id(loop, slot)},
                 NULL, 0);
}

void im_follow_advance(struct im_loop *loop, uint32_t slot, uint32_t number,
                       struct im_span bytes)
{
    struct im_cursor *cursor = find(loop, slot, number);
    uint64_t seq = next_number(&bytes);

    if (!cursor)
        return;
    im_cursor_ack(cursor, seq < cursor->sent ? seq : cursor->sent);
    im_follow_moved(loop, cursor);
}

void im_follow_again(struct im_loop *loop, uint32_t slot)
{
    struct im_conn *conn = &loop->conns[slot];

    conn->marks &= (uint8_t)~IM_MARK_LAGS;
    for (uint32_t sub = conn->subs; sub != IM_NONE;
         sub = loop->topics.subs[sub].next) {
        uint32_t at = loop->topics.subs[sub].at;
        if (at & IM_SUB_APART)
            ask(loop, &loop->cursors.slots[at & ~IM_SUB_APART]);
    }
}

void im_follow_report(struct im_loop *loop)
{
    struct im_cursors *cursors = &loop->cursors;
    struct im_report reports[REPORTS_A_RECORD];

    if (loop->now_ms - loop->report_ms < REPORT_MS)
        return;
    loop->report_ms = loop->now_ms;
    uint32_t at = cursors->changed;
    for (; at != IM_NONE; at = cursors->slots[at].next_changed)
        if (cursors->slots[at].marks & IM_CURSOR_OWED) {
            ask(loop, &cursors->slots[at]);
            if (cursors->slots[at].marks & IM_CURSOR_OWED)
                return; /* no room for events */
        }
    for (at = cursors->changed; at != IM_NONE;) {
        uint32_t count = 0;
        for (; at != IM_NONE && count < REPORTS_A_RECORD; count++) {
            const struct im_cursor *cursor = &cursors->slots[at];
            reports[count] = (struct im_report){.number = cursor->number,
                                                .acked = cursor->acked,
                                                .sent = cursor->sent};
            at = cursor->next_changed;
        }
        struct im_span part = {(const uint8_t *)reports,
                               count * sizeof *reports};
        if (im_loop_tell(loop, (struct im_record){.kind = IM_EVENT_CURSORS},
                         &part, 1) != IM_OK)
            return;
        while (count--)
            drop_changed(cursors, &cursors->slots[cursors->changed]);
    }
}
