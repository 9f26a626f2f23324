/*
 * cut.c - see cut.h. The workload is replies of a hundred bytes, whole and
 * sixty in a row: one branch by protocol, then straight to the length.
 */
#include "cut.h"

#include <stdbool.h>
#include <string.h>

#define DIGITS 7 /* of a length in text: far above max_bytes, no overflow */

static uint32_t cut_length(const struct cut *cut, const uint8_t *at, size_t len,
                           uint8_t *type)
{
    uint32_t length;

    if (len < cut->length_at + sizeof length)
        return CUT_MORE;
    memcpy(&length, at + cut->length_at, sizeof length);
    length = __builtin_bswap32(length);
    if (length > cut->max_bytes ||
        (int64_t)length + cut->length_adds <= (int64_t)cut->type_at)
        return CUT_BAD;
    if (cut->type_at < 0)
        *type = 0;
    else if ((size_t)cut->type_at < len)
        *type = at[cut->type_at];
    return length + cut->length_adds;
}

/* Behind the CRLF that ends the line; NULL while there is none. */
static const uint8_t *line_end(const uint8_t *at, const uint8_t *end)
{
    const uint8_t *lf = memchr(at, '\n', (size_t)(end - at));

    return lf ? lf + 1 : NULL;
}

/* Whether the decimal number that ends just before a CRLF could be read. */
static bool read_length(const uint8_t *from, const uint8_t *line,
                        uint32_t *number)
{
    const uint8_t *at = line - 2;
    uint32_t value = 0, unit = 1;

    if (at <= from || *at != '\r')
        return false;
    for (int i = 0; i < DIGITS && at > from && at[-1] >= '0' && at[-1] <= '9';
         i++, unit *= 10)
        value += (uint32_t)(*--at - '0') * unit;
    *number = value;
    return unit > 1 && (at == from || at[-1] == ' ');
}

static uint32_t cut_nats(const uint8_t *at, size_t len, uint8_t *type)
{
    static const char words[][5] = {"MSG ", "INFO", "PING", "PONG", "-ERR"};
    const uint8_t *line;
    uint32_t payload;
    size_t known = len < 4 ? len : 4, i = 0;

    while (i < sizeof words / sizeof *words && memcmp(at, words[i], known) != 0)
        i++;
    if (i == sizeof words / sizeof *words)
        return CUT_BAD;
    if (len < 4 || !(line = line_end(at, at + len)))
        return CUT_MORE;
    *type = at[1];
    if (*type != 'S')
        return (uint32_t)(line - at);
    if (!read_length(at + 4, line, &payload))
        return CUT_BAD;
    if (len >= (size_t)(line - at) + payload + 2 &&
        memcmp(line + payload, "\r\n", 2) != 0)
        return CUT_BAD;
    return (uint32_t)(line - at) + payload + 2;
}

enum resp { RESP_UNKNOWN, RESP_LINE, RESP_BYTES, RESP_VALUES, RESP_PAIRS };

/* What follows the first byte of a value: the rest of a line, or a length. */
static enum resp resp_of(uint8_t first)
{
    switch (first) {
    case '+':
    case '-':
    case ':':
    case '_':
    case '#':
    case ',':
    case '(':
        return RESP_LINE;
    case '$':
    case '!':
    case '=':
        return RESP_BYTES;
    case '*':
    case '~':
    case '>':
        return RESP_VALUES;
    case '%':
    case '|':
        return RESP_PAIRS;
    default:
        return RESP_UNKNOWN;
    }
}

static uint32_t cut_resp3(const struct cut *cut, const uint8_t *start,
                          size_t len, uint8_t *type)
{
    size_t at = 0;
    uint64_t values = 1; /* still to come */

    for (*type = *start; values; values--) {
        const uint8_t *line;
        uint32_t number = 0;
        enum resp resp;

        if (at >= len)
            return CUT_MORE;
        resp = resp_of(start[at]);
        if (resp == RESP_UNKNOWN)
            return CUT_BAD;
        line = line_end(start + at, start + len);
        if (!line)
            return CUT_MORE;
        if (resp != RESP_LINE && !read_length(start + at + 1, line, &number))
            return CUT_BAD;
        if (resp == RESP_VALUES)
            values += number;
        else if (resp == RESP_PAIRS) /* an attribute's value comes after it */
            values += 2 * (uint64_t)number + (start[at] == '|');
        at = (size_t)(line - start);
        if (resp == RESP_BYTES)
            at += number + 2;
        /* Each takes 3 bytes at least: what cannot fit is not waited for. */
        if (at + 3 * (values - 1) > cut->max_bytes)
            return CUT_BAD;
    }
    return (uint32_t)at;
}

static uint32_t cut_mqtt(const uint8_t *at, size_t len, uint8_t *type)
{
    uint32_t length = 0, i = 1;

    *type = at[0] >> 4;
    if (*type == 0 || *type == 15)
        return CUT_BAD;
    for (;; i++) {
        if (i > 4)
            return CUT_BAD;
        if (i >= len)
            return CUT_MORE;
        length |= (at[i] & 127u) << (7 * (i - 1));
        if (at[i] < 128)
            return length + i + 1;
    }
}

static uint32_t cut_http(const uint8_t *at, size_t len, uint8_t *type)
{
    static const char upgraded[] = "HTTP/1.1 101";
    size_t known = len < sizeof upgraded - 1 ? len : sizeof upgraded - 1;
    const uint8_t *end;

    *type = 'H';
    if (memcmp(at, upgraded, known) != 0)
        return CUT_BAD;
    end = memmem(at, len, "\r\n\r\n", 4);
    return end ? (uint32_t)(end - at) + 4 : CUT_MORE;
}

static uint32_t cut_websocket(const struct cut *cut, const uint8_t *at,
                              size_t len, uint8_t *type)
{
    uint32_t head = 2;
    uint64_t length;

    *type = at[0];
    if (at[0] == 'H')
        return cut_http(at, len, type);
    if (!memchr("\x81\x82\x88\x89\x8a", at[0], 5))
        return CUT_BAD;
    if (len < 2)
        return CUT_MORE;
    length = at[1];
    if (length > 127) /* a mask */
        return CUT_BAD;
    if (length >= 126) {
        uint32_t bytes = length == 126 ? 2 : 8;

        head += bytes;
        if (len < head)
            return CUT_MORE;
        length = 0;
        for (uint32_t i = 0; i < bytes; i++)
            length = length << 8 | at[2 + i];
        if (length > cut->max_bytes)
            return CUT_BAD;
    }
    if (at[0] == 0x82 && cut->type_at >= 0) {
        if (length <= (uint64_t)cut->type_at)
            return CUT_BAD;
        if (head + (size_t)cut->type_at < len)
            *type = at[head + (uint32_t)cut->type_at];
    }
    return head + (uint32_t)length;
}

static uint32_t cut_websocket_many(const struct cut *cut, const uint8_t *at,
                                   size_t len, uint8_t *type)
{
    if (at[0] == 0)
        return cut_length(cut, at, len, type);
    if (at[0] != 0x82)
        return cut_websocket(cut, at, len, type);
    if (len < 2)
        return CUT_MORE;
    *type = at[0];
    return at[1] < 126 ? 2 : at[1] == 126 ? 4 : at[1] == 127 ? 10 : CUT_BAD;
}

uint32_t cut_reply(const struct cut *cut, const uint8_t *at, size_t len,
                   uint8_t *type)
{
    uint32_t size;

    if (len == 0)
        return CUT_MORE;
    switch ((enum cut_kind)cut->kind) {
    case CUT_LENGTH:
        size = cut_length(cut, at, len, type);
        break;
    case CUT_NATS:
        size = cut_nats(at, len, type);
        break;
    case CUT_RESP3:
        size = cut_resp3(cut, at, len, type);
        break;
    case CUT_MQTT:
        size = cut_mqtt(at, len, type);
        break;
    case CUT_WEBSOCKET:
        size = cut_websocket(cut, at, len, type);
        break;
    case CUT_WEBSOCKET_MANY:
        size = cut_websocket_many(cut, at, len, type);
        break;
    default:
        return CUT_BAD;
    }
    if (size > cut->max_bytes || (size == CUT_MORE && len > cut->max_bytes))
        return CUT_BAD;
    return size <= len ? size : CUT_MORE;
}
