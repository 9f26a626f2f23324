"""What an idle connection takes of the memory of its server."""

import time

from bench import process
from bench.layouts import onlookers
from bench.peers import PEERS
from bench.scenario import Sample, Settings
from imserver.load import Generator
from imserver.load_process import Placement

FEW, MANY = 4_000, 18_000


def idle(rooms: int, peer: str, settings: Settings, where: Placement) -> Sample:
    """Resident bytes of one more idle connection, between 4,000 and 18,000 of them; with `rooms`
    each hears one of so many. Between two sizes, because what a process allocates once is no
    cost of a connection."""
    few, many = (int(number * settings.scale) for number in (FEW, MANY))
    with (
        PEERS[peer].start("echo", settings.auth, where) as server,
        Generator(server.adapter.wire, few) as first,
        Generator(server.adapter.wire, many - few) as rest,
    ):
        onlookers(first, server.adapter, 0, few, rooms)
        first.open(server.address)
        before = settled(server.pid, first)
        onlookers(rest, server.adapter, few, many, rooms)
        rest.open(server.address)
        after = settled(server.pid, rest)
        for load in (first, rest):
            load.check(load.run(0))
    rss, anonymous = ((b - a) / (many - few) for a, b in zip(before, after, strict=True))
    base = before.rss - few * rss
    return Sample(rss, {"connections": many, "anonymous": anonymous, "base_rss": base})


def settled(pid: int, load: Generator) -> process.Memory:
    """The memory of a process once it has stopped to change, or after 4 s. The connections of
    `load` are listened to meanwhile."""
    last = process.memory(pid)
    deadline_s = time.monotonic() + 4
    while time.monotonic() < deadline_s:
        load.run(0.4)
        now = process.memory(pid)
        if now == last:
            break
        last = now
    return last
