/*
 * webstate.h - what a connection has besides while it speaks HTTP or WebSocket.
 *
 * One a slot, apart from the connections: a server without WebSocket never
 * touches that memory.
 */
#pragma once

#include "pool.h"
#include "utf8.h"
#include "websocket.h"

struct im_web {
    struct im_websocket in;
    struct im_msg *message; /* what has come of one that was cut, or of its
                               part: plain, and where it is compressed */
    struct im_msg *control; /* the same of a control frame */
    struct im_msg *rest;    /* raw bytes behind a compressed message */
    uint32_t told;          /* of this message, in parts, to Python */
    uint32_t out_left;      /* of a message that was begun, to be sent */
    uint8_t out_head;       /* bytes of its head that were sent, or all */
    struct im_utf8 text;
    uint16_t closing; /* ends with that, once all before it has its effect */
    bool is_polite;   /* ... which the peer has asked for */
    bool is_raw;      /* the backlog is as it came from the kernel */
    bool is_untold;   /* message waits for room in the event queue */
};
