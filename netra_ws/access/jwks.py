"""Public keys out of a JWK Set (RFC 7517) or a PEM file: what can be used, and why the rest cannot.

Imported only where public keys are configured: ``cryptography`` takes a tenth of the time until we listen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import PyJWTError

from .jws import read_json
from .keys import MAX_KEYS, PUBLIC_ALGORITHMS

MAX_SET_BYTES = 256 * 1024
#: RFC 7518 §3.3; and what makes one check take a millisecond.
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
MAX_KID = 256
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_ALGORITHM_OF = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}
_CURVES = {"EC": "P-256", "OKP": "Ed25519"}
_CHECKS: Mapping[str, Any] = {
    "RS256": RSAAlgorithm(RSAAlgorithm.SHA256),
    "ES256": ECAlgorithm(ECAlgorithm.SHA256),
    "EdDSA": OKPAlgorithm(),
}
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----[A-Za-z0-9+/=\s]*-----END \1-----")
_BROKEN = (PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, AttributeError)


class Unusable(ValueError):
    """A set, or one key of it, cannot be used; the text says why, without any key."""


@attrs.frozen
class Key:
    """One public key with the only algorithm it is used for."""

    algorithm: str
    kid: str | None
    _key: Any = attrs.field(repr=False)

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether *signature* is this key's for *message*."""
        try:
            return _CHECKS[self.algorithm].verify(message, self._key, signature) is True
        except _BROKEN:
            return False


@attrs.frozen
class KeySet:
    """What was read.

    Attributes:
        keys: At least one.
        skipped: One line for each key that cannot be used: which one, and why.
    """

    keys: tuple[Key, ...]
    skipped: tuple[str, ...]


def read_keys(content: bytes, allowed: frozenset[str] = frozenset(PUBLIC_ALGORITHMS)) -> KeySet:
    """Read a JWK Set, or else PEM with public keys and certificates one behind the other.

    Of a certificate only the key counts: who put it there trusts it, so neither its dates nor its
    issuer are looked at.

    Raises:
        Unusable: There is no key in it that can be used with one of the *allowed* algorithms.
    """
    return read_jwks(content, allowed) if content.lstrip()[:1] == b"{" else read_pem(content, allowed)


def read_jwks(content: bytes, allowed: frozenset[str] = frozenset(PUBLIC_ALGORITHMS)) -> KeySet:
    """Read a JWK Set.

    Raises:
        Unusable: It is none, or has no usable key.
    """
    try:
        document = read_json(content)
    except ValueError:
        raise Unusable("not JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise Unusable("not a JWK Set: an object with a list of keys is expected")
    return _collect(entries, _name_of_jwk, _of_jwk, allowed)


def read_pem(content: bytes, allowed: frozenset[str] = frozenset(PUBLIC_ALGORITHMS)) -> KeySet:
    """Read blocks of PEM; their keys have no ``kid``.

    Raises:
        Unusable: There is no block, or none with a usable key.
    """
    blocks = list(_BLOCK.finditer(content))
    if not blocks:
        raise Unusable("neither a JWK Set nor PEM")
    return _collect(blocks, lambda index, block: f"block {index}", _of_pem, allowed)


def _collect(
    entries: list[Any], name: Callable[[int, Any], str], read: Callable[[Any], Key], allowed: frozenset[str]
) -> KeySet:
    if len(entries) > MAX_KEYS:
        raise Unusable(f"more than {MAX_KEYS} keys")
    keys, skipped = [], []
    for index, entry in enumerate(entries, 1):
        try:
            key = read(entry)
            if key.algorithm not in allowed:
                raise Unusable(f"auth.algorithms leaves {key.algorithm} out")
            keys.append(key)
        except Unusable as exc:
            skipped.append(f"{name(index, entry)}: {exc}")
    if not keys:
        raise Unusable("no usable key" + (f" ({'; '.join(skipped[:3])})" if skipped else ""))
    return KeySet(tuple(keys), tuple(skipped))


def _name_of_jwk(index: int, entry: Any) -> str:
    kid = entry.get("kid") if isinstance(entry, dict) else None
    # As Python writes it: a name may hold line ends, or what a terminal obeys.
    return f"key {index}, kid {kid[:64]!a}" if isinstance(kid, str) else f"key {index}, without kid"


def _of_jwk(entry: Any) -> Key:
    if not isinstance(entry, dict):
        raise Unusable("not an object")
    kind = entry.get("kty")
    if kind == "oct":
        raise Unusable("a symmetric key has no place in a set of public keys")
    if not _PRIVATE.isdisjoint(entry):
        raise Unusable("a private key; whoever can read this file or address can make tokens")
    if not isinstance(kind, str) or kind not in _ALGORITHM_OF:
        raise Unusable("of an unknown kind")
    if kind in _CURVES and entry.get("crv") != _CURVES[kind]:
        raise Unusable(f"of another curve than {_CURVES[kind]}")
    for fault in _faults_of_use(entry, _ALGORITHM_OF[kind]):
        raise Unusable(fault)
    kid = entry.get("kid")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= MAX_KID):
        raise Unusable(f"its kid is not a text of 1 to {MAX_KID} characters")
    # Only the numbers: nothing else in the object shall have a meaning for the library.
    numbers = {name: entry[name] for name in ("kty", "crv", "n", "e", "x", "y") if name in entry}
    try:
        key = _CHECKS[_ALGORITHM_OF[kind]].from_jwk(numbers)
    except _BROKEN:
        raise Unusable("its numbers are not those of a key") from None
    return _usable(key, kid)


def _faults_of_use(entry: Mapping[str, Any], algorithm: str) -> Iterator[str]:
    if entry.get("alg", algorithm) != algorithm:
        yield f"its alg is not {algorithm}"
    if entry.get("use", "sig") != "sig":
        yield "its use is not sig"
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        yield "its key_ops are without verify"


def _of_pem(block: re.Match[bytes]) -> Key:
    label, text = block[1], block[0]
    if b"PRIVATE" in label:
        raise Unusable("a private key; the public one belongs here")
    try:
        if label == b"CERTIFICATE":
            return _usable(load_pem_x509_certificate(text).public_key(), None)
        return _usable(load_pem_public_key(text), None)
    except Unusable:
        raise
    except _BROKEN:
        raise Unusable("not a public key or certificate") from None


def _usable(key: object, kid: str | None) -> Key:
    if isinstance(key, RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise Unusable(f"RSA of {key.key_size} bits; {MIN_RSA_BITS} to {MAX_RSA_BITS} are taken")
        return Key("RS256", kid, key)
    if isinstance(key, EllipticCurvePublicKey):
        if not isinstance(key.curve, SECP256R1):
            raise Unusable("of another curve than P-256")
        return Key("ES256", kid, key)
    if isinstance(key, Ed25519PublicKey):
        return Key("EdDSA", kid, key)
    raise Unusable("of an unknown kind")
