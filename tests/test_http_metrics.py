"""/metrics: what Prometheus reads, under names that are written down, with numbers that are true."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import RunningServer
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from site_of import Site

from imserver.errors import ErrorCode
from imserver.http_metrics import COUNTERS, GAUGES
from imserver.measures import Histogram
from imserver.protocol import FrameType

ROOT = Path(__file__).parent.parent


@pytest.fixture
def running(start_server: Callable[..., RunningServer], tmp_path: Path) -> RunningServer:
    return start_server(http="127.0.0.1:0", data_dir=str(tmp_path / "data"))


def scrape(site: Site) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples by name, then by the values of their labels."""
    answer = site.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_every_number_of_the_server_has_its_metric(running: RunningServer) -> None:
    told = [name for family in (*COUNTERS, *GAUGES) for name in family.members]
    assert len(set(told)) == len(told)
    since_use = {"delivery_dead_unacknowledged", "delivery_dead_nack", "delivery_feeds",
                 "delivery_gone", "delivery_nacks", "delivery_redeliveries", "delivery_refusals"}  # fmt: skip
    assert set(told) == set(running.stats()) | since_use


def test_every_metric_is_documented_and_every_documented_one_exists(
    running: RunningServer,
) -> None:
    text = (ROOT / "docs/operations.md").read_text().split("\n## Metrics\n")[1]
    text = text.split("\n## ")[0]
    documented = set(re.findall(r"`(imserver_\w+)(?:\{\w+\})?`", text))
    Site(running).get("/livez")  # so that there is an answer to count
    found = {re.sub(r"_(bucket|sum|count)$", "", name) for name in scrape(Site(running))}
    labelled = {
        "imserver_refusals_total",
        "imserver_dead_letters_kept",
    }  # none as long as all is well
    assert {name for name in found if name.startswith("imserver_")} | labelled == documented


def test_labels_are_documented(running: RunningServer) -> None:
    text = (ROOT / "docs/operations.md").read_text()
    for family in COUNTERS:
        if family.label:
            assert f"`{family.name}_total{{{family.label}}}`" in text
    for family in GAUGES:
        if family.label:
            assert f"`{family.name}{{{family.label}}}`" in text


def test_numbers_follow_what_happens(running: RunningServer) -> None:
    site = Site(running)
    before = scrape(site)
    bob = running.user("bob")
    bob.subscribe("room:m")
    site.post("/v1/publish", {"topic": "room:m", "body": 1, "durable": True})
    bob.expect(FrameType.MESSAGE)
    after = scrape(site)
    assert after["imserver_connections"][()] == before["imserver_connections"][()] + 1
    assert after["imserver_sessions"][()] == 1
    assert after["imserver_receipts_total"][()] == before["imserver_receipts_total"][()] + 1
    assert after["imserver_deliveries_total"][()] > before["imserver_deliveries_total"][()]
    assert after["imserver_connections_in_state"][("active",)] == 1
    assert sum(after["imserver_connections_in_state"].values()) == after["imserver_connections"][()]
    name = "imserver_connection_transitions_total"
    assert after[name][("active",)] == before[name][("active",)] + 1
    assert after["imserver_http_answers_total"][("200",)] >= 2
    assert after["imserver_ready"][()] == 1
    assert after["imserver_event_queue"][()] == 0
    assert after["process_resident_memory_bytes"][()] > 0


def test_commits_and_the_lateness_of_the_loop_are_timed(running: RunningServer) -> None:
    site = Site(running)
    site.post("/v1/publish", {"topic": "room:m", "body": 1, "durable": True})
    found = scrape(site)
    assert found["imserver_commit_seconds_count"][()] >= 1
    assert found["imserver_commit_seconds_sum"][()] > 0
    assert found["imserver_commit_seconds_bucket"][("+Inf",)] >= 1
    deadline = time.monotonic() + 20
    while not scrape(site)["imserver_loop_lag_seconds_count"][()]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_errors_told_to_clients_are_counted_by_their_numbers(
    start_server: Callable[..., RunningServer],
) -> None:
    from imserver.errors import ImError
    from imserver.server import Server

    def prepare(server: Server) -> None:
        @server.on_call("refuse")
        async def refuse(session: object, params: object) -> object:
            raise ImError(1234, "no")

    running = start_server(prepare, http="127.0.0.1:0")
    site = Site(running)
    bob = running.user("bob")
    from imserver.protocol import Call, Subscribe, encode_frame

    bob.send(encode_frame(FrameType.SUBSCRIBE, Subscribe(topic=""), 1, 3))
    bob.expect(FrameType.ERROR)
    bob.send(encode_frame(FrameType.CALL, Call("refuse"), 1, 4))
    bob.expect(FrameType.ERROR)
    counts = scrape(site)["imserver_refusals_total"]
    assert counts == {("0",): 1, (str(int(ErrorCode.BAD_BODY)),): 1}


def test_no_label_has_the_name_of_a_user_or_a_topic(running: RunningServer) -> None:
    site = Site(running)
    running.user("secretive").subscribe("room:secretive")
    site.get("/v1/topics/room:secretive/presence")
    assert b"secretive" not in site.get("/metrics").body


def test_the_registry_of_the_program_is_left_alone(running: RunningServer) -> None:
    scrape(Site(running))
    assert not [metric for metric in REGISTRY.collect() if metric.name.startswith("imserver")]


def test_a_histogram_counts_by_upper_bound() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.0, 0.1, 0.5, 1.0, 2.0):
        histogram.add(seconds)
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum_s == pytest.approx(3.6)
