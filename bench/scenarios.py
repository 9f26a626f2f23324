"""What is measured: one row of the report each, with its targets and the peers it is run with.

How a row is measured is in the scenarios_*.py beside this file."""

from dataclasses import replace
from functools import partial
from typing import Final, Literal

from bench.layouts import mostly_unheard, one_to_all, rooms, to_oneself
from bench.peers import PEERS, STORES
from bench.scenario import Scenario, Series, Target
from bench.scenarios_cost import Closed, among, closed_loop, stalled, with_topics
from bench.scenarios_durable import receipts_over_disk
from bench.scenarios_latency import held_gil, under_load
from bench.scenarios_memory import idle
from bench.scenarios_storm import logins, subscriptions
from bench.scenarios_threads import two_threads

FLAT: Final = 0.15
_QUICK: Final = (10, 16, 1_000, 4_096)  # rows of series that a quick run takes

SERIES: Final = (
    Series("fan-out", "fan-out, µs a delivery", "subscribers"),
    Series("payload", "pipelined to oneself, 50 connections, depth 8, µs a message", "bytes"),
    Series("topics", "ping-pong over topics, 10 connections, µs a message", "topics", FLAT),
    Series("topics-pipelined", "the same pipelined, depth 64, µs a message", "topics"),
    Series("connections", "ping-pong of all connections, µs a message", "connections", FLAT),
    Series(
        "among-idle", "ping-pong of 100 connections among idle ones, µs a message",
        "connections in all", FLAT,
    ),
)  # fmt: skip


_ALL = tuple(name for name in PEERS if name not in (*STORES, "imserver-tcp"))
_OURS = ("imserver",)
_WITH_ROOMS = tuple(name for name in _ALL if name != "floor")
_WEB = ("imserver", "imserver-tcp", "picows", "websockets")
_STRONGEST = ("floor", "imserver", "nats", "redis")

PING_PONG: Final = Closed("echo", to_oneself, connections=100, depth=1)
PIPELINED: Final = Closed("echo", to_oneself, connections=50, depth=64)
FAN_OUT: Final = Closed("fanout", one_to_all, connections=1_000, depth=32, burst=32)
#: Ours remembers the last million publishes, to know repeats: with all of them it is slower.
DURABLE: Final = Closed("durable", to_oneself, connections=50, depth=64, first_messages=1_100_000)

_CASES = (
    Scenario(
        "ping-pong", "ping-pong, 100 connections, depth 1", "µs",
        _ALL, partial(closed_loop, PING_PONG),
        (Target(1.15, "floor"),), repeats=5, quick="all",
    ),
    Scenario(
        "pipelined", "pipelined to oneself, 50 connections, depth 64", "µs",
        _ALL, partial(closed_loop, PIPELINED),
        (Target(0.20), Target(2.5, "ahead")), repeats=5, quick="all",
    ),
    Scenario(
        "fan-out-1000", "fan-out 1 to 1,000, bursts of 32", "µs",
        _ALL, partial(closed_loop, FAN_OUT),
        (Target(1.25, "floor"), Target(1.6, "ahead")), repeats=5, quick="all",
        series="fan-out", x=1_000,
    ),
    Scenario(
        "web-ping-pong", "ping-pong over WebSocket, 100 connections, depth 1", "µs",
        ("floor", *_WEB), partial(closed_loop, replace(PING_PONG, task="web")),
        (Target(1.15, "floor"),), repeats=5, quick="all",
    ),
    Scenario(
        "web-pipelined", "pipelined to oneself over WebSocket, 50 connections, depth 64", "µs",
        _WEB, partial(closed_loop, replace(PIPELINED, task="web")),
        (Target(2, "ahead", "picows"),), repeats=5, quick="all",
    ),
    Scenario(
        "web-fan-out", "fan-out over WebSocket, 1 to 1,000, bursts of 32", "µs",
        _WEB, partial(closed_loop, replace(FAN_OUT, task="web-fanout")),
        (Target(1 / 1.35, "ahead", "imserver-tcp"),), repeats=5, quick="all",
    ),
    Scenario(
        "rooms", "100 rooms of 10, everybody publishes in turn", "µs",
        _WITH_ROOMS, partial(closed_loop, Closed("fanout", rooms, connections=1_000, depth=1)),
    ),
    Scenario(
        "durable", "durable publish, receipt awaited, 50 connections, depth 64", "µs",
        ("floor", "imserver", "redis-streams", "jetstream"), partial(closed_loop, DURABLE),
        (Target(1.6), Target(1.3, "ahead", "jetstream"), Target(1, "ahead", "redis-streams")),
        repeats=5, about_s=5, quick="all",
    ),
    Scenario(
        "durable-unflushed", "the same beside Redis that flushes once a second", "µs",
        ("imserver", "redis-unflushed"), partial(closed_loop, DURABLE),
        repeats=5, about_s=5, quick="all",
    ),
    Scenario(
        "durable-latency", "p99 of a receipt at 1,000 a second, less p99 of a flush", "ms",
        ("floor", "imserver"), receipts_over_disk, (Target(10),), repeats=5, about_s=8,
    ),
    Scenario(
        "idle", "an idle connection, logged in", "bytes",
        _ALL, partial(idle, 0), repeats=2, about_s=6.5,
    ),
    Scenario(
        "idle-subscribed", "an idle connection with one subscription", "bytes",
        _WITH_ROOMS, partial(idle, 100), (Target(400),), repeats=2, about_s=6.5,
    ),
    Scenario(
        "logins", "connect and log in, 5,000 connections, 128 under way", "µs",
        _ALL, logins, (Target(100),), about_s=0.6,
    ),
    Scenario(
        "subscriptions", "subscribe, 200 connections to 50 topics each", "µs",
        _WITH_ROOMS, subscriptions, about_s=0.4,
    ),
    Scenario(
        "stalled", "cost to 990 readers with 10 beside them that never read, over without", "times",
        ("imserver", "nats", "redis", "go"), partial(stalled, 990, 10), (Target(1.02),),
        repeats=5, about_s=4.5,
    ),
    Scenario(
        "held-gil", "p99.9 while other code holds the GIL, over p99.9 undisturbed", "times",
        _OURS, held_gil, (Target(2.0),), about_s=14,
    ),
    Scenario(
        "threads", "throughput with two I/O threads, over one", "times",
        _OURS, partial(two_threads, Closed("echo", mostly_unheard, connections=50, depth=32)),
        (Target(1.0, "more"),), about_s=4.5,
    ),
    Scenario(
        "latency", "p99 at half of the capacity, 100 connections", "µs",
        _ALL, under_load, repeats=2, about_s=8.5, view="latency",
    ),
)  # fmt: skip


def _rows() -> list[Scenario]:
    """The series: rows that differ in one number."""
    made: list[Scenario] = []

    def row(series: str, x: int, shape: Closed, peers: tuple[str, ...], about_s: float) -> None:
        title = f"{next(one.title for one in SERIES if one.name == series)}: {x:,}"
        measure = partial(closed_loop, shape)
        quick: Literal["ours", ""] = "ours" if x in _QUICK else ""
        made.append(
            Scenario(
                f"{series}-{x}", title, "µs", peers, measure, repeats=3, about_s=about_s,
                series=series, x=x, view="series", quick=quick,
            )
        )  # fmt: skip

    for x in (10, 100, 10_000):
        shape = Closed("fanout", one_to_all, connections=x, depth=32, burst=32)
        row("fan-out", x, shape, _STRONGEST, 2.5 + x / 2_500)
    for x in (16, 64, 256, 1_024, 4_096, 16_384):
        shape = Closed("echo", partial(to_oneself, body=bytes(x)), connections=50, depth=8)
        row("payload", x, shape, _STRONGEST, 2.5)
    for x in (10, 100, 1_000, 10_000, 100_000):
        peers, about_s = ("floor", "imserver", "nats"), 2.5 + x / 15_000
        row("topics", x, with_topics(x, connections=10, depth=1), peers, about_s)
        row("topics-pipelined", x, with_topics(x, connections=10, depth=64), peers, about_s)
    for x in (100, 1_000, 5_000, 10_000, 19_000):
        peers = ("floor", "imserver", "nats")
        shape = Closed("echo", to_oneself, connections=x, depth=1)
        row("connections", x, shape, peers, 2.5 + x / 4_000)
        row("among-idle", x, among(x - 100, active=100), peers, 2.5 + x / 4_000)
    return made


SCENARIOS: Final = (*_CASES, *_rows())
