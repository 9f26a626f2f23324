"""Who hears whom: the connections of a scenario, added to a generator that is not yet open."""

from collections.abc import Iterator
from typing import Final

from bench.peers import Adapter
from imserver.load import Generator, Step

#: The body of a message where nothing else is said: 64 bytes, the last 8 of which become the stamp.
BODY: Final = bytes(range(64))
ROOM: Final = 10  # members of a room in `rooms`
UNHEARD: Final = 16  # messages of which one is heard


def own_topic(number: int) -> str:
    return f"room:bench-{number}"


def to_oneself(load: Generator, adapter: Adapter, connections: int, body: bytes = BODY) -> None:
    """Each connection publishes to a room of its own and hears it."""
    for number in range(connections):
        topic = own_topic(number)
        script = (*adapter.login(number), *adapter.subscribe(topic))
        load.add(load.group(1), frames=[adapter.publish(number, topic, body)], script=script)


def one_to_all(load: Generator, adapter: Adapter, connections: int, body: bytes = BODY) -> None:
    """One publishes, all others hear it."""
    topic = "room:bench"
    room = load.group(connections)
    load.add(room, frames=[adapter.publish(0, topic, body)], script=adapter.login(0))
    for number in range(1, connections + 1):
        load.add(room, script=(*adapter.login(number), *adapter.subscribe(topic)))


def with_stalled(
    load: Generator, adapter: Adapter, listeners: int, stalled: int
) -> dict[str, list[bytes]]:
    """One publishes, and the same listeners hear two rooms; in one of these are others that never
    read. The frames to the one without them, "clear", and to that with them, "stalled"."""
    topics = {"clear": own_topic(1), "stalled": own_topic(2)}
    frames = {kind: [adapter.publish(0, topic, BODY)] for kind, topic in topics.items()}
    room = load.group(listeners)
    load.add(room, frames=frames["clear"], script=adapter.login(0))
    for number in range(1, listeners + stalled + 1):
        is_mute = number > listeners
        script = adapter.login(number)
        for topic in ([] if is_mute else [topics["clear"]]) + [topics["stalled"]]:
            script += adapter.subscribe(topic)
        load.add(room, script=script, is_mute=is_mute)
    return frames


def rooms(load: Generator, adapter: Adapter, connections: int, body: bytes = BODY) -> None:
    """Rooms of ten: in each of them everybody publishes in turn, and everybody hears it."""
    group = 0
    for number in range(connections):
        if number % ROOM == 0:
            group = load.group(min(ROOM, connections - number))
        topic = own_topic(number // ROOM)
        script = (*adapter.login(number), *adapter.subscribe(topic))
        load.add(group, frames=[adapter.publish(number, topic, body)], script=script)


def share_of_topics(
    load: Generator, adapter: Adapter, connections: int, topics: int, body: bytes = BODY
) -> None:
    """Each connection hears its share of the topics, and publishes to them in turn. Their names
    have one length, so that the frames have."""
    for number in range(connections):
        names = [f"room:topic-{topic:06}" for topic in range(number, topics, connections)]
        frames = [adapter.publish(number, name, body) for name in names]
        load.add(load.group(1), frames=frames, script=_reading(adapter, number, names))


def _reading(adapter: Adapter, number: int, topics: list[str]) -> Iterator[Step]:
    yield from adapter.login(number)
    for topic in topics:
        yield from adapter.subscribe(topic)


def mostly_unheard(load: Generator, adapter: Adapter, connections: int) -> None:
    """Of sixteen messages that a connection publishes, itself hears one and nobody the others,
    which are short: to the generator the sixteen are one message, so that it has little to do
    and the server much. Each has a topic of its own, else a run of them would be little, too."""
    for number in range(connections):
        topic = own_topic(number)
        others = [f"room:{number}-{other:x}" for other in range(UNHEARD - 1)]
        frame = b"".join(adapter.publish(number, other, bytes(8)) for other in others)
        frame += adapter.publish(number, topic, BODY)
        script = (*adapter.login(number), *adapter.subscribe(topic))
        load.add(load.group(1), frames=[frame], script=script)


def onlookers(load: Generator, adapter: Adapter, first: int, last: int, rooms: int = 0) -> None:
    """Connections that log in and are silent; with `rooms` each hears one of so many."""
    for number in range(first, last):
        script = adapter.login(number)
        if rooms:
            script += adapter.subscribe(own_topic(number % rooms))
        load.add(load.group(1), script=script)
