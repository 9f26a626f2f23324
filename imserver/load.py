"""The C load generator as Python sees it: add connections, open them, let it go, read the result.

    with Generator(wire, 100) as load:
        for number in range(100):
            load.add(load.group(1), frames=[...], script=[Step(login, WELCOME)])
        load.open(("127.0.0.1", 7400))
        traffic = load.run(seconds=3, depth=1)

Everything that happens a message happens in C, without the GIL; bench/load.h has the rules.
For benchmarks only: no server and no client imports it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, thread_time
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from imserver import _load as _c

OTHER: Final = 0  # what a type of reply means: load.h, enum load_kind
MESSAGE: Final = 1
PING: Final = 2
FAILURE: Final = 3

LENGTH: Final = 0  # how replies are cut: cut.h, enum cut_kind
NATS: Final = 1
RESP3: Final = 2
MQTT: Final = 3
WEBSOCKET: Final = 4
WEBSOCKET_MANY: Final = 5

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
    stamp_at: int = 0  # where it begins in what is published, if that is another place
    pong: bytes = b""


class Histogram:
    """Durations in nanoseconds; percentiles err upwards by less than one in 128."""

    def __init__(self) -> None:
        self.raw: Any = _c.ffi.gc(_c.lib.histogram_new(), _c.lib.histogram_free)

    def record(self, value_ns: int) -> None:
        _c.lib.histogram_record(self.raw, value_ns)

    def add(self, other: "Histogram") -> None:
        _c.lib.histogram_add(self.raw, other.raw)

    def at(self, share: float) -> int:
        """The value in ns below or at which that share of all lies: 0.999 for p99.9."""
        return int(_c.lib.histogram_at(self.raw, share))

    @property
    def count(self) -> int:
        return int(self.raw.count)

    @property
    def max(self) -> int:
        return int(self.raw.max)

    def summary_us(self) -> dict[str, float]:
        """The percentiles that reports show, in microseconds."""
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
        values = {name: self.at(share) / 1000 for name, share in shares.items()}
        return {**values, "max": self.max / 1000}


@dataclass(frozen=True)
class Traffic:
    """What one run came to. `busy` is the share of its CPU that the generator worked: looking in
    vain for replies is no work."""

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


class Opening(NamedTuple):
    """What opening connections took. `busy` is the share of its CPU that the generator used."""

    wall_s: float
    busy: float


def _in_a_row(frames: Sequence[bytes]) -> tuple[bytes, int, int]:
    """All of them, the length of one, and how many."""
    size = len(frames[0]) if frames else 0
    if any(len(frame) != size for frame in frames):
        raise LoadError("frames of one connection have one length")
    return b"".join(frames), size, len(frames)


class Generator:
    """Connections to one server. Not for several threads at a time.

    `spins` for a generator that has its CPU for itself: in a closed loop it looks again instead
    of sleeping, so that no server pays for waking it.
    """

    def __init__(self, wire: Wire, max_connections: int, *, spins: bool = False) -> None:
        self._spins = spins
        raw = _c.ffi.new("struct load_wire *")
        raw.cut.kind, raw.cut.max_bytes = wire.cut, wire.max_bytes
        raw.cut.length_at, raw.cut.length_adds = wire.length_at, wire.length_adds
        raw.cut.type_at = wire.type_at
        raw.stamp_from_end, raw.stamp_at = wire.stamp_from_end, wire.stamp_at
        raw.pong_len = len(wire.pong)
        raw.pong[0 : len(wire.pong)] = wire.pong
        for kind, meaning in wire.kinds.items():
            raw.kinds[kind] = meaning
        self._load = _c.lib.load_new(max_connections, raw)
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
        _c.lib.load_free(self._load)
        self._load = _c.ffi.NULL

    def group(self, members: int) -> int:
        """A group in which every message leads to `members` deliveries, at least one."""
        trouble = "too many groups, or one that nobody hears"
        return self._number(_c.lib.load_group(self._load, members), trouble)

    def add(
        self,
        group: int,
        *,
        frames: Sequence[bytes] = (),
        script: Iterable[Step] = (),
        is_mute: bool = False,
    ) -> int:
        """A connection of the group, which publishes the frames in turn; they are of one length.
        One without frames only listens. One that `is_mute` never reads after its script."""
        number = self._number(
            _c.lib.load_add(self._load, group, *_in_a_row(frames)),
            "too many connections, no such group, or a frame without room for the stamp",
        )
        if is_mute:
            _c.lib.load_mute(self._load, number)
        self.extend(number, script)
        return number

    def republish(self, number: int, frames: Sequence[bytes]) -> None:
        """What a connection that publishes publishes from the next run on."""
        done = _c.lib.load_frames(self._load, number, *_in_a_row(frames))
        self._number(done, "it only listens, or a frame without room for the stamp")

    def extend(self, number: int, script: Iterable[Step]) -> None:
        """More steps for a connection; one that is open takes them at the next `open`."""
        for step in script:
            done = _c.lib.load_step(self._load, number, step.data, len(step.data), step.awaits)
            self._number(done, "no such connection, or no memory for a script")

    def open(
        self, address: tuple[str, int], *, at_once: int = 128, timeout_s: float = 120
    ) -> Opening:
        """Connect all and run their scripts. LoadError tells which one failed, and why."""
        host, port = address
        began_s, used_s = monotonic(), thread_time()
        timeout_ns = int(timeout_s * _NS)
        if _c.lib.load_open(self._load, host.encode(), port, at_once, timeout_ns):
            raise LoadError(self.failure or f"{host} is no IPv4 address")
        wall_s = max(monotonic() - began_s, 1e-9)
        return Opening(wall_s, (thread_time() - used_s) / wall_s)

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
        latency, lateness = Histogram(), Histogram()
        run = _c.ffi.new("struct load_run *")
        run.duration_ns, run.drain_ns = int(seconds * _NS), int(drain_s * _NS)
        run.messages, run.rate, run.depth, run.burst = messages, rate, depth, burst
        run.spins = self._spins
        result = _c.ffi.new("struct load_result *")
        _c.lib.load_go(self._load, run, result, latency.raw, lateness.raw)
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
        text: bytes = _c.ffi.string(_c.lib.load_failure(self._load))
        return text.decode()

    @property
    def muted_gone(self) -> int:
        """Mute connections that the server is seen to have closed."""
        return int(_c.lib.load_muted_gone(self._load))

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
