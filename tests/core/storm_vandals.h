/*
 * storm_vandals.h - what vandals send, over TCP and over WebSocket, and the
 * code that each of them is closed with.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vandalism {
    bool is_web;
    bool logs_in;
    bool hangs_up;
    uint16_t code; /* that it is closed with; 0: the stream just ends */
    const char *bytes;
    size_t len;
};

#define BYTES(text) text, sizeof text - 1
static const struct vandalism VANDALISM[] = {
    {false, false, false, 0, BYTES("GET / HTTP/1.1\r\nHost: there\r\n\r\n")},
    {false, false, false, 4001, BYTES("\0\0\0\4\13\0\0\0")},
    {false, false, false, 4013, BYTES("\0\0\xff\0\1\100\0\1....")},
    {false, false, false, 4004, BYTES("\0\0\0\3\1\100\0\1")},
    {false, false, true, 0, BYTES("")},
    {false, false, true, 0, BYTES("\0\0")},
    {false, true, false, 4004, BYTES("\0\0\0\0\0\0\0\0\0\0\0\0\0")},
    {false, true, false, 4013, BYTES("\0\1\0\0\7\100\0\0 much too large")},
    {false, true, false, 4004, BYTES("\x7f\xff\xff\xff\7\100\0\0")},
    {false, true, false, 4004,
     BYTES("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")},
    {false, true, true, 0, BYTES("\0\0\0\x40\7\100\0\0 half a frame")},
    {false, false, true, 0, BYTES("GET /ws HTTP/1.1\r\nHost: the")},
    {true, false, true, 0, BYTES("")},
    {true, false, false, 1002, BYTES("\x82\5hello")},
    {true, false, false, 4001, BYTES("\x82\x88.......*%...")},
    {true, true, false, 1003, BYTES("\x81\x82key!ab")},
    {true, true, false, 1002, BYTES("\x82\x80key!\x83\x80key!")},
    {true, true, false, 1002, BYTES("\x80\x80key!")},
    {true, true, false, 1007, BYTES("\x88\x83\0\0\0\0\3\350\xff")},
    {true, true, false, 4004,
     BYTES("\x82\x8d\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")},
    {true, true, false, 4013, BYTES("\x82\x8a\0\0\0\0\0\1\0\0\7\100\0\0\0\0")},
    {true, true, true, 0,
     BYTES("\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xffkey!")},
    {true, true, true, 0, BYTES("\x89\xfdkey! a ping that never ends")},
};
enum { VANDALS = sizeof VANDALISM / sizeof *VANDALISM };
