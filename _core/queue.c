/*
 * queue.c - a ring of records between two threads.
 *
 * The cursors run free and are masked on use, so full and empty differ without
 * a spare byte. Each side keeps its last sight of the other's cursor and reads
 * it again only when that says full or empty: a batch costs one shared line.
 */
#define _GNU_SOURCE
#include "queue.h"

#include <stdlib.h>
#include <sys/mman.h>

#define FILLER 0

/* Bytes in use from which an empty queue starts over. */
#define START_OVER (32u << 10)
#define LOOK_EVERY 512u

enum im_status im_queue_init(struct im_queue *queue, uint64_t size)
{
    uint64_t power = 4096;
    while (power < size)
        power *= 2;

    *queue = (struct im_queue){.size = power};
    void *bytes = mmap(NULL, power, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (bytes == MAP_FAILED)
        return IM_FULL;
    queue->bytes = bytes;
    return IM_OK;
}

void im_queue_free(struct im_queue *queue)
{
    if (queue->bytes)
        munmap(queue->bytes, queue->size);
    queue->bytes = NULL;
}

static bool has_room(struct im_queue *queue, uint64_t tail, uint64_t size)
{
    if (tail + size - queue->head_seen <= queue->size)
        return true;
    queue->head_seen = atomic_load_explicit(&queue->head, memory_order_acquire);
    return tail + size - queue->head_seen <= queue->size;
}

/* Whether a queue found empty goes on at its first byte. One that is emptied
 * again and again then lives in its first pages, warm, and the others are never
 * touched: two queues are a fifth of the memory of ten thousand connections. */
static bool starts_over(struct im_queue *queue, uint64_t tail, uint64_t at,
                        uint64_t size)
{
    /* Not looked at for each of many short records: the consumer's cursor is
     * on a line that it writes. */
    if (at < START_OVER || size > at || (at & (LOOK_EVERY - 1)) >= size)
        return false;
    queue->head_seen = atomic_load_explicit(&queue->head, memory_order_acquire);
    return queue->head_seen == tail;
}

enum im_status im_queue_push(struct im_queue *queue, struct im_record head,
                             const struct im_span *parts, size_t count)
{
    uint64_t len = 0;
    for (size_t i = 0; i < count; i++)
        len += parts[i].len;

    /* Records are aligned to 8 bytes. One of up to half the queue always fits
     * once the queue is empty, wherever the cursor stands. */
    uint64_t size = (sizeof head + len + 7) & ~(uint64_t)7;
    if (size > queue->size / 2)
        return IM_BAD;

    uint64_t tail = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    uint64_t at = tail & (queue->size - 1);
    uint64_t to_end = queue->size - at;
    uint64_t filler =
        size > to_end || starts_over(queue, tail, at, size) ? to_end : 0;
    if (!has_room(queue, tail, filler + size))
        return IM_FULL;

    if (filler) {
        /* Less than a record head may be left: the size and kind decide. */
        uint32_t *gap = (uint32_t *)(void *)(queue->bytes + at);
        *gap = (uint32_t)filler;
        if (filler >= sizeof head)
            ((struct im_record *)(void *)gap)->kind = FILLER;
        tail += filler;
    }
    head.size = (uint32_t)size;
    head.len = (uint32_t)len;
    uint8_t *to = queue->bytes + (tail & (queue->size - 1));
    memcpy(to, &head, sizeof head);
    to += sizeof head;
    for (size_t i = 0; i < count; i++) {
        if (parts[i].len)
            memcpy(to, parts[i].at, parts[i].len);
        to += parts[i].len;
    }
    atomic_store_explicit(&queue->tail, tail + size, memory_order_release);
    return IM_OK;
}

const struct im_record *im_queue_peek(struct im_queue *queue)
{
    uint64_t head = atomic_load_explicit(&queue->head, memory_order_relaxed);

    for (;;) {
        if (head == queue->tail_seen) {
            queue->tail_seen =
                atomic_load_explicit(&queue->tail, memory_order_acquire);
            if (head == queue->tail_seen)
                return NULL;
        }
        const struct im_record *record =
            (const struct im_record *)(const void *)(queue->bytes +
                                                     (head &
                                                      (queue->size - 1)));
        if (record->size >= sizeof *record && record->kind != FILLER)
            return record;
        head += record->size;
        atomic_store_explicit(&queue->head, head, memory_order_release);
    }
}

void im_queue_consume(struct im_queue *queue, const struct im_record *record)
{
    uint64_t head = atomic_load_explicit(&queue->head, memory_order_relaxed);
    atomic_store_explicit(&queue->head, head + record->size,
                          memory_order_release);
}

bool im_queue_is_empty(const struct im_queue *queue)
{
    return atomic_load_explicit(&queue->head, memory_order_acquire) ==
           atomic_load_explicit(&queue->tail, memory_order_acquire);
}
