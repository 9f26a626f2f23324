/*
 * storm_messages.h - what author `author` of a storm writes as its message
 * `number`, so that who receives it can tell whether it is whole.
 */
#pragma once

#include "storm.h"

#define MESSAGE_MAX 16384

uint32_t topic_of(uint32_t author, uint32_t number);
const char *tag_of(uint32_t number);
bool wants_no_echo(uint32_t number);

/* The name of a topic, of less than 16 bytes; returns its length. */
int name_topic(char *to, uint32_t topic);

/* The frame; its size, at most MESSAGE_MAX. */
size_t write_message(uint8_t *to, uint32_t author, uint32_t number);
