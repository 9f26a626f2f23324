/*
 * command.h - what Python asked this thread to do.
 */
#pragma once

#include "loop.h"

/* Applies all queued commands, in order. */
void im_command_take(struct im_loop *loop);
