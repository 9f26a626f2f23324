/*
 * storm.c - the core with its threads and sockets, and no interpreter: what
 * sanitizers can watch.
 *
 *     storm THREADS [SEED]
 *
 * The main thread is the control plane and answers events as Python would,
 * others play the clients (storm_clients.c) and those with messages of their
 * own (storm_plain.c). With THREADS 0 the main thread takes the turns of the
 * core as well. Exits with 0 when everybody
 * received what it should and the core has given everything back.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "storm_web.h"
#include "transport.h"

#define SECONDS 60 /* a storm that takes longer has come to a halt */

#define TICK_MS 50

/* With the message that has gone through the control plane so often, one goes
 * to everybody. */
#define BROADCAST_AT 50

/* Requests for WebSocket, vandals' included. */
#define UPGRADES_MAX 64

struct control {
    struct im_core *core;
    uint64_t upgraded[UPGRADES_MAX];
    uint32_t upgrades;
    uint32_t known; /* by a HELLO or a request */
    uint32_t closed;
    uint32_t slow;
    uint32_t hooked;
};

static void tell(struct control *control, uint32_t number,
                 struct im_record record, const struct im_span *parts,
                 size_t count)
{
    struct im_core *core = control->core;
    enum im_status status;

    while ((status = im_core_command(core, number, record, parts, count)) ==
           IM_FULL) {
        if (core->config.threads == 0)
            im_loop_turn(core->loops, 0);
        else
            sched_yield();
    }
    CHECK(status == IM_OK);
}

static void answer(struct control *control, const struct im_record *event,
                   enum im_command command, uint16_t a, uint32_t b,
                   const struct im_span *parts, size_t count)
{
    struct im_record record = {
        .kind = (uint16_t)command, .a = a, .b = b, .conn = event->conn};
    tell(control, im_conn_thread(event->conn), record, parts, count);
}

static struct im_span frame_in(uint8_t *room, uint8_t type, uint32_t request)
{
    size_t len = write_frame(room, type, (uint16_t)request, "{}", 2);
    return (struct im_span){room, len};
}

static bool has_upgraded(const struct control *control, uint64_t conn)
{
    for (uint32_t i = 0; i < control->upgrades; i++)
        if (control->upgraded[i] == conn)
            return true;
    return false;
}

static void on_upgrade(struct control *control, const struct im_record *event,
                       struct im_span body)
{
    struct im_span head = {body.at + 1 + body.at[0], body.len - 1 - body.at[0]};
    struct im_span response = {(const uint8_t *)WEB_RESPONSE,
                               sizeof WEB_RESPONSE - 1};

    CHECK(control->upgrades < UPGRADES_MAX);
    control->upgraded[control->upgrades++] = event->conn;
    control->known++;
    if (head.len < 9 || (head.at[5] != 'w' && head.at[5] != 'e'))
        answer(control, event, IM_COMMAND_CLOSE, IM_CLOSE_BAD_PROTOCOL, 0, NULL,
               0);
    else
        answer(control, event, IM_COMMAND_UPGRADE,
               head.at[5] == 'w' ? IM_TRANSPORT_WEB : IM_TRANSPORT_PLAIN, 0,
               &response, 1);
}

static void on_hello(struct control *control, const struct im_record *event,
                     struct im_span body)
{
    uint8_t room[16];
    size_t peer_len = 1u + body.at[0];
    struct im_span parts[] = {{body.at + peer_len, body.len - peer_len},
                              frame_in(room, IM_WELCOME, event->b)};

    control->known += !has_upgraded(control, event->conn);
    answer(control, event, IM_COMMAND_WELCOME, (uint16_t)parts[0].len, 0, parts,
           2);
}

static void on_frame(struct control *control, const struct im_record *event,
                     struct im_span body)
{
    uint8_t room[16];

    if ((event->a & 0xff) == IM_CALL) {
        struct im_span result = frame_in(room, IM_RESULT, event->b);
        answer(control, event, IM_COMMAND_REVOKE, 0, 0, NULL, 0);
        answer(control, event, IM_COMMAND_SEND, IM_ENDS_CALL, 0, &result, 1);
        return;
    }
    CHECK((event->a & 0xff) == IM_SUBSCRIBE);
    uint32_t topic_len = body.at[0];
    uint32_t tags_len = (uint32_t)body.len - 1 - topic_len;
    struct im_span parts[] = {{body.at + 1, topic_len},
                              {body.at + 1 + topic_len, tags_len},
                              frame_in(room, IM_SUBSCRIBED, event->b)};
    answer(control, event, IM_COMMAND_SUBSCRIBE, IM_ENDS_PAUSE,
           topic_len | tags_len << 16, parts, 3);
}

static void broadcast(struct control *control)
{
    uint8_t frame[64], fixed[28] = {0};
    const char *topic = BROADCAST_TOPIC;

    fixed[24] = (uint8_t)strlen(topic);
    fixed[26] = 1;
    write_frame(frame, IM_MESSAGE, 0, fixed, sizeof fixed);
    size_t len = IM_MESSAGE_LEN + strlen(topic) + 1;
    memcpy(frame + IM_MESSAGE_LEN, topic, strlen(topic));
    frame[len - 1] = '$';
    frame[3] = (uint8_t)(len - 4);
    for (uint32_t i = 0; i < control->core->loop_count; i++)
        tell(control, i, (struct im_record){.kind = IM_COMMAND_BROADCAST},
             &(struct im_span){frame, len}, 1);
}

static void on_event(struct control *control, const struct im_record *event)
{
    struct im_span bytes = {im_record_bytes(event), event->len};
    uint8_t room[16];
    struct im_span error = frame_in(room, IM_ERROR, event->b);
    uint32_t verdict;

    switch (event->kind) {
    case IM_EVENT_HELLO:
        on_hello(control, event, bytes);
        break;
    case IM_EVENT_FRAME:
        on_frame(control, event, bytes);
        break;
    case IM_EVENT_ASK:
        verdict = bytes.at[0] == 'h'   ? IM_HOOK
                  : bytes.at[0] == 'n' ? IM_DENY
                                       : IM_ALLOW;
        answer(control, event, IM_COMMAND_DECIDE, IM_ERROR_FORBIDDEN, verdict,
               &bytes, 1);
        break;
    case IM_EVENT_MESSAGE:
        answer(control, event, IM_COMMAND_PUBLISH, IM_ENDS_CALL, 0, &bytes, 1);
        if (++control->hooked == BROADCAST_AT)
            broadcast(control);
        break;
    case IM_EVENT_REFUSED:
        CHECK(event->a == IM_ERROR_FORBIDDEN);
        answer(control, event, IM_COMMAND_SEND, IM_ENDS_PAUSE, 0, &error, 1);
        break;
    case IM_EVENT_UPGRADE:
        on_upgrade(control, event, bytes);
        break;
    case IM_EVENT_WEB:
        answer(control, event, IM_COMMAND_WEB, IM_ENDS_CALL, event->a, &bytes,
               1);
        break;
    case IM_EVENT_CLOSED:
        control->closed++;
        control->slow += event->a == IM_CLOSE_SLOW;
        break;
    default:
        FAIL("an event of kind %u", event->kind);
    }
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
        }
    } while (!im_core_listener_sleeps(core));
    if (core->config.threads)
        poll(&news, 1, 20);
}

/* The gauges are read every tick, so some time has to pass first. */
static void await_the_end(struct control *control)
{
    struct im_core *core = control->core;

    for (int turns = 0; turns < 10; turns++) {
        usleep(TICK_MS * 1000 / 2);
        take_turn(control);
    }
    while (stat_of(core, "connections") || stat_of(core, "messages") ||
           stat_of(core, "topics") || stat_of(core, "rights") ||
           stat_of(core, "subscriptions"))
        take_turn(control);
}

static int listening_socket(uint16_t *port)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int small = 128 << 10; /* so that the kernel takes less than all at times */
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    CHECK(fd >= 0);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    CHECK(bind(fd, (struct sockaddr *)&at, sizeof at) == 0);
    CHECK(listen(fd, 64) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&at, &len) == 0);
    *port = ntohs(at.sin_port);
    return fd;
}

static struct im_core *new_core(uint32_t threads)
{
    static const uint16_t codes[] = {
        IM_CLOSE_UNAUTHORIZED, IM_CLOSE_BAD_PROTOCOL, IM_CLOSE_TOO_LARGE,
        IM_CLOSE_HEARTBEAT,    IM_CLOSE_SLOW,         IM_CLOSE_OVERLOADED,
        IM_CLOSE_HANDSHAKE};
    const struct im_config config = {
        .threads = threads,
        .max_connections = 256,
        .max_frame_bytes = FRAME_BYTES,
        .hello_bytes = HELLO_BYTES,
        .handshake_ms = 60000,
        .interval_ms = 60000,
        .timeout_ms = 8 * TICK_MS,
        .max_missed = 200,
        .outbox_soft_bytes = 32 << 10,
        .outbox_hard_bytes = OUTBOX_HARD_BYTES,
        .stall_ms = 60000,
        .subscriptions = 16,
        .rights = 4, /* fewer than there are topics */
        .calls = 3,
        .max_message_bytes = FRAME_BYTES,
        .pool_bytes = 32 << 20,
    };
    struct im_core *core;

    CHECK(im_core_new(&config, &core) == IM_OK);
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        uint8_t frame[16],
            body[2] = {(uint8_t)(codes[i] >> 8), (uint8_t)codes[i]};
        size_t len = write_frame(frame, IM_GOAWAY, 0, body, 2);
        CHECK(im_core_goodbye(core, 1, codes[i],
                              (struct im_span){frame, len}) == IM_OK);
    }
    CHECK(im_core_start(core) == IM_OK);
    return core;
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
    struct storm storm = {.seed = count > 2 ? (uint32_t)atoi(arguments[2]) : 1};
    struct control control = {0};
    pthread_t clients, plain;

    signal(SIGALRM, on_alarm);
    alarm(SECONDS);
    int descriptors = open_descriptors();
    control.core = new_core(threads);
    int fd = listening_socket(&storm.port);
    tell(&control, 0,
         (struct im_record){.kind = IM_COMMAND_LISTEN, .b = (uint32_t)fd}, NULL,
         0);
    CHECK(pthread_create(&clients, NULL, storm_clients, &storm) == 0);
    CHECK(pthread_create(&plain, NULL, storm_plain, &storm) == 0);

    while (atomic_load(&storm.over) < 2 || control.closed < control.known)
        take_turn(&control);
    pthread_join(clients, NULL);
    pthread_join(plain, NULL);
    await_the_end(&control);

    CHECK(control.closed == control.known);
    if (control.slow != SLEEPERS)
        FAIL("%u were called slow", control.slow);
    CHECK(stat_of(control.core, "slow_readers") == SLEEPERS);
    CHECK(stat_of(control.core, "protocol_errors") == storm.vandals);
    CHECK(threads < 2 || stat_of(control.core, "relays") > 0);
    CHECK(stat_of(control.core, "pool_refusals") == 0);
    CHECK(threads > 1 || stat_of(control.core, "event_waits") > 0);
    printf("storm: %u threads, %u upgrades, %lu messages, %lu deliveries, "
           "%lu relays, %lu turns, %lu waits\n",
           threads, control.upgrades, stat_of(control.core, "messages_in"),
           stat_of(control.core, "deliveries"), stat_of(control.core, "relays"),
           stat_of(control.core, "turns"),
           stat_of(control.core, "event_waits"));
    im_core_stop(control.core);
    im_core_free(control.core);
    CHECK(open_descriptors() == descriptors);
    return 0;
}
