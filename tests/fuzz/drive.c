/*
 * drive.c - inputs for a harness where there is no libFuzzer: frames and texts,
 * mostly right, the same ones for the same seed.
 *
 *     HARNESS INPUTS SEED
 */
#include "fuzz.h"

#define INPUT_MAX 2000

/* The edges of UTF-8, of lengths and of opcodes; and what HTTP is made of. */
static const uint8_t EDGES[] = {
    0x00, 0x01, 0x02, 0x08, 0x09, 0x0a, 0x0d, ' ',  ':',  'A',  'a',
    0x7f, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8a, 0x8f, 0x90, 0x9f, 0xa0,
    0xbf, 0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xec, 0xed, 0xee, 0xef,
    0xf0, 0xf1, 0xf3, 0xf4, 0xf5, 0xf7, 0xfd, 0xfe, 0xff};

static size_t write_frames(uint8_t *to, uint32_t *random)
{
    static const uint8_t firsts[] = {0x01, 0x02, 0x00, 0x80, 0x80,
                                     0x81, 0x82, 0x82, 0x89, 0x8a};
    uint8_t payload[300];
    size_t size = 0;

    for (uint32_t count = 1 + fuzz_roll(random) % 5; count; count--) {
        uint8_t first = firsts[fuzz_roll(random) % sizeof firsts];
        size_t most = first > 0x88 ? 126 : sizeof payload;
        size_t len = fuzz_roll(random) % most;
        for (size_t i = 0; i < len; i++)
            payload[i] = EDGES[fuzz_roll(random) % sizeof EDGES];
        if (fuzz_roll(random) % 2) /* frames of ours */
            for (size_t at = 0; at + 8 + at % 7 <= len; at += 8 + at % 7)
                write_frame(payload + at, (uint8_t)(1 + at % 15), 1, "topic:x",
                            at % 7);
        size += web_frame(to + size, first, payload, len, fuzz_roll(random));
    }
    return size;
}

int main(int count, char **arguments)
{
    uint32_t inputs = count > 1 ? (uint32_t)atoi(arguments[1]) : 10000;
    uint32_t random = count > 2 ? (uint32_t)atoi(arguments[2]) : 1;
    static uint8_t room[INPUT_MAX];

    for (; inputs; inputs--) {
        size_t size = 4;
        for (size_t i = 0; i < size; i++)
            room[i] = (uint8_t)fuzz_roll(&random);
        if (fuzz_roll(&random) % 4)
            size += write_frames(room + size, &random);
        else
            while (fuzz_roll(&random) % 30)
                room[size++] = EDGES[fuzz_roll(&random) % sizeof EDGES];
        for (uint32_t slips = fuzz_roll(&random) % 3; slips; slips--)
            room[fuzz_roll(&random) % size] =
                EDGES[fuzz_roll(&random) % sizeof EDGES];

        uint8_t *input = malloc(size); /* whose end a sanitizer knows */
        CHECK(input);
        memcpy(input, room, size);
        LLVMFuzzerTestOneInput(input, size);
        free(input);
    }
    return 0;
}
