/*
 * mask.h - the four-byte XOR that WebSocket clients send their payload through.
 *
 * Most frames of a chat are below a hundred bytes, where the set-up costs more
 * than the bytes; large ones go 32 bytes a step where the machine can.
 */
#pragma once

#include "base.h"

/* `len` bytes of `from`, each XORed with the key in turn, to `to`; they may
 * overlap when `to` does not lie behind `from`. So a frame loses its mask and
 * its head in one pass. The key is turned by what was used of it. */
void im_mask(uint8_t *to, const uint8_t *from, size_t len, uint8_t key[4]);
