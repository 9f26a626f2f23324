"""Whether the store of a stopped server is whole, and making it smaller.

Both open the directory under its lock, so that neither can run beside a server. Figures go to
stdout, everything else to stderr.
"""

from pathlib import Path

from imserver.cli_ask import refusals
from imserver.cli_terminal import notice, say
from imserver.timeline_sqlite_check import check as examine
from imserver.timeline_sqlite_check import compact as shrink


def check(directory: Path) -> int:
    """Print a report; the exit code, 1 when something is wrong."""
    with refusals():
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
    with refusals():
        before, after = shrink(directory)
    notice(f"{before:,} bytes are {after:,} now")
