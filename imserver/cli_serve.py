"""`imserver serve`: what a process needs around a Server, and an embedding program has already.

Signals, logging, uvloop, the limit of open files, systemd, and a first line that tells what to
do next. Logs go to stderr; stdout has what is for people.

Not here: starting and stopping the parts (server), and the checks of the configuration (config).
"""

import asyncio
import errno
import json
import logging
import os
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imserver.cli_terminal import printable
from imserver.config import Config, Log, is_loopback

if TYPE_CHECKING:
    from imserver.server import Server

#: More descriptors than this serve nobody, and some kernels refuse.
FILES_MAX = 1_048_576

#: What draining may take beyond its own time-out before we stop waiting for it.
DRAIN_GRACE_S = 5.0

_log = logging.getLogger("imserver")


class CannotServe(Exception):
    """Why the server could not start, in one line."""


def serve(config: Config, version: str, config_option: str = "") -> None:
    """Run until a signal, then drain. ConfigError for keys that cannot be used, CannotServe
    when the system refuses. `config_option` is what other commands need to find the keys."""
    configure_logging(config.log)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(config, version, config_option))


async def _serve(config: Config, version: str, config_option: str) -> None:
    try:
        from imserver.server import Server
        from imserver.server_listener import address_text
        from imserver.timeline import StoreError
    except ImportError as error:
        raise CannotServe(f"{error}; `imserver doctor` says what is missing") from error
    stop = _stop_on_signals()
    server = Server(config)
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(server)
        except StoreError as error:
            raise CannotServe(str(error)) from error
        except (OSError, MemoryError, ValueError) as error:
            raise CannotServe(_why_not(error, config)) from error
        http = address_text(server.http_address) if server.http_address else ""
        click.echo(greeting(config, address_text(server.address), version, config_option, http))
        sys.stdout.flush()
        notify_systemd("READY=1")
        await _told_to_stop(stop, server)
        notify_systemd("STOPPING=1")
        click.echo("leaving: telling clients to come back; once more to leave at once", err=True)
        try:
            async with asyncio.timeout(config.drain.timeout_ms / 1000 + DRAIN_GRACE_S):
                await server.drain()
        except TimeoutError:
            _log.warning("drain did not end in time")


async def _told_to_stop(stop: asyncio.Event, server: "Server") -> None:
    """By a signal, or by an operator who has drained it over HTTP."""
    waiting = {asyncio.create_task(stop.wait()), asyncio.create_task(server.drained())}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()


def _stop_on_signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT. The second has the system's own effect, which no
    state of ours can delay."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def on_signal() -> None:
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    return stop


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _why_not(error: Exception, config: Config) -> str:
    if not isinstance(error, OSError):
        return str(error)
    address = error.filename or config.listen
    if error.errno == errno.EADDRINUSE:
        option = "--http" if address == config.http else "--listen"
        rule = f"stop the process that has it, or choose another with {option}"
        return f"{address} is in use: {rule}"
    return f"cannot listen on {address}: {error.strerror or error}"


def greeting(
    config: Config, address: str, version: str, config_option: str = "", http: str = ""
) -> str:
    """What is running, and the next thing to type."""
    me = _program()
    where = "" if address == "127.0.0.1:7400" else f" --server {address}"
    threads = f"{config.threads} I/O thread{'' if config.threads == 1 else 's'}"
    room = f"room for {config.limits.max_connections} connections"
    lines = [f"imserver {version} listens on {address} ({threads}, {room})"]
    if config.dev:
        lines.append(click.style("INSECURE (--dev): whoever reaches it can be any user.", fg="red"))
        if http:
            lines += [
                "Chat in two windows of a browser:",
                f"    http://{http}/chat",
                f"and watch the server at http://{http}/",
            ]
        lines += [
            "Let two people talk, each in a terminal of their own:",
            f"    {me} chat lobby --user ann{where}",
            f"    {me} chat lobby --user bob{where}",
        ]
    else:
        rights = f"--publish 'room:*' --subscribe 'room:*'{config_option}"
        lines += [
            "Make a token and talk:",
            f"    export IMSERVER_TOKEN=$({me} token ann {rights})",
            f"    {me} chat lobby{where}",
        ]
        if http:
            lines.append(f"The console is at http://{http}/ and asks for a key (api.keys).")
        if not is_loopback(config.listen):
            warning = "There is no TLS: tokens and messages can be read on their way."
            lines.append(click.style(warning, fg="yellow"))
    return "\n".join([*lines, "Ctrl-C stops it."])


def _program() -> str:
    """How this very program can be started again from where the user stands."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return f"{sys.executable} -m imserver"
    found = shutil.which(started.name)
    if found and started.exists() and Path(found).samefile(started):
        return started.name
    return str(started)


def raise_file_limit() -> None:
    """As many open files as the system lets us have: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def notify_systemd(state: str) -> None:
    """Tell a service manager of Type=notify; nothing without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # A leading "@" stands for the zero byte of an abstract address.
            sender.sendto(state.encode(), address.replace("@", "\0", 1))
    except OSError as error:
        _log.warning("cannot notify systemd: %s", error)


def configure_logging(log: Log) -> None:
    """Our own lines at the configured level, other libraries' from warnings on, to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log.format == "json" else TextLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("imserver").setLevel(log.level.upper())


class TextLines(logging.Formatter):
    """A line for people. What clients chose (names, topics) cannot break it or colour it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


class JsonLines(logging.Formatter):
    """One JSON object a line, for collectors."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
