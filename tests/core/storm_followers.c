/*
 * storm_followers.c - the clients of the store's storm, all in one thread.
 *
 * Writers wait for an answer to each message, and repeat some; the last one
 * vanishes. Readers just subscribe. Followers have small windows, acknowledge
 * when they like, refuse some, subscribe again from where they are, and one of
 * them hardly reads. Leavers follow and vanish.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "storm_store.h"

enum {
    FOLLOWERS = 9,
    KEPT_READERS = 3,
    LEAVERS = 3,
    KEPT_PEERS = KEPT_WRITERS + KEPT_READERS + FOLLOWERS + LEAVERS,
    BUFFER_BYTES = 256 << 10,
    UNANSWERED_MAX = 96
};

enum role { WRITES, READS, FOLLOWS, LEAVES };

/* What became of a message. */
enum { UNKNOWN, RECEIPTED, REFUSED };

struct peer {
    int fd;
    enum role role;
    uint32_t index;
    uint32_t topic, window;
    const char *tags;
    uint8_t *in, *out;
    size_t in_len, out_len;
    bool is_gone, is_subscribed;
    uint64_t after; /* of a SUBSCRIBE under way */
    uint64_t last;  /* seq received; redeliveries do not count */
    uint64_t acked; /* the latest ACK, sent or implied */
    uint64_t *seqs; /* all received */
    uint32_t seq_count;
    uint32_t written, unanswered;
    uint64_t places[KEPT_MESSAGES + 1]; /* by id: seq */
    uint8_t fates[KEPT_MESSAGES + 1];
};

struct crowd {
    struct kept_storm *storm;
    uint32_t random;
    struct peer peers[KEPT_PEERS];
};

static void queue_frame(struct peer *peer, uint8_t type, const void *body,
                        size_t len)
{
    CHECK(peer->out_len + len + IM_HEAD_LEN <= BUFFER_BYTES);
    peer->out_len += write_frame(peer->out + peer->out_len, type, 1, body, len);
}

static void queue_subscribe(struct peer *peer)
{
    uint8_t body[16] = {(uint8_t)peer->topic, (uint8_t)peer->window};
    size_t tags_len = strlen(peer->tags);

    peer->after = peer->last;
    im_store_u64(body + 2, peer->after);
    memcpy(body + 10, peer->tags, tags_len);
    queue_frame(peer, IM_SUBSCRIBE, body, 10 + tags_len);
    peer->is_subscribed = false;
}

static void queue_position(struct peer *peer, uint8_t type)
{
    uint8_t body[12];

    im_store_u64(body, peer->last);
    kept_topic(body + 8, peer->topic);
    queue_frame(peer, type, body, sizeof body);
    if (type == IM_ACK)
        peer->acked = peer->last;
}

static void queue_message(struct peer *peer, uint32_t number, uint8_t flags)
{
    uint8_t *to = peer->out + peer->out_len;

    CHECK(peer->out_len + 4096 <= BUFFER_BYTES);
    peer->out_len += write_kept(to, peer->index, number);
    to[5] |= flags;
    peer->unanswered++;
}

static void leave(struct peer *peer, bool at_once)
{
    struct linger now = {.l_onoff = 1};

    if (at_once)
        setsockopt(peer->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(peer->fd);
    peer->is_gone = true;
}

/* A message as its author wrote it, in a place of the topic. */
static void on_message(struct crowd *crowd, struct peer *peer,
                       const struct im_frame *frame)
{
    uint8_t planned[8192];
    uint64_t seq = im_load_u64(frame->at + 8);
    uint32_t number = (uint32_t)im_load_u64(frame->at + 24);
    uint32_t author =
        frame->at[IM_MESSAGE_LEN + 5 + frame->at[33]] - (uint32_t)'0';

    CHECK(number > 0 && number < KEPT_MAX && author < 10);
    size_t size = write_kept(planned, author, number);
    CHECK(size == frame->size && !memcmp(planned + 24, frame->at + 24, 11));
    CHECK(!memcmp(planned + 36, frame->at + 36, size - 36));
    CHECK(number % KEPT_TOPICS == peer->topic);
    CHECK(*peer->tags == '*' || frame->at[33]);
    if (frame->flags & IM_REDELIVERED) {
        CHECK(peer->role != READS && seq <= peer->last);
        return;
    }
    if (seq <= peer->last)
        FAIL("peer %u: message %lu behind %lu", peer->index, seq, peer->last);
    peer->last = seq;
    if (peer->role != READS && peer->window && *peer->tags == '*')
        CHECK(seq - peer->acked <= peer->window);
    CHECK(peer->seq_count < KEPT_MAX);
    peer->seqs[peer->seq_count++] = seq;
    if (peer->role == READS || !peer->is_subscribed)
        return;
    if (roll_dice(&crowd->random, 40) == 0)
        queue_subscribe(peer);
    else if (!peer->window)
        return; /* nothing is acknowledged */
    else if (roll_dice(&crowd->random, 60) == 0)
        queue_position(peer, IM_NACK);
    else if (roll_dice(&crowd->random, 3) == 0)
        queue_position(peer, IM_ACK);
}

/* It is subscribed from where it was when it asked. */
static void on_subscribed(struct peer *peer)
{
    peer->is_subscribed = true;
    if (peer->role == READS)
        return;
    peer->last = peer->acked = peer->after;
    while (peer->seq_count && peer->seqs[peer->seq_count - 1] > peer->after)
        peer->seq_count--;
}

static void on_receipt(struct crowd *crowd, struct peer *peer,
                       const struct im_frame *frame)
{
    uint64_t id = im_load_u64(frame->at + 8), seq = im_load_u64(frame->at + 16);

    CHECK(peer->role == WRITES && id > 0 && id <= peer->written && seq);
    CHECK(peer->fates[id] != REFUSED && peer->unanswered--);
    if (peer->fates[id] == RECEIPTED) {
        CHECK(peer->places[id] == seq);
    } else {
        peer->fates[id] = RECEIPTED;
        peer->places[id] = seq;
        if (roll_dice(&crowd->random, 10) == 0)
            queue_message(peer, (uint32_t)id, IM_RETRY);
    }
}

static void on_frame(struct crowd *crowd, struct peer *peer,
                     const struct im_frame *frame)
{
    uint64_t id;

    switch (frame->type) {
    case IM_WELCOME:
        break;
    case IM_SUBSCRIBED:
        on_subscribed(peer);
        break;
    case IM_MESSAGE:
        on_message(crowd, peer, frame);
        break;
    case IM_RECEIPT:
        on_receipt(crowd, peer, frame);
        break;
    case IM_ERROR: /* 507 */
        id = im_load_u64(frame->at + IM_HEAD_LEN);
        CHECK(id > 0 && id <= peer->written && peer->unanswered--);
        if (peer->fates[id] != RECEIPTED)
            peer->fates[id] = REFUSED;
        break;
    default:
        FAIL("a frame of type %u", frame->type);
    }
}

static void take_bytes(struct crowd *crowd, struct peer *peer)
{
    ssize_t got =
        recv(peer->fd, peer->in + peer->in_len, BUFFER_BYTES - peer->in_len, 0);
    struct im_frame frame;

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0)
        FAIL("peer %u was closed", peer->index);
    peer->in_len += (size_t)got;
    struct im_span in = {peer->in, peer->in_len};
    while (im_frame_peek(in, FRAME_BYTES, &frame) == IM_OK) {
        on_frame(crowd, peer, &frame);
        in.at += frame.size;
        in.len -= frame.size;
    }
    memmove(peer->in, in.at, in.len);
    peer->in_len = in.len;
}

static void give_bytes(struct crowd *crowd, struct peer *peer)
{
    size_t piece = 1 + roll_dice(&crowd->random, 30000);
    if (piece > peer->out_len)
        piece = peer->out_len;
    ssize_t sent = send(peer->fd, peer->out, piece, MSG_NOSIGNAL);
    if (sent > 0) {
        peer->out_len -= (size_t)sent;
        memmove(peer->out, peer->out + sent, peer->out_len);
    }
}

/* What a peer does by itself. */
static void act(struct crowd *crowd, struct peer *peer)
{
    switch (peer->role) {
    case WRITES:
        while (peer->written < KEPT_MESSAGES &&
               peer->unanswered < UNANSWERED_MAX && peer->out_len < 30000)
            queue_message(peer, ++peer->written, 0);
        if (peer->index == KEPT_WRITERS - 1 &&
            peer->written > KEPT_MESSAGES / 2)
            leave(peer, true);
        break;
    case LEAVES:
        if (peer->seq_count > 40 + 20 * peer->index)
            leave(peer, peer->index & 1);
        break;
    case FOLLOWS: /* a window must not stay full for ever */
        if (peer->is_subscribed && peer->window && peer->out_len < 1000 &&
            roll_dice(&crowd->random, 8) == 0)
            queue_position(peer, IM_ACK);
        break;
    default:
        break;
    }
}

static void come(struct crowd *crowd, struct peer *peer)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons(crowd->storm->port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int small = 16 << 10;
    char user[3] = {'a', (char)('0' + peer->index), 0};

    peer->in = malloc(BUFFER_BYTES);
    peer->out = malloc(BUFFER_BYTES);
    peer->seqs = calloc(KEPT_MAX, sizeof *peer->seqs);
    peer->fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(peer->in && peer->out && peer->seqs && peer->fd >= 0);
    setsockopt(peer->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    CHECK(connect(peer->fd, (struct sockaddr *)&to, sizeof to) == 0);
    fcntl(peer->fd, F_SETFL, O_NONBLOCK);
    queue_frame(peer, IM_HELLO, user, 2);
    if (peer->role != WRITES)
        queue_subscribe(peer);
}

/* Those of topic 1 see only what has the tag. */
static void come_all(struct crowd *crowd)
{
    static const uint32_t counts[] = {KEPT_WRITERS, KEPT_READERS, FOLLOWERS,
                                      LEAVERS};
    struct peer *peer = crowd->peers;

    for (uint32_t role = WRITES; role <= LEAVES; role++)
        for (uint32_t i = 0; i < counts[role]; i++, peer++) {
            uint32_t most = 1 + roll_dice(&crowd->random, WINDOW_MAX);
            peer->role = (enum role)role;
            peer->index = i;
            peer->topic = i % KEPT_TOPICS;
            peer->tags = peer->topic == 1 ? "y||x" : "*";
            peer->window = role == READS ? 255 : i % 4 == 3 ? 0 : most;
            come(crowd, peer);
        }
}

static void take_turn(struct crowd *crowd)
{
    struct pollfd fds[KEPT_PEERS];

    for (uint32_t i = 0; i < KEPT_PEERS; i++) {
        struct peer *peer = &crowd->peers[i];
        bool is_lazy = peer->role == FOLLOWS && peer->index == 0;
        bool reads = !is_lazy || roll_dice(&crowd->random, 6) == 0;
        if (!peer->is_gone)
            act(crowd, peer);
        fds[i].fd = peer->is_gone ? -1 : peer->fd;
        fds[i].events =
            (short)((reads ? POLLIN : 0) | (peer->out_len ? POLLOUT : 0));
        fds[i].revents = 0;
    }
    CHECK(poll(fds, KEPT_PEERS, 2) >= 0);
    for (uint32_t i = 0; i < KEPT_PEERS; i++) {
        if (fds[i].revents & POLLOUT)
            give_bytes(crowd, &crowd->peers[i]);
        if (fds[i].revents & (POLLIN | POLLHUP | POLLERR))
            take_bytes(crowd, &crowd->peers[i]);
    }
}

static bool all_written(const struct crowd *crowd)
{
    for (uint32_t i = 0; i < KEPT_WRITERS - 1; i++)
        if (crowd->peers[i].written < KEPT_MESSAGES ||
            crowd->peers[i].unanswered)
            return false;
    return true;
}

/* Whether a follower has all of its topic; it has nothing else. */
static bool has_all(const struct peer *peer, struct timeline *timeline)
{
    uint32_t count = 0;

    pthread_mutex_lock(&timeline->lock);
    for (uint64_t seq = 1; seq <= timeline->heads[peer->topic]; seq++) {
        const struct kept *kept = &timeline->kept[peer->topic][seq - 1];
        if (*peer->tags != '*' && !kept->frame[33])
            continue;
        if (count < peer->seq_count && peer->seqs[count] != seq)
            FAIL("follower %u has message %lu instead of %lu", peer->index,
                 peer->seqs[count], seq);
        count++;
    }
    pthread_mutex_unlock(&timeline->lock);
    CHECK(peer->seq_count <= count);
    return peer->seq_count == count;
}

static bool all_received(struct crowd *crowd)
{
    for (uint32_t i = 0; i < KEPT_PEERS; i++)
        if (crowd->peers[i].role == FOLLOWS &&
            !has_all(&crowd->peers[i], &crowd->storm->timeline))
            return false;
    return true;
}

/* What was receipted is where it was said to be, what was refused nowhere. */
static void check_receipts(const struct peer *peer,
                           const struct timeline *timeline)
{
    uint32_t kept = 0;

    for (uint32_t id = 1; id <= KEPT_MESSAGES; id++) {
        uint8_t planned[8192];
        if (peer->fates[id] != RECEIPTED) {
            CHECK(peer->fates[id] == REFUSED);
            continue;
        }
        const struct kept *at =
            &timeline->kept[id % KEPT_TOPICS][peer->places[id] - 1];
        size_t size = write_kept(planned, peer->index, id);
        CHECK(at->size == size && !memcmp(at->frame + 24, planned + 24, 11));
        CHECK(!memcmp(at->frame + 36, planned + 36, size - 36));
        kept++;
    }
    for (uint32_t topic = 0; topic < KEPT_TOPICS; topic++)
        for (uint64_t i = 0; i < timeline->heads[topic]; i++) {
            const uint8_t *frame = timeline->kept[topic][i].frame;
            kept -= frame[IM_MESSAGE_LEN + 5 + frame[33]] == '0' + peer->index;
        }
    CHECK(kept == 0);
}

void *kept_clients(void *argument)
{
    struct kept_storm *storm = argument;
    struct crowd *crowd = calloc(1, sizeof *crowd);

    CHECK(crowd);
    crowd->storm = storm;
    crowd->random = storm->seed;
    come_all(crowd);
    while (!all_written(crowd))
        take_turn(crowd);
    atomic_store(&storm->is_written, true);
    while (!atomic_load(&storm->is_answered) || !all_received(crowd))
        take_turn(crowd);
    for (uint32_t i = 0; i < KEPT_WRITERS - 1; i++)
        check_receipts(&crowd->peers[i], &storm->timeline);
    for (uint32_t i = 0; i < KEPT_PEERS; i++) {
        struct peer *peer = &crowd->peers[i];
        if (!peer->is_gone)
            leave(peer, i & 1);
        free(peer->in);
        free(peer->out);
        free(peer->seqs);
    }
    free(crowd);
    atomic_store(&storm->is_over, true);
    return NULL;
}
