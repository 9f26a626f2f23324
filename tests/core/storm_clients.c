/*
 * storm_clients.c - the clients of the storm, all in one thread.
 *
 * Readers and writers behave and must receive all they asked for, each message
 * once, whole, and in the order of its author. Quitters publish and vanish in
 * the middle of a frame, sleepers stop reading, vandals send what is no frame.
 * Half of each kind come over WebSocket, and nothing else is different.
 *
 * Writers stay within a window: what a peer that reads is owed is always less
 * than its outbox may hold, so nobody has to be called slow who is not.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "storm_messages.h"
#include "storm_vandals.h"
#include "storm_web.h"

#define WINDOW_BYTES (OUTBOX_HARD_BYTES / 3)
#define IN_BYTES (2 * FRAME_BYTES)
#define OUT_BYTES (64 << 10)
#define WIRE_BYTES WEB_WRAPPED(OUT_BYTES)
#define PIECE_MAX 20000

enum manners { READER, WRITER, QUITTER, SLEEPER, VANDAL };

struct peer {
    int fd;
    enum manners manners;
    uint32_t author;  /* number among those who publish, or AUTHORS */
    const char *tags; /* of its subscriptions */
    bool is_ready;    /* logged in and subscribed */
    bool is_leaving;  /* has ended its side of the stream */
    bool is_gone;
    bool is_web;
    struct web web;
    uint8_t *in, *out;
    uint8_t *wire; /* over WebSocket: what of `out` has its frames */
    size_t in_len, out_len, wire_len;
    uint32_t subscribed, welcomes, results, refusals, broadcasts, code;
    uint32_t written, calls, denied; /* by itself */
    uint64_t owed[AUTHORS];          /* bytes it must still receive */
    uint32_t last[AUTHORS][TOPICS];  /* numbers received */
};

struct crowd {
    struct storm *storm;
    uint32_t random;
    uint32_t vandals_come;
    struct peer peers[PEERS + VANDALS];
};

static uint32_t roll(struct crowd *crowd, uint32_t sides)
{
    uint32_t x = crowd->random;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    crowd->random = x;
    return x % sides;
}

static bool is_subscribed(const struct peer *peer, uint32_t topic)
{
    return peer->manners == WRITER ? topic == peer->author % ROOMS
                                   : topic != DENIED;
}

static bool must_receive(const struct peer *peer, uint32_t author,
                         uint32_t number)
{
    if (!is_subscribed(peer, topic_of(author, number)))
        return false;
    if (peer->author == author && wants_no_echo(number))
        return false;
    const char *tag = tag_of(number);
    return strcmp(peer->tags, "*") == 0 ||
           (*tag && strstr(peer->tags, tag) != NULL);
}

static bool is_well_behaved(const struct peer *peer)
{
    return peer->manners == READER || peer->manners == WRITER;
}

/* What a peer receives. */

static void on_message(struct crowd *crowd, struct peer *peer,
                       const struct im_frame *frame)
{
    uint8_t planned[MESSAGE_MAX];
    struct im_message message;
    uint32_t author = 0, number;

    CHECK(im_message_peek(frame, &message) == IM_OK);
    CHECK(im_load_u64(frame->at + 16) != 0); /* the server fills in the time */
    if (message.topic.len == strlen(BROADCAST_TOPIC) &&
        memcmp(message.topic.at, BROADCAST_TOPIC, message.topic.len) == 0) {
        peer->broadcasts++;
        return;
    }
    CHECK(message.sender.len == 2 && message.sender.at[0] == 'a');
    author = message.sender.at[1] - (uint32_t)'0';
    number = (uint32_t)message.id;
    CHECK(author < AUTHORS && number >= 1 && number <= MESSAGES);

    size_t size = write_message(planned, author, number);
    memcpy(planned + 16, frame->at + 16, 8);
    CHECK(size == frame->size && memcmp(planned, frame->at, size) == 0);

    uint32_t topic = topic_of(author, number);
    uint32_t next = peer->last[author][topic] + 1;
    while (next < MESSAGES && (topic_of(author, next) != topic ||
                               !must_receive(peer, author, next)))
        next++;
    if (number != next)
        FAIL("peer %d: message %u of author %u instead of %u",
             (int)(peer - crowd->peers), number, author, next);
    peer->last[author][topic] = number;
    /* What a quitter left behind may arrive or not. */
    if (peer->owed[author] >= size)
        peer->owed[author] -= size;
}

static void on_frame(struct crowd *crowd, struct peer *peer,
                     const struct im_frame *frame)
{
    switch (frame->type) {
    case IM_WELCOME:
        CHECK(peer->welcomes++ == 0);
        break;
    case IM_SUBSCRIBED:
        CHECK(peer->welcomes == 1);
        peer->subscribed++;
        break;
    case IM_PONG: /* asked for behind all subscriptions */
        for (uint32_t i = 0; i < TOPICS; i++)
            peer->subscribed -= is_subscribed(peer, i);
        CHECK(peer->manners == VANDAL || peer->subscribed == 0);
        peer->is_ready = true;
        break;
    case IM_MESSAGE:
        on_message(crowd, peer, frame);
        break;
    case IM_RESULT:
        peer->results++;
        break;
    case IM_ERROR:
        peer->refusals++;
        break;
    case IM_GOAWAY:
        CHECK(peer->code == 0 && frame->size == IM_HEAD_LEN + 2);
        peer->code = im_load_u16(frame->at + IM_HEAD_LEN);
        break;
    default:
        FAIL("a frame of type %u", frame->type);
    }
}

static void leave(struct peer *peer)
{
    close(peer->fd);
    peer->fd = -1;
    peer->is_gone = true;
    free(peer->in);
    free(peer->out);
    free(peer->wire);
    peer->in = peer->out = peer->wire = NULL;
    peer->out_len = peer->wire_len = 0;
}

static void on_end(struct crowd *crowd, struct peer *peer)
{
    if (peer->is_web) {
        CHECK(!peer->code || peer->code == peer->web.code);
        peer->code = peer->web.code;
    }
    if (peer->manners == VANDAL) {
        const struct vandalism *done = &VANDALISM[peer - crowd->peers - PEERS];
        if (peer->code != done->code)
            FAIL("vandal %d was closed with %u", (int)(done - VANDALISM),
                 peer->code);
        CHECK(peer->in_len == 0);
    } else if (peer->is_leaving) {
        CHECK(peer->in_len == 0);
        CHECK(peer->code == (peer->is_web ? IM_CLOSE_NORMAL : 0));
        CHECK(peer->web.pongs == peer->web.pings);
    } else if (is_well_behaved(peer)) {
        FAIL("peer %d was closed with %u", (int)(peer - crowd->peers),
             peer->code);
    }
    leave(peer);
}

static size_t unwrap(struct peer *peer, uint8_t *bytes, size_t len)
{
    size_t greeting = web_greet(&peer->web, bytes, len);

    memmove(bytes, bytes + greeting, len - greeting);
    return web_unwrap(&peer->web, bytes, len - greeting);
}

static void take_bytes(struct crowd *crowd, struct peer *peer)
{
    ssize_t got =
        recv(peer->fd, peer->in + peer->in_len, IN_BYTES - peer->in_len, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        on_end(crowd, peer);
        return;
    }
    if (peer->is_web)
        got = (ssize_t)unwrap(peer, peer->in + peer->in_len, (size_t)got);
    peer->in_len += (size_t)got;
    if (peer->in_len && peer->in[0] == 'H') { /* to a vandal that spoke HTTP */
        peer->in_len = 0;
        return;
    }

    struct im_span in = {peer->in, peer->in_len};
    struct im_frame frame;
    enum im_status status;
    while ((status = im_frame_peek(in, FRAME_BYTES, &frame)) == IM_OK) {
        on_frame(crowd, peer, &frame);
        in.at += frame.size;
        in.len -= frame.size;
    }
    CHECK(status == IM_MORE);
    memmove(peer->in, in.at, in.len);
    peer->in_len = in.len;
}

/* What a peer sends. */

static void queue_frame(struct peer *peer, uint8_t type, const void *body,
                        size_t len)
{
    CHECK(peer->out_len + len + IM_HEAD_LEN <= OUT_BYTES);
    peer->out_len += write_frame(peer->out + peer->out_len, type, 1, body, len);
}

static void queue_login(struct peer *peer, const char *user)
{
    queue_frame(peer, IM_HELLO, user, strlen(user));
    for (uint32_t topic = 0; topic < TOPICS; topic++) {
        char body[64];
        if (peer->manners == VANDAL || !is_subscribed(peer, topic))
            continue;
        int len = name_topic(body + 1, topic);
        body[0] = (char)len;
        len += sprintf(body + 1 + len, "%s", peer->tags);
        queue_frame(peer, IM_SUBSCRIBE, body, (size_t)len + 1);
    }
    queue_frame(peer, IM_PING, NULL, 0);
}

/* Of what waits, a piece in its frame. */
static void wrap_piece(struct crowd *crowd, struct peer *peer)
{
    size_t piece = 1 + roll(crowd, roll(crowd, 4) ? PIECE_MAX : 30);

    if (piece > peer->out_len)
        piece = peer->out_len;
    peer->wire_len += web_wrap(&peer->web, peer->wire + peer->wire_len,
                               IM_WS_BINARY, peer->out, piece, WEB_ANYWHERE);
    peer->out_len -= piece;
    memmove(peer->out, peer->out + piece, peer->out_len);
}

static size_t waiting(const struct peer *peer)
{
    return peer->out_len + peer->wire_len;
}

/* Sends a piece of what waits, cut wherever the dice fall. */
static void give_bytes(struct crowd *crowd, struct peer *peer)
{
    size_t piece = 1 + roll(crowd, roll(crowd, 4) ? PIECE_MAX : 30);

    while (peer->is_web && peer->out_len && peer->wire_len < PIECE_MAX)
        wrap_piece(crowd, peer);
    uint8_t *from = peer->is_web ? peer->wire : peer->out;
    size_t *len = peer->is_web ? &peer->wire_len : &peer->out_len;
    if (piece > *len)
        piece = *len;
    ssize_t sent = send(peer->fd, from, piece, MSG_NOSIGNAL);
    if (sent > 0) {
        *len -= (size_t)sent;
        memmove(from, from + sent, *len);
    } else if (errno != EAGAIN && errno != EINTR) {
        peer->out_len = peer->wire_len = 0; /* how it ended is read */
    }
}

static bool window_is_open(const struct crowd *crowd)
{
    for (const struct peer *peer = crowd->peers; peer < crowd->peers + PEERS;
         peer++) {
        uint64_t owed = 0;
        for (uint32_t i = 0; i < AUTHORS; i++)
            owed += peer->owed[i];
        if (peer->manners != SLEEPER && !peer->is_gone && owed > WINDOW_BYTES)
            return false;
    }
    return true;
}

static void vanish(struct crowd *crowd, struct peer *peer)
{
    struct linger now = {.l_onoff = 1};

    for (uint32_t i = 0; i < PEERS; i++)
        crowd->peers[i].owed[peer->author] = 0;
    setsockopt(peer->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    leave(peer);
}

static void write_some(struct crowd *crowd, struct peer *peer)
{
    uint32_t most = peer->manners == QUITTER ? MESSAGES / 2 : MESSAGES;

    if (peer->author == AUTHORS || peer->is_gone)
        return;
    if (peer->manners == QUITTER && peer->written == most) {
        if (waiting(peer) < 40) /* in the middle of its last message */
            vanish(crowd, peer);
        return;
    }
    while (peer->written < most && peer->out_len < 8192 &&
           window_is_open(crowd)) {
        uint32_t number = ++peer->written;
        size_t size =
            write_message(peer->out + peer->out_len, peer->author, number);
        peer->out_len += size;
        peer->denied += topic_of(peer->author, number) == DENIED;
        for (uint32_t i = 0; i < PEERS; i++)
            if (must_receive(&crowd->peers[i], peer->author, number))
                crowd->peers[i].owed[peer->author] += size;
        if (number % CALL_EVERY == 0) {
            queue_frame(peer, IM_CALL, "revoke", 6);
            peer->calls++;
        }
    }
}

/* Who takes part, and until when. */

static void come(struct crowd *crowd, struct peer *peer)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons(crowd->storm->port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int small = peer->manners == SLEEPER ? 4096 : 64 << 10;

    peer->in = malloc(IN_BYTES);
    peer->out = malloc(OUT_BYTES);
    peer->wire = malloc(WIRE_BYTES);
    peer->fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(peer->in && peer->out && peer->wire && peer->fd >= 0);
    setsockopt(peer->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    CHECK(connect(peer->fd, (struct sockaddr *)&to, sizeof to) == 0);
    fcntl(peer->fd, F_SETFL, O_NONBLOCK);
    if (!peer->is_web)
        return;
    /* What follows does not wait for the response. */
    peer->wire_len = sizeof WEB_REQUEST("/ws") - 1;
    memcpy(peer->wire, WEB_REQUEST("/ws"), peer->wire_len);
    peer->web = (struct web){.random = crowd->random, .ping_odds = 4};
}

static void come_all(struct crowd *crowd)
{
    static const char *const tags[] = {"*", "even", "odd||even", "odd"};
    static const uint32_t counts[] = {READERS, WRITERS, QUITTERS, SLEEPERS};
    struct peer *peer = crowd->peers;
    uint32_t authors = 0;

    for (uint32_t manners = READER; manners < VANDAL; manners++)
        for (uint32_t i = 0; i < counts[manners]; i++, peer++) {
            char user[16];
            bool writes = manners == WRITER || manners == QUITTER;
            peer->manners = (enum manners)manners;
            peer->author = writes ? authors++ : AUTHORS;
            peer->tags = manners == READER ? tags[i / 2 % 4] : "*";
            peer->is_web = i % 2;
            come(crowd, peer);
            sprintf(user, writes ? "a%u" : "reader%u",
                    writes ? peer->author : i);
            queue_login(peer, user);
        }
}

/* The next one, once in a while. */
static void come_vandal(struct crowd *crowd)
{
    if (crowd->vandals_come == VANDALS || roll(crowd, 8))
        return;
    const struct vandalism *plan = &VANDALISM[crowd->vandals_come];
    struct peer *peer = &crowd->peers[PEERS + crowd->vandals_come++];

    *peer = (struct peer){.manners = VANDAL,
                          .author = AUTHORS,
                          .tags = "*",
                          .is_web = plan->is_web};
    come(crowd, peer);
    if (plan->logs_in)
        queue_login(peer, "vandal");
    while (peer->is_web && peer->out_len)
        wrap_piece(crowd, peer);
    if (peer->web.is_within)
        peer->wire_len += web_wrap(&peer->web, peer->wire + peer->wire_len,
                                   IM_WS_BINARY, NULL, 0, WEB_LAST);
    uint8_t *to = peer->is_web ? peer->wire : peer->out;
    size_t *len = peer->is_web ? &peer->wire_len : &peer->out_len;
    memcpy(to + *len, plan->bytes, plan->len);
    *len += plan->len;
    crowd->storm->vandals += plan->code != 0;
}

static void take_turn(struct crowd *crowd)
{
    struct pollfd fds[PEERS + VANDALS];

    for (uint32_t i = 0; i < PEERS + VANDALS; i++) {
        struct peer *peer = &crowd->peers[i];
        bool sleeps = peer->manners == SLEEPER && peer->is_ready;
        bool comes = i < PEERS + crowd->vandals_come;
        fds[i].fd = peer->is_gone || sleeps || !comes ? -1 : peer->fd;
        fds[i].events = (short)(POLLIN | (waiting(peer) ? POLLOUT : 0));
        fds[i].revents = 0;
    }
    CHECK(poll(fds, PEERS + VANDALS, 20) >= 0);
    for (uint32_t i = 0; i < PEERS + VANDALS; i++) {
        struct peer *peer = &crowd->peers[i];
        bool hangs_up = peer->manners == VANDAL &&
                        VANDALISM[i - PEERS].hangs_up && fds[i].fd >= 0;
        if (fds[i].revents & POLLOUT)
            give_bytes(crowd, peer);
        if (hangs_up && !waiting(peer))
            shutdown(peer->fd, SHUT_WR);
        if (fds[i].revents & (POLLIN | POLLHUP | POLLERR))
            take_bytes(crowd, peer);
    }
}

static bool all_ready(const struct crowd *crowd)
{
    for (uint32_t i = 0; i < PEERS; i++)
        if (!crowd->peers[i].is_ready)
            return false;
    return true;
}

static bool all_received(const struct crowd *crowd)
{
    for (uint32_t i = 0; i < PEERS + VANDALS; i++) {
        const struct peer *peer = &crowd->peers[i];
        if (peer->manners == SLEEPER)
            continue;
        if (i >= PEERS || peer->manners == QUITTER) {
            if (!peer->is_gone)
                return false;
            continue;
        }
        for (uint32_t author = 0; author < WRITERS; author++)
            if (peer->owed[author])
                return false;
        if ((peer->manners == WRITER && peer->written < MESSAGES) ||
            peer->results < peer->calls || peer->refusals < peer->denied ||
            peer->broadcasts == 0)
            return false;
    }
    return true;
}

/* Within a message if need be, which a close may be. */
static void say_goodbye(struct peer *peer)
{
    CHECK(peer->out_len == 0);
    peer->wire_len += web_frame(peer->wire + peer->wire_len, 0x80 | IM_WS_CLOSE,
                                "\x03\xe8", 2, 7);
}

/* Half of them end their stream and read to its other end: what a quitter left
 * behind may still arrive. */
static void leave_all(struct crowd *crowd)
{
    bool some_stay = true;

    for (uint32_t i = 0; i < PEERS; i++) {
        struct peer *peer = &crowd->peers[i];
        if (peer->is_gone)
            continue;
        peer->is_leaving = is_well_behaved(peer) && i / 2 % 2;
        if (!peer->is_leaving)
            leave(peer);
        else if (peer->is_web)
            say_goodbye(peer);
        else
            shutdown(peer->fd, SHUT_WR);
    }
    while (some_stay) {
        take_turn(crowd);
        some_stay = false;
        for (uint32_t i = 0; i < PEERS; i++)
            some_stay |= !crowd->peers[i].is_gone;
    }
    for (uint32_t i = 0; i < READERS + WRITERS; i++) {
        const struct peer *peer = &crowd->peers[i];
        CHECK(peer->results == peer->calls);
        CHECK(peer->refusals == peer->denied);
        CHECK(peer->broadcasts == 1);
    }
}

void *storm_clients(void *argument)
{
    struct storm *storm = argument;
    struct crowd *crowd = calloc(1, sizeof *crowd);

    CHECK(crowd);
    crowd->storm = storm;
    crowd->random = storm->seed;
    come_all(crowd);
    while (!all_ready(crowd))
        take_turn(crowd);
    while (!all_received(crowd)) {
        for (uint32_t i = 0; i < PEERS; i++)
            write_some(crowd, &crowd->peers[i]);
        come_vandal(crowd);
        take_turn(crowd);
    }
    leave_all(crowd);
    free(crowd);
    atomic_fetch_add(&storm->over, 1);
    return NULL;
}
