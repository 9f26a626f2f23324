/*
 * slots.c - memory for a set of slots; what is done a message is in slots.h.
 */
#include "slots.h"

#include <stdlib.h>

enum im_status im_slots_init(struct im_slots *slots, uint32_t slot_count)
{
    uint32_t groups = slot_count / 4096 + 1;

    *slots = (struct im_slots){.low = groups, .group_count = groups};
    slots->words = calloc(groups * 64u, sizeof *slots->words);
    slots->groups = calloc(groups, sizeof *slots->groups);
    return slots->words && slots->groups ? IM_OK : IM_FULL;
}

void im_slots_free(struct im_slots *slots)
{
    free(slots->words);
    free(slots->groups);
    *slots = (struct im_slots){0};
}
