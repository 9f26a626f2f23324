"""A route of the API: from a request to a function of ours and back, by the types of the function.

    async def history(topic: str, query: AskHistory) -> History: ...

Parameters are those of the path by name, `query` and `body` as structs, in which unknown fields are
refused. What the function returns is checked against what it says it returns, so the description
of the API (http_openapi), which is made of the same types, is true.

Every route has a scope, a bound for its body, and a time in which it is answered.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, get_type_hints

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from imserver.config_api import Scope
from imserver.errors import ErrorCode, ImError
from imserver.http_keys import Keys
from imserver.http_problem import problem
from imserver.http_served import NOT_RUNNING, Served

#: Bytes of a body: some hundreds of messages at a time.
BODY_MAX: Final = 1_048_576
#: From the head of a request to the end of its body.
BODY_S: Final = 10.0
#: From there to the answer: longer than the disk may take for a message.
ANSWER_S: Final = 35.0

JSON: Final = "application/json"

Function = Callable[..., Awaitable[Any]]

_log = logging.getLogger("imserver.http")


class Query(msgspec.Struct, forbid_unknown_fields=True):
    """What stands behind the "?"."""


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """What a request brings."""


class ApiRoute(NamedTuple):
    """`scope` None: any key will do. `media_type` is JSON unless the function returns text."""

    method: str
    path: str
    scope: Scope | None
    function: Function
    status: int = 200
    media_type: str = JSON

    @property
    def types(self) -> dict[str, Any]:
        """Of the parameters by name, and what comes back as "return"."""
        return get_type_hints(self.function, include_extras=True)

    @property
    def description(self) -> str:
        return inspect.getdoc(self.function) or ""

    def bind(self, server: Served, keys: Keys) -> Route:
        endpoint = Endpoint(self, server, keys)
        return Route(self.path, endpoint.answer, methods=[self.method])


class Endpoint:
    """A route at work."""

    def __init__(self, route: ApiRoute, server: Served, keys: Keys) -> None:
        self._route = route
        self._server = server
        self._keys = keys
        self._types = route.types

    async def answer(self, request: Request) -> Response:
        """Whatever happens."""
        route = self._route
        try:
            self._keys.check(request, route.scope)
            if self._server.unready == NOT_RUNNING:
                raise ImError(ErrorCode.OVERLOADED, "the server is not running", 1_000)
            given = {**self._place(request), **self._query(request)}
            if route.method != "GET":
                given |= await self._body(request)
            async with asyncio.timeout(ANSWER_S):
                result = await route.function(**given)
            return Response(self._written(result), route.status, media_type=route.media_type)
        except ImError as error:
            return problem(error)
        except TimeoutError:
            return problem(ImError(ErrorCode.TIMEOUT))
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        except Exception:
            _log.exception("%s %s failed", route.method, route.path)
            return problem(ImError(ErrorCode.INTERNAL))

    def _written(self, result: Any) -> bytes:
        if isinstance(result, bytes):
            return result
        if isinstance(result, dict):
            result = msgspec.convert(result, self._types["return"])
        return msgspec.json.encode(result)

    def _place(self, request: Request) -> dict[str, Any]:
        try:
            return {
                name: msgspec.convert(text, self._types[name], strict=False)
                for name, text in request.path_params.items()
            }
        except msgspec.ValidationError:
            raise ImError(ErrorCode.NOT_FOUND, "there is nothing at this address") from None

    def _query(self, request: Request) -> dict[str, Any]:
        kind = self._types.get("query", Query)
        pairs = request.query_params.multi_items()
        if len(dict(pairs)) < len(pairs):
            raise ImError(ErrorCode.BAD_BODY, "a parameter is given twice")
        try:
            query = msgspec.convert(dict(pairs), kind, strict=False)
        except msgspec.ValidationError as error:
            raise ImError(ErrorCode.BAD_BODY, f"parameters: {error}") from None
        return {"query": query} if "query" in self._types else {}

    async def _body(self, request: Request) -> dict[str, Any]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON:
            # Not for its own sake: a form of another site can send everything else.
            raise ImError(ErrorCode.CODEC_UNAVAILABLE, f"send Content-Type: {JSON}")
        data = await _read(request)
        try:
            body = msgspec.json.decode(data, type=self._types.get("body", Body))
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            raise ImError(ErrorCode.BAD_BODY, f"the body: {error}") from None
        return {"body": body} if "body" in self._types else {}


async def _read(request: Request) -> bytes:
    too_large = ImError(ErrorCode.TOO_LARGE, f"a body has at most {BODY_MAX} bytes")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > BODY_MAX:
        raise too_large
    received = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for some in request.stream():
                received += some
                if len(received) > BODY_MAX:
                    raise too_large
    except TimeoutError:
        raise ImError(ErrorCode.TIMEOUT, f"the body did not come in {BODY_S:.0f} s") from None
    return bytes(received)
