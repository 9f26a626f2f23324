"""A process that keeps messages and says what it was told, for the tests that kill it.

    store_child.py DIRECTORY [hasty|reopen]

One line on stdout for every result that was handed out, written with one system call before
anything else happens: "receipt TOPIC SEQ BODY", "cursor SEQ", "trim TOPIC BEFORE". What was
written there has happened as far as anybody outside can know. "hasty" plants the bug that the
tests must find: results are handed out before the flush. "reopen" opens, recovers what there is
to recover, and closes.
"""

import asyncio
import os
import sys
from pathlib import Path

from imserver import timeline_sqlite_writer
from imserver.errors import ImError
from imserver.protocol import decode_message, encode_message
from imserver.timeline import Cursor, frame_starts
from imserver.timeline_sqlite import SqliteTimeline

ROUNDS = 4


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


class Hasty(timeline_sqlite_writer.Writer):
    """Answers first and flushes later."""

    def _write(self, jobs):
        results = super()._write(jobs)
        for result in results:
            tell(result)
        return results


def tell(appended: object) -> None:
    frames = getattr(appended, "frames", b"")
    for at in frame_starts(frames):
        one = decode_message(frames[at : at + 4 + int.from_bytes(frames[at : at + 4])])
        say(f"receipt {one.topic} {one.seq} {one.body[:8].decode()}")


async def main(directory: Path, rounds: int) -> None:
    timeline_sqlite_writer.CHECKPOINT_PAGES = 20  # checkpoints and new rounds of the log, often
    store = await SqliteTimeline.open(directory)
    say("open")
    try:
        for number in range(rounds):
            size = 9_000 if number % 4 == 3 else 20
            frames = [
                encode_message(f"room:{n % 3}", "ann", f"{number:03}-{n:04}".encode().ljust(size))
                for n in range(5)
            ]
            waiting = [store.append(frame) for frame in frames]
            for future in waiting:
                tell(await future)
            await store.put_cursors([Cursor("ann", "phone", "room:0", number)])
            say(f"cursor {number}")
            if number == 2:
                await store.trim("room:2", number)
                say(f"trim room:2 {number}")
        await store.close()
        say("closed")
    except ImError as error:
        say(f"refused {error.code}")
        for attempt in (store.put_cursors([]), store.room()):
            try:
                await attempt
                say("works again")  # which a store that has failed must never
            except ImError:
                pass
        await store.close()


if __name__ == "__main__":
    if sys.argv[2:] == ["hasty"]:
        from imserver import timeline_sqlite

        timeline_sqlite.Writer = Hasty
    asyncio.run(main(Path(sys.argv[1]), 0 if sys.argv[2:] == ["reopen"] else ROUNDS))
