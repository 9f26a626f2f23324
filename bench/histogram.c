/*
 * histogram.c - what is done once a run: adding up and reading percentiles.
 * histogram.h tells the shape, and holds what is done once a message.
 */
#include "histogram.h"

#include <math.h>
#include <stdlib.h>

struct histogram *histogram_new(void)
{
    return calloc(1, sizeof(struct histogram));
}

void histogram_free(struct histogram *histogram)
{
    free(histogram);
}

void histogram_add(struct histogram *histogram, const struct histogram *other)
{
    histogram->count += other->count;
    if (other->max > histogram->max)
        histogram->max = other->max;
    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++)
        histogram->buckets[i] += other->buckets[i];
}

/* The largest value that falls into the bucket. */
static uint64_t bucket_end(uint32_t bucket)
{
    uint32_t bits;

    if (bucket < 2 * HISTOGRAM_STEPS)
        return bucket;
    bits = bucket / HISTOGRAM_STEPS - 1u;
    return ((uint64_t)(bucket - bits * HISTOGRAM_STEPS + 1u) << bits) - 1u;
}

uint64_t histogram_at(const struct histogram *histogram, double share)
{
    double rank = ceil(share * (double)histogram->count);
    uint64_t wanted = rank < 1.0 ? 1u : (uint64_t)rank;
    uint64_t seen = 0;

    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS - 1u; i++) {
        seen += histogram->buckets[i];
        if (seen >= wanted) {
            uint64_t end = bucket_end(i);
            return end < histogram->max ? end : histogram->max;
        }
    }
    return histogram->max;
}
