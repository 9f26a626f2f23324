"""Who may publish and subscribe to what. Pure: no sockets, no clock, no await.

Asked once for a topic and a connection; the core repeats the answer until it is revoked. What
no rule allows is forbidden, and a denial wins over every rule.

A topic belongs to the namespace before its first colon. Its policy names one of

    anyone   every authenticated user
    claim    who has a right in the token: {"im": {"publish": ["room:lobby", "room:team-*"]}}
    member   who is a member of the topic (kept in the store), and who may by `claim`
    self     whose name the topic carries: user:<id>, or one of the two of dm:<a>:<b>
    nobody   the server alone

    R1  topics that begin with "$" are nobody's, whatever the configuration says.
    R2  a denial holds for all sessions of its user, also for those that log in later.

Not here: what a topic may look like (names), tokens (auth), who has been told (gateway).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from msgspec.structs import replace

from imserver.config import DEFAULT_NAMESPACES, Durable, Namespace, Who
from imserver.errors import ErrorCode, ImError
from imserver.model_session import Rights, matches
from imserver.names import check_identifier

#: Denials held at a time, of all users together: about 2 MB. They bridge the time until the
#: tokens that carry the old rights have run out; they are not a permission system.
DENIALS_MAX: Final = 10_000


class Routing:
    """The policies of the namespaces, and the denials that `Server.revoke` records.

    With `dev` rooms are open to everybody who is logged in. `is_member(user, topic)` is whoever
    knows the members; without a store nobody is one.
    """

    def __init__(
        self, namespaces: Iterable[Namespace] = DEFAULT_NAMESPACES, *, dev: bool = False
    ) -> None:
        self._policies = {namespace.prefix: namespace for namespace in namespaces}
        if dev:
            room = self._policies.get("room", Namespace(prefix="room"))
            durable: Durable = "asked" if room.durable == "never" else room.durable
            self._policies["room"] = replace(
                room, publish="anyone", subscribe="anyone", durable=durable
            )
        self._denied: dict[str, set[str]] = {}
        self._denials = 0
        self.is_member: Callable[[str, str], bool] = lambda user, topic: False

    def may_publish(self, user: str, rights: Rights, topic: str) -> bool:
        policy = self.policy(topic)
        return policy is not None and self._may(policy.publish, rights.publish, user, topic)

    def may_subscribe(self, user: str, rights: Rights, topic: str) -> bool:
        policy = self.policy(topic)
        return policy is not None and self._may(policy.subscribe, rights.subscribe, user, topic)

    def policy(self, topic: str) -> Namespace | None:
        """That of the topic's namespace; None where there is none."""
        return self._policies.get(topic.partition(":")[0])

    def durable(self, topic: str) -> Durable:
        """Which messages of a topic are to be kept."""
        policy = self.policy(topic)
        return policy.durable if policy else "never"

    def _may(self, who: Who, granted: tuple[str, ...], user: str, topic: str) -> bool:
        if topic.startswith("$") or not is_addressable(topic) or self.is_denied(user, topic):
            return False
        if who == "anyone":
            return True
        if who == "self":
            return user in owners(topic)
        if who == "member" and self.is_member(user, topic):
            return True
        return who in ("claim", "member") and any(matches(pattern, topic) for pattern in granted)

    def is_denied(self, user: str, topic: str) -> bool:
        denied = self._denied.get(user)
        return denied is not None and any(matches(pattern, topic) for pattern in denied)

    def deny(self, user: str, pattern: str) -> None:
        """Forbid a user a topic, or with "*" at the end all that begin so, whatever the token
        says, until `allow`. ImError 503 when DENIALS_MAX are in force: none is ever dropped to
        make room."""
        denied = self._denied.get(user, set())
        if pattern in denied:
            return
        if self._denials >= DENIALS_MAX:
            text = f"{DENIALS_MAX} denials are in force; lift some, or let tokens expire sooner"
            raise ImError(ErrorCode.OVERLOADED, text)
        self._denied[user] = denied | {pattern}
        self._denials += 1

    def allow(self, user: str, pattern: str | None = None) -> None:
        """Lift one denial of a user, or all. What remains is what the token allows."""
        denied = self._denied.pop(user, set())
        left = denied - {pattern} if pattern is not None else set()
        if left:
            self._denied[user] = left
        self._denials -= len(denied) - len(left)

    def denials(self) -> Iterator[tuple[str, str]]:
        """What is denied: (user, pattern)."""
        return ((user, pattern) for user, all_ in self._denied.items() for pattern in all_)


def owners(topic: str) -> tuple[str, ...]:
    """Whose names a topic carries: both of a dm, one elsewhere."""
    prefix, _, rest = topic.partition(":")
    return tuple(rest.split(":")) if prefix == "dm" else (rest,)


def is_addressable(topic: str) -> bool:
    """Whether a topic names something: nobody may use `room:`, nor `dm:bob:ann` beside
    `dm:ann:bob`."""
    prefix, _, rest = topic.partition(":")
    if prefix == "user":
        return _is_identifier(rest)
    if prefix == "dm":
        first, _, second = rest.partition(":")
        return first < second and _is_identifier(first) and _is_identifier(second)
    return bool(rest)


def _is_identifier(text: str) -> bool:
    try:
        check_identifier(text)
    except ImError:
        return False
    return True
