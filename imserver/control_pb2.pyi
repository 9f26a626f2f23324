# mypy: disable-error-code="type-arg"
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Hello(_message.Message):
    __slots__ = ("version", "token", "user", "device", "client")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    version: int
    token: str
    user: str
    device: str
    client: str
    def __init__(self, version: _Optional[int] = ..., token: _Optional[str] = ..., user: _Optional[str] = ..., device: _Optional[str] = ..., client: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("interval_ms", "timeout_ms", "max_missed")
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_MISSED_FIELD_NUMBER: _ClassVar[int]
    interval_ms: int
    timeout_ms: int
    max_missed: int
    def __init__(self, interval_ms: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., max_missed: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_frame", "window", "subscriptions")
    MAX_FRAME_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIPTIONS_FIELD_NUMBER: _ClassVar[int]
    max_frame: int
    window: int
    subscriptions: int
    def __init__(self, max_frame: _Optional[int] = ..., window: _Optional[int] = ..., subscriptions: _Optional[int] = ...) -> None: ...

class Reconnect(_message.Message):
    __slots__ = ("base_ms", "factor", "max_ms")
    BASE_MS_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    MAX_MS_FIELD_NUMBER: _ClassVar[int]
    base_ms: int
    factor: float
    max_ms: int
    def __init__(self, base_ms: _Optional[int] = ..., factor: _Optional[float] = ..., max_ms: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("user", "session", "node", "time", "heartbeat", "limits", "reconnect")
    USER_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    RECONNECT_FIELD_NUMBER: _ClassVar[int]
    user: str
    session: str
    node: str
    time: int
    heartbeat: Heartbeat
    limits: Limits
    reconnect: Reconnect
    def __init__(self, user: _Optional[str] = ..., session: _Optional[str] = ..., node: _Optional[str] = ..., time: _Optional[int] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., reconnect: _Optional[_Union[Reconnect, _Mapping]] = ...) -> None: ...

class Subscribe(_message.Message):
    __slots__ = ("topic", "tags", "after", "durable", "epoch")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    topic: str
    tags: str
    after: int
    durable: bool
    epoch: str
    def __init__(self, topic: _Optional[str] = ..., tags: _Optional[str] = ..., after: _Optional[int] = ..., durable: bool = ..., epoch: _Optional[str] = ...) -> None: ...

class Subscribed(_message.Message):
    __slots__ = ("topic", "head", "cursor", "epoch", "first", "missed", "durable")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    topic: str
    head: int
    cursor: int
    epoch: str
    first: int
    missed: int
    durable: bool
    def __init__(self, topic: _Optional[str] = ..., head: _Optional[int] = ..., cursor: _Optional[int] = ..., epoch: _Optional[str] = ..., first: _Optional[int] = ..., missed: _Optional[int] = ..., durable: bool = ...) -> None: ...

class Unsubscribe(_message.Message):
    __slots__ = ("topic",)
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    topic: str
    def __init__(self, topic: _Optional[str] = ...) -> None: ...

class Unsubscribed(_message.Message):
    __slots__ = ("topic", "code")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    topic: str
    code: int
    def __init__(self, topic: _Optional[str] = ..., code: _Optional[int] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("method", "params")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    method: str
    params: _struct_pb2.Value
    def __init__(self, method: _Optional[str] = ..., params: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: _struct_pb2.Value
    def __init__(self, result: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "retry_after_ms", "id", "topic")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    retry_after_ms: int
    id: int
    topic: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ..., id: _Optional[int] = ..., topic: _Optional[str] = ...) -> None: ...

class Goaway(_message.Message):
    __slots__ = ("code", "reason", "retry_after_ms", "alternatives")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    retry_after_ms: int
    alternatives: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., retry_after_ms: _Optional[int] = ..., alternatives: _Optional[_Iterable[str]] = ...) -> None: ...
