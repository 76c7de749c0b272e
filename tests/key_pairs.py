"""Key pairs for tests, and tokens signed with them: by PyJWT, which is not what checks them."""

from __future__ import annotations

import json
import time
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

#: The kinds that are taken, by their algorithm.
KINDS = ("RS256", "ES256", "EdDSA")


def pair(algorithm: str, number: int = 0, size: int = 2048) -> Any:
    """Return a private key; the same for the same *number*."""
    return _pair(algorithm, number, size)


@cache
def _pair(algorithm: str, number: int, size: int) -> Any:
    if algorithm == "RS256":
        return rsa.generate_private_key(65537, size)
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key({"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "K": ec.SECP256K1}[algorithm]())


def public_pem(algorithm: str, number: int = 0, **more: Any) -> bytes:
    """Return a public key in PEM."""
    key = pair(algorithm, number, **more).public_key()
    return bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def private_pem(algorithm: str, number: int = 0) -> bytes:
    """Return a private key in PEM."""
    return bytes(pair(algorithm, number).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def jwk(
    algorithm: str, kid: str | None = None, number: int = 0, *, private: bool = False, **more: Any
) -> dict[str, Any]:
    """Return one key of a set; *more* replaces members, None takes one out."""
    key = pair(algorithm, number)
    kind = {"RS256": RSAAlgorithm, "EdDSA": OKPAlgorithm}.get(algorithm, ECAlgorithm)
    members = kind.to_jwk(key if private else key.public_key(), as_dict=True)
    members.pop("key_ops", None)
    entry = {**members, "kid": kid, **more}
    return {name: value for name, value in entry.items() if value is not None}


def jwks(*keys: dict[str, Any]) -> bytes:
    """Return a JWK Set."""
    return json.dumps({"keys": keys}).encode()


def signed_by(
    algorithm: str,
    kid: str | None = None,
    number: int = 0,
    *,
    now: float | None = None,
    header: dict[str, Any] | None = None,
    **claims: Any,
) -> str:
    """Return a token of user ada that is good for a minute."""
    moment = time.time() if now is None else now
    named = {} if kid is None else {"kid": kid}
    content = {"sub": "ada", "exp": int(moment) + 60, **claims}
    return jwt.encode(content, pair(algorithm, number), algorithm, headers={**named, **(header or {})})
