"""Every way the server says no, numbered.

Two tables. `ErrorCode` answers one request and the connection goes on; `CloseCode` ends the
connection, and the range it lies in tells the client what to do next (`action`). The numbers
are API and never change their meaning; names and texts may. docs/protocol.md shows the same
two tables, and a test compares them both ways.

Numbers from 1000 to 3999 belong to the embedding application: its hooks may raise
`ImError(1234, "...")` and clients see that number.

Not here: who decides to refuse (routing, auth, the core).
"""

from collections.abc import Iterable
from enum import Enum, IntEnum
from typing import Literal, Self

Fault = Literal["client", "server", "nobody"]


class ErrorCode(IntEnum):
    """Why one request was refused."""

    fault: Fault
    retry: bool  # may the same request succeed later, with nothing changed?
    meaning: str

    def __new__(cls, number: int, fault: Fault, retry: bool, meaning: str) -> Self:
        code = int.__new__(cls, number)
        code._value_ = number
        code.fault, code.retry, code.meaning = fault, retry, meaning
        return code

    BAD_FRAME = 400, "client", False, "the frame breaks the wire format or the order of frames"
    UNAUTHORIZED = 401, "client", False, "the token is missing, wrong or expired"
    FORBIDDEN = 403, "client", False, "this user may not do this here"
    NOT_FOUND = 404, "client", False, "no such frame type, method, topic or subscription"
    METHOD_NOT_ALLOWED = 405, "client", False, "HTTP only: this address has other methods"
    TIMEOUT = 408, "server", True, "no answer in time; whether it was done is unknown"
    CONFLICT = 409, "client", False, "it contradicts something that already stands"
    LOST = 410, "server", False, "messages that were kept cannot be read any more"
    TOO_LARGE = 413, "client", False, "larger than the limit that WELCOME named"
    CODEC_UNAVAILABLE = 415, "client", False, "this server does not speak that codec"
    BAD_BODY = 422, "client", False, "the body, or a name in it, breaks its rules"
    TOO_MANY_REQUESTS = 429, "client", True, "faster than allowed; wait retry_after_ms"
    TOO_MANY_SUBSCRIPTIONS = 442, "client", False, "this connection holds as many as it may"
    INTERNAL = 500, "server", True, "the server failed; its log knows more"
    OVERLOADED = 503, "server", True, "no room at the moment; wait retry_after_ms"
    NOT_DURABLE = 507, "server", False, "this message or topic cannot be kept here"


class Action(Enum):
    """What a client does after its connection has ended."""

    STOP = "stop"  # tell the application; the same attempt would end the same way
    BACK_OFF = "back off"  # reconnect, exponentially later, with full jitter
    RECONNECT = "reconnect"  # reconnect at a random moment inside retry_after_ms
    MOVE = "move"  # reconnect to one of the alternatives that GOAWAY named


class CloseCode(IntEnum):
    """Why a connection was ended. Also the WebSocket close code."""

    fault: Fault
    meaning: str

    def __new__(cls, number: int, fault: Fault, meaning: str) -> Self:
        code = int.__new__(cls, number)
        code._value_ = number
        code.fault, code.meaning = fault, meaning
        return code

    UNAUTHORIZED = 4001, "client", "the login was refused, or HELLO did not come first"
    FORBIDDEN = 4003, "client", "this user may not connect"
    BAD_PROTOCOL = 4004, "client", "what arrived are not frames, or HELLO could not be read"
    VERSION_UNSUPPORTED = 4005, "client", "the server does not speak this protocol version"
    REPLACED = 4009, "nobody", "the same user and device connected again"
    KICKED = 4010, "nobody", "the application or an operator ended the session"
    FRAME_TOO_LARGE = 4013, "client", "a frame longer than the limit was announced"
    INTERNAL = 4100, "server", "the server failed; its log knows more"
    HEARTBEAT_LOST = 4108, "client", "silent for longer than the heartbeat allows"
    SLOW_CONSUMER = 4109, "client", "did not read what was sent to it"
    TOKEN_EXPIRED = 4112, "client", "the token ran out; get a new one before reconnecting"
    TOO_MANY_CONNECTIONS = 4129, "client", "this user or address holds as many as it may"
    OVERLOADED = 4153, "server", "no room for another connection at the moment"
    HANDSHAKE_TIMEOUT = 4160, "client", "HELLO did not arrive in time"
    RESTART = 4201, "server", "the server is shutting down and will be back"
    REBALANCE = 4202, "server", "connections are being spread over the servers anew"
    MOVED = 4301, "server", "another server answers for this client now"

    @property
    def action(self) -> Action:
        return action(self)


_ERRORS = {int(row): row for row in ErrorCode}
_CLOSES = {int(row): row for row in CloseCode}
_RANGES = ((4000, Action.STOP), (4200, Action.RECONNECT), (4300, Action.MOVE))


def action(close_code: int) -> Action:
    """What the range of a close code asks of the client.

    By range and not by table, so that a client obeys codes younger than itself. What lies
    outside (0: the connection was lost without a word) is met with back-off.
    """
    for start, act in _RANGES:
        if start <= close_code < start + 100:
            return act
    return Action.BACK_OFF


def describe(code: int) -> str:
    """The name of an error or close code as the tables spell it; "" for one not in them."""
    row = _ERRORS.get(code) or _CLOSES.get(code)
    return row.name.lower() if row else ""


def may_retry(error_code: int) -> bool:
    """Whether the same request may succeed later. False for numbers not in the table."""
    row = _ERRORS.get(error_code)
    return row is not None and row.retry


class ImError(Exception):
    """A request was refused, or is being refused by raising this in a hook.

    `code` is one of `ErrorCode` or a number of the application's own (1000 to 3999).
    `message` is for people; empty, it becomes the meaning of the code. `retry_after_ms` tells
    the earliest time for another try, 0 for no advice. `id` and `topic` name the message that
    was refused, where it was one.
    """

    def __init__(
        self,
        code: int,
        message: str = "",
        retry_after_ms: int = 0,
        *,
        id: int = 0,
        topic: str = "",
    ) -> None:
        super().__init__(code, message, retry_after_ms)
        self.code = int(code)
        self.message = message or _meaning(code)
        self.retry_after_ms = retry_after_ms
        self.id = id
        self.topic = topic

    def __str__(self) -> str:
        name = describe(self.code)
        return f"{self.code} {name}: {self.message}" if name else f"{self.code}: {self.message}"


class Closed(ImError):
    """The connection has ended with a close code; 0 when it was lost without one.

    `alternatives` are the addresses a 43xx code sends the client to.
    """

    def __init__(
        self,
        code: int,
        message: str = "",
        retry_after_ms: int = 0,
        *,
        alternatives: Iterable[str] = (),
    ) -> None:
        super().__init__(code, message, retry_after_ms)
        self.alternatives = tuple(alternatives)

    @property
    def action(self) -> Action:
        return action(self.code)


def _meaning(code: int) -> str:
    row = _ERRORS.get(code) or _CLOSES.get(code)
    if row:
        return row.meaning
    return "the connection was lost" if code == 0 else "no further explanation"
