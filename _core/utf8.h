/*
 * utf8.h - whether bytes that come in pieces are UTF-8 (RFC 3629).
 *
 * Strict: no overlong forms, no surrogates, nothing above U+10FFFF, and told at
 * the first byte that cannot be right.
 */
#pragma once

#include "base.h"

/* All zero at the beginning of a text. */
struct im_utf8 {
    uint8_t wanted; /* bytes that the character still needs */
    uint8_t low;    /* what the next of them is, at least */
    uint8_t high;   /* ... at most */
};

/* False from the first wrong byte on; the state means nothing then. */
bool im_utf8_feed(struct im_utf8 *state, struct im_span piece);

/* Whether the text may end here. */
static inline bool im_utf8_is_whole(const struct im_utf8 *state)
{
    return state->wanted == 0;
}
