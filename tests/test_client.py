"""The client while it is connected: answers, refusals, heartbeats, bounds.

Against a fake server (fake_server.py), which can be as slow, silent and wrong as needed.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from fake_server import HASTY, WELCOME, FakeServer, connected, read, subscribed
from msgspec.structs import replace

from imserver import bodies, protocol
from imserver.client import Client
from imserver.client_subscription import STRETCH
from imserver.errors import Closed, ImError
from imserver.model import CODECS, Message
from imserver.protocol import FrameType

IMPATIENT = replace(WELCOME, heartbeat=HASTY)


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    async with FakeServer() as server:
        yield server


@pytest.mark.parametrize("codec", ["json", "msgpack", "protobuf"])
async def test_it_introduces_itself_and_speaks_its_codec(fake: FakeServer, codec: str):
    client = Client(fake.address, token="t", device="phone", name="test/1", codec=codec)
    start = asyncio.create_task(client.start())
    conversation = await fake.next()
    hello = await conversation.welcome()
    await start
    assert conversation.codec == CODECS[codec]
    assert hello == bodies.Hello(1, "t", None, "phone", "test/1")
    assert client.welcome == WELCOME

    await client.publish("room:1", {"n": 1}, tag="a")
    await client.publish("room:1", b"raw", no_echo=True)
    _, first = await conversation.expect(FrameType.MESSAGE)
    _, second = await conversation.expect(FrameType.MESSAGE)
    assert (first.sender, first.tag, first.codec) == ("ann", "a", CODECS[codec])
    assert first.value() == {"n": 1}
    assert (second.body, second.codec, second.flags) == (b"raw", 0, protocol.NO_ECHO)
    assert second.id == first.id + 1
    await client.close()


async def refused(code: int, waiting: Any) -> ImError:
    with pytest.raises(ImError) as caught:
        await waiting
    assert caught.value.code == code
    return caught.value


# Requests and answers


async def test_answers_find_their_calls_in_any_order(fake: FakeServer):
    client, conversation = await connected(fake)
    calls = [asyncio.create_task(client.call("echo", n)) for n in range(3)]
    asked = [await conversation.expect(FrameType.CALL) for _ in calls]
    assert len({request for request, _ in asked}) == 3
    for request, call in reversed(asked):
        conversation.say(FrameType.RESULT, bodies.Result(call.params), request)
    assert await asyncio.gather(*calls) == [0, 1, 2]
    await client.close()


async def test_an_error_goes_to_the_call_that_asked(fake: FakeServer):
    client, conversation = await connected(fake)
    call = asyncio.create_task(client.call("members"))
    request, _ = await conversation.expect(FrameType.CALL)
    conversation.say(FrameType.ERROR, bodies.Error(429, "slower", 250), request)
    error = await refused(429, call)
    assert (error.message, error.retry_after_ms) == ("slower", 250)
    await client.close()


async def test_a_second_answer_and_a_late_one_disturb_nothing(fake: FakeServer):
    client, conversation = await connected(fake)
    await refused(408, client.call("slow", timeout_s=0.01))
    late, _ = await conversation.expect(FrameType.CALL)
    call = asyncio.create_task(client.call("fast"))
    request, _ = await conversation.expect(FrameType.CALL)
    for number in (late, request, request, 9999):
        conversation.say(FrameType.RESULT, bodies.Result(number), number)
    assert await call == request
    assert client.is_connected
    await client.close()


async def test_a_call_whose_connection_is_lost_is_408(fake: FakeServer):
    client, conversation = await connected(fake)
    call = asyncio.create_task(client.call("pay"))
    await conversation.expect(FrameType.CALL)
    await conversation.leave()
    await refused(408, call)
    await client.close()


async def test_errors_about_messages_go_to_on_error(fake: FakeServer):
    errors: asyncio.Queue[ImError] = asyncio.Queue()
    client, conversation = await connected(fake, on_error=errors.put_nowait)
    id = await client.publish("room:closed", b"x")
    conversation.say(FrameType.ERROR, bodies.Error(403, id=id, topic="room:closed"))
    error = await errors.get()
    assert (error.code, error.id, error.topic) == (403, id, "room:closed")
    await client.close()


async def test_errors_that_nobody_listens_to_are_logged(
    fake: FakeServer, caplog: pytest.LogCaptureFixture
):
    client, conversation = await connected(fake)
    with caplog.at_level(logging.WARNING, "imserver.client"):
        conversation.say(FrameType.ERROR, bodies.Error(403, id=7, topic="room:closed"))
        call = asyncio.create_task(client.call("x"))
        request, _ = await conversation.expect(FrameType.CALL)
        conversation.say(FrameType.RESULT, bodies.Result(), request)
        await call
    assert "message 7 to 'room:closed': 403" in caplog.text
    await client.close()


async def test_a_callback_that_raises_does_not_end_the_connection(fake: FakeServer):
    def fail(_: object) -> None:
        raise RuntimeError("a bug of the application")

    reported: asyncio.Queue[Any] = asyncio.Queue()
    asyncio.get_running_loop().set_exception_handler(lambda _, why: reported.put_nowait(why))
    client, conversation = await connected(fake, on_message=fail)
    conversation.deliver("$broadcast", "hello")
    assert "a bug" in str((await reported.get())["exception"])
    assert client.is_connected
    await client.close()


async def test_messages_that_no_subscription_reads_go_to_on_message(fake: FakeServer):
    messages: asyncio.Queue[Message] = asyncio.Queue()
    client, conversation = await connected(fake, on_message=messages.put_nowait)
    conversation.say(FrameType.SUBSCRIBED, bodies.Subscribed("group:7"))
    conversation.deliver("group:7", "welcome")
    assert (await messages.get()).topic == "group:7"
    await client.close()


async def test_frames_of_a_newer_server_are_ignored(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await subscribed(client, conversation)
    conversation.writer.write(bytes.fromhex("00000004 63 00 0000"))
    conversation.deliver("room:1", "after")
    assert await read(subscription, 1) == ["after"]
    await client.close()


# Subscriptions


async def test_a_refused_subscription_raises(fake: FakeServer):
    client, conversation = await connected(fake)
    asking = asyncio.create_task(client.subscribe("room:closed"))
    request, _ = await conversation.expect(FrameType.SUBSCRIBE)
    conversation.say(FrameType.ERROR, bodies.Error(403), request)
    await refused(403, asking)
    assert await subscribed(client, conversation, "room:closed")  # it may be asked for again
    await client.close()


async def test_one_topic_is_read_once(fake: FakeServer):
    client, conversation = await connected(fake)
    await subscribed(client, conversation)
    await refused(409, client.subscribe("room:1"))
    await client.close()


async def test_closing_a_subscription_tells_the_server_and_ends_the_iteration(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await subscribed(client, conversation)
    closing = asyncio.create_task(subscription.close())
    request, body = await conversation.expect(FrameType.UNSUBSCRIBE)
    conversation.deliver("room:1", "too late")
    conversation.say(FrameType.UNSUBSCRIBED, bodies.Unsubscribed(body.topic), request)
    await closing
    assert [message async for message in subscription] == []
    assert await subscribed(client, conversation)
    await client.close()


async def test_an_unsubscription_unasked_ends_the_iteration_with_its_code(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await subscribed(client, conversation)
    conversation.deliver("room:1", "one", "two")
    conversation.say(FrameType.UNSUBSCRIBED, bodies.Unsubscribed("room:1", 403))
    assert await read(subscription, 2) == ["one", "two"]
    await refused(403, anext(subscription))
    await client.close()


async def test_a_subscription_that_nobody_answers_is_408_and_taken_back(fake: FakeServer):
    client, conversation = await connected(fake, wait_timeout_s=0.02)
    await refused(408, client.subscribe("room:1"))
    await conversation.expect(FrameType.SUBSCRIBE)
    await conversation.expect(FrameType.UNSUBSCRIBE)
    await client.close()


async def test_a_subscription_that_is_refused_after_a_reconnect_ends(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await subscribed(client, conversation)
    await conversation.leave()
    conversation = await fake.next_welcomed()
    request, _ = await conversation.expect(FrameType.SUBSCRIBE)
    conversation.say(FrameType.ERROR, bodies.Error(403), request)
    await refused(403, anext(subscription))
    await client.close()


async def test_a_subscription_that_is_put_off_after_a_reconnect_is_asked_again(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await subscribed(client, conversation)
    await conversation.leave()
    conversation = await fake.next_welcomed()
    request, _ = await conversation.expect(FrameType.SUBSCRIBE)
    conversation.say(FrameType.ERROR, bodies.Error(503, retry_after_ms=1), request)
    await conversation.grant()
    conversation.deliver("room:1", "at last")
    assert await read(subscription, 1) == ["at last"]
    await client.close()


# Bounds


async def test_what_is_not_read_stops_the_reading_and_nothing_is_lost(fake: FakeServer):
    client, conversation = await connected(fake, queue_messages=10)
    subscription = await subscribed(client, conversation)
    texts = [str(n) for n in range(5000)]
    conversation.deliver("room:1", *texts)
    seen = []
    while len(seen) < len(texts):
        seen += await read(subscription, 1)
        assert len(subscription) <= 10
    assert seen == texts
    await client.close()


async def test_a_call_is_answered_while_a_subscription_is_full(fake: FakeServer):
    client, conversation = await connected(fake, queue_messages=10)
    subscription = await subscribed(client, conversation)
    conversation.deliver("room:1", *map(str, range(30)))
    assert await read(subscription, 1) == ["0"]
    call = asyncio.create_task(client.call("x"))
    request, _ = await conversation.expect(FrameType.CALL)
    conversation.say(FrameType.RESULT, bodies.Result("answer"), request)
    assert await call == "answer"
    assert await read(subscription, 29) == [str(n) for n in range(1, 30)]
    await client.close()


async def test_even_for_a_call_the_queue_has_an_end(fake: FakeServer):
    client, conversation = await connected(fake, queue_messages=10)
    subscription = await subscribed(client, conversation)
    conversation.deliver("room:1", *map(str, range(500)))
    assert await read(subscription, 1) == ["0"]
    await refused(408, client.call("x", timeout_s=0.05))
    assert len(subscription) <= 10 * STRETCH
    assert await read(subscription, 499) == [str(n) for n in range(1, 500)]
    await client.close()


async def test_closing_a_full_subscription_lets_the_others_go_on(fake: FakeServer):
    client, conversation = await connected(fake, queue_messages=10)
    full = await subscribed(client, conversation)
    other = await subscribed(client, conversation, "room:2")
    conversation.deliver("room:1", *map(str, range(500)))
    conversation.deliver("room:2", "behind")
    assert await read(full, 1) == ["0"]
    closing = asyncio.create_task(full.close())
    assert await read(other, 1) == ["behind"]
    request, body = await conversation.expect(FrameType.UNSUBSCRIBE)
    conversation.say(FrameType.UNSUBSCRIBED, bodies.Unsubscribed(body.topic), request)
    await closing
    await client.close()


async def test_a_server_that_does_not_read_holds_the_publisher_back(fake: FakeServer):
    client, _ = await connected(fake, wait_timeout_s=0.05)

    async def publish_forever() -> None:
        while True:
            await client.publish("room:1", bytes(60_000))

    await refused(408, publish_forever())
    await client.close()


async def test_a_frame_over_the_limit_is_refused_here(fake: FakeServer):
    client, conversation = await connected(fake)
    await refused(413, client.publish("room:1", bytes(65_536)))
    await refused(413, client.call("x", "y" * 65_536))
    await client.publish("room:1", b"fits")
    _, message = await conversation.expect(FrameType.MESSAGE)
    assert message.body == b"fits"
    await client.close()


@pytest.mark.parametrize("topic", ["", "a\n", "x" * 256])
async def test_bad_names_are_refused_here(fake: FakeServer, topic: str):
    client, _ = await connected(fake)
    await refused(422, client.publish(topic, b""))
    await refused(422, client.subscribe(topic))
    await refused(422, client.subscribe("room:1", "a b"))
    await client.close()


async def test_publishing_waits_for_the_reconnect(fake: FakeServer):
    lost = asyncio.Event()
    client, conversation = await connected(fake, on_disconnect=lambda _: lost.set())
    await conversation.leave()
    await lost.wait()
    publishing = asyncio.create_task(client.publish("room:1", b"late"))
    _, message = await (await fake.next_welcomed()).expect(FrameType.MESSAGE)
    assert message.body == b"late"
    await publishing
    await client.close()


async def test_publishing_does_not_wait_for_ever(fake: FakeServer):
    lost = asyncio.Event()
    client, conversation = await connected(
        fake, on_disconnect=lambda _: lost.set(), wait_timeout_s=0.02
    )
    await conversation.leave()
    await lost.wait()
    await refused(408, client.publish("room:1", b"never"))
    await client.close()


async def test_what_was_published_leaves_before_the_client_does(fake: FakeServer):
    client, conversation = await connected(fake)
    for n in range(1000):
        await client.publish("room:1", str(n).encode())
    closing = asyncio.create_task(client.close())
    for n in range(1000):
        _, message = await conversation.expect(FrameType.MESSAGE)
        assert message.body == str(n).encode()
    await conversation.expect_end()
    await closing


async def test_a_closed_client_says_so(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await subscribed(client, conversation)
    await client.close()
    assert [message async for message in subscription] == []
    with pytest.raises(Closed, match="the client is closed"):
        await client.publish("room:1", b"")
    await client.close()


async def test_a_client_that_was_not_started_says_so():
    client = Client("localhost", user="ann")
    for waiting in (client.publish("t", b""), client.subscribe("t"), client.call("x")):
        with pytest.raises(RuntimeError, match="not started"):
            await waiting
    await client.close()


# Heartbeats


async def test_a_silent_client_pings(fake: FakeServer):
    client, conversation = await connected(fake, welcome=IMPATIENT)
    for _ in range(3):
        request, _ = await conversation.expect(FrameType.PING)
        conversation.writer.write(protocol.encode_bare(FrameType.PONG, request))
    assert client.is_connected
    await client.close()


async def test_a_ping_is_answered_with_its_number(fake: FakeServer):
    client, conversation = await connected(fake)
    conversation.writer.write(protocol.encode_bare(FrameType.PING, 77))
    assert await conversation.expect(FrameType.PONG) == (77, None)
    await client.close()


async def test_a_silent_server_is_left_for_a_new_connection(fake: FakeServer):
    ends: list[Closed] = []
    client, conversation = await connected(fake, welcome=IMPATIENT, on_disconnect=ends.append)
    subscription = await subscribed(client, conversation)
    following = await fake.next_welcomed()  # the first says nothing more
    await following.grant()
    following.deliver("room:1", "alive")
    assert await read(subscription, 1) == ["alive"]
    assert [closed.code for closed in ends] == [4108]
    await client.close()


async def test_an_application_that_does_not_read_is_no_silent_server(fake: FakeServer):
    ends: list[Closed] = []
    client, conversation = await connected(
        fake, welcome=IMPATIENT, queue_messages=1, on_disconnect=ends.append
    )
    subscription = await subscribed(client, conversation)
    conversation.deliver("room:1", "one", "two")
    for _ in range(10):  # longer than a silent server would be borne
        await conversation.expect(FrameType.PING)
    assert await read(subscription, 2) == ["one", "two"]
    assert ends == []
    await client.close()


# The other event loop


@pytest.mark.parametrize(
    "scenario",
    [
        test_answers_find_their_calls_in_any_order,
        test_a_call_whose_connection_is_lost_is_408,
        test_a_subscription_that_is_put_off_after_a_reconnect_is_asked_again,
        test_what_is_not_read_stops_the_reading_and_nothing_is_lost,
        test_a_server_that_does_not_read_holds_the_publisher_back,
        test_what_was_published_leaves_before_the_client_does,
        test_a_silent_server_is_left_for_a_new_connection,
        test_an_application_that_does_not_read_is_no_silent_server,
    ],
)
def test_under_uvloop_too(scenario: Callable[[FakeServer], Coroutine[Any, Any, None]]):
    uvloop = pytest.importorskip("uvloop")

    async def run() -> None:
        async with FakeServer() as server:
            await scenario(server)

    uvloop.run(run())
