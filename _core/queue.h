/*
 * queue.h - records from one thread to one other, without locks.
 *
 * Three pairs need it: an I/O thread tells Python what happened, Python tells
 * an I/O thread what to do, an I/O thread passes messages to another one. A
 * record is a small head and any bytes behind it, in one piece.
 *
 *   Q1  one thread pushes, one thread takes; each writes its own cursor only.
 *   Q2  records come out whole, in the order they went in.
 *   Q3  a full queue refuses; nothing is overwritten and nothing grows.
 */
#pragma once

#include <stdatomic.h>

#include "base.h"

struct im_record {
    uint32_t size; /* of the record, head and padding included */
    uint32_t len;  /* of the bytes behind the head */
    uint16_t kind; /* 0 is the queue's own: filler up to the end */
    uint16_t a;
    uint32_t b;
    uint64_t conn;
};

/* The bytes behind the head. */
static inline const uint8_t *im_record_bytes(const struct im_record *record)
{
    return (const uint8_t *)(record + 1);
}

struct im_queue {
    uint8_t *bytes;
    uint64_t size; /* a power of two */
    _Alignas(IM_CACHE_LINE) _Atomic uint64_t tail;
    uint64_t head_seen; /* the producer's copy of head */
    _Alignas(IM_CACHE_LINE) _Atomic uint64_t head;
    uint64_t tail_seen; /* the consumer's copy of tail */
};

/* A queue of at least `size` bytes. IM_FULL when there is no memory. */
enum im_status im_queue_init(struct im_queue *queue, uint64_t size);
void im_queue_free(struct im_queue *queue);

/* Producer: appends `head` (its size and len are filled in) followed by the
 * `count` parts. IM_FULL when there is no room now, IM_BAD when there never
 * will be. */
enum im_status im_queue_push(struct im_queue *queue, struct im_record head,
                             const struct im_span *parts, size_t count);

/* Consumer: the oldest record, or NULL. Valid until im_queue_consume. */
const struct im_record *im_queue_peek(struct im_queue *queue);
void im_queue_consume(struct im_queue *queue, const struct im_record *record);

/* Either side: whether there is nothing to take. */
bool im_queue_is_empty(const struct im_queue *queue);
