/*
 * topics.c - open addressing over topics, dense arrays of members in them.
 *
 * A publish pays one probe, which compares 64 bits of hash before it touches
 * the topic, and one comparison of the name. Removal shifts the following
 * entries back, so no tombstones slow down a table that lives for months.
 */
#include "topics.h"

#include <stdlib.h>

#define SLOTS_MIN 64u

enum im_status im_topics_init(struct im_topics *topics, uint64_t seed)
{
    *topics = (struct im_topics){
        .seed = seed, .slot_count = SLOTS_MIN, .sub_vacant = IM_NONE};
    topics->slots = calloc(SLOTS_MIN, sizeof *topics->slots);
    topics->interest = calloc(IM_INTEREST_LEN, sizeof *topics->interest);
    return topics->slots && topics->interest ? IM_OK : IM_FULL;
}

void im_topics_free(struct im_topics *topics)
{
    for (uint32_t i = 0; topics->slots && i < topics->slot_count; i++)
        if (topics->slots[i].topic) {
            free(topics->slots[i].topic->members);
            free(topics->slots[i].topic);
        }
    free(topics->slots);
    free(topics->subs);
    free((void *)topics->interest);
    *topics = (struct im_topics){0};
}

struct im_topic *im_topic_find(const struct im_topics *topics,
                               struct im_span name, uint64_t hash)
{
    uint32_t mask = topics->slot_count - 1;

    for (uint32_t at = (uint32_t)hash & mask; topics->slots[at].topic;
         at = (at + 1) & mask) {
        struct im_topic *topic = topics->slots[at].topic;
        if (topics->slots[at].hash == hash && topic->name_len == name.len &&
            memcmp(topic->name, name.at, name.len) == 0)
            return topic;
    }
    return NULL;
}

static void put_slot(struct im_topic_slot *slots, uint32_t mask,
                     struct im_topic *topic)
{
    uint32_t at = (uint32_t)topic->hash & mask;

    while (slots[at].topic)
        at = (at + 1) & mask;
    slots[at] = (struct im_topic_slot){topic->hash, topic};
    topic->slot = at;
}

static bool grow_slots(struct im_topics *topics)
{
    uint32_t count = topics->slot_count * 2;
    struct im_topic_slot *slots = calloc(count, sizeof *slots);
    if (!slots)
        return false;

    for (uint32_t i = 0; i < topics->slot_count; i++)
        if (topics->slots[i].topic)
            put_slot(slots, count - 1, topics->slots[i].topic);
    free(topics->slots);
    topics->slots = slots;
    topics->slot_count = count;
    return true;
}

struct im_topic *im_topic_hold(struct im_topics *topics, struct im_span name)
{
    uint64_t hash = im_topic_hash(topics, name);
    struct im_topic *topic = im_topic_find(topics, name, hash);
    if (topic) {
        topic->holds++;
        return topic;
    }

    /* At most half full: probes stay short whatever the names. */
    if (topics->topic_count * 2 >= topics->slot_count && !grow_slots(topics))
        return NULL;
    topic = malloc(sizeof *topic + name.len);
    if (!topic)
        return NULL;
    *topic = (struct im_topic){.hash = hash,
                               .holds = 1,
                               .cursors = IM_NONE,
                               .name_len = (uint8_t)name.len};
    memcpy(topic->name, name.at, name.len);
    put_slot(topics->slots, topics->slot_count - 1, topic);
    topics->topic_count++;
    return topic;
}

static void remove_slot(struct im_topics *topics, uint32_t hole)
{
    uint32_t mask = topics->slot_count - 1;

    for (uint32_t at = (hole + 1) & mask; topics->slots[at].topic;
         at = (at + 1) & mask) {
        uint32_t home = (uint32_t)topics->slots[at].hash & mask;
        /* Stays where it is if the hole lies before its home. */
        if (((at - home) & mask) < ((at - hole) & mask))
            continue;
        topics->slots[hole] = topics->slots[at];
        topics->slots[hole].topic->slot = hole;
        hole = at;
    }
    topics->slots[hole] = (struct im_topic_slot){0};
}

void im_topic_drop(struct im_topics *topics, struct im_topic *topic)
{
    IM_ASSERT(topic->holds > 0);
    topic->holds--;
    if (topic->holds || topic->member_count)
        return;
    remove_slot(topics, topic->slot);
    topics->topic_count--;
    free(topic->members);
    free(topic);
}

void im_topics_count(struct im_topics *topics, uint64_t hash, uint32_t change)
{
    _Atomic uint32_t *count = &topics->interest[hash & (IM_INTEREST_LEN - 1)];
    uint32_t now = atomic_load_explicit(count, memory_order_relaxed);
    atomic_store_explicit(count, now + change, memory_order_release);
}

static uint32_t new_sub(struct im_topics *topics)
{
    uint32_t sub = topics->sub_vacant;
    if (sub != IM_NONE) {
        topics->sub_vacant = topics->subs[sub].next;
        return sub;
    }
    if (topics->sub_count == topics->sub_room) {
        uint32_t room = topics->sub_room ? topics->sub_room * 2 : 64;
        struct im_sub *subs = realloc(topics->subs, room * sizeof *subs);
        if (!subs)
            return IM_NONE;
        topics->subs = subs;
        topics->sub_room = room;
    }
    return topics->sub_count++;
}

uint32_t im_topic_attach(struct im_topics *topics, struct im_topic *topic,
                         uint32_t apart, uint32_t *first)
{
    uint32_t sub = new_sub(topics);
    if (sub == IM_NONE)
        return IM_NONE;
    topics->sub_live++;
    topics->subs[sub] = (struct im_sub){topic, apart | IM_SUB_APART, *first};
    *first = sub;
    return sub;
}

/* Takes a subscription out of the list of its connection. */
static void unlink_sub(struct im_topics *topics, uint32_t sub, uint32_t *first)
{
    while (*first != sub)
        first = &topics->subs[*first].next;
    *first = topics->subs[sub].next;
    topics->subs[sub].next = topics->sub_vacant;
    topics->sub_vacant = sub;
    topics->sub_live--;
}

void im_topic_detach(struct im_topics *topics, uint32_t sub, uint32_t *first)
{
    struct im_topic *topic = topics->subs[sub].topic;

    unlink_sub(topics, sub, first);
    im_topic_drop(topics, topic);
}

static bool make_room(struct im_topic *topic)
{
    if (topic->member_count < topic->member_room)
        return true;
    uint32_t room = topic->member_room ? topic->member_room * 2 : 2;
    struct im_member *members = realloc(topic->members, room * sizeof *members);
    if (!members)
        return false;
    topic->members = members;
    topic->member_room = room;
    return true;
}

enum im_status im_topic_join(struct im_topics *topics, struct im_span name,
                             uint32_t conn, uint32_t filter, uint32_t *first)
{
    struct im_topic *topic = im_topic_hold(topics, name);
    if (!topic)
        return IM_FULL;

    uint32_t sub = IM_NONE;
    if (make_room(topic))
        sub = new_sub(topics);
    if (sub == IM_NONE) {
        im_topic_drop(topics, topic);
        return IM_FULL;
    }
    topics->sub_live++;
    topics->subs[sub] = (struct im_sub){topic, topic->member_count, *first};
    *first = sub;
    topic->members[topic->member_count++] =
        (struct im_member){conn, filter, sub};
    topic->holds--; /* from here its members keep it */
    if (topic->member_count == 1)
        im_topics_count(topics, topic->hash, 1);
    return IM_OK;
}

uint32_t im_topic_member(const struct im_topics *topics, struct im_span name,
                         uint32_t first)
{
    for (uint32_t sub = first; sub != IM_NONE; sub = topics->subs[sub].next) {
        const struct im_topic *topic = topics->subs[sub].topic;
        if (topic->name_len == name.len &&
            memcmp(topic->name, name.at, name.len) == 0)
            return sub;
    }
    return IM_NONE;
}

void im_topic_leave(struct im_topics *topics, uint32_t sub, uint32_t *first)
{
    struct im_topic *topic = topics->subs[sub].topic;
    uint32_t at = topics->subs[sub].at;

    unlink_sub(topics, sub, first);
    topic->holds++;
    topic->members[at] = topic->members[--topic->member_count];
    if (at < topic->member_count)
        topics->subs[topic->members[at].sub].at = at;
    if (topic->member_count == 0)
        im_topics_count(topics, topic->hash, UINT32_MAX);
    im_topic_drop(topics, topic);
}
