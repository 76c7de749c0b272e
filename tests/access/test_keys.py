from __future__ import annotations

import attrs
import pytest

from netra_ws.access.jwks import read_jwks, read_keys
from netra_ws.access.keys import MAX_TRIED, PublicKeys, Secret
from netra_ws.errors import ConfigError
from tests.key_pairs import jwk, jwks, public_pem

SECRET = "s" * 32


@attrs.define
class Listed:
    """A key that says yes to the one signature it is made for, and remembers that it was asked."""

    kid: str | None
    signature: bytes = b"good"
    algorithm: str = "RS256"
    asked: int = 0

    def verifies(self, message: bytes, signature: bytes) -> bool:
        self.asked += 1
        return signature == self.signature


def ring(*keys: Listed, source: str = "a") -> tuple[PublicKeys, list[None]]:
    unknown: list[None] = []
    public = PublicKeys(lambda: unknown.append(None))
    public.replace(source, keys, 0.0)
    return public, unknown


def test_a_kid_picks_the_key() -> None:
    """Only the key that the token names is asked, and a signature of another one does not count."""
    one, other = Listed("one", b"1"), Listed("other", b"2")
    public, unknown = ring(one, other)
    assert public.verifies("RS256", "one", b"m", b"1")
    assert not public.verifies("RS256", "one", b"m", b"2")
    assert (one.asked, other.asked, unknown) == (2, 0, [])


def test_an_unknown_kid() -> None:
    """A kid that names no key is refused without any work, and told."""
    key = Listed("one")
    public, unknown = ring(key)
    for kid in ("two", "", "../one", "ONE", "one\x00", "x" * 8000, "\ud800"):
        assert not public.verifies("RS256", kid, b"m", b"good")
    assert key.asked == 0
    assert len(unknown) == 7


def test_no_kid() -> None:
    """A token that names no key is tried against all of its algorithm; if none fits, that is told."""
    keys = [Listed("one", b"1"), Listed(None, b"2"), Listed("three", b"3")]
    public, unknown = ring(*keys)
    assert all(public.verifies("RS256", None, b"m", signature) for signature in (b"1", b"2", b"3"))
    assert unknown == []
    assert not public.verifies("RS256", None, b"m", b"4")
    assert unknown == [None]


def test_no_more_than_so_many_are_tried() -> None:
    """A token costs the checks of a few keys, whatever is in the set."""
    keys = [Listed(str(number)) for number in range(50)] + [Listed(None) for _ in range(50)]
    public, _ = ring(*keys)
    for kid in (None, "nobody"):
        public.verifies("RS256", kid, b"m", b"bad")
        assert sum(key.asked for key in keys) == MAX_TRIED
        for key in keys:
            key.asked = 0


def test_an_algorithm_is_never_checked_by_a_key_of_another() -> None:
    """The header's algorithm picks among keys of that algorithm, also under the same kid."""
    rsa, curve = Listed("one", algorithm="RS256"), Listed("one", algorithm="ES256")
    public, unknown = ring(rsa, curve)
    assert public.verifies("ES256", "one", b"m", b"good")
    assert rsa.asked == 0
    for algorithm in ("EdDSA", "none", "HS256", ""):
        for kid in ("one", None):
            assert not public.verifies(algorithm, kid, b"m", b"good")
    assert (rsa.asked, len(unknown)) == (0, 8)


def test_two_keys_of_one_kid() -> None:
    """Both are tried: neither hides the other, in one set or in two."""
    public, unknown = ring(Listed("one", b"1"), Listed("one", b"2"))
    public.replace("b", [Listed("one", b"3")], 0.0)
    assert all(public.verifies("RS256", "one", b"m", signature) for signature in (b"1", b"2", b"3"))
    assert not public.verifies("RS256", "one", b"m", b"4")
    assert unknown == []


def test_keys_without_a_name() -> None:
    """A key of a PEM file serves tokens of any kid that names no other key."""
    named, nameless = Listed("one", b"1"), Listed(None, b"2")
    public, unknown = ring(named, nameless)
    assert public.verifies("RS256", "whatever", b"m", b"2")
    assert unknown == []
    assert not public.verifies("RS256", "one", b"m", b"2")


def test_a_source_is_replaced_as_a_whole() -> None:
    """What a source no longer gives does not count any more; other sources keep theirs."""
    public, _ = ring(Listed("one", b"1"))
    public.replace("b", [Listed("two", b"2")], 1.0)
    public.replace("a", [Listed("three", b"3")], 2.0)
    assert not public.verifies("RS256", "one", b"m", b"1")
    assert public.verifies("RS256", "two", b"m", b"2")
    assert public.verifies("RS256", "three", b"m", b"3")
    assert len(public) == 2
    assert public.give_up("a")
    assert not public.give_up("a")
    assert not public.verifies("RS256", "three", b"m", b"3")
    assert len(public) == 1


def test_statistics() -> None:
    """The age is that of the source that was longest not read; failures are those since its last success."""
    public = PublicKeys()
    assert public.statistics(5.0).age_s is None
    public.failed("a")
    assert public.statistics(5.0).age_s is None
    public.replace("a", [Listed("one")], 10.0)
    public.replace("b", [Listed("two")], 20.0)
    assert public.statistics(25.0).age_s == 15.0
    public.failed("a")
    public.failed("a")
    numbers = public.statistics(25.0)
    assert (numbers.count, numbers.failures, dict(numbers.refreshes)) == (2, 2, {"ok": 2, "failed": 3})
    public.confirm("a", 24.0)
    assert (public.statistics(25.0).failures, public.statistics(25.0).age_s) == (0, 5.0)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "s" * 31,
        "\ud800" * 40,
        public_pem("RS256").decode(),
        public_pem("EdDSA").decode(),
        " words before\n" + public_pem("ES256").decode(),
        "ssh-ed25519 " + "A" * 60,
        "ecdsa-sha2-nistp256 " + "A" * 60,
        jwks(jwk("RS256", "a")).decode(),
        "-----BEGIN CERTIFICATE-----" + "A" * 60,
    ],
    ids=["empty", "short", "surrogates", "rsa", "ed25519", "words", "ssh", "ssh ecdsa", "jwks", "certificate"],
)
def test_secrets_that_are_none(secret: str) -> None:
    """What is short, no text, or known to everybody, is no secret; the error shows nothing of it."""
    with pytest.raises(ConfigError, match=r"auth\.secret") as caught:
        Secret.of(secret)
    assert not secret or secret[-20:] not in str(caught.value)


def test_a_secret() -> None:
    """It verifies what it signed and nothing else, and is not shown."""
    secret = Secret.of(SECRET)
    signature = secret.sign(b"m")
    assert secret.verifies(b"m", signature)
    assert not any(secret.verifies(b"m", bad) for bad in (b"", signature[:-1], signature + b"\0", b"\0" * 32))
    assert not secret.verifies(b"n", signature)
    assert SECRET not in repr(secret)


def test_keys_are_not_shown() -> None:
    """The repr of a key tells its name and algorithm."""
    (key,) = read_jwks(jwks(jwk("RS256", "a"))).keys
    assert repr(key) == "Key(algorithm='RS256', kid='a')"
    assert "BEGIN" not in repr(read_keys(public_pem("RS256")))
