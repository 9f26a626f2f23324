/*
 * slots.h - a set of connection slots, taken in their order.
 *
 * Holds who was written to in this turn. A room's members come in the order of
 * their subscriptions, which is any; slots, descriptors and the kernel's own
 * structures mostly come in the order of accept. A fan-out that sends in that
 * order finds more of them in the caches: 1 to 1,000 costs a tenth less.
 *
 * One bit a slot, and one bit for each 64 of these.
 */
#pragma once

#include "base.h"

struct im_slots {
    uint64_t *words;  /* by slot / 64 */
    uint64_t *groups; /* by slot / 4,096: which words are not 0 */
    uint32_t low;     /* groups below are empty */
    uint32_t group_count;
};

/* An empty set of slots below `slot_count`. IM_FULL without memory. */
enum im_status im_slots_init(struct im_slots *slots, uint32_t slot_count);
void im_slots_free(struct im_slots *slots);

/* Twice is once. */
static inline void im_slots_add(struct im_slots *slots, uint32_t slot)
{
    uint32_t group = slot / 4096;

    slots->words[slot / 64] |= UINT64_C(1) << (slot & 63);
    slots->groups[group] |= UINT64_C(1) << (slot / 64 & 63);
    if (group < slots->low)
        slots->low = group;
}

/* Takes the lowest slot out of the set; IM_NONE when it is empty. */
static inline uint32_t im_slots_take(struct im_slots *slots)
{
    for (; slots->low < slots->group_count; slots->low++) {
        uint64_t *group = &slots->groups[slots->low];
        if (!*group)
            continue;
        uint32_t at = slots->low * 64 + (uint32_t)__builtin_ctzll(*group);
        uint32_t bit = (uint32_t)__builtin_ctzll(slots->words[at]);
        slots->words[at] &= slots->words[at] - 1;
        if (!slots->words[at])
            *group &= *group - 1;
        return at * 64 + bit;
    }
    return IM_NONE;
}
