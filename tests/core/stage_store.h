/*
 * stage_store.h - a stage with a store: commits are made by hand as well, and
 * what was kept can be read again and fed to those who follow.
 */
#pragma once

#include <sys/eventfd.h>

#include "conn.h"
#include "journal.h"
#include "stage.h"

#define KEPT_MAX 4096
#define STORE_TOPICS 4

/* A message of the timeline. */
struct kept {
    uint32_t topic;
    uint32_t size;
    uint64_t seq;
    uint8_t *frame;
};

struct store {
    struct im_batch batch;
    struct im_journal journal;
    int fd;
    char topics[STORE_TOPICS][5];
    uint64_t heads[STORE_TOPICS];
    struct kept kept[KEPT_MAX];
    uint32_t kept_count;
};

static struct store *new_store(struct stage *stage)
{
    struct store *store = calloc(1, sizeof *store);

    CHECK(store);
    store->fd = eventfd(0, EFD_NONBLOCK);
    stage->verdict = IM_KEEP_ASKED;
    CHECK(im_batch_init(&store->batch, 1, 1024, 60000) == IM_OK);
    CHECK(im_journal_open(&store->journal, stage->core, store->fd) == IM_OK);
    return store;
}

static void close_store(struct store *store)
{
    im_journal_close(&store->journal);
    im_batch_free(&store->batch);
    for (uint32_t i = 0; i < store->kept_count; i++)
        free(store->kept[i].frame);
    close(store->fd);
    free(store);
}

static uint32_t topic_of(struct store *store, struct im_span name)
{
    uint32_t at = 0;

    CHECK(name.len == 4);
    while (*store->topics[at] && memcmp(store->topics[at], name.at, 4))
        CHECK(++at < STORE_TOPICS);
    memcpy(store->topics[at], name.at, 4);
    return at;
}

static void collect(struct store *store)
{
    im_batch_clear(&store->batch);
    im_journal_collect(&store->journal, &store->batch, IM_BATCH_MAX / 2);
}

/* What the threads have journalled is on the disk. Returns how many. */
static uint32_t commit(struct store *store)
{
    struct im_batch *batch = &store->batch;
    uint64_t heads[STORE_TOPICS];

    collect(store);
    uint32_t messages = store->journal.count;
    for (uint32_t i = 0; i < batch->topic_count; i++)
        heads[i] = store->heads[topic_of(store, im_batch_topic(batch, i))];
    CHECK(im_batch_seal(batch, heads, 1000, 1000) == IM_OK);
    for (uint32_t i = 0; i < batch->frame_count; i++) {
        const struct im_batch_frame *frame = &batch->frames[i];
        struct kept *kept = &store->kept[store->kept_count];
        if (frame->fate != IM_KEPT)
            continue;
        CHECK(++store->kept_count < KEPT_MAX);
        kept->topic = topic_of(store, im_batch_topic(batch, frame->topic));
        kept->size = frame->size;
        kept->frame = malloc(frame->size);
        memcpy(kept->frame, batch->bytes + frame->at, frame->size);
        kept->seq = im_load_u64(kept->frame + 8);
        CHECK(kept->seq == ++store->heads[kept->topic]);
    }
    im_journal_settle(&store->journal, batch, 0);
    return messages;
}

/* The disk has failed. */
static inline void fail(struct store *store, uint16_t code)
{
    collect(store);
    im_journal_settle(&store->journal, &store->batch, code);
}

/* A message to be kept, of `size` bytes, with a tag of one letter or none. */
static void write_kept(uint8_t *to, const char *topic, const char *tag,
                       uint64_t id, uint8_t flags, size_t size)
{
    size_t tag_len = strlen(tag);

    write_message_to(to, topic, size);
    to[5] |= IM_DURABLE | flags;
    to[33] = (uint8_t)tag_len;
    memcpy(to + IM_MESSAGE_LEN + 4, tag, tag_len);
    memcpy(to + IM_MESSAGE_LEN + 4 + tag_len, "a0", 2);
    im_store_u64(to + 24, id);
}

static void keep(int fd, const char *topic, uint64_t id, uint8_t flags,
                 size_t size)
{
    uint8_t frame[FRAME_BYTES];

    write_kept(frame, topic, "", id, flags, size);
    send_bytes(fd, frame, size);
}

/* Follows from `cursor` on, as client `client` of the stage. */
static inline void follow(struct stage *stage, uint32_t client, uint32_t number,
                          const char *topic, const char *tags, uint64_t cursor,
                          uint32_t window)
{
    uint8_t room[16];
    struct im_begin begin = {
        .cursor = cursor, .number = number, .window = window};
    uint32_t tags_len = (uint32_t)strlen(tags);
    struct im_span parts[] = {
        {(const uint8_t *)&begin, sizeof begin},
        {(const uint8_t *)topic, 4},
        {(const uint8_t *)tags, tags_len},
        {room, write_frame(room, IM_SUBSCRIBED, 1, NULL, 0)}};
    struct im_record record = {.kind = IM_COMMAND_FOLLOW,
                               .b = 4 | tags_len << 16,
                               .conn = stage->conns[client]};

    tell(stage, im_conn_thread(record.conn), record, parts, 4);
    settle(stage);
    CHECK(receive(stage, stage->clients[client], room) == IM_SUBSCRIBED);
}

/* Tells a follower a command with frames of the timeline: those with seqs from
 * `first` to `last`. A FEED covers all up to `last`. */
static inline void tell_kept(struct stage *stage, struct store *store,
                             uint32_t client, struct im_record record,
                             const char *topic, uint64_t first, uint64_t last)
{
    uint32_t number = topic_of(store, (struct im_span){(const void *)topic, 4});
    uint64_t ends[] = {last, store->heads[number]};
    uint8_t *page = malloc(FRAME_BYTES * 2);
    struct im_span parts[] = {{(const uint8_t *)ends, sizeof ends}, {page, 0}};
    uint32_t skip = record.kind != IM_COMMAND_FEED;

    for (uint32_t i = 0; i < store->kept_count; i++) {
        const struct kept *kept = &store->kept[i];
        if (kept->topic != number || kept->seq < first || kept->seq > last)
            continue;
        CHECK(parts[1].len + kept->size <= FRAME_BYTES * 2);
        memcpy(page + parts[1].len, kept->frame, kept->size);
        parts[1].len += kept->size;
    }
    record.conn = stage->conns[client];
    tell(stage, im_conn_thread(record.conn), record, parts + skip, 2 - skip);
    free(page);
}

static inline void feed(struct stage *stage, struct store *store,
                        uint32_t client, uint32_t number, const char *topic,
                        uint64_t first, uint64_t last)
{
    struct im_record record = {.kind = IM_COMMAND_FEED, .b = number};

    tell_kept(stage, store, client, record, topic, first, last);
    settle(stage);
}

static inline void send_position(int fd, uint8_t type, const char *topic,
                                 uint64_t seq)
{
    uint8_t frame[64], body[12];

    im_store_u64(body, seq);
    memcpy(body + 8, topic, 4);
    send_bytes(fd, frame, write_frame(frame, type, 1, body, sizeof body));
}

/* The oldest event of a kind that nobody looked at yet, or false. */
static inline bool is_told(struct stage *stage, uint16_t kind,
                           struct told *told)
{
    for (uint32_t i = 0; i < stage->told_count; i++)
        if (stage->told[i].kind == kind) {
            *told = stage->told[i];
            memmove(&stage->told[i], &stage->told[i + 1],
                    (--stage->told_count - i) * sizeof *told);
            return true;
        }
    return false;
}

/* The number at a place of an event's bytes, in native order. */
static inline uint64_t told_u64(const struct told *told, uint32_t at)
{
    uint64_t number;

    CHECK(at + sizeof number <= told->len);
    memcpy(&number, told->bytes + at, sizeof number);
    return number;
}

/* The next frame is a message with that seq. */
static inline void expect_message(struct stage *stage, int fd, uint64_t seq)
{
    uint8_t frame[FRAME_BYTES];

    CHECK(receive(stage, fd, frame) == IM_MESSAGE);
    if (im_load_u64(frame + 8) != seq)
        FAIL("message %lu instead of %lu", im_load_u64(frame + 8), seq);
    CHECK(frame[5] & IM_DURABLE && !(frame[5] & IM_RETRY));
}

static inline void expect_receipt(struct stage *stage, int fd, uint64_t id,
                                  uint64_t seq)
{
    uint8_t frame[FRAME_BYTES];

    CHECK(receive(stage, fd, frame) == IM_RECEIPT);
    CHECK(im_load_u64(frame + 8) == id && im_load_u64(frame + 16) == seq);
    CHECK(im_load_u64(frame + 24) == 1000);
}

/* The latest question of a cursor, and that there is only one. */
static inline void expect_want(struct stage *stage, uint32_t number,
                               uint64_t acked, uint64_t sent, uint64_t room)
{
    struct told told;

    settle(stage);
    CHECK(is_told(stage, IM_EVENT_WANT, &told));
    CHECK(told.b == number && told_u64(&told, 0) == acked);
    CHECK(told_u64(&told, 8) == sent && told_u64(&told, 16) == room);
    CHECK(!is_told(stage, IM_EVENT_WANT, &told));
}

static inline bool is_quiet(struct stage *stage, int fd)
{
    settle(stage);
    return !has_news(fd);
}
