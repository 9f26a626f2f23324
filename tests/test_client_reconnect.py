"""The client and the end of its connections: when it comes back, where, and when it stops.

Against a fake server (fake_server.py): the real one would not die in so many ways.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fake_server import WELCOME, FakeServer, connected, read, subscribed

from imserver import bodies, protocol
from imserver.client import Client, parse_address
from imserver.client_itinerary import Itinerary, reconnect_delay_ms
from imserver.errors import Closed
from imserver.protocol import FrameType


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    async with FakeServer() as server:
        yield server


@pytest.fixture
async def other() -> AsyncIterator[FakeServer]:
    async with FakeServer() as server:
        yield server


# Login


async def test_a_refused_login_stops_the_client_and_says_why(fake: FakeServer):
    client = Client(fake.address, token="old")
    start = asyncio.create_task(client.start())
    conversation = await fake.next()
    request, _ = await conversation.expect(FrameType.HELLO)
    conversation.say(FrameType.ERROR, bodies.Error(401, "the token has expired"), request)
    await conversation.leave(4001)
    with pytest.raises(Closed, match="the token has expired") as caught:
        await start
    assert caught.value.code == 4001
    with pytest.raises(Closed):
        await client.publish("room:1", b"")


async def test_a_token_is_asked_for_before_every_connection(fake: FakeServer):
    tokens = iter(["one", "two"])

    async def token() -> str:
        return next(tokens)

    client = Client(fake.address, token=token)
    start = asyncio.create_task(client.start())
    conversation = await fake.next()
    assert (await conversation.welcome()).token == "one"
    await start
    await conversation.leave(4112)
    assert (await (await fake.next()).welcome()).token == "two"
    await client.close()


async def test_a_token_that_cannot_be_had_is_tried_again(fake: FakeServer):
    async def token() -> str:
        raise LookupError("the token service is down")

    client = Client(fake.address, token=token, connect_timeout_s=0.05)
    with pytest.raises(LookupError):
        await client.start()


async def test_nobody_there_is_an_os_error():
    client = Client("127.0.0.1:1", user="ann", connect_timeout_s=0.05)
    with pytest.raises(OSError, match=r".") as caught:
        await client.start()
    assert isinstance(caught.value, ConnectionRefusedError)


async def test_a_server_that_speaks_something_else_stops_the_client(fake: FakeServer):
    client = Client(fake.address, user="ann")
    start = asyncio.create_task(client.start())
    conversation = await fake.next()
    conversation.writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    with pytest.raises(Closed) as caught:
        await start
    assert caught.value.code == 4004


# Close codes


@pytest.mark.parametrize("code", [4000, 4001, 4009, 4010, 4099])
async def test_40xx_stops_and_tells_everybody(fake: FakeServer, code: int):
    client, conversation = await connected(fake)
    subscription = await subscribed(client, conversation)
    calling = asyncio.create_task(client.call("slow"))
    await conversation.expect(FrameType.CALL)
    conversation.deliver("room:1", "last")
    await conversation.leave(code, reason="because")
    assert await read(subscription, 1) == ["last"]
    for waiting in (anext(subscription), calling, client.publish("t", b""), client.call("x")):
        with pytest.raises(Closed, match="because") as caught:
            await waiting
        assert caught.value.code == code
    assert not client.is_connected
    await client.close()


@pytest.mark.parametrize("code", [0, 1001, 4100, 4109, 4199, 4200, 4201, 4299, 4300, 4399, 4400])
async def test_all_other_codes_reconnect_and_subscribe_again(fake: FakeServer, code: int):
    ends: list[Closed] = []
    client, conversation = await connected(fake, on_disconnect=ends.append)
    subscription, asked = await asyncio.gather(
        client.subscribe("room:1", "a||b"), conversation.grant()
    )
    second = await subscribed(client, conversation, "room:2")
    await conversation.leave(code, retry_after_ms=1)

    conversation = await fake.next_welcomed()
    assert await conversation.grant() == asked
    assert (await conversation.grant()).topic == "room:2"
    conversation.deliver("room:1", "again")
    conversation.deliver("room:2", "here too")
    assert await read(subscription, 1) == ["again"]
    assert await read(second, 1) == ["here too"]
    assert [closed.code for closed in ends] == [code]
    await client.close()


async def test_43xx_goes_where_it_is_sent_and_home_again(fake: FakeServer, other: FakeServer):
    client, conversation = await connected(fake)
    await conversation.leave(4301, alternatives=["not:an:address", other.address])
    conversation = await other.next_welcomed()
    await conversation.leave(0)
    await fake.next_welcomed()
    await client.close()


async def test_43xx_at_the_door_is_followed(fake: FakeServer, other: FakeServer):
    client = Client(fake.address, user="ann")
    start = asyncio.create_task(client.start())
    await (await fake.next()).leave(4301, alternatives=[other.address])
    await other.next_welcomed()
    await start
    await client.close()


async def test_it_keeps_trying_while_the_server_is_away(fake: FakeServer):
    client, conversation = await connected(fake)
    for _ in range(5):
        await conversation.leave(0)
        conversation = await fake.next()
    await conversation.welcome()
    await client.publish("room:1", b"back")
    _, message = await conversation.expect(FrameType.MESSAGE)
    assert message.body == b"back"
    await client.close()


async def test_goaway_lets_a_waiting_call_have_its_answer(fake: FakeServer):
    client, conversation = await connected(fake)
    calling = asyncio.create_task(client.call("slow"))
    request, _ = await conversation.expect(FrameType.CALL)
    conversation.say(FrameType.GOAWAY, bodies.Goaway(4201))
    conversation.writer.write(protocol.encode_bare(FrameType.PING, 1))
    await conversation.expect(FrameType.PONG)  # so the GOAWAY has been read
    assert not client.is_connected
    publishing = asyncio.create_task(client.publish("room:1", b"on the next one"))
    conversation.say(FrameType.RESULT, bodies.Result([1, 2]), request)
    assert await calling == [1, 2]
    await conversation.expect_end()
    _, message = await (await fake.next_welcomed()).expect(FrameType.MESSAGE)
    assert message.body == b"on the next one"
    await publishing
    await client.close()


# When and where: pure


def test_the_wait_is_random_up_to_an_exponential_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    policy = bodies.Reconnect(base_ms=100, factor=2, max_ms=1000)
    back_off = [reconnect_delay_ms(Closed(0), attempts, policy) for attempts in range(6)]
    assert back_off == [100, 200, 400, 800, 1000, 1000]
    assert reconnect_delay_ms(Closed(4153, "", 5000), 0, policy) == 5100
    assert reconnect_delay_ms(Closed(4201, "", 5000), 0, policy) == 5000
    assert reconnect_delay_ms(Closed(4301), 0, policy) == 0
    assert reconnect_delay_ms(Closed(4301), 1, policy) == 200
    assert reconnect_delay_ms(Closed(0), 10**6, policy) == 1000


def test_the_wait_may_be_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    policy = bodies.Reconnect(base_ms=100, factor=2, max_ms=1000)
    assert reconnect_delay_ms(Closed(0), 5, policy) == 0
    assert reconnect_delay_ms(Closed(4153, "", 5000), 5, policy) == 5000


def test_only_a_connection_that_lasted_starts_the_count_anew(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    itinerary = Itinerary(("home", 1))
    assert [itinerary.after(Closed(0), 10, WELCOME) for _ in range(4)] == [1, 2, 4, 5]
    assert itinerary.after(Closed(0), 60_000, WELCOME) == 1
    assert itinerary.after(Closed(0), 59_999, WELCOME) == 2


def test_alternatives_are_tried_in_order_then_home():
    itinerary = Itinerary(("home", 1))
    itinerary.after(Closed(4301, alternatives=["a:1", "[::1]:2"]), 0, WELCOME)
    seen = [itinerary.address]
    for _ in range(2):
        itinerary.after(Closed(0), 0, WELCOME)
        seen.append(itinerary.address)
    assert seen == [("a", 1), ("::1", 2), ("home", 1)]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("a.example:1", ("a.example", 1)),
        ("localhost", ("localhost", 7400)),
        ("[::1]", ("::1", 7400)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]):
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", ":1", "a:", "a:b", "a:0", "a:65536", "a:-1"])
def test_what_is_no_address_is_a_value_error(text: str):
    with pytest.raises(ValueError, match="address"):
        parse_address(text)
