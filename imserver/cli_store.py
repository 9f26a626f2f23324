"""What an operator asks of a store whose server is stopped: is it whole, what is in it, less of it.

Everything opens the directory under its lock, so that none of it can run beside a server. Messages
go to stdout, one a line; everything else to stderr.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import click

from imserver.cli_terminal import notice, say
from imserver.errors import ImError
from imserver.protocol import Message, decode_message
from imserver.timeline import Extent, Page, StoreError, frame_starts
from imserver.timeline_sqlite import SqliteTimeline
from imserver.timeline_sqlite_check import check as examine
from imserver.timeline_sqlite_check import compact as shrink


def check(directory: Path) -> int:
    """Print a report; the exit code, 1 when something is wrong."""
    with _said():
        report = examine(directory)
    say(
        f"{report.messages:,} messages in {report.topics:,} topics, {report.blobs:,} blobs,"
        f" {report.bytes:,} bytes"
    )
    for problem in report.problems:
        say(problem)
    if report.problems:
        notice("damaged; nothing was changed. Everything not named above can be read.")
        return 1
    notice("whole")
    return 0


def compact(directory: Path) -> None:
    with _said():
        before, after = shrink(directory)
    notice(f"{before:,} bytes are {after:,} now")


def topics(directory: Path, as_json: bool) -> None:
    """All topics with what they keep."""

    async def work() -> None:
        async with _store(directory) as store:
            after = ""
            while page := await store.topics(after, 1_000):
                for extent in page:
                    say(_topic_line(extent, as_json))
                after = page[-1].topic

    _run(work())


def history(directory: Path, topic: str, after: int, count: int, as_json: bool) -> None:
    """Messages from `after` on, or the last ones where it is negative."""

    async def work() -> None:
        async with _store(directory) as store:
            at = (await store.extent(topic)).head - count if after < 0 else after
            left = count
            while left:
                page = await store.read(topic, max(at, 0), min(left, 256))
                if page.last < page.first:
                    return
                _print(page, topic, as_json)
                at, left = page.last, left - page.messages

    _run(work())


def trim(directory: Path, topic: str, before: int, keep: int) -> None:
    """Forget what stands before a seq, or all but the newest."""

    async def work() -> None:
        async with _store(directory) as store:
            if not (await store.extent(topic)).head:
                raise click.ClickException(f"there is no topic {topic}")
            if keep:
                forgotten = await store.retain(topic, max_count=keep)
            else:
                forgotten = await store.trim(topic, before)
            first, head = (await store.extent(topic))[1:]
            kept = f"{first} to {head} are kept" if first <= head else "nothing is kept"
            notice(f"{forgotten:,} messages forgotten; {kept}")

    _run(work())


def _topic_line(extent: Extent, as_json: bool) -> str:
    if as_json:
        return json.dumps(extent._asdict())
    return f"{extent.first} {extent.head} {extent.topic}"


def _print(page: Page, topic: str, as_json: bool) -> None:
    gaps = list(page.gaps)
    for at in frame_starts(page.frames):
        end = at + 4 + int.from_bytes(page.frames[at : at + 4])
        message = decode_message(page.frames[at:end])
        while gaps and gaps[0].first < message.seq:
            _print_gap(topic, *gaps.pop(0))
        say(_message_line(message, as_json))
    for gap in gaps:
        _print_gap(topic, *gap)


def _print_gap(topic: str, first: int, last: int, reason: str) -> None:
    notice(f"{topic} {first} to {last} cannot be read: {reason}")


def _message_line(message: Message, as_json: bool) -> str:
    try:
        value: Any = message.value()
    except ValueError:
        value = message.body
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    if not as_json:
        return f"{message.seq} {message.sender}: {value}"
    fields = ("topic", "seq", "time_ms", "sender", "id", "tag")
    line = {name: getattr(message, name) for name in fields}
    return json.dumps({**line, "body": value}, default=str)


@asynccontextmanager
async def _store(directory: Path) -> AsyncIterator[SqliteTimeline]:
    store = await SqliteTimeline.open(directory, must_exist=True)
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def _said() -> Iterator[None]:
    """What the store refuses becomes a message and exit code 1."""
    try:
        yield
    except (StoreError, ImError) as error:
        raise click.ClickException(str(error)) from None


def _run(work: Coroutine[Any, Any, None]) -> None:
    with _said():
        asyncio.run(work)
