/*
 * storm_web.c - frames of a client, and what it makes of the server's.
 */
#include "storm_web.h"

static uint32_t roll(struct web *web)
{
    uint32_t x = web->random ? web->random : 1;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return web->random = x;
}

size_t web_frame(uint8_t *to, uint8_t first, const void *payload, size_t len,
                 uint32_t key)
{
    const uint8_t *from = payload;
    uint8_t *at = to + im_websocket_write(to, first & 0x0f, len);

    to[0] = first;
    to[1] |= 0x80;
    memcpy(at, &key, 4);
    for (size_t i = 0; i < len; i++)
        at[4 + i] = from[i] ^ at[i & 3];
    return (size_t)(at - to) + 4 + len;
}

size_t web_wrap(struct web *web, uint8_t *to, uint8_t opcode,
                const uint8_t *from, size_t len, enum web_end end)
{
    size_t size = 0;
    bool fin = end == WEB_ANYWHERE ? roll(web) % 3 == 0 : end == WEB_LAST;
    uint8_t first = (uint8_t)((fin ? 0x80 : 0) | (web->is_within ? 0 : opcode));

    if (web->ping_odds && roll(web) % web->ping_odds == 0) {
        uint32_t number = web->pings++;
        size = web_frame(to, 0x80 | IM_WS_PING, &number, 4, roll(web));
    }
    web->is_within = !fin;
    return size + web_frame(to + size, first, from, len, roll(web));
}

/* The head of the server's next frame, byte by byte. */
static void take_head(struct web *web, uint8_t byte)
{
    uint8_t *head = web->head;

    CHECK(!web->is_closed);
    head[web->head_len++] = byte;
    if (web->head_len < 2)
        return;
    CHECK((head[0] & 0xf0) == 0x80 && !(head[1] & 0x80));
    uint8_t size = head[1] == 126 ? 4 : head[1] == 127 ? 10 : 2;
    if (web->head_len < size)
        return;
    web->opcode = head[0] & 0x0f;
    web->left = size == 2   ? head[1]
                : size == 4 ? im_load_u16(head + 2)
                            : im_load_u64(head + 2);
    CHECK(size == 2 || web->left > (size == 4 ? 125 : UINT16_MAX));
    CHECK(web->opcode < IM_WS_CLOSE || web->left <= IM_WS_CONTROL_MAX);
}

/* The end of a frame. */
static void on_end(struct web *web)
{
    uint32_t number;

    web->head_len = 0;
    switch (web->opcode) {
    case IM_WS_TEXT:
    case IM_WS_BINARY:
        web->messages++;
        break;
    case IM_WS_PING:
        break;
    case IM_WS_PONG:
        if (web->is_careless)
            break;
        CHECK(web->control_len == 4);
        memcpy(&number, web->control, 4);
        CHECK(number == web->pongs && number < web->pings);
        web->pongs++;
        break;
    case IM_WS_CLOSE:
        CHECK(web->control_len >= 2);
        web->is_closed = true;
        web->code = im_load_u16(web->control);
        break;
    default:
        FAIL("a frame of opcode %u", web->opcode);
    }
    web->control_len = 0;
}

static bool is_inside(const struct web *web)
{
    uint8_t second = web->head[1];
    return web->head_len >= 2 && web->head_len == (second == 126   ? 4
                                                   : second == 127 ? 10
                                                                   : 2);
}

size_t web_unwrap(struct web *web, uint8_t *bytes, size_t len)
{
    uint8_t *to = bytes;

    for (size_t at = 0; at < len;) {
        if (!is_inside(web)) {
            take_head(web, bytes[at++]);
            if (is_inside(web) && !web->left)
                on_end(web);
            continue;
        }
        size_t some = len - at < web->left ? len - at : (size_t)web->left;
        if (web->opcode >= IM_WS_CLOSE) {
            memcpy(web->control + web->control_len, bytes + at, some);
            web->control_len += some;
        } else {
            memmove(to, bytes + at, some);
            to += some;
        }
        at += some;
        web->left -= some;
        if (!web->left)
            on_end(web);
    }
    return (size_t)(to - bytes);
}

size_t web_greet(struct web *web, const uint8_t *bytes, size_t len)
{
    size_t rest = sizeof WEB_RESPONSE - 1 - web->greeted;

    if (len > rest)
        len = rest;
    CHECK(memcmp(WEB_RESPONSE + web->greeted, bytes, len) == 0);
    web->greeted += len;
    return len;
}
