/*
 * steps_follow.c - single steps of durable subscriptions: behind, fed, live,
 * acknowledged, sent again.
 *
 *     steps_follow NAME
 */
#define _GNU_SOURCE
#include "stage_store.h"

static struct store *new_timeline(struct stage *stage, uint64_t count)
{
    struct store *store = new_store(stage);

    start_listening(stage);
    int author = log_in(stage, false);
    for (uint64_t id = 1; id <= count; id++) {
        keep(author, "room", id, 0, 100);
        settle(stage);
        commit(store);
        expect_receipt(stage, author, id, id);
    }
    return store;
}

/* One message more. */
static void keep_next(struct stage *stage, struct store *store)
{
    uint64_t id = store->heads[0] + 1;

    keep(stage->clients[0], "room", id, 0, 100);
    settle(stage);
    commit(store);
    expect_receipt(stage, stage->clients[0], id, id);
}

static void who_follows_catches_up_and_is_live_then(void)
{
    struct stage stage = new_stage(default_config(2));
    struct store *store = new_timeline(&stage, 5);
    struct told told;

    int reader = log_in(&stage, false);
    follow(&stage, 1, 9, "room", "*", 2, 8);
    expect_want(&stage, 9, 2, 2, 8);
    CHECK(is_quiet(&stage, reader));
    feed(&stage, store, 1, 9, "room", 3, 5);
    for (uint64_t seq = 3; seq <= 5; seq++)
        expect_message(&stage, reader, seq);
    for (uint64_t seq = 6; seq <= 8; seq++) {
        keep_next(&stage, store);
        expect_message(&stage, reader, seq);
    }
    CHECK(!is_told(&stage, IM_EVENT_WANT, &told) && is_quiet(&stage, reader));
    CHECK(stat_of(stage.core, "fed") == 3);
    end(&stage);
    close_store(store);
}

static void a_commit_between_want_and_feed_is_not_lost(void)
{
    struct stage stage = new_stage(default_config(2));
    struct store *store = new_timeline(&stage, 2);

    int reader = log_in(&stage, false);
    follow(&stage, 1, 9, "room", "*", 0, 8);
    expect_want(&stage, 9, 0, 0, 8);
    store->heads[0] = 2; /* read by now; then one more is committed */
    keep_next(&stage, store);
    CHECK(is_quiet(&stage, reader));
    store->heads[0] = 2;
    feed(&stage, store, 1, 9, "room", 1, 2);
    store->heads[0] = 3;
    expect_message(&stage, reader, 1);
    expect_message(&stage, reader, 2);
    expect_want(&stage, 9, 0, 2, 6);
    feed(&stage, store, 1, 9, "room", 3, 3);
    expect_message(&stage, reader, 3);
    keep_next(&stage, store);
    expect_message(&stage, reader, 4);
    end(&stage);
    close_store(store);
}

static void what_was_fed_is_not_sent_again_by_its_commit(void)
{
    struct stage stage = new_stage(default_config(0));
    struct store *store = new_timeline(&stage, 1);

    int reader = log_in(&stage, false);
    follow(&stage, 1, 9, "room", "*", 0, 8);
    expect_want(&stage, 9, 0, 0, 8);
    keep(stage.clients[0], "room", 2, 0, 100);
    settle(&stage);
    commit(store); /* and is read before the thread takes it */
    struct im_record record = {.kind = IM_COMMAND_FEED, .b = 9};
    tell_kept(&stage, store, 1, record, "room", 1, 2);
    settle(&stage);
    expect_message(&stage, reader, 1);
    expect_message(&stage, reader, 2);
    CHECK(is_quiet(&stage, reader));
    keep(stage.clients[0], "room", 3, 0, 100);
    settle(&stage);
    commit(store);
    expect_message(&stage, reader, 3);
    end(&stage);
    close_store(store);
}

static void a_full_window_asks_again_when_half_of_it_is_free(void)
{
    struct stage stage = new_stage(default_config(0));
    struct store *store = new_timeline(&stage, 1);
    struct told told;

    int reader = log_in(&stage, false);
    follow(&stage, 1, 9, "room", "*", 1, 4);
    expect_want(&stage, 9, 1, 1, 4);
    feed(&stage, store, 1, 9, "room", 2, 1);
    for (int i = 0; i < 6; i++)
        keep_next(&stage, store);
    for (uint64_t seq = 2; seq <= 5; seq++)
        expect_message(&stage, reader, seq);
    CHECK(is_quiet(&stage, reader));
    send_position(reader, IM_ACK, "room", 2);
    settle(&stage);
    CHECK(!is_told(&stage, IM_EVENT_WANT, &told));
    send_position(reader, IM_ACK, "room", 3);
    expect_want(&stage, 9, 3, 5, 2);
    feed(&stage, store, 1, 9, "room", 6, 7);
    expect_message(&stage, reader, 6);
    expect_message(&stage, reader, 7);
    send_position(reader, IM_ACK, "room", 7);
    keep_next(&stage, store);
    expect_message(&stage, reader, 8);
    CHECK(stat_of(stage.core, "acks") == 3);
    end(&stage);
    close_store(store);
}

static void what_a_filter_keeps_back_is_passed_over(void)
{
    struct stage stage = new_stage(default_config(0));
    struct store *store = new_timeline(&stage, 0);
    uint8_t frame[100];

    int reader = log_in(&stage, false);
    for (uint64_t id = 1; id <= 12; id++) {
        write_kept(frame, "room", id % 3 ? "y" : "x", id, 0, sizeof frame);
        send_bytes(stage.clients[0], frame, sizeof frame);
        settle(&stage);
        commit(store);
        expect_receipt(&stage, stage.clients[0], id, id);
        if (id == 6) {
            follow(&stage, 1, 9, "room", "x", 0, 3);
            expect_want(&stage, 9, 0, 0, 3);
            feed(&stage, store, 1, 9, "room", 1, 3); /* as it has room */
            expect_message(&stage, reader, 3);
            expect_want(&stage, 9, 2, 3, 2);
            send_position(reader, IM_ACK, "room", 3);
            settle(&stage);
            feed(&stage, store, 1, 9, "room", 4, 6);
            expect_message(&stage, reader, 6);
            send_position(reader, IM_ACK, "room", 6);
            settle(&stage);
        }
    }
    expect_message(&stage, reader, 9);
    send_position(reader, IM_ACK, "room", 9);
    settle(&stage);
    CHECK(is_quiet(&stage, stage.clients[0]));
    for (struct told told; is_told(&stage, IM_EVENT_WANT, &told);)
        feed(&stage, store, 1, 9, "room", told_u64(&told, 8) + 1, 12);
    expect_message(&stage, reader, 12);
    CHECK(is_quiet(&stage, reader));
    end(&stage);
    close_store(store);
}

/* Retention has taken more than a window. */
static void what_is_gone_is_passed_over_and_nothing_waits_for_it(void)
{
    struct stage stage = new_stage(default_config(0));
    struct store *store = new_timeline(&stage, 12);
    struct told told;

    int reader = log_in(&stage, false);
    follow(&stage, 1, 9, "room", "*", 0, 4);
    expect_want(&stage, 9, 0, 0, 4);
    feed(&stage, store, 1, 9, "room", 9, 11);
    for (uint64_t seq = 9; seq <= 11; seq++)
        expect_message(&stage, reader, seq);
    expect_want(&stage, 9, 8, 11, 1);
    send_position(reader, IM_ACK, "room", 11);
    settle(&stage);
    feed(&stage, store, 1, 9, "room", 13, 12); /* damaged */
    keep_next(&stage, store);
    expect_message(&stage, reader, 13);
    CHECK(!is_told(&stage, IM_EVENT_WANT, &told));
    end(&stage);
    close_store(store);
}

static void a_feed_for_a_cursor_that_has_gone_is_nothing(void)
{
    struct stage stage = new_stage(default_config(0));
    struct store *store = new_timeline(&stage, 2);

    int reader = log_in(&stage, false);
    follow(&stage, 1, 9, "room", "*", 0, 4);
    follow(&stage, 1, 10, "room", "*", 1, 4); /* instead of the other */
    feed(&stage, store, 1, 9, "room", 1, 2);
    CHECK(is_quiet(&stage, reader));
    feed(&stage, store, 1, 10, "room", 2, 2);
    expect_message(&stage, reader, 2);
    stage.client_count--;
    reset(reader);
    settle(&stage);
    feed(&stage, store, 1, 10, "room", 1, 2);
    CHECK(stat_of(stage.core, "fed") == 1 && stage.closed == 1);
    end(&stage);
    close_store(store);
}

/* What a client of the stage is owed, in bytes and what they cost. */
static uint64_t owed_to(const struct stage *stage, uint32_t client)
{
    uint32_t slot = (uint32_t)stage->conns[client];
    return im_outbox_cost(&stage->core->loops[0].conns[slot].outbox);
}

static void who_follows_and_does_not_read_lags_and_goes_on_later(void)
{
    struct stage stage = new_stage(default_config(0));
    int small = 4096, large = 1 << 20;
    uint8_t frame[2000];
    uint32_t wants = 0;
    struct told told;

    setsockopt(stage.listener, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    struct store *store = new_timeline(&stage, 0);
    int reader = log_in(&stage, false);
    setsockopt(reader, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    follow(&stage, 1, 9, "room", "*", 0, 0);
    settle(&stage);
    for (uint64_t id = 1; id <= 200; id++) {
        write_kept(frame, "room", "", id, 0, sizeof frame);
        send_bytes(stage.clients[0], frame, sizeof frame);
        settle(&stage);
        commit(store);
        expect_receipt(&stage, stage.clients[0], id, id);
        /* Python answers at once; whoever lags asks it nothing. */
        for (; is_told(&stage, IM_EVENT_WANT, &told); wants++) {
            uint64_t sent = told_u64(&told, 8);
            feed(&stage, store, 1, 9, "room", sent + 1,
                 sent + 40 < id ? sent + 40 : id);
        }
        CHECK(owed_to(&stage, 1) <= (64 << 10) + sizeof frame + 64);
    }
    CHECK(wants < 10 && stage.closed == 0);
    CHECK(stage.core->loops[0].conns[1].marks & IM_MARK_LAGS);
    setsockopt(reader, SOL_SOCKET, SO_RCVBUF, &large, sizeof large);
    for (uint64_t seq = 1; seq <= 200; seq++) {
        expect_message(&stage, reader, seq);
        for (; is_told(&stage, IM_EVENT_WANT, &told); wants++) {
            uint64_t sent = told_u64(&told, 8);
            feed(&stage, store, 1, 9, "room", sent + 1,
                 sent + 40 < 200 ? sent + 40 : 200);
        }
    }
    CHECK(wants < 30 && stage.closed == 0);
    keep_next(&stage, store);
    expect_message(&stage, reader, 201);
    end(&stage);
    close_store(store);
}

static void a_message_above_the_soft_bound_comes_at_once(void)
{
    struct im_config config = default_config(0);
    config.outbox_soft_bytes = 1024;
    struct stage stage = new_stage(config);
    struct store *store = new_timeline(&stage, 0);

    int reader = log_in(&stage, false);
    follow(&stage, 1, 9, "room", "*", 0, 8);
    feed(&stage, store, 1, 9, "room", 1, 0);
    keep(stage.clients[0], "room", 1, 0, 4000);
    settle(&stage);
    commit(store);
    expect_message(&stage, reader, 1);
    end(&stage);
    close_store(store);
}

static void redeliver(struct stage *stage, struct store *store,
                      uint16_t silence_ms, uint64_t first, uint64_t last)
{
    struct im_record record = {
        .kind = IM_COMMAND_REDELIVER, .a = silence_ms, .b = 9};

    tell_kept(stage, store, 1, record, "room", first, last);
    settle(stage);
}

static void a_silent_peer_is_asked_before_it_is_sent_anything_again(void)
{
    struct stage stage = new_stage(default_config(0));
    struct store *store = new_timeline(&stage, 1);
    uint8_t frame[FRAME_BYTES];
    struct told told;

    int reader = log_in(&stage, false);
    follow(&stage, 1, 9, "room", "*", 0, 8);
    feed(&stage, store, 1, 9, "room", 1, 1);
    expect_message(&stage, reader, 1);
    usleep(50 * 1000);
    redeliver(&stage, store, 20, 1, 1);
    CHECK(is_told(&stage, IM_EVENT_REDELIVERED, &told));
    CHECK(told.a == 0 && told.b == 9);
    CHECK(receive(&stage, reader, frame) == IM_PING); /* at the next sweep */
    send_frame(reader, IM_PONG, "");
    settle(&stage);
    redeliver(&stage, store, 60000, 1, 1);
    CHECK(is_told(&stage, IM_EVENT_REDELIVERED, &told) && told.a == 1);
    expect_message(&stage, reader, 1);
    CHECK(stat_of(stage.core, "redelivered") == 1);
    end(&stage);
    close_store(store);
}

static void what_is_sent_again_is_sent_whole_or_not_at_all(void)
{
    struct im_config config = default_config(0);
    config.outbox_soft_bytes = 16 << 10;
    struct stage stage = new_stage(config);
    struct store *store = new_timeline(&stage, 0);
    struct told told;
    uint8_t pad[12000];

    int reader = log_in(&stage, false);
    follow(&stage, 1, 9, "room", "*", 0, 32);
    feed(&stage, store, 1, 9, "room", 1, 0);
    for (uint64_t id = 1; id <= 20; id++) {
        keep(stage.clients[0], "room", id, 0, 2000);
        settle(&stage);
        commit(store);
        expect_message(&stage, reader, id);
    }
    redeliver(&stage, store, 60000, 1, 20);
    CHECK(is_told(&stage, IM_EVENT_REDELIVERED, &told) && told.a == 1);
    for (uint64_t id = 1; id <= 20; id++)
        expect_message(&stage, reader, id);
    write_message_to(pad, "room", sizeof pad);
    im_conn_send(stage.core->loops, 1, (struct im_span){pad, sizeof pad});
    redeliver(&stage, store, 60000, 1, 20);
    CHECK(is_told(&stage, IM_EVENT_REDELIVERED, &told) && told.a == 0);
    CHECK(stat_of(stage.core, "redelivered") == 20);
    end(&stage);
    close_store(store);
}

static void a_nack_is_answered_before_anything_else(void)
{
    struct stage stage = new_stage(default_config(0));
    struct store *store = new_timeline(&stage, 2);
    uint8_t frame[FRAME_BYTES];
    struct told told;

    int reader = log_in(&stage, false);
    follow(&stage, 1, 9, "room", "*", 0, 8);
    feed(&stage, store, 1, 9, "room", 1, 2);
    expect_message(&stage, reader, 1);
    expect_message(&stage, reader, 2);
    for (int round = 0; round < 2; round++) {
        /* And afterwards an old ACK is no news to the core alone. */
        send_position(reader, round ? IM_ACK : IM_NACK, "room", round ? 0 : 1);
        send_frame(reader, IM_PING, "");
        CHECK(is_quiet(&stage, reader));
        CHECK(is_told(&stage, IM_EVENT_POSITION, &told));
        CHECK(told.a == (round ? IM_ACK : IM_NACK) && told.b == 9);
        CHECK(told_u64(&told, 0) == (round ? 0 : 1));
        struct im_record go = {.kind = IM_COMMAND_SEND,
                               .a = IM_ENDS_PAUSE,
                               .conn = stage.conns[1]};
        tell(&stage, 0, go, NULL, 0);
        CHECK(receive(&stage, reader, frame) == IM_PONG);
    }
    end(&stage);
    close_store(store);
}

static void how_far_it_got_is_told_before_the_end(void)
{
    struct stage stage = new_stage(default_config(0));
    struct store *store = new_timeline(&stage, 3);
    struct told told;

    int reader = log_in(&stage, false);
    follow(&stage, 1, 9, "room", "*", 0, 8);
    feed(&stage, store, 1, 9, "room", 1, 3);
    for (uint64_t seq = 1; seq <= 3; seq++)
        expect_message(&stage, reader, seq);
    send_position(reader, IM_ACK, "room", 2);
    stage.client_count--;
    reset(reader);
    settle(&stage);
    CHECK(stage.told[stage.told_count - 1].kind == IM_EVENT_CLOSED);
    told = stage.told[stage.told_count - 2];
    CHECK(told.kind == IM_EVENT_CURSORS && told.len == 24);
    CHECK(*(uint32_t *)(void *)told.bytes == 9);
    CHECK(told_u64(&told, 8) == 2 && told_u64(&told, 16) == 3);
    CHECK(stage.core->loops[0].cursors.changed == IM_NONE);
    end(&stage);
    close_store(store);
}

/* The gauges are read at a tick. */
static uint64_t gauge(struct stage *stage, const char *name)
{
    usleep(20 * 1000);
    settle(stage);
    return stat_of(stage->core, name);
}

static void a_member_that_follows_and_comes_back_is_counted_once(void)
{
    struct stage stage = new_stage(default_config(2));
    struct store *store = new_timeline(&stage, 0);
    uint8_t frame[FRAME_BYTES];

    int reader = log_in(&stage, false);
    const struct im_loop *loop = &stage.core->loops[1];
    for (uint64_t round = 0; round < 3; round++) {
        send_frame(reader, IM_SUBSCRIBE, "room");
        CHECK(receive(&stage, reader, frame) == IM_SUBSCRIBED);
        CHECK(gauge(&stage, "subscriptions") == 1);
        CHECK(gauge(&stage, "cursors") == 0 && loop->conns[0].sub_count == 1);
        keep_next(&stage, store);
        expect_message(&stage, reader, store->heads[0]);
        for (uint32_t number = 1; number <= 2; number++)
            follow(&stage, 1, number, "room", "x||y", store->heads[0], 8);
        follow(&stage, 1, 3, "room", "*", store->heads[0], 8);
        feed(&stage, store, 1, 3, "room", 1, store->heads[0]);
        CHECK(gauge(&stage, "subscriptions") == 1);
        CHECK(gauge(&stage, "cursors") == 1 && loop->conns[0].sub_count == 1);
        keep_next(&stage, store);
        expect_message(&stage, reader, store->heads[0]);
        CHECK(is_quiet(&stage, reader));
    }
    struct im_record record = {
        .kind = IM_COMMAND_UNSUBSCRIBE, .b = 4, .conn = stage.conns[1]};
    tell(&stage, 1, record, &(struct im_span){(const uint8_t *)"room", 4}, 1);
    CHECK(gauge(&stage, "subscriptions") == 0);
    CHECK(gauge(&stage, "cursors") == 0 && loop->filters.live == 0);
    CHECK(loop->topics.topic_count == 0 && loop->conns[0].sub_count == 0);
    keep_next(&stage, store);
    CHECK(is_quiet(&stage, reader));
    end(&stage);
    close_store(store);
}

static const struct step STEPS[] = {
    STEP(who_follows_catches_up_and_is_live_then),
    STEP(a_commit_between_want_and_feed_is_not_lost),
    STEP(what_was_fed_is_not_sent_again_by_its_commit),
    STEP(a_full_window_asks_again_when_half_of_it_is_free),
    STEP(what_a_filter_keeps_back_is_passed_over),
    STEP(what_is_gone_is_passed_over_and_nothing_waits_for_it),
    STEP(a_feed_for_a_cursor_that_has_gone_is_nothing),
    STEP(who_follows_and_does_not_read_lags_and_goes_on_later),
    STEP(a_message_above_the_soft_bound_comes_at_once),
    STEP(a_silent_peer_is_asked_before_it_is_sent_anything_again),
    STEP(what_is_sent_again_is_sent_whole_or_not_at_all),
    STEP(a_nack_is_answered_before_anything_else),
    STEP(how_far_it_got_is_told_before_the_end),
    STEP(a_member_that_follows_and_comes_back_is_counted_once),
};

int main(int count, char **arguments)
{
    return run_steps(STEPS, sizeof STEPS / sizeof *STEPS, count, arguments);
}
