/*
 * load.c - the generator put together: groups, connections, their scripts, and
 * the opening of them all. load.h is the contract.
 */
#include "engine.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct load *load_new(uint32_t max_connections, const struct load_wire *wire)
{
    struct load *load = calloc(1, sizeof *load);

    if (!load)
        return NULL;
    load->wire = *wire;
    load->max = max_connections;
    load->epoll = epoll_create1(EPOLL_CLOEXEC);
    load->conns = calloc(max_connections, sizeof *load->conns);
    load->groups = calloc(max_connections, sizeof *load->groups);
    load->dirty = calloc(max_connections, sizeof *load->dirty);
    load->inbox = malloc(LOAD_INBOX_BYTES);
    if (load->epoll >= 0 && load->conns && load->groups && load->dirty &&
        load->inbox && wire->cut.max_bytes <= LOAD_INBOX_BYTES / 2 &&
        (!wire->stamp_from_end || wire->stamp_from_end >= sizeof(uint64_t)) &&
        wire->pong_len <= sizeof wire->pong)
        return load;
    load_free(load);
    return NULL;
}

void load_free(struct load *load)
{
    if (!load)
        return;
    for (uint32_t i = 0; i < load->count; i++) {
        struct conn *conn = &load->conns[i];

        if (conn->fd >= 0)
            close(conn->fd);
        free(conn->frames);
        free(conn->tail);
        free(conn->script);
        free(conn->steps);
    }
    if (load->epoll >= 0)
        close(load->epoll);
    free(load->conns);
    free(load->groups);
    free(load->dirty);
    free(load->inbox);
    free(load);
}

int64_t load_group(struct load *load, uint32_t members)
{
    if (load->group_count == load->max || members == 0)
        return -1;
    load->groups[load->group_count] =
        (struct group){.members = members, .sender = LOAD_NONE};
    return load->group_count++;
}

/* The circle of those who publish in a group, the newest last. */
static void join_senders(struct load *load, struct group *group,
                         uint32_t number)
{
    struct conn *conn = &load->conns[number];

    if (group->sender == LOAD_NONE) {
        conn->next_sender = group->sender = number;
        return;
    }
    uint32_t last = group->sender;
    while (load->conns[last].next_sender != group->sender)
        last = load->conns[last].next_sender;
    load->conns[last].next_sender = number;
    conn->next_sender = group->sender;
}

static bool copy_frames(struct load *load, struct conn *conn,
                        const uint8_t *frames, uint32_t frame_len,
                        uint32_t kinds)
{
    size_t len = (size_t)frame_len * kinds;
    uint8_t *copy;

    if (len == 0 || frame_len < (load->wire.stamp_at
                                     ? load->wire.stamp_at + sizeof(uint64_t)
                                     : load->wire.stamp_from_end))
        return false;
    copy = malloc(len);
    if (!copy)
        return false;
    memcpy(copy, frames, len);
    free(conn->frames);
    conn->frames = copy;
    conn->frame_len = frame_len;
    conn->kinds = conn->copies = kinds;
    conn->next_kind = 0;
    return true;
}

int64_t load_add(struct load *load, uint32_t group, const uint8_t *frames,
                 uint32_t frame_len, uint32_t kinds)
{
    struct conn *conn = &load->conns[load->count];

    if (load->count == load->max || group >= load->group_count)
        return -1;
    *conn = (struct conn){.fd = -1, .group = group};
    if (frame_len) {
        if (!copy_frames(load, conn, frames, frame_len, kinds))
            return -1;
        join_senders(load, &load->groups[group], load->count);
    }
    return load->count++;
}

int load_frames(struct load *load, uint32_t number, const uint8_t *frames,
                uint32_t frame_len, uint32_t kinds)
{
    struct conn *conn = &load->conns[number];

    if (number >= load->count || !conn->frames || conn->unsent_len ||
        !copy_frames(load, conn, frames, frame_len, kinds))
        return -1;
    return 0;
}

/* Room for `wanted` items; twice as much as there was, since scripts of ten
 * thousand steps are written one by one. */
static void *grown(void *items, uint32_t *room, uint32_t wanted, size_t size)
{
    uint32_t more = *room ? *room : 16;
    void *larger = items;

    while (more < wanted)
        more *= 2;
    if (more > *room)
        larger = realloc(items, more * size);
    if (larger && more > *room)
        *room = more;
    return larger;
}

int load_step(struct load *load, uint32_t number, const uint8_t *bytes,
              uint32_t len, int32_t awaits)
{
    struct conn *conn = &load->conns[number];
    uint8_t *script;
    struct step *steps;

    if (number >= load->count)
        return -1;
    script = grown(conn->script, &conn->script_room, conn->script_len + len, 1);
    steps = grown(conn->steps, &conn->step_room, conn->step_count + 1u,
                  sizeof *steps);
    if (script)
        conn->script = script;
    if (steps)
        conn->steps = steps;
    if (!script || !steps)
        return -1;
    if (len)
        memcpy(script + conn->script_len, bytes, len);
    steps[conn->step_count++] = (struct step){conn->script_len, len, awaits};
    conn->script_len += len;
    if (conn->state == CONN_ACTIVE) {
        conn->state = CONN_SCRIPT;
        load->active--;
    }
    return 0;
}

int load_mute(struct load *load, uint32_t number)
{
    if (number >= load->count || load->conns[number].state != CONN_NEW)
        return -1;
    load->conns[number].is_mute = true;
    return 0;
}

uint32_t load_muted_gone(const struct load *load)
{
    uint32_t gone = 0;

    for (uint32_t i = 0; i < load->count; i++) {
        struct pollfd seen = {.fd = load->conns[i].fd, .events = POLLRDHUP};

        if (load->conns[i].is_mute && poll(&seen, 1, 0) == 1)
            gone++;
    }
    return gone;
}

static bool dial(struct load *load, struct conn *conn,
                 const struct sockaddr_in *address)
{
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = conn};
    int on = 1;
    int small = LOAD_MUTE_RCVBUF;

    conn->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (conn->fd < 0) {
        conn_lose(load, conn, strerror(errno), NULL, 0);
        return false;
    }
    setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (conn->is_mute)
        setsockopt(conn->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    conn->state = CONN_CONNECTING;
    if ((connect(conn->fd, (const struct sockaddr *)address, sizeof *address) !=
             0 &&
         errno != EINPROGRESS) ||
        epoll_ctl(load->epoll, EPOLL_CTL_ADD, conn->fd, &event) != 0) {
        conn_lose(load, conn, strerror(errno), NULL, 0);
        return false;
    }
    return true;
}

int load_open(struct load *load, const char *ip, uint16_t port,
              uint32_t at_once, uint64_t timeout_ns)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(port)};
    uint64_t deadline = now_ns() + timeout_ns;
    uint32_t next = 0;

    if (inet_pton(AF_INET, ip, &address.sin_addr) != 1)
        return -1;
    while (next < load->count && load->conns[next].state != CONN_NEW)
        next++;
    for (uint32_t i = 0; i < next; i++)
        if (load->conns[i].state == CONN_SCRIPT)
            conn_script(load, &load->conns[i]);
    while (load->active < load->count) {
        while (next < load->count && next - load->active < at_once)
            if (!dial(load, &load->conns[next++], &address))
                return -1;
        int n = epoll_wait(load->epoll, load->events, LOAD_EVENTS, 100);
        for (int i = 0; i < n; i++)
            conn_event(load, load->events[i].data.ptr, load->events[i].events);
        if (load->lost)
            return -1;
        if (now_ns() > deadline) {
            snprintf(load->failure, sizeof load->failure,
                     "%u of %u connections were through in time", load->active,
                     load->count);
            return -1;
        }
    }
    return 0;
}

const char *load_failure(const struct load *load)
{
    return load->failure;
}
