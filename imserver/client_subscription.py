"""What a client has received and its application has not yet read.

    S1  a subscription holds at most `queue_messages` messages, or STRETCH times as many while
        an answer or a receipt is waited for; the connection stops reading before that. A durable
        one is sent no more than the server's window besides.

Not here: asking the server for a subscription (client), what was acknowledged (client_cursor).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Self

from imserver.client_cursor import Cursor
from imserver.errors import ErrorCode, ImError
from imserver.model import Message
from imserver.protocol import Subscribe

#: A full subscription stops the reading, but an answer that somebody waits for, perhaps the
#: very task that would read the subscription, must still get through: up to this many times
#: the bound, reading goes on while a request is unanswered.
STRETCH = 8


class Subscription:
    """The messages of one topic, in order: `async for message in subscription`.

    Iteration ends after `close()`; it raises ImError with the code of an UNSUBSCRIBED that
    nobody asked for, and `Closed` when the client was told to stop. Made by `Client.subscribe`.

    With `durable` every message is to be acknowledged when it has been dealt with; until then
    it is sent again, to whichever connection this user and device have, with REDELIVERED in
    its `flags` and `attempt` counted up:

        async for message in subscription:
            try:
                await handle(message)
            except Exception:
                subscription.nack(message)
            else:
                subscription.ack(message)
    """

    def __init__(self, topic: str, tags: str, inbox: "Inbox", cursor: Cursor | None = None) -> None:
        self.topic = topic
        self.tags = tags
        self.cursor = cursor
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_ended = False
        self._inbox = inbox
        self._queue: deque[Message] = deque()
        self._news = asyncio.Event()
        self._error: ImError | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        while True:
            while not self._queue:
                if self._error:
                    raise self._error
                if self.is_ended:
                    raise StopAsyncIteration
                self._news.clear()
                await self._news.wait()
            message = self._queue.popleft()
            self._inbox.shrunk(self)
            if self.cursor is None or self.cursor.hand(message):
                return message

    def ack(self, message: Message | int) -> None:
        """Done with everything up to this message, or seq. Of a message that was set aside by
        `nack`, and is older than that, only with itself.

        Returns at once. What is acknowledged in one turn of the event loop leaves as one
        frame; what is lost with its connection is said again on the next. Without effect for
        messages that were not received, or whose topic has been numbered anew since.
        """
        self._durable_cursor().ack(message if isinstance(message, int) else message.seq)

    def nack(self, message: Message | int) -> None:
        """This one message failed here: the server sends it again later, after its last attempt
        never. The others go on, and may be acknowledged past it."""
        self._durable_cursor().nack(message if isinstance(message, int) else message.seq)

    def _durable_cursor(self) -> Cursor:
        if self.cursor is None or not self.cursor.is_durable:
            raise RuntimeError("only durable subscriptions acknowledge")
        return self.cursor

    @property
    def epoch(self) -> str:
        """The numbering that seqs belong to, to be kept with them; empty without `durable` and
        `after`. It changes when the server's store was replaced: then everything that is kept
        comes, and `on_error` hears of it with code 410."""
        return self.cursor.epoch if self.cursor else ""

    @property
    def missed(self) -> int:
        """How many messages were gone by retention each time the subscription began, in sum."""
        return self.cursor.missed if self.cursor else 0

    def __len__(self) -> int:
        """How many messages wait to be read."""
        return len(self._queue)

    def __bool__(self) -> bool:
        return True

    async def close(self) -> None:
        """Unsubscribe. What waits to be read is gone."""
        if self.cursor:
            self.cursor.pause()
        self.end(None)
        self._queue.clear()
        self._inbox.shrunk(self)
        await self._inbox.leave(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def question(self) -> Subscribe:
        """How to ask the server for it, the first time or again."""
        return self.cursor.question(self.tags) if self.cursor else Subscribe(self.topic, self.tags)

    def put(self, message: Message) -> None:
        if not self.is_ended and (self.cursor is None or self.cursor.take(message)):
            self._queue.append(message)
            self._news.set()

    def end(self, error: ImError | None) -> None:
        """Nothing more will come; what is queued can still be read."""
        if self.is_ended:
            return
        self.is_ended, self._error = True, error
        self._news.set()
        if not self.opened.done():
            self.opened.set_exception(error or ImError(ErrorCode.TIMEOUT, "closed meanwhile"))
            self.opened.exception()  # perhaps nobody waits for it any more


class Inbox:
    """A client's subscriptions by topic, and whether they have room.

    `regulate` is called whenever `is_stuck` may have changed. `leave` tells the server.
    """

    def __init__(
        self,
        queue_messages: int,
        regulate: Callable[[], None],
        leave: Callable[[Subscription], Awaitable[None]],
    ) -> None:
        self.by_topic: dict[str, Subscription] = {}
        self.leave = leave
        self._regulate = regulate
        self._bound = queue_messages
        self._full: set[Subscription] = set()

    def deliver(self, message: Message) -> bool:
        """Queue a message; False when no subscription reads its topic."""
        subscription = self.by_topic.get(message.topic)
        if subscription is None:
            return False
        subscription.put(message)
        if len(subscription) >= self._bound:
            self._full.add(subscription)
            self._regulate()
        return True

    def shrunk(self, subscription: Subscription) -> None:
        # At half, not at one below: pausing and resuming are system calls.
        if subscription in self._full and len(subscription) <= self._bound // 2:
            self._full.discard(subscription)
            self._regulate()

    def cursors(self) -> Iterator[Cursor]:
        return (one.cursor for one in self.by_topic.values() if one.cursor)

    def is_stuck(self, is_waiting: bool) -> bool:
        """Whether reading must stop; `is_waiting` while an answer is expected."""
        bound = self._bound * STRETCH if is_waiting else self._bound
        return any(len(subscription) >= bound for subscription in self._full)

    def forget(self, subscription: Subscription, error: ImError | None) -> None:
        subscription.end(error)
        if subscription.cursor:
            subscription.cursor.pause()
        if self.by_topic.get(subscription.topic) is subscription:
            del self.by_topic[subscription.topic]
