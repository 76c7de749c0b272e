import base64
import contextlib
import hashlib
import hmac
import json
import math
import time
from typing import Any

import attrs
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from netra_ws.access.jwks import read_jwks, read_keys
from netra_ws.access.keys import PublicKeys
from netra_ws.access.tokens import (
    MAX_TOKEN_BYTES,
    Verifier,
    choose_subprotocol,
    find_token,
    is_older_client,
    mint,
    offered_subprotocols,
)
from netra_ws.errors import ConfigError, Refused
from netra_ws.identity import DEFAULT_PERMISSIONS, Identity, is_user_id
from tests.key_pairs import KINDS, jwk, jwks, pair, public_pem, signed_by

SECRET = "s" * 32
NOW = 1_763_000_000.0
VERIFIER = Verifier(SECRET)
TOKEN = mint(SECRET, "ada", None, 60, NOW)

PUBLIC_KEY = f"-----BEGIN PUBLIC KEY-----\n{'A' * 64}\n-----END PUBLIC KEY-----\n"


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def signed(payload: bytes, header: bytes = b'{"alg":"HS256","typ":"JWT"}', secret: str = SECRET) -> str:
    """Sign any bytes at all, as an issuer that follows no rule might."""
    content = f"{encoded(header)}.{encoded(payload)}"
    signature = hmac.new(secret.encode(), content.encode(), hashlib.sha256).digest()
    return f"{content}.{encoded(signature)}"


def with_claims(**claims: object) -> str:
    return signed(json.dumps({"sub": "ada", "exp": NOW + 60, **claims}).encode())


def refusal(token: str | None, verifier: Verifier = VERIFIER, now: float = NOW) -> str:
    with pytest.raises(Refused) as caught:
        verifier.verify(token, now)
    assert caught.value.status == 401
    assert ("WWW-Authenticate", "Bearer") in [(name, value.split()[0]) for name, value in caught.value.headers]
    return caught.value.code


def offer(*entries: str) -> list[tuple[bytes, bytes]]:
    return [(b"sec-websocket-protocol", ", ".join(entries).encode())]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["HS256", "none", "my-EdDSA"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


class TestCarriers:
    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
    def test_authorization(self, scheme: str) -> None:
        """The Authorization header carries a token under the Bearer scheme in any case."""
        assert find_token([(b"authorization", f"{scheme}  {TOKEN} ".encode())], {}, False) == TOKEN

    @pytest.mark.parametrize("prefix", ["jwt.", "jwt-auth.", "bearer."])
    @pytest.mark.parametrize("word", ["", "local.", "staging-2_x."])
    def test_subprotocol(self, prefix: str, word: str) -> None:
        """Each prefix works with and without a word, for a raw JWT and its base64url with and without padding."""
        padded = base64.urlsafe_b64encode(TOKEN.encode()).decode()
        for form in (TOKEN, padded, padded.rstrip("=")):
            assert find_token(offer("netra.v1", f"{prefix}{word}{form}"), {}, False) == TOKEN

    def test_every_padding_length(self) -> None:
        """The padding of base64url is optional for tokens of any length."""
        for user in ("a", "ab", "abc"):
            token = mint(SECRET, user, None, 60, NOW)
            assert find_token(offer(f"jwt.{encoded(token.encode())}"), {}, False) == token

    def test_a_word_is_never_mistaken_for_a_part(self) -> None:
        """A raw JWT is taken whole, even if its first part could be read as a word."""
        assert find_token(offer("jwt.local.a.b"), {}, False) == "local.a.b"
        assert find_token(offer("jwt.local.a.b.c"), {}, False) == "a.b.c"

    @pytest.mark.parametrize(
        "entry",
        ["jwt.", "jwt.!!", "jwt.a", "jwt.local.", "jwt..abcd", "jwt.lo cal.abcd", "jwt.w.!", "jwt.__79", "jwt.ab==="],
    )
    def test_malformed_subprotocols_are_refused(self, entry: str) -> None:
        """A token entry that cannot be read is refused, and later carriers are not tried."""
        with pytest.raises(Refused, match="TOKEN_INVALID"):
            find_token(offer(entry), {"token": TOKEN}, True)

    def test_too_long_to_decode(self) -> None:
        """An entry that would decode to more than any token is refused unread."""
        with pytest.raises(Refused, match="TOKEN_INVALID"):
            find_token(offer("jwt." + "A" * 2 * MAX_TOKEN_BYTES), {}, False)

    def test_order_of_carriers(self) -> None:
        """Authorization wins over subprotocol, and subprotocol over query."""
        headers = [*offer("jwt.b.b.b"), (b"authorization", b"Bearer a.a.a")]
        assert find_token(headers, {"token": "c.c.c"}, True) == "a.a.a"
        assert find_token(headers[:1], {"token": "c.c.c"}, True) == "b.b.b"
        assert find_token([], {"token": "c.c.c"}, True) == "c.c.c"

    def test_query_only_where_allowed(self) -> None:
        """A token in the query is not seen where settings do not allow it."""
        assert find_token([], {"token": TOKEN}, False) is None

    @pytest.mark.parametrize(
        "headers",
        [[], [(b"authorization", b"Basic eDp5")], [(b"authorization", b"Bearer")], offer("netra.v1", "jwt-auth")],
    )
    def test_nothing_found(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Other schemes, an empty Bearer and plain subprotocols carry no token."""
        assert find_token(headers, {"token": ""}, True) is None

    def test_two_authorization_headers(self) -> None:
        """Two Authorization headers are refused, even if they are the same."""
        with pytest.raises(Refused, match="TOKEN_INVALID"):
            find_token([(b"authorization", b"Bearer a.b.c")] * 2, {}, False)

    def test_several_subprotocol_headers(self) -> None:
        """Offers may be spread over several headers."""
        assert offered_subprotocols([*offer("a", "", "b"), *offer("c")]) == ("a", "b", "c")

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([b"authorization", b"sec-websocket-protocol"]),
                st.one_of(
                    st.binary(max_size=60),
                    st.binary(max_size=60).map(lambda rest: b"Bearer " + rest),
                    st.text("abAB_-=. ,\x00é", max_size=30).map(lambda rest: b"jwt." + rest.encode()),
                ),
            ),
            max_size=3,
        ),
        st.dictionaries(st.just("token"), st.text(max_size=20)),
    )
    @example([(b"authorization", b"Bearer \xff")], {})
    def test_any_bytes(self, headers: list[tuple[bytes, bytes]], query: dict[str, str]) -> None:
        """Whatever a client sends, it becomes an identity or a refusal, never another exception."""
        try:
            identity = VERIFIER.verify(find_token(headers, query, True), NOW)
        except Refused as refused:
            assert refused.status == 401  # noqa: PT017
        else:
            assert isinstance(identity, Identity)


class TestVerify:
    def test_good_token(self) -> None:
        """A good token gives its user, permissions, expiry, id and claims."""
        token = mint(SECRET, "ada", ["chat", "operator"], 60, NOW, jti="t1", email="ada@example.org")
        identity = VERIFIER.verify(token, NOW)
        assert identity == Identity("ada", frozenset({"chat", "operator"}), NOW + 60, "t1")
        assert identity.claims["email"] == "ada@example.org"

    def test_default_permissions(self) -> None:
        """A token without permissions may chat and read; an empty list may nothing."""
        assert VERIFIER.verify(TOKEN, NOW).permissions == DEFAULT_PERMISSIONS
        assert VERIFIER.verify(with_claims(permissions=[]), NOW).permissions == frozenset()

    def test_no_token(self) -> None:
        """No token at all is told apart from a bad one."""
        assert refusal(None) == "TOKEN_MISSING"

    @pytest.mark.parametrize("sub", ["x", "x" * 256, "Zoë 中", " ada ", "None", "a\u200db"])
    def test_user_ids(self, sub: str) -> None:
        """A user id is any text of 1 to 256 characters and is kept exactly."""
        assert VERIFIER.verify(mint(SECRET, sub, None, 60, NOW), NOW).user_id == sub

    @pytest.mark.parametrize("sub", [None, 5, True, "", "x" * 257, "a\nb", "a\x00", "\x7f", "\x85", "\ud800", ["ada"]])
    def test_bad_user_ids(self, sub: object) -> None:
        """Other values of sub are refused, and so are control characters and lone surrogates."""
        assert refusal(with_claims(sub=sub)) == "TOKEN_INVALID"
        assert not is_user_id(sub)
        with pytest.raises(ValueError, match="user_id must be"):
            Identity(sub)  # type: ignore[arg-type]

    @pytest.mark.parametrize("missing", ["sub", "exp"])
    def test_required_claims(self, missing: str) -> None:
        """sub and exp are required."""
        claims = {"sub": "ada", "exp": NOW + 60}
        del claims[missing]
        assert refusal(signed(json.dumps(claims).encode())) == "TOKEN_INVALID"

    def test_expiry_by_the_clock_that_is_handed_in(self) -> None:
        """A token expires when its leeway has passed, by the given clock and no other."""
        assert VERIFIER.verify(TOKEN, NOW + 64.9).user_id == "ada"
        assert refusal(TOKEN, now=NOW + 65) == "TOKEN_EXPIRED"
        assert VERIFIER.verify(mint(SECRET, "ada", None, 60, 1000), 1000).expires_at == 1060

    @pytest.mark.parametrize("claim", ["iat", "nbf"])
    def test_tokens_from_the_future(self, claim: str) -> None:
        """iat and nbf may lie in the future by no more than the leeway."""
        assert VERIFIER.verify(with_claims(**{claim: NOW + 5}), NOW).user_id == "ada"
        assert refusal(with_claims(**{claim: NOW + 5.1})) == "TOKEN_INVALID"

    @pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
    @pytest.mark.parametrize(
        "value",
        [
            "true",
            "null",
            '"1"',
            "NaN",
            "Infinity",
            "-Infinity",
            "1e400",
            "1e300",
            "-1",
            "9" * 400,
            "9" * 5000,
            "[]",
            "{}",
        ],
    )
    def test_times_that_are_none(self, claim: str, value: str) -> None:
        """A time that is not a finite number of this era is invalid, never an error of ours."""
        claims = {"sub": '"ada"', "exp": str(NOW + 60), claim: value}
        text = ",".join(f'"{name}":{content}' for name, content in claims.items())
        assert refusal(signed(f"{{{text}}}".encode())) == "TOKEN_INVALID"

    @pytest.mark.parametrize("permissions", [None, "chat", {"chat": 1}, ["chat", 5], 7])
    def test_bad_permissions(self, permissions: object) -> None:
        """permissions, if present, is a list of text."""
        assert refusal(with_claims(permissions=permissions)) == "TOKEN_INVALID"

    def test_bad_token_id(self) -> None:
        """jti, if present, is text."""
        assert refusal(with_claims(jti=5)) == "TOKEN_INVALID"

    @pytest.mark.parametrize("payload", [b"", b"[]", b"7", b'"x"', b"{", b"\xff", b"[" * 5000, b'{"sub":NaN}'])
    def test_claims_that_are_not_an_object(self, payload: bytes) -> None:
        """A signed payload that is no JSON object is invalid."""
        assert refusal(signed(payload)) == "TOKEN_INVALID"

    @pytest.mark.parametrize(
        "header",
        [
            b'{"alg":"none"}',
            b'{"alg":"HS512"}',
            b'{"alg":["HS256"]}',
            b'{"alg":{}}',
            b"{}",
            b"[]",
            b'{"alg":"HS256","crit":["exp"]}',
            b'{"alg":"HS256","crit":[]}',
            b'{"alg":"HS256","crit":["b64"],"b64":true}',
            b'{"alg":"HS256","b64":false}',
            b'{"alg":"HS256","kid":5}',
            b"[" * 5000,
            b'{"alg":' + b"9" * 5000 + b"}",
        ],
    )
    def test_headers(self, header: bytes) -> None:
        """Only HS256 without critical extensions is understood, even with a good signature."""
        payload = json.dumps({"sub": "ada", "exp": NOW + 60}).encode()
        assert refusal(signed(payload, header)) == "TOKEN_INVALID"

    @pytest.mark.parametrize(
        "token",
        [
            "",
            "x",
            "a.b",
            "a.b.c.d",
            "..",
            TOKEN + "é",
            TOKEN + "\n",
            TOKEN.rpartition(".")[0] + ".",
            TOKEN + "=",
            mint("t" * 32, "ada", None, 60, NOW),
            mint(SECRET, "ada", None, 60, NOW, extra="x" * MAX_TOKEN_BYTES),
        ],
    )
    def test_not_ours(self, token: str) -> None:
        """Malformed, unsigned, foreign and oversized tokens are invalid."""
        assert refusal(token) == "TOKEN_INVALID"

    # Not the last character: some of its bits stand for nothing (RFC 4648 §3.5).
    @given(st.integers(0, len(TOKEN) - 2), st.sampled_from("AZaz09-_."))
    def test_any_change_breaks_the_signature(self, index: int, character: str) -> None:
        """A token with one character changed is refused."""
        changed = TOKEN[:index] + character + TOKEN[index + 1 :]
        if changed != TOKEN:
            assert refusal(changed) == "TOKEN_INVALID"

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=5,
        ),
        st.sampled_from(["sub", "exp", "iat", "nbf", "permissions", "jti", "iss", "aud", "other"]),
    )
    def test_any_signed_claims(self, value: object, name: str) -> None:
        """Whatever an issuer signs, it becomes an identity or a refusal."""
        try:
            identity = Verifier(SECRET, issuer="me", audience="you").verify(with_claims(**{name: value}), NOW)
        except Refused:
            return
        assert math.isfinite(identity.expires_at or math.nan)

    def test_issuer(self) -> None:
        """iss is compared exactly when an issuer is set."""
        verifier = Verifier(SECRET, issuer="me")
        assert verifier.verify(with_claims(iss="me"), NOW).user_id == "ada"
        for claims in ({}, {"iss": "you"}, {"iss": ["me"]}):
            assert refusal(with_claims(**claims), verifier) == "TOKEN_INVALID"

    def test_audience(self) -> None:
        """aud is or holds the audience when one is set, and is not looked at otherwise."""
        verifier = Verifier(SECRET, audience="us")
        for aud in ("us", ["them", "us"]):
            assert verifier.verify(with_claims(aud=aud), NOW).user_id == "ada"
        for claims in ({}, {"aud": "use"}, {"aud": []}, {"aud": {"us": 1}}):
            assert refusal(with_claims(**claims), verifier) == "TOKEN_INVALID"
        assert VERIFIER.verify(with_claims(aud="them"), NOW).user_id == "ada"

    def test_a_refusal_tells_nothing_of_the_token(self) -> None:
        """No piece of a token and no secret comes back in a text or a repr."""
        with pytest.raises(Refused) as caught:
            VERIFIER.verify(TOKEN[:-1] + "!", NOW)
        assert TOKEN[:10] not in str(caught.value)
        assert SECRET not in repr(VERIFIER)


def service(*keys: Any) -> PublicKeys:
    """Return keys as a server has them that trusts one identity service."""
    public = PublicKeys()
    public.replace("test", read_jwks(jwks(*keys)).keys, 0.0)
    return public


#: All kinds of keys together, the secret among them.
ALL = Verifier(SECRET, public=service(*(jwk(kind, f"my-{kind}") for kind in KINDS)))
#: What a client of the identity service does not have.
FOREIGN = 7


def der(raw: bytes) -> bytes:
    return encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))


def with_signature(token: str, signature: bytes) -> str:
    return f"{token.rpartition('.')[0]}.{encoded(signature)}"


class TestPublicKeys:
    @pytest.mark.parametrize("algorithm", KINDS)
    @pytest.mark.parametrize("named", [True, False])
    def test_good_tokens(self, algorithm: str, named: bool) -> None:
        """A token that another library signed is accepted, with and without a kid, beside tokens of the secret."""
        token = signed_by(algorithm, f"my-{algorithm}" if named else None, now=NOW, permissions=["read"], jti="t1")
        identity = ALL.verify(token, NOW)
        assert identity == Identity("ada", frozenset({"read"}), int(NOW) + 60, "t1")
        assert Verifier(None, public=ALL.public).verify(token, NOW) == identity
        assert ALL.verify(TOKEN, NOW).user_id == "ada"

    def test_ours_are_read_by_another_library(self) -> None:
        """What ``mint`` signs is a JWT."""
        token = mint(SECRET, "Zoë", ["read"], 60, time.time(), aud="us")
        assert jwt.decode(token, SECRET, ["HS256"], audience="us")["sub"] == "Zoë"

    @pytest.mark.parametrize("algorithm", KINDS)
    @pytest.mark.parametrize(
        ("claims", "code"),
        [
            ({"exp": int(NOW) - 5}, "TOKEN_EXPIRED"),
            ({"exp": None}, "TOKEN_INVALID"),
            ({"exp": "soon"}, "TOKEN_INVALID"),
            ({"sub": 5}, "TOKEN_INVALID"),
            ({"sub": ""}, "TOKEN_INVALID"),
            ({"nbf": NOW + 6}, "TOKEN_INVALID"),
            ({"iat": NOW + 6}, "TOKEN_INVALID"),
            ({"iss": "you"}, "TOKEN_INVALID"),
            ({"aud": "them"}, "TOKEN_INVALID"),
            ({"aud": ["them"]}, "TOKEN_INVALID"),
            ({"jti": 5}, "TOKEN_INVALID"),
            ({"more": "x" * MAX_TOKEN_BYTES}, "TOKEN_INVALID"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
    )
    def test_claims(self, algorithm: str, claims: dict[str, Any], code: str) -> None:
        """The rules for claims are the same whoever signed."""
        verifier = attrs.evolve(ALL, issuer="me", audience="us")
        good = {"sub": "ada", "exp": int(NOW) + 60, "iss": "me", "aud": ["us"], "nbf": NOW + 5, "iat": NOW + 5}
        assert verifier.verify(self.signed(algorithm, good), NOW).user_id == "ada"
        assert refusal(self.signed(algorithm, good | claims), verifier) == code
        for missing in ("sub", "exp", "iss", "aud"):
            less = {name: value for name, value in good.items() if name != missing}
            assert refusal(self.signed(algorithm, less), verifier) == "TOKEN_INVALID"

    @staticmethod
    def signed(algorithm: str, claims: dict[str, Any]) -> str:
        return jwt.PyJWS().encode(json.dumps(claims).encode(), pair(algorithm), algorithm)

    @pytest.mark.parametrize("algorithm", KINDS)
    def test_foreign_keys(self, algorithm: str) -> None:
        """A key that is not in the set signs nothing, under whatever name; neither does a changed token."""
        for kid in (None, f"my-{algorithm}", "other"):
            assert refusal(signed_by(algorithm, kid, FOREIGN, now=NOW), ALL) == "TOKEN_INVALID"
        head, _, signature = signed_by(algorithm, now=NOW).split(".")
        other = encoded(json.dumps({"sub": "eve", "exp": NOW + 60}).encode())
        assert refusal(f"{head}.{other}.{signature}", ALL) == "TOKEN_INVALID"

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("form", ["pem", "pem without end", "der", "jwk"])
    def test_a_public_key_is_no_secret(self, kind: str, form: str) -> None:
        """HS256 is checked with the secret alone: who knows the public key in any form cannot sign with it."""
        pem = public_pem(kind)
        secret = {
            "pem": pem,
            "pem without end": pem.rstrip(),
            "der": pair(kind).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            "jwk": json.dumps(jwk(kind)).encode(),
        }[form]
        for kid in (None, f"my-{kind}"):
            header = {"alg": "HS256", **({"kid": kid} if kid else {})}
            content = f"{encoded(json.dumps(header).encode())}.{TOKEN.split('.')[1]}"
            token = f"{content}.{encoded(hmac.digest(secret, content.encode(), 'sha256'))}"
            assert refusal(token, ALL) == "TOKEN_INVALID"
            assert refusal(token, Verifier(None, public=ALL.public)) == "TOKEN_INVALID"

    @pytest.mark.parametrize(
        "algorithm", ["none", "None", "NONE", "", "HS384", "RS384", "PS256", "ES384", "ES256K", "eddsa"]
    )
    def test_other_algorithms(self, algorithm: str) -> None:
        """Only the four names count, in exactly that case, whatever stands for a signature."""
        content = f"{encoded(json.dumps({'alg': algorithm}).encode())}.{TOKEN.split('.')[1]}"
        for signature in ("", "AA", TOKEN.split(".")[2], encoded(bytes(64)), encoded(bytes(256))):
            assert refusal(f"{content}.{signature}", ALL) == "TOKEN_INVALID"

    @pytest.mark.parametrize("name", KINDS)
    @pytest.mark.parametrize("made_by", KINDS)
    def test_a_name_over_another_signature(self, name: str, made_by: str) -> None:
        """A good signature of one kind under the name of another is none."""
        header = encoded(json.dumps({"alg": name, "kid": f"my-{made_by}"}).encode())
        content = f"{header}.{TOKEN.split('.')[1]}"
        kinds = {"RS256": RSAAlgorithm(RSAAlgorithm.SHA256), "ES256": ECAlgorithm(ECAlgorithm.SHA256)}
        signature = kinds.get(made_by, OKPAlgorithm()).sign(content.encode(), pair(made_by))
        token = f"{content}.{encoded(signature)}"
        if name == made_by:
            assert ALL.verify(token, NOW).user_id == "ada"
        else:
            assert refusal(token, ALL) == "TOKEN_INVALID"

    @pytest.mark.parametrize(
        "kid",
        [
            "../../dev/null",
            "/etc/passwd",
            "' OR 1=1 --",
            "my-RS256\0",
            "x" * 5000,
            "",
            "\ud800",
            5,
            True,
            ["my-RS256"],
            {},
        ],
        ids=["path", "file", "sql", "nul", "huge", "empty", "surrogate", "number", "true", "list", "object"],
    )
    def test_odd_names(self, kid: object) -> None:
        """A kid is looked up and nothing else; one that is no text is refused even over a good signature."""
        header = encoded(json.dumps({"alg": "RS256", "kid": kid}).encode())
        content = f"{header}.{TOKEN.split('.')[1]}"
        signature = RSAAlgorithm(RSAAlgorithm.SHA256).sign(content.encode(), pair("RS256"))
        assert refusal(f"{content}.{encoded(signature)}", ALL) == "TOKEN_INVALID"

    @pytest.mark.parametrize("algorithm", KINDS)
    def test_keys_that_a_token_brings_along(self, algorithm: str) -> None:
        """jwk, jku, x5u and x5c in a header are not looked at."""
        own = jwk(algorithm, "my-own", FOREIGN)
        header = {
            "jwk": own,
            "jku": "http://127.0.0.1:1/jwks",
            "x5u": "http://127.0.0.1:1/x5u",
            "x5c": ["AAAA"],
        }
        for kid in (None, "my-own", f"my-{algorithm}"):
            assert refusal(signed_by(algorithm, kid, FOREIGN, now=NOW, header=header), ALL) == "TOKEN_INVALID"
        assert ALL.verify(signed_by(algorithm, now=NOW, header=header), NOW).user_id == "ada"

    def test_signatures_on_curves(self) -> None:
        """ES256 is r and s in 64 bytes (RFC 7518 §3.4): not DER, not zeros, not longer or shorter."""
        token = signed_by("ES256", now=NOW)
        raw = jwt.utils.base64url_decode(token.rpartition(".")[2])
        assert ALL.verify(with_signature(token, raw), NOW).user_id == "ada"
        order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
        whole = order.to_bytes(32, "big")
        for signature in (
            der(raw),
            bytes(64),
            raw[:32] + bytes(32),
            bytes(32) + raw[32:],
            whole + whole,
            whole + raw[32:],
            raw + b"\0",
            b"\0" + raw,
            raw[:-1],
            bytes(1),
            b"\x30\x06\x02\x01\x00\x02\x01\x00",
        ):
            assert refusal(with_signature(token, signature), ALL) == "TOKEN_INVALID"

    @given(st.sampled_from(KINDS), st.booleans(), st.binary(max_size=300), st.none() | st.text(max_size=10))
    @settings(deadline=None)
    def test_any_signature(self, algorithm: str, named: bool, signature: bytes, kid: str | None) -> None:
        """Whatever stands for a signature is refused in the one way."""
        header = {"alg": algorithm, "kid": f"my-{algorithm}" if named else kid}
        content = f"{encoded(json.dumps(header).encode())}.{TOKEN.split('.')[1]}"
        assert refusal(f"{content}.{encoded(signature)}", ALL) == "TOKEN_INVALID"

    @given(st.dictionaries(st.sampled_from(["alg", "kid", "crit", "b64", "jwk", "typ", "zip"]), JSON, max_size=4))
    @settings(deadline=None)
    def test_any_header(self, header: dict[str, object]) -> None:
        """Whatever a header says, the token is accepted or refused."""
        content = f"{encoded(json.dumps({'alg': 'EdDSA'} | header).encode())}.{TOKEN.split('.')[1]}"
        signature = OKPAlgorithm().sign(content.encode(), pair("EdDSA"))
        with contextlib.suppress(Refused):
            assert ALL.verify(f"{content}.{encoded(signature)}", NOW).user_id == "ada"

    @pytest.mark.parametrize("crit", [{"crit": ["exp"]}, {"crit": []}, {"crit": ["b64"], "b64": True}, {"b64": None}])
    def test_critical_headers(self, crit: dict[str, Any]) -> None:
        """What a header calls critical is refused, over whatever good signature."""
        content = f"{encoded(json.dumps({'alg': 'EdDSA', **crit}).encode())}.{TOKEN.split('.')[1]}"
        signature = OKPAlgorithm().sign(content.encode(), pair("EdDSA"))
        assert refusal(f"{content}.{encoded(signature)}", ALL) == "TOKEN_INVALID"

    def test_nothing_is_told_before_the_signature_is_known(self) -> None:
        """An expired token of a foreign key reads like any other bad one."""
        texts = set()
        for token in (
            signed_by("RS256", "my-RS256", FOREIGN, now=NOW - 1000),
            signed_by("RS256", "nobody", now=NOW),
            signed_by("ES256", "my-ES256", FOREIGN, now=NOW, sub=""),
            with_signature(TOKEN, b"x"),
            "a.b.c",
        ):
            with pytest.raises(Refused) as caught:
                ALL.verify(token, NOW)
            texts.add(str(caught.value))
        assert len(texts) == 1

    def test_only_chosen_algorithms(self) -> None:
        """A restriction holds for the secret and for public keys."""
        tokens = {"HS256": TOKEN, **{kind: signed_by(kind, now=NOW) for kind in KINDS}}
        for chosen in tokens:
            verifier = attrs.evolve(ALL, algorithms=(chosen,))
            for name, token in tokens.items():
                if name == chosen:
                    assert verifier.verify(token, NOW).user_id == "ada"
                else:
                    assert refusal(token, verifier) == "TOKEN_INVALID"
        assert refusal(TOKEN, attrs.evolve(ALL, algorithms=("none", "HS512"))) == "TOKEN_INVALID"

    def test_no_key_at_all(self) -> None:
        """A lock without any key is a mistake; one whose keys are gone opens to nobody."""
        with pytest.raises(ConfigError, match=r"auth\.secret"):
            Verifier(None)
        empty = Verifier(None, public=PublicKeys())
        for token in (TOKEN, *(signed_by(kind, now=NOW) for kind in KINDS)):
            assert refusal(token, empty) == "TOKEN_INVALID"

    def test_only_an_unknown_name_asks_for_keys(self) -> None:
        """A refresh is asked for by tokens of unknown keys, not by bad tokens of known ones or of no use."""
        asked: list[None] = []
        public = service(jwk("RS256", "one"))
        public.on_unknown = lambda: asked.append(None)
        verifier = Verifier(SECRET, public=public)
        quiet = (signed_by("RS256", "one", now=NOW - 1000), signed_by("RS256", "one", FOREIGN, now=NOW), TOKEN, "a.b.c")
        for token in quiet:
            with contextlib.suppress(Refused):
                verifier.verify(token, NOW)
        assert asked == []
        assert refusal(signed_by("RS256", "two", now=NOW), verifier) == "TOKEN_INVALID"
        assert asked == [None]


class TestSecret:
    @pytest.mark.parametrize("secret", ["", "s" * 31, "\ud800" * 40, PUBLIC_KEY])
    def test_bad_secrets(self, secret: str) -> None:
        """Short secrets, broken text and public keys are refused at start, for checking and for minting."""
        with pytest.raises(ConfigError, match=r"auth\.secret"):
            Verifier(secret)
        with pytest.raises(ConfigError, match=r"auth\.secret"):
            mint(secret, "ada", None, 60, NOW)

    def test_bytes_are_counted(self) -> None:
        """The length is counted in bytes."""
        assert Verifier("é" * 16).secret == "é" * 16

    def test_mint_checks_the_user(self) -> None:
        """A token that would be refused is not made."""
        with pytest.raises(ValueError, match="256"):
            mint(SECRET, "", None, 60, NOW)


class TestSubprotocol:
    @pytest.mark.parametrize(
        ("offered", "chosen"),
        [
            ([], None),
            (["jwt-auth", "netra.v1"], "netra.v1"),
            ([f"jwt.{TOKEN}", "jwt-auth"], "jwt-auth"),
            ([f"jwt.{TOKEN}"], None),
            (["agui.v1", "chat", "NETRA.V1"], None),
        ],
    )
    def test_choice(self, offered: list[str], chosen: str | None) -> None:
        """netra.v1 wins over jwt-auth, and an entry with a token is never echoed."""
        assert choose_subprotocol(offered) == chosen

    @pytest.mark.parametrize(
        ("offered", "older"),
        [
            ([], False),
            (["jwt-auth"], False),
            (["jwt-auth", f"jwt.{TOKEN}"], True),
            ([f"bearer.local.{TOKEN}"], True),
            (["netra.v1", f"jwt.{TOKEN}"], False),
        ],
    )
    def test_older_clients(self, offered: list[str], older: bool) -> None:
        """An older client carries a token in its offers and does not know netra.v1."""
        assert is_older_client(offered) is older


class TestUnknownKeys:
    def test_only_a_name_that_nobody_has_may_still_come(self) -> None:
        """A token names an unknown key when public keys could serve it, and none that is here can."""
        public = service(jwk("RS256", "one"))
        verifier = Verifier(SECRET, public=public)
        assert verifier.names_unknown_key(signed_by("RS256", "two", 2, now=NOW))
        assert verifier.names_unknown_key(signed_by("ES256", "one", now=NOW)), "of another kind"
        assert not verifier.names_unknown_key(signed_by("RS256", "one", 7, now=NOW)), "forged"
        assert not verifier.names_unknown_key(signed_by("RS256", None, 2, now=NOW)), "without a name"
        assert not verifier.names_unknown_key(mint(SECRET, "ada", None, 60, NOW))
        assert not Verifier(SECRET).names_unknown_key(signed_by("RS256", "two", 2, now=NOW))
        only = Verifier(SECRET, public=public, algorithms=("ES256",))
        assert not only.names_unknown_key(signed_by("RS256", "two", 2, now=NOW))
        for broken in ("", "x.y.z", "a" * 9000):
            assert not verifier.names_unknown_key(broken)

    def test_a_key_without_a_name_serves_any(self) -> None:
        """Where a key of a PEM file made the signature, no other key is missed, whatever name the token has."""
        public = service(jwk("RS256", "one"))
        public.replace("file", read_keys(public_pem("ES256"), frozenset(KINDS)).keys, 0.0)
        verifier = Verifier(SECRET, public=public)
        assert not verifier.names_unknown_key(signed_by("ES256", "whatever", now=NOW))
        assert verifier.names_unknown_key(signed_by("ES256", "whatever", 2, now=NOW))
