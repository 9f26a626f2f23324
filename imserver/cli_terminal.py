"""Lines in and out: a terminal, a pipe or a file, whatever stands at either end.

stdout has messages only; what is said about them goes to stderr, behind a "*". Nothing that a
stranger wrote reaches a terminal with its control characters, so that no message can move the
cursor, rename the window or run the letters of a line backwards.
"""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import click

#: Bytes of one line typed or piped. A longer one is cut into several.
LINE_LEN_MAX = 32_768

#: Not printable by Unicode's table, and harmless: they join letters and emoji.
_JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey: control characters become escapes."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode() for c in text
    )


def notice(text: str) -> None:
    """Something about the conversation that is no part of it."""
    click.echo(f"* {printable(text)}", err=True)


def say(text: str) -> None:
    """A line on stdout, at once: it may be a pipe that somebody waits at."""
    click.echo(printable(text))
    sys.stdout.flush()


def table(lines: Sequence[Mapping[str, object]]) -> None:
    """Lines with the same columns, under their names."""
    cells = [list(lines[0]), *([printable(str(cell)) for cell in line.values()] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        say("  ".join(padded).rstrip())


def when(time_ms: int) -> str:
    """A moment as people read it, in UTC whatever the machine is set to."""
    try:
        seconds = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time_ms // 1000))
    except (OverflowError, OSError, ValueError):
        return f"{time_ms} ms"
    return f"{seconds}.{time_ms % 1000:03d} UTC"


def read_lines(fd: int) -> "asyncio.Queue[str | None]":
    """The lines of a descriptor as they come; None at the end.

    By a thread that nobody has to wait for: a terminal switched to non-blocking would be so for
    stdout too, a file cannot be watched at all, and sys.stdin holds a lock over the read that
    would keep the process from ending. The queue is short, so a large file is read as fast as
    it can be sent.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | None] = asyncio.Queue(maxsize=64)

    def put(line: str | None) -> None:
        asyncio.run_coroutine_threadsafe(lines.put(line), loop).result()

    def read() -> None:
        rest = b""
        while data := _read(fd):
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                put(_text(line))
            while len(rest) > LINE_LEN_MAX:
                put(_text(rest[:LINE_LEN_MAX]))
                rest = rest[LINE_LEN_MAX:]
        if rest:
            put(_text(rest))
        put(None)

    def read_until_the_loop_ends() -> None:
        with suppress(RuntimeError, asyncio.CancelledError):
            read()

    threading.Thread(target=read_until_the_loop_ends, name="stdin", daemon=True).start()
    return lines


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, LINE_LEN_MAX)
    except OSError:  # a terminal that was closed
        return b""


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")
