"""Dead letters over HTTP: messages that a device did not take in all their attempts."""

from typing import Annotated

import msgspec
from msgspec import Meta

from imserver.errors import ErrorCode, ImError
from imserver.http_route import ApiRoute, Body, Query
from imserver.http_served import Served
from imserver.http_topics import Said, kept, told
from imserver.operations import LETTERS_MAX

LetterId = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class AskDead(Query):
    """Of a topic or a user, where given; with `taken` also those that are under way once more."""

    topic: str = ""
    user: str = ""
    after: LetterId = 0
    taken: bool = False


class ChooseDead(Body):
    """Up to 100 letters by their ids, or those of a topic, a user, or a user in a topic. These come
    in pages: go on with the `after` of the answer until it is null."""

    ids: Annotated[list[LetterId], Meta(max_length=LETTERS_MAX)] | None = None
    topic: str = ""
    user: str = ""
    after: LetterId = 0


class Letter(msgspec.Struct):
    """Who did not take what, and why, in how many attempts. `is_taken`: it is under way again."""

    id: int
    user: str
    device: str
    topic: str
    seq: int
    reason: str
    attempts: int
    time_ms: int
    is_taken: bool


class WholeLetter(Letter):
    """With its message."""

    message: Said


class Letters(msgspec.Struct):
    """A page; `counts` are of all there are, by reason."""

    letters: list[Letter]
    counts: dict[str, int]
    after: int | None


class Done(msgspec.Struct):
    """How many letters it was done to; `after` begins the next page, null: there is none."""

    count: int
    after: int | None


class DeadRoutes:
    """For one server."""

    def __init__(self, server: Served) -> None:
        self._server = server

    @property
    def routes(self) -> list[ApiRoute]:
        return [
            ApiRoute("GET", "/v1/dead", "operate", self.letters),
            ApiRoute("GET", "/v1/dead/{id}", "operate", self.letter),
            ApiRoute("POST", "/v1/dead/redrive", "operate", self.redrive),
            ApiRoute("POST", "/v1/dead/purge", "operate", self.purge),
        ]

    async def letters(self, query: AskDead) -> Letters:
        """Dead letters, the oldest first."""
        store = kept(self._server)
        page = await store.dead(query.topic, query.user, query.after, query.taken)
        return told({**page, "counts": await store.dead_counts()}, Letters)

    async def letter(self, id: LetterId) -> WholeLetter:
        """A dead letter with its message."""
        return told(await kept(self._server).letter(id), WholeLetter)

    async def redrive(self, body: ChooseDead) -> Done:
        """Deliver dead letters once more, all attempts anew."""
        chosen = _chosen(body)
        return told(await kept(self._server).redrive(*chosen), Done)

    async def purge(self, body: ChooseDead) -> Done:
        """Delete dead letters, for good."""
        chosen = _chosen(body)
        return told(await kept(self._server).purge(*chosen), Done)


def _chosen(body: ChooseDead) -> tuple[list[int] | None, str, str, int]:
    if (body.ids is None) == (not body.topic and not body.user):
        raise ImError(ErrorCode.BAD_BODY, "ids, or a topic or a user")
    return body.ids, body.topic, body.user, body.after
