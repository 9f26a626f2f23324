/*
 * fanout.h - one message to everybody who subscribed.
 */
#pragma once

#include "loop.h"

/* Sends MESSAGE frames to the subscribers of their topic, on this thread and
 * the others, and drops the caller's reference. `message` has what is the same
 * in all frames of `msg`; `topic` is their topic here, or NULL when this thread
 * has none; `skip` a slot that gets nothing, or IM_NONE. Fills in what is the
 * server's. */
void im_fanout_publish(struct im_loop *loop, struct im_msg *msg,
                       struct im_topic *topic, const struct im_message *message,
                       uint64_t hash, uint32_t skip);

/* Delivers here, and only here, what another thread published and lent to this
 * one, or what the store has kept; drops the caller's reference. */
void im_fanout_relayed(struct im_loop *loop, struct im_msg *msg, uint32_t skip);

/* Sends `msg` to every active connection of this thread; drops the caller's
 * reference. */
void im_fanout_broadcast(struct im_loop *loop, struct im_msg *msg);
