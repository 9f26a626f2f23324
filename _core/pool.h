/*
 * pool.h - messages: reference-counted bytes from memory taken at the start.
 *
 * A thread owns one pool. Every frame that outlives the read it arrived in is
 * in a message: a publication on its way to its subscribers, an unfinished
 * frame, an answer. Fan-out shares references and copies nothing.
 *
 *   M1  a message belongs to the thread whose pool it came from. That thread
 *       counts its references in `refs`, without atomics.
 *   M2  other threads count theirs in `shared`. While that is not zero the
 *       owner holds one reference for all of them, the loan.
 *   M3  a message is lent once in its life, to all threads that need it at the
 *       same time. So the thread that drops the last shared reference is alone
 *       with it and may link it into the owner's list of returned loans.
 *   M4  a dry pool refuses. Nothing falls back to malloc.
 */
#pragma once

#include <stdatomic.h>

#include "base.h"

struct im_msg {
    uint32_t refs;
    _Atomic uint32_t shared;
    uint32_t len;        /* bytes in use */
    uint16_t frames;     /* whole frames in them; 0: bytes that are none */
    uint8_t owner;       /* number of the owning pool */
    uint8_t size_class;  /* index of its slot size */
    struct im_msg *next; /* in the list of returned loans */
    uint8_t bytes[];
};

#define IM_POOL_CLASSES 80u

struct im_page;

struct im_pool {
    uint8_t *arena; /* page_count pages, each aligned to its size */
    void *mapping;
    size_t mapping_len;
    uint32_t page_len;
    uint32_t page_count;
    uint32_t fresh;   /* pages of the arena never used so far */
    uint32_t spare;   /* pages free now, fresh ones included */
    uint32_t reserve; /* spare pages kept for control frames */
    uint32_t taken;   /* messages out */
    uint32_t class_count;
    uint8_t owner;
    struct im_page *empty; /* used before, free now */
    struct im_page *partial[IM_POOL_CLASSES];
    uint32_t slot_len[IM_POOL_CLASSES];
    uint8_t class_of[1024]; /* for slots of up to 16 KiB, by 16 bytes */
    /* Written by other threads, so on a line of its own. */
    _Alignas(IM_CACHE_LINE) _Atomic(struct im_msg *) returned;
};

/* Who asks: control frames may use the reserve, so that a server out of memory
 * can still say so. */
enum im_purpose { IM_FOR_MESSAGE, IM_FOR_CONTROL };

/* A pool of about `pool_bytes` for messages of up to `len_max` bytes, owned by
 * thread `owner`. Memory is only touched as it is used. IM_FULL when it cannot
 * be mapped. */
enum im_status im_pool_init(struct im_pool *pool, uint8_t owner,
                            size_t pool_bytes, uint32_t len_max);
void im_pool_free(struct im_pool *pool);

/* A message with room for `len` bytes, its `len` set, for one frame, one
 * reference held by the caller. NULL when the pool is dry. */
struct im_msg *im_pool_take(struct im_pool *pool, uint32_t len,
                            enum im_purpose purpose);

/* How many bytes `msg` has room for. */
uint32_t im_msg_room(const struct im_pool *pool, const struct im_msg *msg);

/* Gives back the slot of a message without references. */
void im_pool_give(struct im_pool *pool, struct im_msg *msg);

/* Gives a shared reference back to the owner, whose pool this is not. */
void im_msg_return(const struct im_pool *pool, struct im_msg *msg);

/* Takes back the loans that other threads returned. */
void im_pool_collect(struct im_pool *pool);

/* One thread drops a reference; `pool` is the thread's own pool. */
static inline void im_msg_drop(struct im_pool *pool, struct im_msg *msg)
{
    if (IM_LIKELY(msg->owner == pool->owner)) {
        IM_ASSERT(msg->refs > 0);
        if (--msg->refs == 0)
            im_pool_give(pool, msg);
    } else if (atomic_fetch_sub_explicit(&msg->shared, 1,
                                         memory_order_acq_rel) == 1) {
        im_msg_return(pool, msg);
    }
}

/* `count` more references for the thread that `pool` belongs to. */
static inline void im_msg_share(const struct im_pool *pool, struct im_msg *msg,
                                uint32_t count)
{
    if (IM_LIKELY(msg->owner == pool->owner))
        msg->refs += count;
    else
        atomic_fetch_add_explicit(&msg->shared, count, memory_order_relaxed);
}

/* The owner lends `msg` to `threads` other threads, one reference each. */
static inline void im_msg_lend(struct im_msg *msg, uint32_t threads)
{
    msg->refs++;
    atomic_store_explicit(&msg->shared, threads, memory_order_relaxed);
}

/* One thread could not be given its reference after all. */
static inline void im_msg_unlend(struct im_pool *pool, struct im_msg *msg)
{
    if (atomic_fetch_sub_explicit(&msg->shared, 1, memory_order_acq_rel) == 1)
        im_msg_drop(pool, msg);
}
