"""Our reading of tokens against PyJWT's: what one refuses the other refuses, for the same reason,
and what one accepts says the same to both. The tokens are right, but for one thing or two."""

import json
import time
from functools import partial
from typing import Any, NamedTuple

import jwt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jwt.algorithms import Algorithm, get_default_algorithms
from tokens import (
    ED_PRIVATE,
    ED_PUBLIC,
    P256_PRIVATE,
    P256_PUBLIC,
    RSA_PRIVATE,
    RSA_PUBLIC,
    SECRET,
    forge,
    part,
)

from imserver.auth import _CLAIM_ERRORS
from imserver.auth_token import check_claims, read_claims, read_header

LEEWAY_S = 10
NOW_S = int(time.time())
LATER_S = NOW_S + 3_600  # the whole suite takes minutes


class Scheme(NamedTuple):
    """An algorithm of ours, with its keys as it wants them."""

    name: str
    algorithm: Algorithm
    private: Any
    public: Any

    def sign(self, header: bytes, payload: bytes) -> str:
        signature = self.algorithm.sign(header + b"." + payload, self.private)
        return b".".join((header, payload, part(signature))).decode()

    def key_for(self, header: bytes) -> tuple[Algorithm, Any]:
        if read_header(header).get("alg") != self.name:
            raise jwt.InvalidAlgorithmError("not ours")
        return self.algorithm, self.public


def scheme(name: str, private: str | bytes, public: str | bytes) -> Scheme:
    algorithm = get_default_algorithms()[name]
    return Scheme(name, algorithm, algorithm.prepare_key(private), algorithm.prepare_key(public))


HS256 = scheme("HS256", SECRET, SECRET)
SCHEMES = (
    HS256,
    scheme("RS256", RSA_PRIVATE, RSA_PUBLIC),
    scheme("ES256", P256_PRIVATE, P256_PUBLIC),
    scheme("EdDSA", ED_PRIVATE, ED_PUBLIC),
)

#: What PyJWT, json and we ourselves raise for a bad token; anything else is a fault.
REFUSALS = (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError)


def ours(by: Scheme, token: str, issuer: str = "", audience: str = "") -> dict[str, Any]:
    claims = read_claims(token, by.key_for)
    check_claims(claims, issuer, audience, LEEWAY_S)
    return claims


def theirs(by: Scheme, token: str, issuer: str = "", audience: str = "") -> dict[str, Any]:
    claims: dict[str, Any] = jwt.PyJWT().decode(
        token,
        by.public,
        algorithms=[by.name],
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


def compare(token: str, *about: str, by: Scheme = HS256) -> str:
    expected = outcome(partial(theirs, by), token, *about)
    assert outcome(partial(ours, by), token, *about) == expected
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
@example({"sub": "ann", "exp": LATER_S, "aud": ["im"], "iss": "us"}, [], "us", "im")
def test_claims_are_judged_as_pyjwt_does(
    claims: dict[str, Any], removed: list[str], issuer: str, audience: str
) -> None:
    for name in removed:
        claims.pop(name)
    compare(forge({"alg": "HS256"}, claims), issuer, audience)


CHARACTERS = st.sampled_from("ABCDwxyz0189-_+/=.~ \n\r\x00é")


def padded(name: bytes) -> bytes:
    """With the "=" that some issuers write."""
    return name + b"=" * (-len(name) % 4)


def forms(by: Scheme) -> list[str]:
    """Good tokens, of parts whose length leaves any rest by four, without padding and with it;
    what is signed is the parts as they stand."""
    found = []
    for extra in ("", "x", "xy", "xyz"):
        header = part({"alg": by.name, "x": extra})
        payload = part({"sub": "ann" + extra, "exp": LATER_S})
        found.append(by.sign(header, payload))
        signature = by.sign(padded(header), padded(payload)).rpartition(".")[2].encode()
        found.append(b".".join(map(padded, (header, payload, signature))).decode())
    return found


FORMS = {by.name: forms(by) for by in SCHEMES}


@st.composite
def damaged(draw: st.DrawFn, by: Scheme) -> str:
    """A good token after a few changes: characters put in, taken out, put in place of others."""
    token = draw(st.sampled_from(FORMS[by.name]))
    for _ in range(draw(st.integers(0, 2))):
        # Near the dots and the ends is where padding and unused bits are.
        ends = [at for at, one in enumerate(token) if one == "."] + [0, len(token)]
        at = draw(st.sampled_from(ends)) + draw(st.integers(-3, 3))
        at = (
            min(max(at, 0), len(token)) if draw(st.booleans()) else draw(st.integers(0, len(token)))
        )
        token = token[:at] + draw(st.just("") | CHARACTERS) + token[at + draw(st.integers(0, 1)) :]
    return token


@pytest.mark.parametrize("by", SCHEMES, ids=lambda by: by.name)
def test_bytes_are_judged_as_pyjwt_does(by: Scheme) -> None:
    @given(damaged(by))
    @settings(max_examples=3_000 if by is HS256 else 500, deadline=None)
    def judged(token: str) -> None:
        compare(token, by=by)

    judged()


@pytest.mark.parametrize("by", SCHEMES, ids=lambda by: by.name)
def test_padding_is_allowed_where_it_is_right(by: Scheme) -> None:
    for token in FORMS[by.name]:
        assert compare(token, by=by).startswith("accepted")


@pytest.mark.parametrize("by", SCHEMES, ids=lambda by: by.name)
def test_signatures_are_judged_as_pyjwt_does(by: Scheme) -> None:
    """Of any length, of zeros, those of the other algorithms, and our own cut, doubled and in
    halves that changed places: that of ES256 is two numbers."""
    signed, _, signature = FORMS[by.name][0].rpartition(".")
    own = jwt.utils.base64url_decode(signature)
    half = len(own) // 2
    others = [other.algorithm.sign(signed.encode(), other.private) for other in SCHEMES]
    zeros = [bytes(length) for length in range(80)]
    odd = [own[:-1], own + own, own + b"\0", b"\0" + own, own[half:] + own[:half], own[:half]]
    judged = {
        bytes(one): compare(f"{signed}.{part(one).decode()}", by=by)
        for one in (own, *others, *zeros, *odd)
    }
    # Those of HS256, RS256 and EdDSA are always the same; ES256 signs anew, and as well.
    right = {own, others[SCHEMES.index(by)]}
    assert {one for one, said in judged.items() if said.startswith("accepted")} == right


@pytest.mark.parametrize("by", SCHEMES, ids=lambda by: by.name)
def test_a_header_that_names_another_algorithm_is_judged_as_pyjwt_does(by: Scheme) -> None:
    payload = part({"sub": "ann", "exp": LATER_S})
    for other in SCHEMES:
        token = by.sign(part({"alg": other.name}), payload)
        assert compare(token, by=by).startswith("accepted") is (other is by)


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
