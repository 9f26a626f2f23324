"""Durable publishes: one future each, and no message twice, whatever happens to connections.

Against a fake server (fake_server.py), which loses, refuses and repeats on command.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_server import WELCOME, FakeServer, connected, read, subscribed
from msgspec.structs import replace

from imserver import bodies, client_publishes, protocol
from imserver.errors import Closed, ImError
from imserver.protocol import DURABLE, NO_ECHO, RETRY, FrameType, Receipt


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    async with FakeServer() as server:
        yield server


async def kept(client: Any, count: int = 1, **options: Any) -> list[asyncio.Future[Receipt]]:
    """Publish "0", "1", ... durably."""
    return [
        await client.publish("room:1", str(n).encode(), durable=True, **options)
        for n in range(count)
    ]


async def refusal(receipt: asyncio.Future[Receipt]) -> tuple[int, int, str]:
    with pytest.raises(ImError) as caught:
        await receipt
    return caught.value.code, caught.value.id, caught.value.topic


async def test_the_future_resolves_with_the_receipt_in_any_order(fake: FakeServer):
    client, conversation = await connected(fake)
    receipts = await kept(client, 3)
    messages = await conversation.published(3)
    assert [message.flags for message in messages] == [DURABLE] * 3
    assert [message.id - messages[0].id for message in messages] == [0, 1, 2]
    for seq, message in reversed(list(enumerate(messages, 10))):
        conversation.receipt(message.id, seq)
    for seq, (receipt, message) in enumerate(zip(receipts, messages, strict=True), 10):
        assert await receipt == Receipt(message.id, seq, 5)
    await client.close()


async def test_a_publish_that_is_not_durable_is_answered_by_its_id(fake: FakeServer):
    client, conversation = await connected(fake)
    id = await client.publish("room:1", b"x")
    (message,) = await conversation.published()
    assert (message.id, message.flags) == (id, 0)
    await client.close()


@pytest.mark.parametrize("code", [403, 409, 413, 507, 1234])
async def test_a_refusal_is_the_futures_and_nobody_elses(fake: FakeServer, code: int):
    errors: list[ImError] = []
    client, conversation = await connected(fake, on_error=errors.append)
    first, second = await kept(client, 2)
    one, two = await conversation.published(2)
    conversation.say(FrameType.ERROR, bodies.Error(code, id=one.id, topic="room:1"))
    conversation.receipt(two.id)
    assert await refusal(first) == (code, one.id, "room:1")
    assert (await second).id == two.id
    assert errors == []
    await client.close()


async def test_what_is_unanswered_is_sent_again_in_order_with_its_ids(fake: FakeServer):
    client, conversation = await connected(fake)
    receipts = await kept(client, 4)
    before = await conversation.published(4)
    conversation.receipt(before[1].id)
    await receipts[1]
    await conversation.leave()

    conversation = await fake.next_welcomed()
    again = await conversation.published(3)
    assert [message.id for message in again] == [before[n].id for n in (0, 2, 3)]
    assert [message.body for message in again] == [b"0", b"2", b"3"]
    assert {message.flags for message in again} == {DURABLE | RETRY}
    for message in again:
        conversation.receipt(message.id)
    await asyncio.gather(*receipts)
    await client.close()


async def test_a_connection_that_is_lost_again_and_again_loses_nothing(fake: FakeServer):
    client, conversation = await connected(fake)
    receipts = await kept(client, 2)
    first = await conversation.published(2)
    for _ in range(5):
        await conversation.leave()
        conversation = await fake.next_welcomed()
        assert [message.id for message in await conversation.published(2)] == [
            message.id for message in first
        ]
    for message in first:
        conversation.receipt(message.id)
    await asyncio.gather(*receipts)
    await client.close()


async def test_old_ones_come_before_new_ones(fake: FakeServer):
    lost = asyncio.Event()
    client, conversation = await connected(fake, on_disconnect=lambda _: lost.set())
    receipts = await kept(client)
    await conversation.published()
    await conversation.leave()
    await lost.wait()
    assert not client.is_connected
    receipts += [await client.publish("room:1", b"kept", durable=True, no_echo=True)]
    publishing = asyncio.create_task(client.publish("room:1", b"live"))
    conversation = await fake.next_welcomed()
    messages = await conversation.published(3)
    assert [message.body for message in messages] == [b"0", b"kept", b"live"]
    # Never sent before, so it is not a repeat.
    assert [message.flags for message in messages] == [DURABLE | RETRY, DURABLE | NO_ECHO, 0]
    assert messages[0].id < messages[1].id < messages[2].id
    assert await publishing == messages[2].id
    for message in messages[:2]:
        conversation.receipt(message.id)
    await asyncio.gather(*receipts)
    await client.close()


async def test_a_receipt_that_comes_twice_or_for_nobody_disturbs_nothing(fake: FakeServer):
    client, conversation = await connected(fake)
    (receipt,) = await kept(client)
    (message,) = await conversation.published()
    for seq in (7, 8):
        conversation.receipt(message.id, seq)
    conversation.receipt(99)
    assert (await receipt).seq == 7
    await conversation.pong()
    assert client.is_connected
    await client.close()


@pytest.mark.parametrize("code", [429, 500, 503])
async def test_what_the_server_puts_off_is_tried_again(fake: FakeServer, code: int):
    client, conversation = await connected(fake)
    (receipt,) = await kept(client)
    (message,) = await conversation.published()
    for _ in range(3):
        error = bodies.Error(code, retry_after_ms=1, id=message.id, topic="room:1")
        conversation.say(FrameType.ERROR, error)
        (again,) = await conversation.published()
        assert (again.id, again.flags) == (message.id, DURABLE | RETRY)
    conversation.receipt(message.id)
    await receipt
    await client.close()


async def test_what_was_put_off_is_not_forgotten_by_a_reconnect(fake: FakeServer):
    client, conversation = await connected(fake)
    (receipt,) = await kept(client)
    (message,) = await conversation.published()
    error = bodies.Error(503, retry_after_ms=50, id=message.id, topic="room:1")
    conversation.say(FrameType.ERROR, error)
    await conversation.leave()
    conversation = await fake.next_welcomed()
    (again,) = await conversation.published()
    conversation.receipt(again.id)
    assert (await receipt).id == message.id
    await client.close()


async def test_after_its_time_a_publish_is_408(fake: FakeServer):
    client, conversation = await connected(fake)
    (receipt,) = await kept(client, retry_s=0.01)
    (message,) = await conversation.published()
    assert await refusal(receipt) == (408, message.id, "room:1")
    await conversation.leave()
    conversation = await fake.next_welcomed()
    await conversation.pong()  # and not again
    await client.close()


async def test_a_cancelled_one_is_not_sent_again(fake: FakeServer):
    client, conversation = await connected(fake)
    first, second = await kept(client, 2)
    _, message = await conversation.published(2)
    first.cancel()
    await conversation.leave()
    conversation = await fake.next_welcomed()
    assert [again.id for again in await conversation.published()] == [message.id]
    conversation.receipt(message.id)
    await second
    await client.close()


async def test_told_to_stop_all_futures_end_with_why(fake: FakeServer):
    client, conversation = await connected(fake)
    receipts = await kept(client, 2)
    await conversation.leave(4010, reason="kicked")
    for receipt in receipts:
        with pytest.raises(Closed, match="kicked"):
            await receipt
    with pytest.raises(Closed):
        await client.publish("room:1", b"", durable=True)
    await client.close()


async def test_closing_waits_for_the_receipts_across_a_reconnect(fake: FakeServer):
    client, conversation = await connected(fake)
    receipts = await kept(client, 2)
    closing = asyncio.create_task(client.close())
    await conversation.published(2)
    await conversation.leave()
    conversation = await fake.next_welcomed()
    for message in await conversation.published(2):
        conversation.receipt(message.id)
    await closing
    assert all([receipt.done() and await receipt for receipt in receipts])


async def test_closing_does_not_wait_for_ever(fake: FakeServer):
    client, conversation = await connected(fake, wait_timeout_s=0.02)
    (receipt,) = await kept(client)
    (message,) = await conversation.published()
    await client.close()
    assert await refusal(receipt) == (408, message.id, "room:1")


async def test_goaway_lets_the_receipts_come_first(fake: FakeServer):
    client, conversation = await connected(fake)
    receipts = await kept(client, 2)
    messages = await conversation.published(2)
    conversation.say(FrameType.GOAWAY, bodies.Goaway(4201))
    await conversation.pong()
    conversation.receipt(messages[0].id)
    error = bodies.Error(403, id=messages[1].id, topic="room:1")
    conversation.say(FrameType.ERROR, error)
    assert (await receipts[0]).id == messages[0].id
    assert (await refusal(receipts[1]))[0] == 403
    await conversation.expect_end()
    conversation = await fake.next_welcomed()
    await conversation.pong()  # nothing is repeated
    await client.close()


@pytest.mark.parametrize(("messages", "frame_bytes"), [(4, 1 << 20), (1 << 20, 4 * 1100)])
async def test_without_receipts_there_is_room_for_a_few(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, messages: int, frame_bytes: int
):
    monkeypatch.setattr(client_publishes, "MAX_PUBLISHES", messages)
    monkeypatch.setattr(client_publishes, "MAX_BYTES", frame_bytes)
    client, conversation = await connected(fake)
    receipts = [await client.publish("room:1", bytes(1024), durable=True) for _ in range(4)]
    fifth = asyncio.create_task(client.publish("room:1", bytes(1024), durable=True))
    waiting = await conversation.published(4)
    await conversation.pong()
    assert not fifth.done()
    conversation.receipt(waiting[2].id)
    receipts.append(await fifth)
    (last,) = await conversation.published()
    for message in [*waiting, last]:
        conversation.receipt(message.id)
    await asyncio.gather(*receipts)
    await client.close()


async def test_nobody_waits_for_room_for_ever(fake: FakeServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_publishes, "MAX_PUBLISHES", 1)
    client, _ = await connected(fake, wait_timeout_s=0.02)
    (receipt,) = await kept(client)
    with pytest.raises(ImError, match="408"):
        await client.publish("room:1", b"x", durable=True)
    await client.close()
    await refusal(receipt)


async def test_a_frame_that_the_next_server_does_not_take_fails_alone(fake: FakeServer):
    client, conversation = await connected(fake)
    with pytest.raises(ImError, match="413"):
        await client.publish("room:1", bytes(65_536), durable=True)
    long = await client.publish("room:1", bytes(2000), durable=True)
    (short,) = await kept(client)
    await conversation.published(2)
    await conversation.leave()
    narrow = replace(WELCOME, limits=replace(WELCOME.limits, max_frame=1000))
    conversation = await fake.next_welcomed(narrow)
    assert (await refusal(long))[0] == 413
    (again,) = await conversation.published()
    conversation.receipt(again.id)
    await short
    await client.close()


async def test_a_receipt_is_read_while_a_subscription_is_full(fake: FakeServer):
    client, conversation = await connected(fake, queue_messages=10)
    subscription = await subscribed(client, conversation)
    conversation.deliver("room:1", *map(str, range(30)))
    assert await read(subscription, 1) == ["0"]
    (receipt,) = await kept(client)
    (message,) = await conversation.published()
    error = bodies.Error(503, retry_after_ms=1, id=message.id, topic="room:1")
    conversation.say(FrameType.ERROR, error)
    await conversation.published()  # the second attempt counts too
    conversation.receipt(message.id)
    await receipt
    assert await read(subscription, 29) == [str(n) for n in range(1, 30)]
    await client.close()


async def test_an_error_about_another_topic_is_not_its_own(fake: FakeServer):
    errors: asyncio.Queue[ImError] = asyncio.Queue()
    client, conversation = await connected(fake, on_error=errors.put_nowait)
    (receipt,) = await kept(client)
    (message,) = await conversation.published()
    conversation.say(FrameType.ERROR, bodies.Error(403, id=message.id, topic="room:2"))
    assert (await errors.get()).topic == "room:2"
    conversation.writer.write(protocol.encode_receipt(Receipt(message.id, 1, 1)))
    await receipt
    await client.close()
