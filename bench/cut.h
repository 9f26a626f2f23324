/*
 * cut.h - where a reply ends and of what type it is, for each protocol that the
 * generator understands.
 *
 * Nothing is decoded beyond that: a type is one byte that the adapter gives a
 * meaning (load.h, enum load_kind), so a new peer that speaks one of these
 * protocols is data. Replies are cut in place; one whose end has not arrived is
 * looked at again from its beginning when there is more.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define CUT_MORE 0u        /* its end is not there yet */
#define CUT_BAD UINT32_MAX /* no such reply exists, or it is too large */

enum cut_kind {
    /* A big-endian u32 at `length_at`, to which `length_adds` is added for the
     * size of the whole; type: the byte at `type_at`, with -1 always 0. */
    CUT_LENGTH = 0,
    /* INFO, MSG, PING, PONG, -ERR; type: the second letter, N S I O E. +OK is
     * not there, for who asks for it measures something else. */
    CUT_NATS = 1,
    /* Values of any depth; type: the first byte, '>' of a push. */
    CUT_RESP3 = 2,
    /* MQTT 3.1.1; type: the packet type, the first byte's upper half. */
    CUT_MQTT = 3,
    /* HTTP 101 up to its empty line, then frames in one piece without mask;
     * type: the first byte ('H', 0x88 close, 0x89 ping), but of binary frames
     * with `type_at` >= 0 the byte there in the payload. */
    CUT_WEBSOCKET = 4,
    /* The same with any number of frames as of CUT_LENGTH in a binary message:
     * those are the replies, and so is the head of the message, 0x82. Their
     * lengths are below 2^24: they begin with 0, and no head does. */
    CUT_WEBSOCKET_MANY = 5
};

struct cut {
    uint32_t kind; /* enum cut_kind */
    uint32_t length_at;
    uint32_t length_adds;
    int32_t type_at;
    uint32_t max_bytes; /* of a whole reply; more is CUT_BAD */
};

/* The size of the reply that begins there, at most `len`, and its type; or
 * CUT_MORE or CUT_BAD, with no type. */
uint32_t cut_reply(const struct cut *cut, const uint8_t *at, size_t len,
                   uint8_t *type);
