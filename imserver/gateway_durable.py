"""Messages that are kept: what the program publishes, and what clients hear of refusals.

What a client publishes to be kept goes from its I/O thread to the store's writer and back, and
never comes here; only what is not kept does. A publication of the program itself takes the same
way, so that there is one order of a topic, and is known here by a token until it comes back.

Not here: which topics keep what (routing), the way to the disk (`_core`, timeline_sqlite_writer).
"""

import asyncio
from itertools import count
from struct import Struct
from typing import Final

from imserver import _core
from imserver.errors import ErrorCode, ImError
from imserver.gateway_answers import Answers
from imserver.protocol import DURABLE, Receipt
from imserver.routing import Routing
from imserver.sessions import Sessions

#: Publications of the program on their way to the disk: a few MB of futures.
KEEPING_MAX: Final = 65_536

_PLACE = Struct("=QQ")
_ID = Struct(">Q")


class Durability:
    """What is kept, for one server. `is_open`: there is a store."""

    def __init__(
        self,
        core: _core.Core,
        sessions: Sessions,
        routing: Routing,
        answers: Answers,
        is_open: bool,
    ) -> None:
        self._core = core
        self._sessions = sessions
        self._routing = routing
        self._answers = answers
        self._is_open = is_open
        self._tokens = count(1)
        self._keeping: dict[int, tuple[asyncio.Future[Receipt], int, str]] = {}

    def may_keep(self, topic: str) -> bool:
        return self.verdict(topic) != _core.ALLOW

    def verdict(self, topic: str) -> int:
        """For the core, about a topic that may be published to."""
        durable = self._routing.durable(topic) if self._is_open else "never"
        if durable == "always":
            return _core.KEEP
        return _core.KEEP_ASKED if durable == "asked" else _core.ALLOW

    def marked(self, frame: bytes, topic: str) -> bytes:
        """A MESSAGE as it is to be published: with DURABLE where its topic says so. ImError 507
        when it asks to be kept and is not."""
        verdict = self.verdict(topic)
        if verdict == _core.KEEP and not frame[5] & DURABLE:
            return b"".join((frame[:5], bytes((frame[5] | DURABLE,)), frame[6:]))
        if verdict == _core.ALLOW and frame[5] & DURABLE:
            raise ImError(ErrorCode.NOT_DURABLE)
        return frame

    def keep(self, frame: bytes, id: int, topic: str) -> "asyncio.Future[Receipt]":
        """Publish a MESSAGE with DURABLE; resolved when the disk has it. ImError 503 when too
        many are under way; the future may end with 409, 503 or 507."""
        if len(self._keeping) >= KEEPING_MAX:
            raise ImError(ErrorCode.OVERLOADED, "too many messages wait for the disk", 100)
        token = next(self._tokens)
        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self._keeping[token] = (future, id, topic)
        self._core.keep(frame, token)
        return future

    def stop(self) -> None:
        """Whoever still waits hears that the outcome is unknown."""
        for future, id, topic in self._keeping.values():
            if not future.done():
                text = "the server stopped before the disk answered"
                future.set_exception(ImError(ErrorCode.TIMEOUT, text, id=id, topic=topic))
                future.exception()  # perhaps nobody waits any more
        self._keeping.clear()

    # Events

    def on_kept(self, token: int, code: int, data: bytes) -> None:
        future, id, topic = self._keeping.pop(token)
        if future.done():
            return  # whoever waited has given up
        if code:
            future.set_exception(ImError(code, id=id, topic=topic))
        else:
            future.set_result(Receipt(id, *_PLACE.unpack(data)))

    def on_unkept(self, conn: int, code: int, data: bytes) -> None:
        session = self._sessions.get(conn)
        if session is None:
            return
        ids_at = 1 + data[0]
        topic = data[1:ids_at].decode(errors="replace")
        for (id,) in _ID.iter_unpack(data[ids_at:]):
            error = ImError(code, id=id, topic=topic)
            self._answers.refuse(session, 0, error)
