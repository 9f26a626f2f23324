"""`imserver doctor`: what this machine and this installation lack, before it matters.

Each finding is a line: in order, worth knowing, or in the way of serving. The core is tried with
the configured limits, since nothing else can tell whether it works here.

Not here: judging the configuration alone (`imserver config check`).
"""

import platform
import socket
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import click

from imserver.auth import Authenticator
from imserver.cli_serve import raise_file_limit
from imserver.config import (
    SPARE_DESCRIPTORS,
    Config,
    ConfigError,
    open_file_limit,
    split_address,
)
from imserver.config_sources import load

#: Below this many waiting handshakes, a crowd that reconnects at once is turned away by the
#: kernel, silently.
BACKLOG_MIN = 1_024


class Verdict(Enum):
    GOOD = "ok"
    NOTE = "note"
    BAD = "missing"


_COLOURS = {Verdict.GOOD: "green", Verdict.NOTE: "yellow", Verdict.BAD: "red"}


class Finding(NamedTuple):
    verdict: Verdict
    subject: str
    text: str


def report(findings: list[Finding], version: str) -> int:
    """Print the findings; the exit code: 1 when serving cannot work."""
    click.echo(f"imserver {version}, Python {platform.python_version()}")
    width = max(len(finding.subject) for finding in findings)
    for verdict, subject, text in findings:
        mark = click.style(f"{verdict.value:<8}", fg=_COLOURS[verdict])
        click.echo(f"{mark}{subject:<{width}}  {text}")
    bad = [finding.subject for finding in findings if finding.verdict is Verdict.BAD]
    click.echo(f"serving cannot work: {', '.join(bad)}" if bad else "serving can work")
    return 1 if bad else 0


def examine(
    path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> list[Finding]:
    """All findings, for the configuration from these sources (see config_sources.load)."""
    raise_file_limit()
    findings = [_kernel()]
    try:
        config = load(path, environ=environ, overrides=overrides)
        findings += [
            Finding(Verdict.GOOD, "configuration", "every setting is valid"),
            _keys(config),
        ]
    except ConfigError as error:
        findings.append(Finding(Verdict.BAD, "configuration", str(error)))
        config = Config()
    findings += [_core(config), _files(config), _address(config), _backlog()]
    findings += [
        _package("uvloop", "the event loop is asyncio's, two to four times slower"),
        _package("google.protobuf", "no Protobuf clients: pip install 'imserver[protobuf]'"),
        _package("redis", "only needed for more than one node"),
        _package("confluent_kafka", "only needed for more than one node"),
    ]
    return findings


def _kernel() -> Finding:
    text = f"{platform.system()} {platform.release()} {platform.machine()}"
    if sys.platform != "linux":
        return Finding(Verdict.BAD, "kernel", f"{text}: the core needs epoll, which is Linux's")
    return Finding(Verdict.GOOD, "kernel", text)


def _keys(config: Config) -> Finding:
    try:
        Authenticator(config.auth)
    except ConfigError as error:
        return Finding(Verdict.BAD, "keys", str(error))
    if config.auth.keys:
        return Finding(Verdict.GOOD, "keys", f"{len(config.auth.keys)} loaded")
    if config.dev:
        return Finding(Verdict.NOTE, "keys", "none, and --dev: whoever connects is believed")
    return Finding(Verdict.BAD, "keys", "none: serve needs one, or --dev to try things out")


def _core(config: Config) -> Finding:
    try:
        core = import_module("imserver._core")
    except ImportError as error:
        text = f"not compiled for this Python ({error}): pip install . or make build"
        return Finding(Verdict.BAD, "core", text)
    try:
        import_module("imserver.gateway_core").make_core(config).stop()
    except (ValueError, MemoryError, OSError) as error:  # of which ConfigError is one
        return Finding(Verdict.BAD, "core", f"does not start with these settings: {error}")
    memory = (config.threads or 1) * config.limits.pool_bytes // 2**20
    threads = f"{config.threads} I/O thread{'' if config.threads == 1 else 's'}"
    text = f"{Path(str(core.__file__)).name}, {threads}, up to {memory} MiB of messages"
    return Finding(Verdict.GOOD, "core", text)


def _files(config: Config) -> Finding:
    have, want = open_file_limit(), config.limits.max_connections + SPARE_DESCRIPTORS
    if have < want:
        text = f"{have}, and limits.max_connections asks for {want}: raise ulimit -n, LimitNOFILE"
        return Finding(Verdict.BAD, "open files", text)
    text = f"{have}, enough for {config.limits.max_connections} connections"
    return Finding(Verdict.GOOD, "open files", text)


def _address(config: Config) -> Finding:
    host, port = split_address(config.listen)
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            # Bound addresses conflict only when they listen.
            probe.listen(1)
    except OSError as error:
        text = f"{config.listen}: {error.strerror}; a server that runs already is one reason"
        return Finding(Verdict.NOTE, "address", text)
    return Finding(Verdict.GOOD, "address", f"{config.listen} is free")


def _backlog() -> Finding:
    try:
        most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return Finding(Verdict.NOTE, "backlog", "net.core.somaxconn cannot be read")
    if most < BACKLOG_MIN:
        text = f"net.core.somaxconn is {most}: below {BACKLOG_MIN}, crowds are turned away"
        return Finding(Verdict.NOTE, "backlog", text)
    return Finding(Verdict.GOOD, "backlog", f"net.core.somaxconn is {most}")


def _package(name: str, without: str, find: Callable[[str], Any] = import_module) -> Finding:
    subject = name.rpartition(".")[2]
    try:
        module = find(name)
    except ImportError:
        return Finding(Verdict.NOTE, subject, f"not installed: {without}")
    return Finding(Verdict.GOOD, subject, str(getattr(module, "__version__", "installed")))
