/*
 * filter.c - interned tag expressions with one answer a message.
 */
#include "filter.h"

#include <stdlib.h>

#include "frame.h"

struct im_filter {
    uint64_t hash;
    uint64_t round; /* of the answer in `matched` */
    uint32_t refs;
    uint32_t next; /* in its bucket */
    uint16_t len;
    uint8_t tag_count;
    bool matched;
    uint16_t ends[IM_FILTER_TAGS_MAX]; /* tag i is expr[starts(i)..ends[i]) */
    uint8_t expr[];
};

#define BUCKETS_MIN 64u

void im_filters_init(struct im_filters *filters, uint64_t seed)
{
    *filters = (struct im_filters){.seed = seed, .vacant = IM_NONE};
}

void im_filters_free(struct im_filters *filters)
{
    for (uint32_t id = 1; id < filters->slot_count; id++)
        free(filters->slots[id]);
    free(filters->slots);
    free(filters->buckets);
    *filters = (struct im_filters){0};
}

/* One more byte of a UTF-8 sequence; `*need` counts those still to come. Long
 * forms, surrogates and what lies above U+10FFFF are no UTF-8. */
static bool utf8_step(uint8_t byte, uint32_t *need, uint8_t *low, uint8_t *high)
{
    if (*need) {
        if (byte < *low || byte > *high)
            return false;
        *low = 0x80;
        *high = 0xbf;
        --*need;
        return true;
    }
    if (byte < 0x80)
        return true;
    if (byte < 0xc2 || byte > 0xf4)
        return false;
    *need = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
    *low = byte == 0xe0 ? 0xa0 : byte == 0xf0 ? 0x90 : 0x80;
    *high = byte == 0xed ? 0x9f : byte == 0xf4 ? 0x8f : 0xbf;
    return true;
}

bool im_tag_is_valid(struct im_span tag)
{
    uint32_t need = 0;
    uint8_t low = 0x80, high = 0xbf;

    if (tag.len > IM_TAG_MAX)
        return false;
    for (size_t i = 0; i < tag.len; i++) {
        uint8_t byte = tag.at[i];
        if (byte <= ' ' || byte == 0x7f || byte == '|' || byte == '*')
            return false;
        /* U+0080 to U+009F are control characters too. */
        if (need == 1 && tag.at[i - 1] == 0xc2 && byte < 0xa0)
            return false;
        if (IM_UNLIKELY(byte >= 0x80 || need) &&
            !utf8_step(byte, &need, &low, &high))
            return false;
    }
    return need == 0;
}

/* Splits `a||b` into the ends of its tags; 0 when it breaks a rule. */
static uint8_t split(struct im_span expr, uint16_t *ends)
{
    size_t start = 0;
    uint8_t count = 0;

    if (expr.len == 0 || expr.len > IM_FILTER_LEN_MAX)
        return 0;
    while (start <= expr.len) {
        size_t end = start;
        while (end < expr.len && expr.at[end] != '|')
            end++;
        struct im_span tag = {expr.at + start, end - start};
        if (tag.len == 0 || count == IM_FILTER_TAGS_MAX ||
            !im_tag_is_valid(tag))
            return 0;
        ends[count++] = (uint16_t)end;
        if (end == expr.len)
            return count;
        if (end + 1 >= expr.len || expr.at[end + 1] != '|')
            return 0;
        start = end + 2;
    }
    return 0;
}

static bool grow_buckets(struct im_filters *filters)
{
    uint32_t count =
        filters->bucket_count ? filters->bucket_count * 2 : BUCKETS_MIN;
    uint32_t *buckets = malloc(count * sizeof *buckets);
    if (!buckets)
        return false;

    memset(buckets, 0xff, count * sizeof *buckets);
    for (uint32_t id = 1; id < filters->slot_count; id++) {
        struct im_filter *filter = filters->slots[id];
        if (!filter || !filter->refs)
            continue;
        uint32_t *bucket = &buckets[filter->hash & (count - 1)];
        filter->next = *bucket;
        *bucket = id;
    }
    free(filters->buckets);
    filters->buckets = buckets;
    filters->bucket_count = count;
    return true;
}

static uint32_t new_id(struct im_filters *filters)
{
    uint32_t id = filters->slot_count ? filters->slot_count : 1;

    if ((id & (id - 1)) == 0) {
        struct im_filter **slots =
            realloc(filters->slots, 2 * id * sizeof(struct im_filter *));
        if (!slots)
            return IM_NONE;
        memset(slots + id, 0, id * sizeof(struct im_filter *));
        if (id == 1)
            slots[0] = NULL;
        filters->slots = slots;
    }
    filters->slot_count = id + 1;
    return id;
}

enum im_status im_filter_take(struct im_filters *filters, struct im_span expr,
                              uint32_t *id)
{
    uint16_t ends[IM_FILTER_TAGS_MAX];

    if (expr.len == 1 && expr.at[0] == '*') {
        *id = IM_FILTER_ALL;
        return IM_OK;
    }
    uint8_t tag_count = split(expr, ends);
    if (tag_count == 0)
        return IM_BAD;

    uint64_t hash = im_hash(filters->seed, expr.at, expr.len);
    if (filters->live >= filters->bucket_count && !grow_buckets(filters))
        return IM_FULL;

    uint32_t *bucket = &filters->buckets[hash & (filters->bucket_count - 1)];
    for (uint32_t at = *bucket; at != IM_NONE; at = filters->slots[at]->next) {
        struct im_filter *filter = filters->slots[at];
        if (filter->hash == hash && filter->len == expr.len &&
            memcmp(filter->expr, expr.at, expr.len) == 0) {
            filter->refs++;
            *id = at;
            return IM_OK;
        }
    }

    struct im_filter *filter = malloc(sizeof *filter + expr.len);
    if (!filter)
        return IM_FULL;
    uint32_t at = filters->vacant;
    if (at != IM_NONE) {
        filters->vacant = filters->slots[at]->next;
        free(filters->slots[at]);
    } else {
        at = new_id(filters);
        if (at == IM_NONE) {
            free(filter);
            return IM_FULL;
        }
    }
    *filter = (struct im_filter){.hash = hash,
                                 .refs = 1,
                                 .next = *bucket,
                                 .len = (uint16_t)expr.len,
                                 .tag_count = tag_count};
    memcpy(filter->ends, ends, sizeof ends);
    memcpy(filter->expr, expr.at, expr.len);
    filters->slots[at] = filter;
    filters->live++;
    *bucket = at;
    *id = at;
    return IM_OK;
}

void im_filter_drop(struct im_filters *filters, uint32_t id)
{
    if (id == IM_FILTER_ALL)
        return;
    struct im_filter *filter = filters->slots[id];
    IM_ASSERT(filter && filter->refs > 0);
    if (--filter->refs)
        return;

    uint32_t *link =
        &filters->buckets[filter->hash & (filters->bucket_count - 1)];
    while (*link != id)
        link = &filters->slots[*link]->next;
    *link = filter->next;
    filter->next = filters->vacant;
    filters->vacant = id;
    filters->live--;
}

bool im_filter_match(struct im_filters *filters, uint32_t id,
                     struct im_span tag)
{
    if (id == IM_FILTER_ALL)
        return true;

    struct im_filter *filter = filters->slots[id];
    if (filter->round == filters->round)
        return filter->matched;

    size_t start = 0;
    filter->round = filters->round;
    filter->matched = false;
    for (uint32_t i = 0; i < filter->tag_count; start = filter->ends[i++] + 2u)
        if (filter->ends[i] - start == tag.len &&
            memcmp(filter->expr + start, tag.at, tag.len) == 0) {
            filter->matched = true;
            break;
        }
    return filter->matched;
}
