"""The tasks of the gateway: bounded, tracked, and ended with it.

A task is needed where a hook is asked, and hooks may be slow: a thousand logins a second with a
hook of one second are a thousand tasks. So many run and the others stand in line as what they
would call, a fraction of a task's size. What does not fit the line is refused by the caller.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

#: Tasks at a time: about 10 MB of coroutines. Enough for a hook of 100 ms at 40,000 a second.
RUNNING_MAX: Final = 4_096
#: Those that wait for one. More than there are connections in most processes.
WAITING_MAX: Final = 65_536

_log = logging.getLogger("imserver.gateway")

Work = Callable[[], Coroutine[Any, Any, None]]


class Tasks:
    """Coroutines that nobody awaits. What one of them raises is logged."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._waiting: deque[Work] = deque()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._running) + len(self._waiting)

    def start(self, work: Work) -> bool:
        """Run `work` now or when its turn comes. False when there is no room for it."""
        if self._stopped or len(self._waiting) >= WAITING_MAX:
            return False
        if len(self._running) >= RUNNING_MAX:
            self._waiting.append(work)
        else:
            self._run(work)
        return True

    async def join(self, timeout_s: float) -> None:
        """Wait until all are done, or for so long."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while self._running:
            left_s = deadline_s - asyncio.get_running_loop().time()
            if left_s <= 0:
                return
            await asyncio.wait(self._running, timeout=left_s)
            await asyncio.sleep(0)  # the next in line starts when the done are told so

    async def stop(self) -> None:
        """Cancel all and wait for their end. Those in line are forgotten."""
        self._stopped = True
        self._waiting.clear()
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, work: Work) -> None:
        task = asyncio.get_running_loop().create_task(work())
        self._running.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("a task of the gateway failed", exc_info=error)
        while self._waiting and len(self._running) < RUNNING_MAX and not self._stopped:
            self._run(self._waiting.popleft())
