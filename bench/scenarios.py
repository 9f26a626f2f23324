"""What is measured: one row of the table each, with its target.

A scenario starts a fresh server, opens its connections, warms up, and measures once; `__main__`
repeats it, the servers in turn. Everything that was sent must have been received, else there is
no number but a LoadError.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Final, Literal

from bench import peers, process
from bench.generator import Generator, Histogram
from bench.peers import Adapter, Server, Task
from bench.process import Placement

BODY: Final = bytes(range(64))  # of every message
DISTURBED: Final = 0.05  # share of its time that a server had to wait for its CPU
STOLEN: Final = 0.01  # share of both CPUs that the hypervisor gave to others
LATE_US: Final = 1_000.0  # p99.9 of an open loop's lateness from which it was not on time
_IDLE_CPU: Final = 0.90  # below this the server had time left while the generator had none


@dataclass(frozen=True)
class Settings:
    """How long and how large. `scale` shrinks the connections of `idle` and the windows of
    `held-gil`."""

    seconds: float = 3.0
    warm_up_s: float = 1.0
    repeats: int = 5
    scale: float = 1.0
    auth: peers.Auth = "jwt"


QUICK: Final = Settings(seconds=0.6, warm_up_s=0.2, repeats=1, scale=0.2)


@dataclass(frozen=True)
class Sample:
    """One measurement: the value of the row, what else was seen, and what to think of it."""

    value: float
    details: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """The most that the value may be: of itself, or of the floor's in the same run."""

    limit: float
    of: Literal["value", "floor"]


@dataclass(frozen=True)
class Scenario:
    """`measure` runs it once against a peer; more than `most_repeats` would teach nothing."""

    name: str
    title: str
    unit: str
    target: Target
    peers: tuple[str, ...]
    measure: Callable[[str, Settings, Placement], Sample]
    most_repeats: int = 100


# --- server CPU time an operation --------------------------------------------------------------


def to_oneself(load: Generator, adapter: Adapter, connections: int) -> None:
    """Each connection publishes to a room of its own and hears it."""
    for number in range(connections):
        topic = f"room:bench-{number}"
        script = (*adapter.login(number), *adapter.subscribe(topic))
        load.add(load.group(1), frame=adapter.publish(number, topic, BODY), script=script)


def one_to_all(load: Generator, adapter: Adapter, connections: int) -> None:
    """One publishes, all others hear it."""
    room = load.group(connections)
    frame = adapter.publish(0, "room:bench", BODY)
    load.add(room, frame=frame, script=adapter.login(0))
    for number in range(1, connections + 1):
        script = (*adapter.login(number), *adapter.subscribe("room:bench"))
        load.add(room, script=script)


@dataclass(frozen=True)
class Closed:
    """A closed loop: who hears whom, how many connections, how many messages under way."""

    task: Task
    layout: Callable[[Generator, Adapter, int], None]
    connections: int
    depth: int
    burst: int = 1


def closed_loop(shape: Closed, peer: str, settings: Settings, where: Placement) -> Sample:
    """Microseconds of server CPU a delivery, under as much load as the loop gives."""
    start = peers.PEERS[peer].start
    with (
        start(shape.task, settings.auth, where) as server,
        Generator(server.adapter.wire, shape.connections + 1) as load,
    ):
        shape.layout(load, server.adapter, shape.connections)
        load.open(server.address)
        load.check(load.run(settings.warm_up_s, depth=shape.depth, burst=shape.burst))
        watch = Watch(server, where)
        traffic = load.run(settings.seconds, depth=shape.depth, burst=shape.burst)
        watch.stop(traffic.wall_s)
        load.check(traffic)
    remarks = watch.remarks()
    if traffic.is_saturated and watch.busy < _IDLE_CPU:
        remarks.append("generator at its limit")
    details = {
        "deliveries_per_s": traffic.received / traffic.wall_s,
        "generator_busy": traffic.busy,
        "deliveries_a_receive": traffic.received / max(traffic.receives, 1),
        **watch.details(),
        **traffic.latency.summary_us(),
    }
    return Sample(watch.cpu_ns / 1000 / traffic.received, details, tuple(remarks))


class Watch:
    """What a server used from here to `stop`, and what kept it and the generator from running."""

    def __init__(self, server: Server, where: Placement) -> None:
        self._pid, self._where = server.pid, where
        self._stolen_s, self._usage = process.stolen_s(where), process.usage(server.pid)

    def stop(self, wall_s: float) -> None:
        """`wall_s` is the time that was measured."""
        usage = process.usage(self._pid)
        self.cpu_ns = usage.cpu_ns - self._usage.cpu_ns
        self.busy = self.cpu_ns / 1e9 / wall_s
        self.waited = (usage.wait_ns - self._usage.wait_ns) / 1e9 / wall_s
        self.stolen = (process.stolen_s(self._where) - self._stolen_s) / 2 / wall_s

    def details(self) -> dict[str, float]:
        return {"server_busy": self.busy, "server_waited": self.waited, "stolen": self.stolen}

    def remarks(self) -> list[str]:
        said = {
            "disturbed by other processes": self.waited > DISTURBED,
            "disturbed by other virtual machines": self.stolen > STOLEN,
        }
        return [remark for remark, is_so in said.items() if is_so]


# --- memory ------------------------------------------------------------------------------------


def idle(rooms: int, peer: str, settings: Settings, where: Placement) -> Sample:
    """Resident bytes that one more idle connection costs; with `rooms` each has subscribed to
    one of so many. What a process loads on its first logins is not counted."""
    connections = int(10_000 * settings.scale)
    with peers.PEERS[peer].start("echo", settings.auth, where) as server:
        with Generator(server.adapter.wire, 16) as load:
            _log_in(load, server, 16, rooms)
            load.run(0.2)
        before = settled(server.pid, None)
        with Generator(server.adapter.wire, connections) as load:
            _log_in(load, server, connections, rooms)
            after = settled(server.pid, load)
    rss, anonymous = ((b - a) / connections for a, b in zip(before, after, strict=True))
    return Sample(rss, {"connections": connections, "anonymous": anonymous})


def _log_in(load: Generator, server: Server, connections: int, rooms: int) -> None:
    for number in range(connections):
        script = server.adapter.login(number)
        if rooms:
            script += server.adapter.subscribe(f"room:bench-{number % rooms}")
        load.add(load.group(1), script=script)
    load.open(server.address)


def settled(pid: int, load: Generator | None) -> process.Memory:
    """The memory of a process once it has stopped to change, or after 5 s. The connections of
    `load` are listened to meanwhile."""
    last = process.memory(pid)
    for _ in range(10):
        if load is None:
            time.sleep(0.5)
        else:
            load.run(0.5)
        now = process.memory(pid)
        if now == last:
            break
        last = now
    return last


# --- the GIL in other hands --------------------------------------------------------------------

GIL_CONNECTIONS: Final = 100
GIL_RATE: Final = 10_000  # messages a second: an eighth or so of one CPU
GIL_WINDOW_S: Final = 1.05  # two times 500 ms, and the moments between
GIL_WINDOWS: Final = 6  # of each kind


def held_gil(peer: str, settings: Settings, where: Placement) -> Sample:
    """p99.9 of established traffic while other Python code holds the GIL, over p99.9 while none
    does. Short windows of both in turn, and the median of each kind: a lock on the path of
    messages would show in every window, what the machine does to us shows in some."""
    kinds = {"calm": Histogram(), "held": Histogram()}
    windows: dict[str, list[int]] = {kind: [] for kind in kinds}
    lateness, holds, wall_s = Histogram(), 0, 0.0
    with (
        peers.gil_host(settings.auth, where) as server,
        Generator(server.adapter.wire, GIL_CONNECTIONS) as load,
    ):
        to_oneself(load, server.adapter, GIL_CONNECTIONS)
        load.open(server.address)
        load.check(load.run(settings.warm_up_s, depth=1))
        load.check(load.run(settings.warm_up_s, rate=GIL_RATE))
        watch = Watch(server, where)
        for kind in list(kinds) * max(1, round(GIL_WINDOWS * settings.scale)):
            if kind == "held":
                server.ask("hold")
            traffic = load.check(load.run(GIL_WINDOW_S, rate=GIL_RATE))
            if kind == "held":
                holds += int(server.ask("rest"))
            windows[kind].append(traffic.latency.at(0.999))
            kinds[kind].add(traffic.latency)
            lateness.add(traffic.lateness)
            wall_s += traffic.wall_s
        watch.stop(wall_s)
    if holds == 0:
        raise peers.ServerError("the GIL was never held")
    late_us, remarks = lateness.at(0.999) / 1000, watch.remarks()
    if late_us > LATE_US:
        remarks.append("generator late")
    details = {"holds": holds, "late_p99.9": late_us, **watch.details()}
    for kind, latency in kinds.items():
        details |= {f"{kind}_{name}": value for name, value in latency.summary_us().items()}
        details[f"{kind}_median_p99.9"] = median(windows[kind]) / 1000
    ratio = details["held_median_p99.9"] / details["calm_median_p99.9"]
    return Sample(ratio, details, tuple(remarks))


_PING_PONG = Closed("echo", to_oneself, connections=100, depth=1)
_PIPELINED = Closed("echo", to_oneself, connections=50, depth=64)
_FAN_OUT = Closed("fanout", one_to_all, connections=1_000, depth=32, burst=32)
_BOTH = ("floor", "imserver")

SCENARIOS: Final = (
    Scenario(
        "ping-pong",
        "ping-pong, 100 connections, depth 1",
        "µs",
        Target(1.3, "floor"),
        _BOTH,
        partial(closed_loop, _PING_PONG),
    ),
    Scenario(
        "pipelined",
        "pipelined to oneself, 50 connections, depth 64",
        "µs",
        Target(0.35, "value"),
        _BOTH,
        partial(closed_loop, _PIPELINED),
    ),
    Scenario(
        "fan-out",
        "fan-out 1 to 1,000, bursts of 32",
        "µs",
        Target(1.5, "floor"),
        _BOTH,
        partial(closed_loop, _FAN_OUT),
    ),
    Scenario(
        "idle",
        "an idle connection, logged in",
        "bytes",
        Target(400, "value"),
        _BOTH,
        partial(idle, 0),
        most_repeats=3,
    ),
    Scenario(
        "idle-subscribed",
        "an idle connection with one subscription",
        "bytes",
        Target(400, "value"),
        ("imserver",),
        partial(idle, 100),
        most_repeats=3,
    ),
    Scenario(
        "held-gil",
        "p99.9 while other code holds the GIL, over p99.9 undisturbed",
        "times",
        Target(2.0, "value"),
        ("imserver",),
        held_gil,
    ),
)
