/*
 * upgrade.c - the head of an HTTP request, until Python has read it.
 *
 * Heads are parsed by a library on the other side of the border; here only
 * their end is looked for. A stranger gets hello_bytes and handshake_ms, as for
 * a HELLO, and what was sent too early is unmasked in its turn.
 */
#define _GNU_SOURCE
#include "upgrade.h"

#include <string.h>

#include "conn.h"
#include "imcore.h"
#include "intake.h"
#include "transport.h"
#include "web.h"
#include "wrap.h"

/* The head and what follows it, when all of the head is there. */
static bool split(struct im_span all, struct im_span *head,
                  struct im_span *rest)
{
    const uint8_t *end = memmem(all.at, all.len, "\r\n\r\n", 4);
    if (!end)
        return false;
    size_t len = (size_t)(end - all.at) + 4;
    *head = (struct im_span){all.at, len};
    *rest = (struct im_span){all.at + len, all.len - len};
    return true;
}

/* Tells Python. What is behind the head waits, and all of it while there is no
 * room for the event. */
static void tell(struct im_loop *loop, uint32_t slot, struct im_span all,
                 struct im_span head, struct im_span rest)
{
    struct im_conn *conn = &loop->conns[slot];
    char peer[64];
    uint8_t peer_len = (uint8_t)im_conn_peer(conn, peer, sizeof peer);
    struct im_span parts[] = {
        {&peer_len, 1}, {(const uint8_t *)peer, peer_len}, head};
    struct im_record record = {.kind = IM_EVENT_UPGRADE};

    loop->webs[slot].is_raw = true;
    if (im_dispatch_tell(loop, slot, record, parts, 3, IM_PAUSE_UPCALL) ==
        IM_TAKEN)
        conn->marks |= IM_MARK_KNOWN;
    else
        rest = all;
    if (rest.len)
        im_intake_keep(loop, slot, rest);
}

void im_upgrade_take(struct im_loop *loop, uint32_t slot, struct im_span fresh)
{
    struct im_conn *conn = &loop->conns[slot];
    uint32_t most = loop->core->config.hello_bytes;
    struct im_msg *both = NULL;
    struct im_span all = fresh, head, rest;

    if (conn->tail) {
        both = im_intake_join(loop, slot, fresh);
        if (!both)
            return;
        all = (struct im_span){both->bytes, both->len};
    }
    if (split(all, &head, &rest) && head.len <= most) {
        tell(loop, slot, all, head, rest);
    } else if (all.len > most) {
        im_dispatch_close(loop, slot, IM_CLOSE_TOO_LARGE);
    } else if (im_intake_keep(loop, slot, all) != IM_GONE) {
        conn->tail_want = most + 1; /* unfinished */
    }
    if (both)
        im_msg_drop(&loop->pool, both);
}

void im_upgrade_accept(struct im_loop *loop, uint32_t slot, uint8_t transport,
                       bool deflates, struct im_span response)
{
    struct im_conn *conn = &loop->conns[slot];

    if (conn->transport != IM_TRANSPORT_HTTP ||
        !(conn->pause & IM_PAUSE_UPCALL))
        return;
    im_wrap_raw(loop, slot, response);
    if (conn->marks & IM_MARK_DOOMED)
        return; /* it still speaks HTTP, and hears so in HTTP */
    conn->transport = transport;
    loop->webs[slot].in.may_deflate = deflates && loop->deflate;
    im_stat_add(&loop->stats.upgrades, 1);
    if (transport == IM_TRANSPORT_PLAIN) {
        im_conn_enter(loop, conn, IM_STATE_ACTIVE);
        im_heartbeat_watch(&loop->heartbeat, slot, IM_WATCH_LIVE, loop->now_ms);
    }
    im_conn_unpause(loop, slot, IM_PAUSE_UPCALL);
}
