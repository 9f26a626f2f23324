/*
 * histogram.h - durations in nanoseconds, from one to eighteen minutes, with a
 * relative error below one in 128.
 *
 * Log-linear as in HdrHistogram: every power of two is cut into 128 buckets of
 * one width, everything below 128 is exact. Recording is a shift and an
 * increment, so that the generator can afford it for each message.
 */
#pragma once

#include <stdint.h>

#define HISTOGRAM_STEPS 128u   /* buckets a power of two */
#define HISTOGRAM_STEP_BITS 7u /* 128 = 2^7 */
#define HISTOGRAM_TOP_BITS 40u /* from 2^40 ns on all is one bucket */
#define HISTOGRAM_BUCKETS                                                      \
    (HISTOGRAM_STEPS * (HISTOGRAM_TOP_BITS - HISTOGRAM_STEP_BITS + 1u))

struct histogram {
    uint64_t count;
    uint64_t max;
    uint64_t buckets[HISTOGRAM_BUCKETS];
};

/* NULL without memory. */
struct histogram *histogram_new(void);
void histogram_free(struct histogram *histogram);

/* Adds all that `other` holds. */
void histogram_add(struct histogram *histogram, const struct histogram *other);

/* The smallest value known to be at least as large as that share of all
 * recorded ones: 0.999 for p99.9. Errs upwards only; 0 when there are none. */
uint64_t histogram_at(const struct histogram *histogram, double share);

static inline uint32_t histogram_bucket(uint64_t value)
{
    uint32_t bits;

    if (value < HISTOGRAM_STEPS)
        return (uint32_t)value;
    bits = 63u - (uint32_t)__builtin_clzll(value);
    if (bits >= HISTOGRAM_TOP_BITS)
        return HISTOGRAM_BUCKETS - 1u;
    bits -= HISTOGRAM_STEP_BITS;
    return bits * HISTOGRAM_STEPS + (uint32_t)(value >> bits);
}

static inline void histogram_record(struct histogram *histogram, uint64_t value)
{
    histogram->count++;
    if (value > histogram->max)
        histogram->max = value;
    histogram->buckets[histogram_bucket(value)]++;
}
