"""The servers that are measured, a file each or a kind: its adapter, and how it is started.

Not every one is installed everywhere: a run skips by name those that have an obstacle.
"""

from collections.abc import Mapping
from typing import Final

from bench.peers.adapter import Adapter
from bench.peers.floor import FLOOR
from bench.peers.golang import GO
from bench.peers.imserver import IMSERVER, gil_host
from bench.peers.mosquitto import MOSQUITTO
from bench.peers.nats import NATS_SERVER
from bench.peers.peer import ROOT, Auth, Peer, Server, ServerError, Task
from bench.peers.python import ASYNCIO, PICOWS, UVLOOP, WEBSOCKETS
from bench.peers.redis import REDIS, REDIS_STREAMS

PEERS: Final[Mapping[str, Peer]] = {
    "floor": FLOOR,
    "imserver": IMSERVER,
    "redis": REDIS,
    "redis-streams": REDIS_STREAMS,
    "nats": NATS_SERVER,
    "mosquitto": MOSQUITTO,
    "go": GO,
    "asyncio": ASYNCIO,
    "uvloop": UVLOOP,
    "picows": PICOWS,
    "websockets": WEBSOCKETS,
}

__all__ = [
    "PEERS",
    "ROOT",
    "Adapter",
    "Auth",
    "Peer",
    "Server",
    "ServerError",
    "Task",
    "gil_host",
]
