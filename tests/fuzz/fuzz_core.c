/*
 * fuzz_core.c - a connection with anything on it: HTTP, WebSocket with frames
 * and without, TCP; turns by hand, Python's answers made up.
 *
 * What comes back has to be whole frames, and in the end the core has given
 * everything back.
 */
#define _GNU_SOURCE
#include "fuzz.h"
#include "transport.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

static struct im_core *core;
static uint32_t known, closed;

static void tell(uint64_t conn, uint16_t kind, uint16_t a, uint32_t b,
                 const struct im_span *parts, size_t count)
{
    struct im_record record = {.kind = kind, .a = a, .b = b, .conn = conn};
    CHECK(im_core_command(core, 0, record, parts, count) == IM_OK);
}

static void on_frame(const struct im_record *event, struct im_span body)
{
    uint8_t room[16];
    bool is_call = (event->a & 0xff) == IM_CALL;
    struct im_span parts[] = {body,
                              {(const uint8_t *)"*", 1},
                              {room, write_frame(room, 9, 1, "", 0)}};

    if (is_call || body.len < 1 || body.len > 200)
        tell(event->conn, IM_COMMAND_SEND,
             is_call ? IM_ENDS_CALL : IM_ENDS_PAUSE, 0, &parts[2], 1);
    else if ((event->a & 0xff) == IM_SUBSCRIBE)
        tell(event->conn, IM_COMMAND_SUBSCRIBE, IM_ENDS_PAUSE,
             (uint32_t)body.len | 1 << 16, parts, 3);
    else
        tell(event->conn, IM_COMMAND_UNSUBSCRIBE, IM_ENDS_PAUSE,
             (uint32_t)body.len, &body, 1);
}

/* `transport`: what requests become; HTTP: they are refused. */
static void on_event(const struct im_record *event, uint16_t transport)
{
    struct im_span all = {im_record_bytes(event), event->len};
    struct im_span response = {(const uint8_t *)WEB_RESPONSE,
                               sizeof WEB_RESPONSE - 1};
    uint8_t room[16] = "a0";
    struct im_span parts[] = {{room, 2},
                              {room + 2, write_frame(room + 2, 2, 1, "", 0)}};

    switch (event->kind) {
    case IM_EVENT_HELLO:
        known += transport != IM_TRANSPORT_WEB;
        tell(event->conn, IM_COMMAND_WELCOME, 2, 0, parts, 2);
        break;
    case IM_EVENT_UPGRADE:
        known++;
        if (transport == IM_TRANSPORT_HTTP)
            tell(event->conn, IM_COMMAND_CLOSE, 4004, 0, NULL, 0);
        else
            tell(event->conn, IM_COMMAND_UPGRADE, transport, 0, &response, 1);
        break;
    case IM_EVENT_FRAME:
        on_frame(event, all);
        break;
    case IM_EVENT_ASK:
        tell(event->conn, IM_COMMAND_DECIDE, 403, 1 + all.at[0] % 3, &all, 1);
        break;
    case IM_EVENT_MESSAGE:
        tell(event->conn, IM_COMMAND_PUBLISH, IM_ENDS_CALL, 0, &all, 1);
        break;
    case IM_EVENT_WEB:
        tell(event->conn, IM_COMMAND_WEB, IM_ENDS_CALL, event->a, &all, 1);
        break;
    case IM_EVENT_CLOSED:
        closed++;
        break;
    case IM_EVENT_REFUSED:
    case IM_EVENT_POSITION:
        tell(event->conn, IM_COMMAND_SEND, IM_ENDS_PAUSE, 0, &parts[1], 1);
        break;
    default:
        FAIL("an event of kind %u", event->kind);
    }
}

static void turn(uint16_t transport)
{
    const struct im_record *event;
    uint32_t number;

    im_loop_turn(core->loops, 0);
    while ((event = im_core_event(core, &number))) {
        on_event(event, transport);
        im_core_event_done(core, number, event);
    }
}

static void start(void)
{
    const struct im_config config = {.max_connections = 4,
                                     .max_frame_bytes = 512,
                                     .hello_bytes = 256,
                                     .handshake_ms = 60000,
                                     .interval_ms = 60000,
                                     .timeout_ms = 60000,
                                     .max_missed = 2,
                                     .outbox_soft_bytes = 2048,
                                     .outbox_hard_bytes = 4096,
                                     .stall_ms = 60000,
                                     .subscriptions = 4,
                                     .rights = 4,
                                     .calls = 2,
                                     .max_message_bytes = 512,
                                     .pool_bytes = 4 << 20};
    uint8_t frame[16];
    size_t len = write_frame(frame, IM_GOAWAY, 0, "xx", 2);

    CHECK(im_core_new(&config, &core) == IM_OK);
    CHECK(im_core_goodbye(core, 1, IM_CLOSE_BAD_PROTOCOL,
                          (struct im_span){frame, len}) == IM_OK);
}

/* Reads what there is; over WebSocket it has to be frames. */
static void hear(int fd, struct web *web, bool is_web)
{
    uint8_t heard[8192];
    ssize_t got;

    while ((got = recv(fd, heard, sizeof heard, MSG_DONTWAIT)) > 0) {
        if (!is_web)
            continue;
        size_t greeting = web_greet(web, heard, (size_t)got);
        web_unwrap(web, heard + greeting, (size_t)got - greeting);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char request[] = WEB_REQUEST("/ws");
    struct web web = {.is_careless = true};
    uint32_t random;
    int pair[2];

    if (size < 4 || size > 4096)
        return 0;
    if (!core)
        start();
    memcpy(&random, data, 4);
    bool has_asked = data[0] % 4, reads = data[0] & 16;
    uint16_t transport = data[0] % 4 ? data[0] % 4 : IM_TRANSPORT_HTTP;
    bool is_web = has_asked && transport != IM_TRANSPORT_HTTP;
    known = closed = 0;

    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0);
    tell(0, IM_COMMAND_ADOPT, 0, (uint32_t)pair[1], NULL, 0);
    turn(transport);
    uint8_t *bytes = malloc(sizeof request + 16 + size);
    CHECK(bytes);
    size_t len = 0;
    if (has_asked)
        len = sizeof request - 1;
    memcpy(bytes, request, len);
    if (transport == IM_TRANSPORT_WEB && data[0] & 32) {
        uint8_t hello[IM_HEAD_LEN];
        write_frame(hello, IM_HELLO, 1, NULL, 0);
        len += web_frame(bytes + len, 0x82, hello, sizeof hello, random);
    }
    memcpy(bytes + len, data + 4, size - 4);
    len += size - 4;
    for (size_t done = 0; done < len;) {
        size_t piece = fuzz_piece(&random, len - done);
        ssize_t sent = send(pair[0], bytes + done, piece, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            break; /* it has hung up */
        done += sent > 0 ? (size_t)sent : 0;
        turn(transport);
        if (reads)
            hear(pair[0], &web, is_web);
    }
    for (int i = 0; i < 4; i++) {
        turn(transport);
        hear(pair[0], &web, is_web);
    }
    close(pair[0]);
    free(bytes);
    for (int patience = 50; core->loops->stats.connections; patience--) {
        CHECK(patience);
        turn(transport);
    }
    for (int i = 0; i < 3; i++)
        turn(transport);
    CHECK(closed == known && core->loops->pool.taken == 0);
    return 0;
}
