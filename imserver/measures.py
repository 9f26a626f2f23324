"""What is measured of a server and is more than one number.

A histogram says how long something took, each time, in counts by upper bound. One thread writes,
any may read: a count that is being added to shows as before or after. Its size is that of its
bounds, however much it has seen.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

#: Seconds. From a flush of a good disk to what nobody should see.
BOUNDS_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip


class Histogram:
    """`counts` has one more than `bounds_s`: what took longer than all."""

    def __init__(self, bounds_s: Sequence[float] = BOUNDS_S) -> None:
        self.bounds_s = tuple(bounds_s)
        self.counts = [0] * (len(self.bounds_s) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds


class Measures(NamedTuple):
    """Commits of the store; how late the event loop is, looked at once a second; errors told to
    clients by their numbers, 0: those of the application."""

    commits: Histogram
    loop_lag: Histogram
    refusals: Mapping[int, int]
