"""Latency, from the moment a message was due: open loops only, so that a server which stalls
everybody cannot hide it."""

from functools import partial
from statistics import median
from typing import Final

from bench import peers
from bench.layouts import to_oneself
from bench.scenario import Sample, Settings, Watch, generator
from imserver.load import Histogram
from imserver.load_process import Placement

LATE_US: Final = 1_000.0  # p99.9 of lateness from which the generator was not on time
LOADS: Final = (10, 50, 90)  # percent of the capacity
CONNECTIONS: Final = 100


def under_load(peer: str, settings: Settings, where: Placement) -> Sample:
    """p99 in microseconds at half of the capacity, and everything else in the details. The
    capacity is what a closed loop with one message of each connection under way achieves just
    before, with the same server."""
    details: dict[str, float] = {}
    late: list[str] = []
    with (
        peers.PEERS[peer].start("echo", settings.auth, where) as server,
        generator(server, CONNECTIONS, where) as load,
    ):
        to_oneself(load, server.adapter, CONNECTIONS)
        load.open(server.address)
        load.check(load.run(settings.warm_up_s, depth=1))
        closed = load.check(load.run(settings.seconds, depth=1))
        capacity = closed.received / closed.wall_s
        watch, wall_s = Watch(server, where), 0.0
        for percent in LOADS:
            rate = max(1, int(capacity * percent / 100))
            load.check(load.run(settings.warm_up_s, rate=rate))
            traffic = load.check(load.run(settings.seconds, rate=rate))
            found = {
                **traffic.latency.summary_us(),
                "late_p99.9": traffic.lateness.at(0.999) / 1000,
            }
            details |= {f"{percent}_{name}": value for name, value in found.items()}
            details[f"{percent}_rate"] = rate
            if found["late_p99.9"] > LATE_US:
                late.append(f"generator late at {percent} %")
            wall_s += traffic.wall_s
        watch.stop(wall_s)
    details |= {"capacity": capacity, "capacity_generator_busy": closed.busy, **watch.details()}
    return Sample(details["50_p99"], details, (*watch.remarks(), *late))


# --- the GIL in other hands --------------------------------------------------------------------

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
        generator(server, CONNECTIONS, where) as load,
    ):
        to_oneself(load, server.adapter, CONNECTIONS)
        load.open(server.address)
        load.check(load.run(settings.warm_up_s, depth=1))
        run = partial(load.run, rate=GIL_RATE)
        load.check(run(settings.warm_up_s))
        watch = Watch(server, where)
        for kind in list(kinds) * max(1, round(GIL_WINDOWS * settings.scale)):
            if kind == "held":
                server.ask("hold")
            traffic = load.check(run(GIL_WINDOW_S))
            if kind == "held":
                holds += int(server.ask("rest"))
            windows[kind].append(traffic.latency.at(0.999))
            kinds[kind].add(traffic.latency)
            lateness.add(traffic.lateness)
            wall_s += traffic.wall_s
        watch.stop(wall_s)
    if holds == 0:
        raise peers.ServerError("the GIL was never held")
    late_us, remarks = lateness.at(0.999) / 1000, list(watch.remarks())
    if late_us > LATE_US:
        remarks.append("generator late")
    details = {"holds": holds, "late_p99.9": late_us, **watch.details()}
    for kind, latency in kinds.items():
        details |= {f"{kind}_{name}": value for name, value in latency.summary_us().items()}
        details[f"{kind}_median_p99.9"] = median(windows[kind]) / 1000
    ratio = details["held_median_p99.9"] / details["calm_median_p99.9"]
    return Sample(ratio, details, tuple(remarks))
