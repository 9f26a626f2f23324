"""A signed token (JWS compact, RFC 7515) taken apart: PyJWT's rules at a quarter of their price.

Ten thousand logins a second after a restart, each with a token. PyJWT looks at each character of
it in Python, and judges the key anew each time. Here the header, the same in all tokens of an
issuer, is read by PyJWT once; the signature is verified by PyJWT's `Algorithm`, with a key that
was prepared once; what lies between is base64, JSON and seven claims. docs/adr/0005 has the
measurement; tests/test_auth_token.py holds this against PyJWT, with tokens that are nearly right.

Not here: which key belongs to a header, and what the claims mean (auth).
"""

import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any

import jwt
from jwt.algorithms import Algorithm

#: From a header, as it stands in the token, to the algorithm and the key, prepared by it.
KeyFor = Callable[[bytes], tuple[Algorithm, Any]]


def read_header(header: bytes) -> dict[str, Any]:
    """The fields of a header, by all of PyJWT's rules."""
    return jwt.get_unverified_header(header + b"..")


def read_claims(token: str, key_for: KeyFor) -> dict[str, Any]:
    """What a token says, if the signature is right. Looks at nothing in it."""
    signed, _, signature = token.encode().rpartition(b".")
    header, dot, payload = signed.partition(b".")
    if not dot:
        raise jwt.DecodeError("Not enough segments")
    algorithm, key = key_for(header)
    if not algorithm.verify(signed, key, _decode(signature)):
        raise jwt.InvalidSignatureError("Signature verification failed")
    claims = json.loads(_decode(payload))
    if not isinstance(claims, dict):
        raise jwt.DecodeError("Invalid payload string: must be a json object")
    return claims


def check_claims(claims: dict[str, Any], issuer: str, audience: str, leeway_s: float) -> None:
    """The registered claims: `exp` and `sub` have to be there, what is there has to hold.
    `issuer` and `audience` are "" where any is right; but a token for somebody named is not
    for us, who have no name then."""
    now_s = time.time()
    for name in ("exp", "sub"):
        _require(claims.get(name), name)
    if "iat" in claims and _seconds(claims, "iat") > now_s + leeway_s:
        raise jwt.ImmatureSignatureError("The token is not yet valid (iat)")
    if "nbf" in claims and _seconds(claims, "nbf") > now_s + leeway_s:
        raise jwt.ImmatureSignatureError("The token is not yet valid (nbf)")
    if _seconds(claims, "exp") <= now_s - leeway_s:
        raise jwt.ExpiredSignatureError("Signature has expired")
    if issuer and _require(claims.get("iss"), "iss") != issuer:
        raise jwt.InvalidIssuerError("Invalid issuer")
    if audience:
        named = _require(claims.get("aud") or None, "aud")
        named = [named] if isinstance(named, str) else named
        if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
            raise jwt.InvalidAudienceError("Invalid claim format in token")
        if audience not in named:
            raise jwt.InvalidAudienceError("Audience doesn't match")
    elif claims.get("aud"):
        raise jwt.InvalidAudienceError("Invalid audience")
    for name in ("sub", "jti"):
        if name in claims and not isinstance(claims[name], str):
            raise jwt.InvalidTokenError(f"{name} must be a string")


def _require(claim: Any, name: str) -> Any:
    if claim is None:
        raise jwt.MissingRequiredClaimError(name)
    return claim


def _seconds(claims: dict[str, Any], name: str) -> int:
    try:
        return int(claims[name])
    except (ValueError, TypeError, OverflowError):
        if name == "iat":
            raise jwt.InvalidIssuedAtError("iat must be an integer") from None
        raise jwt.DecodeError(f"{name} must be an integer") from None


def _decode(text: bytes) -> bytes:
    """Base64url, padded rightly or not at all. What does not come back the same when it is
    encoded again had other characters, or bits that say nothing: with either a token could be
    changed and still be believed."""
    bare = text.rstrip(b"=")
    padding = len(text) - len(bare)
    if padding > 2 or (padding and len(text) % 4):
        raise jwt.DecodeError("Invalid padding")
    data = urlsafe_b64decode(bare + b"==="[: -len(bare) % 4])
    if urlsafe_b64encode(data).rstrip(b"=") != bare:
        raise jwt.DecodeError("Invalid padding")
    return data
