"""What a process costs, as the kernel counts it: CPU time in nanoseconds, memory in bytes.

CPU time is summed over the threads of a process from /proc/PID/task/*/schedstat, which is exact
where utime and stime are guessed from ticks. A thread that ended between two readings is lost;
servers under measurement do not end threads.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    """Since its start: time on a CPU, and time ready to run while another had the CPU."""

    cpu_ns: int
    wait_ns: int


class Memory(NamedTuple):
    """Resident bytes: all, and those that no file stands behind (heap, stacks, pools).

    Not by share of each page (PSS, private): that moves when an unrelated Python process starts
    or ends beside this one.
    """

    rss: int
    anonymous: int


def usage(pid: int) -> Usage:
    """Of all threads of the process."""
    cpu_ns = wait_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        on_cpu, waiting, _ = (task / "schedstat").read_text().split()
        cpu_ns += int(on_cpu)
        wait_ns += int(waiting)
    return Usage(cpu_ns, wait_ns)


def memory(pid: int) -> Memory:
    """Of the process, without what the kernel keeps for its sockets."""
    sizes = _fields(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return Memory(sizes["Rss"], sizes["Anonymous"])


def _fields(text: str) -> Mapping[str, int]:
    rows = (line.split() for line in text.splitlines()[1:])
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[-1] == "kB"}


class Placement(NamedTuple):
    """Which CPU is whose. The same for both where there is only one: then nothing is exact."""

    server: int
    generator: int

    @property
    def is_shared(self) -> bool:
        return self.server == self.generator


def placement() -> Placement:
    """The first two CPUs that this process may use."""
    cpus = sorted(os.sched_getaffinity(0))
    return Placement(cpus[0], cpus[min(1, len(cpus) - 1)])


def stolen_s(where: Placement) -> float:
    """Seconds since boot that the hypervisor gave these CPUs to others; always 0 on real ones."""
    ours = {f"cpu{cpu}" for cpu in where}
    rows = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    ticks = sum(int(row[8]) for row in rows if row[0] in ours)
    return ticks / os.sysconf("SC_CLK_TCK")


def pin(cpu: int) -> None:
    """Keep the calling thread on one CPU. What it starts from now on begins there, too."""
    os.sched_setaffinity(0, {cpu})
