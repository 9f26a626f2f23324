/*
 * storm_web.h - the client's side of WebSocket, for storms and steps.
 *
 * Bytes to send go into frames cut wherever the dice fall, masked with keys of
 * their own and with pings in between. Bytes that came lose their frames, in
 * place, and are judged: whole heads without mask, pongs in the order of the
 * pings, nothing behind a close.
 */
#pragma once

#include "storm.h"
#include "websocket.h"

#define WEB_REQUEST(path)                                                      \
    "GET " path " HTTP/1.1\r\nHost: there\r\nUpgrade: websocket\r\n\r\n"
#define WEB_RESPONSE "HTTP/1.1 101 Switching Protocols\r\n\r\n"

struct web {
    uint32_t random;
    /* Out. */
    bool is_within;     /* a message that is not finished */
    uint32_t pings;     /* sent; each has its number in it */
    uint32_t ping_odds; /* a ping before one frame in so many; 0: none */
    /* In. */
    size_t greeted; /* bytes of the response */
    uint8_t head[10];
    uint8_t head_len;
    uint8_t opcode; /* of the frame that is coming */
    uint64_t left;  /* of its payload */
    uint8_t control[IM_WS_CONTROL_MAX];
    size_t control_len;
    bool is_careless; /* about pongs: its pings have anything in them */
    uint32_t pongs;   /* received */
    uint32_t messages;
    bool is_closed;
    uint16_t code; /* of the close */
};

/* Room for what web_wrap makes of `len` bytes. */
#define WEB_WRAPPED(len) (2 * (len) + 64)

/* One frame of a client; its size. */
size_t web_frame(uint8_t *to, uint8_t first, const void *payload, size_t len,
                 uint32_t key);

enum web_end {
    WEB_ANYWHERE, /* where messages end means nothing */
    WEB_MORE,     /* this one goes on */
    WEB_LAST      /* and here it ends */
};

/* `len` bytes in a frame of a message of `opcode`. A ping may come before. */
size_t web_wrap(struct web *web, uint8_t *to, uint8_t opcode,
                const uint8_t *from, size_t len, enum web_end end);

/* Takes what came, leaves the payloads of messages at the beginning, and
 * returns how many bytes those are. */
size_t web_unwrap(struct web *web, uint8_t *bytes, size_t len);

/* Takes of what came the response to the request, which is before everything;
 * returns how many bytes those were. */
size_t web_greet(struct web *web, const uint8_t *bytes, size_t len);
