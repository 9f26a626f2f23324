/*
 * wire.c - one connection of the generator: bytes out, replies cut and counted.
 *
 * The workload is replies of a hundred bytes, alone or sixty in a row. One recv
 * a wake-up into a buffer that all connections share; what is unfinished at its
 * end moves to the connection and comes back in front of the next recv.
 */
#include "engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void conn_watch(struct load *load, struct conn *conn, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = conn};

    if (epoll_ctl(load->epoll, EPOLL_CTL_MOD, conn->fd, &event) != 0)
        conn_lose(load, conn, "epoll_ctl failed", NULL, 0);
}

void conn_lose(struct load *load, struct conn *conn, const char *reason,
               const uint8_t *bytes, size_t len)
{
    if (conn->state == CONN_LOST)
        return;
    if (!load->failure[0]) {
        int at = snprintf(load->failure, sizeof load->failure,
                          "connection %td: %s", conn - load->conns, reason);
        size_t end = at > 0 ? (size_t)at : 0;

        if (len && end + 2 < sizeof load->failure)
            memcpy(load->failure + end, ": ", 2), end += 2;
        for (size_t i = 0; i < len && end + 1 < sizeof load->failure; i++)
            load->failure[end++] =
                bytes[i] >= ' ' && bytes[i] < 127 ? (char)bytes[i] : '.';
    }
    if (conn->state == CONN_ACTIVE)
        load->active--;
    conn->state = CONN_LOST;
    conn->unsent_len = 0;
    load->lost++;
    if (conn->fd >= 0)
        close(conn->fd);
    conn->fd = -1;
}

bool conn_send(struct load *load, struct conn *conn, const uint8_t *bytes,
               size_t len)
{
    ssize_t n = send(conn->fd, bytes, len, MSG_NOSIGNAL);

    if (load->result)
        load->result->sends++;
    if (n == (ssize_t)len)
        return true;
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        conn_lose(load, conn, strerror(errno), NULL, 0);
        return false;
    }
    conn->unsent = bytes + (n > 0 ? n : 0);
    conn->unsent_len = len - (n > 0 ? (size_t)n : 0);
    conn_watch(load, conn, EPOLLIN | EPOLLOUT);
    return conn->state != CONN_LOST;
}

void conn_script(struct load *load, struct conn *conn)
{
    while (conn->step_now < conn->step_count) {
        const struct step *step = &conn->steps[conn->step_now];

        if (step->len &&
            !conn_send(load, conn, conn->script + step->at, step->len))
            return;
        if (step->awaits >= 0 || conn->unsent_len)
            return;
        conn->step_now++;
    }
    conn->state = CONN_ACTIVE;
    load->active++;
    if (conn->is_mute)
        epoll_ctl(load->epoll, EPOLL_CTL_DEL, conn->fd, NULL);
}

static void take_connected(struct load *load, struct conn *conn)
{
    int error = 0;
    socklen_t len = sizeof error;

    if (getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0 ||
        error != 0) {
        conn_lose(load, conn, strerror(error), NULL, 0);
        return;
    }
    conn->state = CONN_SCRIPT;
    conn_watch(load, conn, EPOLLIN);
    if (conn->state == CONN_SCRIPT)
        conn_script(load, conn);
}

static void send_rest(struct load *load, struct conn *conn)
{
    const uint8_t *bytes = conn->unsent;
    size_t len = conn->unsent_len;

    conn->unsent_len = 0;
    if (!conn_send(load, conn, bytes, len) || conn->unsent_len)
        return;
    conn_watch(load, conn, EPOLLIN);
    if (conn->state == CONN_SCRIPT && conn->steps[conn->step_now].awaits < 0) {
        conn->step_now++;
        conn_script(load, conn);
    }
    mark_dirty(load, conn->group);
}

static void take_message(struct load *load, struct conn *conn,
                         const uint8_t *at, uint32_t size, uint64_t now)
{
    struct group *group = group_of(load, conn);
    uint64_t stamp;

    if (!load->result)
        return;
    load->result->received++;
    if (group->owed == 0) {
        load->result->surplus++;
        return;
    }
    group->owed--;
    load->owed--;
    if (load->wire.stamp_from_end && size >= load->wire.stamp_from_end) {
        memcpy(&stamp, at + size - load->wire.stamp_from_end, sizeof stamp);
        histogram_record(load->latency, now > stamp ? now - stamp : 0);
    }
}

static void take_other(struct load *load, struct conn *conn, uint8_t type,
                       const uint8_t *at, uint32_t size)
{
    enum load_kind kind = load->wire.kinds[type];

    if (conn->state == CONN_SCRIPT &&
        conn->steps[conn->step_now].awaits == (int32_t)type) {
        conn->step_now++;
        conn_script(load, conn);
    } else if (kind == LOAD_FAILURE) {
        conn_lose(load, conn, "refused by the server", at, size);
    } else if (kind == LOAD_PING && conn->unsent_len == 0) {
        /* With something unsent it will be heard of without a pong. */
        conn_send(load, conn, load->wire.pong, load->wire.pong_len);
    }
}

static void keep_tail(struct load *load, struct conn *conn, const uint8_t *at,
                      size_t len)
{
    if (len > conn->tail_room) {
        uint8_t *larger = realloc(conn->tail, len);
        if (!larger) {
            conn_lose(load, conn, "no memory", NULL, 0);
            return;
        }
        conn->tail = larger;
        conn->tail_room = (uint32_t)len;
    }
    if (len)
        memcpy(conn->tail, at, len);
    conn->tail_len = (uint32_t)len;
}

static void take_replies(struct load *load, struct conn *conn, size_t len)
{
    const struct load_wire *wire = &load->wire;
    const uint8_t *at = load->inbox;
    uint64_t now = now_ns();

    while (conn->state != CONN_LOST) {
        uint8_t type;
        uint32_t size = cut_reply(&wire->cut, at, len, &type);

        if (size == CUT_BAD) {
            conn_lose(load, conn, "bytes that are no reply", at,
                      len < 32 ? len : 32);
            return;
        }
        if (size == CUT_MORE) {
            keep_tail(load, conn, at, len);
            break;
        }
        if (wire->kinds[type] == LOAD_MESSAGE && conn->state == CONN_ACTIVE)
            take_message(load, conn, at, size, now);
        else
            take_other(load, conn, type, at, size);
        at += size;
        len -= size;
    }
    mark_dirty(load, conn->group);
}

static void receive(struct load *load, struct conn *conn)
{
    size_t have = conn->tail_len;
    ssize_t n;

    if (have)
        memcpy(load->inbox, conn->tail, have);
    n = recv(conn->fd, load->inbox + have, LOAD_INBOX_BYTES - have, 0);
    if (load->result)
        load->result->receives++;
    if (n > 0)
        take_replies(load, conn, have + (size_t)n);
    else if (n == 0)
        conn_lose(load, conn, "closed by the server", NULL, 0);
    else if (errno != EAGAIN && errno != EINTR)
        conn_lose(load, conn, strerror(errno), NULL, 0);
}

void conn_event(struct load *load, struct conn *conn, uint32_t events)
{
    if (conn->state == CONN_LOST)
        return;
    if (conn->state == CONN_CONNECTING) {
        take_connected(load, conn);
        return;
    }
    if (events & EPOLLOUT && conn->unsent_len)
        send_rest(load, conn);
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR) && conn->state != CONN_LOST)
        receive(load, conn);
}
