"""What is in the topics of a store, who belongs to them, and less of it.

Messages go to stdout, one a line; everything else to stderr.
"""

import json
from pathlib import Path
from typing import Any

from imserver.cli_ask import run
from imserver.cli_terminal import notice, say, table
from imserver.control import Ask

#: Messages asked for at a time.
PAGE = 256


def topics(directory: Path, as_json: bool) -> None:
    """All topics with what they keep."""

    async def work(ask: Ask) -> None:
        after: str | None = ""
        while after is not None:
            page = await ask("topic.list", after=after)
            for topic in page["topics"]:
                line = "{first} {head} {topic}".format(**topic)
                say(json.dumps(topic) if as_json else line)
            after = page["after"]

    run(directory, work)


def history(directory: Path, topic: str, after: int | None, count: int, as_json: bool) -> None:
    """Messages from `after` on, or the last ones."""

    async def work(ask: Ask) -> None:
        head = (await ask("topic.extent", topic=topic))["head"]
        at, left = max(0, head - count) if after is None else after, count
        while left > 0:
            page = await ask("topic.history", topic=topic, after=at, limit=min(left, PAGE))
            _print(page, topic, as_json)
            if page["after"] is None:
                return
            at, left = page["after"], left - len(page["messages"])

    run(directory, work)


def members(directory: Path, topic: str, as_json: bool) -> None:
    """Who belongs to a topic."""

    async def work(ask: Ask) -> None:
        after: str | None = ""
        found: list[dict[str, Any]] = []
        while after is not None:
            page = await ask("topic.members", topic=topic, after=after)
            found += page["members"]
            after = page["after"]
        if as_json:
            for member in found:
                say(json.dumps({"topic": topic, **member}))
        elif found:
            table(
                [{name.removesuffix("_seq"): member[name] for name in member} for member in found]
            )
        notice(f"{len(found):,} members")

    run(directory, work)


def trim(directory: Path, topic: str, before: int, keep: int) -> None:
    """Forget what stands before a seq, or all but the newest."""

    async def work(ask: Ask) -> None:
        done = await ask("topic.trim", topic=topic, before=before, keep=keep)
        first, head = done["first"], done["head"]
        kept = f"{first} to {head} are kept" if first <= head else "nothing is kept"
        notice(f"{done['forgotten']:,} messages forgotten; {kept}")

    run(directory, work)


def _print(page: dict[str, Any], topic: str, as_json: bool) -> None:
    gaps = list(page["gaps"])
    for message in page["messages"]:
        while gaps and gaps[0]["first"] < message["seq"]:
            _print_gap(topic, **gaps.pop(0))
        line = "{seq} {sender}: {body}".format(**message)
        say(json.dumps(message) if as_json else line)
    for gap in gaps:
        _print_gap(topic, **gap)


def _print_gap(topic: str, first: int, last: int, reason: str) -> None:
    notice(f"{topic} {first} to {last} cannot be read: {reason}")
