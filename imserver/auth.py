"""From a token to an identity: who it is, what they may do, until when.

Once a connection, and the first thing a stranger can make us compute, so the order is: length,
header, key, signature, and only then what the token says. Before the signature holds, the
answer is the same whatever was wrong; after it, the bearer may know.

    A1  the configuration alone pairs a key with an algorithm. A token can only name a key.
    A2  nothing in a token is fetched, executed or used as a key: `jku`, `x5u` and `jwk` are
        not read, `crit` is refused, `none` is no algorithm.
    A3  no `exp` or no `sub`, no identity.

Not here: a token's parts and its signature (auth_token), what rights mean for a topic (routing),
the end of live sessions (gateway).
"""

import logging
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jwt
import msgspec
from jwt.algorithms import Algorithm, get_default_algorithms

from imserver.auth_token import check_claims, read_claims, read_header
from imserver.config import Auth, ConfigError, Key
from imserver.errors import ErrorCode, ImError
from imserver.model_session import Rights, shared_rights
from imserver.names import check_identifier, check_topic

if TYPE_CHECKING:
    from jwt.algorithms import AllowedPublicKeys

#: Bytes of a token. Room for a few hundred rights; more belong into a hook.
TOKEN_LEN_MAX = 8_192
#: The smallest RSA key that is still considered safe.
RSA_BITS_MIN = 2_048

#: What PyJWT raises once the signature holds; the rest stays between us and our log.
_CLAIM_ERRORS = (
    jwt.ImmatureSignatureError,
    jwt.InvalidAudienceError,
    jwt.InvalidIssuedAtError,
    jwt.InvalidIssuerError,
    jwt.MissingRequiredClaimError,
)

_log = logging.getLogger("imserver.auth")
_jwt = jwt.PyJWT()
_algorithms = get_default_algorithms()


class Identity(msgspec.Struct, frozen=True):
    """Whom a token speaks for.

    `expires_s` is Unix time. `device` is the only one the token is good for, None: any.
    `claims` are the token's, for hooks to look at; keep `rights` instead, which are shared.
    """

    user: str
    rights: Rights
    expires_s: float
    device: str | None
    claims: Mapping[str, Any]


class _Header(msgspec.Struct):
    """What is read of a token's header. Everything else in it is a suggestion, not followed."""

    alg: str
    kid: str | None = None
    crit: Any = None
    b64: Any = True


class _Grants(msgspec.Struct):
    """The claim that is ours, `im`: {"publish": [...], "subscribe": [...], "device": "..."}."""

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    device: str | None = None


class _Refusal(Exception):
    """Why a token whose signature holds is refused, in words for its bearer."""


class Authenticator:
    """The keys of a configuration, loaded. ConfigError for one that cannot be used."""

    def __init__(self, auth: Auth) -> None:
        self._auth = auth
        self._keys = {key.kid: (key.algorithm, _load(key)) for key in auth.keys}
        # An issuer writes one header into all its tokens. What is refused is not kept, and
        # strangers who send a new one each time only push the others out.
        self._key_for = lru_cache(maxsize=64)(self._find_key)

    def identify(self, token: str) -> Identity:
        """The identity in a token, or ImError 401.

        A login that only the leeway still allowed ends with the leeway; all others at `exp`.
        """
        auth = self._auth
        try:
            if len(token) > TOKEN_LEN_MAX or not token.isascii():
                raise ValueError(f"a token is ASCII, at most {TOKEN_LEN_MAX} bytes")
            claims = read_claims(token, self._key_for)
            check_claims(claims, auth.issuer, auth.audience, auth.leeway_s)
            return self._read(claims)
        except _Refusal as refusal:
            reason = text = str(refusal)
        except jwt.ExpiredSignatureError:
            reason = text = "the token has expired"
        except _CLAIM_ERRORS as error:
            reason = text = f"the token is refused: {error}"
        # Whatever a stranger's bytes make the parsers below raise is their answer, not our fault.
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            reason, text = f"{type(error).__name__}: {error}", "the token is not valid"
        _log.debug("token refused: %.200r", reason)
        raise ImError(ErrorCode.UNAUTHORIZED, text)

    def _find_key(self, encoded: bytes) -> "tuple[Algorithm, AllowedPublicKeys | bytes]":
        header = msgspec.convert(read_header(encoded), _Header)
        if header.crit is not None or header.b64 is False:
            raise ValueError("crit and b64 name extensions that we do not have")
        if header.kid is None and len(self._keys) != 1:
            raise ValueError(f"no kid, and there are {len(self._keys)} keys")
        kid = next(iter(self._keys)) if header.kid is None else header.kid
        if kid not in self._keys:
            raise ValueError(f"no key with kid {kid!r}")
        algorithm, key = self._keys[kid]
        if header.alg != algorithm:
            raise ValueError(f"key {kid!r} is for {algorithm}, not {header.alg!r}")
        return _algorithms[algorithm], key

    def _read(self, claims: Mapping[str, Any]) -> Identity:
        expires_s, now_s = _number(claims["exp"], "exp"), time.time()
        issued_s = min(_number(claims.get("iat", now_s), "iat"), now_s)
        if expires_s - issued_s > self._auth.max_lifetime_s + self._auth.leeway_s:
            raise _Refusal(f"the token lives longer than {self._auth.max_lifetime_s} s")
        if expires_s <= now_s:
            expires_s += self._auth.leeway_s
        try:
            grants = msgspec.convert(claims.get("im", {}), _Grants)
            for pattern in (*grants.publish, *grants.subscribe):
                _check_pattern(pattern)
            if grants.device is not None:
                check_identifier(grants.device)
            user = check_identifier(claims["sub"])
        except msgspec.ValidationError as error:
            raise _Refusal(f"the claim im: {error}") from None
        except ImError as error:
            raise _Refusal(f"a name in the token: {error.message}") from None
        rights = shared_rights(grants.publish, grants.subscribe)
        return Identity(user, rights, expires_s, grants.device, claims)


def issue(
    auth: Auth,
    user: str,
    *,
    publish: Sequence[str] = (),
    subscribe: Sequence[str] = (),
    ttl_s: int = 3_600,
    device: str | None = None,
    kid: str | None = None,
    private_key: bytes | None = None,
) -> str:
    """A token that a server with this configuration accepts, for `ttl_s` seconds from now.

    Signed with the key named `kid`, by default the first. A key of an RS, ES or EdDSA algorithm
    only verifies, so its `private_key` (PEM) has to be given. `publish` and `subscribe` are
    topics, or beginnings of topics followed by "*". ConfigError when there is no such key,
    ValueError for what a server would refuse.
    """
    key = next((key for key in auth.keys if kid in (None, key.kid)), None)
    if key is None:
        raise ConfigError("auth.keys", "holds no key" if kid is None else f"holds no key {kid!r}")
    if private_key is None and not key.is_shared_secret:
        rule = f"key {key.kid!r} can verify but not sign: its private key is needed"
        raise ConfigError("auth.keys", rule)
    if not 1 <= ttl_s <= auth.max_lifetime_s:
        raise ValueError(f"a token lives 1 to {auth.max_lifetime_s} seconds, not {ttl_s}")
    now_s = int(time.time())
    claims: dict[str, Any] = {"sub": user, "iat": now_s, "exp": now_s + ttl_s}
    grants = {"publish": list(publish), "subscribe": list(subscribe), "device": device}
    grants = {name: value for name, value in grants.items() if value}
    given = {"im": grants, "iss": auth.issuer, "aud": auth.audience}
    claims |= {name: value for name, value in given.items() if value}
    signer = key.material() if private_key is None else private_key
    try:
        token = _jwt.encode(claims, signer, key.algorithm, headers={"kid": key.kid})
        Authenticator(auth).identify(token)
    except ImError as error:
        raise ValueError(error.message) from None
    # AttributeError is what PyJWT makes of a public key here.
    except (jwt.PyJWTError, TypeError, AttributeError) as error:
        raise ValueError(f"cannot sign with {key.algorithm}: {error}") from None
    return token


def _number(claim: object, name: str) -> float:
    if not isinstance(claim, int | float) or isinstance(claim, bool):
        raise _Refusal(f"{name} in the token is not a number")
    return float(claim)


def _check_pattern(pattern: str) -> None:
    check_topic(pattern)
    # Elsewhere it would be an ordinary character, which nobody who writes it means.
    if "*" in pattern[:-1]:
        raise ImError(ErrorCode.BAD_BODY, 'in a pattern "*" stands only at the end')


def _load(key: Key) -> "AllowedPublicKeys | bytes":
    """The key as its algorithm wants it. ConfigError when it is of another kind."""
    material = key.material()
    if key.is_shared_secret:
        try:
            prepared: bytes = _algorithms[key.algorithm].prepare_key(material)
        except jwt.InvalidKeyError as error:
            name = "secret" if key.secret else "secret_file"
            raise key.error(name, f"key {key.kid!r} is no shared secret: {error}") from None
        return prepared
    # Here, because shared secrets need no part of it.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    name = "public_key" if key.public_key else "public_key_file"
    try:
        public = load_pem_public_key(material)
    except (ValueError, UnsupportedAlgorithm):
        raise key.error(name, f"key {key.kid!r} is not a public key in PEM") from None
    if isinstance(public, rsa.RSAPublicKey) and key.algorithm.startswith("RS"):
        if public.key_size < RSA_BITS_MIN:
            raise key.error(name, f"key {key.kid!r} has less than {RSA_BITS_MIN} bits")
        return public
    if isinstance(public, ec.EllipticCurvePublicKey):
        curves = {"ES256": "secp256r1", "ES384": "secp384r1"}
        if curves.get(key.algorithm) == public.curve.name:
            return public
    if not isinstance(public, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        raise key.error(name, f"key {key.kid!r} is no {key.algorithm} key")
    if key.algorithm != "EdDSA":
        raise key.error(name, f"key {key.kid!r} is an EdDSA key, not {key.algorithm}")
    return public
