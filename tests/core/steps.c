/*
 * steps.c - single steps of the core: what only shows when turns are taken in a
 * certain order.
 *
 *     steps NAME
 */
#define _GNU_SOURCE
#include "conn.h"
#include "stage.h"

/* Another thread has relayed more than an outbox holds before this one took
 * its turn; the reader's socket takes it all. */
static void a_burst_of_relays_makes_no_reader_slow(void)
{
    struct stage stage = new_stage(default_config(2));
    uint8_t frame[FRAME_BYTES];

    start_listening(&stage);
    int author = log_in(&stage, false), reader = log_in(&stage, true);
    publish(author, 100);
    settle(&stage);
    CHECK(receive(&stage, reader, frame) == IM_MESSAGE);
    CHECK(stat_of(stage.core, "relays") == 1); /* they are on two threads */
    for (int i = 0; i < 40; i++) {
        publish(author, 10000);
        turn(&stage, 0);
    }
    while (stat_of(stage.core, "relays") < 41)
        turn(&stage, 0);
    for (int i = 0; i < 40; i++) {
        CHECK(receive(&stage, reader, frame) == IM_MESSAGE);
    }
    CHECK(stage.closed == 0);
    end(&stage);
}

/* As while a publication waits for another thread: much is put, nothing is
 * flushed, no socket is looked at. */
static void who_has_read_meanwhile_is_not_slow(void)
{
    struct stage stage = new_stage(default_config(0));
    uint8_t frame[FRAME_BYTES], read[FRAME_BYTES];
    struct im_loop *loop = stage.core->loops;

    start_listening(&stage);
    int reader = log_in(&stage, false);
    const struct im_conn *conn = &loop->conns[0];
    write_message_to(frame, "room", 60000);
    while (!(conn->marks & IM_MARK_ARMED)) {
        im_conn_send(loop, 0, (struct im_span){frame, 60000});
        im_conn_flush(loop, 0);
    }
    for (int patience = 0; patience < 50; usleep(1000))
        if (recv(reader, read, sizeof read, MSG_DONTWAIT) < 0)
            patience++;
    for (int i = 0; i < 8; i++)
        im_conn_send(loop, 0, (struct im_span){frame, 60000});
    CHECK(!(conn->marks & IM_MARK_DOOMED));
    settle(&stage);
    CHECK(stage.closed == 0);
    end(&stage);
}

static void *turn_the_other(void *argument)
{
    struct stage *stage = argument;

    usleep(50 * 1000);
    while (!atomic_load(&stage->is_over))
        turn(stage, 1);
    return NULL;
}

/* As if the other thread had relayed a message of that size to the first. */
static void relay_back(struct stage *stage, size_t size)
{
    struct im_loop *to = &stage->core->loops[0], *from = &stage->core->loops[1];
    struct im_msg *msg = im_pool_take(&from->pool, (uint32_t)size, 0);

    CHECK(msg);
    memset(msg->bytes, 0, size);
    write_message_to(msg->bytes, "back", size);
    im_msg_lend(msg, 1);
    im_msg_drop(&from->pool, msg);
    CHECK(im_queue_push(&to->relays[1],
                        (struct im_record){.kind = IM_COMMAND_RELAY,
                                           .conn = (uintptr_t)msg},
                        NULL, 0) == IM_OK);
}

/* The queue to the other thread fills up, so the author's thread takes what is
 * queued for itself, and finds that the author has reset its stream. */
static void nobody_is_closed_in_the_middle_of_its_own_publication(void)
{
    struct stage stage = new_stage(default_config(2));
    uint64_t held = (256 << 10) / sizeof(struct im_record) - 500;
    uint64_t relays = 0;
    pthread_t other;

    start_listening(&stage);
    int author = log_in_to(&stage, "back");
    log_in_to(&stage, "room");
    publish(author, 64); /* it is allowed to, from here on */
    settle(&stage);
    CHECK(stat_of(stage.core, "relays") == 1); /* they are on two threads */
    while ((relays = stat_of(stage.core, "relays")) < held) {
        for (uint64_t i = 0; i < 500 && relays + i < held; i++)
            publish(author, 64);
        while (stat_of(stage.core, "relays") == relays)
            turn(&stage, 0);
    }
    for (int i = 0; i < 20; i++)
        relay_back(&stage, 10000);
    for (int i = 0; i < 1000; i++)
        publish(author, 64);
    stage.client_count--;
    stage.clients[0] = stage.clients[1];
    reset(author);
    CHECK(pthread_create(&other, NULL, turn_the_other, &stage) == 0);
    turn(&stage, 0);
    usleep(10 * 1000);
    atomic_store(&stage.is_over, true);
    pthread_join(other, NULL);
    settle(&stage);
    CHECK(stage.closed == 1 && stage.close_code == IM_CLOSE_PEER);
    end(&stage);
}

static void a_run_crosses_to_the_other_thread_as_one(void)
{
    struct stage stage = new_stage(default_config(2));
    uint8_t frame[FRAME_BYTES], run[3 * 100];

    start_listening(&stage);
    int author = log_in_to(&stage, "back");
    int reader = log_in_to(&stage, "room");
    publish(author, 64); /* it is allowed to, from here on */
    settle(&stage);
    CHECK(receive(&stage, reader, frame) == IM_MESSAGE);
    for (size_t i = 0; i < 3; i++)
        write_message_to(run + i * 100, "room", 100);
    send_bytes(author, run, sizeof run);
    settle(&stage);
    for (int i = 0; i < 3; i++)
        CHECK(receive(&stage, reader, frame) == IM_MESSAGE);
    CHECK(stat_of(stage.core, "relays") == 2);
    CHECK(stat_of(stage.core, "messages_in") == 4);
    CHECK(stat_of(stage.core, "deliveries") == 4);
    end(&stage);
}

/* The pool has room for single frames, not for all of a run in one message. */
static void a_run_without_room_is_taken_one_by_one(void)
{
    struct stage stage = new_stage(default_config(0));
    struct im_pool *pool = &stage.core->loops[0].pool;
    uint8_t frame[FRAME_BYTES], run[3 * 100];

    start_listening(&stage);
    int author = log_in(&stage, false), reader = log_in(&stage, true);
    publish(author, 100); /* it is allowed to, from here on */
    settle(&stage);
    CHECK(receive(&stage, reader, frame) == IM_MESSAGE);
    /* Pages with room for a frame and for a block of references stay. */
    CHECK(im_pool_take(pool, 100, IM_FOR_MESSAGE));
    CHECK(im_pool_take(pool, 232, IM_FOR_MESSAGE));
    while (im_pool_take(pool, sizeof run, IM_FOR_CONTROL))
        ;
    for (size_t i = 0; i < 3; i++) {
        write_message_to(run + i * 100, "room", 100);
        run[i * 100 + 31] = (uint8_t)i; /* of the id */
    }
    send_bytes(author, run, sizeof run);
    settle(&stage);
    for (uint8_t i = 0; i < 3; i++) {
        CHECK(receive(&stage, reader, frame) == IM_MESSAGE);
        CHECK(frame[31] == i);
    }
    CHECK(stat_of(stage.core, "messages_in") == 4);
    CHECK(stat_of(stage.core, "pool_refusals") == 0 && stage.closed == 0);
    end(&stage);
}

/* All wait in the backlog when the first thread begins to accept. */
static void a_crowd_at_the_door_is_shared_out(void)
{
    struct im_config config = default_config(2);
    config.max_connections = 8;
    struct stage stage = new_stage(config);

    for (int i = 0; i < 8; i++)
        send_frame(connect_client(&stage), IM_HELLO, "");
    start_listening(&stage);
    settle(&stage);
    CHECK(stat_of(stage.core, "accept_refused") == 0);
    CHECK(stat_of(stage.core, "connections") == 8);
    end(&stage);
}

static void one_too_many_is_told_so(void)
{
    struct im_config config = default_config(0);
    config.max_connections = 1;
    struct stage stage = new_stage(config);
    uint8_t frame[FRAME_BYTES];

    start_listening(&stage);
    log_in(&stage, false);
    int late = connect_client(&stage);
    send_frame(late, IM_HELLO, ""); /* unread, it must not reset the stream */
    settle(&stage);
    CHECK(receive(&stage, late, frame) == IM_GOAWAY);
    CHECK(im_load_u16(frame + IM_HEAD_LEN) == IM_CLOSE_OVERLOADED);
    CHECK(receive(&stage, late, frame) == 0);
    end(&stage);
}

/* It was owed bytes when it reset the stream; its slot stays as it was. */
static void who_has_gone_is_not_counted_as_slow(void)
{
    struct im_config config = default_config(0);
    config.stall_ms = 50;
    struct stage stage = new_stage(config);

    int small = 4096;
    setsockopt(stage.listener, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    start_listening(&stage);
    int author = log_in(&stage, false), reader = log_in(&stage, true);
    setsockopt(reader, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    for (int i = 0;
         i < 2000 && !(stage.core->loops[0].conns[1].marks & IM_MARK_ARMED);
         i++) {
        publish(author, 4000);
        settle(&stage);
    }
    CHECK(stage.core->loops[0].conns[1].marks & IM_MARK_ARMED);
    stage.client_count--;
    reset(reader);
    settle(&stage);
    CHECK(stage.closed == 1 && stage.close_code == IM_CLOSE_PEER);
    usleep(100 * 1000);
    settle(&stage);
    CHECK(stat_of(stage.core, "slow_readers") == 0);
    end(&stage);
}

/* EPOLLOUT is off once everything was sent, or it would report for ever. */
static void a_core_with_nothing_to_do_sleeps(void)
{
    struct im_config config = default_config(0);
    config.timeout_ms = 60000; /* the slowest tick */
    struct stage stage = new_stage(config);
    uint8_t frame[FRAME_BYTES];
    int small = 4096, count = 0;

    setsockopt(stage.listener, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    start_listening(&stage);
    int author = log_in(&stage, false), reader = log_in(&stage, true);
    const struct im_conn *conn = &stage.core->loops[0].conns[1];
    for (; !(conn->marks & IM_MARK_ARMED) && count < 2000; count++) {
        publish(author, 1000);
        settle(&stage);
    }
    CHECK(conn->marks & IM_MARK_ARMED);
    while (count--)
        CHECK(receive(&stage, reader, frame) == IM_MESSAGE);
    settle(&stage);
    CHECK(!(conn->marks & IM_MARK_ARMED));
    for (int tries = 0; has_news(stage.core->loops[0].epoll_fd); tries++) {
        CHECK(tries < 3);
        settle(&stage);
        CHECK(im_core_listener_sleeps(stage.core));
    }
    end(&stage);
}

static void a_length_is_judged_on_its_fourth_byte_in_any_split(void)
{
    for (size_t split = 1; split <= 3; split++) {
        struct stage stage = new_stage(default_config(0));
        uint8_t frame[FRAME_BYTES];

        start_listening(&stage);
        int client = connect_client(&stage);
        send_bytes(client, "\0\0\0\3", split);
        settle(&stage);
        send_bytes(client, "\0\0\0\3" + split, 4 - split);
        settle(&stage);
        CHECK(has_news(client));
        CHECK(receive(&stage, client, frame) == IM_GOAWAY);
        CHECK(im_load_u16(frame + IM_HEAD_LEN) == IM_CLOSE_BAD_PROTOCOL);
        end(&stage);
    }
}

static void a_stopped_core_has_no_connections(void)
{
    struct stage stage = new_stage(default_config(2));
    uint8_t frame[FRAME_BYTES];

    start_listening(&stage);
    int client = log_in(&stage, false);
    im_core_stop(stage.core);
    im_core_stop(stage.core);
    CHECK(has_news(client) && receive(&stage, client, frame) != IM_WELCOME);
    end(&stage);
}

static void a_socket_nobody_took_over_is_closed(void)
{
    int before = open_descriptors();
    struct stage stage = new_stage(default_config(2));

    start_listening(&stage);
    end(&stage);
    CHECK(open_descriptors() == before);
}

/* As Core.poll() does, which ends after so many events. */
static void who_leaves_events_behind_is_woken_again(void)
{
    struct stage stage = new_stage(default_config(2));

    start_listening(&stage);
    CHECK(im_core_listener_sleeps(stage.core));
    for (int i = 0; i < 2; i++) {
        send_frame(connect_client(&stage), IM_HELLO, "");
        turn(&stage, 0);
        turn(&stage, 1);
        turn(&stage, 0);
        turn(&stage, 1);
    }
    CHECK(has_news(stage.core->event_fd));
    CHECK(
        !im_core_listener_sleeps(stage.core)); /* "not yet": and then enough */
    CHECK(has_news(stage.core->event_fd));
    end(&stage);
}

/* As if the process had been stopped for a quarter of an hour: the tick is due,
 * and behind it what the peer has sent meanwhile. */
static void sleep_long(struct stage *stage)
{
    usleep(10 * 1000);
    stage->core->loops[0].heartbeat.seen_ms[0] -= 15 * 60 * 1000;
}

static void a_peer_that_spoke_while_we_slept_lives(void)
{
    struct stage stage = new_stage(default_config(0));
    uint8_t frame[FRAME_BYTES], type;

    start_listening(&stage);
    int client = log_in(&stage, false);
    sleep_long(&stage);
    send_frame(client, IM_PING, "");
    settle(&stage);
    while ((type = receive(&stage, client, frame)) == IM_PING)
        ;
    CHECK(type == IM_PONG);
    CHECK(stage.closed == 0);
    end(&stage);
}

static void nobody_is_given_up_who_was_not_asked(void)
{
    struct stage stage = new_stage(default_config(0));

    start_listening(&stage);
    log_in(&stage, false);
    sleep_long(&stage);
    turn(&stage, 0);
    answer_events(&stage);
    CHECK(stage.closed == 0);
    CHECK(stat_of(stage.core, "suspects") == 1);
    end(&stage);
}

static void subscriptions_are_counted(void)
{
    struct stage stage = new_stage(default_config(0));

    start_listening(&stage);
    log_in(&stage, true);
    usleep(10 * 1000);
    settle(&stage);
    CHECK(stat_of(stage.core, "subscriptions") == 1);
    reset(stage.clients[--stage.client_count]);
    settle(&stage);
    usleep(10 * 1000);
    settle(&stage);
    CHECK(stat_of(stage.core, "subscriptions") == 0);
    end(&stage);
}

static void without_descriptors_the_door_is_shut_politely(void)
{
    struct stage stage = new_stage(default_config(0));
    struct rlimit before, none;
    uint8_t frame[FRAME_BYTES];

    start_listening(&stage);
    settle(&stage);
    int client = connect_client(&stage);
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    none = before;
    none.rlim_cur = (rlim_t)dup(client);
    close((int)none.rlim_cur);
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    settle(&stage);
    CHECK(receive(&stage, client, frame) == 0);
    CHECK(stat_of(stage.core, "accept_refused") == 1);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    usleep(10 * 1000);
    log_in(&stage, false);
    end(&stage);
}

static void a_blocking_listener_blocks_nothing(void)
{
    struct stage stage = new_stage(default_config(0));
    int off = 0;

    CHECK(ioctl(stage.listener, FIONBIO, &off) == 0);
    start_listening(&stage);
    log_in(&stage, false);
    end(&stage);
}

static const struct step STEPS[] = {
    STEP(a_burst_of_relays_makes_no_reader_slow),
    STEP(who_has_read_meanwhile_is_not_slow),
    STEP(nobody_is_closed_in_the_middle_of_its_own_publication),
    STEP(a_run_crosses_to_the_other_thread_as_one),
    STEP(a_run_without_room_is_taken_one_by_one),
    STEP(a_crowd_at_the_door_is_shared_out),
    STEP(one_too_many_is_told_so),
    STEP(who_has_gone_is_not_counted_as_slow),
    STEP(a_core_with_nothing_to_do_sleeps),
    STEP(a_length_is_judged_on_its_fourth_byte_in_any_split),
    STEP(a_stopped_core_has_no_connections),
    STEP(a_socket_nobody_took_over_is_closed),
    STEP(who_leaves_events_behind_is_woken_again),
    STEP(a_peer_that_spoke_while_we_slept_lives),
    STEP(nobody_is_given_up_who_was_not_asked),
    STEP(subscriptions_are_counted),
    STEP(without_descriptors_the_door_is_shut_politely),
    STEP(a_blocking_listener_blocks_nothing),
};

int main(int count, char **arguments)
{
    return run_steps(STEPS, sizeof STEPS / sizeof *STEPS, count, arguments);
}
