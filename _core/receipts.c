/*
 * receipts.c - a ring of publishes and a hash table over it.
 *
 * Runs once for every durable publish: one insertion, one eviction when full,
 * a lookup for the few that are repeats. Linear probing with most of the slots
 * free; a slot that empties is closed by moving the following ones up, so that
 * a table that turns over for months keeps short chains.
 *
 * Refused: 32 bits of the key beside each place, so that a chain is walked
 * without the ring. In a table half full, of the same 16 MB, a seal beside a
 * million receipts takes 30 to 75 ns a message less of 170, and a durable
 * publish 8 % less CPU (median of 12 pairs, 9 of them less; the mean is 5 %).
 */
#include "receipts.h"

#include <stdlib.h>

enum im_status im_receipts_init(struct im_receipts *receipts,
                                uint32_t count_max, uint64_t window_ms)
{
    uint32_t slot_count = 2;
    /* A quarter full: what a key meets on its way is another miss each. */
    while (slot_count < 4 * count_max)
        slot_count *= 2;

    *receipts = (struct im_receipts){
        .window_ms = window_ms,
        .count_max = count_max,
        .slot_mask = slot_count - 1,
        .ring = calloc(count_max, sizeof *receipts->ring),
        .slots = malloc(slot_count * sizeof *receipts->slots),
    };
    if (!receipts->ring || !receipts->slots) {
        im_receipts_free(receipts);
        return IM_FULL;
    }
    memset(receipts->slots, 0xff, slot_count * sizeof *receipts->slots);
    return IM_OK;
}

void im_receipts_free(struct im_receipts *receipts)
{
    free(receipts->ring);
    free(receipts->slots);
    receipts->ring = NULL;
    receipts->slots = NULL;
}

/* The slot of a key, or the free one where it would go. */
static uint32_t slot_of(const struct im_receipts *receipts,
                        struct im_receipt_key key)
{
    uint32_t slot = (uint32_t)key.a & receipts->slot_mask;
    for (;;) {
        uint32_t at = receipts->slots[slot];
        if (at == IM_NONE || (receipts->ring[at].key.a == key.a &&
                              receipts->ring[at].key.b == key.b))
            return slot;
        slot = (slot + 1) & receipts->slot_mask;
    }
}

static void empty_slot(struct im_receipts *receipts, uint32_t slot)
{
    const uint32_t mask = receipts->slot_mask;
    uint32_t free_slot = slot;

    for (;;) {
        slot = (slot + 1) & mask;
        uint32_t at = receipts->slots[slot];
        if (at == IM_NONE)
            break;
        uint32_t home = (uint32_t)receipts->ring[at].key.a & mask;
        if (((slot - home) & mask) >= ((slot - free_slot) & mask)) {
            receipts->slots[free_slot] = at;
            free_slot = slot;
        }
    }
    receipts->slots[free_slot] = IM_NONE;
}

static void drop_oldest(struct im_receipts *receipts)
{
    uint32_t slot = slot_of(receipts, receipts->ring[receipts->first].key);

    /* A younger one with the same key has taken the slot over (R2). */
    if (receipts->slots[slot] == receipts->first)
        empty_slot(receipts, slot);
    receipts->first =
        receipts->first + 1 == receipts->count_max ? 0 : receipts->first + 1;
    receipts->count--;
}

const struct im_receipt *im_receipt_find(const struct im_receipts *receipts,
                                         struct im_receipt_key key)
{
    uint32_t at = receipts->slots[slot_of(receipts, key)];
    return at == IM_NONE ? NULL : &receipts->ring[at];
}

void im_receipt_add(struct im_receipts *receipts,
                    const struct im_receipt *receipt)
{
    if (receipts->count == receipts->count_max)
        drop_oldest(receipts);
    uint64_t place = (uint64_t)receipts->first + receipts->count;
    uint32_t at = (uint32_t)(place % receipts->count_max);
    uint32_t slot = slot_of(receipts, receipt->key);

    receipts->ring[at] = *receipt;
    receipts->slots[slot] = at;
    receipts->count++;
}

void im_receipts_expire(struct im_receipts *receipts, uint64_t clock_ms)
{
    while (receipts->count) {
        uint64_t then = receipts->ring[receipts->first].clock_ms;
        if (then > clock_ms || clock_ms - then <= receipts->window_ms)
            return;
        drop_oldest(receipts);
    }
}
