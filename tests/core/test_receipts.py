"""The receipts of the last minutes beside a list (receipts.h: R1, R2)."""

from door import MACHINE, ffi, lib
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

#: Few homes in the table, so that chains grow and are closed again.
KEYS = st.integers(0, 40).map(lambda n: (n % 5, n))


class ReceiptsModel:
    def __init__(self, count_max: int, window_ms: int) -> None:
        self.count_max, self.window_ms = count_max, window_ms
        self.ring: list[tuple[tuple[int, int], int, int]] = []  # key, seq, clock

    def add(self, key: tuple[int, int], seq: int, clock: int) -> None:
        self.ring = [*self.ring, (key, seq, clock)][-self.count_max :]

    def expire(self, clock: int) -> None:
        while self.ring and self.ring[0][2] + self.window_ms < clock:
            del self.ring[0]

    def find(self, key: tuple[int, int]) -> int | None:
        return next((seq for other, seq, _ in reversed(self.ring) if other == key), None)


class ReceiptsMachine(RuleBasedStateMachine):
    Model = ReceiptsModel

    @initialize(count_max=st.integers(1, 24), window_ms=st.integers(0, 30))
    def start(self, count_max: int, window_ms: int) -> None:
        self.it = ffi.new("struct im_receipts *")
        assert lib.im_receipts_init(self.it, count_max, window_ms) == lib.IM_OK
        self.model = self.Model(count_max, window_ms)
        self.clock = self.seq = 0

    @rule(key=KEYS, later_ms=st.integers(0, 5))
    def add(self, key: tuple[int, int], later_ms: int) -> None:
        self.clock += later_ms
        self.seq += 1
        receipt = ffi.new(
            "struct im_receipt *", {"key": key, "seq": self.seq, "clock_ms": self.clock}
        )
        lib.im_receipt_add(self.it, receipt)
        self.model.add(key, self.seq, self.clock)

    @rule(later_ms=st.integers(0, 20))
    def expire(self, later_ms: int) -> None:
        self.clock += later_ms
        lib.im_receipts_expire(self.it, self.clock)
        self.model.expire(self.clock)

    @invariant()
    def finds_the_same(self) -> None:
        assert self.it.count == len(self.model.ring)
        for n in range(41):
            key = (n % 5, n)
            found = lib.im_receipt_find(self.it, ffi.new("struct im_receipt_key *", key)[0])
            assert (found.seq if found != ffi.NULL else None) == self.model.find(key)

    def teardown(self) -> None:
        if hasattr(self, "it"):
            lib.im_receipts_free(self.it)


TestReceipts = ReceiptsMachine.TestCase
TestReceipts.settings = settings(MACHINE)
