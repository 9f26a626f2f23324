"""The HTTP side of a running server, asked over real sockets.

`ask` is a client as people write them, on the standard library; `raw` sends bytes as they are and
returns what comes until the server closes, for requests that no client would make.
"""

import http.client
import json
import socket
from typing import Any, NamedTuple

from harness import WAIT_S, RunningServer, read_all


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> tuple[int, int]:
        """(status, code) of a refusal, which is always of one form."""
        assert self.headers["content-type"] == "application/problem+json", self
        told = self.json
        assert set(told) == {"title", "status", "code", "detail", "retry_after_ms"}
        assert told["status"] == self.status
        return self.status, told["code"]


class Site:
    def __init__(self, where: RunningServer | tuple[str, int], key: str = "") -> None:
        address = where if isinstance(where, tuple) else where.server.http_address
        assert address
        self.address = address
        self.host = f"{address[0]}:{address[1]}"
        self.key = key

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        told = {"content-type": "application/json"} if body is not None else {}
        if self.key:
            told["authorization"] = f"Bearer {self.key}"
        told |= headers or {}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(*self.address, timeout=WAIT_S)
        try:
            connection.request(method, path, data, told)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.ask("POST", path, body, headers=headers)

    def open(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=WAIT_S)

    def raw(self, *data: bytes) -> bytes:
        with self.open() as peer:
            for some in data:
                try:
                    peer.sendall(some)
                except OSError:
                    break  # it has seen enough
            return read_all(peer)
