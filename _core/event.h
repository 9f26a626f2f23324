/*
 * event.h - the two vocabularies of the border: what a thread tells Python,
 * and what Python tells a thread. Each is a record of a queue; conn names the
 * connection, a, b and the bytes are told below.
 */
#pragma once

#include "base.h"

enum im_event {
    /* a = flags, b = request, bytes = u8 n, n bytes of address, body. */
    IM_EVENT_HELLO = 1,
    /* a = type | flags << 8, b = request, bytes = body. */
    IM_EVENT_FRAME = 2,
    /* The first MESSAGE on a topic: bytes = topic. The frame waits. */
    IM_EVENT_ASK = 3,
    /* A MESSAGE on a topic with a hook: bytes = the frame. */
    IM_EVENT_MESSAGE = 4,
    /* a = error code, b = request, bytes = u64 id, topic. */
    IM_EVENT_REFUSED = 5,
    /* The last of every connection that had a HELLO: a = close code, 0 when
     * the peer went by itself. */
    IM_EVENT_CLOSED = 6,
    /* Something is not kept: a = error code, bytes = u8 n, n bytes of topic,
     * u64 ids. Nobody is paused. */
    IM_EVENT_UNKEPT = 7,
    /* What Python published is: conn = its token, bytes = u64 seq, u64 time; or
     * is not: a = error code. */
    IM_EVENT_KEPT = 8,
    /* A cursor is behind and may be sent more: b = its number, bytes = u64
     * acked, u64 sent, u64 room. Answered by IM_COMMAND_FEED. */
    IM_EVENT_WANT = 9,
    /* What cursors have changed: bytes = struct im_report ... */
    IM_EVENT_CURSORS = 10,
    /* A NACK, or an old ACK where it means something: a = type, b = number,
     * bytes = u64 seq. The connection is paused. */
    IM_EVENT_POSITION = 11,
    /* The answer to IM_COMMAND_REDELIVER: a = 1 when it was sent, 0 when the
     * peer is silent or does not read; b = number. */
    IM_EVENT_REDELIVERED = 12,
    /* A request for WebSocket: bytes = u8 n, n bytes of address, its head. The
     * connection is paused. IM_EVENT_CLOSED will follow. */
    IM_EVENT_UPGRADE = 13,
    /* A message of a plain WebSocket: a = 1 text, 2 binary; b = 0 when it is a
     * part, and more of it follows. A call. */
    IM_EVENT_WEB = 14
};

/* Publications of Python with a token that wait for their KEPT: at most so
 * many. None of those is ever lost. */
#define IM_KEEPING_MAX 65536u

/* In native order, as all numbers of the border are. */
struct im_report {
    uint32_t number;
    uint32_t has_ended; /* the last of this subscription */
    uint64_t acked;
    uint64_t sent;
};

/* What an answer ends: the pause of the connection, or one call of it. */
enum im_ends { IM_ENDS_NOTHING = 0, IM_ENDS_PAUSE = 1, IM_ENDS_CALL = 2 };

enum im_command {
    IM_COMMAND_LISTEN = 1, /* b = socket */
    IM_COMMAND_UNLISTEN = 2,
    IM_COMMAND_WELCOME = 3,     /* a = length of user, b = of device; user,
                                   device, frame */
    IM_COMMAND_SEND = 4,        /* a = ends; frame */
    IM_COMMAND_DECIDE = 5,      /* a = code, b = verdict; topic */
    IM_COMMAND_SUBSCRIBE = 6,   /* a = ends, b = topic | tags << 16 (lengths);
                                   topic, tags, frame */
    IM_COMMAND_UNSUBSCRIBE = 7, /* a = ends, b = length; topic, frame */
    IM_COMMAND_PUBLISH = 8,     /* a = ends; frame; without a connection b = 1:
                                   u64 token, frame */
    IM_COMMAND_BROADCAST = 9,   /* frame */
    IM_COMMAND_REVOKE = 10,     /* topic, or nothing for all */
    IM_COMMAND_DRAIN = 11,      /* frame */
    IM_COMMAND_CLOSE = 12,      /* a = code; frame, or nothing */
    IM_COMMAND_FOLLOW = 15,     /* as SUBSCRIBE; struct im_begin first */
    IM_COMMAND_FEED = 16,       /* b = number; u64 last, u64 head, frames */
    IM_COMMAND_REDELIVER = 17,  /* a = ms of silence that are too long, b =
                                   number; frames */
    IM_COMMAND_ADVANCE = 18,    /* b = number; u64 seq */
    IM_COMMAND_UPGRADE = 20,    /* a = transport, b = 1 with compression;
                                   response */
    IM_COMMAND_WEB = 21,        /* a = ends, b = opcode and IM_WEB_MORE;
                                   message; nothing is said by nothing */
    IM_COMMAND_ADOPT = 13,      /* b = socket; also between threads */
    /* Between threads. */
    IM_COMMAND_RELAY = 14, /* conn = address of a lent message */
    IM_COMMAND_COMMIT = 19 /* conn = address of a message, a = 0 or error code;
                              struct im_origin for the thread it belongs to */
};

/* Beside the opcode: the message goes on in the next frame. */
#define IM_WEB_MORE 0x100u

/* Where a durable subscription begins. */
struct im_begin {
    uint64_t cursor;
    uint32_t number;
    uint32_t window;
};

/* The close codes the core uses by itself; docs/protocol.md lists all. */
enum im_close_code {
    IM_CLOSE_PEER = 0,
    IM_CLOSE_NORMAL = 1000, /* those below 4000 are of WebSocket */
    IM_CLOSE_WEB_PROTOCOL = 1002,
    IM_CLOSE_WEB_KIND = 1003,
    IM_CLOSE_WEB_TEXT = 1007,
    IM_CLOSE_WEB_LARGE = 1009,
    IM_CLOSE_UNAUTHORIZED = 4001,
    IM_CLOSE_BAD_PROTOCOL = 4004,
    IM_CLOSE_TOO_LARGE = 4013,
    IM_CLOSE_HEARTBEAT = 4108,
    IM_CLOSE_SLOW = 4109,
    IM_CLOSE_OVERLOADED = 4153,
    IM_CLOSE_HANDSHAKE = 4160,
    IM_CLOSE_RESTART = 4201
};

/* The errors the core refuses frames with. */
enum im_error_code {
    IM_ERROR_BAD_FRAME = 400,
    IM_ERROR_FORBIDDEN = 403,
    IM_ERROR_NOT_FOUND = 404,
    IM_ERROR_CONFLICT = 409,
    IM_ERROR_OVERLOADED = 503,
    IM_ERROR_NOT_DURABLE = 507
};
