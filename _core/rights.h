/*
 * rights.h - what Python has decided: who may publish to which topic.
 *
 * Asked once a message and set once per connection and topic; in front of it
 * each connection remembers its latest answer, since most write to one topic
 * for a while. A refusal is kept as well, with the number of its error: Python
 * only words the answer to a client that insists.
 *
 *   V1  a right holds its topic: the topic outlives it.
 *   V2  a connection has at most the configured number of rights; the oldest
 *       makes room and would be asked for again.
 */
#pragma once

#include "topics.h"

enum im_verdict {
    IM_UNKNOWN = 0,
    IM_ALLOW = 1, /* live; DURABLE is refused */
    IM_HOOK = 2,  /* every message goes to Python first */
    IM_DENY = 3,
    IM_KEEP_ASKED = 4, /* to the store where DURABLE asks for it */
    IM_KEEP = 5        /* to the store, all of them */
};

struct im_right {
    struct im_topic *topic;
    uint32_t conn;
    uint32_t next_in_bucket;
    uint32_t next_of_conn; /* newest first */
    uint16_t code;         /* the error of an IM_DENY */
    uint8_t verdict;
};

struct im_rights {
    struct im_right *slots;
    uint32_t *buckets;
    uint32_t bucket_count;
    uint32_t slot_count;
    uint32_t slot_room;
    uint32_t vacant;
    uint32_t live;
};

void im_rights_init(struct im_rights *rights);
void im_rights_free(struct im_rights *rights);

/* What was decided for the connection and the topic, or NULL. */
const struct im_right *im_right_find(const struct im_rights *rights,
                                     uint32_t conn,
                                     const struct im_topic *topic);

/* Keeps a verdict in front of the connection's list `*first`, or changes the
 * one it has. IM_FULL without memory. */
enum im_status im_right_set(struct im_rights *rights, struct im_topics *topics,
                            uint32_t conn, struct im_span name, uint8_t verdict,
                            uint16_t code, uint32_t *first, uint16_t *count);

/* Forgets the oldest, one topic's, or all rights of a connection. */
void im_right_drop_oldest(struct im_rights *rights, struct im_topics *topics,
                          uint32_t *first, uint16_t *count);
void im_right_drop(struct im_rights *rights, struct im_topics *topics,
                   struct im_span name, uint32_t *first, uint16_t *count);
void im_right_drop_all(struct im_rights *rights, struct im_topics *topics,
                       uint32_t *first, uint16_t *count);
