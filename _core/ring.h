/*
 * ring.h - where a thread receives: one buffer, used again every turn.
 *
 * A read lands here, its frames are parsed here in place, and before the next
 * connection is read everything has been consumed or copied away. Empty again,
 * the ring starts over at its first byte, so a thread with ten thousand
 * connections works in the same few warm cache lines.
 *
 * Refused: a double-mapped ring per connection. It is page-granular, costs two
 * mappings each, and an idle connection must own no buffer at all.
 *
 *   R1  head <= tail <= size.
 *   R2  what peek returned stays where it is until consume or space.
 */
#pragma once

#include "base.h"

struct im_ring {
    uint8_t *bytes;
    uint32_t size;
    uint32_t head; /* first byte not consumed */
    uint32_t tail; /* first byte not written */
};

/* IM_FULL when there is no memory. */
enum im_status im_ring_init(struct im_ring *ring, uint32_t size);
void im_ring_free(struct im_ring *ring);

/* Room for at least `wanted` bytes behind what is unread, and in *len how much
 * there is in all. Moves unread bytes to the front when only that makes room.
 * NULL when the ring cannot hold them. */
uint8_t *im_ring_space(struct im_ring *ring, uint32_t wanted, uint32_t *len);

/* `len` bytes were written where im_ring_space said. */
void im_ring_commit(struct im_ring *ring, uint32_t len);

/* Everything unread, in one piece. */
struct im_span im_ring_peek(const struct im_ring *ring);

/* The first `len` unread bytes are done with. */
void im_ring_consume(struct im_ring *ring, uint32_t len);
