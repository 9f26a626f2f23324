"""imserver inside a web application: its HTTP API below /im of a Starlette program.

python examples/mounted.py
uvicorn examples.mounted:app
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.routing import Mount

from imserver import Config, Server

server = Server(Config(listen="127.0.0.1:0", dev=True))


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with server:
        yield


app = Starlette(routes=[Mount("/im", server.http_app)], lifespan=lifespan)


async def main() -> None:
    """Ask it once, as an ASGI server would: what `uvicorn examples.mounted:app` is for."""
    said: list[bytes] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.body":
            said.append(bytes(message["body"]))  # type: ignore[call-overload]

    scope = {
        "type": "http", "method": "GET", "path": "/im/readyz", "raw_path": b"/im/readyz",
        "root_path": "", "query_string": b"", "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
    }  # fmt: skip
    async with lifespan(app):
        await app(scope, receive, send)
    print(b"".join(said).decode())


if __name__ == "__main__":
    asyncio.run(main())
