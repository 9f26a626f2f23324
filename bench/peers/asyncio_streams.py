"""A chat server on asyncio streams: a coroutine a connection, drained after what it has written.

Prints its port, and runs until it is killed. For the loop of asyncio itself, as it comes.
"""

import asyncio
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from contextlib import suppress

from bench.peers.rooms import Rooms


async def main() -> None:
    rooms = Rooms[StreamWriter]()

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        with suppress(IncompleteReadError, ConnectionError):
            while True:
                length = await reader.readexactly(4)
                frame = length + await reader.readexactly(int.from_bytes(length))
                hearers, data = rooms.take(writer, frame)
                for hearer in hearers:
                    hearer.write(data)
                await writer.drain()
        rooms.leave(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
