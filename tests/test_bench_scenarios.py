"""Every scenario runs through, tiny, against real servers: the floor, and imserver."""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from bench import process, scenarios
from bench.layouts import mostly_unheard, to_oneself
from bench.peers import data_directory
from bench.scenario import QUICK, Scenario, Settings, ours_set_to
from bench.scenarios import SCENARIOS, SERIES
from bench.scenarios_cost import Closed, among, closed_loop, stalled, with_topics
from bench.scenarios_durable import FLUSHES, probe, receipts_over_disk
from bench.scenarios_latency import LOADS, held_gil, under_load
from bench.scenarios_memory import idle
from bench.scenarios_storm import logins, subscriptions
from bench.scenarios_threads import two_threads
from imserver.load import Histogram
from imserver.load_process import Placement, placement

TINY = replace(QUICK, seconds=0.1, warm_up_s=0.05, scale=0.02)
BOTH = ("floor", "imserver")


@pytest.fixture
def where() -> Iterator[Placement]:
    """Whatever a scenario pins itself to ends with it."""
    before = os.sched_getaffinity(0)
    yield placement()
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize("peer", BOTH)
@pytest.mark.parametrize(
    "shape",
    [
        Closed("echo", to_oneself, connections=4, depth=2),
        Closed("echo", partial(to_oneself, body=bytes(16_384)), connections=4, depth=2),
        with_topics(30, connections=3, depth=1),
        with_topics(4_000, connections=2, depth=64),  # more than the server's bounds by default
        among(20, active=3),
        Closed("durable", to_oneself, connections=4, depth=2),
    ],
    ids=["to oneself", "large", "topics", "many topics", "among idle", "durable"],
)
def test_a_closed_loop_makes_a_sample(shape: Closed, peer: str, where: Placement) -> None:
    sample = closed_loop(shape, peer, TINY, where)
    assert sample.value > 0
    assert set(sample.details) >= {"server_busy", "generator_busy", "p50", "p90", "p99.9"}


def test_many_topics_are_all_published_to(where: Placement) -> None:
    """The warm-up has asked for each, so that none is asked for while it is measured."""
    shape = with_topics(500, connections=5, depth=1)
    assert (shape.first_messages, shape.ours["IMSERVER_LIMITS__RIGHTS"]) == (1_000, "101")


@pytest.mark.parametrize("peer", BOTH)
def test_a_login_storm_counts_the_logins(peer: str, where: Placement) -> None:
    sample = logins(peer, TINY, where)
    assert sample.value > 0
    assert sample.details["logins_per_s"] > 0


def test_a_subscribe_storm_counts_the_subscriptions(where: Placement) -> None:
    sample = subscriptions("imserver", TINY, where)
    assert sample.value > 0
    assert sample.details["subscriptions_per_s"] > 0


@pytest.mark.parametrize(("peer", "rooms"), [("floor", 0), ("imserver", 0), ("imserver", 10)])
def test_idle_memory_is_that_between_two_sizes(peer: str, rooms: int, where: Placement) -> None:
    sample = idle(rooms, peer, replace(TINY, scale=0.1), where)
    assert sample.details["connections"] == 1_800
    assert 0 < sample.value < 10_000
    assert sample.details["base_rss"] > 0


def test_readers_that_stall_are_no_loss(where: Placement) -> None:
    sample = stalled(20, 3, "imserver", replace(TINY, scale=1), where)
    assert sample.value > 0
    assert sample.details["stalled"] == 3
    assert 0 <= sample.details["stalled_closed"] <= 3


def test_two_threads_are_compared_with_one(where: Placement) -> None:
    shape = Closed("echo", mostly_unheard, connections=4, depth=2)
    sample = two_threads(shape, "imserver", TINY, where)
    assert sample.value > 0
    assert sample.details["possible"] > 0


@pytest.mark.parametrize("peer", BOTH)
def test_latency_is_taken_at_shares_of_the_capacity(peer: str, where: Placement) -> None:
    sample = under_load(peer, TINY, where)
    capacity = sample.details["capacity"]
    for load in LOADS:
        assert sample.details[f"{load}_rate"] == int(capacity * load / 100)
        assert sample.details[f"{load}_p50"] <= sample.details[f"{load}_max"]
    assert sample.value == sample.details["50_p99"]


@pytest.mark.parametrize("peer", BOTH)
def test_a_receipt_is_compared_with_a_flush_of_the_disk(peer: str, where: Placement) -> None:
    sample = receipts_over_disk(peer, TINY, where)
    assert sample.details["flush_p50"] > 0
    assert sample.value == (sample.details["p99"] - sample.details["flush_p99"]) / 1000


def test_the_probe_flushes_as_often_as_it_is_told() -> None:
    flushes = Histogram()
    with data_directory() as directory:
        before = process.flushes(directory)
        probe(flushes, 7)
        seen = process.flushes(directory) - before
    assert flushes.count == 7
    assert before == 0 or seen >= 7  # a file system in memory has no disk that would count
    assert FLUSHES >= 200  # p99 of fewer would be the slowest


def test_the_gil_is_held_in_every_second_window(where: Placement) -> None:
    sample = held_gil("imserver", TINY, where)
    assert sample.details["holds"] >= 2
    assert sample.value > 0


def test_settings_of_ours_end_with_the_scenario() -> None:
    before = dict(os.environ)
    with ours_set_to({"IMSERVER_THREADS": "2"}):
        assert os.environ["IMSERVER_THREADS"] == "2"
        with ours_set_to({"IMSERVER_THREADS": "3"}):
            assert os.environ["IMSERVER_THREADS"] == "3"
        assert os.environ["IMSERVER_THREADS"] == "2"
    assert dict(os.environ) == before


def test_rows_have_names_of_their_own_and_series_that_exist() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    series = {one.name for one in SERIES}
    assert len(set(names)) == len(names)
    assert {scenario.series for scenario in SCENARIOS} - {""} == series
    assert not series & set(names)


def test_what_has_a_target_against_others_is_run_with_others() -> None:
    def missing(scenario: Scenario) -> bool:
        needed = {"floor": "floor", "ahead": "imserver"}
        return any(needed.get(t.of, "imserver") not in scenario.peers for t in scenario.targets)

    assert [scenario.name for scenario in SCENARIOS if missing(scenario)] == []
    flat = {one.name for one in SERIES if one.flat is not None}
    assert [s.name for s in SCENARIOS if s.series in flat and "floor" not in s.peers] == []


def test_the_issue_has_a_row_for_each_of_its_targets() -> None:
    targets = {
        (one.name, f"{t.of} {t.peer}".rstrip()): t.limit for one in SCENARIOS for t in one.targets
    }
    assert targets == {
        ("ping-pong", "floor"): 1.15,
        ("web-ping-pong", "floor"): 1.15,
        ("web-pipelined", "ahead picows"): 2,
        ("web-fan-out", "ahead imserver-tcp"): 1 / 1.35,
        ("pipelined", "value"): 0.20,
        ("pipelined", "ahead"): 2.5,
        ("fan-out-1000", "floor"): 1.25,
        ("fan-out-1000", "ahead"): 1.6,
        ("durable", "value"): 1.6,
        ("durable", "ahead jetstream"): 1.3,
        ("durable", "ahead redis-streams"): 1,
        ("durable-latency", "value"): 10,
        ("idle-subscribed", "value"): 400,
        ("logins", "value"): 100,
        ("stalled", "value"): 1.02,
        ("held-gil", "value"): 2.0,
        ("threads", "more"): 1.0,
    }
    assert {one.name: one.flat for one in SERIES if one.flat} == {
        "topics": scenarios.FLAT,
        "connections": scenarios.FLAT,
        "among-idle": scenarios.FLAT,
    }
    assert Settings().auth == "jwt"
