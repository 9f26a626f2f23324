/*
 * storm_store.c - the durable path in a storm: threads and sockets, a store
 * that commits when it likes and sometimes refuses, no interpreter.
 *
 *     storm_store THREADS [SEED]
 *
 * The main thread is the control plane: it answers events and feeds those who
 * follow from the timeline. Another one is the store, a third one plays all
 * clients (storm_followers.c). Exits with 0 when everybody received what it
 * should and the core has given everything back.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "journal.h"
#include "storm_store.h"

#define SECONDS 90 /* a storm that takes longer has come to a halt */
#define NUMBERS_MAX 4096
#define PAGE_FRAMES 24
#define TOKENS_MAX 500

struct control {
    struct kept_storm *storm;
    struct im_core *core;
    uint32_t random;
    uint32_t hellos, closed, events;
    uint32_t tokens, answered; /* of the program's own publications */
    uint32_t number;           /* of the latest follower */
    uint32_t wants, redelivered;
    struct {
        uint64_t conn;
        uint32_t topic;
    } followers[NUMBERS_MAX];
};

/* The store. */

static void remember(struct timeline *timeline, const struct im_batch *batch)
{
    pthread_mutex_lock(&timeline->lock);
    for (uint32_t i = 0; i < batch->frame_count; i++) {
        const struct im_batch_frame *frame = &batch->frames[i];
        uint32_t topic =
            im_batch_topic(batch, frame->topic).at[3] - (uint32_t)'0';
        if (frame->fate != IM_KEPT)
            continue;
        uint64_t seq = ++timeline->heads[topic];
        struct kept *kept = &timeline->kept[topic][seq - 1];
        CHECK(seq <= KEPT_MAX);
        kept->size = frame->size;
        kept->frame = malloc(frame->size);
        memcpy(kept->frame, batch->bytes + frame->at, frame->size);
        CHECK(im_load_u64(kept->frame + 8) == seq);
    }
    pthread_mutex_unlock(&timeline->lock);
}

static void commit(struct kept_storm *storm, struct im_batch *batch)
{
    uint64_t heads[KEPT_TOPICS];

    for (uint32_t i = 0; i < batch->topic_count; i++)
        heads[i] = storm->timeline.heads[im_batch_topic(batch, i).at[3] - '0'];
    CHECK(im_batch_seal(batch, heads, 1000, 1000) == IM_OK);
    remember(&storm->timeline, batch);
}

static void *run_store(void *argument)
{
    struct kept_storm *storm = argument;
    struct im_journal journal;
    struct im_batch batch;
    uint32_t random = storm->seed + 1000;
    int fd = eventfd(0, EFD_CLOEXEC);

    CHECK(im_batch_init(&batch, 1, 4096, 60000) == IM_OK);
    CHECK(im_journal_open(&journal, storm->core, fd) == IM_OK);
    while (!atomic_load(&storm->is_closing)) {
        im_batch_clear(&batch);
        if (!im_journal_collect(&journal, &batch, 1 << 17)) {
            struct pollfd news = {.fd = fd, .events = POLLIN};
            uint64_t count;
            if (im_journal_sleeps(&journal) && poll(&news, 1, 20) == 1)
                CHECK(read(fd, &count, sizeof count) == sizeof count);
            continue;
        }
        if (roll_dice(&random, 3) == 0)
            usleep(roll_dice(&random, 2000));
        if (roll_dice(&random, 12) == 0) {
            im_journal_settle(&journal, &batch, IM_ERROR_NOT_DURABLE);
        } else {
            commit(storm, &batch);
            im_journal_settle(&journal, &batch, 0);
        }
    }
    im_journal_close(&journal);
    close(fd);
    im_batch_free(&batch);
    return NULL;
}

/* The control plane. */

static void tell(struct control *control, struct im_record record,
                 const struct im_span *parts, size_t count)
{
    struct im_core *core = control->core;
    enum im_status status;

    while ((status = im_core_command(core, im_conn_thread(record.conn), record,
                                     parts, count)) == IM_FULL) {
        if (core->config.threads == 0)
            im_loop_turn(core->loops, 0);
        else
            sched_yield();
    }
    CHECK(status == IM_OK);
}

static void on_hello(struct control *control, const struct im_record *event,
                     struct im_span body)
{
    uint8_t room[16];
    size_t peer_len = 1u + body.at[0];
    struct im_span parts[] = {
        {body.at + peer_len, body.len - peer_len},
        {(const uint8_t *)"*", 1},
        {room, write_frame(room, IM_WELCOME, 1, NULL, 0)}};
    struct im_record record = {.kind = IM_COMMAND_WELCOME,
                               .a = (uint16_t)parts[0].len,
                               .b = 1,
                               .conn = event->conn};

    control->hellos++;
    tell(control, record, parts, 3);
}

/* SUBSCRIBE: topic, window or 255 for a plain one, u64 after, tags. */
static void on_subscribe(struct control *control, const struct im_record *event,
                         struct im_span body)
{
    uint8_t topic[4], room[16];
    bool follows = body.at[1] != 255;
    struct im_begin begin = {.cursor = im_load_u64(body.at + 2),
                             .number = control->number + 1,
                             .window = body.at[1]};
    struct im_span parts[] = {
        {(const uint8_t *)&begin, sizeof begin},
        {topic, 4},
        {body.at + 10, body.len - 10},
        {room, write_frame(room, IM_SUBSCRIBED, 1, NULL, 0)}};
    struct im_record record = {.kind = follows ? IM_COMMAND_FOLLOW
                                               : IM_COMMAND_SUBSCRIBE,
                               .a = IM_ENDS_PAUSE,
                               .b = 4 | (uint32_t)parts[2].len << 16,
                               .conn = event->conn};

    kept_topic(topic, body.at[0]);
    if (follows) {
        CHECK(++control->number < NUMBERS_MAX);
        control->followers[control->number].conn = event->conn;
        control->followers[control->number].topic = body.at[0];
    }
    tell(control, record, parts + !follows, 4u - !follows);
}

/* Tells a follower what the timeline has from `first` to at most `last`. */
static void tell_page(struct control *control, uint32_t number, uint16_t kind,
                      uint64_t first, uint64_t last)
{
    struct timeline *timeline = &control->storm->timeline;
    uint32_t topic = control->followers[number].topic;
    uint8_t *page = malloc(PAGE_FRAMES * 4096);
    uint64_t ends[2];
    struct im_span parts[] = {{(const uint8_t *)ends, sizeof ends}, {page, 0}};
    bool is_again = kind == IM_COMMAND_REDELIVER;

    pthread_mutex_lock(&timeline->lock);
    if (last > timeline->heads[topic])
        last = timeline->heads[topic];
    if (last >= first + PAGE_FRAMES)
        last = first + PAGE_FRAMES - 1;
    for (uint64_t seq = first; seq <= last; seq++) {
        const struct kept *kept = &timeline->kept[topic][seq - 1];
        uint8_t *to = page + parts[1].len;
        if (is_again && topic == 1 && !kept->frame[33])
            continue; /* as Python does it: only what passes the filter */
        memcpy(to, kept->frame, kept->size);
        to[5] |= is_again ? IM_REDELIVERED : IM_HISTORY;
        parts[1].len += kept->size;
    }
    ends[0] = last;
    ends[1] = timeline->heads[topic];
    pthread_mutex_unlock(&timeline->lock);

    struct im_record record = {.kind = kind,
                               .a = is_again ? 60000 : 0,
                               .b = number,
                               .conn = control->followers[number].conn};
    tell(control, record, parts + is_again, 2u - is_again);
    free(page);
}

static void on_cursors(struct control *control, struct im_span bytes)
{
    struct im_report report;

    for (; bytes.len; bytes.at += sizeof report, bytes.len -= sizeof report) {
        memcpy(&report, bytes.at, sizeof report);
        CHECK(report.acked <= report.sent);
        if (report.acked < report.sent && roll_dice(&control->random, 2))
            tell_page(control, report.number, IM_COMMAND_REDELIVER,
                      report.acked + 1, report.sent);
    }
}

static void on_unkept(struct control *control, const struct im_record *event,
                      struct im_span bytes)
{
    uint8_t room[24];

    CHECK(event->a == IM_ERROR_NOT_DURABLE);
    for (size_t at = 1u + bytes.at[0]; at < bytes.len; at += 8) {
        struct im_span error = {
            room, write_frame(room, IM_ERROR, 0, bytes.at + at, 8)};
        tell(control,
             (struct im_record){.kind = IM_COMMAND_SEND, .conn = event->conn},
             &error, 1);
    }
}

static void on_event(struct control *control, const struct im_record *event)
{
    struct im_span bytes = {im_record_bytes(event), event->len};
    struct im_record answer = {.conn = event->conn};
    uint64_t told[3];

    control->events++;
    switch (event->kind) {
    case IM_EVENT_HELLO:
        on_hello(control, event, bytes);
        break;
    case IM_EVENT_FRAME:
        on_subscribe(control, event, bytes);
        break;
    case IM_EVENT_ASK:
        answer.kind = IM_COMMAND_DECIDE;
        answer.b = IM_KEEP_ASKED;
        tell(control, answer, &bytes, 1);
        break;
    case IM_EVENT_UNKEPT:
        on_unkept(control, event, bytes);
        break;
    case IM_EVENT_KEPT:
        CHECK(event->conn && ++control->answered <= control->tokens);
        break;
    case IM_EVENT_WANT:
        control->wants++;
        memcpy(told, bytes.at, sizeof told);
        CHECK(told[0] <= told[1] && told[2] > 0);
        tell_page(control, event->b, IM_COMMAND_FEED, told[1] + 1,
                  told[1] + told[2]);
        break;
    case IM_EVENT_CURSORS:
        on_cursors(control, bytes);
        break;
    case IM_EVENT_POSITION:
        answer.kind = IM_COMMAND_SEND;
        answer.a = IM_ENDS_PAUSE;
        tell(control, answer, NULL, 0);
        break;
    case IM_EVENT_REDELIVERED:
        control->redelivered += event->a;
        break;
    case IM_EVENT_CLOSED:
        if (event->a != IM_CLOSE_PEER)
            FAIL("closed with %u", event->a);
        control->closed++;
        break;
    default:
        FAIL("an event of kind %u: %u", event->kind, event->a);
    }
}

/* The program publishes, too. */
static void publish(struct control *control)
{
    uint8_t frame[4096];
    uint64_t token = control->tokens + 1;
    struct im_span parts[] = {{(const uint8_t *)&token, sizeof token},
                              {frame, write_kept(frame, 9, (uint32_t)token)}};

    if (atomic_load(&control->storm->is_written) ||
        control->tokens == TOKENS_MAX || control->events / 8 < token)
        return;
    control->tokens++;
    tell(control, (struct im_record){.kind = IM_COMMAND_PUBLISH, .b = 1}, parts,
         2);
}

static void take_turn(struct control *control)
{
    struct im_core *core = control->core;
    struct pollfd news = {.fd = core->event_fd, .events = POLLIN};
    const struct im_record *event;
    uint32_t number;

    if (core->config.threads == 0)
        im_loop_turn(core->loops, 20);
    do {
        while ((event = im_core_event(core, &number))) {
            on_event(control, event);
            im_core_event_done(core, number, event);
            publish(control);
        }
    } while (!im_core_listener_sleeps(core));
    if (atomic_load(&control->storm->is_written) &&
        control->answered == control->tokens)
        atomic_store(&control->storm->is_answered, true);
    if (core->config.threads)
        poll(&news, 1, 20);
}

/* The gauges are read every tick, so some time has to pass first. */
static void await_the_end(struct control *control)
{
    static const char *const gauges[] = {
        "connections", "messages",      "topics",       "rights",
        "cursors",     "subscriptions", "journal_bytes"};
    for (int turns = 0; turns < 10; turns++) {
        usleep(20 * 1000);
        take_turn(control);
    }
    for (size_t i = 0; i < sizeof gauges / sizeof *gauges; i++)
        while (stat_of(control->core, gauges[i]))
            take_turn(control);
}

static int listening_socket(uint16_t *port)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int small = 32 << 10; /* so that the kernel takes less than all at times */
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    CHECK(bind(fd, (struct sockaddr *)&at, sizeof at) == 0);
    CHECK(listen(fd, 64) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&at, &len) == 0);
    *port = ntohs(at.sin_port);
    return fd;
}

static struct im_core *new_core(uint32_t threads)
{
    const struct im_config config = {
        .threads = threads,
        .max_connections = 64,
        .max_frame_bytes = FRAME_BYTES,
        .hello_bytes = HELLO_BYTES,
        .handshake_ms = 60000,
        .interval_ms = 60000,
        .timeout_ms = 160, /* a tick of 20 ms */
        .max_missed = 200,
        .outbox_soft_bytes = 24 << 10,
        .outbox_hard_bytes = 4 << 20,
        .stall_ms = 60000,
        .subscriptions = 16,
        .rights = 2, /* fewer than there are topics */
        .calls = 3,
        .max_message_bytes = FRAME_BYTES,
        .pool_bytes = 16 << 20,
    };
    struct im_core *core;

    CHECK(im_core_new(&config, &core) == IM_OK);
    CHECK(im_core_start(core) == IM_OK);
    return core;
}

static void on_alarm(int number)
{
    static const char text[] = "storm: came to a halt\n";

    (void)number;
    (void)!write(STDERR_FILENO, text, sizeof text - 1);
    _exit(1);
}

int main(int count, char **arguments)
{
    uint32_t threads = count > 1 ? (uint32_t)atoi(arguments[1]) : 2;
    struct kept_storm *storm = calloc(1, sizeof *storm);
    struct control *control = calloc(1, sizeof *control);
    pthread_t clients, store;

    CHECK(storm && control);
    signal(SIGALRM, on_alarm);
    alarm(SECONDS);
    storm->seed = count > 2 ? (uint32_t)atoi(arguments[2]) : 1;
    pthread_mutex_init(&storm->timeline.lock, NULL);
    control->core = storm->core = new_core(threads);
    control->storm = storm;
    control->random = storm->seed + 2000;
    int fd = listening_socket(&storm->port);
    tell(control,
         (struct im_record){.kind = IM_COMMAND_LISTEN, .b = (uint32_t)fd}, NULL,
         0);
    CHECK(pthread_create(&store, NULL, run_store, storm) == 0);
    CHECK(pthread_create(&clients, NULL, kept_clients, storm) == 0);

    while (!atomic_load(&storm->is_over) || control->closed < control->hellos)
        take_turn(control);
    pthread_join(clients, NULL);
    await_the_end(control);
    atomic_store(&storm->is_closing, true);
    pthread_join(store, NULL);

    CHECK(stat_of(control->core, "slow_readers") == 0);
    CHECK(stat_of(control->core, "unkept") > 0);
    CHECK(stat_of(control->core, "fed") > 0);
    printf("storm: %u threads, %lu journalled, %lu receipts, %lu unkept, %u "
           "wants, %lu fed, %lu redelivered, %lu store waits, %u own\n",
           threads, stat_of(control->core, "journalled"),
           stat_of(control->core, "receipts"), stat_of(control->core, "unkept"),
           control->wants, stat_of(control->core, "fed"),
           stat_of(control->core, "redelivered"),
           stat_of(control->core, "store_waits"), control->tokens);
    im_core_free(control->core);
    for (uint32_t topic = 0; topic < KEPT_TOPICS; topic++)
        for (uint64_t i = 0; i < storm->timeline.heads[topic]; i++)
            free(storm->timeline.kept[topic][i].frame);
    free(control);
    free(storm);
    return 0;
}
