/*
 * batch.c - the per-message part of a commit.
 *
 * The workload: a thousand frames of 150 bytes for hundreds of topics, some
 * hundred times a second, on the store's writer thread without the GIL. A frame
 * is copied in once, hashed to its topic, patched where it lies, and copied out
 * once, to its place in a blob. Sorting is counting: the order of topics does
 * not matter, only that each stands together. Memory grows to the largest
 * batch and stays.
 *
 * Not here: statements, files, waiting (imserver/timeline_sqlite_writer.py).
 */
#include "batch.h"

#include <stdlib.h>

/* Far enough to hide a miss behind the work on the frames before it. */
#define FETCH_AHEAD 8u

enum im_status im_batch_init(struct im_batch *batch, uint64_t seed,
                             uint32_t receipts_max, uint64_t window_ms)
{
    memset(batch, 0, sizeof *batch);
    batch->seed = seed;
    return im_receipts_init(&batch->receipts, receipts_max, window_ms);
}

void im_batch_free(struct im_batch *batch)
{
    im_receipts_free(&batch->receipts);
    free(batch->bytes);
    free(batch->frames);
    free(batch->topics);
    free(batch->slots);
    free(batch->order);
    free(batch->blobs);
    free(batch->parts);
    memset(batch, 0, sizeof *batch);
}

void im_batch_clear(struct im_batch *batch)
{
    batch->len = 0;
    batch->frame_count = 0;
    batch->topic_count = 0;
    batch->order_count = 0;
    batch->blob_count = 0;
    batch->part_count = 0;
    if (batch->slots)
        memset(batch->slots, 0xff,
               (batch->slot_mask + 1) * sizeof *batch->slots);
}

/* Room for `wanted` items in an array that doubles; false without memory. */
static bool make_room(void **items, uint32_t *max, uint32_t wanted, size_t size)
{
    if (wanted <= *max)
        return true;
    uint32_t more = *max ? *max : 64;
    while (more < wanted)
        more *= 2;
    void *moved = realloc(*items, more * size);
    if (!moved)
        return false;
    *items = moved;
    *max = more;
    return true;
}

#define ROOM(batch, items, max, wanted)                                        \
    make_room((void **)&(batch)->items, &(batch)->max, (wanted),               \
              sizeof *(batch)->items)

static uint32_t slot_of(const struct im_batch *batch, struct im_span name,
                        uint64_t hash)
{
    uint32_t slot = (uint32_t)hash & batch->slot_mask;
    for (;;) {
        uint32_t number = batch->slots[slot];
        if (number == IM_NONE)
            return slot;
        const struct im_batch_topic *topic = &batch->topics[number];
        if (topic->hash == hash && topic->name_len == name.len &&
            !memcmp(batch->bytes + topic->name_at, name.at, name.len))
            return slot;
        slot = (slot + 1) & batch->slot_mask;
    }
}

/* At most half of the slots are taken. */
static bool room_for_topic(struct im_batch *batch)
{
    if (!ROOM(batch, topics, topic_max, batch->topic_count + 1))
        return false;
    uint32_t slot_count = 2 * batch->topic_max;
    if (batch->slots && batch->slot_mask + 1 >= slot_count)
        return true;

    uint32_t *slots = malloc(slot_count * sizeof *slots);
    if (!slots)
        return false;
    free(batch->slots);
    batch->slots = slots;
    batch->slot_mask = slot_count - 1;
    memset(slots, 0xff, slot_count * sizeof *slots);
    for (uint32_t number = 0; number < batch->topic_count; number++) {
        uint64_t hash = batch->topics[number].hash;
        slots[slot_of(batch, im_batch_topic(batch, number), hash)] = number;
    }
    return true;
}

static enum im_status find_topic(struct im_batch *batch, struct im_span name,
                                 uint32_t *number)
{
    if (!room_for_topic(batch))
        return IM_FULL;
    uint64_t hash = im_hash(batch->seed, name.at, name.len);
    uint32_t slot = slot_of(batch, name, hash);

    *number = batch->slots[slot];
    if (*number == IM_NONE) {
        *number = batch->slots[slot] = batch->topic_count++;
        batch->topics[*number] = (struct im_batch_topic){
            .hash = hash,
            .name_at = (uint32_t)(name.at - batch->bytes),
            .name_len = (uint8_t)name.len,
        };
    }
    return IM_OK;
}

/* A MESSAGE that these bytes begin with. */
static enum im_status peek(struct im_span in, struct im_frame *frame,
                           struct im_message *message)
{
    if (im_frame_peek(in, IM_FRAME_MAX, frame) != IM_OK ||
        frame->type != IM_MESSAGE || im_message_peek(frame, message) != IM_OK)
        return IM_BAD;
    return IM_OK;
}

enum im_status im_batch_add(struct im_batch *batch, struct im_span frames,
                            uint64_t device)
{
    struct im_frame frame;
    struct im_message message;
    uint32_t count = 0;

    for (struct im_span rest = frames; rest.len; count++) {
        if (peek(rest, &frame, &message) != IM_OK)
            return IM_BAD;
        rest.at += frame.size;
        rest.len -= frame.size;
    }
    if (batch->len + frames.len > IM_BATCH_MAX ||
        !ROOM(batch, bytes, bytes_max, batch->len + (uint32_t)frames.len) ||
        !ROOM(batch, frames, frame_max, batch->frame_count + count))
        return IM_FULL;
    if (frames.len)
        memcpy(batch->bytes + batch->len, frames.at, frames.len);

    const uint32_t end = batch->len + (uint32_t)frames.len;
    uint32_t number = batch->frame_count;
    for (uint32_t at = batch->len; at < end; at += frame.size) {
        struct im_span rest = {batch->bytes + at, end - at};
        struct im_batch_frame *kept = &batch->frames[number++];
        peek(rest, &frame, &message);
        *kept = (struct im_batch_frame){
            .device = device, .at = at, .size = frame.size};
        if (find_topic(batch, message.topic, &kept->topic) != IM_OK)
            return IM_FULL;
    }
    batch->frame_count = number;
    batch->len = end;
    return IM_OK;
}

struct im_span im_batch_topic(const struct im_batch *batch, uint32_t topic)
{
    return (struct im_span){batch->bytes + batch->topics[topic].name_at,
                            batch->topics[topic].name_len};
}

static struct im_receipt_key key_of(uint64_t seed, struct im_span sender,
                                    uint64_t device, uint64_t id)
{
    uint8_t text[IM_USER_MAX + 16];
    memcpy(text, &device, 8);
    memcpy(text + 8, &id, 8);
    memcpy(text + 16, sender.at, sender.len);
    return (struct im_receipt_key){
        im_hash(seed, text, sender.len + 16),
        im_hash(~seed, text, sender.len + 16),
    };
}

/* Of everything that the publisher chose but RETRY: codec, lengths of topic
 * and tag, the texts, the body. */
static uint64_t content_of(uint64_t seed, const uint8_t *at, uint32_t size)
{
    uint64_t hash = im_hash(seed, at + IM_MESSAGE_LEN, size - IM_MESSAGE_LEN);
    uint32_t rest = (uint32_t)(at[5] & IM_CODEC_MASK) << 16 |
                    (uint32_t)at[32] << 8 | at[33];
    return im_hash_fold(hash ^ rest, 0x9e3779b97f4a7c15u);
}

/* seq, time and flags of one frame; what it comes to (B1, B3, B4). */
static void settle(struct im_batch *batch, struct im_batch_frame *frame,
                   uint64_t time_ms, uint64_t clock_ms)
{
    struct im_batch_topic *topic = &batch->topics[frame->topic];
    uint8_t *at = batch->bytes + frame->at;
    const uint64_t id = im_load_u64(at + 24);
    const bool is_retry = (at[5] & IM_RETRY) != 0;

    at[5] = (uint8_t)((at[5] & ~IM_RETRY) | IM_DURABLE);
    if (id != 0) { /* 0 is nobody's number */
        struct im_receipt receipt = {
            .key = frame->key,
            .content = content_of(batch->seed, at, frame->size),
            .seq = topic->seq,
            .time_ms = time_ms,
            .clock_ms = clock_ms,
        };
        const struct im_receipt *first =
            is_retry ? im_receipt_find(&batch->receipts, receipt.key) : NULL;
        if (first) {
            bool is_same = first->content == receipt.content;
            frame->fate = is_same ? IM_REPEATED : IM_CONFLICT;
            im_store_u64(at + 8, is_same ? first->seq : 0);
            im_store_u64(at + 16, is_same ? first->time_ms : 0);
            return;
        }
        im_receipt_add(&batch->receipts, &receipt);
    }
    im_store_u64(at + 8, topic->seq++);
    im_store_u64(at + 16, time_ms);
    topic->frames++;
}

/* Which publish each frame is. */
static void identify(struct im_batch *batch, struct im_batch_frame *frame)
{
    const uint8_t *at = batch->bytes + frame->at;
    struct im_span sender = {at + IM_MESSAGE_LEN + at[32] + at[33], at[34]};

    frame->key =
        key_of(batch->seed, sender, frame->device, im_load_u64(at + 24));
}

/* The kept frames, topic by topic: a counting sort. */
static bool sort(struct im_batch *batch)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < batch->topic_count; i++) {
        uint32_t frames = batch->topics[i].frames;
        batch->topics[i].frames = count;
        count += frames;
    }
    if (!ROOM(batch, order, order_max, count))
        return false;
    batch->order_count = count;
    for (uint32_t i = 0; i < batch->frame_count; i++) {
        const struct im_batch_frame *frame = &batch->frames[i];
        if (frame->fate == IM_KEPT)
            batch->order[batch->topics[frame->topic].frames++] = i;
    }
    return true;
}

/* Cuts the sorted frames into blobs, and blobs into parts (B2). */
static bool lay_out(struct im_batch *batch)
{
    struct im_batch_blob *blob = NULL;
    struct im_batch_part *part = NULL;

    for (uint32_t i = 0; i < batch->order_count; i++) {
        const struct im_batch_frame *frame = &batch->frames[batch->order[i]];
        if (!blob || blob->len + frame->size > IM_BLOB_MAX) {
            if (!ROOM(batch, blobs, blob_max, batch->blob_count + 1))
                return false;
            blob = &batch->blobs[batch->blob_count++];
            *blob = (struct im_batch_blob){.first = i,
                                           .first_part = batch->part_count};
            part = NULL;
        }
        if (!part || part->topic != frame->topic) {
            if (!ROOM(batch, parts, part_max, batch->part_count + 1))
                return false;
            part = &batch->parts[batch->part_count++];
            *part = (struct im_batch_part){
                .first_seq = im_load_u64(batch->bytes + frame->at + 8),
                .topic = frame->topic,
                .blob = batch->blob_count - 1,
                .offset = blob->len,
            };
        }
        part->len += frame->size;
        part->count++;
        blob->len += frame->size;
        blob->count++;
    }
    return true;
}

enum im_status im_batch_seal(struct im_batch *batch, const uint64_t *heads,
                             uint64_t time_ms, uint64_t clock_ms)
{
    im_receipts_expire(&batch->receipts, clock_ms);
    for (uint32_t i = 0; i < batch->topic_count; i++)
        batch->topics[i].seq = heads[i] + 1;
    for (uint32_t i = 0; i < batch->frame_count; i++)
        identify(batch, &batch->frames[i]);
    for (uint32_t i = 0; i < batch->frame_count; i++) {
        if (i + FETCH_AHEAD < batch->frame_count)
            im_receipts_fetch(&batch->receipts,
                              batch->frames[i + FETCH_AHEAD].key, FETCH_AHEAD);
        settle(batch, &batch->frames[i], time_ms, clock_ms);
    }
    return sort(batch) && lay_out(batch) ? IM_OK : IM_FULL;
}

uint64_t im_batch_write(struct im_batch *batch, uint32_t number,
                        uint8_t *frames, uint8_t *devices)
{
    const struct im_batch_blob *blob = &batch->blobs[number];
    uint8_t *at = frames;

    for (uint32_t i = 0; i < blob->count; i++) {
        const struct im_batch_frame *frame =
            &batch->frames[batch->order[blob->first + i]];
        memcpy(at, batch->bytes + frame->at, frame->size);
        im_store_u64(devices + (size_t)8 * i, frame->device);
        at += frame->size;
    }
    for (uint32_t i = blob->first_part;
         i < batch->part_count && batch->parts[i].blob == number; i++) {
        struct im_batch_part *part = &batch->parts[i];
        part->checksum = im_batch_checksum(frames + part->offset, part->len);
    }
    return im_batch_checksum(frames, blob->len);
}

enum im_status im_batch_recall(struct im_batch *batch, struct im_span frames,
                               struct im_span devices, uint64_t clock_ms)
{
    struct im_frame frame;
    struct im_message message;

    for (; frames.len; frames.at += frame.size, frames.len -= frame.size) {
        if (peek(frames, &frame, &message) != IM_OK || devices.len < 8)
            return IM_BAD;
        if (message.id != 0) {
            uint64_t device = im_load_u64(devices.at);
            struct im_receipt receipt = {
                .key = key_of(batch->seed, message.sender, device, message.id),
                .content = content_of(batch->seed, frame.at, frame.size),
                .seq = im_load_u64(frame.at + 8),
                .time_ms = im_load_u64(frame.at + 16),
                .clock_ms = clock_ms,
            };
            im_receipt_add(&batch->receipts, &receipt);
        }
        devices.at += 8;
        devices.len -= 8;
    }
    return IM_OK;
}

uint32_t im_batch_count(struct im_span frames, struct im_span topic,
                        uint64_t seq)
{
    struct im_frame frame;
    struct im_message message;
    uint32_t count = 0;

    for (; frames.len; frames.at += frame.size, frames.len -= frame.size) {
        if (peek(frames, &frame, &message) != IM_OK ||
            im_load_u64(frame.at + 8) != seq + count ||
            message.topic.len != topic.len ||
            memcmp(message.topic.at, topic.at, topic.len))
            return 0;
        count++;
    }
    return count;
}
