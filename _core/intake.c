/*
 * intake.c - from bytes to whole frames.
 *
 * One read a wake-up fills the ring, and frames are judged in place, in order.
 * A connection owns a buffer only while a frame is unfinished or it has to
 * wait.
 *
 *   I1  frames of a connection take effect in the order they were sent.
 *   I2  what cannot be taken now stays unread, in one buffer from the pool.
 *   I3  an unfinished frame is collected in a message, which becomes the
 *       publication without another copy.
 */
#include "intake.h"

#include "conn.h"
#include "dispatch.h"
#include "imcore.h"
#include "transport.h"
#include "upgrade.h"
#include "web.h"

/* What an unfinished frame is asked for first: its length. */
#define LENGTH_LEN 4u

/* The room an unfinished frame begins with; it doubles as bytes arrive. */
#define ROOM_FIRST 512u

/* Keeps bytes for later, in a buffer of the pool: a backlog, or a frame of
 * `want` bytes that is unfinished. A promise of many bytes gets little room,
 * or twice what has come of it: strangers could fill the pool with promises. */
static enum im_fate keep(struct im_loop *loop, uint32_t slot,
                         struct im_span rest, uint32_t want)
{
    struct im_conn *conn = &loop->conns[slot];
    uint32_t len = (uint32_t)rest.len;
    uint32_t room = 2 * len > ROOM_FIRST ? 2 * len : ROOM_FIRST;
    if (room > want)
        room = want > len ? want : len;
    struct im_msg *tail = im_pool_take(&loop->pool, room, IM_FOR_MESSAGE);

    if (!tail) {
        im_stat_add(&loop->stats.pool_refusals, 1);
        return im_dispatch_close(loop, slot, IM_CLOSE_OVERLOADED);
    }
    memcpy(tail->bytes, rest.at, len);
    tail->len = len;
    conn->tail = tail;
    conn->tail_want = want;
    return IM_LEFT;
}

enum im_fate im_intake_keep(struct im_loop *loop, uint32_t slot,
                            struct im_span rest)
{
    return keep(loop, slot, rest, 0);
}

static uint32_t frame_max(const struct im_loop *loop,
                          const struct im_conn *conn)
{
    const struct im_config *config = &loop->core->config;
    return conn->state == IM_STATE_HANDSHAKE ? config->hello_bytes
                                             : config->max_frame_bytes;
}

/* A frame or a run of them, then what every frame entails. */
static enum im_fate take_and_settle(struct im_loop *loop, uint32_t slot,
                                    struct im_frame *frame,
                                    struct im_msg *owned)
{
    struct im_conn *conn = &loop->conns[slot];
    enum im_fate fate = im_dispatch(loop, slot, frame, owned);

    if (fate == IM_TAKEN) {
        im_stat_add(&loop->stats.frames_in, frame->count);
        if (conn->state != IM_STATE_AUTHENTICATING)
            im_heartbeat_seen(&loop->heartbeat, slot, loop->now_ms);
    }
    if (IM_UNLIKELY(loop->unflushed >= IM_UNFLUSHED_MAX))
        im_loop_flush(loop);
    if (IM_UNLIKELY(im_outbox_cost(&conn->outbox) >
                    loop->core->config.outbox_soft_bytes))
        im_conn_pause(conn, IM_PAUSE_OUTBOX);
    if (IM_UNLIKELY(conn->state >= IM_STATE_CLOSING ||
                    conn->state == IM_STATE_CLOSED))
        return IM_GONE;
    return fate;
}

/* Frames in order until they end, or the connection pauses or closes. */
static enum im_fate take_frames(struct im_loop *loop, uint32_t slot,
                                struct im_span in)
{
    struct im_conn *conn = &loop->conns[slot];
    struct im_frame frame;

    while (in.len) {
        if (conn->pause)
            return keep(loop, slot, in, 0);
        switch (im_frame_peek(in, frame_max(loop, conn), &frame)) {
        case IM_OK:
            break;
        case IM_MORE:
            return keep(loop, slot, in, frame.size ? frame.size : LENGTH_LEN);
        case IM_FULL:
            return im_dispatch_close(loop, slot, IM_CLOSE_TOO_LARGE);
        default:
            return im_dispatch_close(loop, slot, IM_CLOSE_BAD_PROTOCOL);
        }
        enum im_fate fate = take_and_settle(loop, slot, &frame, NULL);
        if (fate == IM_GONE)
            return IM_GONE;
        if (fate == IM_LEFT)
            return keep(loop, slot, in, 0);
        in.at += frame.size;
        in.len -= frame.size;
    }
    return IM_TAKEN;
}

/* Gives an unfinished frame the next larger room. */
static bool grow_tail(struct im_loop *loop, struct im_conn *conn)
{
    uint32_t room = 2 * im_msg_room(&loop->pool, conn->tail);
    if (room > conn->tail_want)
        room = conn->tail_want;

    struct im_msg *larger = im_pool_take(&loop->pool, room, IM_FOR_MESSAGE);
    if (!larger) {
        im_stat_add(&loop->stats.pool_refusals, 1);
        return false;
    }
    larger->len = conn->tail->len;
    memcpy(larger->bytes, conn->tail->bytes, larger->len);
    im_msg_drop(&loop->pool, conn->tail);
    conn->tail = larger;
    return true;
}

/* How many bytes of the unfinished frame the tail can take now. */
static uint32_t tail_space(const struct im_loop *loop,
                           const struct im_conn *conn)
{
    uint32_t room = im_msg_room(&loop->pool, conn->tail);
    return (room < conn->tail_want ? room : conn->tail_want) - conn->tail->len;
}

/* Completes the unfinished frame from what was read behind it. IM_MORE when
 * that is not enough; IM_FULL when the pool has no room for the whole frame. */
static enum im_status complete(struct im_loop *loop, struct im_conn *conn,
                               struct im_span *fresh)
{
    struct im_frame frame;

    for (;;) {
        uint32_t space = tail_space(loop, conn);
        uint32_t take = fresh->len < space ? (uint32_t)fresh->len : space;
        memcpy(conn->tail->bytes + conn->tail->len, fresh->at, take);
        conn->tail->len += take;
        fresh->at += take;
        fresh->len -= take;
        if (conn->tail->len < conn->tail_want) {
            if (!fresh->len)
                return IM_MORE;
            if (!grow_tail(loop, conn))
                return IM_FULL;
            continue;
        }

        struct im_span tail = {conn->tail->bytes, conn->tail->len};
        enum im_status status =
            im_frame_peek(tail, frame_max(loop, conn), &frame);
        if (status != IM_MORE)
            return status;
        conn->tail_want = frame.size; /* only the length was here */
    }
}

/* The frame that was unfinished before this read. */
static enum im_fate take_tail(struct im_loop *loop, uint32_t slot,
                              struct im_span *fresh)
{
    struct im_conn *conn = &loop->conns[slot];
    struct im_frame frame;

    switch (complete(loop, conn, fresh)) {
    case IM_OK:
        break;
    case IM_MORE:
        return IM_LEFT;
    case IM_FULL:
        return im_dispatch_close(loop, slot,
                                 conn->tail_want > LENGTH_LEN
                                     ? IM_CLOSE_OVERLOADED
                                     : IM_CLOSE_TOO_LARGE);
    default:
        return im_dispatch_close(loop, slot, IM_CLOSE_BAD_PROTOCOL);
    }

    struct im_msg *tail = conn->tail;
    struct im_span whole = {tail->bytes, tail->len};
    im_frame_peek(whole, tail->len, &frame);
    conn->tail = NULL;
    enum im_fate fate = take_and_settle(loop, slot, &frame, tail);
    if (fate == IM_LEFT) {
        conn->tail = tail;
        conn->tail_want = 0;
        return IM_LEFT;
    }
    im_msg_drop(&loop->pool, tail);
    return fate;
}

struct im_msg *im_intake_join(struct im_loop *loop, uint32_t slot,
                              struct im_span fresh)
{
    struct im_conn *conn = &loop->conns[slot];
    struct im_msg *tail = conn->tail;
    struct im_msg *both = im_pool_take(
        &loop->pool, tail->len + (uint32_t)fresh.len, IM_FOR_MESSAGE);

    if (!both) {
        im_stat_add(&loop->stats.pool_refusals, 1);
        im_dispatch_close(loop, slot, IM_CLOSE_OVERLOADED);
        return NULL;
    }
    memcpy(both->bytes, tail->bytes, tail->len);
    memcpy(both->bytes + tail->len, fresh.at, fresh.len);
    conn->tail = NULL;
    im_msg_drop(&loop->pool, tail);
    return both;
}

void im_intake_take(struct im_loop *loop, uint32_t slot, struct im_span fresh)
{
    struct im_conn *conn = &loop->conns[slot];

    if (conn->tail) {
        enum im_fate fate = take_tail(loop, slot, &fresh);
        if (fate == IM_GONE || !fresh.len)
            return;
        if (fate == IM_LEFT) {
            /* The frame itself has to wait: it leads the backlog. */
            conn->tail = im_intake_join(loop, slot, fresh);
            return;
        }
    }
    take_frames(loop, slot, fresh);
}

/* A peer we said goodbye to: what it still sends is not for us. */
static void discard(struct im_loop *loop, uint32_t slot)
{
    struct im_conn *conn = &loop->conns[slot];
    enum im_status status;
    struct iovec part = {loop->ring.bytes, loop->ring.size};

    size_t got = im_transport_read(conn->fd, &part, 1, &status);
    if (status == IM_BAD || (status == IM_OK && got == 0))
        im_conn_end(loop, slot);
}

void im_intake_read(struct im_loop *loop, uint32_t slot)
{
    struct im_conn *conn = &loop->conns[slot];
    struct iovec parts[2];
    uint32_t count = 0, direct = 0, room;
    enum im_status status;

    if (conn->state == IM_STATE_CLOSING) {
        discard(loop, slot);
        return;
    }
    if (conn->pause) {
        im_conn_watch(loop, slot, conn->marks | IM_MARK_DEAF);
        return;
    }
    if (conn->tail && conn->tail_want == 0)
        return; /* its backlog comes first, later in this turn */
    if (conn->transport == IM_TRANSPORT_WEB && loop->webs[slot].rest)
        return; /* likewise */

    /* A large unfinished frame is read to where it is collected. */
    if (conn->tail && conn->transport == IM_TRANSPORT_TCP &&
        (direct = tail_space(loop, conn)) > 0)
        parts[count++] =
            (struct iovec){conn->tail->bytes + conn->tail->len, direct};
    uint8_t *space = im_ring_space(&loop->ring, 1, &room);
    if (conn->state == IM_STATE_HANDSHAKE &&
        room > loop->core->config.hello_bytes)
        room = loop->core->config.hello_bytes;
    parts[count++] = (struct iovec){space, room};

    size_t got = im_transport_read(conn->fd, parts, count, &status);
    im_stat_add(&loop->stats.receives, 1);
    if (status == IM_MORE)
        return;
    if (status == IM_BAD || got == 0) {
        im_conn_close(loop, slot, IM_CLOSE_PEER, (struct im_span){0});
        return;
    }
    im_stat_add(&loop->stats.bytes_in, got);

    uint32_t into_tail = got < direct ? (uint32_t)got : direct;
    if (into_tail)
        conn->tail->len += into_tail;
    im_ring_commit(&loop->ring, (uint32_t)got - into_tail);
    struct im_span fresh = im_ring_peek(&loop->ring);
    if (IM_LIKELY(conn->transport == IM_TRANSPORT_TCP) &&
        !(conn->state == IM_STATE_HANDSHAKE && !conn->tail &&
          im_upgrade_begins(fresh)))
        im_intake_take(loop, slot, fresh);
    else
        im_web_take(loop, slot, fresh);
    im_ring_consume(&loop->ring, (uint32_t)got - into_tail);
}

void im_intake_resume(struct im_loop *loop, uint32_t slot)
{
    struct im_conn *conn = &loop->conns[slot];

    if (conn->transport == IM_TRANSPORT_PLAIN && !im_web_retell(loop, slot))
        return;
    if (conn->tail && conn->tail_want == 0) {
        struct im_msg *backlog = conn->tail;
        struct im_span in = {backlog->bytes, backlog->len};
        conn->tail = NULL;
        if (conn->transport != IM_TRANSPORT_TCP && loop->webs[slot].is_raw)
            im_web_take(loop, slot, in);
        else
            take_frames(loop, slot, in);
        im_msg_drop(&loop->pool, backlog);
    }
    if (conn->transport != IM_TRANSPORT_TCP) {
        im_web_take_rest(loop, slot);
        im_web_settle(loop, slot);
    }
    if (conn->state != IM_STATE_CLOSED && !conn->pause)
        im_conn_watch(loop, slot, conn->marks & (uint8_t)~IM_MARK_DEAF);
}
