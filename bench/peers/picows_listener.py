"""A chat server on picows and uvloop: a listener a connection, WebSocket binary messages.

Prints its port, and runs until it is killed.
"""

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from bench.peers.rooms import Rooms


class Connection(WSListener):
    def __init__(self, rooms: Rooms[WSTransport]) -> None:
        self._rooms = rooms

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
        elif frame.msg_type == WSMsgType.BINARY:
            hearers, data = self._rooms.take(transport, frame.get_payload_as_bytes())
            for hearer in hearers:
                hearer.send(WSMsgType.BINARY, data)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._rooms.leave(transport)


async def main() -> None:
    rooms = Rooms[WSTransport]()

    def listener(request: WSUpgradeRequest) -> WSListener:
        return Connection(rooms)

    server = await ws_create_server(listener, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
