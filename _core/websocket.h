/*
 * websocket.h - the frames of RFC 6455 as a client sends them, and as we do.
 *
 * Pure: bytes in, bytes out, wherever they were cut. A message may come in
 * fragments with control frames in between; what is in them is the caller's
 * business.
 *
 *   P1  no byte past the span is read, and no payload before its head is right.
 *   P2  what is not allowed is told at the first byte that shows it.
 */
#pragma once

#include "base.h"

enum im_websocket_opcode {
    IM_WS_CONTINUATION = 0,
    IM_WS_TEXT = 1,
    IM_WS_BINARY = 2,
    IM_WS_CLOSE = 8,
    IM_WS_PING = 9,
    IM_WS_PONG = 10
};

/* Beside the opcode in the first byte of a frame: the last of its message; and
 * of the first, that the message is compressed (RSV1, RFC 7692). */
#define IM_WS_FIN 0x80u
#define IM_WS_DEFLATED 0x40u

#define IM_WS_CONTROL_MAX 125u /* payload of a control frame */
#define IM_WS_HEAD_MAX 14u     /* of a client: 2, 8 of length, 4 of mask */

/* What is being received. All zero at the beginning, but may_deflate. */
struct im_websocket {
    uint64_t left; /* payload of this frame that has not come */
    uint8_t key[4];
    uint8_t opcode;   /* of this frame; of a continuation that of its message */
    uint8_t message;  /* opcode of the message that is unfinished, or 0 */
    bool is_inside;   /* behind a head, before the end of its payload */
    bool is_last;     /* this frame ends its message */
    bool may_deflate; /* compressed messages were agreed upon */
    bool is_deflated; /* this message, or the last that was begun, is one */
    uint8_t head_len; /* bytes of a head that was cut */
    uint8_t head[IM_WS_HEAD_MAX - 1];
};

static inline bool im_websocket_is_control(uint8_t opcode)
{
    return opcode >= IM_WS_CLOSE;
}

/* Takes the head of the next frame off `in`. IM_OK when it is whole and
 * allowed: is_inside then, also for an empty payload. IM_MORE when `in` ended
 * within it, IM_BAD for what RFC 6455 forbids. */
enum im_status im_websocket_head(struct im_websocket *ws, struct im_span *in);

/* Takes what there is of the payload off `in` and puts it, unmasked, to `to`,
 * which may be in front of it in the same bytes. At the end of the payload
 * is_inside ends. Returns how many bytes those were. */
size_t im_websocket_take(struct im_websocket *ws, struct im_span *in,
                         uint8_t *to);

/* The head of a frame of ours, without mask, from its first byte; its length,
 * up to 10. */
size_t im_websocket_write(uint8_t *to, uint8_t first, uint64_t len);

/* Whether a peer may send that close code (RFC 6455, 7.4). */
bool im_websocket_may_close(uint16_t code);
