/*
 * stage_web.h - a stage whose clients speak WebSocket, and a kernel that takes
 * as many bytes of one connection as it is told.
 *
 * send() and sendmsg() are fakes, which let everything else through.
 */
#pragma once

#include <sys/syscall.h>

#include "conn.h"
#include "stage.h"
#include "transport.h"

#define BYTES(text) (struct im_span){(const uint8_t *)text, sizeof text - 1}

/* The connection of which the kernel takes `taken_max` bytes more. */
static int throttled = -1;
static size_t taken_max;

static inline size_t allowed(int fd, size_t len)
{
    if (fd != throttled)
        return len;
    len = len < taken_max ? len : taken_max;
    taken_max -= len;
    return len;
}

ssize_t send(int fd, const void *bytes, size_t len, int flags)
{
    len = allowed(fd, len);
    if (!len) {
        errno = EAGAIN;
        return -1;
    }
    return syscall(SYS_sendto, fd, bytes, len, flags, NULL, 0);
}

ssize_t sendmsg(int fd, const struct msghdr *all, int flags)
{
    static uint8_t flat[4 << 20];
    size_t len = 0;

    for (size_t i = 0; i < all->msg_iovlen; i++) {
        memcpy(flat + len, all->msg_iov[i].iov_base, all->msg_iov[i].iov_len);
        len += all->msg_iov[i].iov_len;
    }
    return send(fd, flat, len, flags);
}

static inline void throttle(const struct stage *stage, uint32_t slot,
                            size_t most)
{
    throttled = stage->core->loops->conns[slot].fd;
    taken_max = most;
}

static inline struct stage new_web_stage(struct im_config config,
                                         uint16_t transport)
{
    struct stage stage = new_stage(config);

    stage.transport = transport;
    start_listening(&stage);
    return stage;
}

/* Sends the request and reads the response. */
static inline int dial(struct stage *stage)
{
    uint8_t response[sizeof WEB_RESPONSE - 1];
    int fd = connect_client(stage);

    send_bytes(fd, WEB_REQUEST("/ws"), sizeof WEB_REQUEST("/ws") - 1);
    CHECK(receive_bytes(stage, fd, response, sizeof response));
    CHECK(memcmp(response, WEB_RESPONSE, sizeof response) == 0);
    return fd;
}

static inline void send_web(int fd, uint8_t first, struct im_span payload)
{
    uint8_t frame[FRAME_BYTES + 14];

    CHECK(payload.len <= FRAME_BYTES);
    send_bytes(fd, frame,
               web_frame(frame, first, payload.at, payload.len, 0x1badb002));
}

static inline void send_inside(int fd, uint8_t type, const char *body)
{
    uint8_t frame[256];
    size_t len = write_frame(frame, type, 1, body, strlen(body));

    send_web(fd, 0x82, (struct im_span){frame, len});
}

/* Everything that comes until nothing does, without its frames. */
static inline size_t hear(struct stage *stage, int fd, struct web *web,
                          uint8_t *to)
{
    size_t len = 0;

    for (int patience = 0; patience < 3; patience++) {
        ssize_t got;
        settle(stage);
        while ((got = recv(fd, to + len, FRAME_BYTES, MSG_DONTWAIT)) > 0) {
            len += web_unwrap(web, to + len, (size_t)got);
            patience = 0;
        }
        if (got == 0)
            break;
    }
    return len;
}

/* Logged in, on a topic; its slot is the one it has just got. */
static inline int log_in_web(struct stage *stage, struct web *web,
                             bool subscribes)
{
    uint8_t heard[1024];
    int fd = dial(stage);

    send_inside(fd, IM_HELLO, "");
    if (subscribes)
        send_inside(fd, IM_SUBSCRIBE, "room");
    CHECK(hear(stage, fd, web, heard) == (subscribes ? 16 : 8));
    CHECK(heard[4] == IM_WELCOME);
    return fd;
}

static inline void hang_up(struct stage *stage, int fd)
{
    CHECK(stage->clients[--stage->client_count] == fd);
    close(fd);
    settle(stage);
    stage->conn_count = stage->told_count = 0;
}

static inline void send_ping(int fd, struct web *web)
{
    uint32_t number = web->pings++;

    send_web(fd, 0x89, (struct im_span){(const uint8_t *)&number, 4});
}

/* Events of no kind, until there is no room for more. */
static inline void fill_events(struct stage *stage)
{
    while (im_loop_tell(stage->core->loops,
                        (struct im_record){.kind = FILLER_EVENT}, NULL,
                        0) == IM_OK)
        ;
}

/* All of a pool, as a list of messages. */
static inline struct im_msg *take_all(struct im_pool *pool)
{
    struct im_msg *all = NULL, *msg;

    for (uint32_t len = 4 * FRAME_BYTES; len >= sizeof all; len -= len / 8)
        while ((msg = im_pool_take(pool, len, IM_FOR_CONTROL))) {
            memcpy(msg->bytes, &all, sizeof all);
            all = msg;
        }
    return all;
}

static inline void give_all(struct im_pool *pool, struct im_msg *all)
{
    while (all) {
        struct im_msg *next;
        memcpy(&next, all->bytes, sizeof next);
        im_msg_drop(pool, all);
        all = next;
    }
}
