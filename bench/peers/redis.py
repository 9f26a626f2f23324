"""Redis in RESP3: publish and subscribe, and streams for what is to be kept."""

import tempfile
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
    name: str, adapter: Adapter, task: Task, auth: Auth, where: Placement
) -> Iterator[Server]:
    """In memory only. A subscriber may lag behind as far as it likes: none is dropped."""
    host, port = address = free_address()
    with tempfile.TemporaryDirectory(prefix="imserver-bench-") as directory:
        command = ["redis-server", "--bind", host, "--port", str(port), "--dir", directory]
        command += ["--save", "", "--appendonly", "no", "--loglevel", "warning"]
        command += ["--maxclients", str(_CONNECTIONS)]
        command += ["--client-output-buffer-limit", "pubsub 0 0 0"]
        with listening(name, command, address, adapter, where.server) as server:
            yield server


def _title(what: str) -> str:
    return f"Redis {asked_version('redis-server', '--version')}{what}"


REDIS: Final = Peer(
    start=partial(redis, "redis", PUBSUB),
    obstacle=lambda: missing("redis-server"),
    title=lambda: _title(""),
    lacks="no authentication, no heartbeats",
)
REDIS_STREAMS: Final = Peer(
    start=partial(redis, "redis-streams", STREAMS),
    obstacle=lambda: missing("redis-server"),
    title=lambda: _title(" streams"),
    lacks="no authentication, no heartbeats, no delivery: an XADD is answered",
)
