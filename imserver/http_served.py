"""What the HTTP API needs of the server it speaks for: `server.Server`, seen from here."""

from collections.abc import Collection
from typing import Any, Final, Protocol

from imserver.config import Config
from imserver.measures import Measures
from imserver.operations import Operations
from imserver.protocol import Receipt
from imserver.sessions import Sessions

#: `Served.unready` of one whose methods raise.
NOT_RUNNING: Final = "not running"


class Served(Protocol):
    """Its methods raise RuntimeError while it does not run, which `unready` tells before."""

    config: Config
    sessions: Sessions

    @property
    def address(self) -> tuple[str, int]: ...
    @property
    def unready(self) -> str: ...
    @property
    def operations(self) -> Operations | None: ...
    @property
    def measures(self) -> Measures: ...

    def stats(self) -> dict[str, int]: ...

    async def publish(
        self,
        topic: str,
        body: Any,
        *,
        tag: str = ...,
        sender: str = ...,
        codec: str | None = ...,
        id: int = ...,
        durable: bool = ...,
    ) -> Receipt | None: ...

    async def join(self, topic: str, users: Collection[str]) -> None: ...
    async def leave(self, topic: str, users: Collection[str]) -> None: ...
    async def disconnect(self, user: str, code: int = ...) -> int: ...
    async def drain(self, timeout_s: float | None = None) -> None: ...
