/*
 * upgrade.h - from a request over HTTP to a WebSocket on the same port.
 */
#pragma once

#include "dispatch.h"

/* Whether a connection that begins so speaks HTTP: a frame begins with a zero,
 * a method with a letter. */
static inline bool im_upgrade_begins(struct im_span first)
{
    return first.len && first.at[0] >= 'A' && first.at[0] <= 'Z';
}

/* Collects the head of the request and hands it to Python; what came behind it
 * waits as it is. */
void im_upgrade_take(struct im_loop *loop, uint32_t slot, struct im_span fresh);

/* Python has accepted: sends the response, and the connection is a `transport`
 * of WebSocket from the next byte on; with `deflates`, of messages that may be
 * compressed. */
void im_upgrade_accept(struct im_loop *loop, uint32_t slot, uint8_t transport,
                       bool deflates, struct im_span response);
