/*
 * command.h - what Python asked this thread to do.
 */
#pragma once

#include "loop.h"

/* Applies what is queued, in order; of very much, a part each turn. */
void im_command_take(struct im_loop *loop);
