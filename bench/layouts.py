"""Who hears whom: the connections of a scenario, added to a generator that is not yet open."""

from collections.abc import Iterator
from typing import Final

from bench.adapters import Adapter
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
    audience(load, adapter, "room:bench", connections, 0, body=body)


def audience(
    load: Generator,
    adapter: Adapter,
    topic: str,
    listeners: int,
    stalled: int,
    *,
    first: int = 0,
    body: bytes = BODY,
) -> None:
    """One publishes to a room of so many listeners, and of others that never read. Users are
    numbered from `first` on."""
    room = load.group(listeners)
    load.add(room, frames=[adapter.publish(first, topic, body)], script=adapter.login(first))
    for number in range(first + 1, first + 1 + listeners + stalled):
        script = (*adapter.login(number), *adapter.subscribe(topic))
        load.add(room, script=script, is_mute=number > first + listeners)


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
    """Of sixteen messages that a connection publishes, itself hears one and nobody the others: to
    the generator the sixteen are one message, so that it has little to do and the server much."""
    for number in range(connections):
        topic, unheard = own_topic(number), f"room:unheard-{number}"
        frame = adapter.publish(number, unheard, BODY) * (UNHEARD - 1)
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
