"""What a process costs, as the kernel counts it, and which CPU is whose.

CPU time is summed over the threads of a process from /proc/PID/task/*/schedstat, which is exact
where utime and stime are guessed from ticks. A thread that ended between two readings is lost;
servers under measurement do not end threads. Redis forks to rewrite its file: children that run are
read likewise, and what those have used that ended comes in ticks of 10 ms.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    """Since its start: time on a CPU, and time ready to run while another had the CPU."""

    cpu_ns: int
    wait_ns: int


def usage(pid: int) -> Usage:
    """Of all threads of the process, and of its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ended_ticks = int(fields[13]) + int(fields[14])
    cpu_ns, wait_ns = ended_ticks * 10**9 // os.sysconf("SC_CLK_TCK"), 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        on_cpu, waiting, _ = (task / "schedstat").read_text().split()
        cpu_ns += int(on_cpu)
        wait_ns += int(waiting)
        for child in (task / "children").read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                its = usage(int(child))
                cpu_ns += its.cpu_ns
                wait_ns += its.wait_ns
    return Usage(cpu_ns, wait_ns)


class Placement(NamedTuple):
    """Which CPU is whose. The same for both where there is only one: then nothing is exact."""

    server: int
    generator: int
    cpus: frozenset[int]  # all that may be used

    @property
    def is_shared(self) -> bool:
        return self.server == self.generator

    @property
    def of_threads(self) -> frozenset[int]:
        """Where a server of several I/O threads runs: on all but the generator's, and where that
        is one, on both."""
        free = self.cpus - {self.generator}
        return free if len(free) > 1 else self.cpus


def placement() -> Placement:
    """The first two CPUs that this process may use. To be asked before it pins itself."""
    cpus = sorted(os.sched_getaffinity(0))
    return Placement(cpus[0], cpus[min(1, len(cpus) - 1)], frozenset(cpus))


def pin(cpu: int) -> None:
    """Keep the calling thread on one CPU. What it starts from now on begins there, too."""
    os.sched_setaffinity(0, {cpu})


def allow(pid: int, cpus: Iterable[int]) -> None:
    """Let every thread of a process run on these CPUs."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cpus)
