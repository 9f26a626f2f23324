"""Everybody at once: what a login and a subscription cost the server's CPU."""

from bench.layouts import onlookers
from bench.peers import PEERS
from bench.scenario import Sample, Settings, Watch
from imserver.load import Generator
from imserver.load_process import Placement

LOGINS = 5_000
LISTENERS, TOPICS_EACH = 200, 50
_FIRST = 16  # logins before it, which load what a process loads once
_BUSY = 0.95


def logins(peer: str, settings: Settings, where: Placement) -> Sample:
    """Microseconds of server CPU from accept to the end of the login, 128 at a time."""
    count = int(LOGINS * settings.scale)
    with (
        PEERS[peer].start("echo", settings.auth, where) as server,
        Generator(server.adapter.wire, _FIRST) as first,
        Generator(server.adapter.wire, count) as load,
    ):
        onlookers(first, server.adapter, 0, _FIRST)
        first.open(server.address)
        onlookers(load, server.adapter, _FIRST, _FIRST + count)
        watch = Watch(server, where)
        opening = load.open(server.address)
        watch.stop(opening.wall_s)
        load.check(load.run(0))
    details = {
        "logins_per_s": count / opening.wall_s,
        "logins_per_cpu_s": count * 1e9 / max(watch.cpu_ns, 1),
        "generator_busy": opening.busy,
        **watch.details(),
    }
    return Sample(watch.cpu_ns / 1000 / count, details, watch.remarks(opening.busy > _BUSY))


def subscriptions(peer: str, settings: Settings, where: Placement) -> Sample:
    """Microseconds of server CPU a subscription: each of 200 connections subscribes to 50 topics,
    one after the other, all connections at once. A topic is heard by four of them."""
    listeners = max(4, int(LISTENERS * settings.scale))
    topics = listeners * TOPICS_EACH // 4
    with (
        PEERS[peer].start("echo", settings.auth, where) as server,
        Generator(server.adapter.wire, listeners) as load,
    ):
        onlookers(load, server.adapter, 0, listeners, rooms=1)
        load.open(server.address)
        for number in range(listeners):
            for index in range(TOPICS_EACH):
                topic = (number * TOPICS_EACH + index) % topics
                load.extend(number, server.adapter.subscribe(f"room:storm-{topic}"))
        watch = Watch(server, where)
        opening = load.open(server.address)
        watch.stop(opening.wall_s)
        load.check(load.run(0))
    count = listeners * TOPICS_EACH
    details = {
        "subscriptions_per_s": count / opening.wall_s,
        "generator_busy": opening.busy,
        **watch.details(),
    }
    return Sample(watch.cpu_ns / 1000 / count, details, watch.remarks(opening.busy > _BUSY))
