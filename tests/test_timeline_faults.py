"""The store against its disk: killed at every call it makes of it, calls that fail, bits that
flip.

The process under test is tests/store_child.py. What it was told stands on its stdout, which
survives it; afterwards everything it was told has to be there, in dense numbers, and nothing that
it never sent. strace does the killing and the failing.
"""

import asyncio
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import apsw
import pytest

from imserver.errors import ImError
from imserver.protocol import decode_message, encode_message
from imserver.timeline import Cursor, StoreError, frame_starts
from imserver.timeline_sqlite import SqliteTimeline
from imserver.timeline_sqlite_check import check
from imserver.timeline_sqlite_schema import FILE

ROOT = Path(__file__).parent.parent
CALLS = ("pwrite64", "fsync", "fdatasync", "ftruncate", "unlink")

needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


class Run(NamedTuple):
    directory: Path
    said: list[str]
    code: int


def run_child(directory: Path, inject: str = "", *arguments: str) -> Run:
    trace = ["strace", "-qq", "-f", "-o", f"{directory}.strace"]
    trace += [] if "signal" in inject else ["--seccomp-bpf"]  # which is faster and sends none
    trace += ["-e", f"trace={','.join(CALLS)}", *(["-e", f"inject={inject}"] if inject else [])]
    child = [sys.executable, str(ROOT / "tests/store_child.py"), str(directory), *arguments]
    done = subprocess.run(
        [*trace, *child], capture_output=True, text=True, cwd=ROOT, timeout=60,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    # What follows a kill is a line at most half written.
    return Run(directory, done.stdout.split("\n")[:-1], done.returncode)


def calls_of(directory: Path, *arguments: str) -> Counter[str]:
    """How often an undisturbed run makes each call, in the thread that makes most of them:
    strace counts by thread."""
    assert run_child(directory, "", *arguments).said[-1] == "closed"
    text = Path(f"{directory}.strace").read_text()
    by_thread = Counter(re.findall(rf"^(\d+) +({'|'.join(CALLS)})\(", text, re.M))
    most: Counter[str] = Counter()
    for (_, call), count in by_thread.items():
        most[call] = max(most[call], count)
    return most


def made(directory: Path) -> Path:
    """A store with nothing in it, so that opening one makes few calls."""

    async def make() -> None:
        await (await SqliteTimeline.open(directory)).close()

    asyncio.run(make())
    return directory


async def lost_by(run: Run) -> list[str]:
    """What is wrong with a store, by what its process said: empty, or the test has failed."""
    wrong = []
    if "works again" in run.said:
        wrong.append("a store that had failed did something again")
    if "open" not in run.said and not (run.directory / FILE).exists():
        return wrong
    store = await SqliteTimeline.open(run.directory)
    try:
        wrong += store.damage
        for number in range(3):
            wrong += await wrong_in(store, f"room:{number}", run.said)
        cursors = [int(line.split()[1]) for line in run.said if line.startswith("cursor ")]
        cursor = await store.cursor("ann", "phone", "room:0")
        if cursors and (cursor is None or not cursors[-1] <= cursor <= cursors[-1] + 1):
            wrong.append(f"cursor {cursor} after {cursors[-1]}")
    finally:
        await store.close()
    return wrong + check(run.directory).problems


async def wrong_in(store: SqliteTimeline, topic: str, said: list[str]) -> list[str]:
    page, extent = await store.read(topic, limit=10_000, max_bytes=2**30), await store.extent(topic)
    wrong = [f"{topic}: {gap}" for gap in page.gaps]
    kept, seen = {}, set()
    for at in frame_starts(page.frames):
        one = decode_message(page.frames[at : at + 4 + int.from_bytes(page.frames[at : at + 4])])
        text = one.body[:8].decode()
        kept[one.seq] = text
        if not re.fullmatch(r"\d{3}-\d{4}", text) or int(text[4:]) % 3 != int(topic[-1]):
            wrong.append(f"{topic}: phantom {text}")
        if text in seen:
            wrong.append(f"{topic}: {text} twice")
        seen.add(text)
    if sorted(kept) != list(range(extent.first, extent.head + 1)):
        wrong.append(f"{topic}: {sorted(kept)} are not {extent}")
    trims = [int(line.split()[2]) for line in said if line.startswith(f"trim {topic} ")]
    for line in said:
        if line.startswith(f"receipt {topic} "):
            _, _, seq, text = line.split()
            if kept.get(int(seq)) != text and not (trims or int(seq) < extent.first):
                wrong.append(f"{topic}: lost {line}")
    return wrong


def judge(runs: list[Run]) -> dict[str, list[str]]:
    async def all_of_them() -> dict[str, list[str]]:
        found = {}
        for run in runs:
            if wrong := await lost_by(run):
                found[run.directory.name] = wrong
        return found

    return asyncio.run(all_of_them())


def run_all(
    tmp_path: Path, injections: list[str], *arguments: str, on: Path | None = None
) -> list[Run]:
    """One process for each, two at a time, on a new directory or on a copy of one."""

    def run(inject: str) -> Run:
        name = f"{'old' if on else 'new'} {re.sub('[=:]', ' ', inject)}"
        if on:
            shutil.copytree(on, tmp_path / name)
        return run_child(tmp_path / name, inject, *arguments)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, injections))


def kills(calls: Counter[str]) -> list[str]:
    return [f"{call}:signal=SIGKILL:when={n}" for call in calls for n in range(1, calls[call] + 1)]


@needs_strace
@pytest.mark.parametrize("what", ["a new store", "one that is there"])
def test_killed_at_every_call_it_loses_nothing_that_it_told(tmp_path: Path, what: str) -> None:
    """In a new one the calls of its making are met first, in the other those of its work."""
    on = made(tmp_path / "made") if what == "one that is there" else None
    calls = calls_of(shutil.copytree(on, tmp_path / "undisturbed") if on else tmp_path / "new")
    assert set(calls) >= {"pwrite64", "fdatasync", "ftruncate"}
    if on is None:  # what comes later is the same as with the other
        calls["pwrite64"] = min(calls["pwrite64"], 50)
    runs = run_all(tmp_path, kills(calls), on=on)
    assert sum(run.code != 0 for run in runs) > 0.9 * len(runs), "it was hardly ever killed"
    assert judge(runs) == {}


@needs_strace
@pytest.mark.parametrize("fault", ["signal=SIGKILL", "error=EIO", "error=ENOSPC"])
def test_disturbed_at_every_call_of_a_recovery_it_loses_nothing(tmp_path: Path, fault: str) -> None:
    """On what a kill has left: most of it in the log, and no checkpoint at its end."""
    dirty = run_child(made(tmp_path / "dirty"), "fdatasync:signal=SIGKILL:when=9")
    assert sum(line.startswith("receipt") for line in dirty.said) > 5
    assert (dirty.directory / f"{FILE}-wal").stat().st_size > 0
    calls = calls_of(shutil.copytree(dirty.directory, tmp_path / "undisturbed"), "reopen")
    assert set(calls) >= {"pwrite64", "fdatasync"}
    injections = [kill.replace("signal=SIGKILL", fault) for kill in kills(calls)]
    runs = run_all(tmp_path, injections, "reopen", on=dirty.directory)
    if "SIGKILL" in fault:
        assert sum(run.code != 0 for run in runs) > 0.9 * len(runs), "it was hardly ever killed"
    assert judge([run._replace(said=dirty.said + run.said) for run in runs]) == {}


@needs_strace
def test_the_harness_finds_answers_before_the_flush(tmp_path: Path) -> None:
    on = made(tmp_path / "made")
    runs = run_all(tmp_path, kills(Counter(fdatasync=4, pwrite64=24)), "hasty", on=on)
    assert any("lost" in line for wrong in judge(runs).values() for line in wrong)


@needs_strace
@pytest.mark.parametrize(("error", "when"), [("EIO", "{}"), ("ENOSPC", "{}+")])
def test_after_a_call_that_fails_it_stops_and_loses_nothing(
    tmp_path: Path, error: str, when: str
) -> None:
    """Once, and from then on. A retried fsync would succeed and mean nothing."""
    on = made(tmp_path / "made")
    calls = calls_of(shutil.copytree(on, tmp_path / "undisturbed"))
    injections = [
        f"{call}:error={error}:when={when.format(n)}"
        for call in ("fsync", "fdatasync", "pwrite64", "ftruncate")
        for n in range(1, calls[call] + 1)
    ]
    runs = run_all(tmp_path, injections, on=on)
    assert judge(runs) == {}
    refused = [run for run in runs if "refused 507" in run.said]
    assert len(refused) > len(runs) / 2
    for run in refused:
        after = run.said[run.said.index("refused 507") + 1 :]
        assert after == [], run.directory.name


# Bits that flip


def filled(directory: Path, *, is_closed: bool) -> dict[str, list[bytes]]:
    """A store of many commits, and what is in it; not closed, most of it is in the log."""

    async def fill() -> dict[str, list[bytes]]:
        store = await SqliteTimeline.open(directory)
        kept: dict[str, list[bytes]] = {}
        for number in range(12):
            topics = [f"room:{n % 4}" for n in range(40)]
            block = b"".join(encode_message(t, "ann", b"%d " % number * 300) for t in topics)
            frames = (await store.append(block)).frames
            starts = [*frame_starts(frames), len(frames)]
            for topic, (a, b) in zip(topics, pairwise(starts), strict=True):
                kept.setdefault(topic, []).append(frames[a:b])
            await store.put_cursors([Cursor("ann", "phone", "room:0", number)])
        if is_closed:
            await store.close()
        else:
            shutil.copytree(directory, f"{directory}.copy")
            await store.close()
            shutil.rmtree(directory)
            shutil.move(f"{directory}.copy", directory)
        return kept

    return asyncio.run(fill())


async def read_all(directory: Path, kept: dict[str, list[bytes]]) -> tuple[int, bool]:
    """How many messages cannot be read, and whether anything was said. Fails where an answer is
    wrong, or where something is missing and was not said."""
    lost = 0
    try:
        store = await SqliteTimeline.open(directory)
    except StoreError:
        return 10**6, True
    was_said = bool(store.damage)
    for topic, frames in kept.items():
        try:
            page = await store.read(topic, limit=10_000, max_bytes=2**30)
        except ImError:  # 500, and the store has said why
            lost, was_said = lost + len(frames), True
            continue
        missing = {seq for gap in page.gaps for seq in range(gap.first, gap.last + 1)}
        readable = [frame for seq, frame in enumerate(frames, 1) if seq not in missing]
        was_said = was_said or bool(missing)
        if page.frames != b"".join(readable):
            assert store.damage, f"{topic}: a silent gap"
            assert b"".join(frames).startswith(page.frames), f"{topic}: a wrong answer"
        lost += len(frames) - page.messages
    was_said = was_said or bool(store.damage)
    await store.close()
    return lost, was_said


def flip(path: Path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_a_flipped_bit_in_the_file_is_never_silent(tmp_path: Path) -> None:
    kept = filled(tmp_path / "good", is_closed=True)
    size = (tmp_path / "good" / FILE).stat().st_size
    losses = Counter()
    for n, at in enumerate(range(5, size, size // 150)):
        directory = tmp_path / str(n)
        shutil.copytree(tmp_path / "good", directory)
        flip(directory / FILE, at, n % 8)
        try:
            problems = check(directory).problems
        except StoreError as error:
            problems = [str(error)]
        lost, was_said = asyncio.run(read_all(directory, kept))
        if lost:
            assert was_said, at
        assert problems or not lost, at
        losses["some" if 0 < lost < 480 else "none" if not lost else "all"] += 1
        shutil.rmtree(directory)
    assert losses["some"] > 20, losses


def test_a_damaged_blob_hides_its_own_messages_and_no_others(tmp_path: Path) -> None:
    kept = filled(tmp_path / "data", is_closed=True)
    path = tmp_path / "data" / FILE
    at = path.read_bytes().index(b"5 5 5 5 5 ")
    flip(path, at, 3)
    before = path.read_bytes()

    async def read() -> list[int]:
        store = await SqliteTimeline.open(tmp_path / "data")
        missing = []
        for topic, frames in kept.items():
            page = await store.read(topic, limit=10_000)
            back = await store.read_back(topic, 10_000, limit=10_000)
            assert back == page
            gone = [seq for gap in page.gaps for seq in range(gap.first, gap.last + 1)]
            assert page.frames == b"".join(f for n, f in enumerate(frames, 1) if n not in gone)
            assert page.last == len(frames)
            missing += gone
        assert any("is damaged" in line for line in store.damage)
        (appended,) = [await store.append(encode_message("room:0", "ann", b"on"))]
        assert decode_message(appended.frames).seq == len(kept["room:0"]) + 1
        await store.close()
        return missing

    missing = asyncio.run(read())
    assert missing, "nothing was damaged"
    assert set(missing) <= set(range(51, 61)), "the sixth commit"
    assert path.read_bytes().count(b"5 5 5 5 5 ") == before.count(b"5 5 5 5 5 "), "it is kept"
    problems = check(tmp_path / "data").problems
    assert any("blob 6" in problem for problem in problems), problems


def test_a_damaged_blob_stays_when_its_time_is_over(tmp_path: Path) -> None:
    filled(tmp_path / "data", is_closed=True)
    path = tmp_path / "data" / FILE
    flip(path, path.read_bytes().index(b"5 5 5 5 5 "), 3)
    before = path.read_bytes().count(b"5 5 5 5 5 ")

    async def trim() -> None:
        store = await SqliteTimeline.open(tmp_path / "data")
        for number in range(4):
            assert await store.trim(f"room:{number}", 10**6) == 120
        assert any("is kept for damage" in line for line in store.damage)
        assert not store.failure
        await store.append(encode_message("room:0", "ann", b"on"))
        await store.close()

    asyncio.run(trim())
    connection = apsw.Connection(str(path), vfs="unix")
    assert path.read_bytes().count(b"5 5 5 5 5 ") == before
    assert (6,) in connection.execute("SELECT id FROM blob").fetchall()
    connection.close()


def test_a_flipped_bit_in_the_newest_page_of_blobs_ends_no_appending(tmp_path: Path) -> None:
    """Small commits share the page that every append writes."""
    good, first, last = tmp_path / "good", 20, 60
    right = {seq: b"%d " % seq * 20 for seq in range(1, last + 1)}

    async def keep(directory: Path, seqs: range) -> int:
        """The last that was told; all of them but for a store that stops."""
        store, told = await SqliteTimeline.open(directory), seqs[0] - 1
        for seq in seqs:
            try:
                appended = await store.append(encode_message("room:1", "ann", right[seq]))
            except ImError:
                break
            told = decode_message(appended.frames).seq
            assert told == seq
        assert told == seqs[-1] or store.failure
        await store.close()
        return told

    async def read(directory: Path) -> dict[int, bytes]:
        store = await SqliteTimeline.open(directory)
        page = await store.read("room:1", limit=10_000)
        await store.close()
        starts = [*frame_starts(page.frames), len(page.frames)]
        found = (decode_message(page.frames[a:b]) for a, b in pairwise(starts))
        return {message.seq: message.body for message in found}

    asyncio.run(keep(good, range(1, first + 1)))
    data = (good / FILE).read_bytes()
    page_at = data.index(b"20 20 20 ") // 4096 * 4096
    assert page_at == data.index(b"1 1 1 1 ") // 4096 * 4096, "all in one page"
    lost: Counter[int] = Counter()
    for n, at in enumerate(range(page_at, page_at + 4096, 41)):
        directory = tmp_path / str(n)
        shutil.copytree(good, directory)
        flip(directory / FILE, at, n % 8)
        told = asyncio.run(keep(directory, range(first + 1, last + 1)))
        kept = asyncio.run(read(directory))
        assert kept.items() <= right.items(), f"byte {at - page_at}: a wrong answer"
        missing = set(range(1, told + 1)) - kept.keys()
        assert max(missing, default=0) <= first, f"byte {at - page_at}: what came later is lost"
        assert not missing or check(directory).problems
        lost[len(missing) if told == last else -1] += 1
    assert lost[0] + lost[1] > 80, f"a bit costs a message at most, nearly always: {lost}"


def test_a_flipped_bit_in_the_log_is_never_silent(tmp_path: Path) -> None:
    """SQLite itself would take the log to end there, without a word."""
    kept = filled(tmp_path / "good", is_closed=False)
    good = asyncio.run(read_all(copy_of(tmp_path / "good", tmp_path / "same"), kept))
    assert good == (0, False)
    wal = f"{FILE}-wal"
    size = (tmp_path / "good" / wal).stat().st_size
    is_lost = 0
    places = [*range(0, 32, 4), *range(32, 56, 4), *range(size - 4_120, size - 4_096, 4)]
    for n, at in enumerate([*places, *range(100, size, size // 60)]):
        directory = copy_of(tmp_path / "good", tmp_path / str(n))
        flip(directory / wal, at, n % 8)
        try:
            has_problems = bool(check(directory).problems)
        except StoreError:
            has_problems = True
        lost, was_said = asyncio.run(read_all(directory, kept))
        if lost:
            assert was_said, at
            assert has_problems, at
            is_lost += 1
            if (directory / FILE).stat().st_size and lost < 10**6:
                assert list(directory.glob("damaged-*.wal")), "the log is kept for whoever mends it"
        shutil.rmtree(directory)
    assert is_lost > 40


def copy_of(good: Path, directory: Path) -> Path:
    shutil.copytree(good, directory)
    (directory / f"{FILE}-shm").unlink(missing_ok=True)
    return directory


def test_a_missing_index_row_deletes_nothing(tmp_path: Path) -> None:
    filled(tmp_path / "data", is_closed=True)
    connection = apsw.Connection(str(tmp_path / "data" / FILE))
    connection.execute("DELETE FROM part WHERE blob = 3 AND topic = 1")
    connection.close()

    async def use() -> None:
        store = await SqliteTimeline.open(tmp_path / "data")
        page = await store.read("room:0", limit=1_000)
        assert [gap[:] for gap in page.gaps] == [(21, 30, "missing")]
        for topic in range(4):
            await store.trim(f"room:{topic}", 10**6)
        await store.close()

    problems = check(tmp_path / "data").problems
    assert any("lacks 21 to 30" in problem for problem in problems)
    assert any("blob 3 has 3 parts" in problem for problem in problems)
    asyncio.run(use())
    connection = apsw.Connection(str(tmp_path / "data" / FILE))
    assert connection.execute("SELECT id FROM blob").fetchall() == [(3,)]
    connection.close()
