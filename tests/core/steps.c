/*
 * steps.c - single steps of the core: what only shows when turns are taken in a
 * certain order.
 *
 *     steps NAME
 *
 * The threads of the core are not started; the one thread there is takes their
 * turns by hand, answers the events and plays the clients. So each step happens
 * exactly as it is written down, every time.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "imcore.h"
#include "storm.h"

#define CLIENTS 16

struct stage {
    struct im_core *core;
    struct sockaddr_in address;
    int listener;
    int clients[CLIENTS];
    uint32_t client_count;
    uint32_t closed; /* events */
    uint32_t close_code;
    bool is_listening;
};

static struct im_config default_config(uint32_t threads)
{
    return (struct im_config){.threads = threads,
                              .max_connections = 64,
                              .max_frame_bytes = FRAME_BYTES,
                              .hello_bytes = HELLO_BYTES,
                              .handshake_ms = 60000,
                              .interval_ms = 60000,
                              .timeout_ms = 40, /* a tick of 5 ms */
                              .max_missed = 200,
                              .outbox_soft_bytes = 64 << 10,
                              .outbox_hard_bytes = 256 << 10,
                              .stall_ms = 60000,
                              .subscriptions = 16,
                              .rights = 16,
                              .calls = 4,
                              .pool_bytes = 16 << 20};
}

static void tell(struct stage *stage, uint32_t number, struct im_record record,
                 const struct im_span *parts, size_t count)
{
    CHECK(im_core_command(stage->core, number, record, parts, count) == IM_OK);
}

static struct stage new_stage(struct im_config config)
{
    struct stage stage = {.address = {.sin_family = AF_INET}};
    static const uint16_t codes[] = {IM_CLOSE_UNAUTHORIZED,
                                     IM_CLOSE_BAD_PROTOCOL, IM_CLOSE_SLOW,
                                     IM_CLOSE_OVERLOADED, IM_CLOSE_HEARTBEAT};
    int large = 1 << 20;

    CHECK(im_core_new(&config, &stage.core) == IM_OK);
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        uint8_t frame[16],
            body[] = {(uint8_t)(codes[i] >> 8), (uint8_t)codes[i]};
        size_t len = write_frame(frame, IM_GOAWAY, 0, body, 2);
        CHECK(im_core_goodbye(stage.core, 1, codes[i],
                              (struct im_span){frame, len}) == IM_OK);
    }
    stage.listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    stage.address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t len = sizeof stage.address;
    setsockopt(stage.listener, SOL_SOCKET, SO_SNDBUF, &large, sizeof large);
    setsockopt(stage.listener, SOL_SOCKET, SO_RCVBUF, &large, sizeof large);
    CHECK(bind(stage.listener, (void *)&stage.address, len) == 0);
    CHECK(listen(stage.listener, 64) == 0);
    CHECK(getsockname(stage.listener, (void *)&stage.address, &len) == 0);
    return stage;
}

static void start_listening(struct stage *stage)
{
    tell(stage, 0,
         (struct im_record){.kind = IM_COMMAND_LISTEN,
                            .b = (uint32_t)stage->listener},
         NULL, 0);
    stage->is_listening = true;
}

static void on_event(struct stage *stage, const struct im_record *event)
{
    struct im_span all = {im_record_bytes(event), event->len};
    uint8_t room[16];
    struct im_record record = {.conn = event->conn};
    struct im_span parts[3] = {
        {(const uint8_t *)"a0", 2}, {(const uint8_t *)"*", 1}, {room, 0}};

    switch (event->kind) {
    case IM_EVENT_HELLO:
        record.kind = IM_COMMAND_WELCOME;
        record.a = 2;
        parts[1] =
            (struct im_span){room, write_frame(room, IM_WELCOME, 1, NULL, 0)};
        tell(stage, im_conn_thread(event->conn), record, parts, 2);
        break;
    case IM_EVENT_FRAME: /* SUBSCRIBE: its body is the topic */
        record.kind = IM_COMMAND_SUBSCRIBE;
        record.a = IM_ENDS_PAUSE;
        record.b = event->len | 1 << 16;
        parts[0] = all;
        parts[2].len = write_frame(room, IM_SUBSCRIBED, 1, NULL, 0);
        tell(stage, im_conn_thread(event->conn), record, parts, 3);
        break;
    case IM_EVENT_ASK:
        record.kind = IM_COMMAND_DECIDE;
        record.b = IM_ALLOW;
        tell(stage, im_conn_thread(event->conn), record, &all, 1);
        break;
    case IM_EVENT_CLOSED:
        stage->closed++;
        stage->close_code = event->a;
        break;
    default:
        FAIL("an event of kind %u", event->kind);
    }
}

/* One turn of one thread. */
static void turn(struct stage *stage, uint32_t number)
{
    im_loop_turn(&stage->core->loops[number], 0);
}

static void answer_events(struct stage *stage)
{
    const struct im_record *event;
    uint32_t number;

    while ((event = im_core_event(stage->core, &number))) {
        on_event(stage, event);
        im_core_event_done(stage->core, number, event);
    }
}

static void settle(struct stage *stage)
{
    for (int i = 0; i < 20; i++) {
        for (uint32_t number = 0; number < stage->core->loop_count; number++)
            turn(stage, number);
        answer_events(stage);
    }
}

static int connect_client(struct stage *stage)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), large = 1 << 20;

    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &large, sizeof large);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &large, sizeof large);
    CHECK(connect(fd, (void *)&stage->address, sizeof stage->address) == 0);
    stage->clients[stage->client_count++] = fd;
    return fd;
}

static void send_bytes(int fd, const void *bytes, size_t len)
{
    CHECK(send(fd, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)len);
}

static void send_frame(int fd, uint8_t type, const char *body)
{
    uint8_t frame[256];
    send_bytes(fd, frame, write_frame(frame, type, 1, body, strlen(body)));
}

/* A message of `size` bytes to the topic "room". */
static void publish(int fd, size_t size)
{
    uint8_t body[FRAME_BYTES] = {0}, frame[FRAME_BYTES];

    body[24] = 4;
    body[26] = 2;
    memcpy(body + 28, "rooma0", 6);
    send_bytes(fd, frame,
               write_frame(frame, IM_MESSAGE, 0, body, size - IM_HEAD_LEN));
}

/* Reads so many bytes, and takes turns until they are here. False when the
 * stream has ended. */
static bool receive_bytes(struct stage *stage, int fd, uint8_t *to, size_t len)
{
    for (int patience = 5000; len; patience--) {
        ssize_t got = recv(fd, to, len, MSG_DONTWAIT);
        if (got > 0) {
            to += got;
            len -= (size_t)got;
            continue;
        }
        if (got == 0 || errno != EAGAIN)
            return false;
        CHECK(patience > 0);
        settle(stage);
        usleep(1000);
    }
    return true;
}

/* The next frame's type; 0 when the stream has ended. */
static uint8_t receive(struct stage *stage, int fd, uint8_t *frame)
{
    if (!receive_bytes(stage, fd, frame, IM_HEAD_LEN))
        return 0;
    size_t rest = im_load_u32(frame) + 4 - IM_HEAD_LEN;
    CHECK(rest <= FRAME_BYTES);
    CHECK(receive_bytes(stage, fd, frame + IM_HEAD_LEN, rest));
    return frame[4];
}

static bool has_news(int fd)
{
    struct pollfd one = {.fd = fd, .events = POLLIN};
    return poll(&one, 1, 0) == 1;
}

/* Logged in, and subscribed to the topic "room" if wanted. */
static int log_in(struct stage *stage, bool subscribes)
{
    uint8_t frame[FRAME_BYTES];
    int fd = connect_client(stage);

    send_frame(fd, IM_HELLO, "");
    if (subscribes)
        send_frame(fd, IM_SUBSCRIBE, "room");
    settle(stage);
    CHECK(receive(stage, fd, frame) == IM_WELCOME);
    CHECK(!subscribes || receive(stage, fd, frame) == IM_SUBSCRIBED);
    return fd;
}

static uint64_t stat_of(const struct stage *stage, const char *name)
{
    uint64_t sums[IM_STAT_MAX];

    im_core_stats(stage->core, sums);
    for (size_t i = 0; i < IM_STAT_COUNT; i++)
        if (strcmp(im_stat_names[i], name) == 0)
            return sums[i];
    FAIL("no counter is called %s", name);
}

static void reset(int fd)
{
    struct linger now = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

static int open_descriptors(void)
{
    DIR *all = opendir("/proc/self/fd");
    int count = 0;

    CHECK(all);
    while (readdir(all))
        count++;
    closedir(all);
    return count;
}

static void end(struct stage *stage)
{
    im_core_free(stage->core);
    for (uint32_t i = 0; i < stage->client_count; i++)
        close(stage->clients[i]);
}

/* Another thread has relayed more than an outbox holds before this one took
 * its turn; the reader's socket takes it all. */
static void a_burst_of_relays_makes_no_reader_slow(void)
{
    struct stage stage = new_stage(default_config(2));
    uint8_t frame[FRAME_BYTES];

    start_listening(&stage);
    int author = log_in(&stage, false), reader = log_in(&stage, true);
    publish(author, 100);
    settle(&stage);
    CHECK(receive(&stage, reader, frame) == IM_MESSAGE);
    CHECK(stat_of(&stage, "relays") == 1); /* they are on two threads */
    for (int i = 0; i < 40; i++) {
        publish(author, 10000);
        turn(&stage, 0);
    }
    while (stat_of(&stage, "relays") < 41)
        turn(&stage, 0);
    for (int i = 0; i < 40; i++) {
        CHECK(receive(&stage, reader, frame) == IM_MESSAGE);
    }
    CHECK(stage.closed == 0);
    end(&stage);
}

/* All wait in the backlog when the first thread begins to accept. */
static void a_crowd_at_the_door_is_shared_out(void)
{
    struct im_config config = default_config(2);
    config.max_connections = 8;
    struct stage stage = new_stage(config);

    for (int i = 0; i < 8; i++)
        send_frame(connect_client(&stage), IM_HELLO, "");
    start_listening(&stage);
    settle(&stage);
    CHECK(stat_of(&stage, "accept_refused") == 0);
    CHECK(stat_of(&stage, "connections") == 8);
    end(&stage);
}

static void one_too_many_is_told_so(void)
{
    struct im_config config = default_config(0);
    config.max_connections = 1;
    struct stage stage = new_stage(config);
    uint8_t frame[FRAME_BYTES];

    start_listening(&stage);
    log_in(&stage, false);
    int late = connect_client(&stage);
    send_frame(late, IM_HELLO, ""); /* unread, it must not reset the stream */
    settle(&stage);
    CHECK(receive(&stage, late, frame) == IM_GOAWAY);
    CHECK(im_load_u16(frame + IM_HEAD_LEN) == IM_CLOSE_OVERLOADED);
    CHECK(receive(&stage, late, frame) == 0);
    end(&stage);
}

/* It was owed bytes when it reset the stream; its slot stays as it was. */
static void who_has_gone_is_not_counted_as_slow(void)
{
    struct im_config config = default_config(0);
    config.stall_ms = 50;
    struct stage stage = new_stage(config);

    int small = 4096;
    setsockopt(stage.listener, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    start_listening(&stage);
    int author = log_in(&stage, false), reader = log_in(&stage, true);
    setsockopt(reader, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    for (int i = 0;
         i < 2000 && !(stage.core->loops[0].conns[1].marks & IM_MARK_ARMED);
         i++) {
        publish(author, 4000);
        settle(&stage);
    }
    CHECK(stage.core->loops[0].conns[1].marks & IM_MARK_ARMED);
    stage.client_count--;
    reset(reader);
    settle(&stage);
    CHECK(stage.closed == 1 && stage.close_code == IM_CLOSE_PEER);
    usleep(100 * 1000);
    settle(&stage);
    CHECK(stat_of(&stage, "slow_readers") == 0);
    end(&stage);
}

static void a_length_is_judged_on_its_fourth_byte_in_any_split(void)
{
    for (size_t split = 1; split <= 3; split++) {
        struct stage stage = new_stage(default_config(0));
        uint8_t frame[FRAME_BYTES];

        start_listening(&stage);
        int client = connect_client(&stage);
        send_bytes(client, "\0\0\0\3", split);
        settle(&stage);
        send_bytes(client, "\0\0\0\3" + split, 4 - split);
        settle(&stage);
        CHECK(has_news(client));
        CHECK(receive(&stage, client, frame) == IM_GOAWAY);
        CHECK(im_load_u16(frame + IM_HEAD_LEN) == IM_CLOSE_BAD_PROTOCOL);
        end(&stage);
    }
}

static void a_stopped_core_has_no_connections(void)
{
    struct stage stage = new_stage(default_config(2));
    uint8_t frame[FRAME_BYTES];

    start_listening(&stage);
    int client = log_in(&stage, false);
    im_core_stop(stage.core);
    im_core_stop(stage.core);
    CHECK(has_news(client) && receive(&stage, client, frame) != IM_WELCOME);
    end(&stage);
}

static void a_socket_nobody_took_over_is_closed(void)
{
    int before = open_descriptors();
    struct stage stage = new_stage(default_config(2));

    start_listening(&stage);
    end(&stage);
    CHECK(open_descriptors() == before);
}

/* As Core.poll() does, which ends after so many events. */
static void who_leaves_events_behind_is_woken_again(void)
{
    struct stage stage = new_stage(default_config(2));

    start_listening(&stage);
    CHECK(im_core_listener_sleeps(stage.core));
    for (int i = 0; i < 2; i++) {
        send_frame(connect_client(&stage), IM_HELLO, "");
        turn(&stage, 0);
        turn(&stage, 1);
        turn(&stage, 0);
        turn(&stage, 1);
    }
    CHECK(has_news(stage.core->event_fd));
    CHECK(
        !im_core_listener_sleeps(stage.core)); /* "not yet": and then enough */
    CHECK(has_news(stage.core->event_fd));
    end(&stage);
}

/* As if the process had been stopped for a quarter of an hour: the tick is due,
 * and behind it what the peer has sent meanwhile. */
static void sleep_long(struct stage *stage)
{
    usleep(10 * 1000);
    stage->core->loops[0].heartbeat.seen_ms[0] -= 15 * 60 * 1000;
}

static void a_peer_that_spoke_while_we_slept_lives(void)
{
    struct stage stage = new_stage(default_config(0));
    uint8_t frame[FRAME_BYTES], type;

    start_listening(&stage);
    int client = log_in(&stage, false);
    sleep_long(&stage);
    send_frame(client, IM_PING, "");
    settle(&stage);
    while ((type = receive(&stage, client, frame)) == IM_PING)
        ;
    CHECK(type == IM_PONG);
    CHECK(stage.closed == 0);
    end(&stage);
}

static void nobody_is_given_up_who_was_not_asked(void)
{
    struct stage stage = new_stage(default_config(0));

    start_listening(&stage);
    log_in(&stage, false);
    sleep_long(&stage);
    turn(&stage, 0);
    answer_events(&stage);
    CHECK(stage.closed == 0);
    CHECK(stat_of(&stage, "suspects") == 1);
    end(&stage);
}

static void subscriptions_are_counted(void)
{
    struct stage stage = new_stage(default_config(0));

    start_listening(&stage);
    log_in(&stage, true);
    usleep(10 * 1000);
    settle(&stage);
    CHECK(stat_of(&stage, "subscriptions") == 1);
    reset(stage.clients[--stage.client_count]);
    settle(&stage);
    usleep(10 * 1000);
    settle(&stage);
    CHECK(stat_of(&stage, "subscriptions") == 0);
    end(&stage);
}

static void without_descriptors_the_door_is_shut_politely(void)
{
    struct stage stage = new_stage(default_config(0));
    struct rlimit before, none;
    uint8_t frame[FRAME_BYTES];

    start_listening(&stage);
    settle(&stage);
    int client = connect_client(&stage);
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    none = before;
    none.rlim_cur = (rlim_t)dup(client);
    close((int)none.rlim_cur);
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    settle(&stage);
    CHECK(receive(&stage, client, frame) == 0);
    CHECK(stat_of(&stage, "accept_refused") == 1);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    usleep(10 * 1000);
    log_in(&stage, false);
    end(&stage);
}

static void a_blocking_listener_blocks_nothing(void)
{
    struct stage stage = new_stage(default_config(0));
    int off = 0;

    CHECK(ioctl(stage.listener, FIONBIO, &off) == 0);
    start_listening(&stage);
    log_in(&stage, false);
    end(&stage);
}

#define STEP(name) {#name, name}
static const struct {
    const char *name;
    void (*run)(void);
} STEPS[] = {
    STEP(a_burst_of_relays_makes_no_reader_slow),
    STEP(a_crowd_at_the_door_is_shared_out),
    STEP(one_too_many_is_told_so),
    STEP(who_has_gone_is_not_counted_as_slow),
    STEP(a_length_is_judged_on_its_fourth_byte_in_any_split),
    STEP(a_stopped_core_has_no_connections),
    STEP(a_socket_nobody_took_over_is_closed),
    STEP(who_leaves_events_behind_is_woken_again),
    STEP(a_peer_that_spoke_while_we_slept_lives),
    STEP(nobody_is_given_up_who_was_not_asked),
    STEP(subscriptions_are_counted),
    STEP(without_descriptors_the_door_is_shut_politely),
    STEP(a_blocking_listener_blocks_nothing),
};

int main(int count, char **arguments)
{
    for (size_t i = 0; i < sizeof STEPS / sizeof *STEPS; i++) {
        if (count < 2) {
            puts(STEPS[i].name);
        } else if (strcmp(arguments[1], STEPS[i].name) == 0) {
            alarm(10);
            STEPS[i].run();
            return 0;
        }
    }
    return count < 2 ? 0 : 2;
}
