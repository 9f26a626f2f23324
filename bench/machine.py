"""The card of a run: which machine, which commit, under what conditions. A figure without it
cannot be compared with anything."""

import os
import platform
import subprocess
from pathlib import Path

from bench.build import compiler
from bench.peers import DATA, ROOT
from imserver.load_process import Placement


def card(where: Placement) -> dict[str, str | int | bool | float]:
    """Of this machine, as it is now."""
    info = Path("/proc/cpuinfo").read_text()
    return {
        "cpu": _field(info, "model name"),
        "cpus": os.cpu_count() or 1,
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "virtual": "hypervisor" in _field(info, "flags").split(),
        "file_system": _file_system(DATA),
        "kernel": platform.release(),
        "compiler": _said([*compiler(), "--version"]).splitlines()[0],
        "python": platform.python_version(),
        "server_cpu": where.server,
        "generator_cpu": where.generator,
        "load_average": os.getloadavg()[0],
    }


def commit() -> str:
    """The commit of this tree, with "+" when something is not committed; "" outside of git."""
    name = _said(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"])
    changed = _said(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return name + "+" if name and changed else name


def _file_system(place: Path) -> str:
    """The type of that which holds this path, or will."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    holding = [mount for mount in mounts if place.resolve().is_relative_to(mount[1])]
    return max(holding, key=lambda mount: len(mount[1]))[2] if holding else ""


def _field(info: str, name: str) -> str:
    for line in info.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
