/*
 * utf8.c - one state of three bytes; runs of ASCII eight at a time.
 */
#include "utf8.h"

/* The first byte of a character of more than one: what has to follow. The
 * second byte alone tells overlong forms, surrogates and numbers too large. */
static bool begin(struct im_utf8 *state, uint8_t byte)
{
    *state = (struct im_utf8){.low = 0x80, .high = 0xbf};
    if (byte >= 0xc2 && byte <= 0xdf) {
        state->wanted = 1;
    } else if (byte >= 0xe0 && byte <= 0xef) {
        state->wanted = 2;
        if (byte == 0xe0)
            state->low = 0xa0;
        if (byte == 0xed)
            state->high = 0x9f;
    } else if (byte >= 0xf0 && byte <= 0xf4) {
        state->wanted = 3;
        if (byte == 0xf0)
            state->low = 0x90;
        if (byte == 0xf4)
            state->high = 0x8f;
    } else {
        return false;
    }
    return true;
}

bool im_utf8_feed(struct im_utf8 *state, struct im_span piece)
{
    const uint8_t *at = piece.at, *end = piece.at + piece.len;

    while (at < end) {
        uint64_t eight;
        if (state->wanted) {
            if (*at < state->low || *at > state->high)
                return false;
            state->wanted--;
            state->low = 0x80;
            state->high = 0xbf;
            at++;
        } else if (end - at >= 8 &&
                   (memcpy(&eight, at, 8), !(eight & 0x8080808080808080u))) {
            at += 8;
        } else if (*at < 0x80) {
            at++;
        } else if (!begin(state, *at++)) {
            return false;
        }
    }
    return true;
}
