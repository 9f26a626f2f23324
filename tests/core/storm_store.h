/*
 * storm_store.h - what the parts of the store's storm share: the timeline, and
 * when which of them may end.
 */
#pragma once

#include <pthread.h>

#include "storm.h"

enum {
    KEPT_TOPICS = 3,
    KEPT_WRITERS = 5, /* the last one vanishes in the middle */
    KEPT_MESSAGES = 600,
    KEPT_MAX = KEPT_WRITERS * KEPT_MESSAGES + 2000,
    WINDOW_MAX = 16
};

/* What the store has kept, and will not change. */
struct timeline {
    struct kept {
        uint8_t *frame;
        uint32_t size;
    } kept[KEPT_TOPICS][KEPT_MAX]; /* by seq less one */
    uint64_t heads[KEPT_TOPICS];
    pthread_mutex_t lock;
};

struct kept_storm {
    struct timeline timeline;
    struct im_core *core;
    uint16_t port;
    uint32_t seed;
    _Atomic bool is_written; /* by the writers; by the program, too */
    _Atomic bool is_answered;
    _Atomic bool is_over; /* the clients have seen what they wanted to see */
    _Atomic bool is_closing;
};

static inline uint32_t roll_dice(uint32_t *state, uint32_t sides)
{
    uint32_t x = *state;

    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return (*state = x) % sides;
}

static inline void kept_topic(uint8_t *to, uint32_t topic)
{
    memcpy(to, "kept", 4);
    to[3] = (uint8_t)('0' + topic);
}

/* A message to be kept; whoever receives it can tell that it is whole. Every
 * third one has the tag "x". */
static inline size_t write_kept(uint8_t *to, uint32_t author, uint32_t number)
{
    uint8_t body[4096] = {0};
    size_t tag_len = number % 3 == 0;
    size_t len = 28 + 4 + tag_len + 2 + 10 + number * 37 % 2000;

    memset(body + 28, (int)(author * 31 + number), len - 28);
    im_store_u64(body + 16, number);
    body[24] = 4;
    body[25] = (uint8_t)tag_len;
    body[26] = 2;
    kept_topic(body + 28, number % KEPT_TOPICS);
    body[32] = 'x';
    body[32 + tag_len] = 'a';
    body[33 + tag_len] = (uint8_t)('0' + author);
    size_t size = write_frame(to, IM_MESSAGE, 0, body, len);
    to[5] |= IM_DURABLE;
    return size;
}

void *kept_clients(void *storm);
