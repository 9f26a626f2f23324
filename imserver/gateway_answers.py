"""Answers to clients: one for each request, now or when a hook or the store has spoken.

    A1  who waits for work that was accepted by `later` gets its answer, or the ImError it raised,
        or 500; unless they have gone.

Not here: what is answered (gateway_frames), how many tasks there may be (gateway_tasks).
"""

import logging
from functools import partial

from imserver import _core
from imserver.errors import ErrorCode, ImError
from imserver.gateway_frames import Refusals
from imserver.gateway_tasks import Tasks, Work
from imserver.model_session import Session
from imserver.sessions import Sessions

_log = logging.getLogger("imserver.gateway")


class Answers:
    """For one gateway. `is_running` from its start until it stops: then nobody is here."""

    def __init__(self, core: _core.Core, sessions: Sessions, refusals: Refusals) -> None:
        self.is_running = False
        self._core = core
        self._sessions = sessions
        self._refusals = refusals

    def is_here(self, session: Session) -> bool:
        return self.is_running and self._sessions.get(session.conn) is session

    def refuse(
        self, session: Session, request: int, error: ImError, ends: int = _core.ENDS_NOTHING
    ) -> None:
        if self.is_here(session):
            frame = self._refusals.frame(error, session.codec, request)
            self._core.send(session.conn, frame, ends)

    def later(self, tasks: Tasks, session: Session, request: int, ends: int, work: Work) -> None:
        """Let `work` give the answer, as the last thing it does; what it raises is one too.
        ImError 503 when there is no room for it."""
        if not tasks.start(partial(self._wait, session, request, ends, work)):
            raise ImError(ErrorCode.OVERLOADED)

    async def _wait(self, session: Session, request: int, ends: int, work: Work) -> None:
        try:
            await work()
        except ImError as error:
            self.refuse(session, request, error, ends)
        except Exception:
            _log.exception("the answer to a request of session %s failed", session.id)
            self.refuse(session, request, ImError(ErrorCode.INTERNAL), ends)
