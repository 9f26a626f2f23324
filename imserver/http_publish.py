"""Publishing over HTTP: one message or many, each with its receipt or its refusal.

What a back end says is delivered whatever routing says of it, as when the program itself publishes.
"""

import asyncio
import binascii
from base64 import b64decode
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from imserver.errors import ErrorCode, ImError
from imserver.http_problem import Problem, problem_of
from imserver.http_route import ApiRoute, Body
from imserver.http_served import Served

#: Messages in one request. Those that are kept share a few commits.
MESSAGES_MAX: Final = 1_000

#: A sender's number: what every reader of JSON has exactly, and a store too.
Id = Annotated[int, Meta(ge=0, le=2**53)]


class Outgoing(Body):
    """A message. `body` is any value and becomes JSON, unless `codec` says otherwise; with
    "bytes" it is base64 text. `id` is the sender's own number for it; `durable`: answer when it is
    on the disk."""

    topic: str
    body: Any
    codec: Literal["bytes", "json", "msgpack", "protobuf"] = "json"
    tag: str = ""
    sender: str = "$server"
    id: Id = 0
    durable: bool = False


Many = Annotated[list[Outgoing], Meta(min_length=1, max_length=MESSAGES_MAX)]


class Place(msgspec.Struct):
    """Where a message stands that the disk has."""

    id: int
    seq: int
    time_ms: int


class Outcome(msgspec.Struct):
    """Of one message: the `receipt` of what is kept, the `error` of what was refused; neither when
    it went to whoever is here."""

    receipt: Place | None = None
    error: Problem | None = None


class Outcomes(msgspec.Struct):
    """In the order of the messages."""

    results: list[Outcome]


class Publishing:
    """For one server."""

    def __init__(self, server: Served) -> None:
        self._server = server

    @property
    def routes(self) -> list[ApiRoute]:
        return [ApiRoute("POST", "/v1/publish", "publish", self.publish)]

    async def publish(self, body: Outgoing | Many) -> Outcomes:
        """Publish a message, or up to 1,000.

        Of one alone a refusal is the answer; of many each has its own. Those of a topic keep their
        order."""
        if isinstance(body, Outgoing):
            return Outcomes([await self._publish(body)])
        results = [Outcome()] * len(body)
        topics: dict[str, list[int]] = {}
        for number, message in enumerate(body):
            topics.setdefault(message.topic, []).append(number)
        await asyncio.gather(*(self._in_order(body, of, results) for of in topics.values()))
        return Outcomes(results)

    async def _in_order(
        self, messages: list[Outgoing], numbers: list[int], results: list[Outcome]
    ) -> None:
        """Those of one topic. The first may have to wait for the topic's members; once it is
        through the others reach the store's queue in their turn, and share its commits."""
        first = 0
        while first < len(numbers) and (first == 0 or results[numbers[first - 1]].error):
            results[numbers[first]] = await self._outcome(messages[numbers[first]])
            first += 1
        rest = numbers[first:]
        outcomes = await asyncio.gather(*(self._outcome(messages[number]) for number in rest))
        for number, outcome in zip(rest, outcomes, strict=True):
            results[number] = outcome

    async def _outcome(self, message: Outgoing) -> Outcome:
        try:
            return await self._publish(message)
        except ImError as error:
            return Outcome(error=problem_of(error))

    async def _publish(self, message: Outgoing) -> Outcome:
        try:
            receipt = await self._server.publish(
                message.topic,
                _content(message),
                tag=message.tag,
                sender=message.sender,
                codec=message.codec,
                id=message.id,
                durable=message.durable,
            )
        except ValueError as error:
            raise ImError(ErrorCode.BAD_BODY, str(error)) from None
        except ImportError as error:
            raise ImError(ErrorCode.CODEC_UNAVAILABLE, str(error)) from None
        return Outcome(Place(*receipt) if receipt else None)


def _content(message: Outgoing) -> Any:
    if message.codec != "bytes":
        return message.body
    try:
        return b64decode(message.body, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ImError(ErrorCode.BAD_BODY, 'with the codec "bytes" a body is base64 text') from None
