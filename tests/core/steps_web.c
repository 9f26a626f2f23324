/*
 * steps_web.c - single steps of what arrives over HTTP and WebSocket.
 *
 *     steps_web NAME
 */
#define _GNU_SOURCE
#include "command.h"
#include "stage_web.h"

static void a_request_waits_for_room_and_so_does_what_is_behind_it(void)
{
    uint8_t bytes[512], heard[512];
    struct stage stage = new_web_stage(default_config(0), 0);
    size_t len = sizeof WEB_REQUEST("/ws") - 1;
    struct web web = {0};
    int fd = connect_client(&stage);

    settle(&stage);
    memcpy(bytes, WEB_REQUEST("/ws"), len);
    uint8_t hello[8];
    write_frame(hello, IM_HELLO, 1, NULL, 0);
    len += web_frame(bytes + len, 0x02, hello, 3, 77);
    len += web_frame(bytes + len, 0x80, hello + 3, 5, 78);
    fill_events(&stage);
    send_bytes(fd, bytes, len - 7);
    turn(&stage, 0);
    turn(&stage, 0);
    send_bytes(fd, bytes + len - 7, 7);
    turn(&stage, 0);
    settle(&stage);
    CHECK(stage.told_count == 1 && stage.told[0].kind == IM_EVENT_UPGRADE);
    stage.transport = IM_TRANSPORT_WEB;
    accept_upgrade(&stage, stage.told[0].conn);
    CHECK(receive_bytes(&stage, fd, heard, sizeof WEB_RESPONSE - 1));
    CHECK(hear(&stage, fd, &web, heard) == 8 && heard[4] == IM_WELCOME);
    end(&stage);
}

static void a_plain_message_waits_for_room_and_so_does_what_is_behind_it(void)
{
    static uint8_t heard[FRAME_BYTES];

    for (int is_cut = 0; is_cut < 2; is_cut++) {
        struct stage stage =
            new_web_stage(default_config(0), IM_TRANSPORT_PLAIN);
        struct web web = {0};
        int fd = dial(&stage);

        stage.echoes = true;
        fill_events(&stage);
        send_web(fd, is_cut ? 0x01 : 0x81, BYTES("one"));
        turn(&stage, 0);
        if (is_cut)
            send_web(fd, 0x80, BYTES(" and a half"));
        send_ping(fd, &web);
        send_web(fd, 0x82, BYTES("two"));
        send_web(fd, 0x88, BYTES("\x0f\xa5"));
        send_web(fd, 0x82, BYTES("behind the close"));
        turn(&stage, 0);
        turn(&stage, 0);
        CHECK(!has_news(fd));
        size_t len = hear(&stage, fd, &web, heard);
        CHECK(len == (is_cut ? 17 : 6) && memcmp(heard, "one", 3) == 0);
        CHECK(memcmp(heard + len - 3, "two", 3) == 0);
        CHECK(web.messages == 2 && web.pongs == 1 && web.code == 4005);
        CHECK(stage.core->loops->pool.taken == 0);
        end(&stage);
    }
}

static void a_plain_message_without_room_anywhere_ends_it(void)
{
    static uint8_t heard[FRAME_BYTES];
    struct stage stage = new_web_stage(default_config(0), IM_TRANSPORT_PLAIN);
    struct im_pool *pool = &stage.core->loops->pool;
    struct web web = {0};
    int fd = dial(&stage);

    fill_events(&stage);
    struct im_msg *all = take_all(pool);
    send_web(fd, 0x82, BYTES("nobody has room for this"));
    turn(&stage, 0);
    give_all(pool, all);
    CHECK(hear(&stage, fd, &web, heard) == 0);
    CHECK(stage.closed == 1 && stage.close_code == IM_CLOSE_OVERLOADED);
    end(&stage);
}

/* X1, with a frame that Python is asked about. */
static void a_close_waits_for_what_came_before_it(void)
{
    uint8_t frame[64], heard[512];
    struct stage stage = new_web_stage(default_config(0), IM_TRANSPORT_WEB);
    struct web web = {0};
    int reader = log_in(&stage, true);
    int fd = log_in_web(&stage, &web, false);

    write_message_to(frame, "room", sizeof frame);
    send_web(fd, 0x82, (struct im_span){frame, sizeof frame});
    send_web(fd, 0x88, BYTES("\x03\xe8"));
    turn(&stage, 0);
    turn(&stage, 0);
    CHECK(!has_news(fd) && !has_news(reader) && stage.closed == 0);
    CHECK(receive(&stage, reader, heard) == IM_MESSAGE);
    CHECK(hear(&stage, fd, &web, heard) == 0);
    CHECK(web.code == 1000 && stage.closed == 1 && stage.close_code == 0);
    end(&stage);
}

/* Both ways to be doomed before there is a WebSocket. */
static void who_asked_over_http_is_refused_over_http(void)
{
    static const char no[] = "HTTP/1.1 503 ";

    for (int is_dry = 0; is_dry < 2; is_dry++) {
        struct stage stage = new_web_stage(default_config(0), 0);
        struct im_loop *loop = stage.core->loops;
        struct im_msg *all = NULL;
        uint8_t heard[512] = {0};
        int fd = connect_client(&stage);

        send_bytes(fd, WEB_REQUEST("/ws"), sizeof WEB_REQUEST("/ws") - 1);
        settle(&stage);
        CHECK(stage.told_count == 1);
        stage.transport = IM_TRANSPORT_WEB;
        if (is_dry)
            all = take_all(&loop->pool);
        else
            im_conn_doom(loop, 0, IM_CLOSE_OVERLOADED);
        accept_upgrade(&stage, stage.told[0].conn);
        im_command_take(loop);
        give_all(&loop->pool, all);
        settle(&stage);
        CHECK(recv(fd, heard, sizeof heard, MSG_DONTWAIT) > 0);
        CHECK(memcmp(heard, no, sizeof no - 1) == 0);
        CHECK(stage.closed == 1 && stat_of(stage.core, "upgrades") == 0);
        end(&stage);
    }
}

static void a_stranger_has_its_time_and_no_more(void)
{
    struct im_config config = default_config(0);
    struct stage stage;
    struct web web = {0};
    uint8_t heard[512] = {0};

    config.handshake_ms = 60;
    stage = new_web_stage(config, 0);
    int half = connect_client(&stage), asked = connect_client(&stage);
    send_bytes(half, "GET /ws HTTP/1.1\r\n", 18);
    send_bytes(asked, WEB_REQUEST("/ws"), sizeof WEB_REQUEST("/ws") - 1);
    CHECK(receive_bytes(&stage, half, heard, 12));
    CHECK(memcmp(heard, "HTTP/1.1 408", 12) == 0);
    CHECK(receive_bytes(&stage, asked, heard, 12));
    CHECK(memcmp(heard, "HTTP/1.1 408", 12) == 0);
    CHECK(stage.told[0].kind == IM_EVENT_UPGRADE);
    while (!stage.closed)
        settle(&stage);
    CHECK(stage.close_code == IM_CLOSE_HANDSHAKE);

    /* The answer comes too late: it is nobody's, whoever has the slot now. */
    close(half);
    close(asked);
    stage.client_count = 0;
    settle(&stage);
    int next = connect_client(&stage);
    settle(&stage);
    stage.transport = IM_TRANSPORT_WEB;
    accept_upgrade(&stage, stage.told[0].conn);
    settle(&stage);
    CHECK(!has_news(next) && stat_of(stage.core, "upgrades") == 0);

    int fd = dial(&stage); /* says nothing but pings */
    for (int patience = 500; !web.is_closed && patience; patience--) {
        ssize_t got = recv(fd, heard, sizeof heard, MSG_DONTWAIT);
        if (got > 0)
            web_unwrap(&web, heard, (size_t)got);
        else
            send_ping(fd, &web);
        settle(&stage);
        usleep(1000);
    }
    CHECK(web.code == IM_CLOSE_HANDSHAKE);
    end(&stage);
}

static void a_socket_without_a_slot_is_told_so(void)
{
    struct im_config config = default_config(0);
    struct stage stage;
    uint8_t heard[64];
    int pair[2], descriptors;

    config.max_connections = 1;
    stage = new_web_stage(config, 0);
    log_in(&stage, false);
    descriptors = open_descriptors();
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0);
    send_frame(pair[0], IM_HELLO, "early");
    tell(&stage, 0,
         (struct im_record){.kind = IM_COMMAND_ADOPT, .b = (uint32_t)pair[1]},
         NULL, 0);
    settle(&stage);
    CHECK(recv(pair[0], heard, sizeof heard, 0) == 10);
    CHECK(heard[4] == IM_GOAWAY && im_load_u16(heard + 8) == 4153);
    CHECK(recv(pair[0], heard, sizeof heard, 0) == 0);
    close(pair[0]);
    CHECK(open_descriptors() == descriptors);
    CHECK(atomic_load(&stage.core->loops->placed) == 1);
    end(&stage);
}

static void lengths_are_judged_before_they_come(void)
{
    static const struct {
        struct im_span head;
        uint16_t web, plain; /* close codes */
    } cases[] = {
        {BYTES("\x82\xff\x80\0\0\0\0\0\0\0key!"), 1002, 1002},
        {BYTES("\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xffkey!"), 0, 1009},
        {BYTES("\x02\xff\x7f\xff\xff\xff\xff\xff\xff\xffkey!"), 0, 1009},
        {BYTES("\x82\xff\0\0\0\0\0\1\0\1key!"), 0, 1009},
        {BYTES("\x82\xff\0\0\0\0\0\1\0\0key!"), 0, 0},
        {BYTES("\x88\xff\0\0\0\0\0\1\0\0key!"), 1002, 1002},
        {BYTES("\x89\xfe"), 1002, 1002},
    };

    for (size_t i = 0; i < 2 * sizeof cases / sizeof *cases; i++) {
        bool is_plain = i & 1;
        struct stage stage =
            new_web_stage(default_config(0),
                          is_plain ? IM_TRANSPORT_PLAIN : IM_TRANSPORT_WEB);
        uint8_t heard[512];
        struct web web = {0};
        int fd = dial(&stage);

        send_bytes(fd, cases[i / 2].head.at, cases[i / 2].head.len);
        hear(&stage, fd, &web, heard);
        CHECK(web.code == (is_plain ? cases[i / 2].plain : cases[i / 2].web));
        CHECK(stage.core->loops->pool.taken <= 1);
        end(&stage);
    }
}

static void empty_fragments_are_nothing(void)
{
    static uint8_t flood[6 * 10000];
    static const uint16_t transports[] = {IM_TRANSPORT_WEB, IM_TRANSPORT_PLAIN};

    for (int i = 0; i < 2; i++) {
        struct stage stage = new_web_stage(default_config(0), transports[i]);
        uint8_t heard[512];
        struct web web = {0};
        int fd = dial(&stage);

        stage.echoes = true;
        for (size_t at = 0; at < sizeof flood; at += 6)
            web_frame(flood + at, at ? 0x00 : 0x02, NULL, 0, 1);
        for (int times = 0; times < 5; times++) {
            flood[0] = times ? 0x00 : 0x02;
            send_bytes(fd, flood, sizeof flood);
            settle(&stage);
        }
        CHECK(stage.core->loops->pool.taken <= 1);
        send_web(fd, 0x80, (struct im_span){0});
        send_ping(fd, &web);
        CHECK(hear(&stage, fd, &web, heard) == 0);
        CHECK(web.pongs == 1 && web.messages == (uint32_t)i && !web.is_closed);
        end(&stage);
    }
}

static void a_control_frame_is_one_wherever_it_is_cut(void)
{
    static const uint16_t transports[] = {IM_TRANSPORT_WEB, IM_TRANSPORT_PLAIN};
    uint8_t payload[125], ping[131], heard[512];

    memset(payload, 'p', sizeof payload);
    web_frame(ping, 0x89, payload, sizeof payload, 0x01020304);
    for (int i = 0; i < 2; i++) {
        struct stage stage = new_web_stage(default_config(0), transports[i]);
        int fd = dial(&stage);
        for (size_t cut = 1; cut < sizeof ping; cut++) {
            send_bytes(fd, ping, cut);
            settle(&stage);
            send_bytes(fd, ping + cut, sizeof ping - cut);
            CHECK(receive_bytes(&stage, fd, heard, 127));
            CHECK(heard[0] == 0x8a && heard[1] == 125);
            CHECK(memcmp(heard + 2, payload, 125) == 0);
        }
        send_bytes(fd, ping, 100); /* and one that never ends */
        settle(&stage);
        end(&stage);
    }
}

static void text_is_judged_at_the_byte_that_shows_it(void)
{
    static const struct {
        const char *first, *last;
        uint16_t early, code; /* after the first piece, after both */
    } cases[] = {
        {"text \xe2\x82", "\xac", 0, 0}, {"text \xe2\x82", "", 0, 1007},
        {"text \xe2\x82", "A", 0, 1007}, {"text \xed\xa0", "", 1007, 1007},
        {"", "\xf4\x90", 0, 1007},       {"", "", 0, 0},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct stage stage =
            new_web_stage(default_config(0), IM_TRANSPORT_PLAIN);
        const char *first = cases[i].first, *last = cases[i].last;
        uint8_t heard[512];
        struct web web = {0};
        int fd = dial(&stage);

        stage.echoes = true;
        send_web(fd, 0x01,
                 (struct im_span){(const void *)first, strlen(first)});
        hear(&stage, fd, &web, heard);
        CHECK(web.code == cases[i].early);
        if (!cases[i].early) {
            send_web(fd, 0x80,
                     (struct im_span){(const void *)last, strlen(last)});
            hear(&stage, fd, &web, heard);
        }
        CHECK(web.code == cases[i].code);
        CHECK(web.messages == (cases[i].code ? 0 : 1));
        end(&stage);
    }
}

static const struct step STEPS[] = {
    STEP(a_request_waits_for_room_and_so_does_what_is_behind_it),
    STEP(a_plain_message_waits_for_room_and_so_does_what_is_behind_it),
    STEP(a_plain_message_without_room_anywhere_ends_it),
    STEP(a_close_waits_for_what_came_before_it),
    STEP(who_asked_over_http_is_refused_over_http),
    STEP(a_stranger_has_its_time_and_no_more),
    STEP(a_socket_without_a_slot_is_told_so),
    STEP(lengths_are_judged_before_they_come),
    STEP(empty_fragments_are_nothing),
    STEP(a_control_frame_is_one_wherever_it_is_cut),
    STEP(text_is_judged_at_the_byte_that_shows_it),
};

int main(int count, char **arguments)
{
    return run_steps(STEPS, sizeof STEPS / sizeof *STEPS, count, arguments);
}
