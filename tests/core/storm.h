/*
 * storm.h - what the two halves of the storm agree on: who takes part, what is
 * written, and which of it somebody must receive.
 *
 * Every message is a function of its writer and its number, so whoever receives
 * it can tell whether it is whole, and whether it is the next one.
 */
#pragma once

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "imcore.h"

enum {
    READERS = 8,
    WRITERS = 6,
    QUITTERS = 4,
    SLEEPERS = 2,
    PEERS = READERS + WRITERS + QUITTERS + SLEEPERS,
    AUTHORS = WRITERS + QUITTERS, /* those who publish */

    ROOMS = 4,
    HOOKED = 4, /* this topic goes through the control plane */
    DENIED = 5, /* and this one nowhere */
    TOPICS = 6,

    MESSAGES = 2000, /* of a writer; a quitter leaves after half of them */
    CALL_EVERY = 64,
    FRAME_BYTES = 65536,
    HELLO_BYTES = 4096,
    OUTBOX_HARD_BYTES = 2 << 20
};

/* In every message and nowhere else: the broadcast of the control plane. */
#define BROADCAST_TOPIC "$all"

struct storm {
    uint16_t port;
    uint32_t seed;
    uint32_t vandals;      /* closed for what they sent, for the final count */
    _Atomic uint32_t over; /* threads of clients that have seen what they
                              wanted to see */
};

#define FAIL(...)                                                              \
    do {                                                                       \
        fprintf(stderr, "storm: %s:%d: ", __FILE__, __LINE__);                 \
        fprintf(stderr, __VA_ARGS__);                                          \
        fputc('\n', stderr);                                                   \
        _Exit(1);                                                              \
    } while (0)

#define CHECK(rule)                                                            \
    do {                                                                       \
        if (!(rule))                                                           \
            FAIL("not so: %s", #rule);                                         \
    } while (0)

static inline uint64_t stat_of(const struct im_core *core, const char *name)
{
    uint64_t sums[IM_STAT_MAX];

    im_core_stats(core, sums);
    for (size_t i = 0; i < IM_STAT_COUNT; i++)
        if (strcmp(im_stat_names[i], name) == 0)
            return sums[i];
    FAIL("no counter is called %s", name);
}

/* A whole frame at `to`; returns its size. */
static inline size_t write_frame(uint8_t *to, uint8_t type, uint16_t request,
                                 const void *body, size_t len)
{
    size_t length = len + 4;
    const uint8_t head[IM_HEAD_LEN] = {(uint8_t)(length >> 24),
                                       (uint8_t)(length >> 16),
                                       (uint8_t)(length >> 8),
                                       (uint8_t)length,
                                       type,
                                       1 << IM_CODEC_SHIFT,
                                       (uint8_t)(request >> 8),
                                       (uint8_t)request};

    memcpy(to, head, sizeof head);
    if (len)
        memcpy(to + sizeof head, body, len);
    return sizeof head + len;
}

/* The clients, until everybody has received what it should and is gone. */
void *storm_clients(void *storm);

/* Those on plain WebSockets, until each has heard its own echo. */
void *storm_plain(void *storm);
