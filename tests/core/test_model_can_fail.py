"""Models that are wrong on purpose: the machines must find each of them.

A model test that cannot fail proves nothing. Each model below breaks one rule of its structure
in a way that a careless reader of the header might; the machine that runs beside the real
structure has to notice. None makes the machine misuse the structure, so nothing breaks on the way.
"""

import pytest
from door import MACHINE
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from test_batch import BatchMachine, BatchModel
from test_cursors import CursorsMachine, Reader
from test_outbox import OutboxMachine, OutboxModel
from test_pool import PoolMachine, PoolModel
from test_queue import QueueMachine, QueueModel
from test_receipts import ReceiptsMachine, ReceiptsModel
from test_rights import RightsMachine, RightsModel
from test_ring import RingMachine, RingModel
from test_topics import TopicsMachine, TopicsModel

#: The same search every time, and no time spent on a nicer counterexample.
SEARCH = settings(
    MACHINE, derandomize=True, database=None, phases=[Phase.generate], max_examples=300
)


class RingThatKeepsAByte(RingModel):
    """One byte always stays free, as in rings that cannot tell full from empty."""

    def can_take(self, wanted: int) -> bool:
        return self.size - len(self.unread) > wanted


class PoolOfCleanMemory(PoolModel):
    """Messages are zeroed, whatever is written into them."""

    def take(self, msg, data: bytes) -> None:
        super().take(msg, bytes(len(data)))


class QueueWithoutFiller(QueueModel):
    """Records wrap around the end in two pieces."""

    def push(self, record: tuple, length: int) -> int:
        status = super().push(record, length)
        if status == 0:
            record, size, filler = self.records.pop()
            self.tail -= filler
            self.records.append((record, size, 0))
        return status


class OutboxThatCutsEverything(OutboxModel):
    """Half a frame stays half a frame."""

    def cut(self) -> None:
        self.clear()


class TopicsThatForgetHeldOnes(TopicsModel):
    def leave(self, name: bytes, conn: int) -> None:
        super().leave(name, conn)
        if name not in self.members:
            self.holds.pop(name, None)


class RightsThatGrowYoung(RightsModel):
    """A right that is changed counts as new."""

    def set(self, conn: int, name: bytes, verdict: tuple[int, int]) -> None:
        self.kept[conn].pop(name, None)
        super().set(conn, name, verdict)


class ReceiptsThatFindTheOldest(ReceiptsModel):
    """Of two with one key the elder is found."""

    def find(self, key: tuple[int, int]) -> int | None:
        return next((seq for other, seq, _ in self.ring if other == key), None)


class BatchThatForgetsDevices(BatchModel):
    """A repeat is known by sender and id."""

    def publish(self, publish: tuple, frame: bytes, device: int, time_ms: int) -> tuple[int, bytes]:
        return super().publish(publish, frame, 0, time_ms)


class ReaderWithoutAcks(Reader):
    """What was sent stays open for ever."""

    def ack(self, seq: int) -> None:
        pass


@pytest.mark.parametrize(
    ("machine", "broken"),
    [
        (RingMachine, RingThatKeepsAByte),
        (PoolMachine, PoolOfCleanMemory),
        (QueueMachine, QueueWithoutFiller),
        (OutboxMachine, OutboxThatCutsEverything),
        (TopicsMachine, TopicsThatForgetHeldOnes),
        (RightsMachine, RightsThatGrowYoung),
        (ReceiptsMachine, ReceiptsThatFindTheOldest),
        (BatchMachine, BatchThatForgetsDevices),
        (CursorsMachine, ReaderWithoutAcks),
    ],
    ids=lambda value: value.__name__,
)
def test_the_machine_finds_the_broken_model(machine, broken) -> None:
    broken_machine = type(broken.__name__, (machine,), {"Model": broken})
    with pytest.raises(AssertionError):
        run_state_machine_as_test(broken_machine, settings=SEARCH)
