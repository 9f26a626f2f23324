"""A subscription's place in its topic: what came, what was handed out, what was decided.

After a lost connection the server goes on behind the cursor that it has stored. That may be behind
what the application has decided, because an ACK was still under way or not yet on the disk. So
what was decided about a message is said again when it comes again, and the application does not
see it twice. What waits here or is in the application's hands comes again too, and is dropped.

    K1  nothing is acknowledged that was not handed out and sent on this very connection.
    K2  an ACK leaves after the NACKs of all messages that it passes.
    K3  what is remembered of single messages is bounded: by the queue, the server's window and
        ASIDES_MAX.

Nothing here waits.
Not here: the queue (client_subscription), opening again (client).
"""

import asyncio
from collections.abc import Callable

from imserver.model import Message
from imserver.protocol import (
    HISTORY,
    REDELIVERED,
    FrameType,
    Position,
    Subscribe,
    Subscribed,
    encode_position,
)

#: Messages that were set aside and are undecided. Of more the oldest may come once more.
ASIDES_MAX = 1024


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
        self._sent = 0  # the newest on this connection
        # What was sent on this connection and has neither ACK nor NACK, in order: a window.
        self._unsettled: dict[int, None] = {}
        self._nacked: set[int] = set()  # what was beyond `_acked` when it was said
        # What is set aside and in the application's hands: whether it is acknowledged since.
        self._asides: dict[int, bool] = {}
        # What waits to be handed out: its seq, and whether it is set aside.
        self._waiting: dict[int, bool] = {}
        self._apart: set[int] = set()  # the server's cursor is past these, and it has said so
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
            self._asides.clear()
            self._waiting.clear()
        else:
            self._seen = max(self._seen, said.cursor)
            self._acked = max(self._acked, said.cursor)
        self._sent = said.cursor
        self._unsettled.clear()
        self._has_begun, self._after = True, None
        self._apart.clear()
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
        if (seq := message.seq) and not self._takes(seq, message.flags):
            return False
        self._queued += 1
        return True

    def _takes(self, seq: int, flags: int) -> bool:
        if flags & REDELIVERED:
            is_apart = bool(flags & HISTORY)
            if is_apart:
                self._apart.add(seq)
                # The cursor is past it: an ACK of a later one would not be for this one.
                for passed in [one for one in self._unsettled if one <= seq]:
                    del self._unsettled[passed]
            if seq in self._waiting:
                return False
            # Not for its time but by itself: a NACK has come first, here or in a former life.
            is_aside = is_apart or seq > self._seen or seq in self._nacked
            if seq <= self._acked and not is_aside:
                return False  # it was under way when the first delivery was acknowledged
            self._waiting[seq] = is_aside
            return True
        self._sent = max(self._sent, seq)
        if seq in self._nacked:
            self._say(FrameType.NACK, seq)
            return False
        if self.is_durable:
            self._unsettled[seq] = None
        if seq <= self._seen:
            self._plan()
            return False
        self._seen = seq
        if self.is_durable:
            self._waiting[seq] = False
            self._prune(seq)
        return True

    def hand(self, message: Message) -> bool:
        """Whether a message that waited is still to be handed out, as it is now."""
        self._queued -= 1
        if self._stale:
            self._stale -= 1
            return True
        seq = message.seq
        if self._waiting.pop(seq, False) or seq in self._nacked:  # or refused while it waited
            self._asides[seq] = False
            if len(self._asides) > ASIDES_MAX:
                del self._asides[next(iter(self._asides))]
        elif message.flags & REDELIVERED and seq <= self._acked:
            return False  # the first delivery has been acknowledged meanwhile
        else:
            self._handed = max(self._handed, seq)
        return True

    # Decisions

    def ack(self, seq: int) -> None:
        """Everything up to `seq`; but one that was set aside alone."""
        if seq in self._asides:
            self._asides[seq] = True
        elif 0 < seq <= self._handed:
            self._acked = max(self._acked, seq)
        else:
            return
        self._nacked.discard(seq)
        self._plan()

    def nack(self, seq: int) -> None:
        """This one later, the others go on."""
        was_aside = self._asides.pop(seq, None) is not None
        if not was_aside and not 0 < seq <= self._handed:
            return
        self.flush()
        if seq > self._acked:
            self._nacked.add(seq)
        if seq <= self._sent or seq in self._apart:
            self._apart.discard(seq)
            self._unsettled.pop(seq, None)
            self._say(FrameType.NACK, seq)

    def flush(self) -> None:
        """Say what is acknowledged, where that is news."""
        self._is_due = False
        if self._send is None:
            return
        upto = 0
        for seq in list(self._unsettled):
            if seq > self._acked and not self._asides.get(seq):
                break
            upto = seq
            del self._unsettled[seq]
            self._asides.pop(seq, None)
        if upto:
            self._say(FrameType.ACK, upto)
        # Behind what is unsettled an ACK would be taken for that, too.
        first = next(iter(self._unsettled), self._sent + 1)
        for seq in [seq for seq, is_done in self._asides.items() if is_done]:
            if seq in self._apart or seq < first:
                del self._asides[seq]
                self._apart.discard(seq)
                self._say(FrameType.ACK, seq)

    def _plan(self) -> None:
        # One ACK a turn of the loop, however many messages it stands for.
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def _say(self, type: FrameType, seq: int) -> None:
        if self._send:
            self._send(encode_position(type, Position(seq, self.topic)))

    def _prune(self, seq: int) -> None:
        # The server sends `seq` only when everything a window before it is settled, and with
        # that the NACKs before it are on its disk.
        if len(self._nacked) > 2 * self._window:
            self._nacked = {nacked for nacked in self._nacked if nacked > seq - self._window}
