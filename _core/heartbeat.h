/*
 * heartbeat.h - who has been silent for too long.
 *
 * Every frame is a sign of life and must cost one store; a dead peer is rare
 * and may cost more. So there is no timer a connection: two small arrays, by
 * connection slot, and a sweep over them every tick. Twenty thousand
 * connections are a hundred kilobytes, read in order.
 *
 *   H1  a frame costs the store of seen[slot]; missed[] is the sweep's alone.
 *   H2  nothing is reported before its time, nor later than one tick after.
 *
 * Silent for the interval: one miss is begun, the peer is asked with a PING.
 * Each further timeout without a frame is one more; after `max_missed` the
 * peer is dead. A sweep that comes late, as after a suspended machine wakes
 * up, still counts one miss at a time.
 */
#pragma once

#include "base.h"

enum im_watch {
    IM_WATCH_NONE = 0,
    IM_WATCH_HANDSHAKE, /* since it was accepted */
    IM_WATCH_LIVE,      /* since its latest frame */
    IM_WATCH_CLOSING    /* since it was told goodbye */
};

struct im_heartbeat {
    uint32_t *seen_ms;
    uint8_t *missed;
    uint8_t *watch;
    uint32_t slot_count;
    uint32_t high; /* slots below this have been used */

    uint32_t handshake_ms;
    uint32_t interval_ms;
    uint32_t timeout_ms;
    uint32_t closing_ms;
    uint8_t max_missed;
};

enum im_pulse {
    IM_PULSE_NONE = 0,
    IM_PULSE_REVIVED, /* it was suspect and has been heard since */
    IM_PULSE_ASK,     /* suspect, or more so: send a PING */
    IM_PULSE_DEAD,
    IM_PULSE_HANDSHAKE_OVER,
    IM_PULSE_CLOSING_OVER
};

/* The durations are set by the caller afterwards. IM_FULL without memory. */
enum im_status im_heartbeat_init(struct im_heartbeat *beat,
                                 uint32_t slot_count);
void im_heartbeat_free(struct im_heartbeat *beat);

static inline void im_heartbeat_watch(struct im_heartbeat *beat, uint32_t slot,
                                      enum im_watch watch, uint32_t now_ms)
{
    beat->watch[slot] = (uint8_t)watch;
    beat->missed[slot] = 0;
    beat->seen_ms[slot] = now_ms;
    if (slot >= beat->high)
        beat->high = slot + 1;
}

static inline void im_heartbeat_seen(struct im_heartbeat *beat, uint32_t slot,
                                     uint32_t now_ms)
{
    beat->seen_ms[slot] = now_ms;
}

/* Somebody waits for a sign of life that is overdue: the peer counts as silent
 * for the whole interval, so that the next sweep asks it. */
static inline void im_heartbeat_doubt(struct im_heartbeat *beat, uint32_t slot,
                                      uint32_t now_ms)
{
    if (beat->watch[slot] == IM_WATCH_LIVE &&
        now_ms - beat->seen_ms[slot] < beat->interval_ms)
        beat->seen_ms[slot] = now_ms - beat->interval_ms;
}

/* The next slot from *at on with news, which it puts into *pulse; *at moves
 * behind it. IM_NONE at the end. Clock readings may wrap. */
uint32_t im_heartbeat_sweep(struct im_heartbeat *beat, uint32_t *at,
                            uint32_t now_ms, enum im_pulse *pulse);

/* How often to sweep: short beside the shortest of interval, timeout and
 * handshake. */
uint32_t im_heartbeat_tick_ms(const struct im_heartbeat *beat);
