"""Messages that the embedding program sees before they are delivered, in batches.

A topic with an on_publish hook pays for it with a crossing into Python; the batch keeps that
price low: while the hook works on one, the next one grows. One task a pattern, so the messages
of a topic stay in the order in which they were published.

    B1  each accepted publication is finished exactly once, unless the server stops first.
    B2  publications that fit the same patterns leave in the order in which they came.
    B3  at most QUEUE_MAX are waiting or judged; more are refused (503), not queued.

Not here: what becomes of a finished publication (gateway).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from imserver.errors import ErrorCode, ImError
from imserver.hooks_log import Burst, is_cancelled
from imserver.model import Message
from imserver.model_session import Session, matches

#: Publications in the hands of all hooks together: with 64 KiB frames a gigabyte at the worst,
#: with chat messages a few megabytes. Past it a hook is slower than its senders for good.
QUEUE_MAX: Final = 16_384

#: Publications a hook gets at once: enough to make one query of many, little enough that the
#: first does not wait long for the last.
BATCH_MAX: Final = 256

_log = logging.getLogger("imserver.hooks")


class Publication:
    """A message on its way, which an on_publish hook may refuse.

    `message` is what subscribers would get, without its time; `session` who sent it.
    """

    __slots__ = ("error", "frame", "message", "session", "workers")

    def __init__(self, message: Message, session: Session, frame: bytes = b"") -> None:
        self.message = message
        self.session = session
        self.frame = frame
        self.error: ImError | None = None
        self.workers: Sequence[_Worker] = ()

    def refuse(self, code: int = ErrorCode.FORBIDDEN, text: str = "") -> None:
        """Do not deliver this message; its sender gets an ERROR with that code and text. The
        first refusal counts."""
        if self.error is None:
            topic, id = self.message.topic, self.message.id
            self.error = ImError(code, text, id=id, topic=topic)


OnPublish = Callable[[list[Publication]], Awaitable[None]]
Finish = Callable[[Publication], None]


class Batches:
    """The on_publish hooks, one worker a pattern. `finish` is called with each publication that
    all hooks have seen, or one has refused; it must not raise."""

    def __init__(self, timeout_s: float) -> None:
        self.finish: Finish = lambda publication: None
        self.timeout_s = timeout_s
        self._workers: dict[str, _Worker] = {}
        self._waiting = 0
        self._stopped = False

    def register(self, pattern: str, hook: OnPublish) -> None:
        if pattern not in self._workers:
            self._workers[pattern] = _Worker(pattern, self)
        self._workers[pattern].hooks += (hook,)

    def wants(self, topic: str) -> bool:
        return any(matches(pattern, topic) for pattern in self._workers)

    def __len__(self) -> int:
        """How many publications are waiting or being judged."""
        return self._waiting

    def accept(self, publication: Publication) -> None:
        """Take a publication. ImError 503 when there is no room for it."""
        if self._waiting >= QUEUE_MAX or self._stopped:
            raise ImError(ErrorCode.OVERLOADED, "the server's hooks are behind")
        topic = publication.message.topic
        workers = [w for pattern, w in self._workers.items() if matches(pattern, topic)]
        publication.workers = workers
        self._waiting += 1
        self.pass_on(publication, 0)

    def pass_on(self, publication: Publication, step: int) -> None:
        """To worker number `step` of those that want it, or to its end."""
        if publication.error is None and step < len(publication.workers):
            publication.workers[step].put(publication, step)
            return
        publication.workers = ()
        self._waiting -= 1
        self.finish(publication)

    async def stop(self) -> None:
        """Cancel what is being judged. What was accepted is not finished any more."""
        self._stopped = True
        tasks = [worker.task for worker in self._workers.values() if worker.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Worker:
    """The hooks of one pattern. Its task lives while there is something to judge."""

    def __init__(self, pattern: str, batches: Batches) -> None:
        self.hooks: tuple[OnPublish, ...] = ()
        self.task: asyncio.Task[None] | None = None
        self._pattern = pattern
        self._batches = batches
        self._queue: deque[tuple[Publication, int]] = deque()
        self._failures = Burst(_log)

    def put(self, publication: Publication, step: int) -> None:
        self._queue.append((publication, step))
        if self.task is None:
            name = f"imserver on_publish {self._pattern}"
            self.task = asyncio.get_running_loop().create_task(self._work(), name=name)

    async def _work(self) -> None:
        try:
            while self._queue:
                taken = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_MAX))]
                await self._judge([publication for publication, _ in taken])
                for publication, step in taken:
                    self._batches.pass_on(publication, step + 1)
        finally:
            self.task = None

    async def _judge(self, batch: list[Publication]) -> None:
        """Run the hooks. A failure of one is the refusal of all that it did not refuse itself:
        which of them it has dealt with, nobody knows."""
        left = batch
        limit = asyncio.timeout(self._batches.timeout_s)
        try:
            async with limit:
                for hook in self.hooks:
                    left = [publication for publication in left if publication.error is None]
                    if left:
                        # A copy: the program may keep or change its list.
                        await hook(list(left))
        except ImError as error:
            _refuse(left, error.code, error.message)
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled(error):
                raise
            if isinstance(error, TimeoutError) and limit.expired():
                text = "on_publish %s took longer than %g s"
                self._failures.note(text, self._pattern, self._batches.timeout_s)
                _refuse(left, ErrorCode.OVERLOADED, "judging this took too long")
                return
            self._failures.note("on_publish %s failed", self._pattern, error=error)
            _refuse(left, ErrorCode.INTERNAL, "")


def _refuse(batch: list[Publication], code: int, text: str) -> None:
    for publication in batch:
        publication.refuse(code, text)
