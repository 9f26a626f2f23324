"""The writer thread: what waits is one commit, and is answered when the disk has it.

Two queues end here: what Python asks for, and the journal, in which the I/O threads put what
clients publish (`attach`). One commit takes what both hold.

Nobody waits for company: the thread commits whatever has gathered while the last flush ran, so a
lone message is under way at once and batches grow by themselves as traffic does. What is handed
out has been flushed; after a failed write, commit or flush nothing is tried again and nothing
more is written, not even at the end (T5): a second fsync would succeed and have lost the pages.

    W1  a future is resolved, and a receipt sent, after the COMMIT that holds its work has
        returned, in the order of the calls; for Python by one crossing a commit.
    W2  the writing connection is touched by this thread alone, checkpoints included.
"""

import asyncio
import os
import threading
import time
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Callable
from logging import getLogger
from typing import Any, Final, NamedTuple

import apsw

from imserver._core import Batch, Core, Journal, checksum
from imserver.errors import ErrorCode, ImError
from imserver.measures import Histogram
from imserver.timeline import DEDUPE_MAX, DEDUPE_MS, Appended, Clock, full, is_full, stopped
from imserver.timeline_sqlite_schema import NOTE_MS, Store, rows
from imserver.timeline_sqlite_tables import Tables

#: Bytes of frames in one commit: a tenth of a second of a slow disk, and 32 blobs.
COMMIT_BYTES: Final = 8_388_608
#: Pages in the log before they are brought into the file: 16 MB. SQLite's own 1,000 cost up to
#: half of the throughput with random topics. Receipts wait meanwhile: docs/adr/0008.
CHECKPOINT_PAGES: Final = 4_096
#: What a job costs besides its frames, for the bound on what waits.
JOB_BYTES: Final = 256

Change = Callable[[Tables], Any]

_log = getLogger(__name__)


class Job(NamedTuple):
    """Frames to append, or a change of the tables."""

    future: "Future[Any]"
    frames: bytes = b""
    device: bytes = b""
    change: Change | None = None

    @property
    def size(self) -> int:
        return JOB_BYTES + len(self.frames)


class Writer:
    """The thread, and the bounded queue in front of it."""

    def __init__(self, store: Store, clock: Clock, loop: AbstractEventLoop) -> None:
        self.failure = ""
        self.commits = Histogram()
        self._store = store
        self._clock = clock
        self._loop = loop
        self._jobs: deque[Job] = deque()
        self._waiting_bytes = 0
        self._is_closing = False
        self._journal: Journal | None = None
        self._lock = threading.Lock()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._hopeful: list[Future[None]] = []  # who waits for room
        self._log_pages = 0
        self._batch = Batch(seed=store.seed, receipts=DEDUPE_MAX, window_ms=DEDUPE_MS)
        self._tables = Tables(store)
        self._note_time()
        self._recall()
        store.connection.set_wal_hook(self._on_commit)
        self._thread = threading.Thread(target=self._run, name="imserver-store", daemon=True)
        self._thread.start()

    # In the event loop

    def put(
        self, frames: bytes = b"", device: bytes = b"", change: Change | None = None
    ) -> "Future[Any]":
        """Queue a job, or refuse it."""
        job = Job(self._loop.create_future(), frames, device, change)
        with self._lock:
            self._check()
            if is_full(self._waiting_bytes):
                raise full()
            self._waiting_bytes += job.size
            self._jobs.append(job)
        os.eventfd_write(self._wake_fd, 1)
        return job.future

    def attach(self, core: Core) -> None:
        """Keep from now on what the clients of a core publish. Once, and `close` before the core
        stops."""
        self._journal = Journal(core, self._wake_fd)
        os.eventfd_write(self._wake_fd, 1)

    async def room(self) -> None:
        while True:
            with self._lock:
                self._check()
                if not is_full(self._waiting_bytes):
                    return
                hope = self._loop.create_future()
                self._hopeful.append(hope)
            await hope

    async def close(self) -> None:
        """Commit what waits and end the thread."""
        with self._lock:
            self._is_closing = True
        os.eventfd_write(self._wake_fd, 1)
        await asyncio.to_thread(self._thread.join)
        if self._journal:
            self._journal.close()
        os.close(self._wake_fd)
        self._tables.close()

    def _check(self) -> None:
        if self.failure:
            raise stopped(self.failure)
        if self._is_closing:
            raise stopped("it was closed")

    def _resolve(self, jobs: list[Job], results: list[Any]) -> None:
        with self._lock:
            self._waiting_bytes -= sum(job.size for job in jobs)
        for job, result in zip(jobs, results, strict=True):
            if job.future.done():
                continue  # whoever waited has given up; it is kept all the same
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)
        hopeful, self._hopeful = self._hopeful, []
        for hope in hopeful:
            if not hope.done():
                hope.set_result(None)

    # In the thread

    def _run(self) -> None:
        if self._commit_all():
            self._settle(self._end)

    def _commit_all(self) -> bool:
        """Commit after commit until it is time to end. False after a failure: from then on all
        that comes is refused."""
        while (jobs := self._gather()) is not None:
            begun_s = time.monotonic()
            try:
                results = self._write(jobs)
                self._flush()
            except Exception as error:
                self._fail(error, jobs)
                break
            self.commits.add(time.monotonic() - begun_s)
            if self._journal:
                self._journal.settle(self._batch)
            if jobs:
                self._hand_out(jobs, results)
            if self._log_pages >= CHECKPOINT_PAGES and not self._settle(self._checkpoint):
                break
        else:
            return True
        while self._journal:
            self._journal.settle(self._batch, ErrorCode.NOT_DURABLE)
            if self._gather() is None:
                break
        return False

    def _gather(self) -> list[Job] | None:
        """Wait for something to do, at most a commit full: jobs, and in the batch what clients
        published. None when it is time to end."""
        self._batch.clear()
        while True:
            with self._lock:
                jobs, is_closing = self._take(), self._is_closing
            journal = self._journal
            if (journal and journal.collect(self._batch, COMMIT_BYTES)) or jobs:
                return jobs
            if is_closing:
                return None
            if journal is None or journal.sleeps():
                os.eventfd_read(self._wake_fd)

    def _take(self) -> list[Job]:
        jobs: list[Job] = []
        size = 0
        while self._jobs and (not jobs or size + len(self._jobs[0].frames) <= COMMIT_BYTES):
            job = self._jobs.popleft()
            size += len(job.frames)
            jobs.append(job)
        return jobs

    def _write(self, jobs: list[Job]) -> list[Any]:
        """One transaction, up to its COMMIT. Refusals are results."""
        self._store.connection.execute("BEGIN IMMEDIATE")
        if self._clock.store_ms() - self._noted_ms >= NOTE_MS:
            self._note_time()
        results: list[Any] = [None] * len(jobs)
        added = []
        for number, job in enumerate(jobs):
            if job.change is None:
                results[number] = refusal = self._add(job)
                if refusal is None:
                    added.append(number)
        if added or self._batch.topics():
            self._tables.append(self._batch, self._clock.wall_ms(), self._clock.store_ms())
            for number, block in zip(added, self._batch.added(), strict=True):
                results[number] = Appended(*block)
        for number, job in enumerate(jobs):
            if job.change is not None:
                results[number] = job.change(self._tables)
        return results

    def _add(self, job: Job) -> ImError | None:
        try:
            self._batch.add(job.frames, job.device)
        except ValueError as error:
            return ImError(ErrorCode.BAD_FRAME, str(error))
        except MemoryError as error:
            return ImError(ErrorCode.TOO_LARGE, str(error))
        return None

    def _flush(self) -> None:
        self._store.connection.execute("COMMIT")
        self._store.note_flushed(self._log_pages)

    def _hand_out(self, jobs: list[Job], results: list[Any]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._resolve, jobs, results)
        except RuntimeError:
            _log.warning("the event loop ended before the store was closed")

    def _on_commit(self, connection: apsw.Connection, name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _checkpoint(self) -> None:
        self._store.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def _note_time(self) -> None:
        self._noted_ms = self._clock.store_ms()
        self._tables.note_time(self._noted_ms)

    def _end(self) -> None:
        self._note_time()
        self._store.settle()

    def _settle(self, checkpoint: Callable[[], None]) -> bool:
        try:
            checkpoint()
        except apsw.BusyError:
            return True  # a reader is in the way; what was committed is in the log
        except Exception as error:
            self._fail(error, [])
            return False
        return True

    def _fail(self, error: Exception, jobs: list[Job]) -> None:
        """T5, for those in the commit and those behind it."""
        with self._lock:
            self.failure = f"{type(error).__name__}: {error}"
            jobs = [*jobs, *self._jobs]
            self._jobs.clear()
        _log.critical(
            "the store in %s has stopped, and %d calls with it: %s. Nothing more is kept until the"
            " server is started again; what was acknowledged is on the disk.",
            self._store.directory, len(jobs), self.failure, exc_info=error,
        )  # fmt: skip
        self._hand_out(jobs, [stopped(self.failure) for _ in jobs])

    def _recall(self) -> None:
        """The publishes of the last minutes, from the blobs, newest first until they suffice.
        A blob that is damaged is reported; repeats of what it had are not recognised."""
        store_ms = self._clock.store_ms()
        connection = self._store.reader(trusting=True)
        try:
            found, count = [], 0
            for id, time_ms, devices_len in rows(
                connection, "SELECT id, time_ms, length(devices) FROM blob ORDER BY id DESC"
            ):
                if time_ms + DEDUPE_MS < store_ms or count >= DEDUPE_MAX:
                    break
                found.append((id, min(time_ms, store_ms)))
                count += devices_len // 8
            for id, time_ms in reversed(found):
                row = "SELECT checksum, devices, frames FROM blob WHERE id = ?"
                ((sum, devices, frames),) = rows(connection, row, (id,))
                if checksum(frames) == sum:
                    self._batch.recall(frames, devices, time_ms)
                else:
                    self._store.report(f"blob {id} is damaged: its checksum is wrong")
        except (apsw.Error, TypeError, ValueError) as error:
            self._store.report(f"not all recent publishes can be read: {error}")
        finally:
            connection.close()
