/*
 * fuzz_websocket.c - the frames of a stream, cut anywhere and unmasked in
 * place, beside a model that has all of it and takes a byte at a time.
 */
#include "fuzz.h"

#define FRAMES_MAX 4096

struct frames {
    uint32_t count;
    struct {
        uint8_t opcode;
        bool is_last;
        size_t at, len; /* of what has come of its payload */
    } all[FRAMES_MAX];
    uint8_t payloads[1 << 16];
    size_t payload_len;
    bool is_bad;
};

/* RFC 6455, 5.2, as it is written. Returns false at the end of the input. */
static bool model_frame(struct frames *frames, const uint8_t **at,
                        const uint8_t *end, uint8_t *message)
{
    const uint8_t *head = *at;
    size_t left = (size_t)(end - head);

    if (left < 2)
        return false;
    bool fin = head[0] >> 7;
    uint8_t opcode = head[0] & 15;
    bool is_control = opcode >= 8, is_masked = head[1] >> 7;
    uint64_t len = head[1] & 127;
    bool is_known = opcode <= 2 || (opcode >= 8 && opcode <= 10);

    frames->is_bad = (head[0] >> 4 & 7) || !is_known || !is_masked ||
                     (is_control && (!fin || len > 125));
    if (frames->is_bad)
        return false;
    size_t more = len == 126 ? 2 : len == 127 ? 8 : 0;
    if (left < 6 + more)
        return false;
    if (more)
        len = 0;
    for (size_t i = 0; i < more; i++)
        len = len << 8 | head[2 + i];
    frames->is_bad = (more == 2 && len < 126) || (more == 8 && len < 65536) ||
                     len >> 63 || (opcode == 0 && !*message) ||
                     ((opcode == 1 || opcode == 2) && *message);
    if (frames->is_bad)
        return false;
    if (!is_control) {
        opcode = opcode ? opcode : *message;
        *message = fin ? 0 : opcode;
    }
    const uint8_t *key = head + 2 + more, *from = key + 4;
    size_t has =
        (size_t)(end - from) < len ? (size_t)(end - from) : (size_t)len;
    frames->all[frames->count].opcode = opcode;
    frames->all[frames->count].is_last = fin;
    frames->all[frames->count].at = frames->payload_len;
    frames->all[frames->count++].len = has;
    for (size_t i = 0; i < has; i++)
        frames->payloads[frames->payload_len++] = from[i] ^ key[i % 4];
    *at = from + has;
    return has == len;
}

/* One piece through the real thing. False when it has shown to be bad. */
static bool take(struct frames *frames, struct im_websocket *ws, uint8_t *bytes,
                 size_t len)
{
    struct im_span in = {bytes, len};
    uint8_t *to = bytes;

    while (in.len || (ws->is_inside && !ws->left)) {
        if (!ws->is_inside) {
            enum im_status status = im_websocket_head(ws, &in);
            if (status != IM_OK)
                return status == IM_MORE;
            frames->all[frames->count].opcode = ws->opcode;
            frames->all[frames->count].is_last = ws->is_last;
            frames->all[frames->count].at = frames->payload_len;
            frames->all[frames->count++].len = 0;
            if (ws->left && !in.len)
                break;
        }
        size_t got = im_websocket_take(ws, &in, to);
        CHECK(to + got <= in.at);
        memcpy(frames->payloads + frames->payload_len, to, got);
        frames->payload_len += got;
        frames->all[frames->count - 1].len += got;
        to += got;
    }
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct frames real, model;
    struct im_websocket ws = {0};
    uint8_t message = 0;
    uint32_t random;

    if (size < 4 || size > FRAMES_MAX)
        return 0;
    memcpy(&random, data, 4);
    data += 4;
    size -= 4;
    memset(&real, 0, offsetof(struct frames, payloads));
    memset(&model, 0, offsetof(struct frames, payloads));
    real.payload_len = model.payload_len = 0;
    real.is_bad = model.is_bad = false;

    const uint8_t *at = data;
    while (model_frame(&model, &at, data + size, &message))
        ;
    for (size_t done = 0, piece; done < size && !real.is_bad; done += piece) {
        piece = fuzz_piece(&random, size - done);
        uint8_t *bytes = malloc(piece);
        CHECK(bytes);
        memcpy(bytes, data + done, piece);
        real.is_bad = !take(&real, &ws, bytes, piece);
        free(bytes);
    }
    CHECK(real.is_bad == model.is_bad);
    CHECK(real.count == model.count);
    CHECK(memcmp(real.all, model.all, real.count * sizeof *real.all) == 0);
    CHECK(real.payload_len == model.payload_len);
    CHECK(memcmp(real.payloads, model.payloads, real.payload_len) == 0);
    return 0;
}
