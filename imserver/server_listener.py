"""Where a server listens: addresses as they are written, and the sockets on them."""

import asyncio
import socket
from typing import Final

from imserver.config import split_address

#: Connections that the kernel has completed and we have not accepted: the first moments of a
#: login storm. The kernel lowers it to net.core.somaxconn.
BACKLOG: Final = 4_096


def address_text(address: tuple[str, int]) -> str:
    """ "host:port", or "[host]:port" for IPv6."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def open_listener(address: str) -> socket.socket:
    """A non-blocking listening socket on "host:port". A name with several addresses gets the
    first, IPv4 before IPv6; "[::]" takes both. OSError when it cannot be had, with the address as
    its `filename`."""
    try:
        return await _listen(address)
    except OSError as error:
        error.filename = address
        raise


async def _listen(address: str) -> socket.socket:
    host, port = split_address(address)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
    )
    family, kind, protocol, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        listener.bind(where)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
