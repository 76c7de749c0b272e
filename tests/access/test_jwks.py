from __future__ import annotations

import contextlib
import datetime
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ed448
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from netra_ws.access.jwks import Unusable, read_jwks, read_keys, read_pem
from tests.key_pairs import KINDS, jwk, jwks, pair, private_pem, public_pem


def read_one(entry: object) -> str:
    """Return why the entry is skipped beside a good one."""
    found = read_jwks(json.dumps({"keys": [entry, jwk("EdDSA", "good")]}).encode())
    assert [key.kid for key in found.keys] == ["good"]
    (line,) = found.skipped
    return line


def certificate(algorithm: str) -> bytes:
    """Return a certificate in PEM that has expired: only its key counts."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "id.example")])
    day = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    key = pair(algorithm)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, day, day + datetime.timedelta(1))
    return builder.sign(key, None if algorithm == "EdDSA" else hashes.SHA256()).public_bytes(Encoding.PEM)


def test_a_set() -> None:
    """Each key has the algorithm of its kind, and its kid."""
    found = read_jwks(jwks(jwk("RS256", "a"), jwk("ES256", "b"), jwk("EdDSA")))
    assert [(key.algorithm, key.kid) for key in found.keys] == [("RS256", "a"), ("ES256", "b"), ("EdDSA", None)]
    assert found.skipped == ()


@pytest.mark.parametrize("algorithm", KINDS)
def test_members_that_agree(algorithm: str) -> None:
    """alg, use and key_ops may be there when they say what the key is for; other members mean nothing."""
    entry = jwk(algorithm, "a", alg=algorithm, use="sig", key_ops=["verify"], x5u="http://evil.example", x5c=["AAAA"])
    assert len(read_jwks(jwks(entry)).keys) == 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"alg": "RS512"}, "its alg is not RS256"),
        ({"alg": "HS256"}, "its alg is not RS256"),
        ({"alg": "none"}, "its alg is not RS256"),
        ({"alg": ["RS256"]}, "its alg is not RS256"),
        ({"use": "enc"}, "its use is not sig"),
        ({"key_ops": ["encrypt"]}, "its key_ops are without verify"),
        ({"key_ops": "verify"}, "its key_ops are without verify"),
        ({"kty": "oct", "k": "AAAA"}, "a symmetric key"),
        ({"kty": "EC"}, "of another curve than P-256"),
        ({"kty": "rsa"}, "of an unknown kind"),
        ({"kty": ["RSA"]}, "of an unknown kind"),
        ({"kty": None}, "of an unknown kind"),
        ({"k": "AAAA"}, "a private key"),
        ({"n": None}, "its numbers"),
        ({"n": 5}, "its numbers"),
        ({"n": "!"}, "its numbers"),
        ({"n": ""}, "its numbers"),
        ({"n": ["AQAB"]}, "its numbers"),
        ({"e": "AQ"}, "its numbers"),
        ({"e": "AA"}, "its numbers"),
        ({"n": "AQAB"}, ""),
    ],
    ids=str,
)
def test_a_key_that_cannot_be_used(changes: dict[str, Any], why: str) -> None:
    """A key whose members disagree with its use is skipped, with its kid and the reason and nothing of the key."""
    entry = jwk("RS256", "bad", **changes)
    line = read_one(entry)
    assert line.startswith("key 1, kid 'bad': ")
    assert why in line
    assert jwk("RS256")["n"][:20] not in line


@pytest.mark.parametrize("algorithm", KINDS)
def test_a_private_key(algorithm: str) -> None:
    """A private key is not taken for its public half: everybody who reads the set could make tokens."""
    assert "a private key" in read_one(jwk(algorithm, "bad", private=True))


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (jwk("ES384", "bad"), "of another curve than P-256"),
        (jwk("K", "bad"), "of another curve than P-256"),
        ({"kty": "OKP", "crv": "Ed448", "x": "AA", "kid": "bad"}, "of another curve than Ed25519"),
        ({"kty": "OKP", "crv": "X25519", "x": "A" * 43, "kid": "bad"}, "of another curve than Ed25519"),
        ({"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "bad"}, "its numbers"),
        ({"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43, "kid": "bad"}, "its numbers"),
        ({"kty": "EC", "crv": "P-256", "x": jwk("ES384")["x"], "y": jwk("ES384")["y"], "kid": "bad"}, "its numbers"),
    ],
    ids=["P-384", "secp256k1", "Ed448", "X25519", "short", "off the curve", "long"],
)
def test_other_curves(entry: dict[str, Any], why: str) -> None:
    """A key of another curve, or a point that is on none, is skipped."""
    assert why in read_one(entry)


@pytest.mark.parametrize("entry", [None, 5, "x", [], {}], ids=str)
def test_entries_that_are_no_keys(entry: object) -> None:
    """What is no key at all is skipped, too."""
    assert read_one(entry).startswith("key 1, without kid: ")


@pytest.mark.parametrize("kid", [5, "", "x" * 257, ["a"]], ids=["number", "empty", "long", "list"])
def test_a_kid_that_is_none(kid: object) -> None:
    """A kid is a text of bounded length."""
    assert "its kid is not a text" in read_one(jwk("EdDSA", alg=None) | {"kid": kid})


def test_what_a_set_says_cannot_forge_a_log() -> None:
    """A kid is told as one line of ASCII, however long and whatever is in it."""
    line = read_one(jwk("RS256", "a\n\x1b[2J\u202e" + "b" * 200, use="enc"))
    assert line.isprintable()
    assert line.isascii()
    assert len(line) < 200


def test_small_keys() -> None:
    """RSA below 2048 bits can be broken, and above 8192 takes long to check."""
    with pytest.raises(Unusable, match="RSA of 1024 bits"):
        read_pem(public_pem("RS256", size=1024))
    huge = {"kty": "RSA", "e": "AQAB", "n": "_" * 2740, "kid": "huge"}
    assert "RSA of 16440 bits" in read_one(huge)


def test_only_what_is_allowed() -> None:
    """Keys of an algorithm that the settings leave out are skipped."""
    found = read_jwks(jwks(jwk("RS256", "a"), jwk("ES256", "b")), frozenset({"ES256"}))
    assert [key.kid for key in found.keys] == ["b"]
    assert found.skipped == ("key 1, kid 'a': auth.algorithms leaves RS256 out",)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b'{"keys":{}}', b'{"keys":[]}', b'{"keys":[{}]}', b"{", b"\xff", b"[" * 100_000, b"<html>"],
    ids=["empty", "object", "list", "no list", "none", "no key", "open", "bytes", "deep", "page"],
)
def test_no_set(content: bytes) -> None:
    """What holds no usable key is refused as a whole."""
    with pytest.raises(Unusable):
        read_jwks(content)
    with pytest.raises(Unusable):
        read_keys(content)


def test_too_many_keys() -> None:
    """A hundred keys are taken, one more is refused with all the others."""
    assert len(read_jwks(jwks(*[jwk("EdDSA", str(number), 0) for number in range(100)])).keys) == 100
    with pytest.raises(Unusable, match="more than 100"):
        read_jwks(jwks(*[jwk("EdDSA", str(number), 0) for number in range(101)]))


class TestPem:
    def test_several_keys(self) -> None:
        """Public keys stand one behind the other, with words between them."""
        content = b"RSA:\n" + public_pem("RS256") + b"\n# next\n" + public_pem("ES256") + public_pem("EdDSA")
        found = read_keys(content)
        assert [(key.algorithm, key.kid) for key in found.keys] == [(kind, None) for kind in KINDS]

    @pytest.mark.parametrize("algorithm", KINDS)
    def test_certificates(self, algorithm: str) -> None:
        """Of a certificate the key is taken; its dates are not looked at."""
        (key,) = read_keys(certificate(algorithm)).keys
        assert key.algorithm == algorithm

    def test_the_older_form(self) -> None:
        """RSA keys in PKCS #1 are read, too."""
        content = pair("RS256").public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1)
        assert b"RSA PUBLIC KEY" in content
        assert read_keys(content).keys[0].algorithm == "RS256"

    def test_private_keys(self) -> None:
        """A private key is not taken for its public half, and says so."""
        with pytest.raises(Unusable, match="block 1: a private key"):
            read_keys(private_pem("RS256"))
        found = read_keys(private_pem("RS256") + public_pem("RS256"))
        assert found.skipped == ("block 1: a private key; the public one belongs here",)

    def test_other_kinds(self) -> None:
        """Keys of other kinds and curves are skipped."""
        others = [dsa.generate_private_key(2048), ed448.Ed448PrivateKey.generate(), pair("ES384")]
        form = Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        content = b"".join(key.public_key().public_bytes(*form) for key in others)
        found = read_keys(content + public_pem("ES256"))
        assert [line.partition(": ")[2] for line in found.skipped] == [
            "of an unknown kind",
            "of an unknown kind",
            "of another curve than P-256",
        ]

    @pytest.mark.parametrize("label", ["PUBLIC KEY", "CERTIFICATE", "SOMETHING"])
    def test_broken_blocks(self, label: str) -> None:
        """A block that holds no key is an error that shows nothing of it."""
        with pytest.raises(Unusable, match="block 1: not a public key") as caught:
            read_keys(f"-----BEGIN {label}-----\n{'QUJD' * 20}\n-----END {label}-----".encode())
        assert "QUJD" not in str(caught.value)


_MEMBERS = st.sampled_from(["kty", "crv", "n", "e", "x", "y", "d", "k", "use", "alg", "key_ops", "kid", "x5c"])
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "sig", "verify", "AQAB", "A" * 43, "A" * 342]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
_GOOD = [jwk(kind, "a") for kind in KINDS]


@given(st.sampled_from(_GOOD), st.dictionaries(_MEMBERS, _VALUES, max_size=4))
@settings(deadline=None)
def test_any_members(good: dict[str, Any], changes: dict[str, object]) -> None:
    """Whatever a service puts into a key, it is taken, or skipped with a line."""
    found = read_jwks(json.dumps({"keys": [good | changes, jwk("EdDSA", "good")]}).encode())
    assert len(found.keys) + len(found.skipped) == 2


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda rest: public_pem("ES256")[:80] + rest))
@settings(deadline=None)
def test_any_bytes(content: bytes) -> None:
    """Whatever a file holds is read or refused, never an error of ours."""
    with contextlib.suppress(Unusable):
        assert read_keys(content).keys
