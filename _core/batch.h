/*
 * batch.h - one group commit of the store: many frames in, blobs and their
 * index out.
 *
 *     add, add, ...    frames of any topics, in the order of their acceptance
 *     topic, topic...  which topics those are: the caller looks up their heads
 *     seal             seq and time are filled in, blobs are laid out
 *     write            blob by blob, into memory of the caller
 *     clear            for the next commit; the receipts stay
 *
 *   B1  the messages of a topic get head + 1, head + 2, ... in the order in
 *       which they were added; no number is left out, none given twice.
 *   B2  a blob holds whole frames, those of a topic side by side and in their
 *       order; more than IM_BLOB_MAX bytes only when it is a single frame.
 *   B3  a frame is kept as it came, but for seq and time, DURABLE set and
 *       RETRY cleared.
 *   B4  a frame with RETRY whose publish is known is not kept again: it gets
 *       the seq and time of the first, or seq 0 when its content differs.
 */
#pragma once

#include "frame.h"
#include "receipts.h"

#define IM_BLOB_MAX (256u * 1024u)
#define IM_BATCH_MAX (64u * 1024u * 1024u) /* bytes of one batch */

enum im_batch_fate {
    IM_KEPT = 0,
    IM_REPEATED = 1, /* known: answered with the first receipt */
    IM_CONFLICT = 2  /* its id is known for other content */
};

struct im_batch_frame {
    uint64_t device; /* im_receipt_device() of the publisher */
    struct im_receipt_key key;
    uint32_t at; /* in `bytes` */
    uint32_t size;
    uint32_t topic; /* index of a batch_topic */
    uint32_t fate;
};

struct im_batch_topic {
    uint64_t hash;
    uint64_t seq; /* of the next message; before seal, unknown */
    uint32_t name_at;
    uint32_t frames; /* kept ones; while sealing, where the next one goes */
    uint8_t name_len;
};

/* What one topic has in one blob. */
struct im_batch_part {
    uint64_t first_seq;
    uint64_t checksum;
    uint32_t topic;
    uint32_t blob;
    uint32_t offset;
    uint32_t len;
    uint32_t count;
};

struct im_batch_blob {
    uint32_t first; /* in `order` */
    uint32_t count;
    uint32_t first_part;
    uint32_t len;
};

struct im_batch {
    uint64_t seed;
    struct im_receipts receipts;
    uint8_t *bytes;
    uint32_t len, bytes_max;
    struct im_batch_frame *frames;
    uint32_t frame_count, frame_max;
    struct im_batch_topic *topics;
    uint32_t topic_count, topic_max;
    uint32_t *slots; /* hash table of topics */
    uint32_t slot_mask;
    uint32_t *order; /* kept frames by topic */
    uint32_t order_count, order_max;
    struct im_batch_blob *blobs;
    uint32_t blob_count, blob_max;
    struct im_batch_part *parts;
    uint32_t part_count, part_max;
};

/* `seed` is the store's secret: what was hashed with it is found after a
 * restart. IM_FULL without memory. */
enum im_status im_batch_init(struct im_batch *batch, uint64_t seed,
                             uint32_t receipts_max, uint64_t window_ms);
void im_batch_free(struct im_batch *batch);
void im_batch_clear(struct im_batch *batch);

/* Takes a copy of whole MESSAGE frames of one device. IM_BAD, and none is
 * taken, when they are not that; IM_FULL when the batch or memory is. */
enum im_status im_batch_add(struct im_batch *batch, struct im_span frames,
                            uint64_t device);

struct im_span im_batch_topic(const struct im_batch *batch, uint32_t topic);

/* `heads` has the last seq of each topic, 0 where there is none. IM_FULL
 * without memory; then the batch can only be cleared. */
enum im_status im_batch_seal(struct im_batch *batch, const uint64_t *heads,
                             uint64_t time_ms, uint64_t clock_ms);

/* Fills in a blob of `blobs[number].len` bytes, and beside it the devices of
 * its frames, 8 bytes each, big-endian; completes the checksums of its parts.
 * Returns the checksum of the blob. */
uint64_t im_batch_write(struct im_batch *batch, uint32_t number,
                        uint8_t *frames, uint8_t *devices);

/* After a restart: makes the frames of a blob known as publishes, as
 * im_batch_write() wrote them. IM_BAD when they are not that. */
enum im_status im_batch_recall(struct im_batch *batch, struct im_span frames,
                               struct im_span devices, uint64_t clock_ms);

/* How many whole MESSAGE frames of `topic` with consecutive seqs from `seq`
 * on these bytes are, nothing else among them; 0 when they are not. */
uint32_t im_batch_count(struct im_span frames, struct im_span topic,
                        uint64_t seq);

/* The checksum of blobs and parts: finds damage, proves nothing against an
 * adversary. */
static inline uint64_t im_batch_checksum(const uint8_t *at, size_t len)
{
    return im_hash(0x696d736572766572u, at, len);
}
