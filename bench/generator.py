"""The C load generator as Python sees it: add connections, open them, let it go, read the result.

    with Generator(wire, 100) as load:
        for number in range(100):
            load.add(load.group(1), frame=..., script=[Step(login, WELCOME)])
        load.open(("127.0.0.1", 7400))
        traffic = load.run(seconds=3, depth=1)

Everything that happens a message happens in C, without the GIL; load.h has the rules.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType, TracebackType
from typing import Any, Final, NamedTuple, Self

from bench import build_load

OTHER: Final = 0  # what a type of reply means: load.h, enum load_kind
MESSAGE: Final = 1
PING: Final = 2
FAILURE: Final = 3

LENGTH: Final = 0  # how replies are cut: cut.h, enum cut_kind
NATS: Final = 1
RESP3: Final = 2
MQTT: Final = 3
WEBSOCKET: Final = 4

SATURATED: Final = 0.95  # share of its CPU from which the generator limits the server
_NS = 1_000_000_000


class LoadError(RuntimeError):
    """A connection was lost or refused, or not everything that was sent arrived."""


class Step(NamedTuple):
    """Send these bytes, then wait for a reply of that type; -1 waits for none."""

    data: bytes
    awaits: int = -1


@dataclass(frozen=True)
class Wire:
    """How replies are cut, what a type means, and where the stamp is; cut.h has the types."""

    cut: int = LENGTH
    length_at: int = 0
    length_adds: int = 4
    type_at: int = -1
    max_bytes: int = 128 * 1024  # of a reply
    kinds: Mapping[int, int] = field(default_factory=lambda: {0: MESSAGE})
    stamp_from_end: int = 8  # of what is published and of what comes back; 0: it has none
    pong: bytes = b""


@cache
def _module() -> ModuleType:
    return build_load.generator()


class Histogram:
    """Durations in nanoseconds; percentiles err upwards by less than one in 128."""

    def __init__(self) -> None:
        self._c = _module()
        self.raw: Any = self._c.ffi.gc(self._c.lib.histogram_new(), self._c.lib.histogram_free)

    def record(self, value_ns: int) -> None:
        self._c.lib.histogram_record(self.raw, value_ns)

    def add(self, other: "Histogram") -> None:
        self._c.lib.histogram_add(self.raw, other.raw)

    def at(self, share: float) -> int:
        """The value in ns below or at which that share of all lies: 0.999 for p99.9."""
        return int(self._c.lib.histogram_at(self.raw, share))

    @property
    def count(self) -> int:
        return int(self.raw.count)

    @property
    def max(self) -> int:
        return int(self.raw.max)

    def summary_us(self) -> dict[str, float]:
        """The percentiles that reports show, in microseconds."""
        shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
        values = {name: self.at(share) / 1000 for name, share in shares.items()}
        return {**values, "max": self.max / 1000}


@dataclass(frozen=True)
class Traffic:
    """What one run came to. `busy` is the share of its CPU that the generator used."""

    sent: int
    expected: int
    received: int
    surplus: int
    wall_s: float
    busy: float
    wakeups: int
    receives: int
    sends: int
    lost: int
    latency: Histogram
    lateness: Histogram

    @property
    def is_whole(self) -> bool:
        """Everything sent was received, once each."""
        return not (self.lost or self.surplus) and self.received == self.expected

    @property
    def is_saturated(self) -> bool:
        """The generator was at its limit: the server had less to do than it could have."""
        return self.busy >= SATURATED


class Generator:
    """Connections to one server. Not for several threads at a time."""

    def __init__(self, wire: Wire, max_connections: int) -> None:
        self._c = _module()
        raw = self._c.ffi.new("struct load_wire *")
        raw.cut.kind, raw.cut.max_bytes = wire.cut, wire.max_bytes
        raw.cut.length_at, raw.cut.length_adds = wire.length_at, wire.length_adds
        raw.cut.type_at = wire.type_at
        raw.stamp_from_end, raw.pong_len = wire.stamp_from_end, len(wire.pong)
        raw.pong[0 : len(wire.pong)] = wire.pong
        for kind, meaning in wire.kinds.items():
            raw.kinds[kind] = meaning
        self._load = self._c.lib.load_new(max_connections, raw)
        if not self._load:
            raise LoadError("the generator lacks memory or descriptors, or the wire is impossible")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Twice is once."""
        self._c.lib.load_free(self._load)
        self._load = self._c.ffi.NULL

    def group(self, members: int) -> int:
        """A group in which every message leads to `members` deliveries."""
        return self._number(self._c.lib.load_group(self._load, members), "too many groups")

    def add(self, group: int, *, frame: bytes = b"", script: Iterable[Step] = ()) -> int:
        """A connection of the group; one without a frame only listens."""
        number = self._number(
            self._c.lib.load_add(self._load, group, frame, len(frame)),
            "too many connections, no such group, or a frame without room for the stamp",
        )
        for step in script:
            done = self._c.lib.load_step(self._load, number, step.data, len(step.data), step.awaits)
            self._number(done, "no memory for a script")
        return number

    def open(self, address: tuple[str, int], *, at_once: int = 128, timeout_s: float = 60) -> None:
        """Connect all and run their scripts. LoadError tells which one failed, and why."""
        host, port = address
        timeout_ns = int(timeout_s * _NS)
        if self._c.lib.load_open(self._load, host.encode(), port, at_once, timeout_ns):
            raise LoadError(self.failure)

    def run(
        self,
        seconds: float,
        *,
        depth: int = 0,
        burst: int = 1,
        rate: int = 0,
        messages: int = 0,
        drain_s: float = 10,
    ) -> Traffic:
        """Publish for so long, then wait until all has arrived.

        A closed loop with up to `depth` messages of a group under way, sent at least `burst` at
        a time; or an open one with `rate` messages a second in all; with neither it only
        listens. `messages` bounds what is sent. Does not raise for lost connections.
        """
        c, latency, lateness = self._c, Histogram(), Histogram()
        run = c.ffi.new("struct load_run *")
        run.duration_ns, run.drain_ns = int(seconds * _NS), int(drain_s * _NS)
        run.messages, run.rate, run.depth, run.burst = messages, rate, depth, burst
        result = c.ffi.new("struct load_result *")
        c.lib.load_go(self._load, run, result, latency.raw, lateness.raw)
        return Traffic(
            sent=result.sent,
            expected=result.expected,
            received=result.received,
            surplus=result.surplus,
            wall_s=result.wall_ns / _NS,
            busy=result.cpu_ns / max(result.wall_ns, 1),
            wakeups=result.wakeups,
            receives=result.receives,
            sends=result.sends,
            lost=result.lost,
            latency=latency,
            lateness=lateness,
        )

    @property
    def failure(self) -> str:
        """Why the first connection was lost; "" when none was."""
        text: bytes = self._c.ffi.string(self._c.lib.load_failure(self._load))
        return text.decode()

    def check(self, traffic: Traffic) -> Traffic:
        """The same traffic. LoadError when not everything sent was received once."""
        if not traffic.is_whole:
            raise LoadError(
                f"{traffic.received} of {traffic.expected} deliveries, {traffic.surplus} too many, "
                f"{traffic.lost} connections lost. {self.failure}"
            )
        return traffic

    def _number(self, number: int, trouble: str) -> int:
        if number < 0:
            raise LoadError(trouble)
        return number
