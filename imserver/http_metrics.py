"""/metrics: what the server counts, in the words of Prometheus.

The counting is done elsewhere, in C where it is often; a scrape reads it. Names are API: they and
their labels never change their meaning, and docs/operations.md has all of them. No label has a
user's or a topic's name in it, so there is a bounded number of series.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from imserver.http_route import ApiRoute
from imserver.http_served import Served
from imserver.measures import Histogram

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

#: How long the store may take to count dead letters; then they are left out.
COUNT_S: Final = 2.0

_log = logging.getLogger("imserver.http")


class Family(NamedTuple):
    """Several numbers under one name, told apart by the values of a label; or just one."""

    name: str
    help: str
    label: str
    members: Mapping[str, str]  # name in Server.stats() -> value of the label


def _one(name: str, help: str, stat: str) -> Family:
    return Family(name, help, "", {stat: ""})


STATES: Final = ("handshake", "authenticating", "active", "draining", "closing", "closed")

COUNTERS: Final = (
    _one("imserver_connections_accepted", "Connections taken.", "accepted"),
    _one("imserver_connections_refused", "Connections turned away.", "accept_refused"),
    Family(
        "imserver_connection_transitions",
        "Connections that entered each state.",
        "state",
        {f"to_{state}": state for state in STATES},
    ),
    Family(
        "imserver_heartbeats",
        "Heartbeats missed, suspects heard again, suspects given up.",
        "event",
        {"suspects": "missed", "revivals": "revived", "deaths": "dead"},
    ),
    _one("imserver_slow_readers", "Connections closed since they did not read.", "slow_readers"),
    _one("imserver_protocol_errors", "Connections closed for what they sent.", "protocol_errors"),
    _one("imserver_upgrades", "Connections that became WebSocket.", "upgrades"),
    Family(
        "imserver_compressed",
        "Messages of WebSocket that came, and were sent, compressed.",
        "direction",
        {"inflated": "in", "deflated": "out"},
    ),
    _one("imserver_deflate_saved_bytes", "Bytes not sent thanks to that.", "deflate_saved_bytes"),
    Family(
        "imserver_bytes",
        "Bytes received and sent.",
        "direction",
        {"bytes_in": "in", "bytes_out": "out"},
    ),
    Family(
        "imserver_syscalls",
        "System calls that read and wrote.",
        "direction",
        {"receives": "in", "sends": "out"},
    ),
    _one("imserver_turns", "Times that an I/O thread woke up.", "turns"),
    _one("imserver_frames", "Frames received.", "frames_in"),
    _one("imserver_messages", "Messages published.", "messages_in"),
    _one("imserver_deliveries", "Messages put before readers (fan-out).", "deliveries"),
    _one("imserver_refused_frames", "Frames answered with an error.", "refusals"),
    _one("imserver_asks", "Messages that waited for a verdict of Python.", "asks"),
    _one("imserver_events", "Records from the core to Python.", "events"),
    _one("imserver_commands", "Records from Python to the core.", "commands"),
    _one("imserver_relays", "Messages handed to another I/O thread.", "relays"),
    Family(
        "imserver_waits",
        "Times that a connection waited since Python or the disk was behind.",
        "for",
        {"event_waits": "python", "store_waits": "store"},
    ),
    _one("imserver_journalled", "Messages given to the store.", "journalled"),
    _one("imserver_receipts", "Messages that the store has kept.", "receipts"),
    _one("imserver_unkept", "Messages that the store has refused.", "unkept"),
    _one("imserver_acks", "Acknowledgements of durable subscriptions.", "acks"),
    _one("imserver_nacks", "Messages set aside by a NACK.", "delivery_nacks"),
    _one("imserver_fed", "Messages sent from the store.", "fed"),
    _one("imserver_redelivered", "Messages sent once more.", "redelivered"),
    Family(
        "imserver_redeliveries",
        "Redeliveries that were due: sent, or not since the peer was silent or does not read.",
        "outcome",
        {"delivery_redeliveries": "sent", "delivery_refusals": "held"},
    ),
    _one("imserver_feeds", "Pages of the store read for subscriptions behind.", "delivery_feeds"),
    _one("imserver_gone", "Messages that a subscription could not be given.", "delivery_gone"),
    Family(
        "imserver_dead_letters",
        "Messages that became dead letters.",
        "reason",
        {"delivery_dead_unacknowledged": "unacknowledged", "delivery_dead_nack": "nack"},
    ),
    _one("imserver_forgotten", "Messages too old or too many for their namespace.", "forgotten"),
    _one("imserver_pool_refusals", "Messages refused for want of memory.", "pool_refusals"),
)

GAUGES: Final = (
    _one("imserver_connections", "Open connections.", "connections"),
    Family(
        "imserver_connections_in_state",
        "Open connections by state.",
        "state",
        {f"in_{state}": state for state in STATES if state != "closed"},
    ),
    _one("imserver_sessions", "Logged-in connections.", "sessions"),
    _one("imserver_users", "Different users among them.", "users"),
    _one("imserver_subscriptions", "Subscriptions of all connections.", "subscriptions"),
    _one("imserver_topics", "Topics that somebody reads.", "topics"),
    _one("imserver_cursors", "Durable subscriptions.", "cursors"),
    _one("imserver_rights", "Verdicts remembered.", "rights"),
    _one("imserver_event_queue", "Events that Python has not taken yet.", "event_queue"),
    _one("imserver_journal_bytes", "Memory of messages that wait for the disk.", "journal_bytes"),
    _one("imserver_pool_messages", "Messages and buffers in memory.", "messages"),
    _one("imserver_pool_spare_bytes", "Message memory that is free.", "pool_spare_bytes"),
    Family(
        "imserver_hooks",
        "What is in the hands of hooks.",
        "kind",
        {"hook_tasks": "tasks", "hook_messages": "messages"},
    ),
)


class Metrics(Collector):
    """The registry of one server; never Prometheus's global one, which is the program's."""

    def __init__(self, server: Served, version: str) -> None:
        self._server = server
        self._version = version
        self._dead: Mapping[str, int] = {}
        self.answers: dict[int, int] = {}  # of HTTP by status
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    @property
    def routes(self) -> list[ApiRoute]:
        return [ApiRoute("GET", "/metrics", "monitor", self.metrics, media_type=MEDIA_TYPE)]

    def count(self, status: int) -> None:
        """An answer of the HTTP side."""
        self.answers[status] = self.answers.get(status, 0) + 1

    async def metrics(self) -> bytes:
        """Everything that the server counts, for Prometheus."""
        self._dead = await self._dead_letters()
        return generate_latest(self._registry)

    async def _dead_letters(self) -> Mapping[str, int]:
        if self._server.operations is None:
            return {}
        try:
            async with asyncio.timeout(COUNT_S):
                return await self._server.operations.dead_counts()
        except Exception as error:  # of a store that has failed, which has a metric of its own
            _log.debug("dead letters are not counted: %r", error)
            return {}

    def describe(self) -> list[Metric]:
        return []  # without asking a server that may not run yet

    def collect(self) -> Iterator[Metric]:
        server = self._server
        stats, measures = server.stats(), server.measures
        info = GaugeMetricFamily("imserver_info", "This server.", labels=["version", "node"])
        info.add_metric([self._version, server.config.node], 1)
        yield info
        yield GaugeMetricFamily("imserver_ready", "Whether /readyz says so.", not server.unready)
        for family in COUNTERS:
            yield _filled(family, stats, CounterMetricFamily)
        for family in GAUGES:
            yield _filled(family, stats, GaugeMetricFamily)
        kept = GaugeMetricFamily(
            "imserver_dead_letters_kept", "Dead letters there are.", labels=["reason"]
        )
        for reason, count in self._dead.items():
            kept.add_metric([reason], count)
        yield kept
        yield _coded("imserver_refusals", "Errors told to clients.", "code", measures.refusals)
        yield _coded("imserver_http_answers", "Answers over HTTP.", "status", self.answers)
        yield _timed("imserver_commit_seconds", "Commits, from BEGIN to flushed.", measures.commits)
        yield _timed("imserver_loop_lag_seconds", "Lateness of the event loop.", measures.loop_lag)


def _filled(
    family: Family,
    stats: Mapping[str, int],
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
) -> Metric:
    told = kind(family.name, family.help, labels=[family.label] if family.label else [])
    for stat, value in family.members.items():
        told.add_metric([value] if family.label else [], stats.get(stat, 0))
    return told


def _coded(name: str, help: str, label: str, counts: Mapping[int, int]) -> Metric:
    told = CounterMetricFamily(name, help, labels=[label])
    for code, count in sorted(counts.items()):
        told.add_metric([str(code)], count)
    return told


def _timed(name: str, help: str, histogram: Histogram) -> Metric:
    below = 0
    buckets = []
    for bound, count in zip((*histogram.bounds_s, "+Inf"), histogram.counts, strict=True):
        below += count
        buckets.append((str(bound), below))
    return HistogramMetricFamily(name, help, buckets=buckets, sum_value=histogram.sum_s)
