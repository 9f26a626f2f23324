/*
 * web.h - what arrives on a connection that speaks HTTP or WebSocket.
 */
#pragma once

#include "loop.h"

/* Bytes as they came from the kernel; they are changed. */
void im_web_take(struct im_loop *loop, uint32_t slot, struct im_span fresh);

/* Plain: tells Python of the message for which there was no room. False when
 * there is none still. */
bool im_web_retell(struct im_loop *loop, uint32_t slot);

/* Goes on behind the compressed message that was taken last, when nothing
 * before it waits. */
void im_web_take_rest(struct im_loop *loop, uint32_t slot);

/* Ends a connection that has said so or broken a rule, when everything before
 * that has had its effect. */
void im_web_settle(struct im_loop *loop, uint32_t slot);

/* Frees what it holds. */
void im_web_let_go(struct im_loop *loop, uint32_t slot);
