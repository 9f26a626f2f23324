"""What else the kernel tells of a process and of the machine: memory, and time taken by others.

CPU time and placement are in imserver.load_process, since `imserver bench` needs them too.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from imserver.load_process import Placement


class Memory(NamedTuple):
    """Resident bytes: all, and those that no file stands behind (heap, stacks, pools).

    Not by share of each page (PSS, private): that moves when an unrelated Python process starts
    or ends beside this one.
    """

    rss: int
    anonymous: int


def memory(pid: int) -> Memory:
    """Of the process, without what the kernel keeps for its sockets."""
    sizes = _fields(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return Memory(sizes["Rss"], sizes["Anonymous"])


def _fields(text: str) -> Mapping[str, int]:
    rows = (line.split() for line in text.splitlines()[1:])
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[-1] == "kB"}


def flushes(directory: Path) -> int:
    """How often, since boot, the disk under a directory was told by anybody to write what it
    holds in its cache; 0 where there is no such directory, or no disk that counts."""
    if not directory.exists():
        return 0
    device = os.stat(directory).st_dev
    place = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    if (place / "partition").exists():  # the kernel counts them for the whole disk
        place = place.parent
    fields = (place / "stat").read_text().split() if (place / "stat").exists() else []
    return int(fields[15]) if len(fields) > 15 else 0


def busy_s(cpu: int) -> float:
    """Seconds since boot that a CPU worked for anybody, in steps of 10 ms or so."""
    rows = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    ticks = next(row for row in rows if row[0] == f"cpu{cpu}")
    user, nice, system, _, _, irq, softirq = (int(number) for number in ticks[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def stolen_s(where: Placement) -> float:
    """Seconds since boot that the hypervisor gave the CPUs of server and generator to others, the
    mean of both, or of the one they share; always 0 on real ones."""
    ours = {f"cpu{cpu}" for cpu in (where.server, where.generator)}
    rows = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    ticks = sum(int(row[8]) for row in rows if row[0] in ours)
    return ticks / os.sysconf("SC_CLK_TCK") / len(ours)
