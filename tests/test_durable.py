"""The client and the server together: kept messages across connections, restarts and refusals."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from imserver import Config, Server
from imserver.client import Client
from imserver.config import Delivery, Reconnect
from imserver.errors import ErrorCode, ImError
from imserver.model import Message

ROOM = "room:lobby"
EXAMPLES = Path(__file__).parent.parent / "examples"

#: Clients come back at once.
SOON = Reconnect(base_ms=1, max_ms=20)


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """await serve(**config): a server at the same address and on the same store every time; the
    one before stops first."""
    running: list[Server] = []
    address = ["127.0.0.1:0"]

    async def start(**sections: Any) -> Server:
        while running:
            await running.pop().stop()
        config = Config(
            listen=address[0], dev=True, data_dir=str(tmp_path), reconnect=SOON, **sections
        )
        server = Server(config)
        await server.start()
        address[0] = "{}:{}".format(*server.address)
        running.append(server)
        return server

    yield start
    while running:
        await running.pop().stop()


async def take(subscription: Any, count: int, *, acks: bool = False) -> list[Message]:
    taken: list[Message] = []
    async with asyncio.timeout(20):
        async for message in subscription:
            taken.append(message)
            if acks:
                subscription.ack(message)
            if len(taken) == count:
                break
    return taken


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110 (what happens in the core tells nobody)
            await asyncio.sleep(0.02)


async def test_a_receipt_is_a_future_and_publishes_keep_their_order(serve: Any) -> None:
    server = await serve()
    async with Client(server.address, user="ann") as ann:
        pending = [await ann.publish(ROOM, number, durable=True) for number in range(500)]
        receipts = await asyncio.gather(*pending)
    assert [receipt.seq for receipt in receipts] == list(range(1, 501))


async def test_what_is_published_while_the_server_restarts_is_kept_once(serve: Any) -> None:
    server = await serve()
    async with (
        Client(server.address, user="ann") as ann,
        Client(server.address, user="bob") as bob,
    ):
        messages = await bob.subscribe(ROOM, durable=True)

        async def publish() -> list[Any]:
            return [await ann.publish(ROOM, number, durable=True) for number in range(300)]

        publishing = asyncio.create_task(publish())
        for _ in range(3):
            await asyncio.sleep(0.02)
            await serve()
        receipts = await asyncio.gather(*await publishing)
        assert sorted(receipt.seq for receipt in receipts) == list(range(1, 301))
        got = await take(messages, 300, acks=True)
        assert [message.value() for message in got] == list(range(300))
        assert [message.seq for message in got] == list(range(1, 301))


async def test_a_reader_comes_back_to_what_it_has_not_acknowledged(serve: Any) -> None:
    server = await serve()
    async with Client(server.address, user="bob") as bob:
        await bob.subscribe(ROOM, durable=True)
    for number in range(10):
        await server.publish(ROOM, number, durable=True)
    async with Client(server.address, user="bob") as bob:
        messages = await bob.subscribe(ROOM, durable=True)
        for message in await take(messages, 10):
            if message.seq <= 4:
                messages.ack(message)
        await until(lambda: server.stats()["acks"] > 0)
    server = await serve()
    async with Client(server.address, user="bob") as bob:
        messages = await bob.subscribe(ROOM, durable=True)
        assert [message.seq for message in await take(messages, 6)] == list(range(5, 11))


async def test_a_refused_message_comes_again_and_the_others_go_on(serve: Any) -> None:
    server = await serve(delivery=Delivery(ack_wait_ms=100, backoff_max_ms=200))
    async with Client(server.address, user="bob") as bob:
        messages = await bob.subscribe(ROOM, durable=True)
        for number in range(3):
            await server.publish(ROOM, number, durable=True)
        first, second, third = await take(messages, 3)
        messages.nack(second)
        messages.ack(third)
        (again,) = await take(messages, 1)
        assert (again.seq, again.attempt) == (second.seq, 1)
        messages.ack(again)
    assert first.seq == 1


async def test_redriven_letters_are_acknowledged_one_by_one(serve: Any) -> None:
    server = await serve(delivery=Delivery(ack_wait_ms=100, backoff_max_ms=200, attempts=1))
    store = server._store
    async with Client(server.address, user="bob") as bob:
        messages = await bob.subscribe(ROOM, durable=True)
        for number in range(5):
            await server.publish(ROOM, number, durable=True)
        await take(messages, 5)  # and does nothing about them
        async with asyncio.timeout(20):
            while len(letters := await store.dead()) < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert await server._gateway.followers.delivery.redrive([one.id for one in letters]) == 5
        again = await take(messages, 5, acks=True)
        assert sorted(message.seq for message in again) == [1, 2, 3, 4, 5]
        async with asyncio.timeout(20):
            while await store.dead():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert not len(messages)


async def test_everything_after_a_seq_then_live_across_a_restart(serve: Any) -> None:
    server = await serve()
    for number in range(5):
        await server.publish(ROOM, number, durable=True)
    async with Client(server.address, user="bob") as bob:
        messages = await bob.subscribe(ROOM, after=2)
        assert [message.seq for message in await take(messages, 3)] == [3, 4, 5]
        server = await serve()
        await server.publish(ROOM, "more", durable=True)
        assert [message.seq for message in await take(messages, 1)] == [6]


async def test_an_inbox_acknowledges_what_its_callback_took(serve: Any) -> None:
    server = await serve(delivery=Delivery(ack_wait_ms=100, backoff_max_ms=200))
    seen: list[Any] = []

    def on_message(message: Message) -> None:
        seen.append((message.value(), message.attempt))
        if len(seen) == 2:
            raise ValueError("not this time")

    await server.publish("user:bob", "while he was away")
    async with Client(server.address, user="bob", on_message=on_message) as bob:
        assert bob.welcome
        await server.publish("user:bob", "now")
        await until(lambda: len(seen) == 3)
    assert seen == [("while he was away", 0), ("now", 0), ("now", 1)]


async def test_what_cannot_be_kept_is_refused_by_its_future(serve: Any) -> None:
    server = await serve()
    async with Client(server.address, user="ann") as ann:
        refused = await ann.publish("group:1", "x", durable=True)
        with pytest.raises(ImError) as error:
            await refused
        assert error.value.code == ErrorCode.FORBIDDEN
    async with Server(Config(listen="127.0.0.1:0", dev=True)) as without_a_store:
        async with Client(without_a_store.address, user="ann") as ann:
            refused = await ann.publish(ROOM, "x", durable=True)
            with pytest.raises(ImError) as error:
                await refused
            assert error.value.code == ErrorCode.NOT_DURABLE
            with pytest.raises(ImError, match="507"):
                await ann.subscribe(ROOM, durable=True)


async def test_history_read_marks_and_members_by_call(serve: Any) -> None:
    server = await serve()
    await server.join("group:1", ["ann", "bob"])
    async with Client(server.address, user="ann") as ann:
        for number in range(5):
            await (await ann.publish("group:1", {"n": number}, durable=True))
        page = await ann.call("history", {"topic": "group:1", "before": 5, "limit": 2})
        assert [one["body"] for one in page["messages"]] == [{"n": 2}, {"n": 3}]
        page = await ann.call("history", {"topic": "group:1", "after": 3})
        assert [one["seq"] for one in page["messages"]] == [4, 5]
        assert await ann.call("read", {"topic": "group:1", "seq": 3}) == {"read": 3}
        assert await ann.call("read", {"topic": "group:1", "seq": 1}) == {"read": 3}
        unread = await ann.call("unread", {"topics": ["group:1"]})
        assert unread["group:1"]["unread"] == 2
        assert await ann.call("members", {"topic": "group:1"}) == ["ann", "bob"]
    async with Client(server.address, user="eve") as eve:
        with pytest.raises(ImError, match="403"):
            await eve.call("history", {"topic": "group:1"})


#: test_autobahn runs the echo, which has no end.
ENDING = sorted(set(EXAMPLES.glob("*.py")) - {EXAMPLES / "websocket_echo.py"})


@pytest.mark.parametrize("example", ENDING, ids=lambda path: path.name)
def test_the_example_runs(example: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not done.stderr
