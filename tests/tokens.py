"""Keys, and tokens made of them: good ones, and forged ones."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from imserver.auth import Authenticator, Identity
from imserver.config import Auth, Key
from imserver.errors import ErrorCode, ImError

SECRET = "s" * 64
OTHER = "o" * 64


def pem(key: Any) -> tuple[str, bytes]:
    """(public, private) in PEM."""
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return public.decode(), private


RSA_PUBLIC, RSA_PRIVATE = pem(rsa.generate_private_key(65_537, 2_048))
P256_PUBLIC, P256_PRIVATE = pem(ec.generate_private_key(ec.SECP256R1()))
P384_PUBLIC, P384_PRIVATE = pem(ec.generate_private_key(ec.SECP384R1()))
ED_PUBLIC, ED_PRIVATE = pem(ed25519.Ed25519PrivateKey.generate())

HS = Auth(keys=(Key(algorithm="HS256", secret=SECRET),))
RS = Auth(keys=(Key(algorithm="RS256", public_key=RSA_PUBLIC),))
BOTH = Auth(
    keys=(
        Key(kid="hs", algorithm="HS256", secret=SECRET),
        Key(kid="rs", algorithm="RS256", public_key=RSA_PUBLIC),
    )
)


def claims(**changes: Any) -> dict[str, Any]:
    """Good ones, but for the changes; None removes a claim."""
    good = {"sub": "ann", "exp": int(time.time()) + 60} | changes
    return {name: value for name, value in good.items() if value is not None}


def sign(payload: Any, key: Any = SECRET, algorithm: str = "HS256", **header: Any) -> str:
    return jwt.encode(payload, key, algorithm, headers=header)


def part(value: Any) -> bytes:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def forge(header: Any, payload: Any, secret: bytes | None = SECRET.encode()) -> str:
    """A token by hand, for what PyJWT would not make."""
    signed = part(header) + b"." + part(payload)
    mac = b"" if secret is None else hmac.digest(secret, signed, hashlib.sha256)
    return (signed + b"." + part(mac)).decode()


def identify(token: str, auth: Auth = HS) -> Identity:
    return Authenticator(auth).identify(token)


def refusal(token: str, auth: Auth = HS) -> str:
    with pytest.raises(ImError) as caught:
        identify(token, auth)
    assert caught.value.code == ErrorCode.UNAUTHORIZED
    return caught.value.message


NOT_VALID = "the token is not valid"
