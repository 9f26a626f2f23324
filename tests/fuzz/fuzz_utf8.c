/*
 * fuzz_utf8.c - text in pieces beside a model that asks of every prefix whether
 * any code point begins so.
 */
#include "fuzz.h"
#include "utf8.h"

/* Whether `len` bytes, fewer than their character has, may become one. */
static bool may_become(const uint8_t *at, size_t len, size_t whole)
{
    static const uint32_t shortest[] = {0, 0, 0x80, 0x800, 0x10000};
    static const uint8_t firsts[] = {0, 0, 0x1f, 0x0f, 0x07};
    uint32_t low = at[0] & firsts[whole], high;

    for (size_t i = 1; i < len; i++) {
        if (at[i] >> 6 != 2)
            return false;
        low = low << 6 | (at[i] & 0x3f);
    }
    high = low;
    for (size_t i = len; i < whole; i++) {
        low <<= 6;
        high = high << 6 | 0x3f;
    }
    if (low < shortest[whole])
        low = shortest[whole];
    if (high > 0x10ffff)
        high = 0x10ffff;
    return low <= high && !(low >= 0xd800 && high <= 0xdfff);
}

/* How many bytes are right; `wanted` of the last character are missing then. */
static size_t model(const uint8_t *at, size_t size, size_t *wanted)
{
    for (size_t i = 0; i < size;) {
        size_t whole = at[i] < 0x80         ? 1
                       : at[i] >> 5 == 0x06 ? 2
                       : at[i] >> 4 == 0x0e ? 3
                       : at[i] >> 3 == 0x1e ? 4
                                            : 0;
        *wanted = 0;
        if (!whole)
            return i;
        for (size_t len = 1; whole > 1 && len <= whole; len++) {
            if (i + len > size) {
                *wanted = whole - len + 1;
                return size;
            }
            if (!may_become(at + i, len, whole))
                return i + len - 1;
        }
        i += whole;
    }
    return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct im_utf8 state = {0};
    uint32_t random;
    size_t wanted = 0, done = 0, piece = 0;
    bool is_right = true;

    if (size < 4)
        return 0;
    memcpy(&random, data, 4);
    data += 4;
    size -= 4;
    size_t right = model(data, size, &wanted);
    for (; done < size && is_right; done += piece) {
        piece = fuzz_piece(&random, size - done);
        is_right = im_utf8_feed(&state, (struct im_span){data + done, piece});
    }
    CHECK(is_right == (right == size));
    /* It is told in the piece that shows it. */
    CHECK(is_right || (right < done && right >= done - piece));
    CHECK(!is_right || state.wanted == wanted);
    return 0;
}
