"""The command line: options in, one call out.

What a command does stands in `cli_serve`, `cli_chat`, `cli_bench` and `cli_doctor`; they are
imported by the command that needs them, so that `imserver token` in a shell loop does not load an
event loop. The commands over a store are in `cli_operator`.
Exit codes: 0 done, 1 failed, 2 wrong use, 78 bad configuration (EX_CONFIG of sysexits).

Not here: what settings mean (config), and the comparison with other servers (bench, run from the
repository).
"""

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import IO, Any, NoReturn

import click
import msgspec

from imserver import __version__
from imserver.cli_operator import dlq_group, store_group, topic_group, why
from imserver.cli_options import (
    BadConfig,
    client_options,
    config_option,
    read_config,
    serving_options,
)
from imserver.config import DEFAULT_DATA_DIR, MAKE_A_KEY, ConfigError, check_serve
from imserver.config_sources import to_toml
from imserver.errors import ImError


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a client's command. Ctrl-C is how people leave it, so it is no failure."""
    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        click.echo("", err=True)
    except (ImError, ValueError) as error:  # refused, or not to be put into a frame
        raise click.ClickException(str(error)) from None


def _login(user: str | None, token: str | None) -> dict[str, str]:
    if user and token:
        raise click.UsageError("--user and --token exclude each other: a token names its user")
    token = token or (None if user else os.environ.get("IMSERVER_TOKEN"))
    if user:
        return {"user": user}
    if token:
        return {"token": token}
    text = "who are you? --user NAME for a --dev server, else --token or IMSERVER_TOKEN"
    raise click.UsageError(text)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="imserver")
def main() -> None:
    """An instant-messaging server. Start with: imserver serve --dev"""


for command in (store_group, topic_group, dlq_group, why):
    main.add_command(command)


@main.command()
@serving_options
def serve(config_path: Path | None, **overrides: Any) -> None:
    """Run the server until SIGTERM or Ctrl-C, then drain; a second one ends it at once."""
    from imserver import cli_serve

    cli_serve.raise_file_limit()
    config = read_config(config_path, **overrides)
    if not config.data_dir:
        config = msgspec.structs.replace(config, data_dir=DEFAULT_DATA_DIR)
    try:
        check_serve(config)
        where = f" --config {config_path}" if config_path else ""
        cli_serve.serve(config, __version__, where)
    except ConfigError as error:
        raise BadConfig(str(error)) from None
    except cli_serve.CannotServe as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.argument("user")
@click.option("--publish", metavar="PATTERN", multiple=True, help='Topic, or "room:*".')
@click.option("--subscribe", metavar="PATTERN", multiple=True, help='Topic, or "room:*".')
@click.option("--ttl", "ttl_s", metavar="SECONDS", type=int, default=3600, show_default=True)
@click.option("--device", metavar="NAME", help="The only device the token is good for.")
@click.option("--kid", metavar="NAME", help="Key to sign with.  [default: the first]")
@click.option(
    "--private-key",
    type=click.File("rb"),
    help="PEM file to sign with, where the configuration only has the public key.",
)
@config_option
def token(
    config_path: Path | None, user: str, private_key: IO[bytes] | None, **claims: Any
) -> None:
    """Print a token for USER, signed with a key of the configuration."""
    from imserver.auth import issue

    config = read_config(config_path)
    if not config.auth.keys:
        raise BadConfig(f"auth.keys: no key to sign with; {MAKE_A_KEY}")
    signer = private_key.read() if private_key else None
    try:
        click.echo(issue(config.auth, user, private_key=signer, **claims))
    except ConfigError as error:
        raise BadConfig(str(error)) from None
    except ValueError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.argument("room")
@client_options
def chat(room: str, server: str, user: str | None, token: str | None) -> None:
    """Talk in ROOM: lines you type go to all others in it. Ctrl-D leaves."""
    from imserver import cli_chat

    run(cli_chat.chat(server, _login(user, token), room))


@main.command()
@click.argument("topic")
@click.argument("text")
@click.option("--tag", default="", help="What subscribers can filter by.")
@click.option("--durable", "is_durable", is_flag=True, help="Wait until it is on the disk.")
@client_options
def publish(
    topic: str,
    text: str,
    tag: str,
    is_durable: bool,
    server: str,
    user: str | None,
    token: str | None,
) -> None:
    """Publish TEXT to TOPIC, for example room:lobby."""
    from imserver import cli_chat

    run(cli_chat.publish(server, _login(user, token), topic, text, tag, is_durable))


@main.command()
@click.argument("topic")
@click.option("--tags", default="*", show_default=True, help='Only these: "a||b".')
@click.option("--count", type=click.IntRange(min=1), help="End after so many messages.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--durable", "is_durable", is_flag=True, help="Go on where this user has been.")
@click.option(
    "--after", metavar="SEQ", type=click.IntRange(min=0), help="What came behind it, too."
)
@client_options
def tail(
    topic: str,
    tags: str,
    count: int | None,
    as_json: bool,
    is_durable: bool,
    after: int | None,
    server: str,
    user: str | None,
    token: str | None,
) -> None:
    """Print the messages of TOPIC as they come. Ctrl-C ends."""
    from imserver import cli_chat

    reading = cli_chat.tail(
        server, _login(user, token), topic, tags, count, as_json, is_durable, after
    )
    run(reading)


@main.command()
@click.option("--seconds", type=click.FloatRange(0.1, 60), default=3.0, show_default=True)
@click.option("--threads", metavar="N", default="1", show_default=True, help="Of our own server.")
@click.option("--server", metavar="HOST:PORT", help="Measure this one instead of one of our own.")
@click.option("--user", metavar="NAME", help="Login without a token, to a --dev server.")
@click.option("--token", metavar="TOKEN", help="Login; better IMSERVER_TOKEN.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def bench(
    seconds: float,
    threads: str,
    server: str | None,
    user: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Measure throughput and latency on this machine, in about 15 seconds."""
    if server is None and (user or token):
        raise click.UsageError("--user and --token are for --server; our own takes anybody")
    try:
        from imserver import cli_bench

        login = _login(user, token) if server else {}
        cli_bench.bench(server, login, seconds, threads, as_json)
    except ImportError as error:
        raise click.ClickException(f"{error}: the load generator was not built") from None
    except cli_bench.CannotBench as error:
        raise click.ClickException(str(error)) from None


@main.group("config")
def config_group() -> None:
    """Look at the configuration."""


@config_group.command("check")
@serving_options
def config_check(config_path: Path | None, **overrides: Any) -> None:
    """Say whether `serve` with the same options would accept it."""
    from imserver.auth import Authenticator

    config = read_config(config_path, **overrides)
    try:
        check_serve(config)
        Authenticator(config.auth)
    except ConfigError as error:
        raise BadConfig(str(error)) from None
    click.echo("the configuration is good")


@config_group.command("show")
@serving_options
def config_show(config_path: Path | None, **overrides: Any) -> None:
    """Print every setting as it is in force, as TOML. Secrets are hidden."""
    click.echo(to_toml(read_config(config_path, **overrides)), nl=False)


@main.command()
@serving_options
def doctor(config_path: Path | None, **overrides: Any) -> NoReturn:
    """Say what this machine and this installation lack. Exit code 1 if serving cannot work."""
    from imserver import cli_doctor

    given = {key: value for key, value in overrides.items() if value is not None}
    sys.exit(cli_doctor.report(cli_doctor.examine(config_path, os.environ, given), __version__))
