/*
 * pool.c - slots by size class in pages of one arena.
 *
 * Taken and given back once a message, by one thread, mostly in the same size:
 * the page in front has a free slot and both are a few instructions. Classes
 * are a quarter of a power of two apart, so at most a fifth of a slot is lost,
 * up to half a page; what is larger has a page for itself.
 * A page that has become empty goes back to the arena and may serve another
 * class: a burst of large messages does not starve small ones for ever.
 *
 *   P1  a page is on the partial list of its class exactly while it has both
 *       used and free slots, or is empty and kept by its class.
 *   P2  spare = pages that no class holds.
 */
#define _GNU_SOURCE
#include "pool.h"

#include <sys/mman.h>

struct im_page {
    struct im_pool *pool;
    struct im_msg *free; /* given back, linked by `next` */
    struct im_page *next;
    struct im_page *prev;
    uint32_t used;
    uint32_t fresh; /* offset of the first slot never used */
    uint32_t size_class;
};

#define PAGE_HEAD_LEN 64u
#define PAGE_LEN_MIN (256u << 10)
#define PAGES_MIN 16u
#define SLOT_LEN_MIN 64u

_Static_assert(sizeof(struct im_page) <= PAGE_HEAD_LEN, "page head");
_Static_assert(sizeof(struct im_msg) == 24, "message head");

static struct im_page *page_of(const struct im_pool *pool,
                               const struct im_msg *msg)
{
    uintptr_t mask = ~((uintptr_t)pool->page_len - 1);
    return (struct im_page *)((uintptr_t)msg & mask);
}

static void init_classes(struct im_pool *pool)
{
    uint32_t largest = pool->page_len - PAGE_HEAD_LEN;
    uint32_t count = 0;

    for (uint32_t base = SLOT_LEN_MIN; base < largest; base *= 2)
        for (uint32_t quarter = 0; quarter < 4; quarter++) {
            uint32_t len = base + quarter * (base / 4);
            if (len < largest && count < IM_POOL_CLASSES - 1)
                pool->slot_len[count++] = len;
        }
    pool->slot_len[count++] = largest;
    pool->class_count = count;

    uint32_t at = 0;
    for (uint32_t i = 0; i < 1024; i++) {
        while (pool->slot_len[at] < (i + 1) * 16)
            at++;
        pool->class_of[i] = (uint8_t)at;
    }
}

enum im_status im_pool_init(struct im_pool *pool, uint8_t owner,
                            size_t pool_bytes, uint32_t len_max)
{
    uint32_t page_len = PAGE_LEN_MIN;
    while (page_len - PAGE_HEAD_LEN - sizeof(struct im_msg) < len_max)
        page_len *= 2;

    size_t pages = pool_bytes / page_len;
    if (pages < PAGES_MIN)
        pages = PAGES_MIN;

    *pool = (struct im_pool){
        .owner = owner,
        .page_len = page_len,
        .page_count = (uint32_t)pages,
        .spare = (uint32_t)pages,
        .reserve = (uint32_t)(pages / 16),
        .mapping_len = (pages + 1) * page_len,
    };
    pool->mapping = mmap(NULL, pool->mapping_len, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pool->mapping == MAP_FAILED) {
        pool->mapping = NULL;
        return IM_FULL;
    }
    uintptr_t start = (uintptr_t)pool->mapping + page_len - 1;
    pool->arena = (uint8_t *)(start & ~((uintptr_t)page_len - 1));
    init_classes(pool);
    return IM_OK;
}

void im_pool_free(struct im_pool *pool)
{
    if (pool->mapping)
        munmap(pool->mapping, pool->mapping_len);
    pool->mapping = NULL;
}

static uint32_t class_for(const struct im_pool *pool, uint32_t slot_len)
{
    if (IM_LIKELY(slot_len <= 16384))
        return pool->class_of[(slot_len - 1) / 16];

    uint32_t at = pool->class_of[1023];
    while (at < pool->class_count && pool->slot_len[at] < slot_len)
        at++;
    return at;
}

static void link_page(struct im_pool *pool, struct im_page *page)
{
    struct im_page **first = &pool->partial[page->size_class];

    page->prev = NULL;
    page->next = *first;
    if (*first)
        (*first)->prev = page;
    *first = page;
}

static void unlink_page(struct im_pool *pool, struct im_page *page)
{
    if (page->prev)
        page->prev->next = page->next;
    else
        pool->partial[page->size_class] = page->next;
    if (page->next)
        page->next->prev = page->prev;
}

static void release_page(struct im_pool *pool, struct im_page *page)
{
    unlink_page(pool, page);
    page->next = pool->empty;
    pool->empty = page;
    pool->spare++;
}

/* The empty pages that classes hold on to, when there are no others. */
static void scavenge(struct im_pool *pool)
{
    for (uint32_t i = 0; i < pool->class_count; i++)
        for (struct im_page *page = pool->partial[i], *next; page;
             page = next) {
            next = page->next;
            if (page->used == 0)
                release_page(pool, page);
        }
}

static struct im_page *new_page(struct im_pool *pool, uint32_t size_class,
                                enum im_purpose purpose)
{
    uint32_t kept = purpose == IM_FOR_CONTROL ? 0 : pool->reserve;
    if (pool->spare <= kept)
        scavenge(pool);
    if (pool->spare <= kept)
        return NULL;

    struct im_page *page = pool->empty;
    if (page)
        pool->empty = page->next;
    else
        page = (struct im_page *)(pool->arena +
                                  (size_t)pool->fresh++ * pool->page_len);
    pool->spare--;
    *page = (struct im_page){
        .pool = pool, .fresh = PAGE_HEAD_LEN, .size_class = size_class};
    link_page(pool, page);
    return page;
}

static bool page_is_full(const struct im_pool *pool, const struct im_page *page)
{
    return !page->free &&
           page->fresh + pool->slot_len[page->size_class] > pool->page_len;
}

struct im_msg *im_pool_take(struct im_pool *pool, uint32_t len,
                            enum im_purpose purpose)
{
    if (len > pool->slot_len[pool->class_count - 1] - sizeof(struct im_msg))
        return NULL;
    uint32_t size_class =
        class_for(pool, len + (uint32_t)sizeof(struct im_msg));

    struct im_page *page = pool->partial[size_class];
    if (IM_UNLIKELY(!page)) {
        im_pool_collect(pool); /* what has come home may do */
        page = pool->partial[size_class];
        if (!page)
            page = new_page(pool, size_class, purpose);
        if (!page)
            return NULL;
    }

    struct im_msg *msg = page->free;
    if (msg) {
        page->free = msg->next;
    } else {
        msg = (struct im_msg *)((uint8_t *)page + page->fresh);
        page->fresh += pool->slot_len[size_class];
        msg->owner = pool->owner;
        msg->size_class = (uint8_t)size_class;
        atomic_init(&msg->shared, 0);
    }
    page->used++;
    pool->taken++;
    if (IM_UNLIKELY(page_is_full(pool, page)))
        unlink_page(pool, page);

    msg->refs = 1;
    msg->len = len;
    msg->frames = 1;
    return msg;
}

uint32_t im_msg_room(const struct im_pool *pool, const struct im_msg *msg)
{
    return pool->slot_len[msg->size_class] - (uint32_t)sizeof(struct im_msg);
}

void im_pool_give(struct im_pool *pool, struct im_msg *msg)
{
    struct im_page *page = page_of(pool, msg);

    IM_ASSERT(page->pool == pool && page->used > 0);
    if (IM_UNLIKELY(page_is_full(pool, page)))
        link_page(pool, page);
    msg->next = page->free;
    page->free = msg;
    page->used--;
    pool->taken--;

    /* The last page of a class stays: one message taken and given back in turn
     * must not move a page both times. */
    if (IM_UNLIKELY(page->used == 0) && (page->next || page->prev))
        release_page(pool, page);
}

void im_msg_return(const struct im_pool *pool, struct im_msg *msg)
{
    struct im_pool *home = page_of(pool, msg)->pool;
    struct im_msg *first =
        atomic_load_explicit(&home->returned, memory_order_relaxed);

    do {
        msg->next = first;
    } while (!atomic_compare_exchange_weak_explicit(&home->returned, &first,
                                                    msg, memory_order_release,
                                                    memory_order_relaxed));
}

void im_pool_collect(struct im_pool *pool)
{
    if (!atomic_load_explicit(&pool->returned, memory_order_relaxed))
        return;

    struct im_msg *msg =
        atomic_exchange_explicit(&pool->returned, NULL, memory_order_acquire);
    while (msg) {
        struct im_msg *next = msg->next;
        im_msg_drop(pool, msg);
        msg = next;
    }
}
