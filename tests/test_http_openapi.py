"""The description of the API says what the API does: schemathesis asks all that it describes.

Bounded: some examples an operation, a few seconds in all. It looks for failures, for answers that
are not described or break their schema, and for invalid requests that are taken.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from harness import RunningServer
from hypothesis import HealthCheck, Phase, settings
from schemathesis import checks
from site_of import Site

from imserver.config import Config
from imserver.http_app import api_routes
from imserver.http_metrics import Metrics
from imserver.http_openapi import describe
from imserver.server import Server

ROOT = Path(__file__).parent.parent
SECRET = "s" * 40
EXAMPLES = 20

_server = Server(Config())
ROUTES = api_routes(_server, "0", Metrics(_server, "0"))
DOCUMENT = describe(ROUTES, "0")

# Keys are test_http_keys's: here every request has one.
schema = schemathesis.openapi.from_dict({**DOCUMENT, "security": []})
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    config = Config(
        listen="127.0.0.1:0",
        http="127.0.0.1:0",
        data_dir=str(tmp_path_factory.mktemp("openapi") / "data"),
        api={"keys": [{"name": "all", "secret": SECRET, "scopes": ["admin"]}]},  # type: ignore[arg-type]
    )
    running = RunningServer(config)
    yield running
    running.stop()


# Draining would end the server for all that follow; test_http_api has it.
@schema.exclude(path="/v1/drain").parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_what_is_described_is_what_is_done(running: RunningServer, case: Any) -> None:
    site = Site(running)
    response = case.call_and_validate(
        base_url=f"http://{site.host}",
        headers={"Authorization": f"Bearer {SECRET}"},
        checks=CHECKS,
    )
    assert response.status_code != 500


def test_the_document_is_served_and_lists_every_route(running: RunningServer) -> None:
    told = Site(running, SECRET).get("/v1/openapi.json").json
    listed = {(method, path) for path, methods in told["paths"].items() for method in methods}
    assert listed == {
        (route.method.lower(), re.sub(r":\w+\}", "}", route.path)) for route in ROUTES
    }
    assert told["components"].keys() == DOCUMENT["components"].keys()


def test_every_reference_leads_somewhere_and_every_name_is_used() -> None:
    text = str(DOCUMENT)
    used = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert used == set(DOCUMENT["components"]["schemas"])


def test_operations_have_names_of_their_own_and_say_what_they_do() -> None:
    operations = [one for methods in DOCUMENT["paths"].values() for one in methods.values()]
    names = [one["operationId"] for one in operations]
    assert len(set(names)) == len(names) == len(ROUTES)
    assert all(one["summary"].endswith(".") for one in operations)


def test_every_route_is_documented() -> None:
    text = (ROOT / "docs/http-api.md").read_text()
    for route in ROUTES:
        path = re.sub(r":\w+\}", "}", route.path)
        assert f"### {route.method} {path}\n" in text
        section = text.split(f"### {route.method} {path}\n")[1].split("\n##")[0]
        scope = f"`{route.scope}`" if route.scope else "any key"
        assert f"Scope: {scope}." in section, f"{route.method} {path}"
    headings = re.findall(r"^### (GET|POST) (/\S*)$", text, flags=re.M)
    others = {
        ("GET", path)
        for path in ("/livez", "/readyz", "/client.json", "/", "/chat", "/static/{name}")
    }
    described = {(route.method, re.sub(r":\w+\}", "}", route.path)) for route in ROUTES}
    assert set(headings) == described | others
