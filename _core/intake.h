/*
 * intake.h - what arrives on a connection, and what becomes of it.
 */
#pragma once

#include "loop.h"

/* The socket is readable: one read, and every whole frame in it. */
void im_intake_read(struct im_loop *loop, uint32_t slot);

/* Goes on with what was left unread while the connection paused. */
void im_intake_resume(struct im_loop *loop, uint32_t slot);
