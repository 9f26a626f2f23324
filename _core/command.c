/*
 * command.c - Python's answers and orders, applied by the thread they concern.
 *
 * A few per login, subscription or revocation: none is on the path of a
 * message. A command for a connection that has gone meanwhile is nothing.
 */
#include "command.h"

#include "accept.h"
#include "conn.h"
#include "fanout.h"
#include "follow.h"
#include "imcore.h"
#include "journal.h"
#include "upgrade.h"
#include "web.h"
#include "wrap.h"

/* Python may order as fast as we obey; sockets and timers must not wait. */
#define COMMANDS_A_TURN 1024

/* The next `len` bytes of a record, or all of them with SIZE_MAX. */
static struct im_span next_part(struct im_span *rest, size_t len)
{
    if (len > rest->len)
        len = rest->len;
    struct im_span part = {rest->at, len};
    rest->at += len;
    rest->len -= len;
    return part;
}

static void end_upcall(struct im_loop *loop, uint32_t slot, uint16_t ends)
{
    struct im_conn *conn = &loop->conns[slot];

    if (ends == IM_ENDS_PAUSE) {
        im_conn_unpause(loop, slot, IM_PAUSE_UPCALL);
    } else if (ends == IM_ENDS_CALL && conn->calls) {
        conn->calls--;
        if (conn->pause & IM_PAUSE_CALLS)
            im_conn_unpause(loop, slot, IM_PAUSE_CALLS);
    }
}

static void on_welcome(struct im_loop *loop, uint32_t slot,
                       const struct im_record *record, struct im_span rest)
{
    struct im_conn *conn = &loop->conns[slot];
    struct im_span user = next_part(&rest, record->a);
    struct im_span device = next_part(&rest, record->b);

    if (conn->state != IM_STATE_AUTHENTICATING || user.len > IM_USER_MAX)
        return;
    if (im_conn_name(loop, slot, user, device) != IM_OK) {
        im_conn_doom(loop, slot, IM_CLOSE_OVERLOADED);
        return;
    }
    im_conn_enter(loop, conn, IM_STATE_ACTIVE);
    im_heartbeat_watch(&loop->heartbeat, slot, IM_WATCH_LIVE, loop->now_ms);
    im_conn_send(loop, slot, rest);
    im_conn_unpause(loop, slot, IM_PAUSE_UPCALL);
}

static void on_decide(struct im_loop *loop, uint32_t slot,
                      const struct im_record *record, struct im_span topic)
{
    struct im_conn *conn = &loop->conns[slot];
    uint64_t hash = im_topic_hash(&loop->topics, topic);
    const struct im_topic *known = im_topic_find(&loop->topics, topic, hash);

    conn->hot = NULL;
    if (conn->right_count >= loop->core->config.rights &&
        !(known && im_right_find(&loop->rights, slot, known)))
        im_right_drop_oldest(&loop->rights, &loop->topics, &conn->rights,
                             &conn->right_count);
    if (im_right_set(&loop->rights, &loop->topics, slot, topic,
                     (uint8_t)record->b, record->a, &conn->rights,
                     &conn->right_count) != IM_OK)
        im_conn_doom(loop, slot, IM_CLOSE_OVERLOADED);
    im_conn_unpause(loop, slot, IM_PAUSE_UPCALL);
}

/* A subscription with a filter already held, or a new filter for one. */
static enum im_status subscribe(struct im_loop *loop, uint32_t slot,
                                struct im_span topic, uint32_t filter)
{
    struct im_conn *conn = &loop->conns[slot];
    uint32_t sub = im_topic_member(&loop->topics, topic, conn->subs);

    if (sub != IM_NONE && loop->topics.subs[sub].at & IM_SUB_APART) {
        im_conn_unsubscribe(loop, slot, sub);
    } else if (sub != IM_NONE) {
        struct im_member *member = im_sub_member(&loop->topics, sub);
        im_filter_drop(&loop->filters, member->filter);
        member->filter = filter;
        return IM_OK;
    }
    /* Python refuses before it comes to this. */
    if (conn->sub_count >= loop->core->config.subscriptions)
        return IM_FULL;
    enum im_status status =
        im_topic_join(&loop->topics, topic, slot, filter, &conn->subs);
    if (status == IM_OK)
        conn->sub_count++;
    return status;
}

/* The same as a cursor; what there was for the topic ends. */
static enum im_status follow(struct im_loop *loop, uint32_t slot,
                             struct im_span begin_bytes, struct im_span topic,
                             uint32_t filter)
{
    struct im_conn *conn = &loop->conns[slot];
    uint32_t sub = im_topic_member(&loop->topics, topic, conn->subs);
    struct im_begin begin = {0};

    memcpy(&begin, begin_bytes.at, begin_bytes.len);
    if (sub != IM_NONE)
        im_conn_unsubscribe(loop, slot, sub);
    if (conn->sub_count >= loop->core->config.subscriptions)
        return IM_FULL;
    return im_follow_begin(loop, slot, &begin, topic, filter);
}

static void on_subscribe(struct im_loop *loop, uint32_t slot,
                         const struct im_record *record, struct im_span rest)
{
    struct im_span begin = next_part(
        &rest, record->kind == IM_COMMAND_FOLLOW ? sizeof(struct im_begin) : 0);
    struct im_span topic = next_part(&rest, record->b & 0xffff);
    struct im_span tags = next_part(&rest, record->b >> 16);
    uint32_t filter;

    enum im_status status = im_filter_take(&loop->filters, tags, &filter);
    if (status == IM_OK) {
        status = begin.len ? follow(loop, slot, begin, topic, filter)
                           : subscribe(loop, slot, topic, filter);
        if (status != IM_OK)
            im_filter_drop(&loop->filters, filter);
    }
    if (status == IM_OK)
        im_conn_send(loop, slot, rest);
    else
        im_conn_doom(loop, slot, IM_CLOSE_OVERLOADED);
    end_upcall(loop, slot, record->a);
}

static void on_unsubscribe(struct im_loop *loop, uint32_t slot,
                           const struct im_record *record, struct im_span rest)
{
    const struct im_conn *conn = &loop->conns[slot];
    struct im_span topic = next_part(&rest, record->b);

    uint32_t sub = im_topic_member(&loop->topics, topic, conn->subs);
    if (sub != IM_NONE)
        im_conn_unsubscribe(loop, slot, sub);
    im_conn_send(loop, slot, rest);
    end_upcall(loop, slot, record->a);
}

/* A MESSAGE frame from Python, in a message of its own; its parts point into
 * that. NULL when the pool is dry or it is no such frame. */
static struct im_msg *message_of(struct im_loop *loop, struct im_span bytes,
                                 struct im_frame *frame,
                                 struct im_message *message)
{
    struct im_msg *msg =
        im_pool_take(&loop->pool, (uint32_t)bytes.len, IM_FOR_MESSAGE);
    if (!msg) {
        im_stat_add(&loop->stats.pool_refusals, 1);
        return NULL;
    }
    memcpy(msg->bytes, bytes.at, bytes.len);
    struct im_span copy = {msg->bytes, bytes.len};
    if (im_frame_peek(copy, IM_FRAME_MAX, frame) == IM_OK &&
        frame->size == bytes.len && frame->type == IM_MESSAGE &&
        im_message_peek(frame, message) == IM_OK)
        return msg;
    im_msg_drop(&loop->pool, msg);
    return NULL;
}

/* To the store; what it has no room for is refused, since nobody can be made
 * to wait here. */
static void keep(struct im_loop *loop, uint32_t slot, struct im_msg *msg,
                 struct im_origin origin)
{
    struct im_span whole = {msg->bytes, msg->len};

    if (im_journal_put(loop, msg, origin) == IM_OK)
        return;
    if (origin.is_token)
        im_journal_refuse_token(loop, origin.conn);
    else if (slot != IM_NONE &&
             im_journal_refuse(loop, origin, IM_ERROR_OVERLOADED, whole) !=
                 IM_OK)
        im_conn_doom(loop, slot, IM_CLOSE_OVERLOADED);
    im_msg_drop(&loop->pool, msg);
}

/* `slot` is the origin, or IM_NONE for the application itself. */
static void on_publish(struct im_loop *loop, uint32_t slot,
                       const struct im_record *record, struct im_span whole)
{
    struct im_origin origin = {.conn = record->conn};
    if (slot == IM_NONE && record->b) {
        struct im_span token = next_part(&whole, sizeof origin.conn);
        origin.is_token = 1;
        memcpy(&origin.conn, token.at, token.len);
    } else if (slot != IM_NONE) {
        origin.device = loop->users[slot].device;
    }
    struct im_frame frame;
    struct im_message message;
    struct im_msg *msg = message_of(loop, whole, &frame, &message);

    if (msg && frame.flags & IM_DURABLE) {
        im_stat_add(&loop->stats.messages_in, 1);
        keep(loop, slot, msg, origin);
    } else if (msg) {
        uint64_t hash = im_topic_hash(&loop->topics, message.topic);
        struct im_topic *topic =
            im_topic_find(&loop->topics, message.topic, hash);
        im_stat_add(&loop->stats.messages_in, 1);
        im_fanout_publish(loop, msg, topic, &message, hash,
                          frame.flags & IM_NO_ECHO ? slot : IM_NONE);
    } else if (origin.is_token) {
        im_journal_refuse_token(loop, origin.conn);
    } else if (slot != IM_NONE) {
        /* Its hook has let it pass; it must not vanish without a word. */
        im_conn_doom(loop, slot, IM_CLOSE_OVERLOADED);
    }
    if (slot != IM_NONE)
        end_upcall(loop, slot, record->a);
}

static void on_broadcast(struct im_loop *loop, struct im_span whole)
{
    struct im_frame frame;
    struct im_message message;
    struct im_msg *msg = message_of(loop, whole, &frame, &message);

    if (msg)
        im_fanout_broadcast(loop, msg);
}

static void on_revoke(struct im_loop *loop, uint32_t slot, struct im_span topic)
{
    struct im_conn *conn = &loop->conns[slot];

    conn->hot = NULL;
    if (topic.len)
        im_right_drop(&loop->rights, &loop->topics, topic, &conn->rights,
                      &conn->right_count);
    else
        im_right_drop_all(&loop->rights, &loop->topics, &conn->rights,
                          &conn->right_count);
}

static void on_drain(struct im_loop *loop, uint32_t slot, struct im_span frame)
{
    struct im_conn *conn = &loop->conns[slot];

    if (conn->state != IM_STATE_ACTIVE)
        return;
    im_conn_enter(loop, conn, IM_STATE_DRAINING);
    im_conn_send(loop, slot, frame);
}

static void on_connection(struct im_loop *loop, uint32_t slot,
                          const struct im_record *record, struct im_span rest)
{
    switch (record->kind) {
    case IM_COMMAND_WELCOME:
        on_welcome(loop, slot, record, rest);
        break;
    case IM_COMMAND_SEND:
        im_conn_send(loop, slot, rest);
        end_upcall(loop, slot, record->a);
        break;
    case IM_COMMAND_DECIDE:
        on_decide(loop, slot, record, rest);
        break;
    case IM_COMMAND_SUBSCRIBE:
    case IM_COMMAND_FOLLOW:
        on_subscribe(loop, slot, record, rest);
        break;
    case IM_COMMAND_UNSUBSCRIBE:
        on_unsubscribe(loop, slot, record, rest);
        break;
    case IM_COMMAND_FEED:
        im_follow_feed(loop, slot, record->b, rest);
        break;
    case IM_COMMAND_REDELIVER:
        im_follow_redeliver(loop, slot, record->b, record->a, rest);
        break;
    case IM_COMMAND_ADVANCE:
        im_follow_advance(loop, slot, record->b, rest);
        break;
    case IM_COMMAND_REVOKE:
        on_revoke(loop, slot, rest);
        break;
    case IM_COMMAND_DRAIN:
        on_drain(loop, slot, rest);
        break;
    case IM_COMMAND_UPGRADE:
        im_upgrade_accept(loop, slot, (uint8_t)record->a, record->b, rest);
        break;
    case IM_COMMAND_WEB:
        if (record->b || rest.len)
            im_wrap_say(loop, slot,
                        (uint8_t)(record->b & 0x0f) |
                            (record->b & IM_WEB_MORE ? 0 : IM_WS_FIN),
                        rest);
        end_upcall(loop, slot, record->a);
        im_web_settle(loop, slot);
        break;
    case IM_COMMAND_CLOSE:
        im_conn_close(loop, slot, record->a, rest);
        break;
    default:
        break;
    }
}

void im_command_take(struct im_loop *loop)
{
    const struct im_record *record;

    for (uint32_t left = COMMANDS_A_TURN;
         left && (record = im_queue_peek(&loop->commands)); left--) {
        struct im_span rest = {im_record_bytes(record), record->len};
        uint32_t slot = im_conn_slot(loop, record->conn);
        im_stat_add(&loop->stats.commands, 1);

        switch (record->kind) {
        case IM_COMMAND_LISTEN:
            im_loop_listen(loop, (int)record->b);
            break;
        case IM_COMMAND_ADOPT:
            atomic_fetch_add_explicit(&loop->placed, 1, memory_order_relaxed);
            im_accept_adopt(loop, (int)record->b);
            break;
        case IM_COMMAND_UNLISTEN:
            im_loop_unlisten(loop);
            break;
        case IM_COMMAND_PUBLISH:
            on_publish(loop, slot, record, rest);
            break;
        case IM_COMMAND_BROADCAST:
            on_broadcast(loop, rest);
            break;
        default:
            if (slot != IM_NONE)
                on_connection(loop, slot, record, rest);
        }
        im_queue_consume(&loop->commands, record);
        if (loop->unflushed >= IM_UNFLUSHED_MAX)
            im_loop_flush(loop);
    }
}
