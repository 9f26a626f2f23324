/*
 * storm_plain.c - the clients of the storm that speak WebSocket without frames
 * of ours: they hear their own echo, whole messages in order.
 *
 * They send as fast as they are read, text and bytes, in fragments, small and
 * nearly as large as may be; all in one thread. That fills the event queue.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "storm_web.h"

enum { ECHOES = 8, SAID = 250, SAID_MAX = 60000, WIRE_BYTES = 4 * SAID_MAX };

struct echo {
    int fd;
    uint32_t number; /* of its own, from 0 */
    bool is_gone;
    struct web web;
    uint32_t said;  /* whole messages sent */
    size_t said_at; /* of the next one */
    uint32_t heard;
    size_t heard_at;
    size_t wire_len;
    uint8_t wire[WIRE_BYTES];
};

/* The plan: what `number` says as its message `said`. */

static size_t size_of(uint32_t number, uint32_t said)
{
    return said % 5 == number % 5 ? 20000 + said * 997 % (SAID_MAX - 20000)
                                  : said * 31 % 300;
}

/* A text is in characters of three bytes, and ends with some of one. */
static uint8_t byte_of(uint32_t number, uint32_t said, size_t at)
{
    static const uint8_t euro[] = {0xe2, 0x82, 0xac};
    size_t size = size_of(number, said);

    if (said % 2)
        return (uint8_t)(number * 7 + said + at);
    return at < size - size % 3 ? euro[at % 3] : (uint8_t)('a' + at % 3);
}

/* The next piece in its frame, or the close at the end. */
static void speak(struct echo *echo)
{
    uint8_t piece[4096];
    uint32_t said = echo->said;
    size_t rest = size_of(echo->number, said) - echo->said_at;
    size_t len = echo->web.random % (said % 3 ? sizeof piece : 20);
    bool is_last = len >= rest;

    if (is_last)
        len = rest;
    for (size_t i = 0; i < len; i++)
        piece[i] = byte_of(echo->number, said, echo->said_at + i);
    uint8_t *to = echo->wire + echo->wire_len;
    echo->wire_len +=
        web_wrap(&echo->web, to, said % 2 ? IM_WS_BINARY : IM_WS_TEXT, piece,
                 len, is_last ? WEB_LAST : WEB_MORE);
    echo->said_at = is_last ? 0 : echo->said_at + len;
    echo->said += is_last;
    if (echo->said == SAID)
        echo->wire_len +=
            web_frame(echo->wire + echo->wire_len, 0x80 | IM_WS_CLOSE,
                      "\x0b\xb8so long", 9, echo->web.random);
}

static void give_bytes(struct echo *echo)
{
    while (echo->said < SAID && echo->wire_len < WIRE_BYTES / 4)
        speak(echo);
    ssize_t sent = send(echo->fd, echo->wire, echo->wire_len, MSG_NOSIGNAL);
    CHECK(sent > 0 || errno == EAGAIN || errno == EINTR);
    if (sent > 0) {
        echo->wire_len -= (size_t)sent;
        memmove(echo->wire, echo->wire + sent, echo->wire_len);
    }
}

static void hear(struct echo *echo, const uint8_t *at, size_t len)
{
    for (; len; at++, len--) {
        while (size_of(echo->number, echo->heard) == echo->heard_at) {
            echo->heard++;
            echo->heard_at = 0;
        }
        CHECK(echo->heard < echo->said + (echo->said_at > 0));
        CHECK(*at == byte_of(echo->number, echo->heard, echo->heard_at));
        echo->heard_at++;
    }
}

static void take_bytes(struct echo *echo)
{
    static uint8_t in[1 << 16];
    ssize_t got = recv(echo->fd, in, sizeof in, 0);

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        CHECK(got == 0 && echo->web.code == 3000);
        CHECK(echo->web.messages == SAID);
        CHECK(echo->web.pongs == echo->web.pings);
        close(echo->fd);
        echo->is_gone = true;
        return;
    }
    size_t greeting = web_greet(&echo->web, in, (size_t)got);
    hear(echo, in + greeting,
         web_unwrap(&echo->web, in + greeting, (size_t)got - greeting));
}

static void come(const struct storm *storm, struct echo *echo, uint32_t number)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons(storm->port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    echo->number = number;
    echo->web = (struct web){.random = storm->seed + number, .ping_odds = 10};
    echo->wire_len = sizeof WEB_REQUEST("/echo") - 1;
    memcpy(echo->wire, WEB_REQUEST("/echo"), echo->wire_len);
    echo->fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(echo->fd, (struct sockaddr *)&to, sizeof to) == 0);
    fcntl(echo->fd, F_SETFL, O_NONBLOCK);
}

void *storm_plain(void *argument)
{
    struct storm *storm = argument;
    struct echo *echoes = calloc(ECHOES, sizeof *echoes);
    uint32_t gone = 0;

    CHECK(echoes);
    for (uint32_t i = 0; i < ECHOES; i++)
        come(storm, &echoes[i], i);
    while (gone < ECHOES) {
        struct pollfd fds[ECHOES];
        for (uint32_t i = 0; i < ECHOES; i++) {
            bool gives = echoes[i].wire_len || echoes[i].said < SAID;
            fds[i].fd = echoes[i].is_gone ? -1 : echoes[i].fd;
            fds[i].events = (short)(POLLIN | (gives ? POLLOUT : 0));
            fds[i].revents = 0;
        }
        CHECK(poll(fds, ECHOES, 20) >= 0);
        for (uint32_t i = 0; i < ECHOES; i++) {
            if (fds[i].revents & POLLOUT)
                give_bytes(&echoes[i]);
            if (fds[i].revents & (POLLIN | POLLHUP | POLLERR)) {
                take_bytes(&echoes[i]);
                gone += echoes[i].is_gone;
            }
        }
    }
    free(echoes);
    atomic_fetch_add(&storm->over, 1);
    return NULL;
}
