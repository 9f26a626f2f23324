/*
 * accept.c - one thread accepts and gives each socket to the thread that has
 * the fewest connections.
 *
 * Refused: SO_REUSEPORT, one listener a thread. The kernel spreads by hash, so
 * long-lived connections end up uneven, and two servers started on one port
 * by mistake would share it silently.
 */
#define _GNU_SOURCE
#include "accept.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "conn.h"
#include "imcore.h"

/* Taken in one turn; the backlog of a login storm waits for the next, so that
 * established traffic is served in between. */
#define ACCEPTS_A_TURN 64

/* Before a HELLO has named one, we speak JSON. */
#define CODEC_JSON 1

static void watch_listener(struct im_loop *loop, bool on)
{
    struct epoll_event event = {.events = on ? (uint32_t)EPOLLIN : 0u,
                                .data.u64 = IM_SOURCE_LISTENER};
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, loop->listen_fd, &event);
    loop->accept_paused = !on;
}

void im_loop_listen(struct im_loop *loop, int fd)
{
    struct epoll_event event = {.events = EPOLLIN,
                                .data.u64 = IM_SOURCE_LISTENER};

    im_loop_unlisten(loop);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        close(fd);
        return;
    }
    loop->listen_fd = fd;
    loop->accept_paused = false;
}

void im_loop_unlisten(struct im_loop *loop)
{
    if (loop->listen_fd >= 0)
        close(loop->listen_fd);
    loop->listen_fd = -1;
}

/* No descriptor is left. The spare one makes room to accept and hang up, so
 * the peer learns it now; without it we look away until the next tick, or a
 * level-triggered epoll would spin on what we cannot take. */
static bool shed_one(struct im_loop *loop)
{
    if (loop->spare_fd >= 0) {
        close(loop->spare_fd);
        int fd = accept4(loop->listen_fd, NULL, NULL, SOCK_CLOEXEC);
        bool nobody = fd < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
        if (fd >= 0) {
            im_stat_add(&loop->stats.accept_refused, 1);
            close(fd);
        }
        loop->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (loop->spare_fd >= 0 && (fd >= 0 || nobody))
            return fd >= 0;
    }
    watch_listener(loop, false);
    return false;
}

static uint32_t emptiest(const struct im_core *core)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < core->loop_count; i++)
        if (atomic_load_explicit(&core->loops[i].placed, memory_order_relaxed) <
            atomic_load_explicit(&core->loops[best].placed,
                                 memory_order_relaxed))
            best = i;
    return best;
}

/* No slot is left: says so, if the socket takes it at once, and hangs up. */
static void turn_away(struct im_loop *loop, int fd)
{
    struct im_span goodbye =
        im_core_goodbye_for(loop->core, CODEC_JSON, IM_CLOSE_OVERLOADED);

    im_stat_add(&loop->stats.accept_refused, 1);
    if (goodbye.len)
        (void)!send(fd, goodbye.at, goodbye.len, MSG_DONTWAIT | MSG_NOSIGNAL);
    /* Unread bytes would turn the close into a reset, which overtakes it. */
    (void)!recv(fd, loop->gather.scratch, IM_GATHER_SCRATCH, MSG_DONTWAIT);
    close(fd);
}

void im_accept_adopt(struct im_loop *loop, int fd)
{
    if (im_conn_open(loop, fd) == IM_OK)
        return;
    turn_away(loop, fd);
    atomic_fetch_sub_explicit(&loop->placed, 1, memory_order_relaxed);
}

static void place(struct im_loop *loop, int fd)
{
    struct im_core *core = loop->core;
    uint32_t to = emptiest(core);
    struct im_record record = {.kind = IM_COMMAND_ADOPT, .b = (uint32_t)fd};

    im_stat_add(&loop->stats.accepted, 1);
    atomic_fetch_add_explicit(&core->loops[to].placed, 1, memory_order_relaxed);
    if (to == loop->number) {
        im_accept_adopt(loop, fd);
        return;
    }
    if (im_queue_push(&core->loops[to].relays[loop->number], record, NULL, 0) !=
        IM_OK) {
        turn_away(loop, fd);
        atomic_fetch_sub_explicit(&core->loops[to].placed, 1,
                                  memory_order_relaxed);
        return;
    }
    loop->waking |= 1u << to;
}

void im_accept(struct im_loop *loop)
{
    for (int i = 0; i < ACCEPTS_A_TURN && loop->listen_fd >= 0; i++) {
        int fd =
            accept4(loop->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            place(loop, fd);
            continue;
        }
        if (errno == ECONNABORTED || errno == EINTR)
            continue;
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
            errno == ENOMEM) {
            if (shed_one(loop))
                continue;
        }
        return;
    }
}

void im_accept_again(struct im_loop *loop)
{
    if (loop->spare_fd < 0)
        loop->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (loop->accept_paused && loop->listen_fd >= 0)
        watch_listener(loop, true);
}
