import base64
import hashlib
import hmac
import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

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
