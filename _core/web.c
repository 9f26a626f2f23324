/*
 * web.c - from WebSocket to frames, and to whole messages for Python.
 *
 * With the subprotocol a message holds frames. All payloads of a read are
 * unmasked towards its beginning, where they stand behind each other as on a
 * TCP stream; the rest of the core does not see a difference, and publications
 * that came in many messages still make one run. Where a message ends means
 * nothing there.
 *
 * Without it (plain) each message goes to Python as a call: counted, bounded,
 * and collected only if it was cut. One that is larger than a message of the
 * pool goes there in parts.
 *
 * Messages that may be compressed are taken one by one; a compressed one is
 * collected first, and inflated at its end.
 *
 *   X1  what came before a close or a broken rule has its effect first.
 *   X2  nothing behind a close is looked at.
 */
#include "web.h"

#include "conn.h"
#include "imcore.h"
#include "intake.h"
#include "transport.h"
#include "upgrade.h"
#include "wrap.h"

/* The bytes of a read or a backlog, which are ours to change. */
static uint8_t *ours(struct im_span span)
{
    return (uint8_t *)(uintptr_t)span.at;
}

/* What the peer says when it closes (RFC 6455, 5.5.1 and 7.4). */
static void on_close(struct im_web *web, struct im_span said)
{
    struct im_utf8 text = {0};
    uint16_t code = said.len >= 2 ? im_load_u16(said.at) : IM_CLOSE_NORMAL;
    struct im_span reason = {said.at + 2, said.len > 2 ? said.len - 2 : 0};

    web->is_polite = false;
    if (said.len == 1 || !im_websocket_may_close(code)) {
        web->closing = IM_CLOSE_WEB_PROTOCOL;
    } else if (!im_utf8_feed(&text, reason) || !im_utf8_is_whole(&text)) {
        web->closing = IM_CLOSE_WEB_TEXT;
    } else {
        web->closing = code;
        web->is_polite = true;
    }
}

static void on_control(struct im_loop *loop, uint32_t slot, uint8_t opcode,
                       struct im_span payload)
{
    const struct im_conn *conn = &loop->conns[slot];

    if (conn->state == IM_STATE_ACTIVE || conn->state == IM_STATE_DRAINING)
        im_heartbeat_seen(&loop->heartbeat, slot, loop->now_ms);
    if (opcode == IM_WS_CLOSE)
        on_close(&loop->webs[slot], payload);
    else if (opcode == IM_WS_PING)
        im_wrap_pong(loop, slot, payload);
}

/* A control frame, or what there is of it. */
static void take_control(struct im_loop *loop, uint32_t slot,
                         struct im_span *in)
{
    struct im_web *web = &loop->webs[slot];
    uint8_t opcode = web->in.opcode;

    if (!web->control && in->len >= web->in.left) {
        uint8_t *to = ours(*in);
        size_t len = im_websocket_take(&web->in, in, to);
        on_control(loop, slot, opcode, (struct im_span){to, len});
        return;
    }
    if (!web->control) {
        web->control =
            im_pool_take(&loop->pool, IM_WS_CONTROL_MAX, IM_FOR_CONTROL);
        if (!web->control) {
            im_stat_add(&loop->stats.pool_refusals, 1);
            web->closing = IM_CLOSE_OVERLOADED;
            return;
        }
        web->control->len = 0;
    }
    struct im_msg *control = web->control;
    control->len += (uint32_t)im_websocket_take(&web->in, in,
                                                control->bytes + control->len);
    if (web->in.is_inside)
        return;
    web->control = NULL;
    on_control(loop, slot, opcode,
               (struct im_span){control->bytes, control->len});
    im_msg_drop(&loop->pool, control);
}

/* The next frame is at hand, or the rest of one: whether to go on with it. */
static bool next_frame(struct im_web *web, struct im_span *in)
{
    if (web->closing)
        return false;
    if (web->in.is_inside)
        return in->len || !web->in.left;
    if (!in->len)
        return false;
    switch (im_websocket_head(&web->in, in)) {
    case IM_OK:
        return true;
    case IM_MORE:
        return false;
    default:
        web->closing = IM_CLOSE_WEB_PROTOCOL;
        return false;
    }
}

/* Room for `len` bytes more in the message that is collected; it doubles, up to
 * `most`, to which the caller keeps. */
static bool make_room(struct im_loop *loop, struct im_web *web, uint32_t len,
                      uint32_t most)
{
    struct im_msg *before = web->message;
    uint32_t has = before ? before->len : 0;

    if (before && im_msg_room(&loop->pool, before) - has >= len)
        return true;
    uint32_t room = has + (len > has ? len : has) + 1; /* never none */
    if (room > most)
        room = most;
    struct im_msg *after = im_pool_take(&loop->pool, room, IM_FOR_MESSAGE);
    if (!after) {
        im_stat_add(&loop->stats.pool_refusals, 1);
        web->closing = IM_CLOSE_OVERLOADED;
        return false;
    }
    after->len = has;
    if (before) {
        memcpy(after->bytes, before->bytes, has);
        im_msg_drop(&loop->pool, before);
    }
    web->message = after;
    return true;
}

/* Keeps what came of a message, `most` bytes of it in all. */
static bool collect(struct im_loop *loop, struct im_web *web,
                    struct im_span piece, uint32_t most)
{
    if (!make_room(loop, web, (uint32_t)piece.len, most))
        return false;
    memcpy(web->message->bytes + web->message->len, piece.at, piece.len);
    web->message->len += (uint32_t)piece.len;
    return true;
}

static void drop_message(struct im_loop *loop, struct im_web *web)
{
    if (web->message)
        im_msg_drop(&loop->pool, web->message);
    web->message = NULL;
}

/* Whether the message ends with what has been taken. */
static bool has_ended(const struct im_web *web)
{
    return web->in.is_last && !web->in.is_inside;
}

/* What there is of a compressed message; true at its end, when `out` is all of
 * it, inflated, until another message is. Before HELLO a message is bounded as
 * HELLO is. */
static bool inflate(struct im_loop *loop, uint32_t slot, struct im_span *in,
                    struct im_span *out)
{
    const struct im_config *config = &loop->core->config;
    struct im_web *web = &loop->webs[slot];
    uint32_t most = loop->conns[slot].state == IM_STATE_HANDSHAKE
                        ? config->hello_bytes
                        : config->max_frame_bytes;
    uint32_t bound = im_deflate_bound(most);
    uint32_t has = web->message ? web->message->len : 0;

    if (has + web->in.left > bound) {
        web->closing = IM_CLOSE_WEB_LARGE;
        return false;
    }
    uint8_t *to = ours(*in);
    struct im_span piece = {to, im_websocket_take(&web->in, in, to)};
    if (web->message || !has_ended(web)) {
        if (!collect(loop, web, piece, bound))
            return false;
        piece = (struct im_span){web->message->bytes, web->message->len};
    }
    if (!has_ended(web))
        return false;
    enum im_status status = im_deflate_expand(loop->deflate, piece, most, out);
    drop_message(loop, web);
    if (status != IM_OK) {
        web->closing =
            status == IM_FULL ? IM_CLOSE_WEB_LARGE : IM_CLOSE_WEB_PROTOCOL;
        return false;
    }
    im_stat_add(&loop->stats.inflated, 1);
    return true;
}

/* Keeps what is behind the message that was taken last. When only the time of
 * others was the reason, it goes on within this turn or the next. */
static void keep_rest(struct im_loop *loop, uint32_t slot, struct im_span rest)
{
    struct im_msg *msg =
        im_pool_take(&loop->pool, (uint32_t)rest.len, IM_FOR_MESSAGE);

    if (!msg) {
        im_stat_add(&loop->stats.pool_refusals, 1);
        im_dispatch_close(loop, slot, IM_CLOSE_OVERLOADED);
        return;
    }
    memcpy(msg->bytes, rest.at, rest.len);
    loop->webs[slot].rest = msg;
    if (!loop->conns[slot].pause) {
        im_conn_retry(loop, slot);
        loop->again = true;
    }
}

/* Whether it may be answered more. Pings are cheap to send and pongs stand for
 * memory: who does not read them is not read, as with everything it is owed. */
static bool may_go_on(struct im_loop *loop, struct im_conn *conn)
{
    if (IM_UNLIKELY(im_outbox_cost(&conn->outbox) >
                    loop->core->config.outbox_soft_bytes))
        im_conn_pause(conn, IM_PAUSE_OUTBOX);
    return !conn->pause;
}

/* Frames of ours in messages some of which are compressed. One by one: what a
 * read inflates to may be a thousand times as much, and of that no more is
 * taken at a time than of a read, or one message. */
static void take_deflated(struct im_loop *loop, uint32_t slot,
                          struct im_span fresh)
{
    struct im_conn *conn = &loop->conns[slot];
    struct im_web *web = &loop->webs[slot];
    struct im_span in = fresh;
    size_t taken = 0;

    while (may_go_on(loop, conn) && taken < loop->ring.size &&
           next_frame(web, &in)) {
        uint8_t *to = ours(in);
        struct im_span out = {to, 0};
        if (im_websocket_is_control(web->in.opcode))
            take_control(loop, slot, &in);
        else if (web->in.opcode == IM_WS_TEXT)
            web->closing = IM_CLOSE_WEB_KIND;
        else if (!web->in.is_deflated)
            out.len = im_websocket_take(&web->in, &in, to);
        else if (!inflate(loop, slot, &in, &out))
            out.len = 0;
        if (!out.len)
            continue;
        web->is_raw = false;
        im_intake_take(loop, slot, out);
        taken += out.len;
        if (conn->state == IM_STATE_CLOSING || conn->state == IM_STATE_CLOSED)
            return;
    }
    if (in.len && !web->closing)
        keep_rest(loop, slot, in);
}

/* Frames of ours in binary messages. */
static void take_frames(struct im_loop *loop, uint32_t slot,
                        struct im_span fresh)
{
    struct im_web *web = &loop->webs[slot];
    struct im_span in = fresh;
    uint8_t *to = ours(fresh);

    while (next_frame(web, &in)) {
        if (im_websocket_is_control(web->in.opcode))
            take_control(loop, slot, &in);
        else if (web->in.opcode == IM_WS_TEXT)
            web->closing = IM_CLOSE_WEB_KIND;
        else
            to += im_websocket_take(&web->in, &in, to);
    }
    web->is_raw = false;
    may_go_on(loop, &loop->conns[slot]);
    if (to > fresh.at)
        im_intake_take(loop, slot,
                       (struct im_span){fresh.at, (size_t)(to - fresh.at)});
}

/* A message, or a part of one, for Python; IM_LEFT when there is no room for
 * the event. */
static enum im_fate tell(struct im_loop *loop, uint32_t slot,
                         struct im_span message)
{
    struct im_conn *conn = &loop->conns[slot];
    struct im_web *web = &loop->webs[slot];
    struct im_record record = {
        .kind = IM_EVENT_WEB, .a = web->in.opcode, .b = has_ended(web)};
    enum im_fate fate = im_dispatch_tell(loop, slot, record, &message, 1, 0);

    if (fate == IM_TAKEN) {
        im_stat_add(&loop->stats.frames_in, record.b);
        web->told = record.b ? 0 : web->told + (uint32_t)message.len;
        if (++conn->calls >= loop->core->config.calls)
            im_conn_pause(conn, IM_PAUSE_CALLS);
    }
    return fate;
}

/* The same; what there is no room for is kept. */
static void tell_or_keep(struct im_loop *loop, uint32_t slot,
                         struct im_span message)
{
    struct im_web *web = &loop->webs[slot];

    web->is_untold = tell(loop, slot, message) == IM_LEFT;
    if (!web->is_untold)
        drop_message(loop, web);
    else if (!web->message)
        web->is_untold =
            collect(loop, web, message, loop->core->config.max_frame_bytes);
}

/* A text has to be UTF-8 up to here, and whole at its end. */
static bool check_text(struct im_web *web, struct im_span piece)
{
    if (web->in.opcode != IM_WS_TEXT)
        return true;
    if (im_utf8_feed(&web->text, piece) &&
        (!has_ended(web) || im_utf8_is_whole(&web->text)))
        return true;
    web->closing = IM_CLOSE_WEB_TEXT;
    return false;
}

/* A piece of the message that Python is to have: as much as is there and fits
 * into a message of the pool, of which a large one is several parts. */
static void take_piece(struct im_loop *loop, uint32_t slot, struct im_span *in)
{
    const struct im_config *config = &loop->core->config;
    struct im_web *web = &loop->webs[slot];
    uint32_t has = web->message ? web->message->len : 0;
    uint32_t room = config->max_frame_bytes - has;

    if ((uint64_t)web->told + has + web->in.left > config->max_message_bytes) {
        web->closing = IM_CLOSE_WEB_LARGE;
        return;
    }
    struct im_span some = {in->at, in->len < room ? in->len : room};
    uint8_t *to = ours(some);
    struct im_span piece = {to, im_websocket_take(&web->in, &some, to)};
    in->at += piece.len;
    in->len -= piece.len;
    if (!check_text(web, piece))
        return;
    if (has || !has_ended(web)) {
        if (!collect(loop, web, piece, config->max_frame_bytes))
            return;
        piece = (struct im_span){web->message->bytes, web->message->len};
    }
    if (has_ended(web) || piece.len == config->max_frame_bytes)
        tell_or_keep(loop, slot, piece);
}

static void take_plain_deflated(struct im_loop *loop, uint32_t slot,
                                struct im_span *in)
{
    struct im_web *web = &loop->webs[slot];
    struct im_span whole;

    if (!inflate(loop, slot, in, &whole) || !check_text(web, whole))
        return;
    if (whole.len > loop->core->config.max_message_bytes)
        web->closing = IM_CLOSE_WEB_LARGE;
    else
        tell_or_keep(loop, slot, whole);
}

bool im_web_retell(struct im_loop *loop, uint32_t slot)
{
    struct im_web *web = &loop->webs[slot];

    if (!web->is_untold)
        return true;
    struct im_span message = {web->message->bytes, web->message->len};
    tell_or_keep(loop, slot, message);
    return !web->is_untold && !loop->conns[slot].pause;
}

/* Messages of a plain connection, as many as may be in Python's hands. */
static void take_plain(struct im_loop *loop, uint32_t slot,
                       struct im_span fresh)
{
    struct im_web *web = &loop->webs[slot];
    struct im_conn *conn = &loop->conns[slot];
    struct im_span in = fresh;

    im_heartbeat_seen(&loop->heartbeat, slot, loop->now_ms);
    while (may_go_on(loop, conn) && next_frame(web, &in)) {
        if (im_websocket_is_control(web->in.opcode))
            take_control(loop, slot, &in);
        else if (web->in.is_deflated)
            take_plain_deflated(loop, slot, &in);
        else
            take_piece(loop, slot, &in);
    }
    web->is_raw = true;
    if (in.len && !web->closing)
        im_intake_keep(loop, slot, in);
}

void im_web_take(struct im_loop *loop, uint32_t slot, struct im_span fresh)
{
    struct im_conn *conn = &loop->conns[slot];

    switch (conn->transport) {
    case IM_TRANSPORT_WEB:
        if (loop->webs[slot].in.may_deflate)
            take_deflated(loop, slot, fresh);
        else
            take_frames(loop, slot, fresh);
        break;
    case IM_TRANSPORT_PLAIN:
        take_plain(loop, slot, fresh);
        break;
    default:
        if (conn->transport == IM_TRANSPORT_TCP) {
            conn->transport = IM_TRANSPORT_HTTP;
            loop->webs[slot] = (struct im_web){0};
        }
        im_upgrade_take(loop, slot, fresh);
        return;
    }
    im_web_settle(loop, slot);
}

void im_web_take_rest(struct im_loop *loop, uint32_t slot)
{
    struct im_web *web = &loop->webs[slot];
    struct im_msg *rest = web->rest;

    if (!rest || loop->conns[slot].pause)
        return;
    web->rest = NULL;
    im_web_take(loop, slot, (struct im_span){rest->bytes, rest->len});
    im_msg_drop(&loop->pool, rest);
}

void im_web_settle(struct im_loop *loop, uint32_t slot)
{
    struct im_conn *conn = &loop->conns[slot];
    struct im_web *web = &loop->webs[slot];

    if (!web->closing || conn->state == IM_STATE_CLOSING ||
        conn->state == IM_STATE_CLOSED)
        return;
    if ((conn->tail && conn->tail_want == 0) || web->is_untold ||
        (conn->transport == IM_TRANSPORT_PLAIN && conn->calls))
        return; /* X1: unread, not told, or not answered */
    if (web->is_polite)
        im_conn_close(loop, slot, IM_CLOSE_NORMAL, (struct im_span){0});
    else
        im_dispatch_close(loop, slot, web->closing);
}

void im_web_let_go(struct im_loop *loop, uint32_t slot)
{
    struct im_web *web = &loop->webs[slot];

    drop_message(loop, web);
    if (web->control)
        im_msg_drop(&loop->pool, web->control);
    if (web->rest)
        im_msg_drop(&loop->pool, web->rest);
    web->control = web->rest = NULL;
    web->is_untold = false;
}
