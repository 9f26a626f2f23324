/*
 * conn.c - the life of a connection.
 *
 * Opening, closing and pausing are rare beside reading and sending, and may
 * cost a system call. What every message passes is im_conn_put and, once a
 * turn, im_conn_flush.
 *
 *   C1  a slot is freed only when its socket is closed and Python has been
 *       told, so an event never names a connection Python cannot know.
 *   C2  EPOLLOUT is on only while the kernel has refused bytes.
 *   C3  while a frame is dispatched nobody is closed and no slot is freed; who
 *       has to go is doomed, and closed by the next flush.
 */
#include "conn.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "follow.h"
#include "imcore.h"
#include "receipts.h"
#include "transport.h"
#include "web.h"
#include "wrap.h"

/* Bytes in one outbox that end the gathering of a turn early. */
#define FLUSH_BYTES (128u << 10)

uint32_t im_conn_slot(const struct im_loop *loop, uint64_t id)
{
    uint32_t slot = (uint32_t)id;
    uint32_t generation = (uint32_t)(id >> 32) & 0xffffff;

    if (slot >= loop->conn_used)
        return IM_NONE;
    const struct im_conn *conn = &loop->conns[slot];
    if (conn->generation != generation || conn->state == IM_STATE_CLOSED ||
        conn->state == IM_STATE_CLOSING)
        return IM_NONE;
    return slot;
}

void im_conn_enter(struct im_loop *loop, struct im_conn *conn,
                   enum im_state state)
{
    _Atomic uint64_t *const counts[] = {
        [IM_STATE_CLOSED] = &loop->stats.to_closed,
        [IM_STATE_HANDSHAKE] = &loop->stats.to_handshake,
        [IM_STATE_AUTHENTICATING] = &loop->stats.to_authenticating,
        [IM_STATE_ACTIVE] = &loop->stats.to_active,
        [IM_STATE_DRAINING] = &loop->stats.to_draining,
        [IM_STATE_CLOSING] = &loop->stats.to_closing,
    };
    _Atomic uint64_t *const here[] = {
        [IM_STATE_CLOSED] = NULL,
        [IM_STATE_HANDSHAKE] = &loop->stats.in_handshake,
        [IM_STATE_AUTHENTICATING] = &loop->stats.in_authenticating,
        [IM_STATE_ACTIVE] = &loop->stats.in_active,
        [IM_STATE_DRAINING] = &loop->stats.in_draining,
        [IM_STATE_CLOSING] = &loop->stats.in_closing,
    };
    if (here[conn->state])
        im_stat_add(here[conn->state], UINT64_MAX); /* one less */
    if (here[state])
        im_stat_add(here[state], 1);
    conn->state = (uint8_t)state;
    im_stat_add(counts[state], 1);
}

static uint32_t new_slot(struct im_loop *loop)
{
    uint32_t slot = loop->conn_vacant;
    if (slot != IM_NONE) {
        loop->conn_vacant = loop->conns[slot].subs;
        return slot;
    }
    return loop->conn_used < loop->conn_count ? loop->conn_used++ : IM_NONE;
}

static void free_slot(struct im_loop *loop, uint32_t slot)
{
    struct im_conn *conn = &loop->conns[slot];

    conn->generation = (conn->generation + 1) & 0xffffff;
    conn->subs = loop->conn_vacant;
    loop->conn_vacant = slot;
}

enum im_status im_conn_open(struct im_loop *loop, int fd)
{
    uint32_t slot = new_slot(loop);
    if (slot == IM_NONE)
        return IM_FULL;

    struct im_conn *conn = &loop->conns[slot];
    uint32_t generation = conn->generation ? conn->generation : 1;
    *conn = (struct im_conn){.fd = fd,
                             .generation = generation,
                             .codec = 1,
                             .transport = IM_TRANSPORT_TCP,
                             .subs = IM_NONE,
                             .rights = IM_NONE};
    struct epoll_event event = {.events = EPOLLIN,
                                .data.u64 = im_conn_id(loop, slot)};
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        free_slot(loop, slot);
        return IM_FULL;
    }
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    im_conn_enter(loop, conn, IM_STATE_HANDSHAKE);
    im_heartbeat_watch(&loop->heartbeat, slot, IM_WATCH_HANDSHAKE,
                       loop->now_ms);
    im_stat_add(&loop->stats.connections, 1);
    return IM_OK;
}

enum im_status im_conn_name(struct im_loop *loop, uint32_t slot,
                            struct im_span user, struct im_span device)
{
    struct im_user *name = &loop->users[slot];
    uint8_t *to = name->inside;

    if (user.len > sizeof name->inside) {
        to = name->apart = malloc(user.len);
        if (!to)
            return IM_FULL;
    }
    memcpy(to, user.at, user.len);
    loop->conns[slot].user_len = (uint8_t)user.len;
    name->device = im_receipt_device(device);
    return IM_OK;
}

size_t im_conn_peer(const struct im_conn *conn, char *to, size_t room)
{
    struct sockaddr_storage any = {0};
    socklen_t len = sizeof any;
    char host[INET6_ADDRSTRLEN];
    int written = 0;

    if (getpeername(conn->fd, (struct sockaddr *)&any, &len) < 0)
        return 0;
    if (any.ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)&any;
        if (inet_ntop(AF_INET, &in->sin_addr, host, sizeof host))
            written = snprintf(to, room, "%s:%u", host, ntohs(in->sin_port));
    } else if (any.ss_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)&any;
        if (inet_ntop(AF_INET6, &in->sin6_addr, host, sizeof host))
            written = snprintf(to, room, "[%s]:%u", host, ntohs(in->sin6_port));
    }
    return written > 0 ? (size_t)written : 0;
}

enum im_status im_loop_tell(struct im_loop *loop, struct im_record record,
                            const struct im_span *parts, size_t count)
{
    enum im_status status = im_queue_push(&loop->events, record, parts, count);
    if (status == IM_OK) {
        loop->told = true;
        im_stat_add(&loop->stats.events, 1);
    }
    return status;
}

void im_conn_watch(struct im_loop *loop, uint32_t slot, uint8_t marks)
{
    struct im_conn *conn = &loop->conns[slot];
    uint8_t both = IM_MARK_ARMED | IM_MARK_DEAF;
    if ((conn->marks & both) == (marks & both))
        return;

    uint32_t events = (marks & IM_MARK_DEAF ? 0u : (uint32_t)EPOLLIN) |
                      (marks & IM_MARK_ARMED ? (uint32_t)EPOLLOUT : 0u);
    struct epoll_event event = {.events = events,
                                .data.u64 = im_conn_id(loop, slot)};
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, conn->fd, &event);
    conn->marks = (uint8_t)((conn->marks & ~both) | (marks & both));
}

static void list_add(struct im_list *list, struct im_conn *conn, uint32_t slot,
                     enum im_mark mark)
{
    if (conn->marks & mark)
        return;
    conn->marks |= (uint8_t)mark;
    list->slots[list->count++] = slot;
}

void im_conn_retry(struct im_loop *loop, uint32_t slot)
{
    list_add(&loop->resume, &loop->conns[slot], slot, IM_MARK_QUEUED);
}

void im_conn_unpause(struct im_loop *loop, uint32_t slot, enum im_pause pause)
{
    struct im_conn *conn = &loop->conns[slot];

    conn->pause &= (uint8_t)~pause;
    if (!conn->pause && (conn->tail || conn->marks & IM_MARK_DEAF ||
                         conn->transport != IM_TRANSPORT_TCP)) {
        im_conn_retry(loop, slot);
        loop->again = true;
    }
}

void im_conn_doom(struct im_loop *loop, uint32_t slot, uint16_t code)
{
    struct im_conn *conn = &loop->conns[slot];

    if (conn->marks & IM_MARK_DOOMED || conn->state == IM_STATE_CLOSED ||
        conn->state == IM_STATE_CLOSING)
        return;
    conn->marks |= IM_MARK_DOOMED;
    conn->close_code = code;
    list_add(&loop->dirty, conn, slot, IM_MARK_DIRTY);
}

/* Sends what the kernel takes, and closes nothing: whoever calls may be walking
 * over connections. IM_BAD when the connection is broken. */
static enum im_status push_bytes(struct im_loop *loop, struct im_conn *conn,
                                 uint32_t slot)
{
    struct im_gather *gather = &loop->gather;

    while (conn->outbox.bytes) {
        enum im_status status;
        im_outbox_gather(&conn->outbox, gather);
        size_t sent = IM_LIKELY(conn->transport == IM_TRANSPORT_TCP)
                          ? im_transport_write(conn->fd, gather->parts,
                                               gather->count, &status)
                          : im_wrap_write(loop, slot, &status);
        im_stat_add(&loop->stats.sends, 1);
        if (status == IM_BAD)
            return IM_BAD;
        if (sent) {
            im_stat_add(&loop->stats.bytes_out, sent);
            im_outbox_sent(&conn->outbox, &loop->pool, (uint32_t)sent);
            conn->blocked_ms = loop->now_ms;
        }
        if (sent < gather->bytes) {
            if (!(conn->marks & IM_MARK_ARMED))
                conn->blocked_ms = loop->now_ms;
            im_conn_watch(loop, slot, conn->marks | IM_MARK_ARMED);
            return IM_MORE;
        }
    }
    im_conn_watch(loop, slot, conn->marks & (uint8_t)~IM_MARK_ARMED);
    return IM_OK;
}

/* Whether a message of `len` bytes is within the bound. Nobody is slow before
 * the kernel has refused at this very moment: much may come from other threads
 * or from the store in one turn, and the peer reads meanwhile. Sending here
 * drops no message that is being put: a connection is once in a topic, so this
 * one is not in its outbox yet. */
static bool may_owe(struct im_loop *loop, struct im_conn *conn, uint32_t slot,
                    uint32_t len)
{
    uint32_t most = loop->core->config.outbox_hard_bytes;

    len += IM_OUTBOX_REF_COST;
    if (IM_LIKELY(im_outbox_cost(&conn->outbox) + len <= most))
        return true;
    if (push_bytes(loop, conn, slot) == IM_BAD) {
        im_conn_doom(loop, slot, IM_CLOSE_PEER);
        return false;
    }
    /* What is sent alone may be as large as it likes, and so may last words
     * behind a message that was begun. */
    if (!conn->outbox.bytes || conn->state == IM_STATE_CLOSING ||
        im_outbox_cost(&conn->outbox) + len <= most)
        return true;
    im_conn_doom(loop, slot, IM_CLOSE_SLOW);
    return false;
}

bool im_conn_put(struct im_loop *loop, uint32_t slot, struct im_msg *msg,
                 enum im_purpose purpose)
{
    struct im_conn *conn = &loop->conns[slot];

    if (IM_UNLIKELY(conn->marks & IM_MARK_DOOMED))
        return false;
    if (IM_UNLIKELY(!may_owe(loop, conn, slot, msg->len)))
        return false;
    if (IM_UNLIKELY(im_outbox_put(&conn->outbox, &loop->pool, msg, purpose) !=
                    IM_OK)) {
        im_stat_add(&loop->stats.pool_refusals, 1);
        im_conn_doom(loop, slot, IM_CLOSE_OVERLOADED);
        return false;
    }
    list_add(&loop->dirty, conn, slot, IM_MARK_DIRTY);
    /* A healthy reader must not run into its bound within one turn, only
     * because many wrote to it at once. */
    if (conn->outbox.bytes > FLUSH_BYTES && !(conn->marks & IM_MARK_ARMED))
        loop->unflushed = IM_UNFLUSHED_MAX;
    return true;
}

void im_conn_give(struct im_loop *loop, uint32_t slot, struct im_msg *msg)
{
    if (!msg) {
        im_stat_add(&loop->stats.pool_refusals, 1);
        im_conn_doom(loop, slot, IM_CLOSE_OVERLOADED);
    } else if (!im_conn_put(loop, slot, msg, IM_FOR_CONTROL)) {
        im_msg_drop(&loop->pool, msg);
    }
}

void im_conn_send(struct im_loop *loop, uint32_t slot, struct im_span frame)
{
    if (frame.len == 0)
        return;
    struct im_msg *msg =
        im_pool_take(&loop->pool, (uint32_t)frame.len, IM_FOR_CONTROL);
    if (msg)
        memcpy(msg->bytes, frame.at, frame.len);
    im_conn_give(loop, slot, msg);
}

void im_conn_unsubscribe(struct im_loop *loop, uint32_t slot, uint32_t sub)
{
    struct im_conn *conn = &loop->conns[slot];

    if (loop->topics.subs[sub].at & IM_SUB_APART) {
        im_follow_end(loop, slot, sub);
        return;
    }
    im_filter_drop(&loop->filters, im_sub_member(&loop->topics, sub)->filter);
    im_topic_leave(&loop->topics, sub, &conn->subs);
    conn->sub_count--;
}

/* Everything a connection held apart from its socket and outbox. */
static void let_go(struct im_loop *loop, uint32_t slot)
{
    struct im_conn *conn = &loop->conns[slot];

    while (conn->subs != IM_NONE)
        im_conn_unsubscribe(loop, slot, conn->subs);
    conn->hot = NULL;
    im_right_drop_all(&loop->rights, &loop->topics, &conn->rights,
                      &conn->right_count);
    if (conn->tail)
        im_msg_drop(&loop->pool, conn->tail);
    conn->tail = NULL;
    if (conn->transport != IM_TRANSPORT_TCP)
        im_web_let_go(loop, slot);
    if (conn->user_len > sizeof loop->users[slot].inside)
        free(loop->users[slot].apart);
    conn->user_len = 0;
}

bool im_conn_tell_closed(struct im_loop *loop, uint32_t slot)
{
    struct im_conn *conn = &loop->conns[slot];

    if (!(conn->marks & IM_MARK_KNOWN))
        return true;
    struct im_record record = {.kind = IM_EVENT_CLOSED,
                               .a = conn->close_code,
                               .conn = im_conn_id(loop, slot)};
    if (im_loop_tell(loop, record, NULL, 0) != IM_OK) {
        im_conn_retry(loop, slot);
        return false;
    }
    conn->marks &= (uint8_t)~IM_MARK_KNOWN;
    return true;
}

void im_conn_close(struct im_loop *loop, uint32_t slot, uint16_t code,
                   struct im_span frame)
{
    struct im_conn *conn = &loop->conns[slot];
    struct im_core *core = loop->core;

    if (conn->state == IM_STATE_CLOSED)
        return;
    if (conn->state == IM_STATE_CLOSING) {
        if (code == IM_CLOSE_PEER && conn->fd >= 0)
            im_conn_end(loop, slot); /* it will not hear our goodbye */
        return;
    }
    let_go(loop, slot);
    conn->close_code = code == IM_CLOSE_NORMAL ? IM_CLOSE_PEER : code;
    im_conn_enter(loop, conn, IM_STATE_CLOSING);
    im_conn_tell_closed(loop, slot);
    if (code == IM_CLOSE_PEER) {
        im_outbox_clear(&conn->outbox, &loop->pool);
        im_conn_end(loop, slot);
        return;
    }

    /* A reader too slow for its outbox will hardly take the rest. */
    bool is_slow = conn->marks & IM_MARK_DOOMED || code == IM_CLOSE_SLOW;
    conn->marks &= (uint8_t)~IM_MARK_DOOMED;
    conn->pause = 0;
    if (frame.len == 0)
        frame = im_core_goodbye_for(core, conn->codec, code);
    if (IM_LIKELY(conn->transport == IM_TRANSPORT_TCP)) {
        if (is_slow)
            im_outbox_cut(&conn->outbox, &loop->pool);
        im_conn_send(loop, slot, frame);
    } else {
        im_wrap_close(loop, slot, code, frame, is_slow);
    }
    im_conn_watch(loop, slot, conn->marks & (uint8_t)~IM_MARK_DEAF);
    im_heartbeat_watch(&loop->heartbeat, slot, IM_WATCH_CLOSING, loop->now_ms);
    list_add(&loop->dirty, conn, slot, IM_MARK_DIRTY);
}

void im_conn_end(struct im_loop *loop, uint32_t slot)
{
    struct im_conn *conn = &loop->conns[slot];

    if (conn->fd >= 0) {
        close(conn->fd);
        conn->fd = -1;
        im_outbox_clear(&conn->outbox, &loop->pool);
        im_heartbeat_watch(&loop->heartbeat, slot, IM_WATCH_NONE, loop->now_ms);
        im_stat_set(&loop->stats.connections,
                    im_stat_get(&loop->stats.connections) - 1);
        atomic_fetch_sub_explicit(&loop->placed, 1, memory_order_relaxed);
    }
    if (conn->marks & IM_MARK_KNOWN)
        return; /* the resume list ends it once Python knows */
    im_conn_enter(loop, conn, IM_STATE_CLOSED);
    free_slot(loop, slot);
}

/* What the kernel took may let the connection be read again. */
static void after_progress(struct im_loop *loop, uint32_t slot)
{
    struct im_conn *conn = &loop->conns[slot];

    if (conn->pause & IM_PAUSE_OUTBOX &&
        im_outbox_cost(&conn->outbox) <=
            loop->core->config.outbox_soft_bytes / 2)
        im_conn_unpause(loop, slot, IM_PAUSE_OUTBOX);
    if (IM_UNLIKELY(conn->marks & IM_MARK_LAGS) &&
        im_outbox_cost(&conn->outbox) <=
            loop->core->config.outbox_soft_bytes / 2)
        im_follow_again(loop, slot);
}

void im_conn_flush(struct im_loop *loop, uint32_t slot)
{
    struct im_conn *conn = &loop->conns[slot];
    switch (push_bytes(loop, conn, slot)) {
    case IM_BAD:
        im_conn_close(loop, slot, IM_CLOSE_PEER, (struct im_span){0});
        return;
    case IM_MORE:
        after_progress(loop, slot);
        return;
    default:
        break;
    }
    after_progress(loop, slot);
    if (conn->state == IM_STATE_CLOSING && !(conn->marks & IM_MARK_SHUT)) {
        conn->marks |= IM_MARK_SHUT;
        shutdown(conn->fd, SHUT_WR);
    }
}
