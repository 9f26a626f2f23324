"""Topics that the server subscribed us to: what comes goes to `on_message`.

Membership subscribes a session by itself, at its login and whenever it changes. Where the topic is
kept, the server waits for acknowledgements: returning from the callback is one, raising is a NACK.
A client that listens to nothing leaves such a topic instead, and its messages wait in the store for
a connection that does; they would become dead letters here.

Not here: topics that a Subscription reads (client_subscription).
"""

import asyncio
from collections.abc import Callable, Iterable

from imserver.client_cursor import Cursor
from imserver.model import Message

OnMessage = Callable[[Message], object]


class Joined:
    """Those of one client."""

    def __init__(self) -> None:
        self._cursors: dict[str, Cursor] = {}

    def cursor(self, topic: str) -> Cursor:
        """The one of a topic, from its first subscription to its end."""
        return self._cursors.setdefault(topic, Cursor(topic))

    def end(self, topic: str) -> None:
        """No more, or a Subscription reads it from now on."""
        cursor = self._cursors.pop(topic, None)
        if cursor:
            cursor.pause()

    def cursors(self) -> Iterable[Cursor]:
        return self._cursors.values()

    def deliver(self, message: Message, on_message: OnMessage | None) -> None:
        cursor = self._cursors.get(message.topic)
        if on_message and (cursor is None or cursor.take(message)):
            # Later and by the loop: what the application raises must not end the connection.
            asyncio.get_running_loop().call_soon(_hand, message, cursor, on_message)


def _hand(message: Message, cursor: Cursor | None, on_message: OnMessage) -> None:
    if cursor is None:
        on_message(message)
    elif cursor.hand(message):
        try:
            on_message(message)
        except BaseException:
            cursor.nack(message.seq)
            raise
        cursor.ack(message.seq)
