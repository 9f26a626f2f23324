/*
 * conn.h - the life of a connection: open, speak, say goodbye, end.
 */
#pragma once

#include "loop.h"

/* The number Python knows a connection by: thread, generation, slot. Never 0,
 * and never that of another connection while anybody can remember it. */
static inline uint64_t im_conn_id(const struct im_loop *loop, uint32_t slot)
{
    return (uint64_t)loop->number << 56 |
           (uint64_t)loop->conns[slot].generation << 32 | slot;
}

/* The user it logged in as; empty before. Valid while the connection is. */
static inline struct im_span im_conn_user(const struct im_loop *loop,
                                          uint32_t slot)
{
    const struct im_user *user = &loop->users[slot];
    size_t len = loop->conns[slot].user_len;
    return (struct im_span){
        len <= sizeof user->inside ? user->inside : user->apart, len};
}

/* Sets it and the device, once. IM_FULL without memory. */
enum im_status im_conn_name(struct im_loop *loop, uint32_t slot,
                            struct im_span user, struct im_span device);

/* "127.0.0.1:5000" or "[::1]:5000"; empty for what is not TCP. */
size_t im_conn_peer(const struct im_conn *conn, char *to, size_t room);

/* The slot of a connection that still takes part, or IM_NONE. */
uint32_t im_conn_slot(const struct im_loop *loop, uint64_t id);

/* Takes over an accepted socket. IM_FULL when there is no slot for it. */
enum im_status im_conn_open(struct im_loop *loop, int fd);

/* Moves to another state, and counts it. */
void im_conn_enter(struct im_loop *loop, struct im_conn *conn,
                   enum im_state state);

/* Queues a frame of our own making. A connection that cannot take it is
 * doomed. */
void im_conn_send(struct im_loop *loop, uint32_t slot, struct im_span frame);

/* Queues a message and takes it over; NULL is one for which the pool had no
 * room. A connection that cannot have it is doomed. */
void im_conn_give(struct im_loop *loop, uint32_t slot, struct im_msg *msg);

/* Ends a subscription of either kind, live or with a cursor. */
void im_conn_unsubscribe(struct im_loop *loop, uint32_t slot, uint32_t sub);

/* Puts a message into the outbox: one reference, which the caller has counted.
 * False, and the connection doomed, when it is over its bound. */
bool im_conn_put(struct im_loop *loop, uint32_t slot, struct im_msg *msg,
                 enum im_purpose purpose);

/* Sends what there is; ends the connection when it is broken. */
void im_conn_flush(struct im_loop *loop, uint32_t slot);

/* Says goodbye: `code` by `frame`, or by the one kept for that code. Nothing
 * is taken from the connection any more. With IM_CLOSE_PEER it just ends, also
 * in the middle of a goodbye. */
void im_conn_close(struct im_loop *loop, uint32_t slot, uint16_t code,
                   struct im_span frame);

/* To be closed at the next flush: for places that walk over connections. */
void im_conn_doom(struct im_loop *loop, uint32_t slot, uint16_t code);

/* One reason less not to read it; without any the backlog goes on. */
void im_conn_unpause(struct im_loop *loop, uint32_t slot, enum im_pause pause);

/* One reason more. */
static inline void im_conn_pause(struct im_conn *conn, enum im_pause pause)
{
    conn->pause |= (uint8_t)pause;
}

/* Tries again whatever waited: on the resume list. */
void im_conn_retry(struct im_loop *loop, uint32_t slot);

/* Tells Python that it closed, or will when there is room for that. */
bool im_conn_tell_closed(struct im_loop *loop, uint32_t slot);

/* Closes the socket and frees the slot, when nobody is owed anything. */
void im_conn_end(struct im_loop *loop, uint32_t slot);

/* What epoll watches: readable unless deaf, writable while armed. */
void im_conn_watch(struct im_loop *loop, uint32_t slot, uint8_t marks);

/* A record for Python; IM_FULL when it has to wait. */
enum im_status im_loop_tell(struct im_loop *loop, struct im_record record,
                            const struct im_span *parts, size_t count);
