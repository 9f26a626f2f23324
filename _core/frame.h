/*
 * frame.h - the wire layout, version 1, and its pure parser.
 *
 * docs/protocol.md is the reference; integers are big-endian. No state, no
 * I/O, no allocation: bytes in, a view of the same bytes out.
 */
#pragma once

#include "base.h"

#define IM_HEAD_LEN 8u     /* length, type, flags, request */
#define IM_MESSAGE_LEN 36u /* the head and the fixed part of a MESSAGE */
#define IM_FRAME_MAX ((1u << 24) - 1u)
#define IM_TOPIC_MAX 255u
#define IM_TAG_MAX 64u
#define IM_USER_MAX 64u

enum im_frame_type {
    IM_HELLO = 1,
    IM_WELCOME = 2,
    IM_SUBSCRIBE = 3,
    IM_SUBSCRIBED = 4,
    IM_UNSUBSCRIBE = 5,
    IM_UNSUBSCRIBED = 6,
    IM_MESSAGE = 7,
    IM_RECEIPT = 8,
    IM_ACK = 9,
    IM_NACK = 10,
    IM_PING = 11,
    IM_PONG = 12,
    IM_CALL = 13,
    IM_RESULT = 14,
    IM_ERROR = 15,
    IM_GOAWAY = 16
};

enum im_flag {
    IM_DURABLE = 1,
    IM_RETRY = 2,
    IM_REDELIVERED = 4,
    IM_NO_ECHO = 8,
    IM_HISTORY = 16,
    IM_CODEC_MASK = 0xc0
};

#define IM_CODEC_SHIFT 6

/* One whole frame, in place; valid as long as the bytes it was peeked from. */
struct im_frame {
    const uint8_t *at;
    uint32_t size;  /* head included */
    uint32_t ahead; /* bytes behind it, in the span it was peeked from */
    uint16_t count; /* 1, or more: im_frame_extend */
    uint16_t request;
    uint8_t type;
    uint8_t flags;
};

/* The parts of a MESSAGE, in place. */
struct im_message {
    struct im_span topic;
    struct im_span tag;
    struct im_span sender;
    uint64_t id;
};

/* The frame that `in` begins with. IM_MORE while it is unfinished: out->size is
 * then its whole size, or 0 before the length is known. IM_BAD when the length
 * is none of this protocol: too short for a head, or 2^24 and more, as the
 * letters of another protocol read. IM_FULL when the frame is larger than
 * `frame_max`. The length is judged as soon as its four bytes are here. */
enum im_status im_frame_peek(struct im_span in, uint32_t frame_max,
                             struct im_frame *out);

/* The parts of a MESSAGE. IM_BAD when they do not fit into the frame or break
 * the bounds of topic, tag and sender. */
enum im_status im_message_peek(const struct im_frame *frame,
                               struct im_message *out);

/* Extends a judged MESSAGE over those behind it that differ from it in nothing
 * but id and body: what holds of its flags, topic, tag and sender holds of
 * theirs. `names_len` is the length of the three together. Not beyond
 * `len_max` bytes. */
void im_frame_extend(struct im_frame *frame, uint32_t names_len,
                     uint32_t len_max);

/* What a client may send: known flags, nothing in the fields that only the
 * server fills in. IM_BAD for anything else. */
enum im_status im_frame_check_client(const struct im_frame *frame);

/* The topic of an ACK or a NACK; IM_BAD when there is none. */
enum im_status im_ack_peek(const struct im_frame *frame, struct im_span *topic);
