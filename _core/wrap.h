/*
 * wrap.h - what leaves on a connection that speaks HTTP or WebSocket.
 */
#pragma once

#include "loop.h"

/* Writes what was gathered, as one message of WebSocket unless it is raw,
 * compressed where that pays; the
 * rest of one that was begun first. Gathers less where it takes less. Returns
 * how many bytes of it the kernel took. */
size_t im_wrap_write(struct im_loop *loop, uint32_t slot,
                     enum im_status *status);

/* Bytes that nothing wraps. */
void im_wrap_raw(struct im_loop *loop, uint32_t slot, struct im_span bytes);

/* A frame of a message on a plain connection, by its first byte, which may
 * begin, continue or end it; and control frames on any. */
void im_wrap_say(struct im_loop *loop, uint32_t slot, uint8_t first,
                 struct im_span message);
void im_wrap_ping(struct im_loop *loop, uint32_t slot);
void im_wrap_pong(struct im_loop *loop, uint32_t slot, struct im_span payload);

/* The last words: `frame`, which says `code`, and a close that says it again;
 * or a response to the request. With `is_slow` what was not begun is dropped
 * before. */
void im_wrap_close(struct im_loop *loop, uint32_t slot, uint16_t code,
                   struct im_span frame, bool is_slow);
