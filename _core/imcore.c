/*
 * imcore.c - start, stop, and Python's side of the queues.
 */
#define _GNU_SOURCE
#include "imcore.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#define IM_STAT_NAME(name) #name,
const char *const im_stat_names[] = {IM_COUNTERS(IM_STAT_NAME)
                                         IM_GAUGES(IM_STAT_NAME)};
#undef IM_STAT_NAME

/* Between numbers a smaller one of which could not work at all. What makes
 * sense is judged by config.py, which can explain it. */
static bool can_work(const struct im_config *config)
{
    return config->threads <= IM_THREADS_MAX && config->max_connections > 0 &&
           config->max_connections < 1u << 24 &&
           config->max_frame_bytes >= IM_MESSAGE_LEN &&
           config->max_frame_bytes <= IM_FRAME_MAX &&
           config->hello_bytes >= IM_HEAD_LEN &&
           config->hello_bytes <= config->max_frame_bytes &&
           config->timeout_ms > 0 && config->interval_ms > 0 &&
           config->handshake_ms > 0 && config->max_missed < 255 &&
           config->subscriptions > 0 && config->subscriptions <= UINT16_MAX &&
           config->rights > 0 && config->rights <= UINT16_MAX &&
           config->calls > 0 && config->calls < 256 &&
           (!config->deflate || im_deflate_is_built());
}

static enum im_status init(struct im_core *core)
{
    uint32_t count = core->config.threads ? core->config.threads : 1;

    atomic_init(&core->listener_asleep, true);
    core->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (core->event_fd < 0 ||
        getrandom(&core->seed, sizeof core->seed, 0) != sizeof core->seed)
        return IM_FULL;

    core->loops = aligned_alloc(IM_CACHE_LINE, count * sizeof *core->loops);
    if (!core->loops)
        return IM_FULL;
    memset(core->loops, 0, count * sizeof *core->loops);
    while (core->loop_count < count) {
        struct im_loop *loop = &core->loops[core->loop_count];
        /* Counted first: a loop that failed half-way is freed as well. */
        if (im_loop_init(loop, core, core->loop_count++) != IM_OK)
            return IM_FULL;
    }
    return IM_OK;
}

enum im_status im_core_new(const struct im_config *config,
                           struct im_core **made)
{
    *made = NULL;
    if (!can_work(config))
        return IM_BAD;

    struct im_core *core =
        aligned_alloc(_Alignof(struct im_core), sizeof *core);
    if (!core)
        return IM_FULL;
    *core = (struct im_core){.config = *config, .store_fd = -1};
    if (init(core) != IM_OK) {
        im_core_free(core);
        return IM_FULL;
    }
    *made = core;
    return IM_OK;
}

void im_core_free(struct im_core *core)
{
    im_core_stop(core);
    for (uint32_t i = 0; i < core->loop_count; i++)
        im_loop_free(&core->loops[i]);
    for (uint32_t i = 0; i < core->goodbye_count; i++)
        free(core->goodbyes[i].bytes);
    free(core->loops);
    free(core);
}

enum im_status im_core_goodbye(struct im_core *core, uint8_t codec,
                               uint16_t code, struct im_span frame)
{
    if (core->goodbye_count == IM_GOODBYES_MAX)
        return IM_FULL;
    uint8_t *bytes = malloc(frame.len ? frame.len : 1);
    if (!bytes)
        return IM_FULL;
    memcpy(bytes, frame.at, frame.len);
    core->goodbyes[core->goodbye_count++] =
        (struct im_goodbye){.code = code,
                            .codec = codec,
                            .len = (uint32_t)frame.len,
                            .bytes = bytes};
    return IM_OK;
}

struct im_span im_core_goodbye_for(const struct im_core *core, uint8_t codec,
                                   uint16_t code)
{
    for (uint32_t i = 0; i < core->goodbye_count; i++) {
        const struct im_goodbye *goodbye = &core->goodbyes[i];
        if (goodbye->code == code && goodbye->codec == codec)
            return (struct im_span){goodbye->bytes, goodbye->len};
    }
    return (struct im_span){NULL, 0};
}

static void *run(void *argument)
{
    struct im_loop *loop = argument;
    struct im_core *core = loop->core;

    while (!atomic_load_explicit(&core->stopping, memory_order_acquire))
        im_loop_turn(loop, -1);
    return NULL;
}

enum im_status im_core_start(struct im_core *core)
{
    sigset_t all, before;
    enum im_status status = IM_OK;

    /* Signals are for Python's threads; ours inherit this mask. */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    while (status == IM_OK && core->running < core->config.threads) {
        struct im_loop *loop = &core->loops[core->running];
        if (pthread_create(&core->threads[core->running], NULL, run, loop))
            status = IM_FULL;
        else
            core->running++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (status != IM_OK)
        im_core_stop(core);
    return status;
}

void im_core_stop(struct im_core *core)
{
    uint64_t one = 1;

    atomic_store_explicit(&core->stopping, true, memory_order_release);
    for (uint32_t i = 0; i < core->running; i++)
        (void)!write(core->loops[i].wake_fd, &one, sizeof one);
    for (uint32_t i = 0; i < core->running; i++)
        pthread_join(core->threads[i], NULL);
    core->running = 0;
    for (uint32_t i = 0; i < core->loop_count; i++)
        im_loop_end(&core->loops[i]);
    if (core->event_fd >= 0)
        close(core->event_fd);
    core->event_fd = -1;
    if (core->store_fd >= 0)
        close(core->store_fd);
    core->store_fd = -1;
}

enum im_status im_core_command(struct im_core *core, uint32_t number,
                               struct im_record record,
                               const struct im_span *parts, size_t count)
{
    if (number >= core->loop_count)
        return IM_OK; /* no such connection */

    struct im_loop *loop = &core->loops[number];
    enum im_status status =
        im_queue_push(&loop->commands, record, parts, count);
    im_loop_wake(loop);
    return status;
}

const struct im_record *im_core_event(struct im_core *core, uint32_t *number)
{
    /* Each thread in turn, so that a busy one does not hide the others. */
    for (uint32_t i = 0; i < core->loop_count; i++) {
        *number = (core->event_turn + i) % core->loop_count;
        const struct im_record *record =
            im_queue_peek(&core->loops[*number].events);
        if (record)
            return record;
    }
    return NULL;
}

void im_core_event_done(struct im_core *core, uint32_t number,
                        const struct im_record *record)
{
    im_queue_consume(&core->loops[number].events, record);
    core->event_turn = (number + 1) % core->loop_count;
}

void im_core_wake_listener(struct im_core *core)
{
    uint64_t one = 1;

    if (atomic_exchange(&core->listener_asleep, false))
        (void)!write(core->event_fd, &one, sizeof one);
}

void im_core_wake_store(struct im_core *core)
{
    uint64_t one = 1;

    if (atomic_exchange(&core->store_asleep, false))
        (void)!write(core->store_fd, &one, sizeof one);
}

bool im_core_listener_sleeps(struct im_core *core)
{
    uint64_t count;

    (void)!read(core->event_fd, &count, sizeof count);
    atomic_store(&core->listener_asleep, true);
    for (uint32_t i = 0; i < core->loop_count; i++)
        if (!im_queue_is_empty(&core->loops[i].events)) {
            im_core_wake_listener(core);
            return false;
        }
    return true;
}

void im_core_stats(const struct im_core *core, uint64_t *sums)
{
    memset(sums, 0, IM_STAT_COUNT * sizeof *sums);
    for (uint32_t i = 0; i < core->loop_count; i++) {
        const _Atomic uint64_t *stats =
            (const _Atomic uint64_t *)(const void *)&core->loops[i].stats;
        for (size_t at = 0; at < IM_STAT_COUNT; at++)
            sums[at] += im_stat_get(&stats[at]);
    }
}
