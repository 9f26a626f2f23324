"""What clients saw, kept outside the server, and what it proves.

Every publish, receipt, delivery, ACK, NACK and error of a run goes into a History; the verdict comes
at its end, when everybody has had the time to receive what they were owed. Of each published message
it is known whether a receipt came; of each subscriber what was delivered, connection by connection.

    lost          has a receipt, and a subscriber of its topic never got it
    hole          a place of the topic that a subscriber got messages behind of, but never itself
    phantom       delivered, and never published so: another id, topic, sender or body
    misdelivered  delivered to somebody who did not ask for the topic
    reordered     on one connection a first delivery came behind a later place, or a publisher's
                  messages to a topic have other places than the order in which it sent them
    forked        one publish has two places, or one place two messages
    dropped       refused by a subscriber, and never delivered to it again
    accused       an error that only a client at fault deserves, and ours are not
    duplicate     delivered more than once to one subscriber: allowed, and counted
    forgotten     a duplicate of what the subscriber had acknowledged: what the last moments before
                  a kill, or acknowledgements on their way, may cost, and counted

Not here: the clients (torture_clients).
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from imserver.errors import ErrorCode
from imserver.protocol import REDELIVERED, Message, Receipt

#: What a server may answer whose disk fails, or that is asked for too much.
EXCUSED = {ErrorCode.TIMEOUT, ErrorCode.INTERNAL, ErrorCode.OVERLOADED, ErrorCode.NOT_DURABLE}


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
    forgotten: int = 0
    unknown: int = 0  # without a receipt, and delivered: allowed
    in_flight: int = 0  # publishes that waited for a receipt when the server was killed
    lost: list[str] = field(default_factory=list)
    holes: list[str] = field(default_factory=list)
    phantoms: list[str] = field(default_factory=list)
    misdelivered: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)
    forked: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    accused: list[str] = field(default_factory=list)

    @property
    def violations(self) -> dict[str, list[str]]:
        found = {
            "lost": self.lost,
            "hole": self.holes,
            "phantom": self.phantoms,
            "misdelivered": self.misdelivered,
            "reordered": self.reordered,
            "forked": self.forked,
            "dropped": self.dropped,
            "accused": self.accused,
        }
        return {name: cases for name, cases in found.items() if cases}

    def __str__(self) -> str:
        counts = (
            f"{self.published} published, {self.receipted} receipted, {self.delivered} delivered,"
            f" {self.duplicates} duplicates ({self.forgotten} of them acknowledged before),"
            f" {self.unknown} kept without a receipt, {self.in_flight} in flight when it was killed"
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
        #: What subscribers have not got: receipted messages, and what they refused. Asked for all
        #: the time.
        self.owed = 0
        self.acks = 0
        self.nacks = 0
        self.errors: Counter[tuple[int, str]] = Counter()
        self._forgotten = 0
        self._acked: Counter[tuple[str, str]] = Counter()  # (subscriber, topic): up to this place
        self._refused: set[tuple[str, str, int]] = set()  # subscriber, topic, place; not seen since
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
        refused = (subscriber, message.topic, message.seq)
        if refused in self._refused:
            self._refused.remove(refused)
            self.owed -= 1
        elif message.seq <= self._acked[subscriber, message.topic]:
            self._forgotten += 1

    def ack(self, subscriber: str, topic: str, seq: int) -> None:
        self.acks += 1
        self._acked[subscriber, topic] = max(seq, self._acked[subscriber, topic])

    def nack(self, subscriber: str, topic: str, seq: int) -> None:
        self.nacks += 1
        self.owed += (subscriber, topic, seq) not in self._refused
        self._refused.add((subscriber, topic, seq))

    def error(self, code: int, what: str) -> None:
        self.errors[code, what] += 1

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
        verdict.reordered += self._out_of_turn(seqs)
        verdict.dropped = [f"{topic} {seq} by {who}" for who, topic, seq in self._refused]
        verdict.accused = [f"{n} x {e}" for e, n in self.errors.items() if e[0] not in EXCUSED]
        verdict.forgotten = self._forgotten
        return verdict

    def _out_of_turn(self, seqs: dict[Publish, int]) -> list[str]:
        """Where the places of a publisher's messages go back."""
        found = []
        latest: Counter[tuple[str, str]] = Counter()
        for publish in sorted(seqs):
            topic, _ = self.published[publish]
            if seqs[publish] <= latest[publish.sender, topic]:
                found.append(f"{topic}: {publish} is {seqs[publish]}")
            latest[publish.sender, topic] = seqs[publish]
        return found

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
