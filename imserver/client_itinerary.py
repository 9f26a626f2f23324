"""Where a client connects next, and when. Pure: no clock, no sockets.

Ten thousand clients lose their server at the same moment and all want back. Their waits are
random over the whole interval (full jitter), which spreads them best for the longest wait.

Not here: connecting (client_link), and what the close codes mean (errors).
"""

import logging
import random
from collections import deque

from imserver.errors import Action, Closed
from imserver.protocol import Reconnect, Welcome

DEFAULT_PORT = 7400

#: Until a WELCOME says otherwise.
FIRST_RECONNECT = Reconnect(base_ms=500, factor=2.0, max_ms=30_000)

_log = logging.getLogger("imserver.client")


def parse_address(text: str) -> tuple[str, int]:
    """ "host:port", "host" or "[::1]:port" as a host and a port. ValueError for others."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"not an address: {text!r}; write host:port")
    return host, int(port)


def back_off_ms(attempts: int, policy: Reconnect) -> float:
    """A random time up to a bound that grows with every attempt that led to nothing."""
    ceiling_ms = min(policy.max_ms, policy.base_ms * policy.factor ** min(attempts, 64))
    return random.uniform(0, ceiling_ms)


def reconnect_delay_ms(closed: Closed, attempts: int, policy: Reconnect) -> float:
    """How long to wait before connecting again, after `attempts` that led to nothing lasting.

    42xx and 43xx name their own window for the first attempt; from then on, and for all other
    codes, it is a random time up to the exponential bound, on top of what the server asked for.
    """
    jitter_ms = back_off_ms(attempts, policy)
    if closed.action is Action.BACK_OFF:
        return closed.retry_after_ms + jitter_ms
    window_ms = random.uniform(0, closed.retry_after_ms)
    return window_ms if attempts == 0 else window_ms + jitter_ms


class Itinerary:
    """The stops of one client. `address` is the next one."""

    def __init__(self, home: tuple[str, int]) -> None:
        self.address = home
        self._home = home
        self._elsewhere: deque[tuple[str, int]] = deque()
        self._attempts = 0

    def after(self, closed: Closed, lived_ms: float, welcome: Welcome | None) -> float:
        """Choose the next address; returns the ms to wait first.

        `lived_ms` is how long the last attempt and its connection lasted, `welcome` the latest
        one received. Alternatives are tried in order, then home again.
        """
        # Being welcomed proves little: an overloaded server may welcome and close. Having
        # lived for a heartbeat does.
        if welcome and lived_ms >= welcome.heartbeat.interval_ms:
            self._attempts = 0
        if closed.action is Action.MOVE:
            self._elsewhere = deque(_addresses(closed.alternatives))
        self.address = self._elsewhere.popleft() if self._elsewhere else self._home
        policy = welcome.reconnect if welcome else FIRST_RECONNECT
        delay_ms = reconnect_delay_ms(closed, self._attempts, policy)
        self._attempts += 1
        return delay_ms


def _addresses(alternatives: tuple[str, ...]) -> list[tuple[str, int]]:
    found = []
    for alternative in alternatives:
        try:
            found.append(parse_address(alternative))
        except ValueError:
            _log.warning("the server named an address that is none: %r", alternative)
    return found
