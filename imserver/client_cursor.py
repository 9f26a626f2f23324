"""A subscription's place in its topic: what came, what was handed out, what was decided.

After a lost connection the server goes on behind the cursor that it has stored. That may be behind
what the application has decided, because an ACK was still under way or not yet on the disk. So
what was decided about a message is said again when it comes again, and the application does not
see it twice. What waits here or is in the application's hands comes again too, and is dropped.

    K1  nothing is acknowledged that was not handed out and sent on this very connection.
    K2  an ACK leaves after the NACKs of all messages that it passes.
    K3  what is remembered of single messages is bounded by the queue and the server's window.

Nothing here waits.
Not here: the queue (client_subscription), opening again (client).
"""

import asyncio
from collections.abc import Callable

from imserver.model import Message
from imserver.protocol import (
    REDELIVERED,
    FrameType,
    Position,
    Subscribe,
    Subscribed,
    encode_position,
)


class Cursor:
    """Of one subscription, durable or begun with `after`, across all its connections."""

    def __init__(
        self,
        topic: str,
        *,
        is_durable: bool = True,
        after: int | None = None,
        epoch: str = "",
    ) -> None:
        self.topic = topic
        self.is_durable = is_durable
        self.epoch = epoch
        self.missed = 0  # what SUBSCRIBED said, summed up
        self._after = after
        self._has_begun = False
        self._send: Callable[[bytes], None] | None = None  # on the present connection
        self._window = 0
        self._seen = 0  # the newest that was taken
        self._handed = 0  # the newest that was handed out
        self._acked = 0  # by the application
        self._here = 0  # the newest that was sent on this connection
        self._said = 0  # the newest ACK on this connection
        self._nacked: set[int] = set()  # beyond `_acked` when it was said; the cursor may follow
        # What waits to be handed out: its seq, and whether it was set aside.
        self._waiting: dict[int, bool] = {}
        self._queued = 0  # the same and what has no seq
        self._stale = 0  # how many of them are numbered as no one numbers any more
        self._is_due = False

    # Connections

    def question(self, tags: str) -> Subscribe:
        """How to ask for it, the first time or again."""
        after = self._after
        if self._has_begun and not self.is_durable:
            after = self._seen
        return Subscribe(self.topic, tags, after, self.is_durable, self.epoch)

    @property
    def is_open(self) -> bool:
        """Whether the present connection has it."""
        return self._send is not None

    def begin(self, said: Subscribed, window: int, send: Callable[[bytes], None]) -> bool:
        """The server has agreed, and takes frames by `send`. True when the topic was numbered
        anew: what waits here has old numbers, and everything that is kept comes."""
        known = max(self._seen, self._after or 0)
        is_anew = (bool(self.epoch) and said.epoch != self.epoch) or said.head < known
        if is_anew or not self._has_begun:
            self._seen = self._acked = said.cursor
            self._handed, self._stale = 0, self._queued
            self._nacked.clear()
            self._waiting.clear()
        else:
            self._seen = max(self._seen, said.cursor)
            self._acked = max(self._acked, said.cursor)
        self._here = self._said = said.cursor
        self._has_begun, self._after = True, None
        self._send = send
        self._window = window
        self.epoch = said.epoch
        self.missed += said.missed
        return is_anew

    def pause(self) -> None:
        """Nothing more comes or goes until it begins again."""
        self.flush()
        self._send = None

    # Messages

    def take(self, message: Message) -> bool:
        """Whether a message that came is to be handed out."""
        if not self.is_open:
            return False  # of a subscription before this one, or after the last word
        if (seq := message.seq) and not self._takes(seq, bool(message.flags & REDELIVERED)):
            return False
        self._queued += 1
        return True

    def _takes(self, seq: int, is_redelivered: bool) -> bool:
        self._here = max(self._here, seq)
        if not self.is_durable:
            is_new = seq > self._seen
            self._seen = max(self._seen, seq)
            return is_new
        if is_redelivered:
            if seq in self._waiting:
                return False
            self._nacked.discard(seq)  # the server knows; the application decides anew
            self._waiting[seq] = seq <= self._acked
        elif seq <= self._seen:
            self._say_again(seq)
            return False
        else:
            self._waiting[seq] = False
            self._prune(seq)
        self._seen = max(self._seen, seq)
        return True

    def hand(self, message: Message) -> bool:
        """Whether a message that waited is still to be handed out, as it is now."""
        self._queued -= 1
        if self._stale:
            self._stale -= 1
            return True
        seq = message.seq
        was_aside = self._waiting.pop(seq, False)
        if message.flags & REDELIVERED and seq <= self._acked and not was_aside:
            return False  # the first delivery has been acknowledged meanwhile
        self._handed = max(self._handed, seq)
        return True

    # Decisions

    def ack(self, seq: int) -> None:
        """Everything up to `seq`, or, behind that, one that was set aside."""
        if not 0 < seq <= self._handed:
            return
        self._nacked.discard(seq)
        if seq <= self._acked:
            self._say(FrameType.ACK, seq)
            return
        self._acked = seq
        self._plan()

    def nack(self, seq: int) -> None:
        """This one later, the others go on."""
        if not 0 < seq <= self._handed:
            return
        self.flush()
        if seq > self._acked:
            self._nacked.add(seq)
        self._say(FrameType.NACK, seq)

    def flush(self) -> None:
        """Say how far everything is acknowledged, if that is news."""
        self._is_due = False
        upto = min(self._acked, self._here)
        if self._send and upto > self._said:
            self._said = upto
            self._say(FrameType.ACK, upto)

    def _plan(self) -> None:
        # One ACK a turn of the loop, however many messages it stands for.
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def _say(self, type: FrameType, seq: int) -> None:
        if self._send and seq <= self._here:
            self._send(encode_position(type, Position(seq, self.topic)))

    def _say_again(self, seq: int) -> None:
        if seq in self._nacked:
            self._say(FrameType.NACK, seq)
        if seq <= self._acked:
            self._plan()

    def _prune(self, seq: int) -> None:
        # The server sends `seq` only when everything a window before it is settled, and with
        # that the NACKs before it are on its disk.
        if len(self._nacked) > 2 * self._window:
            self._nacked = {nacked for nacked in self._nacked if nacked > seq - self._window}
