/*
 * storm_messages.c - every message is a function of its author and its number:
 * one topic for sixteen in a row, tags and NO_ECHO by turns, bodies of a dozen
 * bytes to nine thousand.
 */
#include "storm_messages.h"

uint32_t topic_of(uint32_t author, uint32_t number)
{
    return (author + number / 16) % TOPICS;
}

const char *tag_of(uint32_t number)
{
    return number % 3 == 0 ? "" : number & 1 ? "odd" : "even";
}

bool wants_no_echo(uint32_t number)
{
    return number % 5 == 0;
}

int name_topic(char *to, uint32_t topic)
{
    static const char *const kinds[] = {"room", "room", "room",
                                        "room", "hook", "no"};
    return sprintf(to, "%s:%u", kinds[topic], topic);
}

size_t write_message(uint8_t *to, uint32_t author, uint32_t number)
{
    static const uint8_t zeros[IM_MESSAGE_LEN] = {0};
    uint8_t body[MESSAGE_MAX];
    char topic[16], sender[16];
    size_t topic_len = (size_t)name_topic(topic, topic_of(author, number));
    size_t tag_len = strlen(tag_of(number));
    size_t sender_len = (size_t)sprintf(sender, "a%u", author);
    size_t body_len =
        number % 17 ? 10 + number % 190 : 3000 + number % 600 * 10;

    memset(body, (int)(author * 31 + number), body_len);
    size_t names = topic_len + tag_len + sender_len;
    uint8_t *at = to + write_frame(to, IM_MESSAGE, 0, zeros, 28);
    memcpy(at, topic, topic_len);
    memcpy(at + topic_len, tag_of(number), tag_len);
    memcpy(at + topic_len + tag_len, sender, sender_len);
    memcpy(at + names, body, body_len);

    size_t size = IM_MESSAGE_LEN + names + body_len;
    to[2] = (uint8_t)((size - 4) >> 8);
    to[3] = (uint8_t)(size - 4);
    to[5] |= wants_no_echo(number) ? IM_NO_ECHO : 0;
    im_store_u64(to + 24, number);
    to[32] = (uint8_t)topic_len;
    to[33] = (uint8_t)tag_len;
    to[34] = (uint8_t)sender_len;
    return size;
}
