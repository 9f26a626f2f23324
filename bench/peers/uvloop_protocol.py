"""A chat server as an asyncio Protocol on uvloop: callbacks, no coroutine a connection.

Prints its port, and runs until it is killed.
"""

import asyncio
from typing import cast

import uvloop

from bench.peers.rooms import Rooms, cut


class Connection(asyncio.Protocol):
    def __init__(self, rooms: "Rooms[Connection]") -> None:
        self._rooms = rooms
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        for frame in cut(self._received):
            hearers, answer = self._rooms.take(self, frame)
            for hearer in hearers:
                hearer.transport.write(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._rooms.leave(self)


async def main() -> None:
    rooms = Rooms[Connection]()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(rooms), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
