"""A chat server on websockets and uvloop: a coroutine a connection, and `broadcast` to a room.

Without compression, which its documentation advises against where memory counts, and without its
pings. Prints its port, and runs until it is killed.
"""

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

from bench.peers.rooms import Rooms


async def main() -> None:
    rooms = Rooms[ServerConnection]()

    async def handle(connection: ServerConnection) -> None:
        try:
            async for frame in connection:
                if isinstance(frame, bytes):
                    hearers, data = rooms.take(connection, frame)
                    broadcast(hearers, data)
        finally:
            rooms.leave(connection)

    async with serve(
        handle, "127.0.0.1", 0, backlog=1024, compression=None, ping_interval=None
    ) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
