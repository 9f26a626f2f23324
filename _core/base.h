/*
 * base.h - what every file of the core speaks: outcomes, spans, big-endian
 * loads and stores, the keyed hash, the debug assertion.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The outcomes of everything that can turn out in more than one way. */
enum im_status {
    IM_OK = 0,
    IM_MORE = 1, /* nothing wrong, more is needed first */
    IM_BAD = -1, /* the input breaks a rule */
    IM_FULL = -2 /* a bound is reached */
};

/* Not assert.h: Python builds extensions with NDEBUG. */
#ifdef IM_DEBUG
#include <stdio.h>
#include <stdlib.h>
#define IM_ASSERT(rule)                                                        \
    ((rule) ? (void)0                                                          \
            : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #rule),      \
               abort()))
#else
#define IM_ASSERT(rule) ((void)0)
#endif

#define IM_LIKELY(x) __builtin_expect(!!(x), 1)
#define IM_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* "No entry" for every index-linked list of the core. */
#define IM_NONE UINT32_MAX

#define IM_CACHE_LINE 64

/* Bytes that belong to somebody else. */
struct im_span {
    const uint8_t *at;
    size_t len;
};

static inline uint16_t im_load_u16(const uint8_t *at)
{
    uint16_t raw;
    memcpy(&raw, at, sizeof raw);
    return __builtin_bswap16(raw);
}

static inline uint32_t im_load_u32(const uint8_t *at)
{
    uint32_t raw;
    memcpy(&raw, at, sizeof raw);
    return __builtin_bswap32(raw);
}

static inline uint64_t im_load_u64(const uint8_t *at)
{
    uint64_t raw;
    memcpy(&raw, at, sizeof raw);
    return __builtin_bswap64(raw);
}

static inline void im_store_u64(uint8_t *at, uint64_t value)
{
    uint64_t raw = __builtin_bswap64(value);
    memcpy(at, &raw, sizeof raw);
}

static inline uint64_t im_hash_fold(uint64_t a, uint64_t b)
{
    __uint128_t product = (__uint128_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* A hash keyed by a secret of the process: topic names come from clients, who
 * must not be able to choose where they land. Eight bytes a multiplication;
 * names are short, so the tail is read overlapping instead of byte by byte. The
 * last factor has a bit less than the seed: by 2^64-1 every word would fold to
 * the same. */
static inline uint64_t im_hash(uint64_t seed, const uint8_t *at, size_t len)
{
    uint64_t hash = seed ^ (len * 0x9e3779b97f4a7c15u);
    uint64_t word = 0;

    if (len < 8) {
        memcpy(&word, at, len);
        return im_hash_fold(hash ^ word, seed >> 1 | 1);
    }
    for (size_t i = 0; i + 8 < len; i += 8) {
        memcpy(&word, at + i, 8);
        hash = im_hash_fold(hash ^ word, 0xa0761d6478bd642fu);
    }
    memcpy(&word, at + len - 8, 8);
    return im_hash_fold(hash ^ word, seed >> 1 | 1);
}
