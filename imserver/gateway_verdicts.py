"""The first MESSAGE of a connection to a topic: may it, is it kept, does a hook see it.

Asked once a connection and topic; the core repeats the answer. Most answers are given at once.
Where memberships are not known yet, or a dm is about to have its first message, the store is asked
first, and the message waits.

Not here: the rules (routing), what a right is in the core (`_core/rights.h`).
"""

import asyncio
from functools import partial
from typing import Final

from imserver import _core
from imserver.errors import ErrorCode, ImError
from imserver.gateway_answers import Answers
from imserver.gateway_durable import Durability
from imserver.gateway_members import Members
from imserver.gateway_tasks import Tasks
from imserver.hooks import Hooks
from imserver.model_session import Session
from imserver.protocol import check_topic
from imserver.routing import Routing

#: How long a refusal stands that another time would not have met.
RETRY_S: Final = 1.0


class Verdicts:
    """Those of one gateway. Without `members` there is no store."""

    def __init__(
        self,
        core: _core.Core,
        routing: Routing,
        hooks: Hooks,
        answers: Answers,
        tasks: Tasks,
        durability: Durability,
        members: Members | None,
    ) -> None:
        self._core = core
        self._routing = routing
        self._hooks = hooks
        self._answers = answers
        self._tasks = tasks
        self._durability = durability
        self._members = members

    def on_ask(self, session: Session, data: bytes) -> None:
        try:
            topic = check_topic(data)
        except ImError:
            self._core.decide(session.conn, data, _core.DENY, ErrorCode.BAD_FRAME)
            return
        if self._members is None or (
            self._members.is_known(session) and self._members.membership.is_settled(topic)
        ):
            self._decide(session, topic)
        elif not self._tasks.start(partial(self._decide_later, self._members, session, topic)):
            self._deny_for_now(session, topic, ErrorCode.OVERLOADED)

    async def _decide_later(self, members: Members, session: Session, topic: str) -> None:
        try:
            await members.known(session)
            if self._may(session, topic) and self._durability.may_keep(topic):
                await members.membership.before_publish(topic)
        except ImError as error:
            self._deny_for_now(session, topic, error.code)
        else:
            if self._answers.is_here(session):
                self._decide(session, topic)

    def _may(self, session: Session, topic: str) -> bool:
        return self._routing.may_publish(session.user, session.rights, topic)

    def _decide(self, session: Session, topic: str) -> None:
        conn, name = session.conn, topic.encode()
        if not self._may(session, topic):
            self._core.decide(conn, name, _core.DENY, ErrorCode.FORBIDDEN)
        elif self._hooks.judges_messages(topic):
            self._core.decide(conn, name, _core.HOOK)
        else:
            self._core.decide(conn, name, self._durability.verdict(topic))

    def _deny_for_now(self, session: Session, topic: str, code: int) -> None:
        """Not for good: soon it is asked again."""
        if self._answers.is_here(session):
            self._core.decide(session.conn, topic.encode(), _core.DENY, code)
            asyncio.get_running_loop().call_later(RETRY_S, self._forget, session, topic)

    def _forget(self, session: Session, topic: str) -> None:
        if self._answers.is_here(session):
            self._core.revoke(session.conn, topic.encode())
