"""The commands of an operator, over the store of a server: options in, one call out.

Those of `topic`, `dlq` and `why` ask the server where one runs, and open the store themselves
where none does (cli_ask). `store` is for a server that was stopped.
"""

import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from imserver.cli_options import F, store_options

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


@click.group("store")
def store_group() -> None:
    """Look after the store of a stopped server."""


@store_group.command("check")
@store_options
def store_check(directory: Path) -> NoReturn:
    """Read everything and say what is damaged. Changes nothing; exit code 1 if something is."""
    from imserver import cli_store

    sys.exit(cli_store.check(directory))


@store_group.command("compact")
@store_options
def store_compact(directory: Path) -> None:
    """Give the space of forgotten messages back to the disk."""
    from imserver import cli_store

    cli_store.compact(directory)


@click.group("topic")
def topic_group() -> None:
    """Look into topics."""


@topic_group.command("list")
@json_option
@store_options
def topic_list(directory: Path, as_json: bool) -> None:
    """Print all topics, and the first and last seq that each keeps."""
    from imserver import cli_topic

    cli_topic.topics(directory, as_json)


@topic_group.command("history")
@click.argument("topic")
@click.option("--after", metavar="SEQ", type=click.IntRange(min=0), help="Start behind this one.")
@click.option("--count", type=click.IntRange(min=1), default=50, show_default=True)
@json_option
@store_options
def topic_history(
    directory: Path, topic: str, after: int | None, count: int, as_json: bool
) -> None:
    """Print messages of TOPIC: the last ones, or those behind a seq."""
    from imserver import cli_topic

    cli_topic.history(directory, topic, after, count, as_json)


@topic_group.command("members")
@click.argument("topic")
@json_option
@store_options
def topic_members(directory: Path, topic: str, as_json: bool) -> None:
    """Print the members of TOPIC, since when, and what they have read."""
    from imserver import cli_topic

    cli_topic.members(directory, topic, as_json)


@topic_group.command("trim")
@click.argument("topic")
@click.option("--before", metavar="SEQ", type=click.IntRange(min=1), help="Forget all before it.")
@click.option("--keep", metavar="N", type=click.IntRange(min=1), help="Forget all but the newest.")
@store_options
def topic_trim(directory: Path, topic: str, before: int | None, keep: int | None) -> None:
    """Forget the oldest messages of TOPIC, for good."""
    from imserver import cli_topic

    if (before is None) == (keep is None):
        raise click.UsageError("give --before or --keep, one of them")
    cli_topic.trim(directory, topic, before or 0, keep or 0)


@click.group("dlq")
def dlq_group() -> None:
    """Dead letters: messages that a subscriber did not take in all attempts."""


def letters_options(command: F) -> F:
    """Which letters: by their numbers, or by what they have in common."""
    for option in (
        click.option("--all", "every", is_flag=True, help="All there are."),
        click.option("--user", metavar="USER", default="", help="Those of this user."),
        click.option("--topic", metavar="TOPIC", default="", help="Those of this topic."),
        click.argument("ids", metavar="[ID]...", nargs=-1, type=click.IntRange(min=1)),
    ):
        command = option(command)
    return command


def _chosen(ids: tuple[int, ...], topic: str, user: str, every: bool) -> dict[str, Any]:
    if bool(ids) + bool(topic or user) + every != 1:
        raise click.UsageError("give numbers, or --topic and --user, or --all, one of them")
    return {"ids": list(ids)} if ids else {"topic": topic, "user": user}


@dlq_group.command("list")
@click.option("--topic", metavar="TOPIC", default="", help="Those of this topic.")
@click.option("--user", metavar="USER", default="", help="Those of this user.")
@click.option("--taken", is_flag=True, help="Also what is being delivered once more.")
@json_option
@store_options
def dlq_list(directory: Path, topic: str, user: str, taken: bool, as_json: bool) -> None:
    """Print dead letters, oldest first, and how many there are of each reason."""
    from imserver import cli_dlq

    cli_dlq.list_letters(directory, topic, user, taken, as_json)


@dlq_group.command("show")
@click.argument("id", type=click.IntRange(min=1))
@json_option
@store_options
def dlq_show(directory: Path, id: int, as_json: bool) -> None:
    """Print one letter with its message."""
    from imserver import cli_dlq

    cli_dlq.show(directory, id, as_json)


@dlq_group.command("redrive")
@letters_options
@store_options
def dlq_redrive(directory: Path, **chosen: Any) -> None:
    """Deliver letters once more, all attempts anew; to a device that is away, when it is back."""
    from imserver import cli_dlq

    cli_dlq.redrive(directory, _chosen(**chosen))


@dlq_group.command("purge")
@letters_options
@store_options
def dlq_purge(directory: Path, **chosen: Any) -> None:
    """Delete letters, for good."""
    from imserver import cli_dlq

    cli_dlq.purge(directory, _chosen(**chosen))


@click.command("why")
@click.argument("topic")
@click.argument("message", metavar="SEQ|SENDER/ID")
@click.option("--user", metavar="USER", default="", help="Only devices of this user.")
@json_option
@store_options
def why(directory: Path, topic: str, message: str, user: str, as_json: bool) -> NoReturn:
    """Say what became of a message, device by device. Exit code 1 if it was not accepted."""
    from imserver import cli_why

    sys.exit(cli_why.why(directory, topic, message, user, as_json))
