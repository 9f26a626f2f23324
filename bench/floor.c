/*
 * floor.c - the yardstick: what moving these bytes costs when nothing is done
 * with them.
 *
 * One thread, level-triggered epoll, one recv a wake-up of a connection into
 * one large buffer, one send of all whole frames in it: straight back (echo),
 * or to every other connection (fanout). These are the system calls that any
 * epoll server needs for the same traffic; a length is looked at, because a
 * server that forwards messages has to, and nothing else is. No login, no
 * names, no copies, no heartbeats, no bounds.
 *
 * What begins with anything but a MESSAGE goes straight back in both cases: a
 * client's side of the stream delays its acknowledgements once it has answered
 * something (pingpong mode), and then the server's sends pay for them, a sixth
 * of a send. All clients of real servers have logged in; so have those here.
 *
 * A third case is what a flush costs: MESSAGEs are appended to a file, those of
 * one turn of epoll flushed once, and then answered with a RECEIPT each.
 *
 *   floor echo|fanout      prints the port it listens on, runs until killed
 *   floor durable FILE
 *
 * What a peer does not take is kept for it, and it is not read from until that
 * has gone (echo): the yardstick loses nothing. With the windows of the
 * benchmark this does not happen.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_FD 20000
#define EVENTS 1024
#define INBOX_BYTES (256u * 1024u)
#define MESSAGE 7 /* the type, the fifth byte of a frame */
#define RECEIPT 8
#define RECEIPT_BYTES 32
#define ID_AT 24 /* in a MESSAGE; 8 in a RECEIPT */

/* Bytes that wait: the beginning of a frame, or what a peer did not take. */
struct keep {
    uint8_t *bytes;
    size_t len;
};

struct peer {
    bool is_open;
    struct keep tail;
    struct keep unsent;
    struct keep receipts; /* of what is not yet flushed */
};

static struct peer peers[MAX_FD];
static int top_fd; /* all peers are below */
static int epoll_fd;
static bool is_fanout;
static int kept_fd = -1; /* the file of the durable case */
static int unflushed[EVENTS];
static int unflushed_count;
static uint8_t inbox[INBOX_BYTES];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void keep_more(struct keep *keep, const uint8_t *bytes, size_t len)
{
    keep->bytes = realloc(keep->bytes, keep->len + len);
    if (!keep->bytes)
        die("realloc");
    memcpy(keep->bytes + keep->len, bytes, len);
    keep->len += len;
}

static void drop_keep(struct keep *keep)
{
    free(keep->bytes);
    *keep = (struct keep){0};
}

static void watch(int fd, uint32_t events, int operation)
{
    struct epoll_event event = {.events = events, .data.fd = fd};

    if (epoll_ctl(epoll_fd, operation, fd, &event) != 0)
        die("epoll_ctl");
}

static void end_peer(int fd)
{
    drop_keep(&peers[fd].tail);
    drop_keep(&peers[fd].unsent);
    drop_keep(&peers[fd].receipts);
    peers[fd].is_open = false;
    close(fd);
}

/* A peer that is broken is ended when epoll reports it. */
static void give(int fd, const uint8_t *bytes, size_t len)
{
    struct peer *peer = &peers[fd];
    ssize_t n = 0;

    if (peer->unsent.len == 0)
        n = send(fd, bytes, len, MSG_NOSIGNAL);
    if (n == (ssize_t)len || (n < 0 && errno != EAGAIN))
        return;
    if (peer->unsent.len == 0)
        watch(fd, is_fanout ? EPOLLIN | EPOLLOUT : EPOLLOUT, EPOLL_CTL_MOD);
    n = n > 0 ? n : 0;
    keep_more(&peer->unsent, bytes + n, len - (size_t)n);
}

static void give_rest(int fd)
{
    struct keep rest = peers[fd].unsent;

    peers[fd].unsent = (struct keep){0};
    watch(fd, EPOLLIN, EPOLL_CTL_MOD);
    give(fd, rest.bytes, rest.len);
    free(rest.bytes);
}

/* How many bytes of these are whole frames. */
static size_t whole_frames(const uint8_t *bytes, size_t len)
{
    size_t at = 0;

    while (len - at >= 4) {
        uint32_t length;

        memcpy(&length, bytes + at, 4);
        length = __builtin_bswap32(length);
        if (length > len - at - 4)
            break;
        at += 4 + length;
    }
    return at;
}

/* Appends whole MESSAGEs, and makes their receipts ready. */
static void append(int fd, const uint8_t *bytes, size_t len)
{
    static uint8_t receipts[INBOX_BYTES];
    size_t made = 0;

    if (write(kept_fd, bytes, len) != (ssize_t)len)
        die("write");
    for (size_t at = 0; at < len; made += RECEIPT_BYTES) {
        uint8_t *receipt = receipts + made; /* shorter than any MESSAGE */
        uint32_t length;

        memset(receipt, 0, RECEIPT_BYTES);
        receipt[3] = RECEIPT_BYTES - 4;
        receipt[4] = RECEIPT;
        memcpy(receipt + 8, bytes + at + ID_AT, 8);
        memcpy(&length, bytes + at, 4);
        at += 4 + __builtin_bswap32(length);
    }
    unflushed[unflushed_count++] = fd;
    keep_more(&peers[fd].receipts, receipts, made);
}

/* At the end of a turn, in which each connection is read from once. */
static void flush_and_answer(void)
{
    if (unflushed_count && fdatasync(kept_fd) != 0)
        die("fdatasync");
    for (int i = 0; i < unflushed_count; i++) {
        struct keep *receipts = &peers[unflushed[i]].receipts;

        give(unflushed[i], receipts->bytes, receipts->len);
        drop_keep(receipts);
    }
    unflushed_count = 0;
}

static void take(int fd)
{
    struct peer *peer = &peers[fd];
    size_t have = peer->tail.len;
    size_t whole;
    ssize_t n;

    if (have) {
        memcpy(inbox, peer->tail.bytes, have);
        drop_keep(&peer->tail);
    }
    n = recv(fd, inbox + have, INBOX_BYTES - have, 0);
    if (n <= 0) {
        end_peer(fd);
        return;
    }
    have += (size_t)n;
    whole = whole_frames(inbox, have);
    if (whole == 0 && have == INBOX_BYTES) {
        end_peer(fd); /* a frame larger than the buffer */
        return;
    }
    if (whole < have)
        keep_more(&peer->tail, inbox + whole, have - whole);
    if (whole == 0)
        return;
    if (inbox[4] == MESSAGE && kept_fd >= 0) {
        append(fd, inbox, whole);
        return;
    }
    if (!is_fanout || inbox[4] != MESSAGE) {
        give(fd, inbox, whole);
        return;
    }
    for (int other = 0; other < top_fd; other++)
        if (peers[other].is_open && other != fd)
            give(other, inbox, whole);
}

static void take_connections(int listener)
{
    int on = 1;
    int fd;

    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >=
           0) {
        if (fd >= MAX_FD) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        peers[fd] = (struct peer){.is_open = true};
        if (fd >= top_fd)
            top_fd = fd + 1;
        watch(fd, EPOLLIN, EPOLL_CTL_ADD);
    }
}

static int listen_on_loopback(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&address, len) != 0 ||
        listen(fd, SOMAXCONN) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &len) != 0)
        die("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv)
{
    static struct epoll_event events[EVENTS];
    int listener;

    if (argc == 3 && !strcmp(argv[1], "durable")) {
        kept_fd =
            open(argv[2], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (kept_fd < 0)
            die(argv[2]);
    } else if (argc != 2 ||
               (strcmp(argv[1], "echo") && strcmp(argv[1], "fanout"))) {
        fputs("usage: floor echo|fanout | floor durable FILE\n", stderr);
        return 2;
    }
    is_fanout = !strcmp(argv[1], "fanout");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        die("epoll_create1");
    listener = listen_on_loopback();
    watch(listener, EPOLLIN, EPOLL_CTL_ADD);
    for (;;) {
        int n = epoll_wait(epoll_fd, events, EVENTS, -1);

        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;

            if (fd == listener)
                take_connections(listener);
            else if (events[i].events & EPOLLOUT && peers[fd].unsent.len)
                give_rest(fd);
            else if (peers[fd].is_open)
                take(fd);
        }
        flush_and_answer();
    }
}
