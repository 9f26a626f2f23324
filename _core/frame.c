/*
 * frame.c - frames, parsed in place.
 *
 * Runs once for every frame that arrives, most of them MESSAGEs of a few dozen
 * bytes: one bounds check and a handful of loads each. Whatever it hands out
 * points into the receive ring and lives as long as that.
 *
 *   F1  nothing is read past the span, whatever the length fields say.
 *   F2  a length that is too large is refused on its fourth byte, not after
 *       its body was waited for.
 *
 * Not here: who may send what, UTF-8 (a topic is judged once, by the control
 * plane, before the first right to it exists).
 */
#include "frame.h"

enum im_status im_frame_peek(struct im_span in, uint32_t frame_max,
                             struct im_frame *out)
{
    out->size = 0;
    if (in.len < 4)
        return IM_MORE;

    uint32_t length = im_load_u32(in.at);
    if (length < IM_HEAD_LEN - 4 || length > IM_FRAME_MAX - 4)
        return IM_BAD;
    if (length > frame_max - 4)
        return IM_FULL;

    out->size = length + 4;
    if (in.len < out->size)
        return IM_MORE;

    out->at = in.at;
    out->ahead = (uint32_t)in.len - out->size;
    out->count = 1;
    out->type = in.at[4];
    out->flags = in.at[5];
    out->request = im_load_u16(in.at + 6);
    return IM_OK;
}

enum im_status im_message_peek(const struct im_frame *frame,
                               struct im_message *out)
{
    if (frame->size < IM_MESSAGE_LEN)
        return IM_BAD;

    const uint8_t *at = frame->at;
    uint32_t topic_len = at[32], tag_len = at[33], sender_len = at[34];
    if (topic_len == 0 || tag_len > IM_TAG_MAX || sender_len == 0 ||
        sender_len > IM_USER_MAX)
        return IM_BAD;
    if (IM_MESSAGE_LEN + topic_len + tag_len + sender_len > frame->size)
        return IM_BAD;

    out->id = im_load_u64(at + 24);
    out->topic = (struct im_span){at + IM_MESSAGE_LEN, topic_len};
    out->tag = (struct im_span){out->topic.at + topic_len, tag_len};
    out->sender = (struct im_span){out->tag.at + tag_len, sender_len};
    return IM_OK;
}

void im_frame_extend(struct im_frame *frame, uint32_t names_len,
                     uint32_t len_max)
{
    const uint8_t *first = frame->at;
    const uint32_t least = IM_MESSAGE_LEN + names_len;

    while (frame->ahead >= least && frame->count < UINT16_MAX) {
        const uint8_t *at = first + frame->size;
        uint64_t size = (uint64_t)im_load_u32(at) + 4;
        /* All but the length, the id and the body. */
        if (size < least || size > frame->ahead ||
            frame->size + size > len_max || memcmp(at + 4, first + 4, 20) ||
            memcmp(at + 32, first + 32, 4 + names_len))
            return;
        frame->size += (uint32_t)size;
        frame->ahead -= (uint32_t)size;
        frame->count++;
    }
}

enum im_status im_frame_check_client(const struct im_frame *frame)
{
    if (frame->type != IM_MESSAGE)
        return frame->flags & ~IM_CODEC_MASK ? IM_BAD : IM_OK;

    if (frame->flags & ~(IM_CODEC_MASK | IM_DURABLE | IM_RETRY | IM_NO_ECHO))
        return IM_BAD;
    if (frame->request != 0 || frame->size < IM_MESSAGE_LEN)
        return IM_BAD;

    /* seq, time and attempt are the server's. */
    const uint8_t *at = frame->at;
    if ((im_load_u64(at + 8) | im_load_u64(at + 16) | at[35]) != 0)
        return IM_BAD;
    return IM_OK;
}

enum im_status im_ack_peek(const struct im_frame *frame, struct im_span *topic)
{
    if (frame->size < IM_HEAD_LEN + 9 ||
        frame->size > IM_HEAD_LEN + 8 + IM_TOPIC_MAX)
        return IM_BAD;
    *topic = (struct im_span){frame->at + IM_HEAD_LEN + 8,
                              frame->size - IM_HEAD_LEN - 8};
    return IM_OK;
}
