"""The server itself over HTTP: which it is, how it is set up, how it does, and its leaving."""

import asyncio
import logging
import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from imserver.config_sources import to_builtins
from imserver.http_route import ApiRoute, Body
from imserver.http_served import Served
from imserver.measures import Histogram

_log = logging.getLogger("imserver.http")


class Version(msgspec.Struct):
    """Of the program, and the name of this server among others."""

    version: str
    node: str


class Timing(msgspec.Struct):
    """How often something took up to each of `bounds_ms`, and longer than the one before; the last
    of `counts` is for what took longer than all."""

    bounds_ms: list[float]
    counts: list[int]
    sum_ms: float


class Stats(msgspec.Struct):
    """`counts` are the counters and gauges of docs/operations.md by name, `refusals` the errors
    told to clients by their numbers. All but gauges only grow since the server started, at
    `since_ms`: a rate is the difference between two answers over that of their `time_ms`."""

    time_ms: int
    since_ms: int
    node: str
    version: str
    unready: str
    counts: dict[str, int]
    refusals: dict[str, int]
    commits: Timing
    loop_lag: Timing


class Drain(Body):
    """How long those who are here may take to leave; null: as the setting says."""

    timeout_ms: Annotated[int, Meta(ge=0, le=86_400_000)] | None = None


class Leaving(msgspec.Struct):
    status: str = "leaving"


class OperatorRoutes:
    """For one server."""

    def __init__(self, server: Served, version: str) -> None:
        self._server = server
        self._version = version
        self._since_ms = int(time.time() * 1000)
        self._draining: asyncio.Task[None] | None = None

    @property
    def routes(self) -> list[ApiRoute]:
        return [
            ApiRoute("GET", "/v1/version", None, self.version),
            ApiRoute("GET", "/v1/stats", "monitor", self.stats),
            ApiRoute("GET", "/v1/config", "operate", self.config),
            ApiRoute("POST", "/v1/drain", "operate", self.drain, status=202),
        ]

    async def version(self) -> Version:
        """What answers here."""
        return Version(self._version, self._server.config.node)

    async def stats(self) -> Stats:
        """Counters and gauges."""
        server, measures = self._server, self._server.measures
        return Stats(
            time_ms=int(time.time() * 1000),
            since_ms=self._since_ms,
            node=server.config.node,
            version=self._version,
            unready=server.unready,
            counts=server.stats(),
            refusals={str(code): count for code, count in measures.refusals.items()},
            commits=_timing(measures.commits),
            loop_lag=_timing(measures.loop_lag),
        )

    async def config(self) -> dict[str, Any]:
        """Every setting in force; secrets are "***"."""
        return to_builtins(self._server.config)

    async def drain(self, body: Drain) -> Leaving:
        """Leave without hurting anybody, as on SIGTERM.

        Clients are asked to come back later, and readiness turns false. `imserver serve` ends when
        they have gone. Once more changes nothing."""
        if self._draining is None:
            seconds = None if body.timeout_ms is None else body.timeout_ms / 1000
            self._draining = asyncio.create_task(self._server.drain(seconds))
            self._draining.add_done_callback(_on_drained)
        return Leaving()


def _timing(histogram: Histogram) -> Timing:
    bounds_ms = [bound * 1000 for bound in histogram.bounds_s]
    return Timing(bounds_ms, list(histogram.counts), histogram.sum_s * 1000)


def _on_drained(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()):
        _log.error("draining failed", exc_info=error)
