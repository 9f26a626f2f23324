"""The HTTP side of a server as one ASGI application: the API, health, metrics, the pages.

`imserver serve` listens for it itself (http_listener); a program that has an ASGI server mounts
`Server.http_app` there. Every request is answered, whatever its handler did.
"""

import logging
from collections.abc import Awaitable, Callable

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from imserver.errors import ErrorCode, ImError
from imserver.http_dead import DeadRoutes
from imserver.http_guard import Guard
from imserver.http_keys import Keys
from imserver.http_metrics import Metrics
from imserver.http_openapi import OpenApi
from imserver.http_operator import OperatorRoutes
from imserver.http_pages import Pages
from imserver.http_problem import problem
from imserver.http_publish import Publishing
from imserver.http_route import ApiRoute
from imserver.http_served import Served
from imserver.http_sessions import SessionRoutes
from imserver.http_topics import TopicRoutes

_log = logging.getLogger("imserver.http")

_HTTP_ERRORS = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.METHOD_NOT_ALLOWED}


def make_app(server: Served, version: str) -> ASGIApp:
    """ConfigError for API keys that cannot be used."""
    is_open = server.config.dev
    keys = Keys(server.config.api, is_open=is_open)
    metrics = Metrics(server, version)
    routes = [*_health(server), *Pages(server, version).routes]
    routes += [route.bind(server, keys) for route in api_routes(server, version, metrics)]
    handlers = {HTTPException: _on_http_error, Exception: _on_failure}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Guard(app, metrics.count, is_open=is_open)


def api_routes(server: Served, version: str, metrics: Metrics) -> list[ApiRoute]:
    """All that ask for a key, and the description of them."""
    routes = [
        *Publishing(server).routes,
        *TopicRoutes(server).routes,
        *SessionRoutes(server).routes,
        *DeadRoutes(server).routes,
        *OperatorRoutes(server, version).routes,
        *metrics.routes,
    ]
    return [*routes, *OpenApi(routes, version).routes]


class Health(msgspec.Struct):
    status: str
    reason: str = ""


def _health(server: Served) -> list[Route]:
    """For whatever runs us: is this process alive, and should it get clients? Both need no key."""

    async def livez(request: Request) -> Response:
        return _told(Health("alive"), 200)

    async def readyz(request: Request) -> Response:
        reason = server.unready
        return _told(
            Health("unready", reason) if reason else Health("ready"), 503 if reason else 200
        )

    found: list[tuple[str, Callable[[Request], Awaitable[Response]]]]
    found = [("/livez", livez), ("/readyz", readyz)]
    return [Route(path, answer, methods=["GET"]) for path, answer in found]


def _told(health: Health, status: int) -> Response:
    return Response(msgspec.json.encode(health), status, media_type="application/json")


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _HTTP_ERRORS.get(error.status_code, ErrorCode.BAD_FRAME)
    text = "there is nothing at this address" if code == ErrorCode.NOT_FOUND else ""
    return problem(ImError(code, text), error.headers)


async def _on_failure(request: Request, error: Exception) -> Response:
    """Of what is no route of the API; whoever serves us logs it."""
    return problem(ImError(ErrorCode.INTERNAL))
