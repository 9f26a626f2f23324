/*
 * steps_store.c - single steps of what is kept: to the store and back.
 *
 *     steps_store NAME
 */
#define _GNU_SOURCE
#include "stage_store.h"

static void nothing_is_said_before_the_disk_has_it(uint32_t threads)
{
    struct stage stage = new_stage(default_config(threads));
    struct store *store = new_store(&stage);

    start_listening(&stage);
    int author = log_in(&stage, false), reader = log_in(&stage, true);
    keep(author, "room", 7, 0, 100);
    CHECK(is_quiet(&stage, author) && is_quiet(&stage, reader));
    CHECK(stat_of(stage.core, "journalled") == 1);
    CHECK(commit(store) == 1);
    expect_receipt(&stage, author, 7, 1);
    expect_message(&stage, reader, 1);
    CHECK(is_quiet(&stage, author) && is_quiet(&stage, reader));
    end(&stage);
    close_store(store);
}

static void neither_receipt_nor_message_before_the_commit(void)
{
    nothing_is_said_before_the_disk_has_it(0);
}

static void neither_of_them_on_another_thread(void)
{
    nothing_is_said_before_the_disk_has_it(2);
}

static void a_run_is_numbered_densely_and_receipted_one_by_one(void)
{
    struct stage stage = new_stage(default_config(2));
    struct store *store = new_store(&stage);
    uint8_t run[3 * 100];

    start_listening(&stage);
    int author = log_in(&stage, true), reader = log_in(&stage, true);
    keep(author, "room", 1, 0, 100); /* it is allowed to, from here on */
    settle(&stage);
    for (uint64_t i = 0; i < 3; i++)
        write_kept(run + i * 100, "room", "", 10 + i, 0, 100);
    send_bytes(author, run, sizeof run);
    settle(&stage);
    CHECK(stat_of(stage.core, "journalled") == 2);
    CHECK(commit(store) == 2);
    expect_receipt(&stage, author, 1, 1);
    expect_message(&stage, author, 1);
    for (uint64_t i = 0; i < 3; i++)
        expect_receipt(&stage, author, 10 + i, 2 + i);
    for (uint64_t i = 1; i <= 4; i++)
        expect_message(&stage, reader, i);
    CHECK(stat_of(stage.core, "receipts") == 4);
    end(&stage);
    close_store(store);
}

static void two_authors_on_two_threads_make_one_order(void)
{
    struct stage stage = new_stage(default_config(2));
    struct store *store = new_store(&stage);
    int peers[2];

    start_listening(&stage);
    for (int i = 0; i < 2; i++)
        peers[i] = log_in(&stage, true);
    CHECK(im_conn_thread(stage.conns[0]) != im_conn_thread(stage.conns[1]));
    for (uint64_t id = 1; id <= 20; id++) {
        keep(peers[id % 3 == 0], "room", id, IM_NO_ECHO * (id & 1), 100);
        keep(peers[id % 3 != 0], "room", 100 + id, 0, 100);
        for (uint32_t i = 0; i <= id % 4; i++)
            turn(&stage, (uint32_t)(id + i) % 2);
        answer_events(&stage);
        if (id % 5 == 0)
            commit(store);
    }
    settle(&stage);
    commit(store);
    settle(&stage);
    CHECK(store->heads[0] == 40);
    for (int i = 0; i < 2; i++) {
        uint8_t frame[FRAME_BYTES];
        uint64_t last = 0, receipts = 0, messages = 0;
        while (receipts < 20 || has_news(peers[i])) {
            if (receive(&stage, peers[i], frame) == IM_RECEIPT) {
                receipts++;
                continue;
            }
            CHECK(frame[4] == IM_MESSAGE && im_load_u64(frame + 8) > last);
            last = im_load_u64(frame + 8);
            messages++;
        }
        CHECK(receipts == 20 && messages >= 30);
    }
    end(&stage);
    close_store(store);
}

static void a_repeat_gets_the_first_receipt_and_goes_to_nobody(void)
{
    struct stage stage = new_stage(default_config(2));
    struct store *store = new_store(&stage);

    start_listening(&stage);
    int author = log_in(&stage, true), reader = log_in(&stage, true);
    for (uint8_t i = 0; i < 3; i++) {
        keep(author, "room", 7, i ? IM_RETRY : 0, 100);
        settle(&stage);
        commit(store);
        expect_receipt(&stage, author, 7, 1);
        if (i == 0) {
            expect_message(&stage, author, 1);
            expect_message(&stage, reader, 1);
        }
        CHECK(is_quiet(&stage, author) && is_quiet(&stage, reader));
    }
    end(&stage);
    close_store(store);
}

static void other_content_under_a_known_id_is_a_conflict(void)
{
    struct stage stage = new_stage(default_config(2));
    struct store *store = new_store(&stage);
    struct told told;

    start_listening(&stage);
    int author = log_in(&stage, false), reader = log_in(&stage, true);
    keep(author, "room", 7, 0, 100);
    settle(&stage);
    commit(store);
    expect_receipt(&stage, author, 7, 1);
    expect_message(&stage, reader, 1);
    keep(author, "room", 7, IM_RETRY, 101);
    settle(&stage);
    commit(store);
    CHECK(is_quiet(&stage, author) && is_quiet(&stage, reader));
    CHECK(is_told(&stage, IM_EVENT_UNKEPT, &told));
    CHECK(told.a == IM_ERROR_CONFLICT && told.conn == stage.conns[0]);
    CHECK(told.len == 13 && im_load_u64(told.bytes + 5) == 7);
    end(&stage);
    close_store(store);
}

static void what_the_disk_refused_is_told_id_by_id(void)
{
    struct stage stage = new_stage(default_config(2));
    struct store *store = new_store(&stage);
    uint8_t run[3 * 100];
    struct told told;

    start_listening(&stage);
    int author = log_in(&stage, true), reader = log_in(&stage, true);
    keep(author, "room", 1, 0, 100); /* it is allowed to, from here on */
    settle(&stage);
    fail(store, IM_ERROR_NOT_DURABLE);
    settle(&stage);
    CHECK(is_told(&stage, IM_EVENT_UNKEPT, &told));
    for (uint64_t i = 0; i < 3; i++)
        write_kept(run + i * 100, "room", "", 10 + i, 0, 100);
    send_bytes(author, run, sizeof run);
    settle(&stage);
    fail(store, IM_ERROR_NOT_DURABLE);
    CHECK(is_quiet(&stage, author) && is_quiet(&stage, reader));
    CHECK(is_told(&stage, IM_EVENT_UNKEPT, &told));
    CHECK(told.a == IM_ERROR_NOT_DURABLE && told.conn == stage.conns[0]);
    CHECK(told.len == 5 + 3 * 8 && !memcmp(told.bytes, "\4room", 5));
    for (uint32_t i = 0; i < 3; i++)
        CHECK(im_load_u64(told.bytes + 5 + i * 8) == 10 + i);
    CHECK(stat_of(stage.core, "unkept") == 4);
    CHECK(stage.core->loops[0].journal_bytes == 0);
    end(&stage);
    close_store(store);
}

static void an_author_that_left_is_still_heard(void)
{
    struct stage stage = new_stage(default_config(2));
    struct store *store = new_store(&stage);

    start_listening(&stage);
    int author = log_in(&stage, true), reader = log_in(&stage, true);
    keep(author, "room", 7, IM_NO_ECHO, 100);
    settle(&stage);
    stage.clients[0] = stage.clients[--stage.client_count];
    reset(author);
    settle(&stage);
    CHECK(stage.closed == 1);
    log_in(&stage, true); /* takes the slot over */
    commit(store);
    expect_message(&stage, reader, 1);
    expect_message(&stage, stage.clients[1], 1);
    CHECK(is_quiet(&stage, reader) && is_quiet(&stage, stage.clients[1]));
    CHECK(stat_of(stage.core, "receipts") == 1 && stage.told_count == 1);
    end(&stage);
    close_store(store);
}

static void a_full_journal_makes_authors_wait_and_loses_nothing(void)
{
    struct im_config config = default_config(0);
    config.pool_bytes = 1 << 20; /* half of it may be journalled */
    struct stage stage = new_stage(config);
    struct store *store = new_store(&stage);
    struct im_loop *loop = stage.core->loops;
    uint8_t frame[FRAME_BYTES];
    uint64_t next[2] = {1, 1}; /* ids: each author's in its order */
    int authors[2];

    start_listening(&stage);
    for (int i = 0; i < 2; i++)
        authors[i] = log_in(&stage, false);
    for (uint64_t id = 1; id <= 15; id++)
        for (int i = 0; i < 2; i++)
            keep(authors[i], "room", id, 0, 60000);
    for (int commits = 0; next[0] + next[1] < 32; commits++) {
        CHECK(commits < 32);
        settle(&stage);
        CHECK(loop->journal_bytes > 0 && loop->journal_bytes <= 1 << 19);
        CHECK(commits || stat_of(stage.core, "store_waits") > 0);
        commit(store);
        settle(&stage);
        for (int i = 0; i < 2; i++)
            while (has_news(authors[i])) {
                CHECK(receive(&stage, authors[i], frame) == IM_RECEIPT);
                CHECK(im_load_u64(frame + 8) == next[i]++);
            }
    }
    CHECK(store->heads[0] == 30 && stage.closed == 0);
    CHECK(loop->journal_bytes == 0);
    end(&stage);
    close_store(store);
}

static void one_alone_may_be_larger_than_the_journal(void)
{
    struct im_config config = default_config(0);
    config.pool_bytes = 64 << 10;
    struct stage stage = new_stage(config);
    struct store *store = new_store(&stage);

    start_listening(&stage);
    int author = log_in(&stage, false);
    for (uint64_t id = 1; id <= 2; id++)
        keep(author, "room", id, 0, 60000);
    for (uint64_t id = 1; id <= 2; id++) {
        settle(&stage);
        CHECK(commit(store) == 1);
        expect_receipt(&stage, author, id, id);
    }
    end(&stage);
    close_store(store);
}

static void a_burst_from_the_disk_leaves_sockets_their_turn(void)
{
    struct stage stage = new_stage(default_config(0));
    struct store *store = new_store(&stage);

    start_listening(&stage);
    int author = log_in(&stage, false), reader = log_in(&stage, true);
    for (uint64_t id = 1; id <= 400; id++) {
        keep(author, "room", id, IM_NO_ECHO * (id & 1), 1500);
        if (id % 20 == 0)
            settle(&stage);
    }
    commit(store);
    turn(&stage, 0);
    CHECK(!im_queue_is_empty(&stage.core->loops[0].commits));
    for (uint64_t seq = 1; seq <= 400; seq++)
        expect_message(&stage, reader, seq);
    CHECK(stage.closed == 0);
    end(&stage);
    close_store(store);
}

/* Events of no kind, until there is no room for more. */
static void fill_events(struct im_loop *loop)
{
    static const uint8_t nothing[24];

    for (size_t len = sizeof nothing; len <= sizeof nothing; len -= 8)
        while (im_loop_tell(loop, (struct im_record){.kind = FILLER_EVENT},
                            &(struct im_span){nothing, len}, 1) == IM_OK)
            ;
}

static void publish_with_token(struct stage *stage, uint64_t token,
                               const uint8_t *frame, size_t size)
{
    struct im_span parts[] = {{(const uint8_t *)&token, 8}, {frame, size}};

    tell(stage, 0, (struct im_record){.kind = IM_COMMAND_PUBLISH, .b = 1},
         parts, 2);
}

static void a_full_event_queue_loses_no_answer_of_the_disk(void)
{
    struct stage stage = new_stage(default_config(0));
    struct store *store = new_store(&stage);
    struct im_loop *loop = stage.core->loops;
    uint8_t frame[100];
    struct told told;

    start_listening(&stage);
    int author = log_in(&stage, false), reader = log_in(&stage, true);
    write_kept(frame, "room", "", 0, 0, sizeof frame);
    for (uint64_t round = 0; round < 2; round++) {
        keep(author, "room", 7, 0, 100);
        settle(&stage);
        publish_with_token(&stage, 70 + round, frame, sizeof frame);
        turn(&stage, 0);
        fill_events(loop);
        if (round)
            fail(store, IM_ERROR_NOT_DURABLE);
        else
            CHECK(commit(store) == 2);
        for (int i = 0; i < 5; i++)
            turn(&stage, 0);
        CHECK(!im_queue_is_empty(&loop->commits) && loop->commits_wait);
        settle(&stage);
        CHECK(im_queue_is_empty(&loop->commits) && !loop->commits_wait);
        CHECK(is_told(&stage, IM_EVENT_KEPT, &told));
        CHECK(told.conn == 70 + round);
        CHECK(told.a == (round ? IM_ERROR_NOT_DURABLE : 0));
        CHECK(round || told_u64(&told, 0) == 2);
        CHECK(is_told(&stage, IM_EVENT_UNKEPT, &told) == (round == 1));
        CHECK(!round || im_load_u64(told.bytes + 5) == 7);
    }
    expect_receipt(&stage, author, 7, 1);
    expect_message(&stage, reader, 1);
    expect_message(&stage, reader, 2);
    CHECK(is_quiet(&stage, author) && is_quiet(&stage, reader));
    end(&stage);
    close_store(store);
}

/* Neither the journal nor the event queue nor the pool has any. */
static void a_publication_of_the_program_is_answered_without_room(void)
{
    struct im_config config = default_config(0);
    config.pool_bytes = 2048;
    struct stage stage = new_stage(config);
    struct store *store = new_store(&stage);
    struct im_loop *loop = stage.core->loops;
    uint8_t frame[900];
    struct told told;
    uint32_t refused = 0, kept = 0;

    write_kept(frame, "room", "", 0, 0, sizeof frame);
    for (uint64_t token = 1; token <= 10; token++)
        publish_with_token(&stage, token, frame, sizeof frame);
    fill_events(loop);
    turn(&stage, 0);
    while (im_pool_take(&loop->pool, sizeof frame, IM_FOR_MESSAGE))
        ;
    for (uint64_t token = 11; token <= 20; token++)
        publish_with_token(&stage, token, frame, sizeof frame);
    turn(&stage, 0);
    commit(store);
    settle(&stage);
    while (is_told(&stage, IM_EVENT_KEPT, &told)) {
        CHECK(told.a == 0 || told.a == IM_ERROR_OVERLOADED);
        kept += told.a == 0;
        refused += told.a != 0;
    }
    CHECK(kept == 1 && refused == 19);
    end(&stage);
    close_store(store);
}

static void who_wants_no_echo_is_receipted(void)
{
    struct stage stage = new_stage(default_config(0));
    struct store *store = new_store(&stage);

    start_listening(&stage);
    int author = log_in(&stage, true), reader = log_in(&stage, true);
    int follower = log_in(&stage, false);
    follow(&stage, 2, 1, "room", "*", 0, 8);
    feed(&stage, store, 2, 1, "room", 1, 0);
    keep(author, "room", 7, IM_NO_ECHO, 100);
    keep(follower, "room", 8, IM_NO_ECHO, 100);
    settle(&stage);
    commit(store);
    expect_receipt(&stage, author, 7, 1);
    expect_message(&stage, author, 2);
    expect_message(&stage, follower, 1);
    expect_receipt(&stage, follower, 8, 2);
    for (uint64_t seq = 1; seq <= 2; seq++)
        expect_message(&stage, reader, seq);
    CHECK(is_quiet(&stage, author) && is_quiet(&stage, reader));
    CHECK(is_quiet(&stage, follower));
    end(&stage);
    close_store(store);
}

/* In the journal, in the store's hands, and on the way back. */
static void end_in_the_middle(int order)
{
    int before = open_descriptors();
    struct stage stage = new_stage(default_config(2));
    struct store *store = new_store(&stage);

    start_listening(&stage);
    int author = log_in(&stage, true);
    log_in(&stage, true);
    for (uint64_t id = 1; id <= 3; id++) {
        keep(author, "room", id, 0, 100);
        settle(&stage);
        if (id == 1)
            commit(store);
        if (id == 2)
            collect(store);
    }
    if (order == 0) {
        im_core_stop(stage.core);
        fail(store, IM_ERROR_NOT_DURABLE);
        commit(store);
        im_journal_close(&store->journal);
        end(&stage);
    } else if (order == 1) {
        im_journal_close(&store->journal);
        end(&stage);
    } else {
        end(&stage);
    }
    close_store(store);
    close(stage.listener);
    CHECK(open_descriptors() <= before);
}

static void a_core_may_end_with_messages_in_the_stores_hands(void)
{
    for (int order = 0; order < 3; order++)
        end_in_the_middle(order);
}

static const struct step STEPS[] = {
    STEP(neither_receipt_nor_message_before_the_commit),
    STEP(neither_of_them_on_another_thread),
    STEP(a_run_is_numbered_densely_and_receipted_one_by_one),
    STEP(two_authors_on_two_threads_make_one_order),
    STEP(a_repeat_gets_the_first_receipt_and_goes_to_nobody),
    STEP(other_content_under_a_known_id_is_a_conflict),
    STEP(what_the_disk_refused_is_told_id_by_id),
    STEP(an_author_that_left_is_still_heard),
    STEP(a_full_journal_makes_authors_wait_and_loses_nothing),
    STEP(one_alone_may_be_larger_than_the_journal),
    STEP(a_burst_from_the_disk_leaves_sockets_their_turn),
    STEP(a_full_event_queue_loses_no_answer_of_the_disk),
    STEP(a_publication_of_the_program_is_answered_without_room),
    STEP(who_wants_no_echo_is_receipted),
    STEP(a_core_may_end_with_messages_in_the_stores_hands),
};

int main(int count, char **arguments)
{
    return run_steps(STEPS, sizeof STEPS / sizeof *STEPS, count, arguments);
}
