"""A server that is killed again and again under traffic, and the history of all that happened.

    python tests/torture.py CYCLES [SEED]          make torture N=1000

A cycle: some hundred publishes under way, a random moment, SIGKILL, a new process on the same
directory. At the end the crowd is given time, and the history judged. Exits with 1 when anything
was lost, reordered, made up or never answered. tests/test_torture.py runs it in short forms.
"""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from history import Verdict
from torture_clients import Crowd

#: Short waits, so that what was refused comes again within a cycle.
SETTINGS = {
    "IMSERVER_DELIVERY__ACK_WAIT_MS": "1000",
    "IMSERVER_DELIVERY__BACKOFF_MAX_MS": "1500",
    "IMSERVER_DELIVERY__ATTEMPTS": "200",
    "IMSERVER_LIMITS__WINDOW": "64",
    "IMSERVER_DRAIN__TIMEOUT_MS": "500",
}
START_S = 30.0
DRAIN_S = 60.0
REST_EVERY = 25
SERVE = (sys.executable, "-m", "imserver")
FAULTY = (sys.executable, str(Path(__file__).with_name("faulty_server.py")))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Child:
    """A server process on a data directory. Always the same port, as clients expect."""

    def __init__(
        self, directory: Path, *, program: Sequence[str] = SERVE, threads: int = 1
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self._command = [*program, "serve", "--dev", "--http", ""]
        self._command += ["--listen", f"127.0.0.1:{self.port}"]
        self._command += ["--data", str(directory), "--threads", str(threads)]
        self._log = (directory.parent / f"{directory.name}.log").open("ab")

    def start(self, *around: str) -> None:
        """`around`: a command that runs the server, as strace does."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        clean = {key: at for key, at in os.environ.items() if not key.startswith("IMSERVER_")}
        self.process = subprocess.Popen(
            [*around, *self._command],
            stdout=self._log,
            stderr=self._log,
            env=clean | SETTINGS,
        )

    async def listening(self) -> None:
        """Returns when it takes connections."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None:
                raise AssertionError(f"it ended with {self.process.returncode}: {self.log()}")
            await asyncio.sleep(0.02)
        raise TimeoutError(f"it does not listen: {self.log()}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    async def terminate(self) -> int:
        """Politely; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, 60)

    def log(self) -> str:
        return (self.directory.parent / f"{self.directory.name}.log").read_text()[-3000:]

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self._log.close()


async def torture(
    directory: Path,
    cycles: int,
    *,
    seed: int = 1,
    program: Sequence[str] = SERVE,
    threads: int = 1,
    during_start: bool = False,
    most_s: float = 0.6,
    publishes: int = 200,
    drain_s: float = DRAIN_S,
    progress: bool = False,
) -> Verdict:
    """Kill a server `cycles` times. `during_start`: also while it recovers from the kill before."""
    dice = random.Random(seed)
    child = Child(directory, program=program, threads=threads)
    crowd = Crowd(seed)
    in_flight = 0
    try:
        child.start()
        await child.listening()
        await crowd.come(child.port)
        for cycle in range(cycles):
            crowd.publish(publishes)
            await asyncio.sleep(dice.uniform(0.05, most_s))
            in_flight += crowd.in_flight
            child.kill()
            while during_start and dice.random() < 0.7:
                child.start()
                await asyncio.sleep(dice.uniform(0.1, 0.6))
                child.kill()
            child.start()
            await child.listening()
            if cycle % REST_EVERY == REST_EVERY - 1:
                await crowd.finish(drain_s)  # or its readers would fall behind for ever
                if progress:
                    owed, receipts = crowd.history.owed, len(crowd.history.receipts)
                    print(f"{cycle + 1} kills, {receipts} receipts, {owed} owed", flush=True)
        await crowd.finish(drain_s)
    finally:
        await crowd.leave()
        child.close()
    verdict = crowd.history.verdict()
    verdict.in_flight = in_flight
    return verdict


def main() -> int:
    cycles = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="imserver-torture-") as folder:
        run = torture(Path(folder) / "data", cycles, seed=seed, during_start=True, progress=True)
        verdict = asyncio.run(run)
    print(f"{cycles} kills in {time.monotonic() - began_s:.0f} s, seed {seed}")
    print(table(verdict))
    return 0 if is_good(verdict) else 1


def is_good(verdict: Verdict) -> bool:
    return not verdict.violations and verdict.receipted == verdict.published


def table(verdict: Verdict) -> str:
    """All figures, the violations with their first cases."""
    lines = []
    for one in fields(verdict):
        value = getattr(verdict, one.name)
        is_count = isinstance(value, int)
        lines.append(f"{one.name:>13}  {value if is_count else len(value):,}")
        lines += [] if is_count else [f"{'':15}{case}" for case in value[:5]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
