"""SUBSCRIBE and UNSUBSCRIBE: live ones in the core, those with a place in the timeline besides.

Not here: who may subscribe (routing, hooks), windows and redelivery (delivery).
"""

from collections.abc import Callable
from functools import partial

from imserver import _core, gateway_frames
from imserver.errors import ErrorCode, ImError
from imserver.gateway_answers import Answers
from imserver.gateway_durable import Durability
from imserver.gateway_followers import Followers
from imserver.gateway_tasks import Tasks
from imserver.hooks import Hooks
from imserver.model_session import Session
from imserver.protocol import Subscribe, Subscribed, Unsubscribe, check_tags, check_topic
from imserver.routing import Routing
from imserver.sessions import Sessions


class Subscriptions:
    """Those of one gateway. Without `followers` there is no store."""

    def __init__(
        self,
        core: _core.Core,
        sessions: Sessions,
        routing: Routing,
        hooks: Hooks,
        answers: Answers,
        tasks: Tasks,
        durability: Durability,
        followers: Followers | None,
        *,
        most: int,
    ) -> None:
        self._core = core
        self._sessions = sessions
        self._routing = routing
        self._hooks = hooks
        self._answers = answers
        self._tasks = tasks
        self._durability = durability
        self._followers = followers
        self._most = most

    def on_subscribe(self, session: Session, request: int, body: Subscribe) -> None:
        body.topic, body.tags = check_topic(body.topic), check_tags(body.tags)
        self._check(session, body.topic)
        is_followed = body.durable or body.after is not None
        if is_followed and not self._durability.may_keep(body.topic):
            raise ImError(ErrorCode.NOT_DURABLE)
        if is_followed or self._hooks.judges_subscriptions(body.topic):
            work = partial(self._judge, session, request, body)
            self._answers.later(self._tasks, session, request, _core.ENDS_PAUSE, work)
        else:
            self._begin(session, request, body.topic, body.tags)

    def on_unsubscribe(self, session: Session, request: int, body: Unsubscribe) -> None:
        topic = check_topic(body.topic)
        if topic not in self._sessions.topics(session):
            raise ImError(ErrorCode.NOT_FOUND, "there is no subscription to this topic")
        frame = gateway_frames.unsubscribed(topic, session, request)
        self._end(session, topic, frame, _core.ENDS_PAUSE)

    def forbid(self, session: Session, topic: str) -> None:
        """End a subscription that is no longer allowed; an UNSUBSCRIBED with 403 says so."""
        frame = gateway_frames.unsubscribed(topic, session, code=ErrorCode.FORBIDDEN)
        self._end(session, topic, frame, _core.ENDS_NOTHING)

    def _end(self, session: Session, topic: str, frame: bytes, ends: int) -> None:
        self._core.unsubscribe(session.conn, topic.encode(), frame, ends)
        self._sessions.unsubscribe(session, topic)
        if self._followers:
            self._followers.end(session.conn, topic)

    async def _judge(self, session: Session, request: int, body: Subscribe) -> None:
        topic, tags = body.topic, body.tags
        if self._hooks.judges_subscriptions(topic):
            await self._hooks.subscribe(session, topic, tags)
        if not body.durable and body.after is None:
            if self._answers.is_here(session):
                self._check(session, topic)
                self._begin(session, request, topic, tags)
        elif self._followers and self._answers.is_here(session):
            is_here = partial(self._answers.is_here, session)
            await self._follow(self._followers, session, request, body, is_here)

    async def follow_unasked(
        self, session: Session, topic: str, is_member: Callable[[], bool]
    ) -> None:
        """Subscribe a member, who is told by a SUBSCRIBED with request 0. What they hold stays as
        it is. ImError when routing or a bound forbids it."""

        def is_wanted() -> bool:
            held = self._sessions.topics(session)
            return self._answers.is_here(session) and topic not in held and is_member()

        if not is_wanted():
            return
        self._check(session, topic)
        if not self._followers or not self._durability.may_keep(topic):
            self._begin(session, 0, topic, "*")
            return
        after = await self._followers.place_of_member(session, topic)
        asked = Subscribe(topic, after=after, durable=True)
        await self._follow(self._followers, session, 0, asked, is_wanted)

    async def _follow(
        self,
        followers: Followers,
        session: Session,
        request: int,
        body: Subscribe,
        is_wanted: Callable[[], bool],
    ) -> None:
        position = await followers.position(session, body)
        if is_wanted():
            self._check(session, body.topic)
            followers.begin(session, request, body, position)
            self._sessions.subscribe(session, body.topic)

    def _begin(self, session: Session, request: int, topic: str, tags: str) -> None:
        frame = gateway_frames.subscribed(Subscribed(topic), session, request)
        ends = _core.ENDS_PAUSE if request else _core.ENDS_NOTHING
        self._core.subscribe(session.conn, topic.encode(), tags.encode(), frame, ends)
        self._sessions.subscribe(session, topic)
        if self._followers:
            self._followers.end(session.conn, topic)

    def _check(self, session: Session, topic: str) -> None:
        if not self._routing.may_subscribe(session.user, session.rights, topic):
            raise ImError(ErrorCode.FORBIDDEN)
        held = self._sessions.topics(session)
        if len(held) >= self._most and topic not in held:
            raise ImError(ErrorCode.TOO_MANY_SUBSCRIPTIONS)
