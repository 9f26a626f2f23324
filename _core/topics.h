/*
 * topics.h - from a topic's name to its subscribers on this thread.
 *
 * Looked up once a message, changed once a subscription. Names match exactly;
 * a topic is a dense array of subscribers with the filter of each, so fan-out
 * walks memory in order. Leaving swaps the last subscriber into the gap.
 *
 *   S1  subs[member.sub].topic->members[subs[member.sub].at] is that member;
 *       a subscription that is not a member (cursors.h) stands apart.
 *   S2  a topic exists while it has members or somebody holds it (a kept right
 *       does, and a cursor); its address does not change meanwhile.
 *   S3  interest[b] counts the topics with members, and those with cursors,
 *       whose hash falls on b. Only the owner writes it; other threads read it
 *       to learn whether a message is worth sending here. Collisions cost a
 *       lookup, never a delivery.
 */
#pragma once

#include <stdatomic.h>

#include "base.h"

#define IM_INTEREST_LEN (1u << 16)

struct im_member {
    uint32_t conn;   /* slot of the connection */
    uint32_t filter; /* its tag expression */
    uint32_t sub;    /* its subscription */
};

struct im_topic {
    uint64_t hash;
    struct im_member *members;
    uint32_t member_count;
    uint32_t member_room;
    uint32_t holds;
    uint32_t slot;    /* in the table */
    uint32_t cursors; /* first durable subscription, IM_NONE without */
    uint8_t name_len;
    uint8_t name[];
};

/* One subscription: where its member stands, or with IM_SUB_APART which cursor
 * it has, and the next one of the same connection. */
struct im_sub {
    struct im_topic *topic;
    uint32_t at;
    uint32_t next;
};

#define IM_SUB_APART 0x80000000u

struct im_topic_slot {
    uint64_t hash;
    struct im_topic *topic; /* NULL: never used */
};

struct im_topics {
    struct im_topic_slot *slots;
    struct im_sub *subs;
    _Atomic uint32_t *interest;
    uint64_t seed;
    uint32_t slot_count; /* a power of two */
    uint32_t topic_count;
    uint32_t sub_count; /* slots of subs in use or vacant */
    uint32_t sub_room;
    uint32_t sub_vacant;
    uint32_t sub_live;
};

/* `seed` is the same on every thread: they exchange hashes. */
enum im_status im_topics_init(struct im_topics *topics, uint64_t seed);
void im_topics_free(struct im_topics *topics);

static inline uint64_t im_topic_hash(const struct im_topics *topics,
                                     struct im_span name)
{
    return im_hash(topics->seed, name.at, name.len);
}

/* The topic of that name and hash, or NULL. */
struct im_topic *im_topic_find(const struct im_topics *topics,
                               struct im_span name, uint64_t hash);

/* The same, made if need be, and held until im_topic_drop. NULL without
 * memory. */
struct im_topic *im_topic_hold(struct im_topics *topics, struct im_span name);
void im_topic_drop(struct im_topics *topics, struct im_topic *topic);

/* Adds a subscription in front of the connection's list `*first`. */
enum im_status im_topic_join(struct im_topics *topics, struct im_span name,
                             uint32_t conn, uint32_t filter, uint32_t *first);

/* The connection's subscription to a topic, or IM_NONE. */
uint32_t im_topic_member(const struct im_topics *topics, struct im_span name,
                         uint32_t first);

/* The member behind a subscription; valid until the topic changes. */
static inline struct im_member *im_sub_member(const struct im_topics *topics,
                                              uint32_t sub)
{
    return &topics->subs[sub].topic->members[topics->subs[sub].at];
}

/* Ends a subscription of the list `*first`; its filter is the caller's. */
void im_topic_leave(struct im_topics *topics, uint32_t sub, uint32_t *first);

/* For subscriptions that are no members: a place in the connection's list for
 * a topic that is held, IM_NONE without memory; and its end, which drops the
 * topic. */
uint32_t im_topic_attach(struct im_topics *topics, struct im_topic *topic,
                         uint32_t apart, uint32_t *first);
void im_topic_detach(struct im_topics *topics, uint32_t sub, uint32_t *first);

/* One topic more, or with UINT32_MAX one less, whose messages this thread
 * wants (S3). */
void im_topics_count(struct im_topics *topics, uint64_t hash, uint32_t change);

/* Whether the thread that owns `topics` may have members for a hash. Any
 * thread may ask. */
static inline bool im_topics_wants(const struct im_topics *topics,
                                   uint64_t hash)
{
    return atomic_load_explicit(&topics->interest[hash & (IM_INTEREST_LEN - 1)],
                                memory_order_acquire) != 0;
}
