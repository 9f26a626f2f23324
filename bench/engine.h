/*
 * engine.h - inside of the load generator: what load.c (opening), wire.c (one
 * connection) and traffic.c (the two loops) share.
 */
#pragma once

#include "load.h"

#include <sys/epoll.h>
#include <time.h>

#define LOAD_NONE UINT32_MAX
#define LOAD_EVENTS 1024
#define LOAD_INBOX_BYTES (256u * 1024u)
#define LOAD_MUTE_RCVBUF 4096

enum conn_state {
    CONN_NEW = 0,
    CONN_CONNECTING,
    CONN_SCRIPT, /* running its script */
    CONN_ACTIVE,
    CONN_LOST
};

struct step {
    uint32_t at; /* in the script */
    uint32_t len;
    int32_t awaits;
};

struct conn {
    int fd;
    enum conn_state state;
    uint32_t group;
    uint32_t next_sender; /* of the same group, in a circle */

    /* What it publishes: `kinds` different frames of one length, in turn,
     * repeated to `copies` in a row, each with its own stamp, so that a burst
     * that begins with any of them is one send without copying. */
    uint8_t *frames;
    uint32_t frame_len;
    uint32_t kinds;
    uint32_t next_kind;
    uint32_t copies;

    /* What the kernel has not taken yet; EPOLLOUT is on while there is any. */
    const uint8_t *unsent;
    size_t unsent_len;

    /* The beginning of a reply whose end has not arrived. */
    uint8_t *tail;
    uint32_t tail_len;
    uint32_t tail_room;

    uint8_t *script;
    uint32_t script_len;
    uint32_t script_room;
    struct step *steps;
    uint32_t step_count;
    uint32_t step_room;
    uint32_t step_now;
    bool is_mute; /* never reads once its script is through */
};

struct group {
    uint32_t members;
    uint32_t sender; /* whose turn it is; LOAD_NONE: nobody publishes */
    uint64_t owed;   /* deliveries on their way */
    bool is_dirty;   /* on the list of groups to look at */
};

struct load {
    struct load_wire wire;
    int epoll;
    uint32_t max;
    uint32_t count;
    uint32_t group_count;
    uint32_t active;
    uint32_t lost;
    struct conn *conns;
    struct group *groups;
    uint32_t *dirty; /* groups whose deliveries have come in */
    uint32_t dirty_count;
    uint64_t owed;    /* by all groups */
    uint64_t vain_ns; /* CPU time, looked for events that were not there */
    uint64_t vain_since_ns; /* the last look was in vain and ended then; or 0 */
    uint64_t vain_sends;    /* sends until then */
    struct histogram *latency;
    struct load_result *result;
    uint8_t *inbox;
    struct epoll_event events[LOAD_EVENTS];
    char failure[256];
};

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline struct group *group_of(struct load *load, const struct conn *conn)
{
    return &load->groups[conn->group];
}

static inline void mark_dirty(struct load *load, uint32_t number)
{
    struct group *group = &load->groups[number];

    if (!group->is_dirty) {
        group->is_dirty = true;
        load->dirty[load->dirty_count++] = number;
    }
}

/* Sends, or keeps what does not fit: the bytes must stay until then. False
 * when the connection is lost. */
bool conn_send(struct load *load, struct conn *conn, const uint8_t *bytes,
               size_t len);

/* Does what epoll reports: connects, sends the rest, takes replies. */
void conn_event(struct load *load, struct conn *conn, uint32_t events);

/* Closes it; the first reason is kept. */
void conn_lose(struct load *load, struct conn *conn, const char *reason,
               const uint8_t *bytes, size_t len);

/* Asks epoll for these events only. */
void conn_watch(struct load *load, struct conn *conn, uint32_t events);

/* Goes on with the script until it waits for a reply or is at its end. */
void conn_script(struct load *load, struct conn *conn);
