/*
 * cursors.h - durable subscriptions of a thread: how far each has got.
 *
 * A cursor is two places in a topic's timeline, what was sent and what was
 * acknowledged. It is live while everything committed has been sent to it; then
 * the next message is one comparison away. One that may not be sent more is
 * behind: from there on it costs nothing, and the timeline is read for it when
 * there is room again. Nothing is queued here.
 *
 *   K1  acked <= sent, and at most `window` messages between them are open:
 * sent and not acknowledged. K2  what is sent is exactly the messages behind
 * each other that pass the filter: a message that does not follow `sent` puts
 * the cursor behind. K3  live means sent == seen: no commit that this thread
 * knows of is missing.
 *
 * A message that the filter keeps back counts as sent, and as acknowledged when
 * nothing is open. As long as none has been kept back, what is open is all from
 * acked to sent; from then on, until nothing is open, a ring has their seqs.
 */
#pragma once

#include "topics.h"

enum im_cursor_mark {
    IM_CURSOR_LIVE = 1,
    IM_CURSOR_ASKED = 2,    /* the timeline is being read for it */
    IM_CURSOR_OWED = 4,     /* Python should be asked, and could not be */
    IM_CURSOR_CHANGED = 8,  /* on the list of those to report */
    IM_CURSOR_FORWARD = 16, /* old acknowledgements mean something (NACK) */
    IM_CURSOR_SPARSE = 32,  /* the ring has what is open */
    IM_CURSOR_FULL = 64     /* its window was full, and is not half empty yet */
};

struct im_cursor {
    struct im_topic *topic;
    uint64_t acked;
    uint64_t sent;
    uint64_t seen;  /* the newest commit this thread knows of */
    uint64_t *ring; /* room for a window, once it was needed */
    uint32_t number;
    uint32_t conn;   /* slot */
    uint32_t filter; /* its tag expression */
    uint32_t sub;
    uint32_t next; /* of the topic; of a vacant one the next vacant one */
    uint32_t prev;
    uint32_t next_changed; /* of the list of those to report */
    uint32_t prev_changed;
    uint16_t window; /* 0: nothing is acknowledged */
    uint16_t first;  /* place in the ring of the oldest open one */
    uint16_t open;   /* how many are in the ring */
    uint8_t marks;
};

struct im_cursors {
    struct im_cursor *slots;
    uint32_t count; /* slots ever used */
    uint32_t room;
    uint32_t vacant;
    uint32_t live;
    uint32_t changed; /* first of those to report */
};

void im_cursors_init(struct im_cursors *cursors);
void im_cursors_free(struct im_cursors *cursors);

/* Begins a subscription behind `acked`, in front of the connection's list
 * `*first`. IM_NONE without memory. */
uint32_t im_cursor_open(struct im_cursors *cursors, struct im_topics *topics,
                        struct im_span name, const struct im_cursor *begin,
                        uint32_t *first);

/* Ends it; its filter is the caller's. It must not be CHANGED. */
void im_cursor_close(struct im_cursors *cursors, struct im_topics *topics,
                     uint32_t cursor, uint32_t *first);

/* The connection's cursor with that number, or IM_NONE. */
uint32_t im_cursor_find(const struct im_cursors *cursors,
                        const struct im_topics *topics, uint32_t number,
                        uint32_t first);

/* How many messages it was sent and has not acknowledged. */
static inline uint64_t im_cursor_open_count(const struct im_cursor *cursor)
{
    return cursor->marks & IM_CURSOR_SPARSE ? cursor->open
                                            : cursor->sent - cursor->acked;
}

/* How many more messages it may be sent; a lot without a window. */
static inline uint64_t im_cursor_room(const struct im_cursor *cursor)
{
    uint64_t open = im_cursor_open_count(cursor);
    return !cursor->window          ? UINT32_MAX
           : open >= cursor->window ? 0
                                    : cursor->window - open;
}

/* Whether to read for it: until the window is full, and then again when half of
 * it is free. So who gathers up to a window before an acknowledgement gets on,
 * and nobody is read for message by message. */
static inline bool im_cursor_may_ask(const struct im_cursor *cursor)
{
    return !(cursor->marks &
             (IM_CURSOR_LIVE | IM_CURSOR_ASKED | IM_CURSOR_FULL)) &&
           im_cursor_room(cursor);
}

/* A commit of `count` messages from `seq` on has come to this thread. True when
 * the cursor can be sent all of them next; otherwise it knows of them. */
bool im_cursor_offer(struct im_cursor *cursor, uint64_t seq, uint32_t count);

/* It has been sent everything up to `seq`; or, when not `passed`, all of that
 * was kept back. */
void im_cursor_move(struct im_cursor *cursor, uint64_t seq, bool passed);

/* Acknowledges everything up to `seq`. False when that was never sent. */
bool im_cursor_ack(struct im_cursor *cursor, uint64_t seq);

/* The timeline has nothing more than `head`: live, if that was all. */
void im_cursor_fed(struct im_cursor *cursor, uint64_t head);
