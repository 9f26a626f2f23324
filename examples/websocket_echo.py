"""Messages of your own over plain WebSocket, on the client port: here everything comes back.

    python examples/websocket_echo.py
    python -m websockets ws://127.0.0.1:7400/

`make autobahn` runs the cases of the Autobahn test suite against this.
"""

import asyncio
import sys
from contextlib import suppress

from imserver import Config, Server, WebSocket
from imserver.config import Limits, Websocket

LIMITS = Limits(max_frame_bytes=2**18, outbox_soft_bytes=2**24, outbox_hard_bytes=2**25)
WEBSOCKET = Websocket(max_message_bytes=2**24, deflate=True)


async def main(listen: str) -> None:
    server = Server(Config(listen=listen, limits=LIMITS, websocket=WEBSOCKET))

    @server.on_websocket("/", deflate=True)
    async def echo(socket: WebSocket) -> None:
        async for message in socket:
            socket.send(message)

    async with server:
        print("echo at ws://{}:{}/".format(*server.address), flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7400"))
