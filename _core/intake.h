/*
 * intake.h - what arrives on a connection, and what becomes of it.
 */
#pragma once

#include "dispatch.h"
#include "loop.h"

/* The socket is readable: one read, and every whole frame in it. */
void im_intake_read(struct im_loop *loop, uint32_t slot);

/* Frames as they came behind each other, from wherever they were unwrapped. */
void im_intake_take(struct im_loop *loop, uint32_t slot, struct im_span fresh);

/* Keeps bytes for later: a backlog. IM_GONE without memory. */
enum im_fate im_intake_keep(struct im_loop *loop, uint32_t slot,
                            struct im_span rest);

/* What a connection has kept and what came behind it, in one message; it keeps
 * nothing then. NULL, and it is closing, without memory. */
struct im_msg *im_intake_join(struct im_loop *loop, uint32_t slot,
                              struct im_span fresh);

/* Goes on with what was left unread while the connection paused. */
void im_intake_resume(struct im_loop *loop, uint32_t slot);
