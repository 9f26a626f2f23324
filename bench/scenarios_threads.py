"""Two I/O threads against one: throughput, since the work of each message stays what it is."""

import time
from contextlib import ExitStack
from statistics import mean
from typing import NamedTuple

from bench.peers import PEERS, Server
from bench.process import busy_s as busy_s_of
from bench.scenario import DISTURBED, Sample, Settings, Watch, ours_set_to
from bench.scenarios_cost import Closed, warm_up
from imserver.load import Generator
from imserver.load_process import Placement, allow

WINDOWS = 4  # of each kind


class Window(NamedTuple):
    per_s: float  # deliveries
    server_busy: float  # CPUs
    generator_busy: float


def two_threads(shape: Closed, peer: str, settings: Settings, where: Placement) -> Sample:
    """Deliveries a second with two I/O threads over those with one. Both servers run at once and
    are loaded in short windows by turns.

    They may use every CPU but the generator's; where there are only two, both. `possible` is the
    gain that the CPUs leave room for, by what a delivery costs server and generator: where there
    are only two, the generator takes its share of the second.
    """
    seen: dict[int, list[Window]] = {1: [], 2: []}
    cpus = where.cpus
    with ExitStack() as stack:
        loads: dict[int, tuple[Server, Generator]] = {}
        for threads in seen:
            with ours_set_to({"IMSERVER_THREADS": str(threads)}):
                server = stack.enter_context(PEERS[peer].start(shape.task, settings.auth, where))
            allow(server.pid, where.of_threads)
            load = stack.enter_context(Generator(server.adapter.wire, shape.connections + 1))
            shape.layout(load, server.adapter, shape.connections)
            load.open(server.address)
            warm_up(load, shape, settings)
            loads[threads] = server, load
        began_s, busy_s = time.monotonic(), sum(map(busy_s_of, cpus))
        for _ in range(WINDOWS):
            for threads, (server, load) in loads.items():
                watch = Watch(server, where)
                traffic = load.run(settings.seconds / WINDOWS, depth=shape.depth, burst=shape.burst)
                watch.stop(traffic.wall_s)
                load.check(traffic)
                per_s = traffic.received / traffic.wall_s
                seen[threads].append(Window(per_s, watch.busy, traffic.busy))
        all_s, wall_s = sum(map(busy_s_of, cpus)) - busy_s, time.monotonic() - began_s
    ours_s = sum(one.server_busy + one.generator_busy for both in seen.values() for one in both)
    foreign = all_s / wall_s - ours_s / (2 * WINDOWS)
    one, two = (Window(*map(mean, zip(*windows, strict=True))) for windows in seen.values())
    server_s, generator_s = two.server_busy / two.per_s, two.generator_busy / two.per_s
    if len(cpus) > 2:
        possible_per_s = min(2 / server_s, 1 / generator_s)
    else:
        possible_per_s = len(cpus) / (server_s + generator_s)
    details = {
        **{f"one_{name}": value for name, value in one._asdict().items()},
        **{f"two_{name}": value for name, value in two._asdict().items()},
        "cpus": float(len(cpus)),
        "foreign": foreign,
        "possible": possible_per_s / one.per_s,
    }
    said = {
        "generator at its limit": two.generator_busy > 0.95,
        "disturbed by other processes": foreign > DISTURBED,
    }
    remarks = tuple(remark for remark, is_so in said.items() if is_so)
    return Sample(two.per_s / one.per_s, details, remarks)
