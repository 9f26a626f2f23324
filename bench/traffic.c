/*
 * traffic.c - the two loops: closed (publish when deliveries have come in) and
 * open (publish when it is due). load.h has the rules L1 to L3.
 */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

#define DUE_AT_ONCE 64 /* sent between two looks at what has arrived */

/* Makes room for `count` frames in a row, the kinds in turn. */
static bool grow_copies(struct conn *conn, uint32_t count)
{
    size_t len = conn->frame_len;
    uint8_t *frames = realloc(conn->frames, count * len);

    if (!frames)
        return false;
    conn->frames = frames;
    for (; conn->copies < count; conn->copies++)
        memcpy(frames + conn->copies * len,
               frames + (conn->copies - conn->kinds) * len, len);
    return true;
}

static void publish(struct load *load, struct conn *conn, uint32_t count,
                    uint64_t stamp)
{
    struct group *group = group_of(load, conn);
    uint64_t deliveries = (uint64_t)count * group->members;
    uint32_t room = conn->kinds - 1u + count; /* whichever comes first */
    uint8_t *first;
    uint8_t *at;

    if (room > conn->copies && !grow_copies(conn, room)) {
        conn_lose(load, conn, "no memory", NULL, 0);
        return;
    }
    first = conn->frames + (size_t)conn->next_kind * conn->frame_len;
    conn->next_kind = (conn->next_kind + count) % conn->kinds;
    at = first + (load->wire.stamp_at
                      ? load->wire.stamp_at
                      : conn->frame_len - load->wire.stamp_from_end);
    /* A nanosecond apart: where the stamp is a message's number, it differs. */
    for (uint32_t i = 0; load->wire.stamp_from_end && i < count; i++) {
        memcpy(at, &stamp, sizeof stamp);
        at += conn->frame_len;
        stamp++;
    }
    group->sender = conn->next_sender;
    group->owed += deliveries;
    load->owed += deliveries;
    load->result->sent += count;
    load->result->expected += deliveries;
    conn_send(load, conn, first, (size_t)count * conn->frame_len);
}

static bool can_publish(const struct conn *conn)
{
    return conn->state == CONN_ACTIVE && conn->unsent_len == 0;
}

static void refill(struct load *load, const struct load_run *run,
                   struct group *group)
{
    uint64_t under_way = (group->owed + group->members - 1) / group->members;
    uint64_t left = UINT64_MAX;
    struct conn *conn;

    if (group->sender == LOAD_NONE || under_way + run->burst > run->depth)
        return;
    conn = &load->conns[group->sender];
    if (run->messages)
        left = run->messages - load->result->sent;
    if (left > run->depth - under_way)
        left = run->depth - under_way;
    if (left && can_publish(conn))
        publish(load, conn, (uint32_t)left, now_ns());
}

static void refill_dirty(struct load *load, const struct load_run *run)
{
    /* Publishing may lose a connection, but never marks a group. */
    for (uint32_t i = 0; i < load->dirty_count; i++) {
        struct group *group = &load->groups[load->dirty[i]];

        group->is_dirty = false;
        refill(load, run, group);
    }
    load->dirty_count = 0;
}

static void forget_dirty(struct load *load)
{
    for (uint32_t i = 0; i < load->dirty_count; i++)
        load->groups[load->dirty[i]].is_dirty = false;
    load->dirty_count = 0;
}

/* The schedule of an open loop: group after group, and in each of them
 * publisher after publisher. */
struct schedule {
    uint64_t start_ns;
    double interval_ns;
    uint32_t group;
    struct histogram *lateness;
};

/* What has become overdue while something held us up is sent in parts: replies
 * that nobody reads meanwhile would age here, and a heartbeat go unanswered. */
static void publish_due(struct load *load, const struct load_run *run,
                        struct schedule *schedule, uint64_t end_ns)
{
    for (int i = 0; i < DUE_AT_ONCE; i++) {
        double after_ns = (double)load->result->sent * schedule->interval_ns;
        uint64_t due_ns = schedule->start_ns + (uint64_t)after_ns;
        uint64_t now = now_ns();
        struct group *group;
        struct conn *conn;

        if (now < due_ns || due_ns >= end_ns ||
            (run->messages && load->result->sent >= run->messages))
            return;
        do {
            schedule->group = (schedule->group + 1) % load->group_count;
            group = &load->groups[schedule->group];
        } while (group->sender == LOAD_NONE);
        conn = &load->conns[group->sender];
        if (!can_publish(conn)) {
            schedule->group =
                (schedule->group + load->group_count - 1) % load->group_count;
            return;
        }
        histogram_record(schedule->lateness, now - due_ns);
        publish(load, conn, 1, due_ns);
    }
}

static bool has_publisher(const struct load *load)
{
    for (uint32_t i = 0; i < load->group_count; i++)
        if (load->groups[i].sender != LOAD_NONE)
            return true;
    return false;
}

static uint64_t thread_cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Looking in vain without waiting is no work: from one such look to the next,
 * when nothing was sent between. By the thread's own clock, since on a shared
 * CPU most of the time between two looks may be somebody else's. That clock
 * costs a system call, which only who has nothing to do makes, so the first
 * vain look after some work counts as work. */
static void note_vain(struct load *load)
{
    uint64_t now = thread_cpu_ns();

    if (load->vain_since_ns && load->vain_sends == load->result->sends)
        load->vain_ns += now - load->vain_since_ns;
    load->vain_since_ns = now;
    load->vain_sends = load->result->sends;
}

/* One turn of the loop: whatever epoll has within the time. */
static void take_turn(struct load *load, int timeout_ms)
{
    int n = epoll_wait(load->epoll, load->events, LOAD_EVENTS, timeout_ms);

    load->result->wakeups++;
    if (n == 0 && timeout_ms == 0)
        note_vain(load);
    else
        load->vain_since_ns = 0;
    for (int i = 0; i < n; i++)
        conn_event(load, load->events[i].data.ptr, load->events[i].events);
}

void load_go(struct load *load, const struct load_run *run,
             struct load_result *result, struct histogram *latency,
             struct histogram *lateness)
{
    bool is_open = run->rate != 0 && has_publisher(load);
    bool is_closed = run->rate == 0 && run->depth != 0 && has_publisher(load);
    int wait_ms = is_open || (is_closed && run->spins) ? 0 : 10;
    uint64_t cpu_ns = thread_cpu_ns();
    uint64_t start_ns = now_ns();
    uint64_t end_ns = start_ns + run->duration_ns;
    struct schedule schedule = {.start_ns = start_ns, .lateness = lateness};

    *result = (struct load_result){0};
    load->result = result;
    load->latency = latency;
    load->vain_ns = 0;
    load->vain_since_ns = 0;
    if (is_open)
        schedule.interval_ns = 1e9 / (double)run->rate;
    if (is_closed)
        for (uint32_t i = 0; i < load->group_count; i++)
            mark_dirty(load, i);
    while (now_ns() < end_ns &&
           (!run->messages || result->sent < run->messages)) {
        if (is_closed)
            refill_dirty(load, run);
        else
            forget_dirty(load);
        if (is_open)
            publish_due(load, run, &schedule, end_ns);
        take_turn(load, wait_ms);
    }
    end_ns = now_ns() + run->drain_ns;
    while (load->owed && now_ns() < end_ns)
        take_turn(load, wait_ms ? 1 : 0);
    forget_dirty(load);
    result->lost = load->lost;
    result->wall_ns = now_ns() - start_ns;
    result->cpu_ns = thread_cpu_ns() - cpu_ns - load->vain_ns;
    /* What did not come in time is not waited for by the next run. */
    for (uint32_t i = 0; i < load->group_count; i++)
        load->groups[i].owed = 0;
    load->owed = 0;
    load->result = NULL;
}
