/*
 * stage.h - a core whose turns are taken by hand, and its clients.
 *
 * One thread takes the turns of all, answers the events and plays the clients.
 * So everything happens exactly as it is written down, every time.
 */
#pragma once

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "storm_web.h"

#define CLIENTS 16

/* An event that is only in the way. */
#define FILLER_EVENT 999

/* What a thread told Python, of the events that need no answer at once. */
struct told {
    uint16_t kind, a;
    uint32_t b;
    uint64_t conn;
    uint8_t bytes[256]; /* the first of them */
    uint32_t len;
};

struct stage {
    struct im_core *core;
    uint64_t conns[CLIENTS]; /* in the order in which they said HELLO */
    uint32_t conn_count;
    uint32_t verdict;       /* on whoever wants to publish */
    uint16_t transport;     /* what requests become; 0: nobody answers them */
    bool echoes;            /* plain messages */
    struct told told[1024]; /* the oldest first */
    uint32_t told_count;
    struct sockaddr_in address;
    int listener;
    int clients[CLIENTS];
    uint32_t client_count;
    uint32_t closed; /* events */
    uint32_t close_code;
    _Atomic bool is_over; /* for the thread that helps */
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
                              .max_message_bytes = FRAME_BYTES,
                              .pool_bytes = 16 << 20};
}

static void tell(struct stage *stage, uint32_t number, struct im_record record,
                 const struct im_span *parts, size_t count)
{
    CHECK(im_core_command(stage->core, number, record, parts, count) == IM_OK);
}

static struct stage new_stage(struct im_config config)
{
    struct stage stage = {.address = {.sin_family = AF_INET},
                          .verdict = IM_ALLOW};
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
}

static void note(struct stage *stage, const struct im_record *event)
{
    struct told *told = &stage->told[stage->told_count++];

    CHECK(stage->told_count < sizeof stage->told / sizeof *told);
    *told = (struct told){.kind = event->kind,
                          .a = event->a,
                          .b = event->b,
                          .conn = event->conn,
                          .len = event->len};
    memcpy(told->bytes, im_record_bytes(event),
           event->len < sizeof told->bytes ? event->len : sizeof told->bytes);
}

static void accept_upgrade(struct stage *stage, uint64_t conn)
{
    struct im_record record = {
        .kind = IM_COMMAND_UPGRADE, .a = stage->transport, .conn = conn};
    struct im_span response = {(const uint8_t *)WEB_RESPONSE,
                               sizeof WEB_RESPONSE - 1};

    tell(stage, im_conn_thread(conn), record, &response, 1);
}

static void say(struct stage *stage, uint64_t conn, uint8_t opcode,
                uint16_t ends, struct im_span message)
{
    struct im_record record = {
        .kind = IM_COMMAND_WEB, .a = ends, .b = opcode, .conn = conn};

    tell(stage, im_conn_thread(conn), record, &message, 1);
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
        stage->conns[stage->conn_count++] = event->conn;
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
        record.b = stage->verdict;
        tell(stage, im_conn_thread(event->conn), record, &all, 1);
        break;
    case FILLER_EVENT:
        break;
    case IM_EVENT_UPGRADE:
        note(stage, event);
        if (stage->transport)
            accept_upgrade(stage, event->conn);
        break;
    case IM_EVENT_WEB:
        note(stage, event);
        if (stage->echoes)
            say(stage, event->conn, (uint8_t)event->a, IM_ENDS_CALL, all);
        break;
    case IM_EVENT_CLOSED:
        stage->closed++;
        stage->close_code = event->a;
        note(stage, event);
        break;
    case IM_EVENT_UNKEPT:
    case IM_EVENT_KEPT:
    case IM_EVENT_WANT:
    case IM_EVENT_CURSORS:
    case IM_EVENT_POSITION:
    case IM_EVENT_REDELIVERED:
        note(stage, event);
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
    int fd = socket(AF_INET, SOCK_STREAM, 0), large = 1 << 20, on = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
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

/* A message of `size` bytes to a topic of four letters. */
static void write_message_to(uint8_t *to, const char *topic, size_t size)
{
    uint8_t body[FRAME_BYTES] = {0};

    body[24] = 4;
    body[26] = 2;
    memcpy(body + 28, topic, 4);
    memcpy(body + 32, "a0", 2);
    write_frame(to, IM_MESSAGE, 0, body, size - IM_HEAD_LEN);
}

/* Each has other flags than the one before it, so it is a message of its own.
 */
static inline void publish(int fd, size_t size)
{
    static uint8_t flags;
    uint8_t frame[FRAME_BYTES];

    write_message_to(frame, "room", size);
    frame[5] = flags ^= IM_RETRY;
    send_bytes(fd, frame, size);
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

static inline bool has_news(int fd)
{
    struct pollfd one = {.fd = fd, .events = POLLIN};
    return poll(&one, 1, 0) == 1;
}

/* Logged in, and subscribed to a topic if there is one. */
static int log_in_to(struct stage *stage, const char *topic)
{
    uint8_t frame[FRAME_BYTES];
    int fd = connect_client(stage);

    send_frame(fd, IM_HELLO, "");
    if (topic)
        send_frame(fd, IM_SUBSCRIBE, topic);
    settle(stage);
    CHECK(receive(stage, fd, frame) == IM_WELCOME);
    CHECK(!topic || receive(stage, fd, frame) == IM_SUBSCRIBED);
    return fd;
}

static inline int log_in(struct stage *stage, bool subscribes)
{
    return log_in_to(stage, subscribes ? "room" : NULL);
}

/* Ends the stream at once, with everything sent already there. */
static inline void reset(int fd)
{
    struct linger now = {.l_onoff = 1};
    int under_way = 1;

    for (int patience = 1000; under_way && patience; patience--) {
        CHECK(ioctl(fd, TIOCOUTQ, &under_way) == 0);
        usleep(1000);
    }
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

static inline int open_descriptors(void)
{
    DIR *all = opendir("/proc/self/fd");
    int count = 0;

    CHECK(all);
    while (readdir(all))
        count++;
    closedir(all);
    return count;
}

static inline void end(struct stage *stage)
{
    im_core_free(stage->core);
    for (uint32_t i = 0; i < stage->client_count; i++)
        close(stage->clients[i]);
}

/* A true sentence. */
struct step {
    const char *name;
    void (*run)(void);
};

#define STEP(name) {#name, name}

/* The main function of a file of steps: runs the one that is named, or says
 * which there are. */
static int run_steps(const struct step *steps, size_t step_count, int count,
                     char **arguments)
{
    for (size_t i = 0; i < step_count; i++) {
        if (count < 2) {
            puts(steps[i].name);
        } else if (strcmp(arguments[1], steps[i].name) == 0) {
            alarm(10);
            steps[i].run();
            return 0;
        }
    }
    return count < 2 ? 0 : 2;
}
