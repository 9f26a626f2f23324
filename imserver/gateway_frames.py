"""What the gateway says: WELCOME, ERROR, GOAWAY, in the codec of each session.

Everything that is the same for all is made once.
"""

from collections import Counter
from typing import Any, Final

from imserver.config import Config
from imserver.errors import CloseCode, Closed, ErrorCode, ImError
from imserver.model_session import Session
from imserver.protocol import (
    CODEC_JSON,
    CODEC_MSGPACK,
    CODEC_PROTOBUF,
    Error,
    FrameType,
    Goaway,
    Heartbeat,
    Limits,
    Reconnect,
    Result,
    Subscribed,
    Unsubscribed,
    Welcome,
    encode_frame,
)

#: Characters of an error's text. It is for people, and some of it is what a client sent.
TEXT_MAX: Final = 500

_CODES: Final = frozenset(map(int, ErrorCode))


def available_codecs() -> list[int]:
    """Those of control bodies; Protobuf only where its package is installed."""
    found = [CODEC_JSON, CODEC_MSGPACK]
    try:
        encode_frame(FrameType.GOAWAY, Goaway(code=0), CODEC_PROTOBUF)
    except ImError:
        return found
    return [*found, CODEC_PROTOBUF]


class Frames:
    """The frames of one server."""

    def __init__(self, config: Config) -> None:
        beat, limits, reconnect = config.heartbeat, config.limits, config.reconnect
        self.refusals = Refusals()
        self._node = config.node
        self._heartbeat = Heartbeat(beat.interval_ms, beat.timeout_ms, beat.max_missed)
        self._limits = Limits(limits.max_frame_bytes, limits.window, limits.subscriptions)
        self._reconnect = Reconnect(reconnect.base_ms, reconnect.factor, reconnect.max_ms)
        self._max_frame_bytes = limits.max_frame_bytes
        #: (codec, close code) -> GOAWAY, for every code of the table.
        self.goodbyes: dict[tuple[int, int], bytes] = {}
        for codec in available_codecs():
            for code in CloseCode:
                retry_ms = config.drain.spread_ms if code == CloseCode.RESTART else 0
                self.goodbyes[codec, code] = goaway(code, codec, retry_ms)

    def welcome(self, session: Session, request: int, time_ms: int) -> bytes:
        body = Welcome(
            user=session.user,
            session=session.id,
            node=self._node,
            time=time_ms,
            heartbeat=self._heartbeat,
            limits=self._limits,
            reconnect=self._reconnect,
        )
        return encode_frame(FrameType.WELCOME, body, session.codec, request)

    def goodbye(self, code: int, codec: int) -> bytes:
        """A GOAWAY for any close code, the application's own too."""
        return self.goodbyes.get((codec, code)) or goaway(code, codec, 0)

    def result(self, value: Any, session: Session, request: int) -> bytes:
        """ValueError for what the codec cannot carry, ImError 413 for what is too long."""
        frame = encode_frame(FrameType.RESULT, Result(value), session.codec, request)
        if len(frame) > self._max_frame_bytes:
            raise ImError(ErrorCode.TOO_LARGE, f"the result has {len(frame)} bytes")
        return frame


def goaway(code: int, codec: int, retry_after_ms: int) -> bytes:
    closed = Closed(code, "", retry_after_ms)
    return encode_frame(FrameType.GOAWAY, Goaway.of(closed), codec)


def subscribed(body: Subscribed, session: Session, request: int) -> bytes:
    return encode_frame(FrameType.SUBSCRIBED, body, session.codec, request)


def unsubscribed(topic: str, session: Session, request: int = 0, code: int = 0) -> bytes:
    return encode_frame(FrameType.UNSUBSCRIBED, Unsubscribed(topic, code), session.codec, request)


class Refusals:
    """ERROR frames, counted by their numbers; 0 for those of the application."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def frame(self, refusal: ImError, codec: int, request: int) -> bytes:
        """Never raises, whatever a hook has put into its ImError."""
        self.counts[refusal.code if refusal.code in _CODES else 0] += 1
        try:
            body = Error.of(refusal)
            body.message = body.message[:TEXT_MAX]
            return encode_frame(FrameType.ERROR, body, codec, request)
        except (ValueError, TypeError, AttributeError):
            body = Error(ErrorCode.INTERNAL, ErrorCode.INTERNAL.meaning)
            return encode_frame(FrameType.ERROR, body, codec, request)
