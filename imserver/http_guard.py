"""What stands before every route: who may reach it from a browser, and what all answers say.

With `dev` nobody is asked for a key, so whatever a browser on this machine can be made to send
would be obeyed. Two things tell its requests from those of our own pages: the name in `Host`,
which another site cannot choose (DNS rebinding), and `Origin`, which a page cannot leave out when
it changes something (cross-site requests). Elsewhere a key is asked, and browsers send none by
themselves.

Not here: keys (http_keys), and routes that change something want JSON, which a form cannot send
(http_route).
"""

import ipaddress
import re
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from imserver.config import LOOPBACK
from imserver.errors import ErrorCode, ImError
from imserver.http_problem import problem

#: A host, as it may be written back into a header of ours.
HOST: Final = re.compile(r"([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")

_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
#: Where a route says nothing else.
_DEFAULTS: Final = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


class Guard:
    """Around the routes of one server."""

    def __init__(self, app: ASGIApp, count: Callable[[int], None], *, is_open: bool) -> None:
        self._app = app
        self._count = count
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # of a program that has mounted us
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            return
        hardened = self._hardened(send)
        try:
            self._check(scope)
        except ImError as error:
            await problem(error)(scope, receive, hardened)
            return
        await self._app(scope, receive, hardened)

    def _check(self, scope: Scope) -> None:
        hosts = header_values(scope, b"host")
        if len(hosts) > 1:
            raise ImError(ErrorCode.BAD_FRAME, "more than one Host")
        if not self._is_open:
            return
        if not _is_near(scope):
            raise ImError(ErrorCode.FORBIDDEN, "with dev this server is for its own machine")
        host = hosts[0] if hosts else ""
        if host_name(host) not in LOOPBACK:
            rule = "this server is for this machine: ask it as localhost or 127.0.0.1"
            raise ImError(ErrorCode.FORBIDDEN, rule)
        for origin in header_values(scope, b"origin"):
            if origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
                raise ImError(ErrorCode.FORBIDDEN, "pages of other sites may not ask this server")

    def _hardened(self, send: Send) -> Send:
        async def hardened(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self._count(message["status"])
                headers = message["headers"] = list(message.get("headers", ()))
                said = {name.lower() for name, _ in headers}
                headers += [pair for pair in _HEADERS + _DEFAULTS if pair[0] not in said]
            await send(message)

        return hardened


def _is_near(scope: Scope) -> bool:
    """Whether the peer is on this machine: of a program that has mounted us, anybody may be."""
    try:
        return ipaddress.ip_address(scope["client"][0]).is_loopback
    except (TypeError, ValueError, KeyError):
        return False


def header_values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def host_name(host: str) -> str:
    """ "localhost:7480" as "localhost"; "" for what is no host."""
    found = HOST.fullmatch(host)
    return found[1].lower() if found else ""
