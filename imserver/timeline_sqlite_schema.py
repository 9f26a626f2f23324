"""The store's directory: its lock, its file, and what has to be true before it is used.

    lock            held as long as a process uses the directory; has its number
    store.db        everything
    store.db-wal    what was committed since the last checkpoint; as precious as store.db
    store.db-shm    SQLite's index of it, made anew after a crash
    flushed         how far the log had been flushed when somebody was last told so
    damaged-*.wal   a log that had lost its tail when the store was opened, for whoever mends it

A commit is a row of `blob`: up to 256 KiB of frames, those of a topic side by side. `part` finds
a topic in them: one row a topic and blob, not one a message, with a checksum of its own, so that
damage to some bytes hides the messages they belong to and no others. `live` counts the parts of
a blob; a blob goes when its last part was deleted, never because a part is missing.

SQLite checks no pages by itself. Its checksum VFS does (8 bytes a page; it comes with apsw), so
that a flipped bit in an index or a cursor is an error, not a wrong answer.

Not here: statements of the daily work (writer, tables, reader).
"""

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from logging import getLogger
from pathlib import Path
from struct import Struct
from typing import Any, Final

import apsw
import apsw.sqlite_extra

from imserver._core import checksum
from imserver.timeline import StoreError, StoreInUse

FILE: Final = "store.db"
APPLICATION: Final = 0x494D5352  # "IMSR", in the header of the file
#: Commits wait for the disk, so a writer is never kept longer than by a checkpoint.
BUSY_MS: Final = 10_000

#: How often the time of the store is noted, at least.
NOTE_MS: Final = 3_600_000

#: What makes a store of version n + 1 out of one of version n. A new store takes all of them, so
#: that old and new ones cannot differ; a step that was released is never changed.
STEPS: Final = (
    """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
-- first: the oldest seq that is kept; head: the last seq when it was trimmed, at least
CREATE TABLE topic (
    id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE,
    first INTEGER NOT NULL DEFAULT 1, head INTEGER NOT NULL DEFAULT 0);
CREATE TABLE blob (
    id INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, checksum INTEGER NOT NULL,
    devices BLOB NOT NULL, frames BLOB NOT NULL);
CREATE TABLE live (blob INTEGER PRIMARY KEY, parts INTEGER NOT NULL);
CREATE TABLE part (
    topic INTEGER NOT NULL, first_seq INTEGER NOT NULL, count INTEGER NOT NULL,
    blob INTEGER NOT NULL, offset INTEGER NOT NULL, len INTEGER NOT NULL,
    checksum INTEGER NOT NULL, PRIMARY KEY (topic, first_seq)) WITHOUT ROWID;
CREATE TABLE cursor (
    user TEXT NOT NULL, device TEXT NOT NULL, topic INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (user, device, topic)) WITHOUT ROWID;
CREATE TABLE dead (
    id INTEGER PRIMARY KEY AUTOINCREMENT, user TEXT NOT NULL, device TEXT NOT NULL,
    topic INTEGER NOT NULL, seq INTEGER NOT NULL, reason TEXT NOT NULL,
    attempts INTEGER NOT NULL, time_ms INTEGER NOT NULL, taken INTEGER NOT NULL DEFAULT 0,
    frame BLOB NOT NULL, UNIQUE (user, device, topic, seq));
""",
    """
-- since_seq: the head of the topic when the user joined
CREATE TABLE member (
    topic INTEGER NOT NULL, user TEXT NOT NULL, since_seq INTEGER NOT NULL,
    PRIMARY KEY (topic, user)) WITHOUT ROWID;
CREATE INDEX member_by_user ON member (user, topic);
-- how far a user has read, on whichever device
CREATE TABLE mark (
    user TEXT NOT NULL, topic INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (user, topic)) WITHOUT ROWID;
-- when it was put last; 0 for those from before, which nobody can call old
ALTER TABLE cursor ADD COLUMN time_ms INTEGER NOT NULL DEFAULT 0;
-- the same of a dead letter; its time_ms is for people
ALTER TABLE dead ADD COLUMN put_ms INTEGER NOT NULL DEFAULT 0;
INSERT INTO meta VALUES ('time_ms', 0);
CREATE INDEX cursor_by_topic ON cursor (topic, user, device);
CREATE INDEX dead_by_topic ON dead (topic, seq);
""",
)
VERSION: Final = len(STEPS)

_WAL_HEAD = Struct(">8I")  # magic, version, page size, checkpoint, salt, salt, checksum, checksum
_WAL_FRAME = Struct(">6I")  # page, pages of the database if a commit, salt, salt, checksums
_FLUSHED = Struct(">8sQ")  # salts of the log, frames

_log = getLogger(__name__)


@cache
def checksum_vfs() -> str | None:
    """The VFS that checks every page. SQLite keeps it as the default of the process, where it
    passes databases through that were not made with it."""
    if not apsw.sqlite_extra.has("cksumvfs"):
        _log.warning("this apsw has no checksum VFS: damage to an index can go unnoticed")
        return None
    helper = apsw.Connection(":memory:")
    apsw.sqlite_extra.load(helper, "cksumvfs")
    helper.close()
    return "cksmvfs"


def rows(
    connection: apsw.Connection, sql: str, values: Sequence[Any] = ()
) -> Iterator[tuple[Any, ...]]:
    """What a statement finds, as it is read. Whoever asks knows the types of the columns."""
    return iter(connection.execute(sql, values))


def value(connection: apsw.Connection, sql: str, values: Sequence[Any] = ()) -> Any:
    """The first column of the first row; None when there is none."""
    return next(rows(connection, sql, values), (None,))[0]


class Lock:
    """The only process on a directory. Ends with the process, however that ends."""

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._fd, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise StoreInUse(
                f"the data directory {directory} is in use by process {holder}: stop that server,"
                " or choose another directory (--data)"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Store:
    """An open directory: the lock, the one writing connection, and what `meta` says."""

    def __init__(self, directory: Path, *, must_exist: bool = False, mend: bool = True) -> None:
        self.directory = directory
        self.path = directory / FILE
        self.damage: list[str] = []
        self._flushed_fd = self._wal_fd = -1
        if must_exist and not self.path.exists():
            raise StoreError(f"there is no store in {directory}: name its directory with --data")
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = Lock(directory)
        except OSError as error:
            raise StoreError(f"the data directory {directory} cannot be used: {error}") from None
        try:
            self._open(mend)
        except (apsw.Error, OSError) as error:
            self.close()
            raise unusable(directory, error) from error
        except StoreError:
            self.close()
            raise

    def _open(self, mend: bool) -> None:
        os.close(os.open(self.path, os.O_CREAT | os.O_CLOEXEC, 0o600))
        self.connection = apsw.Connection(str(self.path), vfs=checksum_vfs())
        flushed = self.directory / "flushed"
        self._flushed_fd = os.open(flushed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._prepare(mend)
        self._judge_tail(mend)
        if mend:
            self.settle()  # nothing of this log can be taken for a part of the next
            self._accept_newest_page()
        self._wal_fd = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        meta = dict(rows(self.connection, "SELECT name, value FROM meta"))
        self.epoch, self.seed = int(meta["epoch"]), int(meta["seed"])
        self.time_ms = int(meta.get("time_ms", 0))  # none in an old one that is only checked
        with suppress(apsw.Error):  # damaged; an hour less
            newest = value(self.connection, "SELECT time_ms FROM blob ORDER BY id DESC LIMIT 1")
            # Not further, whatever a flipped bit has made of it.
            self.time_ms = max(self.time_ms, min(newest or 0, self.time_ms + NOTE_MS))

    def _prepare(self, mend: bool) -> None:
        """Pragmas, each read back: a store that would not flush must not start."""
        connection = self.connection
        connection.set_busy_timeout(BUSY_MS)
        # Closing must not write: after a failed flush nothing is touched again.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        if connection.pragma("page_count") == 0:
            connection.reserve_bytes(reserve=8)
        if connection.pragma("journal_mode", "wal") != "wal":
            raise StoreError(f"{self.directory} is on a file system where SQLite has no WAL")
        connection.pragma("synchronous", "FULL")
        connection.pragma("wal_autocheckpoint", 0)
        connection.pragma("cache_size", -65_536)
        if (connection.pragma("synchronous"), connection.pragma("wal_autocheckpoint")) != (2, 0):
            raise StoreError("SQLite does not keep synchronous=FULL")
        version, tables = connection.pragma("user_version"), connection.pragma("schema_version")
        if tables and connection.pragma("application_id") != APPLICATION:
            raise StoreError(f"{self.path} is no store of imserver; choose another directory")
        if version > VERSION:
            raise StoreError(
                f"the store in {self.directory} has version {version}, written by a newer imserver;"
                f" this one reads up to {VERSION}: install the newer one again"
            )
        if not tables:
            self._create()
        elif version < VERSION and mend:
            with self.connection:
                self._bring_up_from(version)
            _log.warning("the store in %s is of version %d now", self.directory, VERSION)

    def _bring_up_from(self, version: int) -> None:
        """All steps or none; an older imserver refuses the store from then on."""
        for step in STEPS[version:]:
            self.connection.execute(step)
        self.connection.pragma("user_version", VERSION)

    def _create(self) -> None:
        with self.connection:
            self._bring_up_from(0)
            meta = {"epoch": secrets.randbits(62) + 1, "seed": secrets.randbits(62) + 1}
            self.connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            self.connection.pragma("application_id", APPLICATION)
        for directory in (self.directory, self.directory.parent):
            fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            os.fsync(fd)
            os.close(fd)

    def _judge_tail(self, mend: bool) -> None:
        """SQLite ends a log at its first damaged frame and says nothing. What was committed
        behind that is history lost, and everybody with a cursor must hear of it."""
        wal = self.path.with_name(f"{FILE}-wal")
        recovered, _ = self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        told = os.pread(self._flushed_fd, _FLUSHED.size, 0)
        page_size = self.connection.pragma("page_size")
        if not wal.exists() or not has_lost_tail(wal, page_size, recovered, told):
            return
        self.report(f"{wal.name} is damaged: commits behind its frame {recovered} are lost")
        if not mend:
            return
        kept = self.directory / f"damaged-{time.time_ns()}.wal"
        shutil.copyfile(wal, kept)
        with self.connection:
            epoch = secrets.randbits(62) + 1
            self.connection.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (epoch,))
        _log.error("a copy of the log is in %s; the epoch of the store is a new one", kept)

    def _accept_newest_page(self) -> None:
        """Every append reads the page of the newest small blobs, and writes it. If a bit of it has
        flipped, that would be refused for ever; so it is written once more as it is. Its blobs and
        their parts have checksums of their own, and what is wrong in them stays wrong. Not if the
        bit is one of those that say where they are: SQLite would spread the damage."""
        probe = self.reader()
        try:
            value(probe, "SELECT max(id) FROM blob")
            return
        except apsw.IOError as error:
            self.report(f"the newest page of blobs is damaged: {error}")
        finally:
            probe.close()
        trusting = apsw.Connection(str(self.path), vfs=checksum_vfs())
        try:
            trusting.pragma("checksum_verification", "OFF")
            if (said := value(trusting, "PRAGMA integrity_check(blob)")) != "ok":
                raise apsw.CorruptError(said)
            newest = value(trusting, "SELECT max(id) FROM blob")
            row = (newest + 1, 0, checksum(b""), b"", b"")
            with trusting:
                trusting.execute("INSERT INTO blob VALUES (?, ?, ?, ?, ?)", row)
            with trusting:
                trusting.execute("DELETE FROM blob WHERE id = ?", row[:1])
        except apsw.Error as error:
            self.report(f"it cannot be mended, and nothing more can be kept: {error}")
        finally:
            trusting.close()

    def reader(self, *, trusting: bool = False) -> apsw.Connection:
        """One more connection, that cannot write, for one thread. A `trusting` one also reads
        pages whose checksum is wrong: for blobs, whose parts have checksums of their own."""
        connection = apsw.Connection(
            str(self.path), flags=apsw.SQLITE_OPEN_READONLY, vfs=checksum_vfs()
        )
        connection.set_busy_timeout(BUSY_MS)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.pragma("query_only", 1)
        if trusting:
            connection.pragma("checksum_verification", "OFF")
        return connection

    def report(self, damage: str) -> None:
        """Something that cannot be read: logged once, and listed in `damage`. From any thread."""
        if damage not in self.damage:
            self.damage.append(damage)
            _log.error("the store in %s: %s", self.directory, damage)

    def note_flushed(self, frames: int) -> None:
        """The log is flushed up to that frame; before anybody is told. Not flushed itself: after
        a power cut it may be older, and then a last commit that is torn counts as untold."""
        salts = os.pread(self._wal_fd, 8, 16)
        os.pwrite(self._flushed_fd, _FLUSHED.pack(salts, frames), 0)

    def settle(self) -> None:
        """Bring everything into store.db, so that a copy of it alone is whole."""
        self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def close(self) -> None:
        """Writes nothing."""
        connection = getattr(self, "connection", None)
        if connection is not None:
            with suppress(apsw.Error):
                connection.close(True)
        for fd in (self._flushed_fd, self._wal_fd):
            if fd >= 0:
                os.close(fd)
        self._flushed_fd = self._wal_fd = -1
        self._lock.release()


def unusable(directory: Path, error: Exception) -> StoreError:
    return StoreError(
        f"the store in {directory} cannot be opened: {error}. Nothing was deleted; restore a copy"
        " of the directory, or ask `imserver store check` for more"
    )


def has_lost_tail(wal: Path, page_size: int, recovered: int, told: bytes) -> bool:
    """Whether a log had more that was flushed than the `recovered` frames.

    An unfinished commit at the end is usual after a crash, and frames of an earlier round, which
    have other salts, lie behind it. But a commit behind an unreadable one proves that this one
    was flushed, and so does what `flushed` has (`told`).
    """
    with wal.open("rb") as file:
        head = file.read(_WAL_HEAD.size)
        if len(head) < _WAL_HEAD.size:
            return False
        if not _is_whole(head):
            return wal.stat().st_size >= _WAL_HEAD.size + _WAL_FRAME.size + page_size
        if len(told) == _FLUSHED.size:
            salts, flushed = _FLUSHED.unpack(told)
            if salts == head[16:24] and flushed > recovered:
                return True
        at, commits = _WAL_HEAD.size + recovered * (_WAL_FRAME.size + page_size), 0
        while commits < 2:
            file.seek(at)
            frame = file.read(_WAL_FRAME.size)
            if len(frame) < _WAL_FRAME.size:
                return False
            # One salt of both, since a flipped bit may be in the other.
            is_of_this_round = frame[8:12] == head[16:20] or frame[12:16] == head[20:24]
            commits += is_of_this_round and frame[4:8] != bytes(4)
            at += _WAL_FRAME.size + page_size
        return True


def _is_whole(head: bytes) -> bool:
    """Whether the checksum of a log's head is right; its low bit of magic is the byte order."""
    order: Final = ">" if head[3] & 1 else "<"
    a = b = 0
    words = Struct(f"{order}6I").unpack(head[:24])
    for even, odd in zip(words[::2], words[1::2], strict=True):
        a = (a + even + b) & 0xFFFFFFFF
        b = (b + odd + a) & 0xFFFFFFFF
    return (a, b) == _WAL_HEAD.unpack(head)[6:]
