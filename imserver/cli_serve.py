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

import click

from imserver.cli_terminal import printable
from imserver.config import Config, Log, is_loopback

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
            raise CannotServe(_why_not(error, config.listen)) from error
        click.echo(greeting(config, _address_text(server.address), version, config_option))
        sys.stdout.flush()
        notify_systemd("READY=1")
        await stop.wait()
        notify_systemd("STOPPING=1")
        click.echo("leaving: telling clients to come back; once more to leave at once", err=True)
        try:
            async with asyncio.timeout(config.drain.timeout_ms / 1000 + DRAIN_GRACE_S):
                await server.drain()
        except TimeoutError:
            _log.warning("drain did not end in time")


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


def _why_not(error: Exception, listen: str) -> str:
    if not isinstance(error, OSError):
        return str(error)
    if error.errno == errno.EADDRINUSE:
        rule = "stop the process that has it, or choose another with --listen"
        return f"{listen} is in use: {rule}"
    return f"cannot listen on {listen}: {error.strerror or error}"


def _address_text(address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def greeting(config: Config, address: str, version: str, config_option: str = "") -> str:
    """What is running, and the next thing to type."""
    me = _program()
    where = "" if address == "127.0.0.1:7400" else f" --server {address}"
    threads = f"{config.threads} I/O thread{'' if config.threads == 1 else 's'}"
    room = f"room for {config.limits.max_connections} connections"
    lines = [f"imserver {version} listens on {address} ({threads}, {room})"]
    if config.dev:
        lines += [
            click.style("INSECURE (--dev): whoever reaches it can be any user.", fg="red"),
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
