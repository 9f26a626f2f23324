"""A Python program with imserver in it, whose other code holds the GIL when told to.

Started by peers.gil_host as `python -m bench.gil_server CONFIG`. Prints "ready", then answers
the lines it reads: "hold" begins to hold the GIL for 500 ms at a time with 5 ms between, "rest"
stops that and is answered with how often it was held.

It is held by sleeping in C through ctypes.PyDLL, which keeps it: no other Python code can run,
and no CPU time is taken away either, so what is seen is the lock and not a busy CPU.
"""

import asyncio
import ctypes
import sys
import threading
import time
from typing import Final

from imserver.config_sources import load
from imserver.server import Server

HOLD_US: Final = 500_000
BETWEEN_S: Final = 0.005


class Holder:
    """A thread that holds the GIL over and over while it is asked to."""

    def __init__(self) -> None:
        self._usleep = ctypes.PyDLL(None).usleep
        self._asked = threading.Event()
        self._resting = threading.Event()
        self._held = 0
        threading.Thread(target=self._run, daemon=True).start()

    def hold(self) -> None:
        self._held = 0
        self._asked.set()

    def rest(self) -> int:
        """Waits for the end of the current hold; how many there were."""
        self._resting.clear()
        self._asked.clear()
        self._resting.wait()
        return self._held

    def _run(self) -> None:
        while True:
            if not self._asked.is_set():
                self._resting.set()
                self._asked.wait()
            self._usleep(HOLD_US)
            self._held += 1
            time.sleep(BETWEEN_S)


async def main(config: str) -> None:
    holder = Holder()
    async with Server(load(config)):
        print("ready", flush=True)
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            if line == "hold":
                print("holding", flush=True)
                holder.hold()
            elif line == "rest":
                print(await asyncio.to_thread(holder.rest), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
