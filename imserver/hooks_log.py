"""How hooks fail, and one line in the log for many failures.

A hook that is broken is broken for every message: ten thousand tracebacks a second would hide
the first one and fill the disk.
"""

import asyncio
import logging
import time
from typing import Final

#: After a report the next failures of the same hook are only counted, for this long.
QUIET_S: Final = 10.0


class Burst:
    """The failures of one hook. The first of a burst is logged with all there is to know, the
    first after QUIET_S with the number of those in between."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._quiet_until_s = 0.0
        self._unreported = 0

    def note(self, text: str, *values: object, error: BaseException | None = None) -> None:
        """A failure, as for `Logger.error`; `error` adds its traceback."""
        now_s = time.monotonic()
        if now_s < self._quiet_until_s:
            self._unreported += 1
            return
        if self._unreported:
            text += " (and %d times before, since the last report)"
            values = (*values, self._unreported)
        self._log.error(text, *values, exc_info=error)
        self._quiet_until_s = now_s + QUIET_S
        self._unreported = 0


def is_cancelled(error: BaseException) -> bool:
    """Whether it is the running task that was cancelled. A hook may also raise CancelledError by
    itself, from a task of its own that it awaited: that is a failure like any other, and whoever
    waits for the hook must still be answered."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and bool(task and task.cancelling())
