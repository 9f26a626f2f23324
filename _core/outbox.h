/*
 * outbox.h - what one connection still has to send: references in order.
 *
 * Filled by fan-out, emptied once a turn. Most turns owe a connection one
 * message: its reference stands here by itself, which takes a third off the
 * instructions of a delivery. From the second one on blocks hold them, which
 * come from the message pool, so a reader that lags costs pool memory and hits
 * the pool's bound. An idle connection owns but these 32 bytes.
 *
 *   O1  bytes = the sum of what the references hold, less what of the first
 *       one was sent already; refs = how many there are.
 *   O2  a message that was begun is finished, whatever else is dropped: half a
 *       frame would make the rest of the stream unreadable.
 */
#pragma once

#include <sys/uio.h>

#include "pool.h"

#define IM_OUTBOX_REFS 28u /* with the link they fill a slot of 256 bytes */

struct im_outbox {
    struct im_msg *first; /* blocks: pool slots that hold references; or */
    struct im_msg *last;  /* NULL, and first is the only message itself */
    uint32_t bytes;
    uint32_t sent; /* of the first message */
    uint32_t refs; /* messages waiting */
    uint8_t head;  /* next reference to send, in the first block */
    uint8_t tail;  /* next free place, in the last block */
};

/* What a waiting message takes beside its bytes: its head, its reference, and
 * the rest of its slot. Counted, because a thousand PONGs are few bytes. */
#define IM_OUTBOX_REF_COST 64u

/* The memory an outbox stands for; what its bounds are compared with. */
static inline uint64_t im_outbox_cost(const struct im_outbox *outbox)
{
    return outbox->bytes + (uint64_t)outbox->refs * IM_OUTBOX_REF_COST;
}

/* One send: gathered bytes and whole messages, in order. */
#define IM_GATHER_PARTS 64u
#define IM_GATHER_SCRATCH (64u << 10)
#define IM_GATHER_HEAD 16u /* room in front of it, for what wraps it */

struct im_gather {
    struct iovec parts[IM_GATHER_PARTS];
    uint32_t count;
    uint32_t bytes;
    bool is_raw;      /* one message without frames, which nothing wraps */
    uint8_t *scratch; /* IM_GATHER_SCRATCH bytes */
    uint8_t *memory;  /* ... behind IM_GATHER_HEAD of here */
};

/* Appends `msg` and takes over a reference the caller holds for it. IM_FULL
 * when the pool has no block for `purpose`; the reference stays with the
 * caller. */
enum im_status im_outbox_put(struct im_outbox *outbox, struct im_pool *pool,
                             struct im_msg *msg, enum im_purpose purpose);

/* What to send next, without changing the outbox: small messages are copied
 * together into the scratch, large ones are parts of their own. A message
 * without frames goes alone. Valid until the outbox changes. */
void im_outbox_gather(const struct im_outbox *outbox, struct im_gather *gather);

/* `msg` takes the place of the first `len` bytes, which are whole messages of
 * which nothing was sent, and their reference that of the caller. */
void im_outbox_replace(struct im_outbox *outbox, struct im_pool *pool,
                       uint32_t len, struct im_msg *msg);

/* The first `len` bytes were sent: drops what is complete. */
void im_outbox_sent(struct im_outbox *outbox, struct im_pool *pool,
                    uint32_t len);

/* Drops everything; everything but a first message already begun; or everything
 * behind the first `len` bytes, which end where a message does. What stays is
 * not copied: a cut needs no memory. */
void im_outbox_clear(struct im_outbox *outbox, struct im_pool *pool);
void im_outbox_cut(struct im_outbox *outbox, struct im_pool *pool);
void im_outbox_keep(struct im_outbox *outbox, struct im_pool *pool,
                    uint32_t len);
