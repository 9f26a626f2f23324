"""Keys as configured, and the tokens that are issued with them."""

import json
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa
from tokens import (
    BOTH,
    ED_PRIVATE,
    ED_PUBLIC,
    HS,
    P256_PUBLIC,
    P384_PUBLIC,
    RS,
    RSA_PRIVATE,
    RSA_PUBLIC,
    claims,
    identify,
    pem,
    sign,
)

from imserver.auth import Authenticator, issue
from imserver.config import Algorithm, Auth, ConfigError, Key

# Keys as configured


@pytest.mark.parametrize(
    ("algorithm", "public", "rule"),
    [
        ("RS256", P256_PUBLIC, "no RS256 key"),
        ("RS256", ED_PUBLIC, "RS256"),
        ("ES256", RSA_PUBLIC, "no ES256 key"),
        ("ES256", P384_PUBLIC, "no ES256 key"),
        ("ES384", P256_PUBLIC, "no ES384 key"),
        ("EdDSA", P256_PUBLIC, "no EdDSA key"),
        ("EdDSA", RSA_PUBLIC, "no EdDSA key"),
        ("RS256", RSA_PRIVATE.decode(), "not a public key"),
        ("RS256", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a public"),
        ("RS256", "x", "not a public key"),
        ("RS256", pem(rsa.generate_private_key(65_537, 1_024))[0], "2048 bits"),
        ("RS256", pem(dsa.generate_private_key(1_024))[0], "no RS256 key"),
        ("ES256", pem(ec.generate_private_key(ec.SECP256K1()))[0], "no ES256 key"),
    ],
)
def test_a_key_of_another_kind_is_refused_at_start(
    algorithm: Algorithm, public: str, rule: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Authenticator(Auth(keys=(Key(algorithm=algorithm, public_key=public),)))
    assert caught.value.key == "auth.keys.public_key"
    assert rule in caught.value.rule
    assert "BEGIN" not in str(caught.value)


def test_a_secret_that_is_a_key_of_another_kind_is_refused_at_start() -> None:
    jwk = json.dumps({"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"})
    with pytest.raises(ConfigError, match="no shared secret") as caught:
        Authenticator(Auth(keys=(Key(algorithm="HS256", secret=jwk),)))
    assert caught.value.key == "auth.keys.secret"
    assert "c2Vj" not in str(caught.value)


def test_ed448_is_eddsa_too() -> None:
    public, private = pem(ed448.Ed448PrivateKey.generate())
    auth = Auth(keys=(Key(algorithm="EdDSA", public_key=public),))
    assert identify(issue(auth, "ann", private_key=private), auth).user == "ann"


def test_keys_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "pub").write_text(RSA_PUBLIC)
    auth = Auth(keys=(Key(algorithm="RS256", public_key_file=str(tmp_path / "pub")),))
    assert identify(sign(claims(), RSA_PRIVATE, "RS256"), auth).user == "ann"


# Issued


def test_an_issued_token_says_what_was_asked_for() -> None:
    auth = Auth(keys=BOTH.keys, issuer="us", audience="im")
    token = issue(auth, "ann", publish=["a:*"], subscribe=["b:c"], ttl_s=30, device="d")
    identity = identify(token, auth)
    assert (identity.user, identity.device) == ("ann", "d")
    assert (identity.rights.publish, identity.rights.subscribe) == (("a:*",), ("b:c",))
    assert 28 < identity.expires_s - time.time() <= 30
    assert identify(issue(auth, "ann", kid="rs", private_key=RSA_PRIVATE), auth).user == "ann"


def test_nothing_is_issued_that_a_server_refuses() -> None:
    for user in ("", "a b", "$server"):
        with pytest.raises(ValueError, match="name in the token"):
            issue(HS, user)
    with pytest.raises(ValueError, match=r"only at the end"):
        issue(HS, "ann", publish=["a*b"])
    with pytest.raises(ValueError, match="1 to 86400 seconds"):
        issue(HS, "ann", ttl_s=86_401)
    with pytest.raises(ValueError, match="not valid"):
        issue(HS, "ann", publish=["room:" + "x" * 200] * 60)


def test_signing_needs_the_right_key() -> None:
    with pytest.raises(ConfigError, match="holds no key"):
        issue(Auth(), "ann")
    with pytest.raises(ConfigError, match="no key 'x'"):
        issue(HS, "ann", kid="x")
    with pytest.raises(ConfigError, match="private key is needed"):
        issue(RS, "ann")
    with pytest.raises(ValueError, match="not valid"):
        issue(RS, "ann", private_key=pem(rsa.generate_private_key(65_537, 2_048))[1])
    for wrong in (b"x", ED_PRIVATE, RSA_PUBLIC.encode()):
        with pytest.raises(ValueError, match="cannot sign"):
            issue(RS, "ann", private_key=wrong)
