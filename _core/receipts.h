/*
 * receipts.h - which publishes were kept lately, and as what.
 *
 * A publisher who saw no receipt repeats its message with the same id; here it
 * is recognised. One entry a publish, in the order of the publishes: the oldest
 * leaves when its time is over or its place is needed. Preallocated.
 *
 *   R1  a publish is found from im_receipt_add() until `window_ms` of the clock
 *       given have passed or `count_max` others came after it, no longer.
 *   R2  of two with the same key the younger is found.
 */
#pragma once

#include "base.h"

/* Sender, device and id, as 128 bits under a secret of the store: long enough
 * to stand for them. */
struct im_receipt_key {
    uint64_t a, b;
};

/* The device in a key: a number that is the same after every restart. */
static inline uint64_t im_receipt_device(struct im_span device)
{
    return im_hash(0x646576696365u, device.at, device.len);
}

struct im_receipt {
    struct im_receipt_key key;
    uint64_t content; /* hash of what was published */
    uint64_t seq;
    uint64_t time_ms;  /* told to the publisher */
    uint64_t clock_ms; /* of a clock that does not jump, for R1 */
};

struct im_receipts {
    uint64_t window_ms;
    uint32_t count_max;
    uint32_t first; /* place in the ring of the oldest */
    uint32_t count;
    uint32_t slot_mask;
    struct im_receipt *ring;
    uint32_t *slots; /* hash table of places, IM_NONE where there is none */
};

/* IM_FULL without memory. `count_max` is 1 to 2^30. */
enum im_status im_receipts_init(struct im_receipts *receipts,
                                uint32_t count_max, uint64_t window_ms);
void im_receipts_free(struct im_receipts *receipts);

/* NULL when it is not known, or no longer. */
const struct im_receipt *im_receipt_find(const struct im_receipts *receipts,
                                         struct im_receipt_key key);
void im_receipt_add(struct im_receipts *receipts,
                    const struct im_receipt *receipt);

/* Fetches early what a lookup or an addition of `key` will touch, `ahead` of
 * them from now: a million of them are no cache's size. */
static inline void im_receipts_fetch(const struct im_receipts *receipts,
                                     struct im_receipt_key key, uint32_t ahead)
{
    __builtin_prefetch(&receipts->slots[key.a & receipts->slot_mask], 1);
    if (receipts->count + ahead >= receipts->count_max) {
        uint32_t at = receipts->first + ahead;
        if (at >= receipts->count_max)
            at -= receipts->count_max;
        uint64_t oldest = receipts->ring[at].key.a;
        __builtin_prefetch(&receipts->slots[oldest & receipts->slot_mask], 1);
    }
}

/* Forget what is older than the window. */
void im_receipts_expire(struct im_receipts *receipts, uint64_t clock_ms);
