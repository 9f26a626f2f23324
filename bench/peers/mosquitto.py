"""Mosquitto: MQTT 3.1.1, QoS 0."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack
from typing import Final

from bench.peers.adapter import Adapter, user
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
from imserver.load import MESSAGE, MQTT, Step, Wire
from imserver.load_process import Placement

_CONNECT, _CONNACK, _PUBLISH, _SUBSCRIBE, _SUBACK = 1, 2, 3, 8, 9
_CLEAN_SESSION: Final = 2
_KEEP_ALIVE_S: Final = 3_600  # on, but no run is so long that a client must speak
_WIRE: Final = Wire(cut=MQTT, kinds={_PUBLISH: MESSAGE})


def _packet(type: int, flags: int, rest: bytes) -> bytes:
    head, left = bytearray([type << 4 | flags]), len(rest)
    while left > 127:
        head.append(left & 127 | 128)
        left >>= 7
    head.append(left)
    return bytes(head) + rest


def _text(text: str) -> bytes:
    return pack(">H", len(text.encode())) + text.encode()


def _login(number: int) -> tuple[Step, ...]:
    about = _text("MQTT") + pack(">BBH", 4, _CLEAN_SESSION, _KEEP_ALIVE_S)
    return (Step(_packet(_CONNECT, 0, about + _text(user(number))), _CONNACK),)


def _subscribe(topic: str) -> tuple[Step, ...]:
    return (Step(_packet(_SUBSCRIBE, 2, pack(">H", 1) + _text(topic) + b"\0"), _SUBACK),)


def _publish(number: int, topic: str, body: bytes) -> bytes:
    return _packet(_PUBLISH, 0, _text(topic) + body)


ADAPTER: Final = Adapter(_WIRE, _login, _subscribe, _publish)

# `user` counts only when it is started by root: changing it would end the tie to the harness
# (setpriv --pdeathsig). Without a bound on messages none is dropped for a slow moment.
_CONFIG: Final = """\
listener {port} {host}
allow_anonymous true
persistence false
set_tcp_nodelay true
max_queued_messages 0
user root
log_dest stderr
log_type error
log_type warning
"""


@contextmanager
def mosquitto(task: Task, auth: Auth, where: Placement) -> Iterator[Server]:
    address = free_address()
    with tempfile.TemporaryDirectory(prefix="imserver-bench-") as directory:
        config = Path(directory) / "mosquitto.conf"
        config.write_text(_CONFIG.format(host=address[0], port=address[1]))
        command = ["mosquitto", "-c", str(config)]
        with listening("mosquitto", command, address, ADAPTER, where.server) as server:
            yield server


MOSQUITTO: Final = Peer(
    start=mosquitto,
    obstacle=lambda: missing("mosquitto"),
    title=lambda: f"Mosquitto {asked_version('mosquitto', '-h')}",
    lacks="no authentication",
)
