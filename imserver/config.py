"""Every setting of the server, once: its default, its unit, its range and the reason for it.

A `Config` is an immutable value. Building one checks it, whether an embedding program writes
`Config(limits=Limits(calls=16))` or a file is read: a value out of range or two that contradict
each other raise `ConfigError`, which names the setting and the rule. docs/operations.md has a
heading for each setting, and a test compares the two.

Not here: files, environment and the printed form (config_sources); the meaning of tokens (auth)
and of namespaces (routing).
"""

import ipaddress
import re
import resource
import socket
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from imserver.config_api import Api
from imserver.config_section import ConfigError as ConfigError
from imserver.config_section import Section

#: Descriptors that are not connections: files, pipes, the store, upstream services, Python's own.
SPARE_DESCRIPTORS = 256

Millis = Annotated[int, Meta(ge=1, le=86_400_000)]
Algorithm = Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "EdDSA"]
#: Who may: any authenticated user, one whose token says so, a member or one whose token says so,
#: one whose name is in the topic, nobody.
Who = Literal["anyone", "claim", "member", "self", "nobody"]
#: Which messages are kept: none, those with the DURABLE flag, all.
Durable = Literal["never", "asked", "always"]


class Heartbeat(Section, frozen=True, kw_only=True):
    """How silence is told from death. Advertised in WELCOME, kept by both sides."""

    path: ClassVar[str] = "heartbeat"

    #: Silence after which a peer owes a sign of life. Half of what home routers and mobile
    #: networks usually keep an idle mapping for; shorter costs phones battery.
    interval_ms: Millis = 30_000
    #: How long each owed sign is waited for. A phone that changes networks needs seconds.
    timeout_ms: Millis = 10_000
    #: Time-outs in a row until the peer counts as dead. One lost packet must not end a session.
    max_missed: Annotated[int, Meta(ge=1, le=254)] = 3


def open_file_limit() -> int:
    """Descriptors this process may have, as things are now."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def default_connections() -> int:
    """As many as descriptors allow, up to 100,000: about 40 MB of sessions."""
    return max(1, min(open_file_limit() - SPARE_DESCRIPTORS, 100_000))


class Limits(Section, frozen=True, kw_only=True):
    """Bounds that no client can cross. Each one refuses or closes with its own number."""

    path: ClassVar[str] = "limits"

    #: Connections at a time; more are told 4153. By default what the limit of open files leaves.
    max_connections: Annotated[int, Meta(ge=1, le=2**24 - 1)] = field(
        default_factory=default_connections
    )
    #: Bytes of one frame, head included. Chat needs little; larger things belong to a file
    #: store. The format ends at 16 MiB.
    max_frame_bytes: Annotated[int, Meta(ge=64, le=2**24 - 1)] = 65_536
    #: Bytes of the first frame. A token is at most 8 KiB, and a stranger gets no more memory.
    hello_bytes: Annotated[int, Meta(ge=64, le=65_536)] = 8_192
    #: From accept to the end of HELLO. An absolute deadline: dripping bytes does not extend it.
    handshake_ms: Millis = 5_000
    #: Bytes waiting for one reader above which reading from it stops.
    outbox_soft_bytes: Annotated[int, Meta(ge=1_024, le=2**31 - 1)] = 262_144
    #: Bytes waiting for one reader at which it is closed as slow (4109). Below 64 KiB a phone is
    #: punished for a tunnel; above 4 MiB ten thousand of them exhaust the machine.
    outbox_hard_bytes: Annotated[int, Meta(ge=1_024, le=2**31 - 1)] = 1_048_576
    #: Time without any byte taken after which a reader with a backlog is closed as slow (4109).
    stall_ms: Millis = 10_000
    #: Topics one connection may read. More is usually a client that never unsubscribes.
    subscriptions: Annotated[int, Meta(ge=1, le=65_535)] = 256
    #: Publish verdicts remembered for one connection; the oldest is asked for again.
    rights: Annotated[int, Meta(ge=1, le=65_535)] = 1_024
    #: CALLs and hooked messages of one connection in the hands of Python; then it is not read.
    calls: Annotated[int, Meta(ge=1, le=255)] = 64
    #: Bytes of message memory for each I/O thread, reserved but used only as needed. When it is
    #: full, senders are refused (503) and nothing else suffers. Below 16 MiB there would not be
    #: a page for every size of message.
    pool_bytes: Annotated[int, Meta(ge=16_777_216, le=2**40)] = 67_108_864
    #: Durable messages in flight to one subscription before an ACK.
    window: Annotated[int, Meta(ge=1, le=65_535)] = 256
    #: Time an `on_call` hook has. Below the 10 s a client waits, so that it hears why.
    call_timeout_ms: Millis = 8_000
    #: Time any other hook has; then its answer is no (503).
    hook_timeout_ms: Millis = 5_000

    def check(self) -> None:
        if self.max_frame_bytes > self.outbox_hard_bytes:
            rule = "is at most limits.outbox_hard_bytes: nobody could receive a larger frame"
            raise self.error("max_frame_bytes", rule)
        if self.outbox_soft_bytes + self.max_frame_bytes > self.outbox_hard_bytes:
            rule = (
                "and limits.max_frame_bytes together are at most limits.outbox_hard_bytes: who"
                " hears its own messages would be closed before it is made to wait"
            )
            raise self.error("outbox_soft_bytes", rule)


class Reconnect(Section, frozen=True, kw_only=True):
    """What clients are told in WELCOME: wait a random time up to base * factor^attempts."""

    path: ClassVar[str] = "reconnect"

    #: Upper end of the first wait. Short, since most losses are a hiccup of one client.
    base_ms: Millis = 500
    #: Growth of the upper end with every failed attempt.
    factor: Annotated[float, Meta(ge=1.0, le=10.0)] = 2.0
    #: Where the growth ends. Longer and people reload by hand, which is worse.
    max_ms: Millis = 30_000

    def check(self) -> None:
        if self.base_ms > self.max_ms:
            raise self.error("base_ms", "is at most reconnect.max_ms")


class Drain(Section, frozen=True, kw_only=True):
    """How the server leaves: on SIGTERM, or when the application calls `drain`."""

    path: ClassVar[str] = "drain"

    #: Longest time between GOAWAY and the end. Stay well below the 30 s after which Kubernetes
    #: kills.
    timeout_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 10_000
    #: Clients are told to come back at a random moment inside this time, so that they do not
    #: all arrive at once.
    spread_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 5_000


Origin = Annotated[
    str,
    Meta(
        pattern=r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?\Z|^https?://\[[0-9A-Fa-f:]+\](:[0-9]{1,5})?\Z"
    ),
]


class Websocket(Section, frozen=True, kw_only=True):
    """Who may begin a WebSocket on the client port, and what its messages may be."""

    path: ClassVar[str] = "websocket"

    #: Origins whose pages may: scheme, host and port as a browser says them, "https://app.example".
    #: No patterns: a page that is let in can use what its visitor's browser holds. The pages that
    #: this server serves itself are let in anyway, and so is what is no browser.
    origins: tuple[Origin, ...] = ()
    #: Bytes of a message of a plain WebSocket: JSON text, and what a program of yours is sent.
    #: Frames have `limits.max_frame_bytes`. Larger ones than that are collected in Python.
    max_message_bytes: Annotated[int, Meta(ge=64, le=2**26)] = 65_536
    #: Messages may be compressed (permessage-deflate) with who has brought a good token. Off:
    #: it costs a processor more than all else that a message needs, and each reader's anew.
    deflate: bool = False


class Delivery(Section, frozen=True, kw_only=True):
    """How long an acknowledgement is waited for, and what follows when none comes."""

    path: ClassVar[str] = "delivery"

    #: Time a durable subscription has to acknowledge anything before all that is outstanding is
    #: sent again. Longer than a phone's pause between networks would be too long for a person.
    ack_wait_ms: Millis = 5_000
    #: Where the wait between redeliveries stops to double. Five minutes cost a message an hour
    #: that nobody takes little, and somebody who comes back not much.
    backoff_max_ms: Millis = 300_000
    #: How often a message is sent before it becomes a dead letter. A namespace may say another.
    attempts: Annotated[int, Meta(ge=1, le=255)] = 8
    #: How long dead letters are kept. A month shows what went wrong while somebody was away.
    dead_days: Annotated[int, Meta(ge=1, le=3_650)] = 30
    #: How long the place of a device is kept that does not come back; then its durable
    #: subscriptions have ended. Browsers and test runs leave devices behind by the thousand.
    cursor_days: Annotated[int, Meta(ge=1, le=3_650)] = 90

    def check(self) -> None:
        if self.ack_wait_ms > self.backoff_max_ms:
            raise self.error("ack_wait_ms", "is at most delivery.backoff_max_ms")


class Key(Section, frozen=True, kw_only=True):
    """One key that signs tokens. A token can choose among keys (`kid`), never an algorithm."""

    path: ClassVar[str] = "auth.keys"

    #: The name by which a token's `kid` header asks for this key.
    kid: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.@:/=+-]{1,128}\Z")] = "default"
    #: The only algorithm this key is ever used with. EdDSA where you can choose.
    algorithm: Algorithm
    #: HS256, HS384, HS512: the shared secret, at least 32, 48 or 64 bytes as RFC 7518 asks.
    secret: str = ""
    #: The same, read from a file; a newline at its end does not count.
    secret_file: str = ""
    #: RS*, ES*, EdDSA: the public key in PEM.
    public_key: str = ""
    #: The same, read from a file.
    public_key_file: str = ""

    @property
    def is_shared_secret(self) -> bool:
        return self.algorithm.startswith("HS")

    def check(self) -> None:
        name = "secret" if self.is_shared_secret else "public_key"
        other = "public_key" if self.is_shared_secret else "secret"
        if bool(getattr(self, name)) == bool(getattr(self, f"{name}_file")):
            raise self.error(name, f"key {self.kid!r} needs {name} or {name}_file, one of them")
        if getattr(self, other) or getattr(self, f"{other}_file"):
            raise self.error(other, f"has no place in an {self.algorithm} key; use {name}")
        if self.secret:
            self._check_secret(self.secret.encode(), "secret")

    def material(self) -> bytes:
        """The secret, or the PEM text of the public key. ConfigError when its file cannot be
        read or what is in it is no secret of that length."""
        name = "secret_file" if self.is_shared_secret else "public_key_file"
        if not getattr(self, name):
            return (self.secret or self.public_key).encode()
        if not self.is_shared_secret:
            return self.read_file(name)
        secret = self.read_secret(name)
        self._check_secret(secret, name)
        return secret

    def _check_secret(self, secret: bytes, name: str) -> None:
        least = int(self.algorithm[2:]) // 8
        if len(secret) < least:
            rule = f"an {self.algorithm} secret has at least {least} bytes, key {self.kid!r} has"
            raise self.error(name, f"{rule} {len(secret)}")
        if secret.lstrip().startswith((b"-----BEGIN", b"ssh-", b"ecdsa-sha2-")):
            rule = f"key {self.kid!r} is a public or private key, which is no shared secret"
            raise self.error(name, rule)

    def __repr__(self) -> str:
        return f"Key(kid={self.kid!r}, algorithm={self.algorithm!r}, ...)"

    def __rich_repr__(self) -> Any:
        yield "kid", self.kid
        yield "algorithm", self.algorithm


class Auth(Section, frozen=True, kw_only=True):
    """Whose tokens are believed."""

    path: ClassVar[str] = "auth"

    #: The `iss` that tokens must carry; empty: not looked at. Set it with a shared issuer.
    issuer: str = ""
    #: The `aud` that tokens must carry; empty: tokens made for any named audience are refused.
    audience: str = ""
    #: Seconds by which the issuer's clock may differ from ours.
    leeway_s: Annotated[int, Meta(ge=0, le=30)] = 10
    #: Longest life of a token, in seconds: a stolen one is good for no longer.
    max_lifetime_s: Annotated[int, Meta(ge=1, le=31_536_000)] = 86_400
    #: The keys, by `kid`. Several while one replaces another.
    keys: tuple[Key, ...] = ()

    def check(self) -> None:
        kids = [key.kid for key in self.keys]
        if len(set(kids)) < len(kids):
            raise self.error("keys", "every key has a kid of its own")


class Namespace(Section, frozen=True, kw_only=True):
    """Who may use the topics that begin with `prefix:`."""

    path: ClassVar[str] = "namespaces"

    #: What stands before the first colon of a topic.
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
    #: Who may publish. What is not granted is refused.
    publish: Who = "nobody"
    #: Who may subscribe.
    subscribe: Who = "nobody"
    #: Which messages the store keeps: `never`, `asked` (those with the DURABLE flag), `always`.
    #: Where the server has no store, none.
    durable: Durable = "never"
    #: Deliveries of one message to one subscriber before it becomes a dead letter; 0: as in
    #: `delivery.attempts`.
    attempts: Annotated[int, Meta(ge=0, le=255)] = 0
    #: Days after which messages are forgotten; 0: never.
    keep_days: Annotated[int, Meta(ge=0, le=36_500)] = 0
    #: Messages a topic keeps, the newest; 0: all.
    keep_messages: Annotated[int, Meta(ge=0, le=2**40)] = 0


DEFAULT_NAMESPACES = (
    Namespace(prefix="user", publish="claim", subscribe="self", durable="always"),
    Namespace(prefix="dm", publish="self", subscribe="self", durable="asked"),
    Namespace(prefix="group", publish="member", subscribe="member", durable="asked"),
    Namespace(prefix="room", publish="claim", subscribe="claim"),
)


class Log(Section, frozen=True, kw_only=True):
    """What `imserver serve` writes to stderr. An embedding program configures `logging` itself."""

    path: ClassVar[str] = "log"

    #: The least level that is written. `debug` also says why tokens were refused.
    level: Literal["debug", "info", "warning", "error"] = "info"
    #: Lines for people, or one JSON object a line for collectors.
    format: Literal["text", "json"] = "text"


def default_node() -> str:
    """The host's name, with what an identifier cannot hold replaced."""
    return re.sub(r"[^A-Za-z0-9_.@-]", "-", socket.gethostname())[:64] or "node"


def split_address(text: str) -> tuple[str, int]:
    """ "host:port" or "[::1]:port" as host and port; port 0 lets the system choose one.
    ValueError for anything else."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or (":" in bare) != (host != bare) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ValueError('is "host:port"; write [::1]:7400 for IPv6, 0.0.0.0 for all addresses')
    if int(port) > 65_535:
        raise ValueError("a port is at most 65535")
    return bare, int(port)


#: The names under which programs on this machine reach it.
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach "host:port". No name but localhost is trusted."""
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Config(Section, frozen=True, kw_only=True):
    """The whole tree. All defaults together make a server that refuses every login."""

    #: Address for clients. Loopback until you say otherwise.
    listen: str = "127.0.0.1:7400"
    #: Address of the HTTP API, for back ends, operators and our own pages. Empty: there is none;
    #: but `imserver serve` then uses 127.0.0.1:7480 unless it is told to have none.
    http: str = ""
    #: Directory for what must survive. Empty: nothing is kept; but `imserver serve` then uses
    #: "data".
    data_dir: str = ""
    #: I/O threads. One moves several hundred thousand messages a second; 0 runs the core inside
    #: the event loop, for tests and small embeddings.
    threads: Annotated[int, Meta(ge=0, le=16)] = 1
    #: Insecure, for trying things out: anybody is who they say, and rooms are open. Refused
    #: unless both addresses are loopback.
    dev: bool = False
    #: The name of this server among others, told in WELCOME.
    node: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.@-]{1,64}\Z")] = field(
        default_factory=default_node
    )
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    limits: Limits = field(default_factory=Limits)
    reconnect: Reconnect = field(default_factory=Reconnect)
    drain: Drain = field(default_factory=Drain)
    delivery: Delivery = field(default_factory=Delivery)
    auth: Auth = field(default_factory=Auth)
    api: Api = field(default_factory=Api)
    websocket: Websocket = field(default_factory=Websocket)
    #: The namespaces there are. A list of your own replaces this one; topics outside are refused.
    namespaces: tuple[Namespace, ...] = DEFAULT_NAMESPACES
    log: Log = field(default_factory=Log)

    def check(self) -> None:
        for name, address in (("listen", self.listen), ("http", self.http)):
            if name == "http" and not address:
                continue
            try:
                split_address(address)
            except ValueError as error:
                raise self.error(name, str(error)) from None
            if self.dev and not is_loopback(address):
                rule = f"dev listens on loopback only, and {name} is {address}: anybody who can"
                raise self.error("dev", f"{rule} reach it could be any user")
        prefixes = [namespace.prefix for namespace in self.namespaces]
        if len(set(prefixes)) < len(prefixes):
            raise self.error("namespaces", "every namespace has a prefix of its own")


#: Where `imserver serve` keeps what must survive, unless it is told.
DEFAULT_DATA_DIR = "data"

#: Where `imserver serve` has its HTTP API, unless it is told.
DEFAULT_HTTP = "127.0.0.1:7480"

#: How a newcomer gets a first key.
MAKE_A_KEY = """make a secret and name it:
  (umask 077; python3 -c 'import secrets; print(secrets.token_urlsafe(48))' > imserver.secret)
  export IMSERVER_AUTH__KEYS__0__ALGORITHM=HS256
  export IMSERVER_AUTH__KEYS__0__SECRET_FILE=imserver.secret"""


def check_serve(config: Config) -> None:
    """What `imserver serve` asks beyond a valid tree: somebody can log in, and the descriptors
    last. An embedding program may do without (hooks, raised limits). ConfigError otherwise."""
    for key in config.auth.keys:
        key.material()
    for api_key in config.api.keys:
        api_key.material()
    if not config.auth.keys and not config.dev:
        rule = f"without a key every login is refused; {MAKE_A_KEY}\n"
        raise ConfigError("auth.keys", f"{rule}or try things out on this machine with --dev")
    most = open_file_limit() - SPARE_DESCRIPTORS
    if config.limits.max_connections > most:
        rule = f"is at most {max(most, 0)}: the limit of open files (ulimit -n) is"
        raise ConfigError("limits.max_connections", f"{rule} {open_file_limit()}, and we keep 256")
