/*
 * mask.c - XOR with a repeating key, 32, 16, 8 bytes and one byte at a time.
 *
 * Every step reads all of its bytes before it writes, and writes no further
 * than it has read: that is what makes the overlap safe.
 */
#include "mask.h"

#if defined(__x86_64__)
#include <immintrin.h>

/* AVX2 is asked for by the step, SSE2 every x86-64 has. */
__attribute__((target("avx2"))) static size_t
mask_wide(uint8_t *to, const uint8_t *from, size_t len, uint32_t key)
{
    const __m256i keys = _mm256_set1_epi32((int)key);
    size_t at = 0;

    for (; at + 32 <= len; at += 32) {
        __m256i word = _mm256_loadu_si256((const __m256i *)(from + at));
        _mm256_storeu_si256((__m256i *)(to + at), _mm256_xor_si256(word, keys));
    }
    return at;
}

static size_t mask_blocks(uint8_t *to, const uint8_t *from, size_t len,
                          uint32_t key)
{
    if (len >= 128 && __builtin_cpu_supports("avx2"))
        return mask_wide(to, from, len, key);

    const __m128i keys = _mm_set1_epi32((int)key);
    size_t at = 0;
    for (; at + 16 <= len; at += 16) {
        __m128i word = _mm_loadu_si128((const __m128i *)(from + at));
        _mm_storeu_si128((__m128i *)(to + at), _mm_xor_si128(word, keys));
    }
    return at;
}

#elif defined(__ARM_NEON)
#include <arm_neon.h>

static size_t mask_blocks(uint8_t *to, const uint8_t *from, size_t len,
                          uint32_t key)
{
    const uint8x16_t keys = vreinterpretq_u8_u32(vdupq_n_u32(key));
    size_t at = 0;

    for (; at + 16 <= len; at += 16)
        vst1q_u8(to + at, veorq_u8(vld1q_u8(from + at), keys));
    return at;
}

#else

static size_t mask_blocks(uint8_t *to, const uint8_t *from, size_t len,
                          uint32_t key)
{
    (void)to, (void)from, (void)len, (void)key;
    return 0;
}

#endif

void im_mask(uint8_t *to, const uint8_t *from, size_t len, uint8_t key[4])
{
    uint32_t word;
    memcpy(&word, key, sizeof word);

    size_t at = mask_blocks(to, from, len, word);
    uint64_t twice = (uint64_t)word << 32 | word, bytes;
    for (; at + 8 <= len; at += 8) {
        memcpy(&bytes, from + at, 8);
        bytes ^= twice;
        memcpy(to + at, &bytes, 8);
    }
    for (; at < len; at++)
        to[at] = from[at] ^ key[at & 3];

    uint8_t turned[8];
    memcpy(turned, key, 4);
    memcpy(turned + 4, key, 4);
    memcpy(key, turned + (len & 3), 4);
}
