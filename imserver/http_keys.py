"""Who asks: the key of a request, and what its scopes allow. Deny by default.

A secret is compared with every key by digests of one length, in a time that depends neither on how
much of it is right nor on which key it is.
"""

import hashlib
import hmac
import logging
from typing import Final

from starlette.requests import Request

from imserver.config_api import Api, Scope
from imserver.errors import ErrorCode, ImError

_SCHEME: Final = "bearer "

_log = logging.getLogger("imserver.http")


class Keys:
    """Those of a configuration; ConfigError for one that cannot be used. `is_open`: nobody is
    asked for one."""

    def __init__(self, api: Api, *, is_open: bool) -> None:
        self._is_open = is_open
        self._keys = [
            (hashlib.sha256(key.material()).digest(), key.name, frozenset(key.scopes))
            for key in api.keys
        ]

    def check(self, request: Request, scope: Scope | None) -> None:
        """Return when the request may pass; `scope` None: any key will do. ImError 401 without a
        key of ours, 403 when it is for something else."""
        if self._is_open:
            return
        name, scopes = self._find(request)
        if scope is not None and not scopes & {scope, "admin"}:
            _log.info("key %s has no scope %s for %s", name, scope, request.url.path)
            raise ImError(ErrorCode.FORBIDDEN, f"the key {name} has no scope {scope!r}")

    def _find(self, request: Request) -> tuple[str, frozenset[Scope]]:
        given = request.headers.getlist("authorization")
        if len(given) != 1 or given[0][: len(_SCHEME)].lower() != _SCHEME:
            raise ImError(ErrorCode.UNAUTHORIZED, "send a key: Authorization: Bearer SECRET")
        secret = given[0][len(_SCHEME) :].strip(" ").encode("latin-1")
        digest = hashlib.sha256(secret).digest()
        found: tuple[str, frozenset[Scope]] | None = None
        for known, name, scopes in self._keys:
            if hmac.compare_digest(digest, known):
                found = name, scopes
        if found is None:
            raise ImError(ErrorCode.UNAUTHORIZED, "this is no key of ours")
        return found
