/*
 * cursors.c - places in timelines, and the arithmetic of windows.
 *
 * A topic's cursors are a doubly linked list through one array: they come and
 * go with connections, and a commit walks all of its topic once.
 */
#include "cursors.h"

#include <stdlib.h>

void im_cursors_init(struct im_cursors *cursors)
{
    *cursors = (struct im_cursors){.vacant = IM_NONE, .changed = IM_NONE};
}

void im_cursors_free(struct im_cursors *cursors)
{
    for (uint32_t slot = 0; slot < cursors->count; slot++)
        free(cursors->slots[slot].ring);
    free(cursors->slots);
    im_cursors_init(cursors);
}

static uint32_t new_slot(struct im_cursors *cursors)
{
    uint32_t slot = cursors->vacant;
    if (slot != IM_NONE) {
        cursors->vacant = cursors->slots[slot].next;
        return slot;
    }
    if (cursors->count == cursors->room) {
        uint32_t room = cursors->room ? cursors->room * 2 : 64;
        struct im_cursor *slots = realloc(cursors->slots, room * sizeof *slots);
        if (!slots)
            return IM_NONE;
        cursors->slots = slots;
        cursors->room = room;
    }
    return cursors->count++;
}

static void give_slot(struct im_cursors *cursors, uint32_t slot)
{
    free(cursors->slots[slot].ring);
    cursors->slots[slot] = (struct im_cursor){.next = cursors->vacant};
    cursors->vacant = slot;
}

uint32_t im_cursor_open(struct im_cursors *cursors, struct im_topics *topics,
                        struct im_span name, const struct im_cursor *begin,
                        uint32_t *first)
{
    struct im_topic *topic = im_topic_hold(topics, name);
    if (!topic)
        return IM_NONE;
    uint32_t slot = new_slot(cursors);
    uint32_t sub =
        slot == IM_NONE ? IM_NONE : im_topic_attach(topics, topic, slot, first);
    if (sub == IM_NONE) {
        if (slot != IM_NONE)
            give_slot(cursors, slot);
        im_topic_drop(topics, topic);
        return IM_NONE;
    }

    struct im_cursor *cursor = &cursors->slots[slot];
    *cursor = *begin;
    cursor->topic = topic;
    cursor->sub = sub;
    cursor->sent = cursor->acked;
    cursor->ring = NULL;
    cursor->seen = 0;
    cursor->marks = 0; /* not live before the timeline was read */
    cursor->prev = cursor->next_changed = IM_NONE;
    cursor->next = topic->cursors;
    if (cursor->next == IM_NONE)
        im_topics_count(topics, topic->hash, 1);
    else
        cursors->slots[cursor->next].prev = slot;
    topic->cursors = slot;
    cursors->live++;
    return slot;
}

void im_cursor_close(struct im_cursors *cursors, struct im_topics *topics,
                     uint32_t slot, uint32_t *first)
{
    struct im_cursor *cursor = &cursors->slots[slot];
    struct im_topic *topic = cursor->topic;

    IM_ASSERT(!(cursor->marks & IM_CURSOR_CHANGED));
    if (cursor->prev != IM_NONE)
        cursors->slots[cursor->prev].next = cursor->next;
    else
        topic->cursors = cursor->next;
    if (cursor->next != IM_NONE)
        cursors->slots[cursor->next].prev = cursor->prev;
    if (topic->cursors == IM_NONE)
        im_topics_count(topics, topic->hash, UINT32_MAX);
    im_topic_detach(topics, cursor->sub, first);
    give_slot(cursors, slot);
    cursors->live--;
}

uint32_t im_cursor_find(const struct im_cursors *cursors,
                        const struct im_topics *topics, uint32_t number,
                        uint32_t first)
{
    for (uint32_t sub = first; sub != IM_NONE; sub = topics->subs[sub].next) {
        uint32_t at = topics->subs[sub].at;
        if (at & IM_SUB_APART &&
            cursors->slots[at & ~IM_SUB_APART].number == number)
            return at & ~IM_SUB_APART;
    }
    return IM_NONE;
}

bool im_cursor_offer(struct im_cursor *cursor, uint64_t seq, uint32_t count)
{
    uint64_t last = seq + count - 1;

    if (last <= cursor->sent)
        return false; /* the timeline was ahead of us */
    if (cursor->marks & IM_CURSOR_LIVE && seq == cursor->sent + 1 &&
        count <= im_cursor_room(cursor)) {
        cursor->seen = last;
        return true;
    }
    if (last > cursor->seen)
        cursor->seen = last;
    cursor->marks &= (uint8_t)~IM_CURSOR_LIVE;
    return false;
}

static void push_open(struct im_cursor *cursor, uint64_t seq)
{
    uint32_t at = (uint32_t)cursor->first + cursor->open++;

    cursor->ring[at % cursor->window] = seq;
}

/* From here on there are holes between acked and sent. Without memory they
 * count as open, until nothing is. */
static void make_sparse(struct im_cursor *cursor)
{
    if (!cursor->ring)
        cursor->ring = malloc(cursor->window * sizeof *cursor->ring);
    if (!cursor->ring)
        return;
    cursor->marks |= IM_CURSOR_SPARSE;
    cursor->first = cursor->open = 0;
    for (uint64_t seq = cursor->acked + 1; seq <= cursor->sent; seq++)
        push_open(cursor, seq);
}

void im_cursor_move(struct im_cursor *cursor, uint64_t seq, bool passed)
{
    if (seq <= cursor->sent)
        return;
    if (!cursor->window || (!passed && !im_cursor_open_count(cursor))) {
        cursor->acked = cursor->sent = seq;
        return;
    }
    if (!passed && !(cursor->marks & IM_CURSOR_SPARSE))
        make_sparse(cursor);
    else if (passed && cursor->marks & IM_CURSOR_SPARSE)
        for (uint64_t next = cursor->sent + 1; next <= seq; next++)
            push_open(cursor, next);
    cursor->sent = seq;
    if (!im_cursor_room(cursor))
        cursor->marks |= IM_CURSOR_FULL;
}

static void drop_open(struct im_cursor *cursor, uint64_t seq)
{
    while (cursor->open && cursor->ring[cursor->first] <= seq) {
        cursor->first = (uint16_t)((cursor->first + 1u) % cursor->window);
        cursor->open--;
    }
    if (!cursor->open) {
        cursor->acked = cursor->sent;
        cursor->marks &= (uint8_t)~IM_CURSOR_SPARSE;
    }
}

bool im_cursor_ack(struct im_cursor *cursor, uint64_t seq)
{
    if (seq > cursor->sent)
        return false;
    if (seq <= cursor->acked)
        return true;
    cursor->acked = seq;
    if (cursor->marks & IM_CURSOR_SPARSE)
        drop_open(cursor, seq);
    if (im_cursor_open_count(cursor) <= cursor->window / 2u)
        cursor->marks &= (uint8_t)~IM_CURSOR_FULL;
    return true;
}

void im_cursor_fed(struct im_cursor *cursor, uint64_t head)
{
    if (head > cursor->seen)
        cursor->seen = head;
    if (cursor->sent >= cursor->seen)
        cursor->marks |= IM_CURSOR_LIVE;
}
