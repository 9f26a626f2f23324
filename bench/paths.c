/*
 * paths.c - the hot paths of the core, a fixed number of times each.
 *
 * Instructions and time are counted between two marks only: around the
 * structure that is measured, or around turns of a core in which real sockets
 * are read and written. What clients do is not in it, and to callgrind neither
 * is the kernel.
 */
#define _GNU_SOURCE
#include "paths.h"

#include <time.h>
#include <valgrind/callgrind.h>

#include "stage.h"

#define ROUNDS 200u

#define SEED 0x1234567u

static uint64_t total_ns, begun_ns;

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void begin(void)
{
    begun_ns = now_ns();
    CALLGRIND_TOGGLE_COLLECT;
}

static void finish(void)
{
    CALLGRIND_TOGGLE_COLLECT;
    total_ns += now_ns() - begun_ns;
}

/* Counts the turns of all threads until nothing is left to do. */
static void counted_turns(struct stage *stage)
{
    begin();
    for (int i = 0; i < 2; i++)
        for (uint32_t number = 0; number < stage->core->loop_count; number++)
            turn(stage, number);
    finish();
}

static struct im_config roomy(uint32_t threads)
{
    struct im_config config = default_config(threads);
    config.max_connections = 2000;
    config.timeout_ms = 60000; /* no ticks in between */
    return config;
}

/* Frames of 110 bytes, as a 64-byte body in a room makes them. */
#define FRAME 110u

static void write_run(uint8_t *to, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        write_message_to(to + i * FRAME, "room", FRAME);
}

static void drain(int fd)
{
    uint8_t inbox[64 << 10];
    while (recv(fd, inbox, sizeof inbox, MSG_DONTWAIT) > 0)
        ;
}

/* What the core does for `count` messages of each of `authors`, in one turn, to
 * a room of `readers`, the authors among them. Deliveries. */
static uint64_t in_a_room(uint32_t authors, uint32_t readers, uint32_t count,
                          uint32_t rounds, bool alike)
{
    struct stage stage = new_stage(roomy(0));
    uint8_t run[64 * FRAME];
    int fds[1100];

    write_run(run, count);
    for (uint32_t i = 0; !alike && i < count; i += 2)
        run[i * FRAME + 5] = IM_RETRY;
    start_listening(&stage);
    for (uint32_t i = 0; i < readers; i++) {
        stage.client_count = 0; /* they are ours */
        fds[i] = log_in(&stage, true);
        if (i < authors)
            send_bytes(fds[i], run, FRAME); /* may publish from here on */
        settle(&stage);
    }
    stage.client_count = 0;
    for (uint32_t round = 0; round < rounds; round++) {
        for (uint32_t i = 0; i < readers; i++)
            drain(fds[i]);
        for (uint32_t i = 0; i < authors; i++)
            send_bytes(fds[i], run, count * FRAME);
        counted_turns(&stage);
    }
    for (uint32_t i = 0; i < readers; i++)
        close(fds[i]);
    end(&stage);
    return (uint64_t)rounds * authors * readers * count;
}

static uint64_t ping_pong(void)
{
    return in_a_room(1, 1, 1, ROUNDS, true);
}

static uint64_t pipelined(void)
{
    return in_a_room(1, 1, 64, ROUNDS, true);
}

static uint64_t pipelined_unlike(void)
{
    return in_a_room(1, 1, 64, ROUNDS, false);
}

static uint64_t fan_out_10(void)
{
    return in_a_room(1, 10, 1, ROUNDS, true);
}

static uint64_t fan_out_1000(void)
{
    return in_a_room(1, 1000, 1, 5, true);
}

static uint64_t fan_out_1000_bursts(void)
{
    return in_a_room(1, 1000, 32, 5, true);
}

static uint64_t room_of_10(void)
{
    return in_a_room(10, 10, 1, ROUNDS, true);
}

static uint64_t across_threads(void)
{
    struct stage stage = new_stage(roomy(2));
    uint8_t frame[FRAME_BYTES];

    start_listening(&stage);
    int author = log_in_to(&stage, "back"), reader = log_in_to(&stage, "room");
    for (uint32_t i = 0; i <= ROUNDS; i++) {
        publish(author, FRAME);
        if (i == 0)
            settle(&stage); /* may publish from here on */
        else
            counted_turns(&stage);
        CHECK(receive(&stage, reader, frame) == IM_MESSAGE);
    }
    end(&stage);
    return ROUNDS;
}

/* HELLO up to the event, and WELCOME from the command on. */
static uint64_t logins(void)
{
    struct stage stage = new_stage(roomy(0));
    const struct im_record *event;
    uint32_t number;
    int fds[ROUNDS];

    start_listening(&stage);
    for (uint32_t i = 0; i < ROUNDS; i++) {
        stage.client_count = 0;
        fds[i] = connect_client(&stage);
        turn(&stage, 0);
        send_frame(fds[i], IM_HELLO, "");
        counted_turns(&stage);
        begin();
        event = im_core_event(stage.core, &number);
        finish();
        CHECK(event);
        on_event(&stage, event);
        im_core_event_done(stage.core, number, event);
        counted_turns(&stage);
    }
    stage.client_count = 0;
    for (uint32_t i = 0; i < ROUNDS; i++)
        close(fds[i]);
    end(&stage);
    return ROUNDS;
}

static uint64_t parse(void)
{
    uint8_t run[64 * FRAME];
    struct im_frame frame;
    struct im_message message;
    uint64_t bad = 0;

    write_run(run, 64);
    begin();
    for (uint32_t round = 0; round < ROUNDS; round++)
        for (uint32_t at = 0; at < sizeof run; at += FRAME) {
            struct im_span in = {run + at, sizeof run - at};
            bad += im_frame_peek(in, FRAME_BYTES, &frame) != IM_OK ||
                   im_frame_check_client(&frame) != IM_OK ||
                   im_message_peek(&frame, &message) != IM_OK;
        }
    finish();
    CHECK(bad == 0);
    return ROUNDS * 64;
}

static uint64_t pool(void)
{
    struct im_pool pool;
    struct im_msg *taken[64];

    CHECK(im_pool_init(&pool, 0, 16 << 20, 64 << 10) == IM_OK);
    begin();
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < 64; i++)
            taken[i] = im_pool_take(&pool, FRAME, IM_FOR_MESSAGE);
        for (uint32_t i = 0; i < 64; i++)
            im_msg_drop(&pool, taken[i]);
    }
    finish();
    im_pool_free(&pool);
    return ROUNDS * 64;
}

/* The right of a connection to one of a thousand topics. */
static uint64_t topics_and_rights(void)
{
    struct im_topics topics;
    struct im_rights rights;
    char names[1000][16];
    uint32_t first = IM_NONE;
    uint64_t missing = 0;
    uint16_t count = 0;

    CHECK(im_topics_init(&topics, SEED) == IM_OK);
    im_rights_init(&rights);
    for (uint32_t i = 0; i < 1000; i++) {
        size_t len = (size_t)snprintf(names[i], 16, "room:%06u", i);
        struct im_span name = {(uint8_t *)names[i], len};
        CHECK(im_right_set(&rights, &topics, 7, name, IM_ALLOW, 0, &first,
                           &count) == IM_OK);
    }
    begin();
    for (uint32_t round = 0; round < 10; round++)
        for (uint32_t i = 0; i < 1000; i++) {
            struct im_span name = {(uint8_t *)names[i], 11};
            uint64_t hash = im_topic_hash(&topics, name);
            struct im_topic *topic = im_topic_find(&topics, name, hash);
            missing += !topic || !im_right_find(&rights, 7, topic);
        }
    finish();
    CHECK(missing == 0);
    im_right_drop_all(&rights, &topics, &first, &count);
    im_rights_free(&rights);
    im_topics_free(&topics);
    return 10 * 1000;
}

static uint64_t queue(void)
{
    struct im_queue queue;
    struct im_record record = {.kind = 1};
    struct im_span part = {(const uint8_t *)"room:bench-1", 12};
    uint64_t lost = 0;

    CHECK(im_queue_init(&queue, 256 << 10) == IM_OK);
    begin();
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < 64; i++)
            lost += im_queue_push(&queue, record, &part, 1) != IM_OK;
        for (uint32_t i = 0; i < 64; i++)
            im_queue_consume(&queue, im_queue_peek(&queue));
    }
    finish();
    CHECK(lost == 0);
    im_queue_free(&queue);
    return ROUNDS * 64;
}

static const struct {
    const char *name;
    uint64_t (*run)(void);
} PATHS[] = {
    {"parse a frame", parse},
    {"take and drop a message", pool},
    {"find a topic and a right", topics_and_rights},
    {"pass a record through a queue", queue},
    {"ping-pong, a turn", ping_pong},
    {"pipelined, a message", pipelined},
    {"pipelined, unlike its neighbours", pipelined_unlike},
    {"fan-out to 10, a delivery", fan_out_10},
    {"fan-out to 1,000, a delivery", fan_out_1000},
    {"fan-out to 1,000 in bursts, a delivery", fan_out_1000_bursts},
    {"room of 10, all publish, a delivery", room_of_10},
    {"to another thread, a delivery", across_threads},
    {"log in, core's part", logins},
};

const char *path_name(uint32_t number)
{
    return number < sizeof PATHS / sizeof *PATHS ? PATHS[number].name : NULL;
}

uint64_t path_run(uint32_t number)
{
    return PATHS[number].run();
}

uint64_t path_ns(void)
{
    return total_ns;
}
