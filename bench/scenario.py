"""What a scenario is: a row of the report, with its targets, and what one measurement came to.

A scenario starts a fresh server, opens its connections, warms up, and measures once; `__main__`
repeats it, the servers in turn. Everything that was sent must have been received, else there is
no number but a LoadError. The rows themselves are in scenarios.py.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

from bench import process
from bench.peers import DATA, Auth, Server
from imserver.load import Generator
from imserver.load_process import Placement, usage

DISTURBED: Final = 0.05  # share of its CPU that a server had to leave to others
STOLEN: Final = 0.01  # share of both CPUs that the hypervisor gave to others
_IDLE_CPU: Final = 0.90  # below this the server had time left while the generator had none


@dataclass(frozen=True)
class Settings:
    """How long and how large. `scale` shrinks numbers of connections, topics and windows where a
    scenario has many; `is_quick` leaves rows and peers out."""

    seconds: float = 1.5
    warm_up_s: float = 0.5
    repeats: int = 5
    scale: float = 1.0
    auth: Auth = "jwt"
    is_quick: bool = False


QUICK: Final = Settings(seconds=0.4, warm_up_s=0.2, repeats=1, scale=0.1, is_quick=True)


@dataclass(frozen=True)
class Sample:
    """One measurement: the value of the row, what else was seen, and what to think of it."""

    value: float
    details: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """The most that the value may be, of itself or of the floor's in the same repeat; or what it
    must exceed ("more"), or the least by which the best peer of the same repeat, or the one with
    that name, must be dearer ("ahead")."""

    limit: float
    of: Literal["value", "floor", "more", "ahead"] = "value"
    peer: str = ""


@dataclass(frozen=True)
class Series:
    """Rows that differ in one number. `flat`: the share of the first row's cost by which our own
    part (cost less the floor) may change along them; None where growth is no question."""

    name: str
    title: str
    axis: str
    flat: float | None = None


@dataclass(frozen=True)
class Scenario:
    """`measure` runs it once against a peer. `about_s` is what that takes with the settings of a
    whole run, for the display of the time left. `view`: where the report shows it, besides the
    table of its series. `quick`: with whom it is part of a quick run."""

    name: str
    title: str
    unit: str
    peers: tuple[str, ...]
    measure: Callable[[str, Settings, Placement], Sample]
    targets: tuple[Target, ...] = ()
    repeats: int = 3
    about_s: float = 2.5
    series: str = ""
    x: int = 0
    view: Literal["case", "latency", "series"] = "case"
    quick: Literal["all", "ours", ""] = "ours"


class Watch:
    """What a server used from here to `stop`, and what kept it and the generator from running."""

    def __init__(self, server: Server, where: Placement) -> None:
        self._pid, self._where = server.pid, where
        self._stolen_s, self._busy_s = process.stolen_s(where), process.busy_s(where.server)
        self._flushes = process.flushes(DATA)
        self._usage = usage(server.pid)

    def stop(self, wall_s: float) -> None:
        """`wall_s` is the time that was measured."""
        now = usage(self._pid)
        self.cpu_ns = now.cpu_ns - self._usage.cpu_ns
        self.busy = self.cpu_ns / 1e9 / wall_s
        self.waited = (now.wait_ns - self._usage.wait_ns) / 1e9 / wall_s
        # Threads of one server wait for each other, too: that alone is no disturbance.
        self.foreign = (process.busy_s(self._where.server) - self._busy_s) / wall_s - self.busy
        self.flushes = (process.flushes(DATA) - self._flushes) / wall_s
        self.stolen = (process.stolen_s(self._where) - self._stolen_s) / wall_s

    def details(self) -> dict[str, float]:
        return {
            "server_busy": self.busy,
            "server_waited": self.waited,
            "stolen": self.stolen,
            "flushes_per_s": self.flushes,
        }

    def remarks(self, is_generator_busy: bool = False) -> tuple[str, ...]:
        """`is_generator_busy`: it used up its CPU, which matters while the server did not."""
        said = {
            "disturbed by other processes": min(self.waited, self.foreign) > DISTURBED,
            "disturbed by other virtual machines": self.stolen > STOLEN,
            "generator at its limit": is_generator_busy and self.busy < _IDLE_CPU,
        }
        return tuple(remark for remark, is_so in said.items() if is_so)


def generator(server: Server, connections: int, where: Placement) -> Generator:
    """One that does not sleep while it has a CPU for itself."""
    return Generator(server.adapter.wire, connections, spins=not where.is_shared)


@contextmanager
def ours_set_to(settings: Mapping[str, str]) -> Iterator[None]:
    """Servers of ours that are started within have these settings, by their names in the
    environment ("IMSERVER_THREADS"). Peers do not read them."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
