"""The console, the chat page and their files: what is in imserver/static, and nothing else.

The files are read once, when the server starts, and found by name: there is no path to go astray
in. Browsers ask for each again and are told when it has not changed. No script but ours runs in
them, nothing is loaded from elsewhere, and they talk to this server alone.
"""

import hashlib
import mimetypes
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from imserver.errors import ErrorCode, ImError
from imserver.http_guard import host_name
from imserver.http_problem import problem
from imserver.http_served import NOT_RUNNING, Served
from imserver.upgrade import PATH

STATIC: Final = Path(__file__).parent / "static"

#: Pages by their addresses.
PAGES: Final = {"/": "console.html", "/chat": "chat.html"}

#: Ours, since what a system knows of file types differs.
TYPES: Final = {".js": "text/javascript", ".map": "application/json", ".md": "text/plain"}


class Page(NamedTuple):
    data: bytes
    type: str
    etag: str


class Client(msgspec.Struct):
    """Where a page finds the WebSocket: on the host that it came from."""

    port: int
    path: str
    dev: bool
    version: str


class Pages:
    """The files of the folder, as they were when it was made."""

    def __init__(self, server: Served, version: str) -> None:
        self._server = server
        self._version = version
        self._files = {
            path.relative_to(STATIC).as_posix(): _read(path)
            for path in sorted(STATIC.rglob("*"))
            if path.is_file()
        }

    @property
    def routes(self) -> list[Route]:
        pages = [Route(path, self._page(name), methods=["GET"]) for path, name in PAGES.items()]
        return [
            *pages,
            Route("/static/{name:path}", self.file, methods=["GET"]),
            Route("/client.json", self.client, methods=["GET"]),
        ]

    def _page(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        async def page(request: Request) -> Response:
            return self._answer(request, name)

        return page

    async def file(self, request: Request) -> Response:
        return self._answer(request, request.path_params["name"])

    async def client(self, request: Request) -> Response:
        if self._server.unready == NOT_RUNNING:
            return problem(ImError(ErrorCode.OVERLOADED, "the server is not running"))
        dev = self._server.config.dev
        told = Client(self._server.address[1], PATH, dev, self._version)
        return Response(msgspec.json.encode(told), media_type="application/json")

    def _answer(self, request: Request, name: str) -> Response:
        found = self._files.get(name)
        if found is None:
            return problem(ImError(ErrorCode.NOT_FOUND, "there is no such file"))
        headers = {"etag": found.etag, "cache-control": "no-cache"}
        if found.type.startswith("text/html"):
            headers["content-security-policy"] = self._policy(request)
        if request.headers.get("if-none-match") == found.etag:
            return Response(status_code=304, headers=headers)
        return Response(found.data, headers=headers, media_type=found.type)

    def _policy(self, request: Request) -> str:
        """The WebSocket has another port, which for a policy is another place."""
        places = ["'self'"]
        host = host_name(request.headers.get("host", ""))
        if host and self._server.unready != NOT_RUNNING:
            port = self._server.address[1]
            places += [f"ws://{host}:{port}", f"wss://{host}:{port}"]
        return (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
            f"connect-src {' '.join(places)}; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )


def _read(path: Path) -> Page:
    data = path.read_bytes()
    guess = mimetypes.guess_type(path.name, strict=True)[0]
    kind = TYPES.get(path.suffix) or guess or "application/octet-stream"
    return Page(data, kind, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
