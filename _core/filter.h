/*
 * filter.h - tag expressions of subscriptions: `*`, or `a||b`.
 *
 * Thousands of subscribers share a few expressions, so each is kept once and
 * judged once a message, however many subscribers have it. Tags are compared
 * as strings; a hash alone never decides who receives a message.
 *
 *   T1  filter 0 is `*` and matches everything, a message without tag too.
 *   T2  a filter lives as long as a subscription holds it.
 */
#pragma once

#include "base.h"

#define IM_FILTER_ALL 0u
#define IM_FILTER_LEN_MAX 1024u
#define IM_FILTER_TAGS_MAX 16u

struct im_filter;

struct im_filters {
    struct im_filter **slots; /* by id; slot 0 stays empty */
    uint32_t *buckets;        /* first id by hash, IM_NONE when none */
    uint32_t slot_count;
    uint32_t bucket_count;
    uint32_t live;
    uint32_t vacant; /* first free id, linked through `next` */
    uint64_t seed;
    uint64_t round; /* of im_filters_begin */
};

void im_filters_init(struct im_filters *filters, uint64_t seed);
void im_filters_free(struct im_filters *filters);

/* The filter of an expression, held once more. IM_BAD for an expression that
 * breaks the rules, IM_FULL without memory. */
enum im_status im_filter_take(struct im_filters *filters, struct im_span expr,
                              uint32_t *id);
void im_filter_drop(struct im_filters *filters, uint32_t id);

/* A new message: earlier answers no longer count. */
static inline void im_filters_begin(struct im_filters *filters)
{
    filters->round++;
}

/* Whether the message of this round, with this tag, passes the filter. */
bool im_filter_match(struct im_filters *filters, uint32_t id,
                     struct im_span tag);

/* Whether a client may publish with this tag: printable UTF-8 without space,
 * `|` and `*`, at most IM_TAG_MAX bytes. A leading `$` is judged elsewhere. */
bool im_tag_is_valid(struct im_span tag);
