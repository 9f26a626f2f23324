/*
 * rights.c - one table for all connections of a thread, chained by index.
 *
 * Keyed by connection and topic together, so a connection with one right pays
 * for one entry and one without pays nothing.
 */
#include "rights.h"

#include <stdlib.h>

#define BUCKETS_MIN 256u

void im_rights_init(struct im_rights *rights)
{
    *rights = (struct im_rights){.vacant = IM_NONE};
}

void im_rights_free(struct im_rights *rights)
{
    free(rights->slots);
    free(rights->buckets);
    *rights = (struct im_rights){0};
}

static uint32_t bucket_of(const struct im_rights *rights, uint32_t conn,
                          const struct im_topic *topic)
{
    uint64_t hash = im_hash_fold(topic->hash ^ conn, 0x9e3779b97f4a7c15u);
    return (uint32_t)hash & (rights->bucket_count - 1);
}

static uint32_t find(const struct im_rights *rights, uint32_t conn,
                     const struct im_topic *topic)
{
    if (rights->live == 0)
        return IM_NONE;
    uint32_t at = rights->buckets[bucket_of(rights, conn, topic)];
    while (at != IM_NONE &&
           (rights->slots[at].conn != conn || rights->slots[at].topic != topic))
        at = rights->slots[at].next_in_bucket;
    return at;
}

const struct im_right *im_right_find(const struct im_rights *rights,
                                     uint32_t conn,
                                     const struct im_topic *topic)
{
    uint32_t at = find(rights, conn, topic);
    return at == IM_NONE ? NULL : &rights->slots[at];
}

static bool grow_buckets(struct im_rights *rights)
{
    uint32_t count =
        rights->bucket_count ? rights->bucket_count * 2 : BUCKETS_MIN;
    uint32_t *buckets = malloc(count * sizeof *buckets);
    if (!buckets)
        return false;

    memset(buckets, 0xff, count * sizeof *buckets);
    free(rights->buckets);
    rights->buckets = buckets;
    rights->bucket_count = count;
    for (uint32_t at = 0; at < rights->slot_count; at++) {
        struct im_right *right = &rights->slots[at];
        if (!right->topic)
            continue;
        uint32_t *bucket =
            &buckets[bucket_of(rights, right->conn, right->topic)];
        right->next_in_bucket = *bucket;
        *bucket = at;
    }
    return true;
}

static uint32_t new_slot(struct im_rights *rights)
{
    uint32_t at = rights->vacant;
    if (at != IM_NONE) {
        rights->vacant = rights->slots[at].next_of_conn;
        return at;
    }
    if (rights->slot_count == rights->slot_room) {
        uint32_t room = rights->slot_room ? rights->slot_room * 2 : 64;
        struct im_right *slots = realloc(rights->slots, room * sizeof *slots);
        if (!slots)
            return IM_NONE;
        rights->slots = slots;
        rights->slot_room = room;
    }
    return rights->slot_count++;
}

enum im_status im_right_set(struct im_rights *rights, struct im_topics *topics,
                            uint32_t conn, struct im_span name, uint8_t verdict,
                            uint16_t code, uint32_t *first, uint16_t *count)
{
    struct im_topic *topic = im_topic_hold(topics, name);
    if (!topic)
        return IM_FULL;

    uint32_t at = find(rights, conn, topic);
    if (at != IM_NONE) {
        rights->slots[at].verdict = verdict;
        rights->slots[at].code = code;
        im_topic_drop(topics, topic); /* the right holds it already */
        return IM_OK;
    }
    if ((rights->live >= rights->bucket_count && !grow_buckets(rights)) ||
        (at = new_slot(rights)) == IM_NONE) {
        im_topic_drop(topics, topic);
        return IM_FULL;
    }
    uint32_t *bucket = &rights->buckets[bucket_of(rights, conn, topic)];
    rights->slots[at] = (struct im_right){.topic = topic,
                                          .conn = conn,
                                          .next_in_bucket = *bucket,
                                          .next_of_conn = *first,
                                          .code = code,
                                          .verdict = verdict};
    *bucket = at;
    *first = at;
    ++*count;
    rights->live++;
    return IM_OK;
}

/* Removes the right that `link` of a connection's list points to. */
static void drop_at(struct im_rights *rights, struct im_topics *topics,
                    uint32_t *link, uint16_t *count)
{
    uint32_t at = *link;
    struct im_right *right = &rights->slots[at];
    uint32_t *bucket =
        &rights->buckets[bucket_of(rights, right->conn, right->topic)];

    while (*bucket != at)
        bucket = &rights->slots[*bucket].next_in_bucket;
    *bucket = right->next_in_bucket;
    *link = right->next_of_conn;
    im_topic_drop(topics, right->topic);
    right->topic = NULL;
    right->next_of_conn = rights->vacant;
    rights->vacant = at;
    rights->live--;
    --*count;
}

void im_right_drop_oldest(struct im_rights *rights, struct im_topics *topics,
                          uint32_t *first, uint16_t *count)
{
    uint32_t *link = first;

    if (*link == IM_NONE)
        return;
    while (rights->slots[*link].next_of_conn != IM_NONE)
        link = &rights->slots[*link].next_of_conn;
    drop_at(rights, topics, link, count);
}

void im_right_drop(struct im_rights *rights, struct im_topics *topics,
                   struct im_span name, uint32_t *first, uint16_t *count)
{
    for (uint32_t *link = first; *link != IM_NONE;
         link = &rights->slots[*link].next_of_conn) {
        const struct im_topic *topic = rights->slots[*link].topic;
        if (topic->name_len == name.len &&
            memcmp(topic->name, name.at, name.len) == 0) {
            drop_at(rights, topics, link, count);
            return;
        }
    }
}

void im_right_drop_all(struct im_rights *rights, struct im_topics *topics,
                       uint32_t *first, uint16_t *count)
{
    while (*first != IM_NONE)
        drop_at(rights, topics, first, count);
}
