/*
 * deflate.h - permessage-deflate (RFC 7692), each message by itself.
 *
 * Both sides agree to keep no context, so no connection has a window: a thread
 * has one of these for all of them, 400 KB and the largest message, and only
 * where the setting is on.
 *
 *   Z1  a message is inflated to `most` bytes and one more, whatever it would
 *       come to; so a bomb costs what the largest message costs.
 *   Z2  every call begins afresh: nothing of one message is left for another.
 */
#pragma once

#include <sys/uio.h>

#include "base.h"

/* What is shrunk. Below, a message leaves in one packet either way: 570 bytes
 * saved would cost 7 us, and the write itself costs 4. Above, it is a picture
 * or a file, which is compressed already, and would hold the thread for longer
 * than the 0.3 ms of these. */
#define IM_DEFLATE_MIN 1024u
#define IM_DEFLATE_MAX (64u << 10)

struct im_deflate;

/* Whether this build has zlib. */
bool im_deflate_is_built(void);

/* IM_BAD without zlib, IM_FULL without memory. `most` bounds every message that
 * will be inflated. */
enum im_status im_deflate_new(uint32_t most, struct im_deflate **made);
void im_deflate_free(struct im_deflate *deflate);

/* Bytes that a message of `most` may have while it is compressed: compressors
 * with little memory make it larger by an eighth. */
static inline uint32_t im_deflate_bound(uint32_t most)
{
    return most + most / 8 + 64;
}

/* Inflates the payload of a message. IM_FULL when it has more than `most`
 * bytes, IM_BAD when it is none. `out` is valid until the next call. */
enum im_status im_deflate_expand(struct im_deflate *deflate, struct im_span in,
                                 uint32_t most, struct im_span *out);

/* Deflates parts of up to IM_DEFLATE_MAX bytes together. False when that would
 * not be fewer. `out` is valid until the next call. */
bool im_deflate_shrink(struct im_deflate *deflate, const struct iovec *parts,
                       uint32_t count, struct im_span *out);
