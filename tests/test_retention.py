"""What namespaces say of keeping, applied to a store."""

from imserver.config import Namespace
from imserver.protocol import encode_message
from imserver.retention import Retention
from imserver.routing import Routing
from imserver.timeline import Clock
from imserver.timeline_memory import MemoryTimeline

DAY_S = 86_400.0


class Turned:
    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


async def test_each_topic_keeps_what_its_namespace_says() -> None:
    clock = Turned()
    timeline = MemoryTimeline(Clock(steady_s=clock))
    namespaces = (
        Namespace(prefix="few", durable="always", keep_messages=2),
        Namespace(prefix="fresh", durable="always", keep_days=3),
        Namespace(prefix="all", durable="always"),
    )
    topics = [f"{prefix}:{number}" for prefix in ("all", "few", "fresh") for number in range(60)]
    for _ in range(3):
        for topic in [*topics, "gone:1"]:
            await timeline.append(encode_message(topic, "ann", b"x"))
        clock.now_s += 2 * DAY_S

    retention = Retention(timeline, Routing(namespaces))
    assert await retention.sweep() == retention.forgotten == 60 + 60 * 2
    kept = {
        extent.topic: extent.head - extent.first + 1 for extent in await timeline.topics("", 999)
    }
    assert all(kept[f"all:{number}"] == 3 for number in range(60))
    assert all(kept[f"few:{number}"] == 2 for number in range(60))
    assert all(kept[f"fresh:{number}"] == 1 for number in range(60))
    assert kept["gone:1"] == 3, "no namespace, no opinion"
    assert await retention.sweep() == 0
