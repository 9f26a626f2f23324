"""The settings of the HTTP API: who may ask it for what.

A key is a shared secret of a back end or an operator, and has scopes; what no scope of a key allows
is refused. Not here: what the scopes open (http_routes), and comparing secrets (http_keys).
"""

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from imserver.config_section import Section

#: `publish` messages; `read` topics, history, members, presence; change `members`; `monitor`: stats
#: and metrics; `operate`: sessions, dead letters, configuration, drain; `admin`: all of it.
Scope = Literal["publish", "read", "members", "monitor", "operate", "admin"]

#: Bytes of a secret: as many as an HS256 secret has, and nobody guesses them.
SECRET_BYTES_MIN = 32


class ApiKey(Section, frozen=True, kw_only=True):
    """One key of the HTTP API."""

    path: ClassVar[str] = "api.keys"

    #: What it is called in logs.
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.@-]{1,64}\Z")]
    #: The secret itself, sent as `Authorization: Bearer SECRET`: at least 32 bytes.
    secret: str = ""
    #: The same, read from a file; a newline at its end does not count.
    secret_file: str = ""
    #: What the key is for. Empty: nothing but the version and the description of the API.
    scopes: tuple[Scope, ...] = ()

    def check(self) -> None:
        if bool(self.secret) == bool(self.secret_file):
            raise self.error(
                "secret", f"key {self.name!r} needs secret or secret_file, one of them"
            )
        if self.secret:
            self._check_secret(self.secret.encode(), "secret")

    def material(self) -> bytes:
        """The secret. ConfigError when its file cannot be read or holds none."""
        if not self.secret_file:
            return self.secret.encode()
        secret = self.read_secret("secret_file")
        self._check_secret(secret, "secret_file")
        return secret

    def _check_secret(self, secret: bytes, name: str) -> None:
        if len(secret) < SECRET_BYTES_MIN:
            rule = f"a secret has at least {SECRET_BYTES_MIN} bytes, key {self.name!r} has"
            raise self.error(name, f"{rule} {len(secret)}")
        if any(not 0x21 <= byte <= 0x7E for byte in secret):
            rule = f"a secret is printable ASCII without spaces, key {self.name!r} is not"
            raise self.error(name, rule)

    def __repr__(self) -> str:
        return f"ApiKey(name={self.name!r}, scopes={self.scopes!r}, ...)"

    def __rich_repr__(self) -> Any:
        yield "name", self.name
        yield "scopes", self.scopes


class Api(Section, frozen=True, kw_only=True):
    """Who may use the HTTP API. Without a key nobody may, but with `dev`, where none is asked."""

    path: ClassVar[str] = "api"

    #: The keys, by name. Several while one replaces another, and for back ends with different work.
    keys: tuple[ApiKey, ...] = ()

    def check(self) -> None:
        names = [key.name for key in self.keys]
        if len(set(names)) < len(names):
            raise self.error("keys", "every key has a name of its own")
