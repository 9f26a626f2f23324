/*
 * wrap.c - what an outbox holds, in messages of WebSocket.
 *
 * All that is gathered for one write is one binary message of many frames: a
 * head of two to ten bytes a turn, not one a frame, and fan-out still shares
 * the bytes of a message with TCP. Messages without frames are raw: control
 * frames, responses, and what Python says on plain connections.
 *
 *   Y1  a message that was begun is finished: out_left bytes of the outbox
 *       belong to it, and nothing goes in between.
 *   Y2  what is compressed becomes a raw message of its own in the place of
 *       what it was made of, before any of it is sent. So what the kernel does
 *       not take of it waits as all else does, counted by the outbox.
 */
#include "wrap.h"

#include "conn.h"
#include "transport.h"
#include "upgrade.h"

/* out_head of a message whose head has left. */
#define WHOLE_HEAD UINT8_MAX

/* Up to here one copy and one part are cheaper than a vector. */
#define COPY_MAX 2048u

/* Gathers no more than the message that was begun. */
static void trim(struct im_gather *gather, uint32_t most)
{
    uint32_t count = 0, bytes = 0;

    while (bytes < most) {
        struct iovec *part = &gather->parts[count++];
        if (bytes + part->iov_len > most)
            part->iov_len = most - bytes;
        bytes += (uint32_t)part->iov_len;
    }
    gather->count = count;
    gather->bytes = bytes;
}

/* Writes head and payload; in one part where that is little to copy. */
static size_t write_both(int fd, struct im_gather *gather, const uint8_t *head,
                         size_t head_len, enum im_status *status)
{
    struct iovec parts[IM_GATHER_PARTS + 1];
    struct iovec *first = &gather->parts[0];

    if (gather->count == 1 && first->iov_base != gather->scratch &&
        first->iov_len <= COPY_MAX) {
        memcpy(gather->scratch, first->iov_base, first->iov_len);
        first->iov_base = gather->scratch;
    }
    if (gather->count == 1 && first->iov_base == gather->scratch) {
        memcpy(gather->scratch - head_len, head, head_len);
        parts[0] = (struct iovec){gather->scratch - head_len,
                                  head_len + first->iov_len};
        return im_transport_write(fd, parts, 1, status);
    }
    parts[0] = (struct iovec){(void *)(uintptr_t)head, head_len};
    memcpy(parts + 1, gather->parts, gather->count * sizeof *parts);
    return im_transport_write(fd, parts, gather->count + 1, status);
}

/* A raw message: a frame with that first byte. NULL when the pool is dry. */
static struct im_msg *frame_of(struct im_loop *loop, uint8_t first,
                               struct im_span payload, enum im_purpose purpose)
{
    uint8_t head[10];
    size_t head_len = im_websocket_write(head, first, payload.len);
    struct im_msg *msg =
        im_pool_take(&loop->pool, (uint32_t)(head_len + payload.len), purpose);

    if (!msg)
        return NULL;
    memcpy(msg->bytes, head, head_len);
    if (payload.len)
        memcpy(msg->bytes + head_len, payload.at, payload.len);
    msg->frames = 0;
    return msg;
}

static void count_deflated(struct im_loop *loop, size_t before, size_t after)
{
    im_stat_add(&loop->stats.deflated, 1);
    im_stat_add(&loop->stats.deflate_saved_bytes, before - after);
}

/* Y2: compresses what was gathered, when that pays. False: it leaves as it is,
 * also without room in the pool. */
static bool shrink(struct im_loop *loop, uint32_t slot)
{
    struct im_outbox *outbox = &loop->conns[slot].outbox;
    const struct im_web *web = &loop->webs[slot];
    struct im_gather *gather = &loop->gather;
    uint32_t count = 0, bytes = 0;
    struct im_span shrunk;

    if (IM_LIKELY(!web->in.may_deflate) || web->out_left || outbox->sent)
        return false;
    while (count < gather->count &&
           bytes + gather->parts[count].iov_len <= IM_DEFLATE_MAX)
        bytes += (uint32_t)gather->parts[count++].iov_len;
    if (bytes < IM_DEFLATE_MIN ||
        !im_deflate_shrink(loop->deflate, gather->parts, count, &shrunk))
        return false;
    struct im_msg *msg =
        frame_of(loop, IM_WS_FIN | IM_WS_DEFLATED | IM_WS_BINARY, shrunk,
                 IM_FOR_MESSAGE);
    if (!msg)
        return false;
    im_outbox_replace(outbox, &loop->pool, bytes, msg);
    im_outbox_gather(outbox, gather);
    count_deflated(loop, bytes, shrunk.len);
    return true;
}

size_t im_wrap_write(struct im_loop *loop, uint32_t slot,
                     enum im_status *status)
{
    const struct im_conn *conn = &loop->conns[slot];
    struct im_gather *gather = &loop->gather;
    struct im_web *web = &loop->webs[slot];
    uint8_t head[10];

    if (gather->is_raw || shrink(loop, slot))
        return im_transport_write(conn->fd, gather->parts, gather->count,
                                  status);
    if (!web->out_left) {
        web->out_left = gather->bytes;
        web->out_head = 0;
    } else if (gather->bytes > web->out_left) {
        trim(gather, web->out_left);
    }
    if (web->out_head == WHOLE_HEAD) {
        size_t sent =
            im_transport_write(conn->fd, gather->parts, gather->count, status);
        web->out_left -= (uint32_t)sent;
        return sent;
    }
    size_t rest =
        im_websocket_write(head, IM_WS_FIN | IM_WS_BINARY, web->out_left);
    rest -= web->out_head;
    size_t sent =
        write_both(conn->fd, gather, head + web->out_head, rest, status);
    if (sent >= rest) {
        web->out_head = WHOLE_HEAD;
        web->out_left -= (uint32_t)(sent - rest);
        return sent - rest;
    }
    web->out_head = (uint8_t)(web->out_head + sent);
    if (!web->out_head)
        web->out_left = 0; /* not begun */
    return 0;
}

void im_wrap_raw(struct im_loop *loop, uint32_t slot, struct im_span bytes)
{
    struct im_msg *msg =
        im_pool_take(&loop->pool, (uint32_t)bytes.len, IM_FOR_CONTROL);

    if (msg) {
        memcpy(msg->bytes, bytes.at, bytes.len);
        msg->frames = 0;
    }
    im_conn_give(loop, slot, msg);
}

static void say(struct im_loop *loop, uint32_t slot, uint8_t opcode,
                struct im_span payload)
{
    im_conn_give(loop, slot,
                 frame_of(loop, IM_WS_FIN | opcode, payload, IM_FOR_CONTROL));
}

void im_wrap_say(struct im_loop *loop, uint32_t slot, uint8_t first,
                 struct im_span message)
{
    struct im_span shrunk;
    struct iovec part = {(void *)(uintptr_t)message.at, message.len};

    if (loop->conns[slot].transport != IM_TRANSPORT_PLAIN)
        return;
    if (loop->webs[slot].in.may_deflate && first > IM_WS_FIN &&
        message.len >= IM_DEFLATE_MIN && message.len <= IM_DEFLATE_MAX &&
        im_deflate_shrink(loop->deflate, &part, 1, &shrunk)) {
        count_deflated(loop, message.len, shrunk.len);
        first |= IM_WS_DEFLATED;
        message = shrunk;
    }
    im_conn_give(loop, slot, frame_of(loop, first, message, IM_FOR_CONTROL));
}

void im_wrap_ping(struct im_loop *loop, uint32_t slot)
{
    say(loop, slot, IM_WS_PING, (struct im_span){0});
}

void im_wrap_pong(struct im_loop *loop, uint32_t slot, struct im_span payload)
{
    say(loop, slot, IM_WS_PONG, payload);
}

/* Drops what waits, but the rest of a message that was begun. */
static void cut(struct im_loop *loop, uint32_t slot)
{
    struct im_outbox *outbox = &loop->conns[slot].outbox;
    uint32_t begun = loop->webs[slot].out_left;

    if (begun)
        im_outbox_keep(outbox, &loop->pool, begun);
    else
        im_outbox_cut(outbox, &loop->pool); /* one raw at most */
}

/* What HTTP says of a close code. */
static struct im_span response_to(uint16_t code)
{
    static const char late[] = "HTTP/1.1 408 Request Timeout\r\n"
                               "Connection: close\r\nContent-Length: 0\r\n\r\n";
    static const char large[] =
        "HTTP/1.1 431 Request Header Fields Too Large\r\n"
        "Connection: close\r\nContent-Length: 0\r\n\r\n";
    static const char busy[] = "HTTP/1.1 503 Service Unavailable\r\n"
                               "Connection: close\r\nContent-Length: 0\r\n\r\n";

    if (code == IM_CLOSE_HANDSHAKE)
        return (struct im_span){(const uint8_t *)late, sizeof late - 1};
    if (code == IM_CLOSE_TOO_LARGE)
        return (struct im_span){(const uint8_t *)large, sizeof large - 1};
    return (struct im_span){(const uint8_t *)busy, sizeof busy - 1};
}

void im_wrap_close(struct im_loop *loop, uint32_t slot, uint16_t code,
                   struct im_span frame, bool is_slow)
{
    const struct im_conn *conn = &loop->conns[slot];
    const struct im_web *web = &loop->webs[slot];

    if (conn->transport == IM_TRANSPORT_HTTP) {
        /* Python's own response comes as the frame. */
        bool is_response = frame.len && im_upgrade_begins(frame);
        im_wrap_raw(loop, slot, is_response ? frame : response_to(code));
        return;
    }
    if (is_slow)
        cut(loop, slot);
    if (conn->transport == IM_TRANSPORT_WEB)
        im_conn_send(loop, slot, frame);
    if (code == IM_CLOSE_NORMAL && web->is_polite)
        code = web->closing;
    uint8_t payload[] = {(uint8_t)(code >> 8), (uint8_t)code};
    say(loop, slot, IM_WS_CLOSE, (struct im_span){payload, sizeof payload});
}
