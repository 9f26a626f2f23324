/*
 * loop.c - the turn of an I/O thread. The only file that waits.
 */
#define _GNU_SOURCE
#include "loop.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "accept.h"
#include "command.h"
#include "conn.h"
#include "fanout.h"
#include "follow.h"
#include "imcore.h"
#include "intake.h"
#include "journal.h"
#include "transport.h"
#include "wrap.h"

#define EVENTS_A_TURN 512

/* Messages of one other thread taken in a turn. It may refill its queue as fast
 * as we deliver, and our own sockets, timers and commands must not wait. */
#define RELAYS_A_TURN 64

/* One read takes at most this much: large enough that a busy connection needs
 * few reads, small enough that it does not keep the others waiting. */
#define RING_LEN (64u << 10)

/* Some hundred logins or a thousand short records. All of it is touched sooner
 * or later, so it is memory; one that is full only makes the other side wait
 * for the next batch. */
#define QUEUE_LEN (256u << 10)
#define RELAY_LEN (256u << 10)

/* How long a peer may take to hang up after our goodbye. */
#define CLOSING_MS 1000u

/* While the event queue is full, Python is asked that often. */
#define RETRY_MS 1

static void read_clocks(struct im_loop *loop)
{
    struct timespec now;

    /* Coarse for heartbeats: a few milliseconds late are nothing to them. */
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    loop->now_ms = (uint32_t)((uint64_t)now.tv_sec * 1000 +
                              (uint64_t)now.tv_nsec / 1000000);
    clock_gettime(CLOCK_REALTIME, &now);
    loop->time_ms =
        (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static bool add_source(struct im_loop *loop, int fd, uint64_t source)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = source};
    return fd >= 0 && epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

static bool start_timer(struct im_loop *loop)
{
    uint32_t tick_ms = im_heartbeat_tick_ms(&loop->heartbeat);
    struct timespec tick = {.tv_sec = tick_ms / 1000,
                            .tv_nsec = (long)(tick_ms % 1000) * 1000000};
    struct itimerspec every = {.it_interval = tick, .it_value = tick};

    return timerfd_settime(loop->timer_fd, 0, &every, NULL) == 0;
}

static enum im_status init_memory(struct im_loop *loop)
{
    const struct im_config *config = &loop->core->config;
    uint32_t threads = config->threads ? config->threads : 1;
    uint32_t slots = config->max_connections / threads +
                     (loop->number < config->max_connections % threads);

    loop->conn_count = slots;
    loop->conn_vacant = IM_NONE;
    loop->conns = calloc(slots + 1, sizeof *loop->conns);
    loop->users = calloc(slots + 1, sizeof *loop->users);
    loop->webs = calloc(slots + 1, sizeof *loop->webs);
    /* A slot may be put on a list again while it is being walked. */
    loop->dirty.slots = calloc(2u * slots + 1, sizeof *loop->dirty.slots);
    loop->resume.slots = calloc(2u * slots + 1, sizeof *loop->resume.slots);
    loop->relay_count = threads;
    loop->relays = aligned_alloc(IM_CACHE_LINE, threads * sizeof *loop->relays);
    loop->gather.memory = malloc(IM_GATHER_HEAD + IM_GATHER_SCRATCH);
    loop->owed_tokens = calloc(IM_KEEPING_MAX, sizeof *loop->owed_tokens);
    if (!loop->conns || !loop->users || !loop->webs || !loop->dirty.slots ||
        !loop->resume.slots || !loop->relays || !loop->gather.memory ||
        !loop->owed_tokens)
        return IM_FULL;
    loop->gather.scratch = loop->gather.memory + IM_GATHER_HEAD;
    memset(loop->relays, 0, threads * sizeof *loop->relays);

    /* A whole frame must fit into a message, and so must a backlog: what one
     * read brought, or inflates to, behind a frame that was unfinished. */
    uint32_t message_max = config->max_frame_bytes + RING_LEN;
    if (config->deflate)
        message_max += config->max_frame_bytes;
    uint64_t queue_len = QUEUE_LEN;
    if (queue_len < 4ull * config->max_frame_bytes)
        queue_len = 4ull * config->max_frame_bytes;
    if (im_ring_init(&loop->ring, RING_LEN) ||
        im_pool_init(&loop->pool, (uint8_t)loop->number, config->pool_bytes,
                     message_max) ||
        im_topics_init(&loop->topics, loop->core->seed) ||
        im_heartbeat_init(&loop->heartbeat, slots + 1) ||
        im_queue_init(&loop->events, queue_len) ||
        im_queue_init(&loop->commands, queue_len) ||
        im_queue_init(&loop->journal, QUEUE_LEN) ||
        im_queue_init(&loop->commits, QUEUE_LEN))
        return IM_FULL;
    for (uint32_t i = 0; i < threads; i++)
        if (i != loop->number && im_queue_init(&loop->relays[i], RELAY_LEN))
            return IM_FULL;
    if (config->deflate &&
        im_deflate_new(config->max_frame_bytes, &loop->deflate) != IM_OK)
        return IM_FULL;
    im_filters_init(&loop->filters, loop->core->seed);
    im_rights_init(&loop->rights);
    im_cursors_init(&loop->cursors);
    return IM_OK;
}

enum im_status im_loop_init(struct im_loop *loop, struct im_core *core,
                            uint32_t number)
{
    const struct im_config *config = &core->config;

    *loop =
        (struct im_loop){.core = core,
                         .number = number,
                         .listen_fd = -1,
                         .epoll_fd = epoll_create1(EPOLL_CLOEXEC),
                         .wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
                         .spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC),
                         .timer_fd = timerfd_create(
                             CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)};
    atomic_init(&loop->asleep, true);
    if (init_memory(loop) != IM_OK)
        return IM_FULL;

    loop->heartbeat.handshake_ms = config->handshake_ms;
    loop->heartbeat.interval_ms = config->interval_ms;
    loop->heartbeat.timeout_ms = config->timeout_ms;
    loop->heartbeat.max_missed = (uint8_t)config->max_missed;
    loop->heartbeat.closing_ms = CLOSING_MS;
    read_clocks(loop);
    if (loop->epoll_fd < 0 || loop->spare_fd < 0 ||
        !add_source(loop, loop->wake_fd, IM_SOURCE_WAKE) ||
        !add_source(loop, loop->timer_fd, IM_SOURCE_TIMER) ||
        !start_timer(loop))
        return IM_FULL;
    if (config->threads == 0 &&
        !add_source(loop, core->event_fd, IM_SOURCE_EVENTS))
        return IM_FULL;
    return IM_OK;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void read_gauges(struct im_loop *loop)
{
    im_stat_set(&loop->stats.messages, loop->pool.taken);
    im_stat_set(&loop->stats.pool_spare_bytes,
                (uint64_t)loop->pool.spare * loop->pool.page_len);
    im_stat_set(&loop->stats.topics, loop->topics.topic_count);
    im_stat_set(&loop->stats.subscriptions, loop->topics.sub_live);
    im_stat_set(&loop->stats.rights, loop->rights.live);
    im_stat_set(&loop->stats.cursors, loop->cursors.live);
    im_stat_set(&loop->stats.journal_bytes, loop->journal_bytes);
}

/* For the queues of one that ends: sockets in them belong to nobody else. */
static void close_queued(struct im_queue *queue, uint16_t kind, uint16_t other)
{
    const struct im_record *record;

    while (queue->bytes && (record = im_queue_peek(queue))) {
        if (record->kind == kind || record->kind == other)
            close((int)record->b);
        im_queue_consume(queue, record);
    }
}

void im_loop_end(struct im_loop *loop)
{
    for (uint32_t slot = 0; slot < loop->conn_used; slot++)
        im_conn_close(loop, slot, IM_CLOSE_PEER, (struct im_span){0});
    im_loop_unlisten(loop);
    read_gauges(loop);
    close_fd(&loop->spare_fd);
    close_fd(&loop->timer_fd);
    close_fd(&loop->wake_fd);
    close_fd(&loop->epoll_fd);
}

void im_loop_free(struct im_loop *loop)
{
    for (uint32_t i = 0; loop->relays && i < loop->relay_count; i++) {
        close_queued(&loop->relays[i], IM_COMMAND_ADOPT, IM_COMMAND_ADOPT);
        im_queue_free(&loop->relays[i]);
    }
    close_queued(&loop->commands, IM_COMMAND_LISTEN, IM_COMMAND_ADOPT);
    im_queue_free(&loop->events);
    im_queue_free(&loop->commands);
    im_queue_free(&loop->journal);
    im_queue_free(&loop->commits);
    im_heartbeat_free(&loop->heartbeat);
    im_cursors_free(&loop->cursors);
    im_rights_free(&loop->rights);
    im_filters_free(&loop->filters);
    im_topics_free(&loop->topics);
    im_pool_free(&loop->pool);
    im_ring_free(&loop->ring);
    im_deflate_free(loop->deflate);
    free(loop->owed_tokens);
    free(loop->gather.memory);
    free(loop->relays);
    free(loop->resume.slots);
    free(loop->dirty.slots);
    free(loop->webs);
    free(loop->users);
    free(loop->conns);
}

void im_loop_wake(struct im_loop *loop)
{
    uint64_t one = 1;

    if (atomic_exchange(&loop->asleep, false))
        (void)!write(loop->wake_fd, &one, sizeof one);
}

void im_loop_take_relays(struct im_loop *loop, bool may_flush)
{
    for (uint32_t from = 0; from < loop->relay_count; from++) {
        struct im_queue *queue = &loop->relays[from];
        const struct im_record *record;
        if (from == loop->number)
            continue;
        for (uint32_t left = RELAYS_A_TURN;
             left && (record = im_queue_peek(queue)); left--) {
            struct im_record copy = *record;
            im_queue_consume(queue, record);
            if (copy.kind == IM_COMMAND_RELAY)
                im_fanout_relayed(loop, (struct im_msg *)(uintptr_t)copy.conn,
                                  IM_NONE);
            else
                im_accept_adopt(loop, (int)copy.b);
            if (may_flush && loop->unflushed >= IM_UNFLUSHED_MAX)
                im_loop_flush(loop);
        }
    }
}

static bool is_stalled(const struct im_loop *loop, const struct im_conn *conn)
{
    return conn->marks & IM_MARK_ARMED && conn->state < IM_STATE_CLOSING &&
           loop->now_ms - conn->blocked_ms >= loop->core->config.stall_ms;
}

static void on_pulse(struct im_loop *loop, uint32_t slot, enum im_pulse pulse)
{
    static const uint8_t ping[IM_HEAD_LEN] = {0, 0, 0, IM_HEAD_LEN - 4,
                                              IM_PING};
    struct im_conn *conn = &loop->conns[slot];

    switch (pulse) {
    case IM_PULSE_ASK:
    case IM_PULSE_DEAD:
        /* Silence that we asked for by not reading is not its own. */
        if (conn->pause) {
            im_heartbeat_watch(&loop->heartbeat, slot, IM_WATCH_LIVE,
                               loop->now_ms);
        } else if (pulse == IM_PULSE_ASK) {
            im_stat_add(&loop->stats.suspects, 1);
            if (conn->transport == IM_TRANSPORT_PLAIN)
                im_wrap_ping(loop, slot);
            else
                im_conn_send(loop, slot, (struct im_span){ping, sizeof ping});
        } else {
            im_stat_add(&loop->stats.deaths, 1);
            im_conn_close(loop, slot, IM_CLOSE_HEARTBEAT, (struct im_span){0});
        }
        break;
    case IM_PULSE_REVIVED:
        im_stat_add(&loop->stats.revivals, 1);
        break;
    case IM_PULSE_HANDSHAKE_OVER:
        im_conn_close(loop, slot, IM_CLOSE_HANDSHAKE, (struct im_span){0});
        break;
    case IM_PULSE_CLOSING_OVER:
        im_conn_end(loop, slot);
        break;
    default:
        break;
    }
}

static void on_tick(struct im_loop *loop)
{
    uint64_t expirations;
    uint32_t at = 0, slot;
    enum im_pulse pulse;

    (void)!read(loop->timer_fd, &expirations, sizeof expirations);
    while ((slot = im_heartbeat_sweep(&loop->heartbeat, &at, loop->now_ms,
                                      &pulse)) != IM_NONE)
        on_pulse(loop, slot, pulse);

    /* The few that the kernel refuses bytes for are found in the same pace. */
    for (slot = 0; slot < loop->conn_used; slot++)
        if (IM_UNLIKELY(is_stalled(loop, &loop->conns[slot])))
            im_conn_doom(loop, slot, IM_CLOSE_SLOW);

    im_follow_report(loop);
    im_accept_again(loop);
    read_gauges(loop);
}

static void on_ready(struct im_loop *loop, uint64_t source, uint32_t events)
{
    uint64_t count;

    switch (source) {
    case IM_SOURCE_WAKE:
        (void)!read(loop->wake_fd, &count, sizeof count);
        return;
    case IM_SOURCE_EVENTS:
        return; /* whoever takes the turn takes the events next */
    case IM_SOURCE_TIMER:
        on_tick(loop);
        return;
    case IM_SOURCE_LISTENER:
        im_accept(loop);
        return;
    default:
        break;
    }

    /* The slot may have changed hands earlier in this turn. */
    uint32_t slot = (uint32_t)source;
    struct im_conn *conn = &loop->conns[slot];
    if (im_conn_id(loop, slot) != source || conn->state == IM_STATE_CLOSED ||
        conn->fd < 0)
        return;
    if (events & EPOLLOUT)
        im_conn_flush(loop, slot);
    if (conn->state == IM_STATE_CLOSED || conn->fd < 0)
        return;
    if (events & EPOLLIN) {
        im_intake_read(loop, slot);
    } else if (events & (EPOLLHUP | EPOLLERR)) {
        im_conn_close(loop, slot, IM_CLOSE_PEER, (struct im_span){0});
    }
}

static void resume_one(struct im_loop *loop, uint32_t slot)
{
    struct im_conn *conn = &loop->conns[slot];

    if (conn->state == IM_STATE_CLOSING) {
        if (im_conn_tell_closed(loop, slot) && conn->fd < 0)
            im_conn_end(loop, slot);
        return;
    }
    if (conn->state == IM_STATE_CLOSED)
        return;
    if ((conn->pause & IM_PAUSE_EVENTS && loop->events_full) ||
        (conn->pause & IM_PAUSE_STORE && loop->store_full)) {
        im_conn_retry(loop, slot); /* those before it met a full queue */
        return;
    }
    conn->pause &= (uint8_t)~(IM_PAUSE_EVENTS | IM_PAUSE_STORE);
    if (!conn->pause)
        im_intake_resume(loop, slot);
}

static void resume_all(struct im_loop *loop)
{
    uint32_t count = loop->resume.count;

    loop->again = false;
    loop->events_full = loop->store_full = false;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t slot = loop->resume.slots[i];
        loop->conns[slot].marks &= (uint8_t)~IM_MARK_QUEUED;
        resume_one(loop, slot);
    }
    loop->resume.count -= count;
    memmove(loop->resume.slots, loop->resume.slots + count,
            loop->resume.count * sizeof *loop->resume.slots);
}

void im_loop_flush(struct im_loop *loop)
{
    /* Closing a doomed connection puts its goodbye behind the others. */
    for (uint32_t i = 0; i < loop->dirty.count; i++) {
        uint32_t slot = loop->dirty.slots[i];
        struct im_conn *conn = &loop->conns[slot];
        conn->marks &= (uint8_t)~IM_MARK_DIRTY;
        if (IM_UNLIKELY(conn->marks & IM_MARK_DOOMED)) {
            if (conn->close_code == IM_CLOSE_SLOW)
                im_stat_add(&loop->stats.slow_readers, 1);
            im_conn_close(loop, slot, conn->close_code, (struct im_span){0});
        } else if (conn->fd >= 0 && conn->state != IM_STATE_CLOSED &&
                   !(conn->marks & IM_MARK_ARMED)) {
            im_conn_flush(loop, slot);
        }
    }
    loop->dirty.count = 0;
    loop->unflushed = 0;
}

static bool has_work(const struct im_loop *loop)
{
    if (!im_queue_is_empty(&loop->commands) ||
        (!loop->commits_wait && !im_queue_is_empty(&loop->commits)))
        return true;
    for (uint32_t i = 0; i < loop->relay_count; i++)
        if (i != loop->number && !im_queue_is_empty(&loop->relays[i]))
            return true;
    return false;
}

/* Announces sleep, then looks once more: whoever queues something afterwards
 * sees the announcement and wakes us. */
static int fall_asleep(struct im_loop *loop, int wait_ms)
{
    atomic_store(&loop->asleep, true);
    if (has_work(loop) || loop->again)
        return 0;
    if ((loop->resume.count || loop->commits_wait) &&
        (wait_ms < 0 || wait_ms > RETRY_MS))
        return RETRY_MS;
    return wait_ms;
}

/* Between turns that the caller takes, the epoll descriptor has to be readable
 * while there is work that no socket announces. */
static void lend_out(struct im_loop *loop)
{
    atomic_store(&loop->asleep, true);
    if (has_work(loop) || loop->resume.count || loop->commits_wait)
        im_loop_wake(loop);
}

void im_loop_turn(struct im_loop *loop, int wait_ms)
{
    struct epoll_event events[EVENTS_A_TURN];

    int count = epoll_wait(loop->epoll_fd, events, EVENTS_A_TURN,
                           fall_asleep(loop, wait_ms));
    atomic_store_explicit(&loop->asleep, false, memory_order_relaxed);
    read_clocks(loop);
    im_stat_add(&loop->stats.turns, 1);

    /* First, so that what was revoked is so for all that is read now. */
    im_command_take(loop);
    for (int i = 0; i < count; i++)
        on_ready(loop, events[i].data.u64, events[i].events);
    im_pool_collect(&loop->pool);
    im_loop_take_relays(loop, true);
    if (!im_queue_is_empty(&loop->commits) || loop->owed_count)
        im_journal_take(loop);
    if (loop->unflushed >= IM_UNFLUSHED_MAX)
        im_loop_flush(loop);
    if (loop->resume.count)
        resume_all(loop);
    im_loop_flush(loop);

    for (uint32_t i = 0; loop->waking; i++, loop->waking >>= 1)
        if (loop->waking & 1)
            im_loop_wake(&loop->core->loops[i]);
    if (loop->told) {
        loop->told = false;
        im_core_wake_listener(loop->core);
    }
    if (loop->journalled) {
        loop->journalled = false;
        im_core_wake_store(loop->core);
    }
    if (loop->core->config.threads == 0)
        lend_out(loop);
}
