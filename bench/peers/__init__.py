"""The servers that are measured, a file each or a kind: its adapter, and how it is started.

Not every one is installed everywhere: a run skips by name those that have an obstacle.
"""

from collections.abc import Mapping
from typing import Final

from bench.peers.adapter import Adapter
from bench.peers.floor import FLOOR
from bench.peers.golang import GO
from bench.peers.imserver import IMSERVER, IMSERVER_TCP, gil_host
from bench.peers.mosquitto import MOSQUITTO
from bench.peers.nats import JETSTREAM, NATS_SERVER
from bench.peers.peer import DATA, ROOT, Auth, Peer, Server, ServerError, Task, data_directory
from bench.peers.python import ASYNCIO, PICOWS, UVLOOP, WEBSOCKETS
from bench.peers.redis import REDIS, REDIS_STREAMS, REDIS_UNFLUSHED

PEERS: Final[Mapping[str, Peer]] = {
    "floor": FLOOR,
    "imserver": IMSERVER,
    "redis": REDIS,
    "nats": NATS_SERVER,
    "mosquitto": MOSQUITTO,
    "go": GO,
    "asyncio": ASYNCIO,
    "uvloop": UVLOOP,
    "picows": PICOWS,
    "websockets": WEBSOCKETS,
    "redis-streams": REDIS_STREAMS,
    "redis-unflushed": REDIS_UNFLUSHED,
    "jetstream": JETSTREAM,
    "imserver-tcp": IMSERVER_TCP,
}
#: These answer a publication and deliver nothing, whatever the task.
STORES: Final = ("redis-streams", "redis-unflushed", "jetstream")

__all__ = [
    "DATA",
    "PEERS",
    "ROOT",
    "STORES",
    "Adapter",
    "Auth",
    "Peer",
    "Server",
    "ServerError",
    "Task",
    "data_directory",
    "gil_host",
]
