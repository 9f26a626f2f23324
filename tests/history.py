"""What clients saw, kept outside the server, and what it proves.

Every publish, receipt and delivery of a run goes into a History; the verdict comes at its end, when
everybody has had the time to receive what they were owed. Of each published message it is known
whether a receipt came; of each subscriber what was delivered, connection by connection.

    lost          has a receipt, and a subscriber of its topic never got it
    hole          a place of the topic that a subscriber got messages behind of, but never itself
    phantom       delivered, and never published so: another id, topic, sender or body
    misdelivered  delivered to somebody who did not ask for the topic
    reordered     on one connection a first delivery came behind a later place
    forked        one publish has two places, or one place two messages
    duplicate     delivered more than once to one subscriber: allowed, and counted

Not here: the clients (torture_clients).
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from imserver.protocol import REDELIVERED, Message, Receipt


class Publish(NamedTuple):
    """What makes one message: who says it, and their number for it."""

    sender: str
    id: int


@dataclass
class Verdict:
    published: int = 0
    receipted: int = 0
    delivered: int = 0
    duplicates: int = 0
    unknown: int = 0  # without a receipt, and delivered: allowed
    in_flight: int = 0  # publishes that waited for a receipt when the server was killed
    lost: list[str] = field(default_factory=list)
    holes: list[str] = field(default_factory=list)
    phantoms: list[str] = field(default_factory=list)
    misdelivered: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)
    forked: list[str] = field(default_factory=list)

    @property
    def violations(self) -> dict[str, list[str]]:
        found = {
            "lost": self.lost,
            "hole": self.holes,
            "phantom": self.phantoms,
            "misdelivered": self.misdelivered,
            "reordered": self.reordered,
            "forked": self.forked,
        }
        return {name: cases for name, cases in found.items() if cases}

    def __str__(self) -> str:
        counts = (
            f"{self.published} published, {self.receipted} receipted, {self.delivered} delivered,"
            f" {self.duplicates} duplicates, {self.unknown} kept without a receipt, {self.in_flight} in flight when it was killed"
        )
        wrong = [f"{len(cases)} {name}: {cases[:5]}" for name, cases in self.violations.items()]
        return "; ".join([counts, *wrong])


class History:
    """`subscribers`: who reads which topics, from before the first publish."""

    def __init__(self, subscribers: dict[str, set[str]]) -> None:
        self.subscribers = subscribers
        self.published: dict[Publish, tuple[str, bytes]] = {}
        self.receipts: defaultdict[Publish, set[tuple[int, int]]] = defaultdict(set)
        #: subscriber -> (number of its connection, message), in order.
        self.deliveries: defaultdict[str, list[tuple[int, Message]]] = defaultdict(list)
        #: Receipted messages that some subscriber has not got; asked for all the time.
        self.owed = 0
        self._got: dict[str, set[Publish]] = {name: set() for name in subscribers}

    def publish(self, publish: Publish, topic: str, body: bytes) -> None:
        self.published[publish] = (topic, body)

    def receipt(self, publish: Publish, receipt: Receipt) -> None:
        topic, _ = self.published[publish]
        if publish not in self.receipts:
            self.owed += sum(
                topic in topics and publish not in self._got[name]
                for name, topics in self.subscribers.items()
            )
        self.receipts[publish].add((receipt.seq, receipt.time_ms))

    def delivery(self, subscriber: str, connection: int, message: Message) -> None:
        self.deliveries[subscriber].append((connection, message))
        publish, got = Publish(message.sender, message.id), self._got[subscriber]
        if publish not in got:
            got.add(publish)
            self.owed -= publish in self.receipts

    def verdict(self) -> Verdict:
        verdict = Verdict(len(self.published), len(self.receipts))
        places: dict[tuple[str, int], Publish] = {}  # of topics
        seqs: dict[Publish, int] = {}
        for publish, receipts in self.receipts.items():
            topic, _ = self.published[publish]
            if len(receipts) > 1:
                verdict.forked.append(f"{publish} has the receipts {receipts}")
            self._place(verdict, places, seqs, publish, topic, min(receipts)[0])
        for subscriber, deliveries in self.deliveries.items():
            self._judge(verdict, places, seqs, subscriber, deliveries)
        for subscriber, topics in self.subscribers.items():
            got = {Publish(one.sender, one.id) for _, one in self.deliveries[subscriber]}
            verdict.lost += [
                f"{publish} to {subscriber}"
                for publish in self.receipts
                if self.published[publish][0] in topics and publish not in got
            ]
        return verdict

    def _place(
        self,
        verdict: Verdict,
        places: dict[tuple[str, int], Publish],
        seqs: dict[Publish, int],
        publish: Publish,
        topic: str,
        seq: int,
    ) -> None:
        if places.setdefault((topic, seq), publish) != publish:
            verdict.forked.append(f"{topic} {seq}: {publish} and {places[topic, seq]}")
        if seqs.setdefault(publish, seq) != seq:
            verdict.forked.append(f"{publish} is {seqs[publish]} and {seq}")

    def _judge(
        self,
        verdict: Verdict,
        places: dict[tuple[str, int], Publish],
        seqs: dict[Publish, int],
        subscriber: str,
        deliveries: list[tuple[int, Message]],
    ) -> None:
        times: Counter[tuple[str, int]] = Counter()
        latest: dict[tuple[int, str], int] = {}
        for connection, message in deliveries:
            publish, topic = Publish(message.sender, message.id), message.topic
            where = f"{topic} {message.seq} to {subscriber}"
            if self.published.get(publish) != (topic, message.body):
                verdict.phantoms.append(where)
                continue
            if topic not in self.subscribers.get(subscriber, ()):
                verdict.misdelivered.append(where)
            self._place(verdict, places, seqs, publish, topic, message.seq)
            times[topic, message.seq] += 1
            if message.flags & REDELIVERED:
                continue
            if message.seq <= latest.get((connection, topic), 0):
                verdict.reordered.append(where)
            latest[connection, topic] = message.seq
        verdict.delivered += len(times)
        verdict.duplicates += sum(times.values()) - len(times)
        verdict.unknown += sum(places[place] not in self.receipts for place in times)
        for topic in self.subscribers.get(subscriber, ()):
            got = {seq for name, seq in times if name == topic}
            holes = set(range(1, max(got, default=0))) - got
            verdict.holes += [f"{topic} {seq} to {subscriber}" for seq in sorted(holes)]
