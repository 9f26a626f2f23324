/*
 * dispatch.h - a frame of a client, or a run of them, and what it came to.
 */
#pragma once

#include "loop.h"

enum im_fate {
    IM_TAKEN, /* go on behind it */
    IM_LEFT,  /* it waits, and all behind it */
    IM_GONE   /* the connection is closing */
};

/* Until this returns nobody is closed and no slot is freed, by whatever it
 * entails: who has to go is doomed (C3). */

/* Judges one whole frame, and takes those behind it that are judged alike: the
 * frame is extended over them. `owned` is the message that holds it, when it
 * was collected in one, or NULL; the caller keeps its reference. */
enum im_fate im_dispatch(struct im_loop *loop, uint32_t slot,
                         struct im_frame *frame, struct im_msg *owned);

/* Tells Python, and pauses until it answers. IM_LEFT when the event queue is
 * full: whatever this is about waits then, and is told again. */
enum im_fate im_dispatch_tell(struct im_loop *loop, uint32_t slot,
                              struct im_record record,
                              const struct im_span *parts, size_t count,
                              enum im_pause pause);

/* Closes a connection whose bytes are no frames, or too many. */
enum im_fate im_dispatch_close(struct im_loop *loop, uint32_t slot,
                               uint16_t code);
