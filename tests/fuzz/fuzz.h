/*
 * fuzz.h - what the harnesses share: libFuzzer's entry point, and the dice that
 * cut an input into pieces.
 *
 * `make fuzz` runs them under libFuzzer for as long as one likes; the tests run
 * them for seconds with drive.c, whose inputs are the same every time.
 */
#pragma once

#include "storm_web.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline uint32_t fuzz_roll(uint32_t *random)
{
    *random = *random * 1664525u + 1013904223u;
    return *random >> 8;
}

/* The next piece of what is left: often a byte, at times all. */
static inline size_t fuzz_piece(uint32_t *random, size_t left)
{
    static const uint32_t most[] = {1, 3, 17, 200, 70000};
    size_t piece = 1 + fuzz_roll(random) % most[fuzz_roll(random) % 5];
    return piece < left ? piece : left;
}
