/*
 * websocket.c - heads of frames, and payloads without their mask.
 *
 * A head that is whole in the read is judged where it lies; one that was cut is
 * collected, thirteen bytes at most.
 */
#include "websocket.h"

#include "mask.h"

static size_t head_size(uint8_t second)
{
    uint8_t len = second & 0x7f;
    return 2u + 4u + (len == 126 ? 2u : len == 127 ? 8u : 0u);
}

/* Whether this head may come here; the message it belongs to is begun or goes
 * on. */
static enum im_status enter(struct im_websocket *ws, const uint8_t *head)
{
    uint8_t opcode = head[0] & 0x0f, length = head[1] & 0x7f;
    bool is_last = head[0] & 0x80;
    uint64_t left = length;

    if (length == 126)
        left = im_load_u16(head + 2);
    else if (length == 127)
        left = im_load_u64(head + 2);
    /* The shortest way to write a length is the only one. */
    if ((length == 126 && left < 126) || (length == 127 && left <= UINT16_MAX))
        return IM_BAD;
    if (left >> 63)
        return IM_BAD;
    switch (opcode) {
    case IM_WS_CONTINUATION:
        if (!ws->message)
            return IM_BAD;
        opcode = ws->message;
        ws->message = is_last ? 0 : opcode;
        break;
    case IM_WS_TEXT:
    case IM_WS_BINARY:
        if (ws->message)
            return IM_BAD;
        ws->message = is_last ? 0 : opcode;
        ws->is_deflated = head[0] & IM_WS_DEFLATED;
        break;
    default: /* control: is_bad() has seen to the rest */
        break;
    }
    memcpy(ws->key, head + head_size(head[1]) - 4, 4);
    ws->left = left;
    ws->opcode = opcode;
    ws->is_last = is_last;
    ws->is_inside = true;
    return IM_OK;
}

/* What is wrong with the first two bytes by themselves: reserved bits, unknown
 * opcodes, no mask, a control frame in fragments or too long. */
static bool is_bad(const struct im_websocket *ws, uint8_t first, uint8_t second)
{
    uint8_t opcode = first & 0x0f, reserved = first & 0x70;

    if (ws->may_deflate && (opcode == IM_WS_TEXT || opcode == IM_WS_BINARY))
        reserved &= (uint8_t)~IM_WS_DEFLATED;
    return reserved || (opcode > IM_WS_BINARY && opcode < IM_WS_CLOSE) ||
           opcode > IM_WS_PONG || !(second & 0x80) ||
           (im_websocket_is_control(opcode) &&
            (!(first & 0x80) || (second & 0x7f) > IM_WS_CONTROL_MAX));
}

enum im_status im_websocket_head(struct im_websocket *ws, struct im_span *in)
{
    if (ws->head_len == 0 && in->len >= 2) {
        size_t size = head_size(in->at[1]);
        if (is_bad(ws, in->at[0], in->at[1]))
            return IM_BAD;
        if (in->len >= size) {
            const uint8_t *head = in->at;
            in->at += size;
            in->len -= size;
            return enter(ws, head);
        }
    }
    uint8_t head[IM_WS_HEAD_MAX];
    memcpy(head, ws->head, ws->head_len);
    while (in->len) {
        head[ws->head_len++] = *in->at++;
        in->len--;
        if (ws->head_len == 2 && is_bad(ws, head[0], head[1]))
            return IM_BAD;
        if (ws->head_len >= 2 && ws->head_len == head_size(head[1])) {
            ws->head_len = 0;
            return enter(ws, head);
        }
    }
    memcpy(ws->head, head, ws->head_len);
    return IM_MORE;
}

size_t im_websocket_take(struct im_websocket *ws, struct im_span *in,
                         uint8_t *to)
{
    size_t len = in->len < ws->left ? in->len : (size_t)ws->left;

    if (len)
        im_mask(to, in->at, len, ws->key);
    in->at += len;
    in->len -= len;
    ws->left -= len;
    if (ws->left == 0)
        ws->is_inside = false;
    return len;
}

size_t im_websocket_write(uint8_t *to, uint8_t first, uint64_t len)
{
    to[0] = first;
    if (len < 126) {
        to[1] = (uint8_t)len;
        return 2;
    }
    if (len <= UINT16_MAX) {
        to[1] = 126;
        to[2] = (uint8_t)(len >> 8);
        to[3] = (uint8_t)len;
        return 4;
    }
    to[1] = 127;
    im_store_u64(to + 2, len);
    return 10;
}

bool im_websocket_may_close(uint16_t code)
{
    return (code >= 1000 && code <= 1014 && code != 1004 && code != 1005 &&
            code != 1006) ||
           (code >= 3000 && code <= 4999);
}
