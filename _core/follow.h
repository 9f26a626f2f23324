/*
 * follow.h - durable subscriptions at work: live, fed, acknowledged, reported.
 */
#pragma once

#include "loop.h"

/* Begins one; `filter` is held by the caller and taken over. IM_FULL without
 * memory: then it is not. */
enum im_status im_follow_begin(struct im_loop *loop, uint32_t slot,
                               const struct im_begin *begin,
                               struct im_span topic, uint32_t filter);

/* Ends the one behind a subscription that stands apart; Python hears how far
 * it had got. */
void im_follow_end(struct im_loop *loop, uint32_t slot, uint32_t sub);

/* The connection's cursor on a topic, or NULL. Valid until one begins. */
struct im_cursor *im_follow_find(const struct im_loop *loop, uint32_t slot,
                                 struct im_span topic);

/* A message has come to a topic with cursors: puts it where it is next, and
 * returns how many references that were. */
uint32_t im_follow_deliver(struct im_loop *loop, const struct im_topic *topic,
                           struct im_msg *msg, struct im_span tag,
                           uint32_t skip);

/* Its acked or sent has moved. */
void im_follow_moved(struct im_loop *loop, struct im_cursor *cursor);

/* The peer has read what it was owed: who waited for that goes on. */
void im_follow_again(struct im_loop *loop, uint32_t slot);

/* Tells Python what has changed, twice a second. */
void im_follow_report(struct im_loop *loop);

/* Commands, by the number of the cursor. */
void im_follow_feed(struct im_loop *loop, uint32_t slot, uint32_t number,
                    struct im_span bytes);
void im_follow_redeliver(struct im_loop *loop, uint32_t slot, uint32_t number,
                         uint32_t silence_ms, struct im_span frames);
void im_follow_advance(struct im_loop *loop, uint32_t slot, uint32_t number,
                       struct im_span bytes);
