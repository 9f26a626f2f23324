"""What is due when: one time for each key, and whatever has passed.

The workload: thousands of subscriptions whose deadline moves on with every report of theirs and
hardly ever passes. So a moved deadline costs one dict entry; the heap keeps the old one, and it
is passed over when its time comes. Too many of those, and the heap is built anew (D1).

    D1  memory is at most twice the keys there are.
"""

from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

#: Entries below which nothing is gained by building anew.
FEW: Final = 64

K = TypeVar("K", int, tuple[int, int])


class Schedule(Generic[K]):
    """Keys with a time each. The times are those of the caller's clock."""

    def __init__(self) -> None:
        self._times_s: dict[K, float] = {}
        self._heap: list[tuple[float, K]] = []

    def __len__(self) -> int:
        return len(self._times_s)

    def __contains__(self, key: K) -> bool:
        return key in self._times_s

    def when(self, key: K) -> float | None:
        return self._times_s.get(key)

    def set(self, key: K, due_s: float) -> None:
        """Sooner or later than before, if there was a time before."""
        self._times_s[key] = due_s
        heappush(self._heap, (due_s, key))
        if len(self._heap) > 2 * len(self._times_s) + FEW:
            self._heap = [(due_s, key) for key, due_s in self._times_s.items()]
            heapify(self._heap)

    def drop(self, key: K) -> None:
        self._times_s.pop(key, None)

    def due(self, now_s: float) -> list[K]:
        """Takes out what is due by now, the earliest first."""
        found: list[K] = []
        while self._heap and self._heap[0][0] <= now_s:
            due_s, key = heappop(self._heap)
            if self._times_s.get(key) == due_s:
                del self._times_s[key]
                found.append(key)
        return found
