"""The description of the API (OpenAPI 3.1), made from the routes and their types: it cannot lag."""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from imserver.http_problem import MEDIA_TYPE, Problem
from imserver.http_route import JSON, ApiRoute

_PLACE: Final = "#/components/schemas/{name}"
_PARAMETER: Final = re.compile(r"\{(\w+)(?::\w+)?\}")

Json = dict[str, Any]


class OpenApi:
    """The document, and the route that has it."""

    def __init__(self, routes: Sequence[ApiRoute], version: str) -> None:
        self._document = msgspec.json.encode(describe([*routes, *self.routes], version))

    @property
    def routes(self) -> list[ApiRoute]:
        return [ApiRoute("GET", "/v1/openapi.json", None, self.openapi)]

    async def openapi(self) -> bytes:
        """This description."""
        return self._document


def describe(routes: Sequence[ApiRoute], version: str) -> Json:
    """The OpenAPI document of these routes."""
    types = [kind for route in routes for name, kind in route.types.items() if kind is not bytes]
    _, schemas = msgspec.json.schema_components([*types, Problem], ref_template=_PLACE)
    paths: dict[str, Json] = {}
    for route in routes:
        path = _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schemas)
    asked = {route.types["query"].__name__ for route in routes if "query" in route.types}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "imserver",
            "version": version,
            "description": "The HTTP API of an imserver; docs/http-api.md has examples.",
        },
        "paths": paths,
        "components": {
            "schemas": {name: schema for name, schema in schemas.items() if name not in asked},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _operation(route: ApiRoute, schemas: Json) -> Json:
    summary, _, rest = route.description.partition("\n\n")
    told: Json = {
        "operationId": f"{type(_owner(route)).__name__}.{route.function.__name__}",
        "summary": summary.replace("\n", " "),
        "description": f"{rest} Scope: {route.scope or 'any key'}.".replace("\n", " ").strip(),
        "parameters": [*_in_path(route), *_in_query(route, schemas)],
        "responses": {
            str(route.status): {"description": "Done.", "content": _content(route)},
            "default": {
                "description": "Refused, with a number.",
                "content": {MEDIA_TYPE: {"schema": _schema(Problem)}},
            },
        },
    }
    if "body" in route.types:
        content = {JSON: {"schema": _schema(route.types["body"])}}
        told["requestBody"] = {"required": True, "content": content}
    return told


def _owner(route: ApiRoute) -> object:
    return getattr(route.function, "__self__", None)


def _in_path(route: ApiRoute) -> list[Json]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _schema(route.types[name])}
        for name in _PARAMETER.findall(route.path)
    ]


def _in_query(route: ApiRoute, schemas: Json) -> list[Json]:
    if "query" not in route.types:
        return []
    fields = schemas[route.types["query"].__name__]["properties"]
    return [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in fields.items()
    ]


def _content(route: ApiRoute) -> Json:
    kind = route.types["return"]
    if kind is bytes:
        plain: Json = {"type": "object"} if route.media_type == JSON else {"type": "string"}
        return {route.media_type.partition(";")[0]: {"schema": plain}}
    return {route.media_type: {"schema": _schema(kind)}}


def _schema(kind: Any) -> Json:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_PLACE)
    return schema
