"""Dead letters for people: listed, shown, sent once more, deleted.

Letters go to stdout, one a line; what is said about them to stderr.
"""

import json
from pathlib import Path
from typing import Any

import click

from imserver.cli_ask import run
from imserver.cli_terminal import notice, say, table, when
from imserver.control import Ask

#: Numbers in one request.
IDS_A_REQUEST = 100


def list_letters(directory: Path, topic: str, user: str, taken: bool, as_json: bool) -> None:
    """Letters without their messages."""

    async def work(ask: Ask) -> None:
        after: int | None = 0
        while after is not None:
            page = await ask("dlq.list", topic=topic, user=user, after=after, taken=taken)
            if as_json:
                for letter in page["letters"]:
                    say(json.dumps(letter))
            elif page["letters"]:
                table([_row(letter) for letter in page["letters"]])
            after = page["after"]
        counts = await ask("dlq.counts", taken=taken)
        told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
        notice(f"in the whole store: {told or 'none'}")

    run(directory, work)


def show(directory: Path, id: int, as_json: bool) -> None:
    """A letter and its message."""

    async def work(ask: Ask) -> None:
        letter = await ask("dlq.show", id=id)
        if as_json:
            say(json.dumps(letter))
            return
        message = letter["message"]
        for name, text in _row(letter).items():
            say(f"{name:<9} {text}")
        say(f"{'sender':<9} {message['sender']}/{message['id']}")
        say(f"{'tag':<9} {message['tag']}")
        say(f"{'body':<9} {message['body']}")

    run(directory, work)


def redrive(directory: Path, chosen: dict[str, Any]) -> None:
    """Send letters once more."""
    _all(directory, "dlq.redrive", chosen, "sent once more")


def purge(directory: Path, chosen: dict[str, Any]) -> None:
    """Delete letters."""
    _all(directory, "dlq.purge", chosen, "deleted")


def _all(directory: Path, method: str, chosen: dict[str, Any], done: str) -> None:
    """All that were chosen, a page at a time. Numbers that stand for nothing are a failure."""

    async def work(ask: Ask) -> None:
        count, ids = 0, chosen.get("ids", [])
        for at in range(0, len(ids), IDS_A_REQUEST):
            count += (await ask(method, ids=ids[at : at + IDS_A_REQUEST]))["count"]
        after: int | None = None if ids else 0
        while after is not None:
            page = await ask(method, **chosen, after=after)
            count, after = count + page["count"], page["after"]
        notice(f"{count:,} {done}")
        if count < len(set(ids)):
            text = "the others are no dead letters, or are being delivered once more"
            raise click.ClickException(text)

    run(directory, work)


def _row(letter: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": letter["id"],
        "topic": letter["topic"],
        "seq": letter["seq"],
        "device": f"{letter['user']}/{letter['device']}",
        "reason": letter["reason"],
        "attempts": letter["attempts"],
        "when": when(letter["time_ms"]),
        "state": "under way" if letter["is_taken"] else "dead",
    }
