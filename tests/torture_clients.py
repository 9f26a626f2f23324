"""Publishers and subscribers that go on whatever happens to the server, and write down what they see.

Bare frames over asyncio, nothing of imserver.client: a fault of that must not hide one of the
server. A publisher repeats what has no receipt with RETRY and the same ids until it has one; a
subscriber comes back to its cursors, acknowledges half of all messages at once, others late, and
refuses some.
"""

import asyncio
import random
from collections import deque
from contextlib import suppress

from history import History, Publish

from imserver.protocol import (
    DURABLE,
    RETRY,
    Frame,
    FrameReader,
    FrameType,
    Hello,
    Position,
    Subscribe,
    decode_body,
    decode_message,
    decode_receipt,
    encode_bare,
    encode_frame,
    encode_message,
    encode_position,
)

JSON = 1
IN_FLIGHT = 32
LATE_ACK_EVERY = 20
RETRY_S = 0.02


class Client:
    """One user, connected again and again until `stop`."""

    def __init__(self, history: History, name: str, seed: int) -> None:
        self.history = history
        self.name = name
        self.random = random.Random(seed)
        self.port = 0
        self.connections = 0
        self.is_stopped = False
        self.is_welcome = False
        self.writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        while not self.is_stopped:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._connect()
            await asyncio.sleep(RETRY_S)

    async def _connect(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.connections += 1
        frames = FrameReader(1 << 20)
        hello = Hello(1, user=self.name)
        try:
            self.writer = writer
            writer.write(encode_frame(FrameType.HELLO, hello, JSON, 1))
            while data := await reader.read(65_536):
                for frame in frames.feed(data):
                    self._on_frame(frame)
                await writer.drain()
                if self.is_stopped:
                    return
        finally:
            self.writer, self.is_welcome = None, False
            writer.close()

    def _on_frame(self, frame: Frame) -> None:
        if frame.type == FrameType.WELCOME:
            self.is_welcome = True
            self.welcomed()
        elif frame.type == FrameType.PING:
            self.send(encode_bare(FrameType.PONG, frame.request))
        elif frame.type == FrameType.ERROR:
            error = decode_body(frame.type, frame.codec, frame.body)
            self.history.error(error.code, error.message)
        else:
            self.took(frame)

    def send(self, data: bytes) -> None:
        if self.writer and not self.writer.transport.is_closing():
            self.writer.write(data)

    def cut(self) -> None:
        """Lose the connection in the middle of whatever it carries, by FIN or by RST."""
        if self.writer:
            transport = self.writer.transport
            self.random.choice((transport.abort, transport.close))()

    def welcomed(self) -> None: ...

    def took(self, frame: Frame) -> None: ...


class Publisher(Client):
    """Writes to topics by chance; at most `in_flight` messages wait for a receipt."""

    def __init__(
        self, history: History, name: str, seed: int, topics: list[str], in_flight: int
    ) -> None:
        super().__init__(history, name, seed)
        self.topics = topics
        self.in_flight = in_flight
        self.last_id = 0
        self.most = 0  # ids up to here are to be published
        self.open: dict[int, bytes] = {}

    def welcomed(self) -> None:
        self.send(b"".join(_repeated(frame) for frame in self.open.values()))
        self.go_on()

    def go_on(self) -> None:
        """Nothing new before what is repeated: that would be our disorder, not the server's."""
        fresh = []
        while self.is_welcome and len(self.open) < self.in_flight and self.last_id < self.most:
            fresh.append(self._next())
        self.send(b"".join(fresh))

    def _next(self) -> bytes:
        self.last_id += 1
        topic = self.random.choice(self.topics)
        body = self.random.randbytes(self.random.choice((0, 40, 400, 4_000)))
        frame = encode_message(topic, self.name, body, id=self.last_id, flags=DURABLE)
        self.history.publish(Publish(self.name, self.last_id), topic, body)
        self.open[self.last_id] = frame
        return frame

    def cut(self) -> None:
        """Behind a random byte of one more message."""
        if self.is_welcome and not self.is_stopped:
            self.most = max(self.most, self.last_id + 1)
            frame = self._next()
            self.send(frame[: self.random.randrange(len(frame) + 1)])
        super().cut()

    def took(self, frame: Frame) -> None:
        if frame.type != FrameType.RECEIPT:
            return
        receipt = decode_receipt(frame.body)
        self.history.receipt(Publish(self.name, receipt.id), receipt)
        self.open.pop(receipt.id, None)
        self.go_on()


def _repeated(frame: bytes) -> bytes:
    return frame[:5] + bytes((frame[5] | RETRY,)) + frame[6:]


class Subscriber(Client):
    """Reads its topics through durable subscriptions."""

    def __init__(self, history: History, name: str, seed: int) -> None:
        super().__init__(history, name, seed)
        self.late: dict[str, int] = {}
        self.is_subscribed = asyncio.Event()
        self.unanswered: deque[str] = deque()

    def welcomed(self) -> None:
        self.late.clear()
        topics = sorted(self.history.subscribers[self.name])
        self.unanswered = deque(topics)
        for topic in topics:
            body = Subscribe(topic, durable=True)
            self.send(encode_frame(FrameType.SUBSCRIBE, body, JSON, 2))

    def took(self, frame: Frame) -> None:
        if frame.type == FrameType.SUBSCRIBED and frame.request:
            self.unanswered.popleft()
            if not self.unanswered:
                self.is_subscribed.set()
        elif frame.type == FrameType.MESSAGE:
            message = decode_message(frame.data)
            self.history.delivery(self.name, self.connections, message)
            self._decide(message.topic, message.seq, message.attempt)

    def _decide(self, topic: str, seq: int, attempt: int) -> None:
        dice = self.random.random()
        if attempt or dice < 0.5:
            self._ack(topic, seq)
        elif dice < 0.6:
            self.history.nack(self.name, topic, seq)
            self.send(encode_position(FrameType.NACK, Position(seq, topic)))
        else:
            self.late[topic] = self.late.get(topic, 0) + 1
            if self.late[topic] % LATE_ACK_EVERY == 0:
                self._ack(topic, seq)

    def _ack(self, topic: str, seq: int) -> None:
        self.history.ack(self.name, topic, seq)
        self.send(encode_position(FrameType.ACK, Position(seq, topic)))


class Crowd:
    """8 publishers and 8 subscribers over a few topics, and the history they write."""

    def __init__(
        self,
        seed: int = 1,
        publishers: int = 8,
        subscribers: int = 8,
        in_flight: int = IN_FLIGHT,
    ) -> None:
        self.topics = [f"room:{number}" for number in range(5)]
        dice = random.Random(seed)
        names = [f"reader{number}" for number in range(subscribers)]
        self.history = History({name: set(dice.sample(self.topics, 3)) for name in names})
        self.publishers = [
            Publisher(self.history, f"writer{number}", seed + number, self.topics, in_flight)
            for number in range(publishers)
        ]
        self.subscribers = [Subscriber(self.history, name, seed) for name in names]
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, port: int, timeout_s: float = 30.0) -> None:
        """Returns when all subscriptions stand: from then on everything published is owed."""
        self.moved(port)
        self.tasks = [asyncio.create_task(one.run()) for one in self.all]
        async with asyncio.timeout(timeout_s):
            for one in self.subscribers:
                await one.is_subscribed.wait()

    @property
    def all(self) -> list[Publisher | Subscriber]:
        return [*self.publishers, *self.subscribers]

    @property
    def in_flight(self) -> int:
        return sum(len(one.open) for one in self.publishers)

    @property
    def is_busy(self) -> bool:
        return any(one.open or one.last_id < one.most for one in self.publishers)

    def moved(self, port: int) -> None:
        for one in self.all:
            one.port = port

    def publish(self, count: int) -> None:
        """So many more messages of each publisher."""
        for one in self.publishers:
            one.most += count
            one.go_on()

    async def finish(self, timeout_s: float) -> None:
        """Until every message has its receipt and every subscriber what it is owed, or the time
        is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.is_busy:  # noqa: ASYNC110 (many conditions)
                    await asyncio.sleep(0.05)
                while self.history.owed:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.2)  # for what was kept without a receipt

    async def leave(self) -> None:
        for one in self.all:
            one.is_stopped = True
            one.cut()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
