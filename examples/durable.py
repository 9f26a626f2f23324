"""Messages that wait for their reader: published while he is away, acknowledged one by one.

    python examples/durable.py

A server inside this process, its store in a directory that is gone at the end.
"""

import asyncio
import tempfile

from imserver import Config, Server
from imserver.client import Client

ROOM = "room:orders"


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        config = Config(listen="127.0.0.1:0", dev=True, data_dir=directory)
        async with Server(config) as server, Client(server.address, user="shop") as shop:
            async with Client(server.address, user="packer") as packer:
                await packer.subscribe(ROOM, durable=True)  # from here on nothing is missed

            for number in range(3):
                kept = await shop.publish(ROOM, {"order": number}, durable=True)
                receipt = await kept  # on the disk
                print("order", number, "is kept as", receipt.seq)

            async with Client(server.address, user="packer") as packer:
                orders = await packer.subscribe(ROOM, durable=True)
                async for message in orders:
                    print("packed", message.value())
                    orders.ack(message)  # never again
                    if message.seq == 3:
                        break


if __name__ == "__main__":
    asyncio.run(main())
