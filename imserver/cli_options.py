"""Options that several commands have, and the configuration they come from."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import click

from imserver.config import DEFAULT_DATA_DIR, DEFAULT_HTTP, Config, ConfigError
from imserver.config_sources import load

EX_CONFIG = 78

F = TypeVar("F", bound=Callable[..., Any])


class BadConfig(click.ClickException):
    """The configuration cannot be used; the message names the setting and the rule."""

    exit_code = EX_CONFIG

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"bad configuration: {self.message}", file=file or sys.stderr)


def read_config(path: Path | None, **overrides: Any) -> Config:
    """File, environment, command line. Options that were not given are None and do nothing."""
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        defaults = {"http": DEFAULT_HTTP}
        return load(path, environ=os.environ, overrides=given, defaults=defaults)
    except ConfigError as error:
        raise BadConfig(str(error)) from None


config_option = click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="IMSERVER_CONFIG",
    help="TOML file with settings; also IMSERVER_CONFIG.",
)


def serving_options(command: F) -> F:
    """The settings that `serve` takes as options, and whoever asks what serve would do."""
    for option in (
        click.option("--dev", is_flag=True, default=None, help="Insecure: for trying out."),
        click.option("--threads", metavar="N", help="I/O threads; 0: in the event loop."),
        click.option("--data", "data_dir", metavar="DIR", help="Directory for what survives."),
        click.option("--http", metavar="HOST:PORT", help='Address of the HTTP API; "": none.'),
        click.option("--listen", metavar="HOST:PORT", help="Address for clients."),
        config_option,
    ):
        command = option(command)
    return command


def client_options(command: F) -> F:
    """Where the server is and who we are."""
    for option in (
        click.option(
            "--token", metavar="TOKEN", help="Login; better IMSERVER_TOKEN, which ps(1) hides."
        ),
        click.option("--user", metavar="NAME", help="Login without a token, to a --dev server."),
        click.option(
            "--server",
            metavar="HOST:PORT",
            envvar="IMSERVER_SERVER",
            default="127.0.0.1:7400",
            show_default=True,
            help="Also IMSERVER_SERVER.",
        ),
    ):
        command = option(command)
    return command


def store_options(command: F) -> F:
    """Whose store it is, as the `directory` of the command."""

    @wraps(command)
    def of_directory(config_path: Path | None, data_dir: str | None, **given: Any) -> Any:
        found = read_config(config_path, data_dir=data_dir).data_dir or DEFAULT_DATA_DIR
        return command(directory=Path(found), **given)

    data = click.option("--data", "data_dir", metavar="DIR", help="The server's data directory.")
    return cast(F, config_option(data(of_directory)))
