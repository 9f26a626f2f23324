"""What only a store on a disk has: restarts, its file, its lock, older versions."""

import asyncio
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest
from stores import ROOT, Turned, bodies, dead, fill, message, seqs

from imserver import timeline_sqlite_schema
from imserver.errors import ErrorCode, ImError
from imserver.protocol import RETRY
from imserver.timeline import (
    Cursor,
    Extent,
    Mark,
    StoreError,
)
from imserver.timeline_sqlite import SqliteTimeline
from imserver.timeline_sqlite_check import check


async def test_everything_is_there_after_a_restart(disk: Any) -> None:
    store = await disk()
    epoch = store.epoch
    first = await store.append(message("room:a", "x", id=7), "phone")
    await store.put_dead([dead(4)], [Cursor("ann", "phone", "room:a", 4)])
    await store.take_dead([1])
    await fill(store, "room:b", 3)
    await store.trim("room:b", 100)
    await store.join("group:c", ["ann"])
    await store.mark_read("ann", "room:a", 1)
    store = await disk()
    assert store.epoch == epoch
    assert store.damage == []
    assert await store.memberships("ann") == ["group:c"]
    assert (await store.marks("ann", ["room:a"]))["room:a"] == Mark(1, 0, 1, 1)
    assert (await store.read("room:a")).frames == first.frames
    assert await store.extent("room:b") == Extent("room:b", 4, 3)
    assert seqs((await store.append(message("room:b"))).frames) == [4]
    assert await store.cursor("ann", "phone", "room:a") == 4
    assert (await store.dead())[0].is_taken
    again = await store.append(message("room:a", "x", id=7, flags=RETRY), "phone")
    assert again == (first.frames, 1, (0,), ())
    other = await store.append(message("room:a", "y", id=7, flags=RETRY), "phone")
    assert other.refused == (0,)


async def test_the_time_of_the_store_stands_still_while_it_is_closed(disk: Any) -> None:
    """A clock that is wrong at a start, by minutes or years, makes nothing old, and nothing young
    that had become old before."""
    wall, steady = Turned(), Turned()
    clocks = {"wall_s": wall, "steady_s": steady}
    store = await disk(**clocks)
    first = message("room:a", "x", id=7, flags=RETRY)
    await store.append(first)
    await store.put_cursors([Cursor("ann", "phone", "room:a", 0)])
    for jump_s in (3_600, 10 * 365 * 86_400, -20 * 365 * 86_400):
        await store.close()
        wall.now_s += jump_s
        steady.now_s = abs(jump_s) / 7  # that of another boot
        store = await disk(**clocks)
        steady.now_s += 190
        assert (await store.append(first)).repeated == (0,)
        assert await store.retain("room:a", max_age_ms=600_000) == 0
        assert await store.expire_cursors(600_000) == 0
    steady.now_s += 40
    store = await disk(**clocks)
    assert (await store.append(first)).repeated == ()
    assert await store.retain("room:a", max_age_ms=600_000) == 1
    assert await store.expire_cursors(600_000) == 1


async def test_after_a_crash_the_time_of_the_store_is_that_of_the_newest_blob(
    disk: Any, tmp_path: Path
) -> None:
    """Or that of the last note, an hour before at most; never a time that a flipped bit has made."""
    wall, steady = Turned(), Turned()
    store = await disk(wall_s=wall, steady_s=steady)
    steady.now_s += 300
    await store.append(message("room:a"))
    for name, blob_ms in (("crash", None), ("flip", 1 << 50)):
        copy = tmp_path / name
        shutil.copytree(tmp_path / "data", copy)
        if blob_ms:
            connection = apsw.Connection(str(copy / timeline_sqlite_schema.FILE))
            connection.execute("UPDATE blob SET time_ms = ?", (blob_ms,))
            connection.close()
        opened = timeline_sqlite_schema.Store(copy)
        assert opened.time_ms == (1_700_000_000 + (3_600 if blob_ms else 300)) * 1000
        opened.close()
    steady.now_s += 4_000
    await store.append(message("room:b"))
    noted = "SELECT value FROM meta WHERE name = 'time_ms'"
    noted_ms = await store._reader.run(lambda db: db.execute(noted).get)
    assert noted_ms == (1_700_000_000 + 4_300) * 1000


async def test_a_blob_goes_with_its_last_part(disk: Any, tmp_path: Path) -> None:
    store = await disk()
    await store.append(message("room:a") + message("room:b"))
    await store.trim("room:a", 2)
    assert bodies((await store.read("room:b")).frames) == [""]
    count = "SELECT (SELECT count(*) FROM blob), (SELECT count(*) FROM live)"
    assert await store._reader.run(lambda db: db.execute(count).get) == (1, 1)
    await store.trim("room:b", 2)
    assert await store._reader.run(lambda db: db.execute(count).get) == (0, 0)


async def test_a_long_trim_lets_other_commits_in_between(
    disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imserver.timeline_sqlite_tables.TRIM_PARTS", 3)
    store = await disk()
    await fill(store, "room:a", 10)
    trimming = asyncio.ensure_future(store.trim("room:a", 9))
    await asyncio.sleep(0)
    assert seqs((await store.append(message("room:a"))).frames) == [11]
    assert await trimming == 8
    assert await store.extent("room:a") == Extent("room:a", 9, 11)
    assert await store.retain("room:a", max_count=1) == 2


async def test_only_one_process_opens_a_directory(disk: Any, tmp_path: Path) -> None:
    await disk()
    code = (
        "import asyncio, pathlib, sys; from imserver.timeline_sqlite import SqliteTimeline\n"
        "asyncio.run(SqliteTimeline.open(pathlib.Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "data")]
    other = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert other.returncode != 0
    assert f"the data directory {tmp_path / 'data'} is in use by process" in other.stderr
    with pytest.raises(StoreError, match="stop that server, or choose another directory"):
        await SqliteTimeline.open(tmp_path / "data")


async def test_what_is_newer_or_no_store_is_refused(disk: Any, tmp_path: Path) -> None:
    store = await disk()
    await store.close()
    path = tmp_path / "data" / timeline_sqlite_schema.FILE
    for pragma, said in [
        (f"user_version = {timeline_sqlite_schema.VERSION + 1}", "written by a newer imserver"),
        ("application_id = 5", "is no store of imserver"),
    ]:
        connection = apsw.Connection(str(path))
        connection.execute(f"PRAGMA {pragma}")
        connection.close()
        with pytest.raises(StoreError, match=said):
            await SqliteTimeline.open(tmp_path / "data")
    path.write_bytes(b"something else " * 1000)
    with pytest.raises(StoreError, match="cannot be opened"):
        await SqliteTimeline.open(tmp_path / "data")
    assert path.read_bytes() == b"something else " * 1000
    with pytest.raises(StoreError, match="there is no store in"):
        await SqliteTimeline.open(tmp_path / "elsewhere", must_exist=True)


async def old_store(disk: Any, monkeypatch: pytest.MonkeyPatch, version: int) -> int:
    """A store as an imserver of that version left it: a message, a cursor. Its epoch."""
    steps = timeline_sqlite_schema.STEPS[:version]
    with monkeypatch.context() as patch:
        patch.setattr(timeline_sqlite_schema, "STEPS", steps)
        patch.setattr(timeline_sqlite_schema, "VERSION", version)
        store = await disk()
        await store.append(message("room:a", "old"))
        await store.close()
    vfs = timeline_sqlite_schema.checksum_vfs()
    connection = apsw.Connection(str(store._store.path), vfs=vfs)
    add = "INSERT INTO cursor (user, device, topic, seq) SELECT 'ann', 'phone', id, 1 FROM topic"
    connection.execute(add)
    connection.close()
    return int(store.epoch)


@pytest.mark.parametrize("version", range(1, timeline_sqlite_schema.VERSION))
async def test_a_store_of_an_older_version_is_brought_up_and_then_like_a_new_one(
    disk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    epoch = await old_store(disk, monkeypatch, version)
    store = await disk()
    assert store.epoch == epoch
    assert bodies((await store.read("room:a")).frames) == ["old"]
    assert await store.cursors_of("room:a") == [Cursor("ann", "phone", "room:a", 1)]
    assert await store.join("room:a", ["ann"]) == ["ann"]
    sql = "SELECT type, name, sql FROM sqlite_schema ORDER BY name"
    new = await SqliteTimeline.open(tmp_path / "new")
    assert list(store._store.connection.execute(sql)) == list(new._store.connection.execute(sql))
    assert store._store.connection.pragma("user_version") == timeline_sqlite_schema.VERSION
    await new.close()


async def test_a_step_that_fails_leaves_the_old_store_as_it_was(
    disk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await old_store(disk, monkeypatch, 1)
    with monkeypatch.context() as patch:
        broken = (
            *timeline_sqlite_schema.STEPS[:2],
            "CREATE TABLE more (n); CREATE TABLE topic (n)",
        )
        patch.setattr(timeline_sqlite_schema, "STEPS", broken)
        patch.setattr(timeline_sqlite_schema, "VERSION", len(broken))
        with pytest.raises(StoreError, match="table topic already exists"):
            await SqliteTimeline.open(tmp_path / "data")
    connection = apsw.Connection(str(tmp_path / "data" / timeline_sqlite_schema.FILE))
    assert connection.pragma("user_version") == 1
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    assert not tables & {"member", "mark", "more"}
    connection.close()
    store = await disk()
    assert bodies((await store.read("room:a")).frames) == ["old"]


async def test_checking_an_old_store_leaves_it_old(
    disk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await old_store(disk, monkeypatch, 1)
    assert check(tmp_path / "data").problems == []
    connection = apsw.Connection(str(tmp_path / "data" / timeline_sqlite_schema.FILE))
    assert connection.pragma("user_version") == 1
    connection.close()


async def test_the_file_is_flushed_checked_and_private(disk: Any, tmp_path: Path) -> None:
    store = await disk()
    connection = store._store.connection
    assert connection.pragma("synchronous") == 2
    assert connection.pragma("journal_mode") == "wal"
    assert connection.pragma("wal_autocheckpoint") == 0
    assert connection.reserve_bytes() == 8, "pages carry no checksums"
    for path in (tmp_path / "data").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    with pytest.raises(apsw.ReadOnlyError):
        await store._reader.run(lambda db: db.execute("DELETE FROM topic"))


async def test_the_log_is_brought_in_when_it_is_long(
    disk: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("imserver.timeline_sqlite_writer.CHECKPOINT_PAGES", 50)
    store = await disk()
    for _ in range(40):
        await store.append(message("room:a", "x" * 50_000))
    wal = tmp_path / "data" / "store.db-wal"
    assert wal.stat().st_size < 40 * 50_000 / 2
    await store.close()
    assert wal.stat().st_size == 0


async def test_after_a_failed_commit_the_store_has_stopped_for_good(
    disk: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The real failures of a disk are in test_timeline_faults."""
    store = await disk()
    await fill(store, "room:a", 2)

    def fail() -> None:
        raise apsw.FullError("database or disk is full")

    store._writer._flush = fail
    with caplog.at_level(logging.CRITICAL):
        for _ in range(3):
            with pytest.raises(ImError, match="507") as refused:
                await store.append(message("room:a"))
            assert refused.value.code == ErrorCode.NOT_DURABLE
    assert "has stopped" in caplog.text
    assert "disk is full" in store.failure
    for attempt in (store.put_cursors([]), store.room()):
        with pytest.raises(ImError, match="507"):
            await attempt
    assert seqs((await store.read("room:a")).frames) == [1, 2], "reading goes on"
    store = await disk()
    assert not store.failure
    assert await store.extent("room:a") == Extent("room:a", 1, 2)
