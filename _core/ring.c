/*
 * ring.c - the receive ring; ring.h tells what it is for.
 */
#include "ring.h"

#include <stdlib.h>

enum im_status im_ring_init(struct im_ring *ring, uint32_t size)
{
    *ring = (struct im_ring){.bytes = malloc(size), .size = size};
    return ring->bytes ? IM_OK : IM_FULL;
}

void im_ring_free(struct im_ring *ring)
{
    free(ring->bytes);
    *ring = (struct im_ring){0};
}

uint8_t *im_ring_space(struct im_ring *ring, uint32_t wanted, uint32_t *len)
{
    uint32_t unread = ring->tail - ring->head;

    if (unread == 0) {
        ring->head = ring->tail = 0;
    } else if (ring->size - ring->tail < wanted) {
        memmove(ring->bytes, ring->bytes + ring->head, unread);
        ring->head = 0;
        ring->tail = unread;
    }
    *len = ring->size - ring->tail;
    return *len < wanted ? NULL : ring->bytes + ring->tail;
}

void im_ring_commit(struct im_ring *ring, uint32_t len)
{
    IM_ASSERT(len <= ring->size - ring->tail);
    ring->tail += len;
}

struct im_span im_ring_peek(const struct im_ring *ring)
{
    return (struct im_span){ring->bytes + ring->head, ring->tail - ring->head};
}

void im_ring_consume(struct im_ring *ring, uint32_t len)
{
    IM_ASSERT(len <= ring->tail - ring->head);
    ring->head += len;
}
