"""Who is at the other end of a connection: login, rights, session.

There is one Session for each connected device, twenty thousand in a process, most of them idle:
each field costs eight bytes and each object of its own four to eight times that. So what many
have in common is one object for all of them, and everything that can be derived is.

Not here: who may do what with which rights (routing), who is online (sessions).
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

#: Most devices have no name of their own; they share this one.
DEFAULT_DEVICE: Final = "default"

#: `Session.expires_s` of those whose right to be here does not end by itself.
NEVER: Final = 0.0


class Rights(msgspec.Struct, frozen=True, gc=False):
    """What a token allows, as patterns over topics: see `matches`."""

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()


#: What everybody has whose token says nothing.
NO_RIGHTS: Final = Rights()


# Shared while they are common, not forever: an application that gives every user rights of
# their own pays for those, and not for a table of all it ever gave.
@lru_cache(maxsize=256)
def shared_rights(publish: tuple[str, ...], subscribe: tuple[str, ...]) -> Rights:
    """The rights with these patterns; the same object to everybody who asks about now."""
    return Rights(publish, subscribe) if publish or subscribe else NO_RIGHTS


class Terms(msgspec.Struct, frozen=True, gc=False):
    """What comes in few combinations: on which device somebody is, with which rights, and the
    codec of their HELLO."""

    device: str
    rights: Rights
    codec: int


# Thousands say "phone". Bounded, since clients choose the names; who is alone with theirs pays
# 48 bytes for it.
@lru_cache(maxsize=256)
def shared_terms(device: str, rights: Rights, codec: int) -> Terms:
    """The same object to everybody who comes with these about now."""
    return Terms(device, rights, codec)


def shared_expiry(expires_s: float) -> float:
    """`expires_s`, rounded up to a whole second: those of a login storm are few numbers, and
    one object each."""
    return _shared_number(float(-(-expires_s // 1)))


@lru_cache(maxsize=64)
def _shared_number(number: float) -> float:
    return number


class Login(msgspec.Struct, frozen=True):
    """An authenticated HELLO, before it is answered. Hooks judge it; nothing keeps it.

    `claims` are those of the token as they were, {} with --dev. `peer` is the address the
    connection comes from, "127.0.0.1:5000" or "[::1]:5000"; `client` what it says it is.
    """

    user: str
    device: str
    claims: Mapping[str, Any]
    peer: str
    client: str


class Session(msgspec.Struct, eq=False, gc=False):
    """One logged-in connection. Alive while it is in `Server.sessions`; a hook may hold it
    for longer and finds everything as it was.

    `conn` is the core's number for the connection. `expires_s` is Unix time, or NEVER. Four
    fields fill 48 bytes; a fifth would cost sixteen.
    """

    conn: int
    user: str
    terms: Terms
    expires_s: float = NEVER

    @property
    def id(self) -> str:
        """The name of this session in logs and in the API; never used again by this process."""
        return f"{self.conn:x}"

    @property
    def device(self) -> str:
        return self.terms.device

    @property
    def rights(self) -> Rights:
        return self.terms.rights

    @property
    def codec(self) -> int:
        return self.terms.codec

    def __lt__(self, other: "Session") -> bool:
        """Some order, for those who keep them sorted."""
        return self.conn < other.conn


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic fits a pattern: the very topic, or its beginning and a "*" at the end."""
    if pattern.endswith("*"):
        return topic.startswith(pattern[:-1])
    return topic == pattern
