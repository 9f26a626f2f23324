/*
 * steps_wrap.c - single steps of what leaves on a WebSocket, when the kernel
 * takes any part of it.
 *
 *     steps_wrap NAME
 */
#define _GNU_SOURCE
#include "stage_web.h"

/* Puts a message of `size` bytes, of which the kernel takes `taken` with its
 * head; then more, and it is too slow. */
static void cut_one(struct stage *stage, size_t size, size_t taken, bool is_dry)
{
    static uint8_t frame[FRAME_BYTES], heard[4 * FRAME_BYTES];
    struct im_loop *loop = stage->core->loops;
    struct im_msg *all = NULL;
    struct web web = {0};
    int fd = log_in_web(stage, &web, false);

    write_message_to(frame, "room", size);
    throttle(stage, 0, taken);
    im_conn_send(loop, 0, (struct im_span){frame, size});
    im_conn_flush(loop, 0);
    im_conn_send(loop, 0, (struct im_span){frame, 100});
    send_ping(fd, &web);
    turn(stage, 0);
    im_conn_send(loop, 0, (struct im_span){frame, 3000});
    if (is_dry)
        all = take_all(&loop->pool);
    uint32_t messages = web.messages;
    im_conn_doom(loop, 0, IM_CLOSE_SLOW);
    turn(stage, 0);
    give_all(&loop->pool, all);
    taken_max = SIZE_MAX;

    size_t len = hear(stage, fd, &web, heard);
    size_t begun = taken ? size : 0;
    if (len != begun + 10 && !(is_dry && len == begun))
        FAIL("%zu bytes, of %zu were taken %zu", len, size, taken);
    CHECK(memcmp(heard, frame, begun) == 0);
    CHECK(web.messages - messages == (begun ? 1u : 0u) + (len > begun));
    CHECK(web.head_len == 0 && (is_dry || web.code == IM_CLOSE_SLOW));
    throttled = -1;
    hang_up(stage, fd);
    CHECK(stage->close_code == IM_CLOSE_SLOW);
    CHECK(loop->pool.taken == 0);
}

static void who_is_cut_hears_what_was_begun_to_its_end(void)
{
    struct stage stage = new_web_stage(default_config(0), IM_TRANSPORT_WEB);

    for (size_t taken = 0; taken < 52; taken++)
        cut_one(&stage, 50, taken, false); /* a head of 2 bytes */
    for (size_t taken = 0; taken < 300; taken += taken < 8 ? 1 : 47)
        cut_one(&stage, 300, taken, false); /* 4 */
    for (size_t taken = 0; taken < 65000; taken += taken < 14 ? 1 : 9001)
        cut_one(&stage, 65536, taken, false); /* 10 */
    end(&stage);
}

static void a_cut_needs_no_memory(void)
{
    struct stage stage = new_web_stage(default_config(0), IM_TRANSPORT_WEB);

    cut_one(&stage, 300, 0, true);
    cut_one(&stage, 300, 3, true);
    cut_one(&stage, 300, 100, true);
    end(&stage);
}

/* A large message is a part of its own, what is left of it is copied with those
 * behind it, for which the scratch is too small then. */
static void what_was_begun_may_be_gathered_in_other_pieces(void)
{
    static uint8_t frame[4096], heard[4 * FRAME_BYTES];

    for (int is_cut = 0; is_cut < 2; is_cut++) {
        struct stage stage = new_web_stage(default_config(0), IM_TRANSPORT_WEB);
        struct im_loop *loop = stage.core->loops;
        struct web web = {0};
        int fd = log_in_web(&stage, &web, false);

        throttle(&stage, 0, 1510);
        im_conn_send(loop, 0, (struct im_span){frame, 3000});
        for (uint8_t i = 1; i <= IM_GATHER_SCRATCH / 1024; i++) {
            memset(frame, i, 1024);
            im_conn_send(loop, 0, (struct im_span){frame, 1024});
        }
        im_conn_flush(loop, 0);
        CHECK(loop->webs[0].out_left == 3000 + IM_GATHER_SCRATCH - 1500);
        im_conn_send(loop, 0, (struct im_span){frame, 1024});
        if (is_cut)
            im_conn_doom(loop, 0, IM_CLOSE_SLOW);
        turn(&stage, 0);
        taken_max = SIZE_MAX;
        size_t len = hear(&stage, fd, &web, heard);
        CHECK(len == 3000 + IM_GATHER_SCRATCH + (is_cut ? 10 : 1024));
        for (size_t at = 3000; at < 3000 + IM_GATHER_SCRATCH; at++)
            CHECK(heard[at] == (at - 3000) / 1024 + 1);
        CHECK(web.code == (is_cut ? IM_CLOSE_SLOW : 0));
        throttled = -1;
        end(&stage);
    }
}

/* Up to the bound in one message of WebSocket, and all of it begun. */
static void last_words_are_heard_behind_as_much_as_an_outbox_holds(void)
{
    static uint8_t frame[FRAME_BYTES], heard[20 * FRAME_BYTES];
    struct im_config config = default_config(0);
    config.outbox_hard_bytes = 1 << 20;
    struct stage stage = new_web_stage(config, IM_TRANSPORT_WEB);
    struct im_loop *loop = stage.core->loops;
    size_t rest = (1 << 20) - 16 * 65000 - 17 * IM_OUTBOX_REF_COST;
    struct web web = {0};
    int fd = log_in_web(&stage, &web, false);

    write_message_to(frame, "room", 65000);
    throttle(&stage, 0, 11);
    for (int i = 0; i < 16; i++)
        im_conn_send(loop, 0, (struct im_span){frame, 65000});
    im_conn_send(loop, 0, (struct im_span){frame, rest});
    im_conn_flush(loop, 0);
    im_conn_send(loop, 0, (struct im_span){frame, 3000});
    turn(&stage, 0);
    taken_max = SIZE_MAX;
    CHECK(hear(&stage, fd, &web, heard) == 16 * 65000 + rest + 10);
    CHECK(web.code == IM_CLOSE_SLOW);
    throttled = -1;
    end(&stage);
}

static void a_pong_waits_for_the_end_of_a_message(void)
{
    static uint8_t frame[300], heard[2 * FRAME_BYTES];
    struct stage stage = new_web_stage(default_config(0), IM_TRANSPORT_WEB);
    struct im_loop *loop = stage.core->loops;
    struct web web = {0};
    int fd = log_in_web(&stage, &web, false);

    write_message_to(frame, "room", 300);
    for (size_t taken = 1; taken < 304; taken++) {
        throttle(&stage, 0, taken);
        im_conn_send(loop, 0, (struct im_span){frame, 300});
        im_conn_flush(loop, 0);
        send_ping(fd, &web);
        turn(&stage, 0);
        im_conn_send(loop, 0, (struct im_span){frame, 300});
        taken_max = SIZE_MAX;
        CHECK(hear(&stage, fd, &web, heard) == 600);
        CHECK(web.pongs == web.pings);
    }
    throttled = -1;
    end(&stage);
}

static void whoever_reads_no_pongs_is_not_read(void)
{
    static const uint16_t transports[] = {IM_TRANSPORT_WEB, IM_TRANSPORT_PLAIN};
    static uint8_t pings[10 * 6553], heard[4 * FRAME_BYTES];

    for (int i = 0; i < 2; i++) {
        struct stage stage = new_web_stage(default_config(0), transports[i]);
        struct im_loop *loop = stage.core->loops;
        struct web web = {0};
        size_t given = 0, len = 0;
        int fd = dial(&stage);

        for (; len < sizeof pings; web.pings++)
            len += web_frame(pings + len, 0x89, &web.pings, 4, 0);
        throttle(&stage, 0, 0);
        for (int patience = 0; patience < 20; patience++) {
            ssize_t got = send(fd, pings + given, len - given, MSG_DONTWAIT);
            given += got > 0 ? (size_t)got : 0;
            settle(&stage);
        }
        CHECK(stage.closed == 0 && !(loop->conns[0].marks & IM_MARK_DOOMED));
        CHECK(loop->conns[0].pause & IM_PAUSE_OUTBOX);
        CHECK(im_outbox_cost(&loop->conns[0].outbox) < 128 << 10);
        taken_max = SIZE_MAX;
        CHECK(hear(&stage, fd, &web, heard) == 0);
        CHECK(web.pongs == web.pings);
        throttled = -1;
        end(&stage);
    }
}

static const struct step STEPS[] = {
    STEP(who_is_cut_hears_what_was_begun_to_its_end),
    STEP(a_cut_needs_no_memory),
    STEP(what_was_begun_may_be_gathered_in_other_pieces),
    STEP(last_words_are_heard_behind_as_much_as_an_outbox_holds),
    STEP(a_pong_waits_for_the_end_of_a_message),
    STEP(whoever_reads_no_pongs_is_not_read),
};

int main(int count, char **arguments)
{
    return run_steps(STEPS, sizeof STEPS / sizeof *STEPS, count, arguments);
}
