/*
 * journal.h - messages on their way to the store, and back.
 *
 *     an I/O thread:  put ........................ take: receipts, delivery
 *     the store:          collect, (commit), settle
 *
 * A message to keep does not meet Python: its reference goes to the store's
 * thread through a queue and comes back through another one, with the place it
 * was given, when the disk has it.
 *
 *   J1  while the store has a message, nobody else touches it: it is put with
 *       its only reference, and that comes back to the thread it belongs to.
 *   J2  every thread with an interest gets the messages of a topic in the order
 *       of their seqs, whichever thread they were published on.
 *   J3  what was put comes back, kept or not, unless the core stops first.
 *   J4  no receipt before the flush: settle is called after it.
 */
#pragma once

#include "batch.h"
#include "imcore.h"

/* Who hears of it: a connection, or with a token the embedding program. */
struct im_origin {
    uint64_t conn; /* or the token */
    uint64_t device;
    uint32_t is_token;
    uint32_t is_new; /* on the way back: it is to be delivered */
};

/* I/O thread: hands over a message whose only reference the caller holds.
 * IM_FULL while the store has as much as it may; the reference stays. */
enum im_status im_journal_put(struct im_loop *loop, struct im_msg *msg,
                              struct im_origin origin);

/* I/O thread: takes what has come back. */
void im_journal_take(struct im_loop *loop);

/* Tells Python that messages are not kept: all in these frames, of one topic.
 * IM_FULL when it has to wait. */
enum im_status im_journal_refuse(struct im_loop *loop, struct im_origin origin,
                                 uint16_t code, struct im_span frames);

/* The same for a publication with a token that finds no room: Python hears of
 * it now or later. */
void im_journal_refuse_token(struct im_loop *loop, uint64_t token);

/* The store's end, for one thread. */
struct im_journal_entry {
    struct im_msg *msg;
    struct im_origin origin;
    uint32_t first; /* of its frames in the batch */
    uint32_t thread;
};

struct im_journal {
    struct im_core *core;
    struct im_journal_entry *entries;
    uint32_t count, room;
};

/* Once for a core: from now on messages are taken. The store is woken by
 * writing to the event descriptor `fd`; it stays the caller's, who may close it
 * while the threads still run. IM_FULL without a descriptor more. */
enum im_status im_journal_open(struct im_journal *journal, struct im_core *core,
                               int fd);

/* Before or after the core ends; what was collected and not settled is lost. */
void im_journal_close(struct im_journal *journal);

/* Adds what waits to a batch, about `bytes_max`; returns how many messages that
 * are. */
uint32_t im_journal_collect(struct im_journal *journal, struct im_batch *batch,
                            uint64_t bytes_max);

/* Sends back what was collected: as the sealed batch says, or all refused with
 * `code`. Waits while a thread has no room. */
void im_journal_settle(struct im_journal *journal, const struct im_batch *batch,
                       uint16_t code);

/* Announces sleep. False when something arrived meanwhile. */
bool im_journal_sleeps(struct im_journal *journal);
