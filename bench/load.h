/*
 * load.h - the load generator: one thread that keeps thousands of connections
 * busy, and costs so little that the server beside it is what is measured.
 *
 * A server is described by data: how its replies are cut (struct cut), a
 * script of bytes that logs a connection in, and the frame that it publishes.
 * Connections that hear each other form a group; the group knows how many
 * deliveries are on their way, and that is all a closed loop needs to know.
 *
 *   L1  nothing is published while more than `depth` messages of the group are
 *       on their way (closed loop), or before its time (open loop).
 *   L2  latency is counted from the stamp in the message: the time of sending
 *       in a closed loop, the time it was due in an open one, so a server that
 *       stalls the generator does not hide the wait.
 *   L3  a run ends when all that was sent has arrived, or drain_ns later.
 *   L4  a loop that spins never has to be woken, so the server's sends cost the
 *       same whether the generator keeps up or not. A sleeping one makes it pay
 *       for the wake-up of a client on the same machine, now and then.
 *
 * Not here: who listens to what (scenarios.py), what the bytes of a protocol
 * are (peers/), CPU time of the server (process.py).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cut.h"
#include "histogram.h"

/* What a reply of some type means to the generator. */
enum load_kind {
    LOAD_OTHER = 0,   /* nothing, unless the script waits for it */
    LOAD_MESSAGE = 1, /* a delivery: counted, and its stamp read */
    LOAD_PING = 2,    /* answered with the pong of the wire */
    LOAD_FAILURE = 3  /* the connection counts as lost; the text is kept */
};

/* How replies are cut, what they mean, and where the u64 stamp is. */
struct load_wire {
    struct cut cut;          /* its max_bytes at most 128 KiB */
    uint32_t stamp_from_end; /* of a reply, and of the frame that is published;
                                0: none, no latency is recorded */
    uint32_t stamp_at;       /* where it begins in the frame that is published,
                                if that is another place; 0: it is not */
    uint32_t pong_len;
    uint8_t pong[16];
    uint8_t kinds[256]; /* enum load_kind by type */
};

struct load_run {
    uint64_t duration_ns; /* of sending */
    uint64_t drain_ns;    /* at most, after it */
    uint64_t messages;    /* no more than these; 0: no such bound */
    uint64_t rate;        /* messages a second in all; 0: a closed loop */
    uint32_t depth;       /* closed loop: messages a group may have under way;
                             0: publish nothing, only listen */
    uint32_t burst;       /* closed loop: wait until that many fit */
    uint32_t spins; /* closed loop, if not 0: looks again instead of sleeping */
};

struct load_result {
    uint64_t sent;     /* messages */
    uint64_t expected; /* deliveries that these must lead to */
    uint64_t received; /* deliveries that came */
    uint64_t surplus;  /* of these, more than were on their way */
    uint64_t wall_ns;
    uint64_t cpu_ns; /* of this thread, but for looking in vain: near wall_ns
                        it is saturated */
    uint64_t wakeups;
    uint64_t receives; /* system calls */
    uint64_t sends;
    uint32_t lost; /* connections, since they were opened */
};

struct load;

/* NULL without memory or descriptors. */
struct load *load_new(uint32_t max_connections, const struct load_wire *wire);
void load_free(struct load *load);

/* A group in which each message is delivered `members` times, at least once.
 * Its number, or -1 when there are already as many groups as connections. */
int64_t load_group(struct load *load, uint32_t members);

/* A connection of the group, to be opened. It publishes `kinds` frames of one
 * length in turn, which stand in a row in `frames`; with frame_len 0 it only
 * listens. The bytes are copied. Its number, or -1: too many connections, no
 * such group, a frame without room for the stamp, no memory. */
int64_t load_add(struct load *load, uint32_t group, const uint8_t *frames,
                 uint32_t frame_len, uint32_t kinds);

/* What a connection that publishes publishes from the next run on. 0, or -1 as
 * above, or for one that only listens. */
int load_frames(struct load *load, uint32_t number, const uint8_t *frames,
                uint32_t frame_len, uint32_t kinds);

/* One more step of its script: send the bytes, then wait for a reply of type
 * `awaits` (-1: for none). Steps of an open connection are for the next
 * load_open(). 0, or -1 without memory. */
int load_step(struct load *load, uint32_t number, const uint8_t *bytes,
              uint32_t len, int32_t awaits);

/* Makes a connection that is not yet open a stalled one: with a small receive
 * buffer, and never read from after its script. Nothing is owed to it, and
 * when the server closes it that is no loss. 0, or -1 when it is open. */
int load_mute(struct load *load, uint32_t number);

/* How many of those the server is seen to have closed. */
uint32_t load_muted_gone(const struct load *load);

/* Connects and runs the scripts, `at_once` at a time; what has been added to
 * the scripts of open connections runs in all of them at once. 0 when all are
 * through, -1 when one failed or the time is over. Then, or after a run with
 * lost connections, load_failure() tells the first reason. */
int load_open(struct load *load, const char *ip, uint16_t port,
              uint32_t at_once, uint64_t timeout_ns);

/* Publishes and counts. `latency` takes the time from stamp to arrival,
 * `lateness` that from when a message was due to when it was sent (open loop).
 * An open loop spins: on time is worth more than cheap. A connection that
 * cannot send holds up the whole schedule, and those it holds up count from
 * when they were due. */
void load_go(struct load *load, const struct load_run *run,
             struct load_result *result, struct histogram *latency,
             struct histogram *lateness);

/* "" when nothing has failed; valid until the next call. */
const char *load_failure(const struct load *load);
