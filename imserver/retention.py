"""Forgetting: what a namespace no longer keeps leaves the store, once an hour.

Days and numbers of messages are kept, so nobody misses an hour. A topic at a time, and the store's
writer does other work in between.

Not here: what a reader hears whose place has gone (delivery), dead letters (delivery).
"""

import asyncio
import logging
from typing import Final

from imserver.errors import ImError
from imserver.routing import Routing
from imserver.timeline import Timeline

SWEEP_S: Final = 3_600.0
#: Topics looked at in one go.
PAGE_TOPICS: Final = 100

_DAY_MS: Final = 86_400_000
_log = logging.getLogger("imserver.retention")


class Retention:
    """For one server. `forgotten` counts messages."""

    def __init__(self, timeline: Timeline, routing: Routing) -> None:
        self.forgotten = 0
        self._timeline = timeline
        self._routing = routing
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="imserver retention")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except ImError as error:  # the store has stopped; it has told why
                _log.error("nothing is forgotten: %s", error)
            except Exception:
                _log.exception("not all that is too old is forgotten; again in an hour")
            await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> int:
        """Look at every topic once; how many messages were forgotten. ImError as the store
        refuses."""
        before, last = self.forgotten, ""
        while page := await self._timeline.topics(last, PAGE_TOPICS):
            for extent in page:
                await self._retain(extent.topic)
            last = page[-1].topic
        return self.forgotten - before

    async def _retain(self, topic: str) -> None:
        policy = self._routing.policy(topic)
        if policy is None or not (policy.keep_days or policy.keep_messages):
            return  # also the topics of a namespace that has been removed: not ours to forget
        self.forgotten += await self._timeline.retain(
            topic, max_age_ms=policy.keep_days * _DAY_MS, max_count=policy.keep_messages
        )
