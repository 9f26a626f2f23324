"""How long a receipt takes beyond what the disk itself takes to keep something."""

import os
import time

from bench import peers
from bench.layouts import to_oneself
from bench.scenario import Sample, Settings, Watch, generator
from bench.scenarios_latency import LATE_US
from imserver.load import Histogram
from imserver.load_process import Placement

CONNECTIONS = 50
RATE = 1_000  # messages a second in all
WINDOWS = 4  # of the seconds of a sample: p99 of few is a guess
FLUSHES = 200  # of the probe, half of them before and half after the messages
FLUSH = bytes(4_096)


def receipts_over_disk(peer: str, settings: Settings, where: Placement) -> Sample:
    """p99 in milliseconds from when a message was due to its receipt, less p99 of a flush of the
    disk alone, beside the server's files. The server is idle while the disk is asked."""
    flushes = Histogram()
    with (
        peers.PEERS[peer].start("durable", settings.auth, where) as server,
        generator(server, CONNECTIONS, where) as load,
    ):
        to_oneself(load, server.adapter, CONNECTIONS)
        load.open(server.address)
        load.check(load.run(settings.warm_up_s, rate=RATE))
        probe(flushes, FLUSHES // 2)
        watch = Watch(server, where)
        traffic = load.check(load.run(WINDOWS * settings.seconds, rate=RATE))
        watch.stop(traffic.wall_s)
        probe(flushes, FLUSHES // 2)
    late_us, remarks = traffic.lateness.at(0.999) / 1000, list(watch.remarks())
    if late_us > LATE_US:
        remarks.append("generator late")
    found = {"": traffic.latency.summary_us(), "flush_": flushes.summary_us()}
    details = {f"{kind}{name}": us for kind, one in found.items() for name, us in one.items()}
    details |= {"late_p99.9": late_us, **watch.details()}
    return Sample((details["p99"] - details["flush_p99"]) / 1000, details, tuple(remarks))


def probe(flushes: Histogram, count: int) -> None:
    """Append and flush so often, where the servers keep their files."""
    with peers.data_directory() as directory, open(directory / "probe", "ab", 0) as file:
        for _ in range(count):
            began_ns = time.monotonic_ns()
            file.write(FLUSH)
            os.fdatasync(file.fileno())
            flushes.record(time.monotonic_ns() - began_ns)
