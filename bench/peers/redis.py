"""Redis in RESP3: publish and subscribe, and streams for what is to be kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from bench.peers.adapter import Adapter
from bench.peers.peer import (
    Auth,
    Peer,
    Server,
    Task,
    asked_version,
    data_directory,
    free_address,
    listening,
    missing,
)
from imserver.load import FAILURE, MESSAGE, RESP3, Step, Wire
from imserver.load_process import Placement

_MAP, _PUSH, _BULK, _ERROR = map(ord, "%>$-")

_CONNECTIONS: Final = 19_900  # it keeps a few descriptors for itself


def _command(*words: str | bytes) -> bytes:
    parts = [word.encode() if isinstance(word, str) else word for word in words]
    bulks = (b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"*%d\r\n" % len(parts) + b"".join(bulks)


def _login(number: int) -> tuple[Step, ...]:
    return (Step(_command("HELLO", "3"), _MAP),)


def _subscribe(topic: str) -> tuple[Step, ...]:
    return (Step(_command("SUBSCRIBE", topic), _PUSH),)


#: The integer that answers a PUBLISH is not counted, the push is.
PUBSUB: Final = Adapter(
    Wire(
        cut=RESP3,
        kinds={_PUSH: MESSAGE, _ERROR: FAILURE},
        stamp_from_end=len("stampstp\r\n"),
    ),
    _login,
    _subscribe,
    lambda number, topic, body: _command("PUBLISH", topic, body),
)

#: Nobody listens: what counts is the id that answers an XADD.
STREAMS: Final = Adapter(
    Wire(cut=RESP3, kinds={_BULK: MESSAGE, _ERROR: FAILURE}, stamp_from_end=0),
    _login,
    lambda topic: (),
    lambda number, topic, body: _command("XADD", topic, "*", "b", body),
)


@contextmanager
def redis(
    name: str, adapter: Adapter, keeps: tuple[str, ...], task: Task, auth: Auth, where: Placement
) -> Iterator[Server]:
    """A subscriber may lag behind as far as it likes: none is dropped."""
    host, port = address = free_address()
    with data_directory() as directory:
        command = ["redis-server", "--bind", host, "--port", str(port), "--dir", str(directory)]
        command += ["--save", "", *keeps, "--loglevel", "warning"]
        command += ["--maxclients", str(_CONNECTIONS)]
        command += ["--client-output-buffer-limit", "pubsub 0 0 0"]
        with listening(name, command, address, adapter, where.server) as server:
            yield server


def _title(what: str) -> str:
    return f"Redis {asked_version('redis-server', '--version')}{what}"


_IN_MEMORY: Final = ("--appendonly", "no")
REDIS: Final = Peer(
    start=partial(redis, "redis", PUBSUB, _IN_MEMORY),
    obstacle=lambda: missing("redis-server"),
    title=lambda: _title(""),
    lacks="no authentication, no heartbeats",
)


def _streams(name: str, flushes: str, lacks: str) -> Peer:
    """`flushes`: when it tells the disk to keep what it has appended to its file."""
    keeps = ("--appendonly", "yes", "--appendfsync", flushes)
    return Peer(
        start=partial(redis, name, STREAMS, keeps),
        obstacle=lambda: missing("redis-server"),
        title=lambda: _title(f" streams, AOF {flushes}"),
        lacks=f"no authentication, no heartbeats{lacks}",
    )


REDIS_STREAMS: Final = _streams("redis-streams", "always", "")
REDIS_UNFLUSHED: Final = _streams(
    "redis-unflushed", "everysec", ", answers up to a second before the flush"
)
