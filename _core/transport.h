/*
 * transport.h - how the bytes of a connection reach the kernel, and what
 * carries its frames there. TLS puts itself here.
 */
#pragma once

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base.h"

enum im_transport {
    IM_TRANSPORT_TCP = 0,  /* frames by themselves */
    IM_TRANSPORT_HTTP = 1, /* a request that may become one of the others */
    IM_TRANSPORT_WEB = 2,  /* frames in binary messages of WebSocket */
    IM_TRANSPORT_PLAIN = 3 /* messages of WebSocket that Python reads */
};

/* Bytes read or written; 0 from a read when the peer has finished. IM_MORE as
 * *status when the kernel has none, or no room; IM_BAD when the connection is
 * broken. */
static inline size_t im_transport_result(ssize_t result, enum im_status *status)
{
    *status = IM_OK;
    if (IM_LIKELY(result >= 0))
        return (size_t)result;
    *status = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR
                  ? IM_MORE
                  : IM_BAD;
    return 0;
}

static inline size_t im_transport_read(int fd, const struct iovec *parts,
                                       uint32_t count, enum im_status *status)
{
    if (IM_LIKELY(count == 1))
        return im_transport_result(
            recv(fd, parts->iov_base, parts->iov_len, MSG_DONTWAIT), status);
    return im_transport_result(readv(fd, parts, (int)count), status);
}

static inline size_t im_transport_write(int fd, struct iovec *parts,
                                        uint32_t count, enum im_status *status)
{
    if (IM_LIKELY(count == 1))
        return im_transport_result(send(fd, parts->iov_base, parts->iov_len,
                                        MSG_DONTWAIT | MSG_NOSIGNAL),
                                   status);
    struct msghdr all = {.msg_iov = parts, .msg_iovlen = count};
    return im_transport_result(sendmsg(fd, &all, MSG_DONTWAIT | MSG_NOSIGNAL),
                               status);
}
