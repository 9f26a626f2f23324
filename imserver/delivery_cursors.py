"""Cursors on their way into the store: gathered, and put in one batch.

What is lost with the process is at most a second of acknowledgements, and costs repeats, never
a message. What was not put because the store refused it stays, up to a bound.
"""

from typing import Final

from imserver.timeline import Cursor, Timeline

#: Cursors that wait, about 20 MB of them. More than subscriptions change in a second; reached
#: only while the store refuses, and then the oldest go.
WAITING_MAX: Final = 65_536

Key = tuple[str, str, str]


class Cursors:
    """What subscriptions have acknowledged and the store does not know yet."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._waiting: dict[Key, int] = {}
        self._flying: list[dict[Key, int]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def note(self, key: Key, seq: int) -> None:
        self._waiting[key] = max(seq, self._waiting.get(key, 0))
        if len(self._waiting) > WAITING_MAX:
            del self._waiting[next(iter(self._waiting))]

    def forget(self, key: Key) -> None:
        """It is being moved back: nothing older may overtake that."""
        self._waiting.pop(key, None)
        for batch in self._flying:
            batch.pop(key, None)

    async def get(self, key: Key) -> int | None:
        """The cursor as it is, put or not."""
        stored = await self._timeline.cursor(*key)
        noted = [batch[key] for batch in (*self._flying, self._waiting) if key in batch]
        return max([stored or 0, *noted]) if noted or stored is not None else None

    async def flush(self) -> None:
        """Put what waits. ImError when the store refuses; then it waits on."""
        batch, self._waiting = self._waiting, {}
        if not batch:
            return
        self._flying.append(batch)
        is_put = False
        try:
            await self._timeline.put_cursors([Cursor(*key, seq) for key, seq in batch.items()])
            is_put = True
        finally:
            self._flying = [other for other in self._flying if other is not batch]
            for key, seq in batch.items() if not is_put else ():
                self.note(key, seq)
