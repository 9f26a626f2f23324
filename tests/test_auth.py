"""Tokens: what is believed, and every way we know of to be believed without a right to it."""

import hashlib
import hmac
import time
from typing import Any

import jwt
import pytest
from tokens import (
    BOTH,
    ED_PRIVATE,
    ED_PUBLIC,
    HS,
    NOT_VALID,
    OTHER,
    P256_PRIVATE,
    P256_PUBLIC,
    P384_PRIVATE,
    P384_PUBLIC,
    RS,
    RSA_PRIVATE,
    RSA_PUBLIC,
    SECRET,
    claims,
    forge,
    identify,
    part,
    refusal,
    sign,
)

from imserver.auth import TOKEN_LEN_MAX, Authenticator, issue
from imserver.config import Algorithm, Auth, Key
from imserver.errors import ImError
from imserver.model_session import NO_RIGHTS


def test_a_good_token_is_believed() -> None:
    im = {"publish": ["room:*"], "subscribe": ["room:a", "dm:ann:bob"], "device": "phone"}
    payload = claims(im=im, name="Ann")
    identity = identify(sign(payload))
    assert (identity.user, identity.device) == ("ann", "phone")
    assert identity.rights.publish == ("room:*",)
    assert identity.rights.subscribe == ("room:a", "dm:ann:bob")
    assert identity.expires_s == payload["exp"]
    assert identity.claims["name"] == "Ann"


def test_a_token_without_rights_has_none() -> None:
    identity = identify(sign(claims()))
    assert identity.rights is NO_RIGHTS
    assert identity.device is None


def test_the_same_rights_are_one_object() -> None:
    im = {"publish": ["room:*", "group:x"]}
    first, second = (identify(sign(claims(sub=user, im=im))) for user in ("ann", "bob"))
    assert first.rights is second.rights


ALGORITHMS: list[tuple[Algorithm, dict[str, str], bytes | None]] = [
    ("HS256", {"secret": SECRET}, None),
    ("HS384", {"secret": SECRET}, None),
    ("HS512", {"secret": SECRET}, None),
    ("RS256", {"public_key": RSA_PUBLIC}, RSA_PRIVATE),
    ("RS384", {"public_key": RSA_PUBLIC}, RSA_PRIVATE),
    ("RS512", {"public_key": RSA_PUBLIC}, RSA_PRIVATE),
    ("ES256", {"public_key": P256_PUBLIC}, P256_PRIVATE),
    ("ES384", {"public_key": P384_PUBLIC}, P384_PRIVATE),
    ("EdDSA", {"public_key": ED_PUBLIC}, ED_PRIVATE),
]


@pytest.mark.parametrize(("algorithm", "material", "private"), ALGORITHMS)
def test_every_algorithm_works_with_its_key(
    algorithm: Algorithm, material: dict[str, str], private: bytes | None
) -> None:
    auth = Auth(keys=(Key(algorithm=algorithm, **material),))  # type: ignore[arg-type]
    token = issue(auth, "ann", publish=["room:*"], private_key=private)
    assert identify(token, auth).user == "ann"
    assert jwt.get_unverified_header(token) == {
        "alg": algorithm,
        "kid": "default",
        "typ": "JWT",
    }
    head, body, mac = token.split(".")
    flipped = ("A" if mac[0] != "A" else "B") + mac[1:]
    assert refusal(f"{head}.{body}.{flipped}", auth) == NOT_VALID


# Keys and algorithms (S5a, S5c)


def test_a_public_key_is_no_shared_secret() -> None:
    """The classic: HS256 with the text of the RSA public key, which everybody has."""
    for kid in ({}, {"kid": "default"}):
        header = {"alg": "HS256", "typ": "JWT"} | kid
        assert refusal(forge(header, claims(), RSA_PUBLIC.encode()), RS) == NOT_VALID


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", "HS512", "hs256", "RS256"])
def test_the_token_does_not_choose_the_algorithm(alg: str) -> None:
    for secret in (None, SECRET.encode()):
        assert refusal(forge({"alg": alg, "typ": "JWT"}, claims(), secret)) == NOT_VALID


def test_none_is_no_algorithm_for_any_key() -> None:
    for auth in (HS, RS, BOTH, Auth()):
        for kid in (None, "default", "hs", "rs"):
            header = {"alg": "none", "kid": kid} if kid else {"alg": "none"}
            assert refusal(forge(header, claims(), None), auth) == NOT_VALID


def test_kid_chooses_the_key_and_nothing_else() -> None:
    assert identify(sign(claims(), kid="hs"), BOTH).user == "ann"
    assert identify(sign(claims(), RSA_PRIVATE, "RS256", kid="rs"), BOTH).user == "ann"
    assert refusal(sign(claims(), kid="rs"), BOTH) == NOT_VALID
    assert refusal(sign(claims(), RSA_PRIVATE, "RS256", kid="hs"), BOTH) == NOT_VALID


@pytest.mark.parametrize("kid", ["", "HS", "hs ", "../hs", "hs\x00", "' or 1=1", 1, ["hs"], {}])
def test_an_unknown_kid_is_refused(kid: Any) -> None:
    assert refusal(forge({"alg": "HS256", "kid": kid}, claims()), BOTH) == NOT_VALID


def test_without_kid_there_has_to_be_one_key() -> None:
    assert identify(sign(claims())).user == "ann"
    assert refusal(sign(claims()), BOTH) == NOT_VALID
    assert refusal(sign(claims()), Auth()) == NOT_VALID


def test_a_key_inside_the_token_is_not_used() -> None:
    jwk = {"kty": "oct", "k": part(OTHER.encode()).decode()}
    for header in ({"jwk": jwk}, {"jku": "http://127.0.0.1:1/k"}, {"x5u": "http://127.0.0.1:1/c"}):
        full = {"alg": "HS256"} | header
        assert refusal(forge(full, claims(), OTHER.encode())) == NOT_VALID
        # ... and does no harm beside a good signature.
        assert identify(forge(full, claims())).user == "ann"


@pytest.mark.parametrize("crit", [["b64"], None])
def test_a_payload_that_is_not_in_the_token_is_refused(crit: Any) -> None:
    """RFC 7797: with b64=false the payload is somewhere else, or not encoded."""
    header = {"alg": "HS256", "b64": False} | ({"crit": crit} if crit else {})
    assert refusal(forge(header, claims())) == NOT_VALID
    signed = part(header) + b"."
    mac = hmac.digest(SECRET.encode(), signed + b"{}", hashlib.sha256)
    assert refusal((signed + b"." + part(mac)).decode()) == NOT_VALID


def test_headers_are_judged_each_by_themselves() -> None:
    """They are remembered: what one was good for must not help another, nor harm it."""
    authenticator = Authenticator(BOTH)
    good, bad = sign(claims(), kid="hs"), sign(claims(), kid="rs")
    for _ in range(3):
        assert authenticator.identify(good).user == "ann"
        with pytest.raises(ImError):
            authenticator.identify(bad)
    for number in range(200):
        with pytest.raises(ImError):
            authenticator.identify(sign(claims(), OTHER, kid="hs", x=number))
    assert authenticator.identify(good).user == "ann"


@pytest.mark.parametrize("crit", [["exp"], ["b64"], ["http://example.com/x"], [], "exp", 1])
def test_critical_extensions_are_refused(crit: Any) -> None:
    header = {"alg": "HS256", "crit": crit, "b64": False}
    assert refusal(forge(header, claims())) == NOT_VALID


# Bytes


def test_a_tampered_token_is_refused() -> None:
    head, body, mac = sign(claims()).split(".")
    other = part(claims(sub="root")).decode()
    for token in (f"{head}.{other}.{mac}", f"{head}.{body}.", f"{head}.{body}", f"{head}..{mac}"):
        assert refusal(token) == NOT_VALID
    assert refusal(sign(claims(), OTHER)) == NOT_VALID


def test_no_byte_of_a_token_can_be_changed() -> None:
    token = sign(claims())
    authenticator = Authenticator(HS)
    for at in range(0, len(token) - 1):  # the last character holds unused bits
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        with pytest.raises(ImError):
            authenticator.identify(changed)


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "a",
        "a.b.c",
        "é.b.c",
        "\x00" * 20,
        "=" * 40,
        "eyJhbGciOiJIUzI1NiJ9",
        "eyJhbGciOiJIUzI1NiJ9..",
        "W10.e30.AA",
        "MQ.e30.AA",
        "bnVsbA.e30.AA",
        "." * 8_000,
        "\ud800",
    ],
)
def test_what_is_no_token_is_refused(token: str) -> None:
    assert refusal(token) == NOT_VALID


def test_nesting_is_refused_before_and_after_the_signature() -> None:
    deep = b"[" * 2_900
    assert refusal(forge(deep, claims())) == NOT_VALID
    assert refusal(forge(b'{"alg":"HS256","x":' + deep, claims())) == NOT_VALID
    assert refusal(forge({"alg": "HS256"}, deep)) == NOT_VALID


def test_a_token_is_at_most_8_kib() -> None:
    token = sign(claims())
    at_most = sign(claims(x="a" * ((TOKEN_LEN_MAX - len(token)) * 3 // 4 - 8)))
    assert TOKEN_LEN_MAX - 16 < len(at_most) <= TOKEN_LEN_MAX
    assert identify(at_most).user == "ann"
    assert refusal(sign(claims(x="a" * TOKEN_LEN_MAX))) == NOT_VALID


@pytest.mark.parametrize("payload", [b"[]", b"1", b"null", b'"x"', b"", b"{", b"\xff", b'{"exp":'])
def test_claims_are_a_map(payload: bytes) -> None:
    assert refusal(forge({"alg": "HS256"}, payload)) == NOT_VALID


# Claims (S5b)


@pytest.mark.parametrize("name", ["exp", "sub"])
def test_exp_and_sub_are_required(name: str) -> None:
    assert name in refusal(forge({"alg": "HS256"}, claims(**{name: None})))
    payload = claims() | {name: None}
    assert name in refusal(forge({"alg": "HS256"}, payload))


@pytest.mark.parametrize(
    "value", ["soon", "", [], {}, True, "1e9", float("nan"), float("inf"), 10**400, -1, 0, 1e300]
)
def test_exp_is_a_time_to_come(value: Any) -> None:
    assert refusal(forge({"alg": "HS256"}, claims(exp=value)))


def test_exp_as_text_is_refused_even_when_it_is_a_number() -> None:
    text = str(int(time.time()) + 60)
    assert "not a number" in refusal(forge({"alg": "HS256"}, claims(exp=text)))


def test_an_expired_token_is_told_so() -> None:
    assert refusal(sign(claims(exp=int(time.time()) - 11))) == "the token has expired"
    assert refusal(sign(claims(exp=int(time.time()) - 1)), Auth(keys=HS.keys, leeway_s=0))


def test_the_leeway_lets_in_and_then_ends() -> None:
    now_s = int(time.time())
    late = identify(sign(claims(exp=now_s - 5)))
    assert late.expires_s == now_s + 5
    assert identify(sign(claims(exp=now_s + 60))).expires_s == now_s + 60


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_a_token_from_the_future_is_refused(name: str) -> None:
    now_s = int(time.time())
    assert identify(sign(claims(**{name: now_s + 5}))).user == "ann"
    assert "not yet valid" in refusal(sign(claims(**{name: now_s + 30})))


def test_a_token_lives_no_longer_than_allowed() -> None:
    now_s = int(time.time())
    auth = Auth(keys=HS.keys, max_lifetime_s=100, leeway_s=0)
    assert identify(sign(claims(exp=now_s + 90)), auth)
    assert identify(sign(claims(iat=now_s - 30, exp=now_s + 60)), auth)
    assert "lives longer" in refusal(sign(claims(exp=now_s + 110)), auth)
    # Neither an old token nor one dated ahead gains anything.
    assert "lives longer" in refusal(sign(claims(iat=now_s - 90, exp=now_s + 60)), auth)
    lenient = Auth(keys=HS.keys, max_lifetime_s=100, leeway_s=30)
    assert "lives longer" in refusal(sign(claims(iat=now_s + 20, exp=now_s + 140)), lenient)


@pytest.mark.parametrize("value", ["x", [], {}, True, None, float("nan"), float("inf"), "1"])
def test_iat_is_a_number(value: Any) -> None:
    assert refusal(forge({"alg": "HS256"}, claims() | {"iat": value}))


@pytest.mark.parametrize(
    "user",
    ["", "a b", "a\n", "$server", "a*", "a|b", "a:b", "a/b", "é", "a" * 65, "\x00", 1, ["a"], {}],
)
def test_sub_is_an_identifier(user: Any) -> None:
    assert refusal(forge({"alg": "HS256"}, claims(sub=user)))


def test_issuer_and_audience_are_checked_where_they_are_set() -> None:
    auth = Auth(keys=HS.keys, issuer="https://us", audience="im")
    assert identify(sign(claims(iss="https://us", aud="im")), auth)
    assert identify(sign(claims(iss="https://us", aud=["x", "im"])), auth)
    for changes in (
        {},
        {"iss": "https://us"},
        {"aud": "im"},
        {"iss": "https://them", "aud": "im"},
        {"iss": "https://us", "aud": "other"},
        {"iss": "https://us", "aud": []},
        {"iss": ["https://us"], "aud": "im"},
        {"iss": "https://us", "aud": {"im": 1}},
    ):
        text = refusal(forge({"alg": "HS256"}, claims(**changes)), auth)
        assert "https://us" not in text
    assert identify(sign(claims(iss="anybody")))
    assert refusal(sign(claims(aud="another service")))


@pytest.mark.parametrize(
    "im",
    [
        [],
        "x",
        1,
        {"publish": "room:*"},
        {"publish": [1]},
        {"publish": None},
        {"subscribe": {"room:*": True}},
        {"publish": [""]},
        {"publish": ["a\nb"]},
        {"publish": ["a" * 256]},
        {"publish": ["room:*:x"]},
        {"subscribe": ["**"]},
        {"device": ""},
        {"device": "a b"},
        {"device": 1},
    ],
)
def test_rights_that_are_not_as_documented_refuse_the_token(im: Any) -> None:
    assert refusal(sign(claims(im=im)))


def test_claims_of_others_and_of_the_future_are_ignored() -> None:
    identity = identify(sign(claims(publish=["*"], scope="admin", im={"later": [1]})))
    assert identity.rights is NO_RIGHTS


def test_a_refusal_gives_nothing_away(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "imserver.auth")
    texts = {
        refusal(sign(claims(), OTHER, kid="hs"), BOTH),
        refusal(sign(claims(), OTHER, kid="nobody"), BOTH),
        refusal(sign(claims(), OTHER, "HS512", kid="hs"), BOTH),
        refusal("a.b.c", BOTH),
    }
    assert texts == {NOT_VALID}
    assert "no key with kid" in caplog.text
    assert SECRET not in caplog.text


def test_the_log_is_not_written_by_the_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "imserver.auth")
    refusal(forge({"alg": "HS256", "kid": "x\n2026-01-01 all is well\x1b[2J" + "y" * 900}, {}))
    message = caplog.records[-1].getMessage()
    assert message.isprintable()
    assert len(message) < 300
