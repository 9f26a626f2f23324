"""A fake server for the client's tests: it says exactly what a test wants said.

It speaks the real protocol over real sockets, but every frame of its side is written by the
test. All times are set to milliseconds; no test asserts how long anything took.
"""

import asyncio
from typing import Any, Self

from imserver import bodies, protocol
from imserver.client import Client
from imserver.protocol import Frame, FrameReader, FrameType

WELCOME = bodies.Welcome(
    user="ann",
    session="s1",
    node="fake",
    time=0,
    heartbeat=bodies.Heartbeat(interval_ms=60_000, timeout_ms=1000, max_missed=2),
    limits=bodies.Limits(max_frame=65_536, window=64, subscriptions=100),
    reconnect=bodies.Reconnect(base_ms=1, factor=2, max_ms=5),
)
HASTY = bodies.Heartbeat(interval_ms=20, timeout_ms=10, max_missed=2)


class Conversation:
    """The fake's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.frames = FrameReader(1 << 20)
        self.codec = 1

    async def read(self) -> Frame | None:
        """The next frame, None at the end of the connection."""
        while True:
            for frame in self.frames:
                return frame
            try:
                data = await self.reader.read(1 << 16)
            except ConnectionError:
                return None
            if not data:
                return None
            self.frames.feed(data)

    async def expect(self, type: FrameType) -> tuple[int, Any]:
        """The request number and the body of the next frame that is no PING."""
        while True:
            frame = await self.read()
            assert frame is not None, f"the client left, {type.name} was expected"
            if frame.type == FrameType.PING and type != FrameType.PING:
                continue
            assert frame.type == type
            if type == FrameType.MESSAGE:
                return 0, protocol.decode_message(frame.data)
            if type in (FrameType.PING, FrameType.PONG):
                return frame.request, None
            if type in (FrameType.ACK, FrameType.NACK):
                return frame.request, protocol.decode_position(frame.body)
            return frame.request, protocol.decode_body(type, frame.codec, frame.body)

    async def expect_end(self) -> None:
        while frame := await self.read():
            assert frame.type == FrameType.PING

    def say(self, type: FrameType, body: bodies.Body, request: int = 0) -> None:
        self.writer.write(protocol.encode_frame(type, body, self.codec, request))

    def deliver(self, topic: str, *texts: str) -> None:
        frames = [protocol.encode_message(topic, "bob", text.encode()) for text in texts]
        self.writer.write(b"".join(frames))

    def deliver_kept(self, topic: str, *seqs: int, flags: int = protocol.DURABLE) -> None:
        """Messages with a place in the topic; each body is its seq."""
        self.writer.write(
            b"".join(
                protocol.encode_message(
                    topic, "bob", str(seq).encode(), seq=seq, flags=flags, id=seq
                )
                for seq in seqs
            )
        )

    def redeliver(self, topic: str, *seqs: int) -> None:
        self.deliver_kept(topic, *seqs, flags=protocol.DURABLE | protocol.REDELIVERED)

    def set_aside(self, topic: str, *seqs: int) -> None:
        """Once more what the cursor is past."""
        apart = protocol.REDELIVERED | protocol.HISTORY
        self.deliver_kept(topic, *seqs, flags=protocol.DURABLE | apart)

    async def published(self, count: int = 1) -> list[Any]:
        """The next MESSAGEs."""
        return [(await self.expect(FrameType.MESSAGE))[1] for _ in range(count)]

    def receipt(self, id: int, seq: int = 1, time_ms: int = 5) -> None:
        self.writer.write(protocol.encode_receipt(protocol.Receipt(id, seq, time_ms)))

    async def pong(self) -> None:
        """Returns when the client has read everything so far. Nothing but PONG may come."""
        self.writer.write(protocol.encode_bare(FrameType.PING, 99))
        assert await self.expect(FrameType.PONG) == (99, None)

    async def welcome(self, welcome: bodies.Welcome = WELCOME) -> bodies.Hello:
        frame = await self.read()
        assert frame is not None
        self.codec = frame.codec
        hello = protocol.decode_body(FrameType.HELLO, frame.codec, frame.body)
        assert isinstance(hello, bodies.Hello)
        self.say(FrameType.WELCOME, welcome, frame.request)
        return hello

    async def grant(self, **fields: Any) -> bodies.Subscribe:
        """Read a SUBSCRIBE and agree."""
        request, body = await self.expect(FrameType.SUBSCRIBE)
        self.say(FrameType.SUBSCRIBED, bodies.Subscribed(body.topic, **fields), request)
        assert isinstance(body, bodies.Subscribe)
        return body

    async def leave(self, code: int = 0, **fields: Any) -> None:
        """GOAWAY with a code, or just gone."""
        if code:
            self.say(FrameType.GOAWAY, bodies.Goaway(code, **fields))
        self.writer.close()


class FakeServer:
    def __init__(self) -> None:
        self.waiting: asyncio.Queue[Conversation] = asyncio.Queue()
        self.all: list[Conversation] = []

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self.server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = Conversation(reader, writer)
        self.all.append(conversation)
        self.waiting.put_nowait(conversation)

    async def next(self) -> Conversation:
        return await self.waiting.get()

    async def next_welcomed(self, welcome: bodies.Welcome = WELCOME) -> Conversation:
        conversation = await self.next()
        await conversation.welcome(welcome)
        return conversation

    async def stop(self) -> None:
        self.server.close()
        for conversation in self.all:
            conversation.writer.transport.abort()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def connected(fake: FakeServer, **options: Any) -> tuple[Client, Conversation]:
    welcome = options.pop("welcome", WELCOME)
    client = Client(fake.address, **{"user": "ann", **options})
    _, conversation = await asyncio.gather(client.start(), fake.next_welcomed(welcome))
    return client, conversation


async def subscribed(client: Client, conversation: Conversation, topic: str = "room:1") -> Any:
    subscription, _ = await asyncio.gather(client.subscribe(topic), conversation.grant())
    return subscription


async def followed(client: Client, conversation: Conversation, **fields: Any) -> Any:
    """A durable subscription to room:1; `fields` are those of SUBSCRIBED."""
    granted = conversation.grant(**{"durable": True, "epoch": "e1", **fields})
    subscription, _ = await asyncio.gather(client.subscribe("room:1", durable=True), granted)
    return subscription


async def read(subscription: Any, count: int) -> list[str]:
    return [(await anext(subscription)).body.decode() for _ in range(count)]
