"""Server CPU time an operation under the load of a closed loop: most of the rows.

Not here: memory (scenarios_memory), logins and subscriptions (scenarios_storm), latency
(scenarios_latency), several threads (scenarios_threads).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from bench.layouts import onlookers, share_of_topics, to_oneself, with_stalled
from bench.peers import PEERS, Adapter, Task
from bench.scenario import Sample, Settings, Watch, generator, ours_set_to
from imserver.load import Generator
from imserver.load_process import Placement

Layout = Callable[[Generator, Adapter, int], None]


@dataclass(frozen=True)
class Closed:
    """A closed loop: who hears whom, how many connections, how many messages under way."""

    task: Task
    layout: Layout
    connections: int
    depth: int
    burst: int = 1
    idle: int = 0  # connections beside them that only log in
    first_messages: int = 0  # what a warm-up has to send at least, until nothing is new any more
    ours: Mapping[str, str] = field(default_factory=dict)  # settings, see ours_set_to


def with_topics(topics: int, connections: int, depth: int) -> Closed:
    """Fixed connections with a share of the topics each. Ours needs its bounds on topics and
    verdicts of one connection raised for that, from 256 and 1,024."""
    share = str(topics // connections + 1)
    return Closed(
        "echo",
        partial(share_of_topics, topics=topics),
        connections,
        depth,
        first_messages=2 * topics,
        ours={"IMSERVER_LIMITS__SUBSCRIPTIONS": share, "IMSERVER_LIMITS__RIGHTS": share},
    )


def among(idle: int, active: int) -> Closed:
    """So many active connections that publish to themselves, and others that are silent."""
    return Closed("echo", to_oneself, active, depth=1, idle=idle)


def closed_loop(shape: Closed, peer: str, settings: Settings, where: Placement) -> Sample:
    """Microseconds of server CPU a delivery, under as much load as the loop gives."""
    with (
        ours_set_to(shape.ours),
        PEERS[peer].start(shape.task, settings.auth, where) as server,
        generator(server, shape.connections + 1 + shape.idle, where) as load,
    ):
        shape.layout(load, server.adapter, shape.connections)
        onlookers(load, server.adapter, shape.connections, shape.connections + shape.idle)
        load.open(server.address)
        warm_up(load, shape, settings)
        watch = Watch(server, where)
        traffic = load.run(settings.seconds, depth=shape.depth, burst=shape.burst)
        watch.stop(traffic.wall_s)
        load.check(traffic)
    details = {
        "deliveries_per_s": traffic.received / traffic.wall_s,
        "generator_busy": traffic.busy,
        "deliveries_a_receive": traffic.received / max(traffic.receives, 1),
        **watch.details(),
        **traffic.latency.summary_us(),
    }
    return Sample(
        watch.cpu_ns / 1000 / traffic.received, details, watch.remarks(traffic.is_saturated)
    )


def warm_up(load: Generator, shape: Closed, settings: Settings) -> None:
    """What a server does once a topic or connection, before anything is measured."""
    if shape.first_messages:
        load.check(load.run(120, depth=shape.depth, messages=shape.first_messages))
    load.check(load.run(settings.warm_up_s, depth=shape.depth, burst=shape.burst))


# --- readers that stall ------------------------------------------------------------------------

STALL_WINDOWS = 8  # of each kind
STALL_DEPTH = 32


def stalled(
    listeners: int, stalled: int, peer: str, settings: Settings, where: Placement
) -> Sample:
    """Server CPU a delivery to those who read, with others in the room that never do, over the
    same without them. The same readers hear both rooms, in pairs of short windows, and the median
    of the pairs counts: two rooms of two audiences differ by 15 % for where the kernel happened
    to put their sockets."""
    listeners, stalled = _scaled(listeners, settings), _scaled(stalled, settings)
    costs: dict[str, list[float]] = {"clear": [], "stalled": []}
    run = partial(Generator.run, depth=STALL_DEPTH, burst=STALL_DEPTH)
    with (
        PEERS[peer].start("fanout", settings.auth, where) as server,
        generator(server, 1 + listeners + stalled, where) as load,
    ):
        frames = with_stalled(load, server.adapter, listeners, stalled)
        load.open(server.address)
        for kind in costs:
            load.republish(0, frames[kind])
            load.check(run(load, settings.warm_up_s))
        whole = Watch(server, where)
        wall_s, is_saturated = 0.0, False
        for pair in range(max(1, round(STALL_WINDOWS * settings.scale))):
            # Who is first changes from pair to pair, so that no drift favours either.
            for kind in sorted(costs, reverse=pair % 2 == 1):
                load.republish(0, frames[kind])
                watch = Watch(server, where)
                traffic = run(load, settings.seconds / STALL_WINDOWS)
                watch.stop(traffic.wall_s)
                load.check(traffic)
                costs[kind].append(watch.cpu_ns / 1000 / traffic.received)
                wall_s += traffic.wall_s
                is_saturated |= traffic.is_saturated
        whole.stop(wall_s)
        gone = load.muted_gone
    details = {
        **{f"{kind}_us": median(found) for kind, found in costs.items()},
        "stalled": stalled,
        "stalled_closed": gone,
        **whole.details(),
    }
    ratios = [b / a for a, b in zip(costs["clear"], costs["stalled"], strict=True)]
    return Sample(median(ratios), details, whole.remarks(is_saturated))


def _scaled(number: int, settings: Settings) -> int:
    return max(2, int(number * settings.scale))
