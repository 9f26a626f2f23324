/*
 * outbox.c - references in blocks, gathered into as few sends as possible.
 *
 * The common turn puts one message, sent from where it is, or a few dozen small
 * ones: one block, one copy into the scratch, one send. Copying wins over a
 * vector of parts up to a few kilobytes; above that the message is its own
 * part.
 */
#include "outbox.h"

/* Copied below, a part of its own from here. The cost of a part in the kernel
 * is about that of copying one to two kilobytes. */
#define COPY_MAX 2048u

struct block {
    struct im_msg *next;
    struct im_msg *refs[IM_OUTBOX_REFS];
};

_Static_assert(sizeof(struct block) + sizeof(struct im_msg) == 256, "block");

static struct block *block_of(struct im_msg *slot)
{
    return (struct block *)(void *)slot->bytes;
}

static struct im_msg *new_block(struct im_pool *pool, enum im_purpose purpose)
{
    struct im_msg *slot = im_pool_take(pool, sizeof(struct block), purpose);
    if (slot)
        block_of(slot)->next = NULL;
    return slot;
}

/* Room for one more reference behind the others. */
static enum im_status make_room(struct im_outbox *outbox, struct im_pool *pool,
                                enum im_purpose purpose)
{
    struct im_msg *slot = new_block(pool, purpose);
    if (!slot)
        return IM_FULL;

    uint8_t moved = 0;
    if (outbox->last) {
        block_of(outbox->last)->next = slot;
    } else {
        block_of(slot)->refs[moved++] = outbox->first;
        outbox->first = slot;
        outbox->head = 0;
    }
    outbox->last = slot;
    outbox->tail = moved;
    return IM_OK;
}

enum im_status im_outbox_put(struct im_outbox *outbox, struct im_pool *pool,
                             struct im_msg *msg, enum im_purpose purpose)
{
    if (!outbox->first) {
        outbox->first = msg;
    } else {
        if ((!outbox->last || outbox->tail == IM_OUTBOX_REFS) &&
            make_room(outbox, pool, purpose) != IM_OK)
            return IM_FULL;
        block_of(outbox->last)->refs[outbox->tail++] = msg;
    }
    outbox->bytes += msg->len;
    outbox->refs++;
    return IM_OK;
}

/* Where the message that is sent next stands. */
static struct im_msg **front_place(struct im_outbox *outbox)
{
    return outbox->last ? &block_of(outbox->first)->refs[outbox->head]
                        : &outbox->first;
}

static struct im_msg *front(const struct im_outbox *outbox)
{
    return outbox->last ? block_of(outbox->first)->refs[outbox->head]
                        : outbox->first;
}

static bool gather_copy(struct im_gather *gather, uint32_t *copied,
                        const uint8_t *at, uint32_t len)
{
    if (*copied + len > IM_GATHER_SCRATCH)
        return false;

    uint8_t *to = gather->scratch + *copied;
    struct iovec *last = gather->parts + gather->count - 1;
    if (gather->count && (uint8_t *)last->iov_base + last->iov_len == to) {
        last->iov_len += len;
    } else if (gather->count == IM_GATHER_PARTS) {
        return false;
    } else {
        gather->parts[gather->count++] = (struct iovec){to, len};
    }
    memcpy(to, at, len);
    *copied += len;
    return true;
}

static void gather_alone(struct im_gather *gather, struct im_msg *msg,
                         uint32_t skip)
{
    gather->bytes = msg->len - skip;
    gather->parts[0] = (struct iovec){msg->bytes + skip, gather->bytes};
    gather->count = 1;
    gather->is_raw = !msg->frames;
}

void im_outbox_gather(const struct im_outbox *outbox, struct im_gather *gather)
{
    uint32_t copied = 0, skip = outbox->sent, at = outbox->head;

    if (IM_LIKELY(outbox->refs == 1)) {
        /* From where it is. */
        gather_alone(gather, front(outbox), skip);
        return;
    }
    gather->count = 0;
    gather->bytes = 0;
    gather->is_raw = false;
    for (struct im_msg *slot = outbox->first; slot;
         slot = block_of(slot)->next, at = 0) {
        uint32_t end = slot == outbox->last ? outbox->tail : IM_OUTBOX_REFS;
        for (; at < end; at++, skip = 0) {
            struct im_msg *msg = block_of(slot)->refs[at];
            uint8_t *from = msg->bytes + skip;
            uint32_t len = msg->len - skip;

            if (IM_UNLIKELY(!msg->frames)) {
                if (!gather->count)
                    gather_alone(gather, msg, skip);
                return;
            }
            if (len <= COPY_MAX) {
                if (!gather_copy(gather, &copied, from, len))
                    return;
            } else if (gather->count == IM_GATHER_PARTS) {
                return;
            } else {
                gather->parts[gather->count++] = (struct iovec){from, len};
            }
            gather->bytes += len;
        }
    }
}

static void drop_block(struct im_outbox *outbox, struct im_pool *pool)
{
    struct im_msg *slot = outbox->first;

    outbox->first = block_of(slot)->next;
    outbox->head = 0;
    if (!outbox->first)
        outbox->last = NULL;
    im_msg_drop(pool, slot);
}

/* The same where blocks hold the references; `len` counts from the beginning of
 * the first message. */
static void sent_from_blocks(struct im_outbox *outbox, struct im_pool *pool,
                             uint32_t len)
{
    while (outbox->first) {
        struct im_msg *slot = outbox->first;
        uint32_t end = slot == outbox->last ? outbox->tail : IM_OUTBOX_REFS;
        for (; outbox->head < end; outbox->head++) {
            struct im_msg *msg = block_of(slot)->refs[outbox->head];
            if (len < msg->len) {
                outbox->sent = len;
                return;
            }
            len -= msg->len;
            outbox->refs--;
            im_msg_drop(pool, msg);
        }
        drop_block(outbox, pool);
    }
}

void im_outbox_sent(struct im_outbox *outbox, struct im_pool *pool,
                    uint32_t len)
{
    IM_ASSERT(len <= outbox->bytes);
    outbox->bytes -= len;
    len += outbox->sent;
    outbox->sent = 0;
    if (outbox->last) {
        sent_from_blocks(outbox, pool, len);
    } else if (outbox->bytes) {
        outbox->sent = len;
    } else if (outbox->first) {
        outbox->refs = 0;
        im_msg_drop(pool, outbox->first);
        outbox->first = NULL;
    }
}

void im_outbox_replace(struct im_outbox *outbox, struct im_pool *pool,
                       uint32_t len, struct im_msg *msg)
{
    IM_ASSERT(outbox->sent == 0 && len <= outbox->bytes);
    /* The last of them leaves its place to the new one. */
    while (front(outbox)->len < len) {
        uint32_t first = front(outbox)->len;
        len -= first;
        im_outbox_sent(outbox, pool, first);
    }
    struct im_msg **place = front_place(outbox), *last = *place;
    IM_ASSERT(last->len == len);
    *place = msg;
    outbox->bytes += msg->len - last->len;
    im_msg_drop(pool, last);
}

void im_outbox_clear(struct im_outbox *outbox, struct im_pool *pool)
{
    im_outbox_sent(outbox, pool, outbox->bytes);
}

/* Drops the references of a block from `at` on. */
static void drop_refs(struct im_pool *pool, struct im_msg *slot, uint32_t at,
                      uint32_t end)
{
    for (; at < end; at++)
        im_msg_drop(pool, block_of(slot)->refs[at]);
}

void im_outbox_keep(struct im_outbox *outbox, struct im_pool *pool,
                    uint32_t len)
{
    IM_ASSERT(len <= outbox->bytes);
    if (len == 0) {
        im_outbox_clear(outbox, pool);
        return;
    }
    if (len == outbox->bytes)
        return;
    IM_ASSERT(outbox->last);

    /* The block and the place behind the last that stays. */
    struct im_msg *slot = outbox->first;
    uint32_t at = outbox->head, kept = 0, skip = outbox->sent;
    for (uint32_t left = len; left; kept++, skip = 0) {
        if (at == IM_OUTBOX_REFS) {
            slot = block_of(slot)->next;
            at = 0;
        }
        uint32_t size = block_of(slot)->refs[at++]->len - skip;
        IM_ASSERT(size <= left);
        left -= size;
    }

    struct im_msg *rest = block_of(slot)->next;
    drop_refs(pool, slot, at, rest ? IM_OUTBOX_REFS : outbox->tail);
    while (rest) {
        struct im_msg *next = block_of(rest)->next;
        drop_refs(pool, rest, 0, next ? IM_OUTBOX_REFS : outbox->tail);
        im_msg_drop(pool, rest);
        rest = next;
    }
    block_of(slot)->next = NULL;
    outbox->last = slot;
    outbox->tail = (uint8_t)at;
    outbox->bytes = len;
    outbox->refs = kept;
}

void im_outbox_cut(struct im_outbox *outbox, struct im_pool *pool)
{
    uint32_t sent = outbox->sent;

    im_outbox_keep(outbox, pool, sent ? front(outbox)->len - sent : 0);
}
