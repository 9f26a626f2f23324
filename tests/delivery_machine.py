"""Delivery beside a model of what its readers were promised, with everything going wrong.

The machine publishes, acknowledges, refuses, disconnects, crashes, fails and damages the store,
and turns the clock; between two rules things go on as far as it likes. The model knows what each
reader was sent and has settled. At the end everything heals, and everything must be settled.
"""

import asyncio
from collections import Counter
from typing import Any

from delivery_stage import TOPIC, Stage
from fake_core import Subscription, split
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from imserver.delivery import Settings
from imserver.errors import ErrorCode, ImError
from imserver.model import Message
from imserver.protocol import REDELIVERED, decode_message
from imserver.timeline import DeadLetter

ATTEMPTS = 3

#: How far things go on after a rule: so many turns, or until they rest.
turns = st.sampled_from([0, 1, 2, 3, 5, None, None])
who = st.integers(0, 2)
which = st.integers(0, 1_000)


class Reader:
    """A subscriber: what it was sent, and what it may count on."""

    def __init__(self, user: str, tags: str, window: int) -> None:
        self.user, self.tags, self.window = user, tags, window
        self.start: int | None = None  # nothing was promised before the first subscription
        self.acked: set[int] = set()
        self.gone: set[int] = set()
        self.asides: set[int] = set()  # a NACK was answered, and nothing has ended it
        self.sub: Subscription | None = None
        self.read = 0  # of the inbox
        self.last = 0  # first deliveries of this connection have come so far
        self.times_sent: Counter[int] = Counter()

    def wants(self, message: Message) -> bool:
        return self.tags == "*" or message.tag in self.tags.split("||")


class DeliveryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.stage = Stage(Settings(attempts=ATTEMPTS, backoff_max_ms=20_000), seed)
        self.readers = [Reader("ann", "*", 3), Reader("bob", "a||b", 2), Reader("cid", "*", 40)]
        self.messages: dict[int, Message] = {}
        self.by_conn: dict[int, Reader] = {}
        self.unheard = b""  # committed, and the core does not know yet
        for who in range(len(self.readers)):
            self.subscribe(who, None)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def go_on(self, turns: int | None) -> None:
        if turns is None:
            self.run(self.stage.settle())
        for _ in range(turns or 0):
            self.run(self.stage.step())
        self.look()

    # Rules

    @rule(count=st.integers(1, 5), tag=st.sampled_from(["", "a", "b"]), turns=turns)
    def publish(self, count: int, tag: str, turns: int | None) -> None:
        self.hear()
        body = b"%d" % len(self.messages)
        self.unheard = self.run(self.stage.publish(count, tag, body))
        for message in map(decode_message, split(self.unheard)):
            self.messages[message.seq] = message
        if turns != 0:
            self.hear()
        self.go_on(turns)

    def hear(self) -> None:
        """The core hears of what was committed."""
        self.stage.commit(self.unheard)
        self.unheard = b""
        self.look()

    @rule(who=who, turns=turns)
    def subscribe(self, who: int, turns: int | None) -> None:
        """The same device again, also while the old connection is still there."""
        if self.stage.answers or self.stage.core.paused:
            self.go_on(None)  # a NACK of the old connection is known to the new one
        self.look()
        reader = self.readers[who]
        old = reader.sub
        try:
            sub = self.run(
                self.stage.subscribe(reader.user, window=reader.window, tags=reader.tags)
            )
        except ImError:
            return
        if old is not None:
            self.stage.core.end(old.conn)
        if reader.start is None:
            reader.start = sub.acked
        reader.sub, reader.read, reader.last = sub, 0, sub.acked
        self.by_conn[sub.conn] = reader
        # What is set aside keeps its attempts: as the row has it, which may be one ahead.
        rows = self.stage.timeline.letters(reader.user, "phone", is_taken=True)
        for seq, row in rows.items():
            if seq in reader.asides:
                assert 0 <= row.attempts - reader.times_sent[seq] <= 1
        reader.asides = set(rows)
        reader.times_sent = Counter({seq: row.attempts for seq, row in rows.items()})
        self.go_on(turns)

    @precondition(lambda self: any(reader.sub for reader in self.readers))
    @rule(which=which, turns=turns)
    def disconnect(self, which: int, turns: int | None) -> None:
        here = [reader for reader in self.readers if reader.sub]
        reader = here[which % len(here)]
        assert reader.sub
        self.stage.core.end(reader.sub.conn)
        reader.sub = None
        self.go_on(turns)

    def open_to(self, kind: str) -> list[tuple[Reader, Subscription, int]]:
        """Who may say what now: ACK up to a message, NACK of one, ACK of one set aside."""
        found = []
        for reader in self.readers:
            sub = reader.sub
            if sub is None or sub.number in self.stage.core.paused:
                continue
            for seq in sorted(reader.times_sent):
                is_aside = seq in reader.asides
                is_open = seq > sub.acked if kind == "ack" else seq > sub.acked or is_aside
                if kind == "exact":
                    is_open = is_aside and seq <= sub.acked and sub.is_forward
                if is_open and 0 < seq <= sub.sent and reader.times_sent[seq]:
                    found.append((reader, sub, seq))
        return found

    @precondition(lambda self: self.open_to("ack"))
    @rule(which=which, turns=turns)
    def ack(self, which: int, turns: int | None) -> None:
        found = self.open_to("ack")
        self.say_ack(*found[which % len(found)], turns)

    def say_ack(self, reader: Reader, sub: Subscription, seq: int, turns: int | None) -> None:
        self.stage.core.ack(sub.number, seq)
        reader.acked |= {one for one in reader.times_sent if one <= seq} - reader.asides
        self.go_on(turns)

    @precondition(lambda self: self.open_to("exact"))
    @rule(which=which, turns=turns)
    def ack_what_was_set_aside(self, which: int, turns: int | None) -> None:
        found = self.open_to("exact")
        _, sub, seq = found[which % len(found)]
        self.stage.core.ack(sub.number, seq)
        self.go_on(turns)

    @precondition(lambda self: self.open_to("nack"))
    @rule(which=which, turns=turns)
    def nack(self, which: int, turns: int | None) -> None:
        found = self.open_to("nack")
        _, sub, seq = found[which % len(found)]
        self.stage.core.nack(sub.number, seq)
        self.go_on(turns)

    @rule(who=who, seq=st.integers(1, 30), turns=turns)
    def say_something_old(self, who: int, seq: int, turns: int | None) -> None:
        """An ACK, or a NACK, of what was settled long ago."""
        sub = self.readers[who].sub
        if sub and sub.number not in self.stage.core.paused and seq <= sub.acked:
            if sub.is_forward and seq not in self.readers[who].asides:
                self.stage.core.ack(sub.number, seq)
            elif seq not in self.readers[who].asides:
                self.stage.core.nack(sub.number, seq)
            self.go_on(turns)

    @rule(seconds=st.sampled_from([0.25, 1, 5, 20]), turns=turns)
    def turn_the_clock(self, seconds: float, turns: int | None) -> None:
        self.run(self.stage.tick(seconds))
        self.go_on(turns)

    @rule(
        seconds=st.sampled_from([10, 60]),
        after=st.integers(0, 12),
        failures=st.sampled_from([0, 2, 100]),
    )
    def wait(self, seconds: float, after: int, failures: int) -> None:
        """For what time brings, while the store fails on the way."""
        self.fail(after, failures)
        self.run(self.stage.turn(seconds))
        self.look()
        self.nothing_is_lost()
        self.fail(0, 0)

    @precondition(lambda self: any(reader.sub for reader in self.readers))
    @rule(seconds=st.sampled_from([6, 20]))
    def be_silent(self, seconds: float) -> None:
        """All of them, for a while."""
        self.stage.core.silent = {reader.sub.conn for reader in self.readers if reader.sub}
        self.run(self.stage.turn(seconds))
        self.stage.core.silent.clear()
        self.look()

    @rule(who=who)
    def fall_silent_or_speak_again(self, who: int) -> None:
        if sub := self.readers[who].sub:
            self.stage.core.silent ^= {sub.conn}

    @rule(after=st.integers(0, 3), failures=st.integers(0, 3))
    def fail(self, after: int, failures: int) -> None:
        self.stage.timeline.fail_in, self.stage.timeline.failures = after, failures

    @precondition(lambda self: len(self.messages) > 3)
    @rule(which=which)
    def damage(self, which: int) -> None:
        self.stage.timeline.damaged.add(1 + which % len(self.messages))

    @precondition(lambda self: len(self.messages) > 10)
    @rule(back=st.integers(0, 10))
    def trim(self, back: int) -> None:
        self.run(self.stage.timeline.trim(TOPIC, len(self.messages) + 1 - back))

    @rule(are_back=st.booleans(), turns=turns)
    def crash(self, are_back: bool, turns: int | None) -> None:
        self.look()
        self.run(self.stage.crash())
        for reader in self.readers:
            reader.sub = None
        for who in range(len(self.readers) if are_back else 0):
            self.subscribe(who, turns)
        self.go_on(turns)

    def dead(self) -> list[DeadLetter]:
        return [one for one in self.stage.timeline._dead.values() if not one.is_taken]

    @precondition(lambda self: self.dead())
    @rule(which=which, turns=turns)
    def redrive(self, which: int, turns: int | None) -> None:
        self.look()
        dead = self.dead()
        letter = dead[which % len(dead)]
        try:
            assert self.run(self.stage.delivery.redrive([letter.id])) == 1
        except ImError:
            return
        reader = next(one for one in self.readers if one.user == letter.user)
        reader.asides.add(letter.seq)
        reader.times_sent[letter.seq] = 0
        self.go_on(turns)

    # What must hold

    def look(self) -> None:
        """Take note of what has come, and judge it."""
        for conn, _, first, last, _ in self.stage.gone:
            self.by_conn[conn].gone |= set(range(first, last + 1))
        self.stage.gone.clear()
        for reader in self.readers:
            dead = self.stage.timeline.letters(reader.user, "phone", is_taken=False)
            if reader.sub:
                for message in reader.sub.inbox[reader.read :]:
                    self.take(reader, message)
                reader.read = len(reader.sub.inbox)
            reader.asides -= dead.keys()
        for kind, number, seq, error in self.stage.answered:
            self.hear_answer(kind, number, seq, error)
        self.stage.answered.clear()

    def take(self, reader: Reader, message: Message) -> None:
        """In order, without holes, exactly counted, and never too often."""
        seq = message.seq
        assert message.body == self.messages[seq].body
        assert reader.wants(message)
        if message.flags & REDELIVERED:
            assert message.attempt == reader.times_sent[seq], (reader.user, seq)
        else:
            assert message.attempt == 0
            assert seq > reader.last
            for passed in range(reader.last + 1, seq):
                assert self.is_settled(reader, passed), f"{reader.user} was not sent {passed}"
            reader.last = seq
        reader.times_sent[seq] += 1
        assert reader.times_sent[seq] <= ATTEMPTS

    def hear_answer(self, kind: str, number: int, seq: int, error: ImError | None) -> None:
        reader = self.by_conn[number]  # the stage numbers both alike
        if error is not None:
            assert error.code in (ErrorCode.NOT_FOUND, ErrorCode.OVERLOADED)
        elif kind == "ack":
            reader.asides.discard(seq)
            reader.acked.add(seq)
        elif seq in self.stage.timeline.letters(reader.user, "phone", is_taken=True):
            reader.asides.add(seq)
            reader.acked.discard(seq)

    def is_settled(self, reader: Reader, seq: int) -> bool:
        rows = [
            row
            for is_taken in (True, False)
            for row in self.stage.timeline.letters(reader.user, "phone", is_taken=is_taken)
        ]
        return (
            seq in reader.acked
            or seq in reader.gone
            or seq in rows
            or not reader.wants(self.messages[seq])
        )

    @invariant()
    def nothing_is_lost(self) -> None:
        """The cursor passes what is settled and nothing else; what is dead, it has passed."""
        for reader in self.readers if hasattr(self, "stage") else ():
            if reader.start is None:
                continue
            timeline = self.stage.timeline
            cursor = timeline.stored(reader.user, "phone")
            for seq in range(reader.start + 1, cursor + 1):
                assert self.is_settled(reader, seq), f"{reader.user} has lost {seq}"
            dead = timeline.letters(reader.user, "phone", is_taken=False)
            assert all(seq <= cursor for seq in dead)
            kept = dead.keys() | timeline.letters(reader.user, "phone", is_taken=True).keys()
            acking = reader.sub is not None and reader.sub.number in self.stage.core.paused
            assert acking or reader.asides <= kept

    @invariant()
    def nothing_is_wrong_inside(self) -> None:
        if hasattr(self, "stage"):
            assert self.stage.delivery.mistakes == []
            assert self.stage.timeline.died_twice == []

    @invariant()
    def windows_are_kept(self) -> None:
        for reader in self.readers if hasattr(self, "stage") else ():
            if reader.sub:
                firsts = {m.seq for m in reader.sub.inbox if not m.flags & REDELIVERED}
                assert sum(seq > reader.sub.acked for seq in firsts) <= reader.window

    @invariant()
    def tables_are_bounded(self) -> None:
        if not hasattr(self, "stage"):
            return
        delivery = self.stage.delivery
        followers = delivery._followers.values()
        assert len(followers) <= 2 * len(self.readers)
        assert len(delivery._queue) <= len(self.by_conn)
        assert all(len(one.rounds) < ATTEMPTS for one in followers)
        assert len(delivery._cursors) <= len(self.readers)
        for schedule in (delivery._redelivery.deadlines, delivery._means.flights):
            assert len(schedule) <= len(followers)
            assert len(schedule._heap) <= 2 * len(schedule) + 65

    def teardown(self) -> None:
        try:
            if hasattr(self, "stage"):
                self.heal()
                self.run(self.stage.delivery.stop())
        finally:
            self.loop.close()

    def heal(self) -> None:
        """Everything works again and everybody acknowledges: all is settled in the end."""
        stage = self.stage
        stage.timeline.failures = 0
        stage.core.silent.clear()
        self.hear()
        self.go_on(None)
        for who, reader in enumerate(self.readers):
            if reader.sub is None:
                self.subscribe(who, None)
        for _ in range(60):
            for reader in self.readers:
                if (sub := reader.sub) and sub.number not in stage.core.paused:
                    while sub.acked < sub.sent:
                        self.say_ack(reader, sub, sub.sent, None)
                    mine = [seq for one, _, seq in self.open_to("exact") if one is reader]
                    for seq in mine:
                        stage.core.ack(sub.number, seq)
                        self.go_on(None)
            self.run(stage.turn(10))
            self.look()
            if not self.unsettled():
                break
        assert self.unsettled() == []
        for reader in self.readers:
            assert stage.timeline.stored(reader.user, "phone") == len(self.messages)
        self.nothing_is_lost()
        self.run(stage.turn(70))  # longer than any pause after a failure
        assert not stage.delivery._failing

    def unsettled(self) -> list[tuple[str, int]]:
        found = []
        for reader in self.readers:
            taken = self.stage.timeline.letters(reader.user, "phone", is_taken=True)
            cursor = self.stage.timeline.stored(reader.user, "phone")
            for seq in range((reader.start or 0) + 1, len(self.messages) + 1):
                if seq in taken or seq > cursor or not self.is_settled(reader, seq):
                    found.append((reader.user, seq))
        return found
