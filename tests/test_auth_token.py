"""Our reading of tokens against PyJWT's: what one refuses the other refuses, for the same reason,
and what one accepts says the same to both. The tokens are right, but for one thing or two."""

import json
import time
from typing import Any

import jwt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jwt.algorithms import Algorithm, get_default_algorithms

from imserver.auth import _CLAIM_ERRORS
from imserver.auth_token import check_claims, read_claims, read_header
from tests.test_auth import SECRET, forge

LEEWAY_S = 10
NOW_S = int(time.time())
LATER_S = NOW_S + 3_600  # the whole suite takes minutes
HS256 = get_default_algorithms()["HS256"]
KEY = SECRET.encode()

#: What PyJWT, json and we ourselves raise for a bad token; anything else is a fault.
REFUSALS = (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError)


def key_for(header: bytes) -> tuple[Algorithm, bytes]:
    if read_header(header).get("alg") != "HS256":
        raise jwt.InvalidAlgorithmError("not ours")
    return HS256, KEY


def ours(token: str, issuer: str = "", audience: str = "") -> dict[str, Any]:
    claims = read_claims(token, key_for)
    check_claims(claims, issuer, audience, LEEWAY_S)
    return claims


def theirs(token: str, issuer: str = "", audience: str = "") -> dict[str, Any]:
    claims: dict[str, Any] = jwt.PyJWT().decode(
        token,
        KEY,
        algorithms=["HS256"],
        audience=audience or None,
        issuer=issuer or None,
        leeway=LEEWAY_S,
        options={"require": ["exp", "sub"]},
    )
    return claims


def outcome(read: Any, token: str, *about: str) -> str:
    """The claims (as text: NaN is not equal to itself), or the kind of the refusal: what its
    bearer is told depends on that."""
    try:
        return "accepted " + json.dumps(read(token, *about), sort_keys=True)
    except jwt.ExpiredSignatureError:
        return "expired"
    except _CLAIM_ERRORS:
        return "a claim is refused"
    except REFUSALS:
        return "not valid"


def compare(token: str, *about: str) -> str:
    expected = outcome(theirs, token, *about)
    assert outcome(ours, token, *about) == expected
    return expected


# Times far from any boundary, so that the clock moving between the two readings shows nothing.
TIMES = st.sampled_from([-(10**9), -60, -5, 0, 5, 60, 10**9]).map(lambda s: NOW_S + s)
NUMBERS = [True, False, 0, -1, 1.5, 1e300, 10**400, float("nan"), float("inf")]
TEXTS = ["", "x", "12", " 12 ", "1_0", "٣", "\ud800", str(NOW_S + 60)]
ODD = st.sampled_from([None, *NUMBERS, *TEXTS, [], [1], ["im"], {}, {"im": 1}])
TIME = TIMES | TIMES.map(float) | ODD
NAME = st.sampled_from(["im", "us", "ann", ["im"], ["x", "im"], ["im", 1], ["x"]]) | ODD

CLAIMS = st.fixed_dictionaries(
    {},
    optional={
        "sub": NAME,
        "exp": TIME,
        "iat": TIME,
        "nbf": TIME,
        "iss": NAME,
        "aud": NAME,
        "jti": NAME,
        "im": ODD,
    },
).map(lambda odd: {"sub": "ann", "exp": LATER_S} | odd)

REMOVED = st.lists(st.sampled_from(["sub", "exp"]), max_size=1)


@given(CLAIMS, REMOVED, st.sampled_from(["", "us"]), st.sampled_from(["", "im"]))
@settings(max_examples=1_500, deadline=None)
@example({"sub": "ann", "exp": NOW_S + 60, "aud": ["im"], "iss": "us"}, [], "us", "im")
def test_claims_are_judged_as_pyjwt_does(
    claims: dict[str, Any], removed: list[str], issuer: str, audience: str
) -> None:
    for name in removed:
        claims.pop(name)
    compare(forge({"alg": "HS256"}, claims), issuer, audience)


GOOD = forge({"alg": "HS256", "typ": "JWT"}, {"sub": "ann", "exp": LATER_S})
CHARACTERS = st.sampled_from("ABCDwxyz0189-_+/=.~ \n\r\x00é")


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A good token after a few changes: characters put in, taken out, put in place of others."""
    token = draw(st.sampled_from(PADDED))
    for _ in range(draw(st.integers(0, 2))):
        # Near the dots and the ends is where padding and unused bits are.
        ends = [at for at, one in enumerate(token) if one == "."] + [0, len(token)]
        at = draw(st.sampled_from(ends)) + draw(st.integers(-3, 3))
        at = (
            min(max(at, 0), len(token)) if draw(st.booleans()) else draw(st.integers(0, len(token)))
        )
        token = token[:at] + draw(st.just("") | CHARACTERS) + token[at + draw(st.integers(0, 1)) :]
    return token


def padded(token: str) -> str:
    """Each part with the "=" that some issuers write, signed as it stands."""
    head, payload, _ = (part + "=" * (-len(part) % 4) for part in token.split("."))
    signature = jwt.utils.base64url_encode(HS256.sign(f"{head}.{payload}".encode(), KEY)).decode()
    return f"{head}.{payload}.{signature}" + "=" * (-len(signature) % 4)


PADDED = [
    form
    for extra in ("", "x", "xy", "xyz")
    for token in [forge({"alg": "HS256", "x": extra}, {"sub": "ann" + extra, "exp": LATER_S})]
    for form in (token, padded(token))
]


@given(damaged())
@settings(max_examples=3_000, deadline=None)
def test_bytes_are_judged_as_pyjwt_does(token: str) -> None:
    compare(token)


@pytest.mark.parametrize("token", PADDED)
def test_padding_is_allowed_where_it_is_right(token: str) -> None:
    assert compare(token).startswith("accepted")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "alg": st.sampled_from(["HS256", "hs256", "none", "HS512", "", None, 1, ["HS256"]]),
            "kid": st.sampled_from(["a", "", None, 1, []]),
            "typ": ODD,
            "b64": st.sampled_from([True, None, 0, "x"]),
        },
    )
    | ODD
)
@settings(max_examples=400, deadline=None)
def test_headers_are_judged_as_pyjwt_does(header: Any) -> None:
    compare(forge(header, {"sub": "ann", "exp": LATER_S}))


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
@settings(max_examples=500, deadline=None)
@example(b"\xef\xbb\xbf{}")
@example('{"sub": "ann", "exp": 9999999999}'.encode("utf-16"))
@example(b'{"sub": "ann", "exp": 9999999999, "sub": "bob"}')
@example(b'{"sub": "ann", "exp": 9999999999, "x": ' + b"9" * 4_999 + b"}")
@example(b'{"sub": "ann", "exp": 9999999999, "x": ' + b"[" * 2_000 + b"]" * 2_000 + b"}")
@example(b'{"sub": "ann", "exp": NaN}')
def test_payloads_are_read_as_pyjwt_does(payload: bytes) -> None:
    compare(forge({"alg": "HS256"}, payload))
    compare(forge(payload, {"sub": "ann", "exp": LATER_S}))
