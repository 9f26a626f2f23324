/*
 * dispatch.c - frames by type and state.
 *
 * Nearly all frames are publications whose right is kept: two comparisons, a
 * copy into a message, fan-out. Those that follow with the same head and names
 * share all of that: one message, one reference a subscriber, however many
 * came in one read. PING is answered here. Everything else is told
 * to Python once, and then the connection waits for the answer: order holds,
 * and nobody can queue work faster than it is done.
 *
 *   D1  a frame is taken whole or left whole; what is left is judged again.
 *   D2  whoever is told something Python has to answer is paused until then.
 */
#include "dispatch.h"

#include "conn.h"
#include "fanout.h"
#include "follow.h"
#include "imcore.h"
#include "journal.h"

/* A run of publications becomes one message that fills a slot of 4 KiB. By then
 * what a message costs is spread over dozens of frames; and what is bounded in
 * references, a relay queue or the outboxes of a turn, stands for memory that
 * the pool has. */
#define RUN_BYTES (4096u - (uint32_t)sizeof(struct im_msg))

enum im_fate im_dispatch_close(struct im_loop *loop, uint32_t slot,
                               uint16_t code)
{
    if (code != IM_CLOSE_HEARTBEAT && code != IM_CLOSE_OVERLOADED)
        im_stat_add(&loop->stats.protocol_errors, 1);
    im_conn_close(loop, slot, code, (struct im_span){0});
    return IM_GONE;
}

enum im_fate im_dispatch_tell(struct im_loop *loop, uint32_t slot,
                              struct im_record record,
                              const struct im_span *parts, size_t count,
                              enum im_pause pause)
{
    record.conn = im_conn_id(loop, slot);
    /* In order of arrival: nobody overtakes those who wait for room. */
    if (!loop->events_full &&
        im_loop_tell(loop, record, parts, count) == IM_OK) {
        im_conn_pause(&loop->conns[slot], pause);
        return IM_TAKEN;
    }
    loop->events_full = true;
    im_stat_add(&loop->stats.event_waits, 1);
    im_conn_pause(&loop->conns[slot], IM_PAUSE_EVENTS);
    im_conn_retry(loop, slot);
    return IM_LEFT;
}

static enum im_fate refuse(struct im_loop *loop, uint32_t slot, uint16_t code,
                           const struct im_frame *frame, struct im_span topic)
{
    uint8_t id[8] = {0};
    if (frame->type == IM_MESSAGE && frame->size >= IM_MESSAGE_LEN)
        memcpy(id, frame->at + 24, 8);

    struct im_span parts[] = {{id, sizeof id}, topic};
    struct im_record record = {
        .kind = IM_EVENT_REFUSED, .a = code, .b = frame->request};
    enum im_fate fate =
        im_dispatch_tell(loop, slot, record, parts, 2, IM_PAUSE_UPCALL);
    if (fate == IM_TAKEN)
        im_stat_add(&loop->stats.refusals, 1);
    return fate;
}

static struct im_span body_of(const struct im_frame *frame)
{
    return (struct im_span){frame->at + IM_HEAD_LEN, frame->size - IM_HEAD_LEN};
}

static enum im_fate on_hello(struct im_loop *loop, uint32_t slot,
                             const struct im_frame *frame)
{
    struct im_conn *conn = &loop->conns[slot];
    char peer[64];

    if (frame->type != IM_HELLO)
        return im_dispatch_close(loop, slot, IM_CLOSE_UNAUTHORIZED);
    if (im_frame_check_client(frame) != IM_OK)
        return im_dispatch_close(loop, slot, IM_CLOSE_BAD_PROTOCOL);

    uint8_t peer_len = (uint8_t)im_conn_peer(conn, peer, sizeof peer);
    struct im_span parts[] = {
        {&peer_len, 1}, {(const uint8_t *)peer, peer_len}, body_of(frame)};
    struct im_record record = {
        .kind = IM_EVENT_HELLO, .a = frame->flags, .b = frame->request};
    enum im_fate fate =
        im_dispatch_tell(loop, slot, record, parts, 3, IM_PAUSE_UPCALL);
    if (fate == IM_TAKEN) {
        /* Goodbyes exist in the codecs of control bodies, not for bytes. */
        uint8_t codec = frame->flags >> IM_CODEC_SHIFT;
        if (codec)
            conn->codec = codec;
        conn->marks |= IM_MARK_KNOWN;
        im_conn_enter(loop, conn, IM_STATE_AUTHENTICATING);
        /* From here it is Python's time, and the hook's own bound on it. */
        im_heartbeat_watch(&loop->heartbeat, slot, IM_WATCH_NONE, loop->now_ms);
    }
    return fate;
}

static enum im_fate on_control(struct im_loop *loop, uint32_t slot,
                               const struct im_frame *frame)
{
    struct im_conn *conn = &loop->conns[slot];
    struct im_span body = body_of(frame);
    struct im_record record = {.kind = IM_EVENT_FRAME,
                               .a = (uint16_t)(frame->type | frame->flags << 8),
                               .b = frame->request};

    if (frame->type != IM_CALL)
        return im_dispatch_tell(loop, slot, record, &body, 1, IM_PAUSE_UPCALL);

    enum im_fate fate = im_dispatch_tell(loop, slot, record, &body, 1, 0);
    if (fate == IM_TAKEN && ++conn->calls >= loop->core->config.calls)
        im_conn_pause(conn, IM_PAUSE_CALLS);
    return fate;
}

static enum im_fate on_heartbeat(struct im_loop *loop, uint32_t slot,
                                 const struct im_frame *frame)
{
    uint8_t pong[IM_HEAD_LEN] = {0, 0, 0, IM_HEAD_LEN - 4, IM_PONG, 0, 0, 0};

    if (frame->size != IM_HEAD_LEN)
        return refuse(loop, slot, IM_ERROR_BAD_FRAME, frame,
                      (struct im_span){0});
    if (frame->type == IM_PING) {
        memcpy(pong + 6, frame->at + 6, 2);
        im_conn_send(loop, slot, (struct im_span){pong, sizeof pong});
    }
    return IM_TAKEN;
}

static enum im_fate on_ack(struct im_loop *loop, uint32_t slot,
                           const struct im_frame *frame)
{
    struct im_span topic = {0};
    if (im_ack_peek(frame, &topic) != IM_OK)
        return refuse(loop, slot, IM_ERROR_BAD_FRAME, frame, topic);
    struct im_cursor *cursor = im_follow_find(loop, slot, topic);
    if (!cursor || !cursor->window)
        return refuse(loop, slot, IM_ERROR_NOT_FOUND, frame, topic);

    uint64_t seq = im_load_u64(frame->at + IM_HEAD_LEN);
    bool is_old = seq <= cursor->acked && cursor->marks & IM_CURSOR_FORWARD;
    if (seq > cursor->sent)
        return refuse(loop, slot, IM_ERROR_BAD_FRAME, frame, topic);
    if (frame->type == IM_ACK && !is_old) {
        im_cursor_ack(cursor, seq);
        im_stat_add(&loop->stats.acks, 1);
        im_follow_moved(loop, cursor);
        return IM_TAKEN;
    }
    uint64_t told[] = {seq, cursor->acked, cursor->sent};
    struct im_span part = {(const uint8_t *)told, sizeof told};
    struct im_record record = {
        .kind = IM_EVENT_POSITION, .a = frame->type, .b = cursor->number};
    enum im_fate fate =
        im_dispatch_tell(loop, slot, record, &part, 1, IM_PAUSE_UPCALL);
    if (fate == IM_TAKEN)
        cursor->marks |= IM_CURSOR_FORWARD;
    return fate;
}

/* Finds the kept verdict; in front of the table the connection's latest. */
static uint8_t verdict_on(struct im_loop *loop, uint32_t slot,
                          struct im_span name, struct im_topic **topic)
{
    struct im_conn *conn = &loop->conns[slot];
    struct im_topic *hot = conn->hot;

    if (IM_LIKELY(hot && hot->name_len == name.len &&
                  memcmp(hot->name, name.at, name.len) == 0)) {
        *topic = hot;
        return conn->hot_verdict;
    }
    *topic =
        im_topic_find(&loop->topics, name, im_topic_hash(&loop->topics, name));
    if (!*topic)
        return IM_UNKNOWN;
    const struct im_right *right = im_right_find(&loop->rights, slot, *topic);
    if (!right)
        return IM_UNKNOWN;
    conn->hot = *topic;
    conn->hot_code = right->code;
    conn->hot_verdict = right->verdict;
    return right->verdict;
}

/* A message with the frame in it, and those behind it that are judged alike.
 * With little room in the pool the frame by itself: what is refused is refused
 * one by one, each by its number. NULL when there is none for that. */
static struct im_msg *take_run(struct im_loop *loop, struct im_frame *frame,
                               const struct im_message *message)
{
    uint32_t names_len =
        (uint32_t)(message->topic.len + message->tag.len + message->sender.len);
    uint32_t frame_max = loop->core->config.max_frame_bytes;
    struct im_frame first = *frame;

    /* Each repeat may come to something else. */
    if (!(frame->flags & IM_RETRY))
        im_frame_extend(frame, names_len,
                        frame_max < RUN_BYTES ? frame_max : RUN_BYTES);
    struct im_msg *msg = im_pool_take(&loop->pool, frame->size, IM_FOR_MESSAGE);
    if (IM_UNLIKELY(!msg && frame->count > 1)) {
        *frame = first;
        msg = im_pool_take(&loop->pool, frame->size, IM_FOR_MESSAGE);
    }
    if (IM_UNLIKELY(!msg)) {
        im_stat_add(&loop->stats.pool_refusals, 1);
        return NULL;
    }
    memcpy(msg->bytes, frame->at, frame->size);
    msg->frames = frame->count;
    return msg;
}

static enum im_fate publish(struct im_loop *loop, uint32_t slot,
                            struct im_frame *frame,
                            const struct im_message *message,
                            struct im_topic *topic, struct im_msg *owned)
{
    struct im_msg *msg = owned;

    if (msg)
        im_msg_share(&loop->pool, msg, 1);
    else if (!(msg = take_run(loop, frame, message)))
        return refuse(loop, slot, IM_ERROR_OVERLOADED, frame, message->topic);
    im_stat_add(&loop->stats.messages_in, frame->count);
    im_fanout_publish(loop, msg, topic, message, topic->hash,
                      frame->flags & IM_NO_ECHO ? slot : IM_NONE);
    return IM_TAKEN;
}

/* To the store. While it has all it may take, its publishers are not read. */
static enum im_fate keep(struct im_loop *loop, uint32_t slot,
                         struct im_frame *frame,
                         const struct im_message *message)
{
    struct im_conn *conn = &loop->conns[slot];

    /* In order of arrival: nobody overtakes those who wait. */
    if (!loop->store_full) {
        struct im_origin origin = {.conn = im_conn_id(loop, slot),
                                   .device = loop->users[slot].device};
        /* Always a copy: the store needs to be alone with it. */
        struct im_msg *msg = take_run(loop, frame, message);
        if (!msg)
            return refuse(loop, slot, IM_ERROR_OVERLOADED, frame,
                          message->topic);
        if (im_journal_put(loop, msg, origin) == IM_OK) {
            im_stat_add(&loop->stats.messages_in, frame->count);
            return IM_TAKEN;
        }
        im_msg_drop(&loop->pool, msg);
    }
    loop->store_full = true;
    im_stat_add(&loop->stats.store_waits, 1);
    im_conn_pause(conn, IM_PAUSE_STORE);
    im_conn_retry(loop, slot);
    return IM_LEFT;
}

static enum im_fate hand_to_hook(struct im_loop *loop, uint32_t slot,
                                 const struct im_frame *frame)
{
    struct im_conn *conn = &loop->conns[slot];
    struct im_span whole = {frame->at, frame->size};
    struct im_record record = {.kind = IM_EVENT_MESSAGE};

    enum im_fate fate = im_dispatch_tell(loop, slot, record, &whole, 1, 0);
    if (fate == IM_TAKEN && ++conn->calls >= loop->core->config.calls)
        im_conn_pause(conn, IM_PAUSE_CALLS);
    return fate;
}

static enum im_fate on_message(struct im_loop *loop, uint32_t slot,
                               struct im_frame *frame, struct im_msg *owned)
{
    struct im_conn *conn = &loop->conns[slot];
    struct im_message message;
    struct im_topic *topic;

    if (IM_UNLIKELY(im_message_peek(frame, &message) != IM_OK ||
                    !im_tag_is_valid(message.tag)))
        return refuse(loop, slot, IM_ERROR_BAD_FRAME, frame,
                      (struct im_span){0});

    struct im_span user = im_conn_user(loop, slot);
    if (IM_UNLIKELY(message.sender.len != user.len ||
                    memcmp(message.sender.at, user.at, user.len) != 0 ||
                    (message.tag.len && message.tag.at[0] == '$')))
        return refuse(loop, slot, IM_ERROR_FORBIDDEN, frame, message.topic);
    switch (verdict_on(loop, slot, message.topic, &topic)) {
    case IM_KEEP:
        return keep(loop, slot, frame, &message);
    case IM_KEEP_ASKED:
        if (frame->flags & IM_DURABLE)
            return keep(loop, slot, frame, &message);
        return publish(loop, slot, frame, &message, topic, owned);
    case IM_ALLOW:
        if (IM_UNLIKELY(frame->flags & IM_DURABLE))
            return refuse(loop, slot, IM_ERROR_NOT_DURABLE, frame,
                          message.topic);
        return publish(loop, slot, frame, &message, topic, owned);
    case IM_HOOK:
        return hand_to_hook(loop, slot, frame);
    case IM_DENY:
        return refuse(loop, slot, conn->hot_code, frame, message.topic);
    default:
        break;
    }

    struct im_record record = {.kind = IM_EVENT_ASK};
    if (im_dispatch_tell(loop, slot, record, &message.topic, 1,
                         IM_PAUSE_UPCALL) == IM_TAKEN)
        im_stat_add(&loop->stats.asks, 1);
    return IM_LEFT;
}

enum im_fate im_dispatch(struct im_loop *loop, uint32_t slot,
                         struct im_frame *frame, struct im_msg *owned)
{
    if (IM_UNLIKELY(loop->conns[slot].state == IM_STATE_HANDSHAKE))
        return on_hello(loop, slot, frame);
    if (IM_UNLIKELY(im_frame_check_client(frame) != IM_OK))
        return refuse(loop, slot, IM_ERROR_BAD_FRAME, frame,
                      (struct im_span){0});

    switch (frame->type) {
    case IM_MESSAGE:
        return on_message(loop, slot, frame, owned);
    case IM_PING:
    case IM_PONG:
        return on_heartbeat(loop, slot, frame);
    case IM_SUBSCRIBE:
    case IM_UNSUBSCRIBE:
    case IM_CALL:
        return on_control(loop, slot, frame);
    case IM_ACK:
    case IM_NACK:
        return on_ack(loop, slot, frame);
    case IM_HELLO:
    case IM_WELCOME:
    case IM_SUBSCRIBED:
    case IM_UNSUBSCRIBED:
    case IM_RECEIPT:
    case IM_RESULT:
    case IM_ERROR:
    case IM_GOAWAY:
        return refuse(loop, slot, IM_ERROR_BAD_FRAME, frame,
                      (struct im_span){0});
    default:
        return refuse(loop, slot, IM_ERROR_NOT_FOUND, frame,
                      (struct im_span){0});
    }
}
