/*
 * heartbeat.c - the sweep. See heartbeat.h for the rule it applies.
 */
#include "heartbeat.h"

#include <stdlib.h>

#define TICK_MS_MIN 5u
#define TICK_MS_MAX 250u

enum im_status im_heartbeat_init(struct im_heartbeat *beat, uint32_t slot_count)
{
    *beat = (struct im_heartbeat){.slot_count = slot_count};
    beat->seen_ms = calloc(slot_count, sizeof *beat->seen_ms);
    beat->missed = calloc(slot_count, 1);
    beat->watch = calloc(slot_count, 1);
    return beat->seen_ms && beat->missed && beat->watch ? IM_OK : IM_FULL;
}

void im_heartbeat_free(struct im_heartbeat *beat)
{
    free(beat->seen_ms);
    free(beat->missed);
    free(beat->watch);
    *beat = (struct im_heartbeat){0};
}

/* How many misses a silence of that length amounts to. */
static uint32_t misses(const struct im_heartbeat *beat, uint32_t silent_ms)
{
    if (silent_ms < beat->interval_ms)
        return 0;
    return 1 + (silent_ms - beat->interval_ms) / beat->timeout_ms;
}

static enum im_pulse judge(struct im_heartbeat *beat, uint32_t slot,
                           uint32_t now_ms)
{
    uint32_t silent_ms = now_ms - beat->seen_ms[slot];

    switch (beat->watch[slot]) {
    case IM_WATCH_HANDSHAKE:
        return silent_ms >= beat->handshake_ms ? IM_PULSE_HANDSHAKE_OVER
                                               : IM_PULSE_NONE;
    case IM_WATCH_CLOSING:
        return silent_ms >= beat->closing_ms ? IM_PULSE_CLOSING_OVER
                                             : IM_PULSE_NONE;
    case IM_WATCH_LIVE:
        break;
    default:
        return IM_PULSE_NONE;
    }

    /* One miss at a time: if it was we who slept, as a suspended machine does,
     * the peer is asked and given its time all the same. */
    uint32_t count = misses(beat, silent_ms);
    if (count > beat->missed[slot] + 1u) {
        count = beat->missed[slot] + 1u;
        beat->seen_ms[slot] =
            now_ms - beat->interval_ms - (count - 1) * beat->timeout_ms;
    }
    if (count > beat->max_missed)
        return IM_PULSE_DEAD;
    if (count == beat->missed[slot])
        return IM_PULSE_NONE;

    bool worse = count > beat->missed[slot];
    beat->missed[slot] = (uint8_t)count;
    return worse ? IM_PULSE_ASK : count ? IM_PULSE_NONE : IM_PULSE_REVIVED;
}

uint32_t im_heartbeat_sweep(struct im_heartbeat *beat, uint32_t *at,
                            uint32_t now_ms, enum im_pulse *pulse)
{
    /* The shortest silence that can mean anything. Most slots end here. */
    uint32_t shortest = beat->interval_ms;
    if (beat->handshake_ms < shortest)
        shortest = beat->handshake_ms;
    if (beat->closing_ms < shortest)
        shortest = beat->closing_ms;

    while (*at < beat->high) {
        uint32_t slot = (*at)++;
        uint32_t silent_ms = now_ms - beat->seen_ms[slot];
        if (IM_LIKELY(silent_ms < shortest && !beat->missed[slot]))
            continue;
        *pulse = judge(beat, slot, now_ms);
        if (*pulse != IM_PULSE_NONE)
            return slot;
    }
    return IM_NONE;
}

uint32_t im_heartbeat_tick_ms(const struct im_heartbeat *beat)
{
    uint32_t shortest = beat->interval_ms;
    if (beat->timeout_ms < shortest)
        shortest = beat->timeout_ms;
    if (beat->handshake_ms < shortest)
        shortest = beat->handshake_ms;

    uint32_t tick = shortest / 8;
    return tick < TICK_MS_MIN   ? TICK_MS_MIN
           : tick > TICK_MS_MAX ? TICK_MS_MAX
                                : tick;
}
