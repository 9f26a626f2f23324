/*
 * accept.h - new connections: taken by one thread, shared out among all.
 */
#pragma once

#include "loop.h"

/* Takes over a listening socket, or closes it. */
void im_loop_listen(struct im_loop *loop, int fd);
void im_loop_unlisten(struct im_loop *loop);

/* The listening socket is readable. */
void im_accept(struct im_loop *loop);

/* Listens again after descriptors had run out; called every tick. */
void im_accept_again(struct im_loop *loop);

/* A socket that another thread accepted for this one. */
void im_accept_adopt(struct im_loop *loop, int fd);
