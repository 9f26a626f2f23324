"""Durable subscriptions: what is acknowledged when, and what comes again after a lost connection.

Against a fake server (fake_server.py), which remembers, forgets and repeats on command. How the
decisions of an application fare over many connections is in test_client_cursor.py.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from fake_server import FakeServer, connected, followed, read, subscribed

from imserver import bodies, protocol
from imserver.errors import ImError
from imserver.model import Message
from imserver.protocol import FrameType, Position


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    async with FakeServer() as server:
        yield server


# Acknowledgements


async def test_the_server_is_asked_for_a_durable_subscription(fake: FakeServer):
    client, conversation = await connected(fake)
    asking = asyncio.create_task(
        client.subscribe("room:1", "a||b", durable=True, after=7, epoch="e0")
    )
    assert await conversation.grant(cursor=7, head=9, missed=3, epoch="e0") == bodies.Subscribe(
        "room:1", "a||b", 7, True, "e0"
    )
    subscription = await asking
    assert (subscription.epoch, subscription.missed) == ("e0", 3)
    await client.close()


async def test_acks_of_one_turn_are_one_frame(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await followed(client, conversation)
    conversation.deliver_kept("room:1", 1, 2, 3, 4)
    for _ in range(3):
        subscription.ack(await anext(subscription))
    assert await conversation.expect(FrameType.ACK) == (0, Position(3, "room:1"))
    subscription.ack((await anext(subscription)).seq)
    assert await conversation.expect(FrameType.ACK) == (0, Position(4, "room:1"))
    await conversation.pong()
    await client.close()


async def test_a_nack_does_not_come_behind_the_ack_that_passes_it(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await followed(client, conversation)
    conversation.deliver_kept("room:1", 1, 2, 3)
    one, two, three = [await anext(subscription) for _ in range(3)]
    subscription.ack(one)
    subscription.nack(two)
    subscription.ack(three)
    assert await conversation.expect(FrameType.ACK) == (0, Position(1, "room:1"))
    assert await conversation.expect(FrameType.NACK) == (0, Position(2, "room:1"))
    assert await conversation.expect(FrameType.ACK) == (0, Position(3, "room:1"))
    await client.close()


async def test_what_was_set_aside_is_acknowledged_by_itself(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await followed(client, conversation, cursor=8, head=9)
    conversation.set_aside("room:1", 5)  # of the last session
    conversation.deliver_kept("room:1", 9)
    first, second = [await anext(subscription) for _ in range(2)]
    assert (first.seq, first.flags & protocol.REDELIVERED) == (5, protocol.REDELIVERED)
    subscription.ack(second)
    subscription.ack(first)
    positions = [(await conversation.expect(FrameType.ACK))[1].seq for _ in range(2)]
    assert sorted(positions) == [5, 9]
    await client.close()


async def test_nothing_is_acknowledged_that_was_not_handed_out(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await followed(client, conversation)
    conversation.deliver_kept("room:1", 1, 2)
    await anext(subscription)
    for seq in (0, -1, 2, 99):
        subscription.ack(seq)
        subscription.nack(seq)
    await conversation.pong()
    await client.close()


async def test_only_durable_subscriptions_acknowledge(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await subscribed(client, conversation)
    for decide in (subscription.ack, subscription.nack):
        with pytest.raises(RuntimeError, match="durable"):
            decide(1)
    await client.close()


async def test_what_has_no_place_in_the_topic_is_handed_out_and_not_acknowledged(
    fake: FakeServer,
):
    client, conversation = await connected(fake)
    subscription = await followed(client, conversation)
    conversation.deliver("room:1", "typing")
    conversation.deliver_kept("room:1", 1)
    for text in ("typing", "1"):
        message = await anext(subscription)
        assert message.body.decode() == text
        subscription.ack(message)
    assert await conversation.expect(FrameType.ACK) == (0, Position(1, "room:1"))
    await client.close()


async def test_what_is_redelivered_and_still_waits_is_not_there_twice(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await followed(client, conversation)
    conversation.deliver_kept("room:1", 1, 2, 3)
    assert await read(subscription, 1) == ["1"]
    conversation.redeliver("room:1", 1, 2, 3)
    await conversation.pong()
    assert await read(subscription, 3) == ["2", "3", "1"]
    await client.close()


async def test_what_was_acknowledged_while_it_came_again_is_not_handed_out(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await followed(client, conversation)
    conversation.deliver_kept("room:1", 1)
    slow = await anext(subscription)
    conversation.redeliver("room:1", 1)
    conversation.deliver_kept("room:1", 2)
    await conversation.pong()
    subscription.ack(slow)
    assert await read(subscription, 1) == ["2"]
    await client.close()


async def test_acks_leave_before_the_client_does(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await followed(client, conversation)
    conversation.deliver_kept("room:1", 1)
    subscription.ack(await anext(subscription))
    await client.close()
    assert await conversation.expect(FrameType.ACK) == (0, Position(1, "room:1"))
    await conversation.expect_end()


async def test_acks_leave_before_the_unsubscribe(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await followed(client, conversation)
    conversation.deliver_kept("room:1", 1)
    subscription.ack(await anext(subscription))
    closing = asyncio.create_task(subscription.close())
    assert await conversation.expect(FrameType.ACK) == (0, Position(1, "room:1"))
    request, body = await conversation.expect(FrameType.UNSUBSCRIBE)
    conversation.say(FrameType.UNSUBSCRIBED, bodies.Unsubscribed(body.topic), request)
    await closing
    subscription.ack(1)
    await conversation.pong()
    await client.close()


async def test_the_window_of_the_server_is_what_waits_here(fake: FakeServer):
    client, conversation = await connected(fake, queue_messages=10)
    subscription = await followed(client, conversation)
    for first in range(1, 321, 64):  # a server with a window of 64
        conversation.deliver_kept("room:1", *range(first, first + 64))
        for seq in range(first, first + 64):
            message = await anext(subscription)
            assert message.seq == seq
            assert len(subscription) <= 10
        subscription.ack(message)
        assert (await conversation.expect(FrameType.ACK))[1].seq == first + 63
    await client.close()


# After a lost connection


async def test_what_is_still_here_is_not_handed_out_twice(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await followed(client, conversation)
    conversation.deliver_kept("room:1", 1, 2, 3)
    in_hands = await anext(subscription)
    await conversation.leave()

    conversation = await fake.next_welcomed()
    again = await conversation.grant(durable=True, epoch="e1", head=4)
    assert again == bodies.Subscribe("room:1", "*", None, True, "e1")
    conversation.deliver_kept("room:1", 1, 2, 3, 4)
    assert await read(subscription, 3) == ["2", "3", "4"]
    subscription.ack(in_hands)
    assert await conversation.expect(FrameType.ACK) == (0, Position(1, "room:1"))
    await client.close()


async def test_decisions_that_were_lost_are_said_again_as_the_messages_come(fake: FakeServer):
    lost = asyncio.Event()
    client, conversation = await connected(fake, on_disconnect=lambda _: lost.set())
    subscription = await followed(client, conversation)
    conversation.deliver_kept("room:1", 1, 2, 3, 4)
    messages = [await anext(subscription) for _ in range(4)]
    await conversation.leave()
    await lost.wait()
    for decide, message in zip(
        (subscription.ack, subscription.nack, subscription.ack), messages[:3], strict=True
    ):
        decide(message)

    conversation = await fake.next_welcomed()
    await conversation.grant(durable=True, epoch="e1", head=4)
    await conversation.pong()  # nothing before it has come
    for seq in (1, 2, 3, 4):
        conversation.deliver_kept("room:1", seq)
        await conversation.writer.drain()
        if seq == 2:
            assert await conversation.expect(FrameType.NACK) == (0, Position(2, "room:1"))
        if seq in (1, 3):
            while (await conversation.expect(FrameType.ACK))[1].seq < seq:
                pass
    subscription.ack(messages[3])
    assert await conversation.expect(FrameType.ACK) == (0, Position(4, "room:1"))
    await client.close()


async def test_what_came_again_and_was_acknowledged_is_settled_although_its_nack_was_lost(
    fake: FakeServer,
):
    lost = asyncio.Event()
    client, conversation = await connected(fake, on_disconnect=lambda _: lost.set())
    subscription = await followed(client, conversation)
    conversation.deliver_kept("room:1", 1, 2, 3)
    await read(subscription, 3)
    subscription.ack(1)
    subscription.nack(2)
    subscription.nack(3)
    conversation.redeliver("room:1", 3)  # the server has not heard the NACK, and never will
    await read(subscription, 1)
    await conversation.leave()
    await lost.wait()
    subscription.ack(3)
    conversation = await fake.next_welcomed()
    await conversation.grant(durable=True, epoch="e1", cursor=1, head=3)
    conversation.deliver_kept("room:1", 3)  # 2 is set aside
    assert await conversation.expect(FrameType.ACK) == (0, Position(3, "room:1"))
    await client.close()


async def test_redelivered_after_a_reconnect_is_handed_out(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await followed(client, conversation)
    conversation.deliver_kept("room:1", 1)
    assert await read(subscription, 1) == ["1"]
    await conversation.leave()
    conversation = await fake.next_welcomed()
    await conversation.grant(durable=True, epoch="e1", head=1)
    conversation.redeliver("room:1", 1)
    assert await read(subscription, 1) == ["1"]
    await client.close()


async def test_what_is_gone_is_counted(fake: FakeServer):
    client, conversation = await connected(fake)
    subscription = await followed(client, conversation, missed=2)
    assert subscription.missed == 2
    await conversation.leave()
    conversation = await fake.next_welcomed()
    await conversation.grant(durable=True, epoch="e1", missed=5, first=6)
    await conversation.pong()
    assert subscription.missed == 7
    await client.close()


@pytest.mark.parametrize("epoch", ["e2", "e1"])
async def test_a_new_numbering_is_told_and_starts_from_nothing(fake: FakeServer, epoch: str):
    errors: asyncio.Queue[ImError] = asyncio.Queue()
    client, conversation = await connected(fake, on_error=errors.put_nowait)
    subscription = await followed(client, conversation)
    conversation.deliver_kept("room:1", *range(1, 10))
    old = [await anext(subscription) for _ in range(8)]  # 9 waits
    await conversation.leave()

    conversation = await fake.next_welcomed()
    # With the old epoch it is a copy of the store that was put back: its head tells.
    await conversation.grant(durable=True, epoch=epoch, head=3)
    error = await errors.get()
    assert (error.code, error.topic) == (410, "room:1")
    assert subscription.epoch == epoch
    conversation.deliver_kept("room:1", 1, 2, 3)
    await conversation.pong()
    subscription.ack(old[-1])  # means nothing any more
    subscription.ack(await anext(subscription))  # the 9 that waited: neither
    await conversation.pong()
    assert await read(subscription, 2) == ["1", "2"]
    subscription.ack(2)
    assert await conversation.expect(FrameType.ACK) == (0, Position(2, "room:1"))
    await client.close()


async def test_what_cannot_be_read_any_more_is_told_and_the_rest_comes(
    fake: FakeServer, caplog: pytest.LogCaptureFixture
):
    client, conversation = await connected(fake)
    subscription = await followed(client, conversation)
    with caplog.at_level(logging.WARNING, "imserver.client"):
        lost = bodies.Error(410, "messages 1 to 3 are gone", topic="room:1")
        conversation.say(FrameType.ERROR, lost)
        conversation.deliver_kept("room:1", 4)
        assert await read(subscription, 1) == ["4"]
    assert "'room:1': 410 lost: messages 1 to 3 are gone" in caplog.text
    await client.close()


# Behind a seq, without acknowledgements


async def test_behind_a_seq_it_resumes_where_it_ended(fake: FakeServer):
    client, conversation = await connected(fake)
    asking = asyncio.create_task(client.subscribe("room:1", after=3))
    first = await conversation.grant(cursor=3, head=5, epoch="e1")
    assert first == bodies.Subscribe("room:1", after=3)
    subscription = await asking
    conversation.deliver_kept("room:1", 4, 5)
    assert await read(subscription, 2) == ["4", "5"]
    await conversation.leave()
    conversation = await fake.next_welcomed()
    again = await conversation.grant(cursor=5, head=6, epoch="e1")
    assert again == bodies.Subscribe("room:1", after=5, epoch="e1")
    conversation.deliver_kept("room:1", 6)
    assert await read(subscription, 1) == ["6"]
    await client.close()


async def test_behind_a_seq_that_is_not_there_yet_everything_is_new(fake: FakeServer):
    errors: asyncio.Queue[ImError] = asyncio.Queue()
    client, conversation = await connected(fake, on_error=errors.put_nowait)
    asking = asyncio.create_task(client.subscribe("room:1", after=50))
    await conversation.grant(cursor=0, head=2, epoch="e9")
    subscription = await asking
    assert (await errors.get()).code == 410
    conversation.deliver_kept("room:1", 1, 2)
    assert await read(subscription, 2) == ["1", "2"]
    await client.close()


# Unasked


async def test_returning_from_on_message_acknowledges_and_raising_does_not(fake: FakeServer):
    seen: list[str] = []

    def on_message(message: Message) -> None:
        seen.append(message.body.decode())
        if seen[-1] == "2" and not message.flags & protocol.REDELIVERED:
            raise RuntimeError("not now")

    asyncio.get_running_loop().set_exception_handler(lambda _, __: None)
    client, conversation = await connected(fake, on_message=on_message)
    conversation.say(FrameType.SUBSCRIBED, bodies.Subscribed("group:7", durable=True))
    conversation.deliver_kept("group:7", 1, 2, 3)
    assert await conversation.expect(FrameType.ACK) == (0, Position(1, "group:7"))
    assert await conversation.expect(FrameType.NACK) == (0, Position(2, "group:7"))
    assert await conversation.expect(FrameType.ACK) == (0, Position(3, "group:7"))
    conversation.redeliver("group:7", 2)
    assert await conversation.expect(FrameType.ACK) == (0, Position(2, "group:7"))
    assert seen == ["1", "2", "3", "2"]
    await client.close()


async def test_messages_that_follow_the_welcome_at_once_are_acknowledged(fake: FakeServer):
    messages: asyncio.Queue[Message] = asyncio.Queue()
    client, conversation = await connected(fake, on_message=messages.put_nowait)
    for seq in (1, 2):
        await conversation.leave()
        conversation = await fake.next()
        hello = await conversation.read()
        assert hello
        frames = (
            protocol.encode_frame(FrameType.WELCOME, client.welcome, 1, hello.request),
            protocol.encode_frame(
                FrameType.SUBSCRIBED, bodies.Subscribed("user:ann", durable=True, head=seq), 1
            ),
            *(
                protocol.encode_message("user:ann", "bob", b"", seq=n, flags=1)
                for n in range(1, seq + 1)
            ),
        )
        conversation.writer.write(b"".join(frames))
        assert (await messages.get()).seq == seq  # the first only once
        while (await conversation.expect(FrameType.ACK))[1] != Position(seq, "user:ann"):
            pass  # of the first, again
    await client.close()


async def test_what_nobody_listens_to_is_left_in_the_store(fake: FakeServer):
    client, conversation = await connected(fake)
    conversation.say(FrameType.SUBSCRIBED, bodies.Subscribed("group:7", durable=True))
    request, body = await conversation.expect(FrameType.UNSUBSCRIBE)
    assert (request, body.topic) == (0, "group:7")
    await client.close()


async def test_a_subscription_takes_over_from_on_message(fake: FakeServer):
    messages: list[Message] = []
    client, conversation = await connected(fake, on_message=messages.append)
    conversation.say(FrameType.SUBSCRIBED, bodies.Subscribed("room:1", durable=True, epoch="e1"))
    await conversation.pong()
    asking = asyncio.create_task(client.subscribe("room:1", durable=True))
    request, _ = await conversation.expect(FrameType.SUBSCRIBE)
    conversation.deliver_kept("room:1", 1)  # for the one before: it comes again
    body = bodies.Subscribed("room:1", durable=True, epoch="e1", head=1)
    conversation.say(FrameType.SUBSCRIBED, body, request)
    conversation.deliver_kept("room:1", 1)
    subscription = await asking
    subscription.ack(await anext(subscription))
    assert await conversation.expect(FrameType.ACK) == (0, Position(1, "room:1"))
    assert len(subscription) == len(messages) == 0
    await client.close()
