"""Where a token is found in a request, and what makes it good.

A token is a JWT in compact form (RFC 7515 §7.1) signed with HMAC-SHA256. The clock is handed in:
PyJWT checks only the signature here, because its own checks read the system's clock.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import attrs
import jwt

from netra_ws.errors import ConfigError, Refused
from netra_ws.identity import DEFAULT_PERMISSIONS, Identity, is_user_id

Headers = Sequence[tuple[bytes, bytes]]

#: Far above any token of ours, far below what would make parsing a burden.
MAX_TOKEN_BYTES = 8192
#: HMAC-SHA256 keys below its output size are guessable (RFC 7518 §3.2); PyJWT would take one byte.
MIN_SECRET_BYTES = 32
#: The last second of the year 9999: a time above it is a slip (milliseconds) and breaks calendars.
_LAST_SECOND = 253_402_300_799
#: Fixed: who lets a token choose its algorithm accepts "none", and public keys as secrets.
_ALGORITHM = "HS256"
_SIGNATURES = jwt.PyJWS([_ALGORITHM])
_CARRYING = ("jwt-auth.", "jwt.", "bearer.")
_BEARER = re.compile(r"bearer[ \t]+(\S.*)", re.IGNORECASE)
_PART = re.compile(r"[A-Za-z0-9_-]+")
_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_ENCODED = re.compile(r"[A-Za-z0-9_-]+={0,2}")


def find_token(headers: Headers, query: Mapping[str, str], allow_query: bool) -> str | None:
    """Return the token of the first carrier that holds one, unchecked; None when there is none.

    *headers* are lower-case names with values, *query* the first value of each parameter.

    Raises:
        Refused: 401 ``TOKEN_INVALID``: the first carrier is ambiguous or malformed; later ones are not tried.
    """
    authorization = _values(headers, b"authorization")
    if len(authorization) > 1:
        _refuse_invalid("two Authorization headers")
    if authorization and (match := _BEARER.fullmatch(authorization[0].strip())):
        return match[1]
    for entry in offered_subprotocols(headers):
        if (rest := _carried(entry)) is not None:
            return _unwrap(rest)
    if allow_query and query.get("token"):
        return query["token"]
    return None


def offered_subprotocols(headers: Headers) -> tuple[str, ...]:
    """Return what the client offered, in its order, over all ``Sec-WebSocket-Protocol`` headers.

    Raises:
        Refused: 401 ``TOKEN_INVALID``: an offer is not ASCII, so it may be a broken token.
    """
    values = _values(headers, b"sec-websocket-protocol")
    return tuple(entry.strip() for value in values for entry in value.split(",") if entry.strip())


def choose_subprotocol(offered: Sequence[str]) -> str | None:
    """Return the subprotocol of the answer; an entry that carries a token is never echoed."""
    return next((name for name in ("netra.v1", "jwt-auth") if name in offered), None)


def is_older_client(offered: Sequence[str]) -> bool:
    """Whether the client expects the older handshake: it carries its token in an offer and lacks ``netra.v1``."""
    return "netra.v1" not in offered and any(_carried(entry) is not None for entry in offered)


def _values(headers: Headers, wanted: bytes) -> list[str]:
    values = [value for name, value in headers if name == wanted]
    if not all(value.isascii() for value in values):
        _refuse_invalid("not ASCII")
    return [value.decode("ascii") for value in values]


def _carried(entry: str) -> str | None:
    return next((entry[len(start) :] for start in _CARRYING if entry.startswith(start)), None)


def _unwrap(rest: str) -> str:
    """Read ``[word.]<jwt>`` or ``[word.]<base64url of it>``; the number of parts tells which it is.

    A JWT has exactly three parts and its base64url is one, so a word in front makes four or two.
    """
    parts = rest.split(".")
    if len(parts) in (2, 4):
        word = parts.pop(0)
        if not _PART.fullmatch(word):
            _refuse_invalid("malformed subprotocol")
    if len(parts) == 1:
        return _decode(parts[0])
    return ".".join(parts)


def _decode(encoded: str) -> str:
    # 4/3 of the limit: what cannot become an acceptable token is not decoded at all.
    if not _ENCODED.fullmatch(encoded) or len(encoded) > MAX_TOKEN_BYTES * 4 // 3 + 4:
        _refuse_invalid("malformed subprotocol")
    bare = encoded.rstrip("=")
    try:
        return urlsafe_b64decode(bare + "=" * (-len(bare) % 4)).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        _refuse_invalid("malformed subprotocol")


def _refuse_invalid(why: str) -> NoReturn:
    raise Refused(
        401,
        "TOKEN_INVALID",
        f"The token is not valid: {why}.",
        headers=(("WWW-Authenticate", 'Bearer error="invalid_token"'),),
    )


@attrs.frozen
class Verifier:
    """Turns a token into the identity it proves.

    Attributes:
        secret: HMAC key, at least 32 bytes as UTF-8.
        issuer: What ``iss`` must be; None accepts any.
        audience: What ``aud`` must be or hold; None accepts any.
        leeway_s: How far the clocks of issuer and server may differ.

    Raises:
        ConfigError: the secret is too short, or is a public key by its looks.
    """

    secret: str = attrs.field(repr=False)
    issuer: str | None = None
    audience: str | None = None
    leeway_s: float = 5.0
    _key: bytes = attrs.field(
        init=False, repr=False, eq=False, default=attrs.Factory(lambda self: _key(self.secret), takes_self=True)
    )

    def verify(self, token: str | None, now: float) -> Identity:
        """Return who the token stands for at *now*, in Unix seconds.

        Raises:
            Refused: 401 with ``TOKEN_MISSING``, ``TOKEN_EXPIRED`` or ``TOKEN_INVALID``.
        """
        if token is None:
            raise Refused(401, "TOKEN_MISSING", "A token is needed.", headers=(("WWW-Authenticate", "Bearer"),))
        claims = self._signed_claims(token)
        user_id = claims.get("sub")
        if not is_user_id(user_id):
            _refuse_invalid("sub must be a text of 1 to 256 characters without control characters")
        self._check_origin_and_use(claims)
        expires_at = self._check_times(claims, now)
        permissions: Any = _permissions(claims)  # Any: mypy cannot see through the converter of Identity
        return Identity(
            user_id=user_id,
            permissions=permissions,
            expires_at=expires_at,
            token_id=_token_id(claims),
            claims=claims,
        )

    def _signed_claims(self, token: str) -> dict[str, Any]:
        if len(token) > MAX_TOKEN_BYTES or not _JWT.fullmatch(token):
            _refuse_invalid("it is not a JWT")
        try:
            signed = _SIGNATURES.decode_complete(token, self._key, algorithms=[_ALGORITHM])
            claims = json.loads(signed["payload"], parse_constant=_no_constant)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            # Before the signature is known to be good, nothing is told about the reason.
            _refuse_invalid("it was not signed here")
        if "crit" in signed["header"]:  # RFC 7515 §4.1.11: what we do not understand, we must refuse
            _refuse_invalid("unknown critical header")
        if not isinstance(claims, dict):
            _refuse_invalid("its claims are not an object")
        return claims

    def _check_origin_and_use(self, claims: Mapping[str, Any]) -> None:
        if self.issuer is not None and claims.get("iss") != self.issuer:
            _refuse_invalid("wrong issuer")
        if self.audience is not None:
            audience = claims.get("aud")
            if self.audience not in (audience if isinstance(audience, list) else [audience]):
                _refuse_invalid("wrong audience")

    def _check_times(self, claims: Mapping[str, Any], now: float) -> float:
        expires_at = _time(claims, "exp")
        if expires_at is None:
            _refuse_invalid("exp is missing")
        for name in ("iat", "nbf"):
            start = _time(claims, name)
            if start is not None and start > now + self.leeway_s:
                _refuse_invalid(f"{name} lies in the future")
        if now >= expires_at + self.leeway_s:
            raise Refused(
                401,
                "TOKEN_EXPIRED",
                "The token has expired.",
                headers=(("WWW-Authenticate", 'Bearer error="invalid_token"'),),
            )
        return expires_at


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    # bool is an int to isinstance; an int is compared before it becomes a float, which could overflow.
    if type(value) not in (int, float) or not 0 <= value <= _LAST_SECOND:
        _refuse_invalid(f"{name} is not a time in seconds")
    return float(value)


def _permissions(claims: Mapping[str, Any]) -> frozenset[str]:
    if "permissions" not in claims:
        return DEFAULT_PERMISSIONS
    permissions: object = claims["permissions"]
    if not isinstance(permissions, list) or not all(isinstance(item, str) for item in permissions):
        _refuse_invalid("permissions must be a list of text")
    return frozenset(permissions)


def _token_id(claims: Mapping[str, Any]) -> str | None:
    token_id = claims.get("jti")
    if token_id is not None and not isinstance(token_id, str):  # RFC 7519 §4.1.7
        _refuse_invalid("jti must be text")
    return token_id


def _key(secret: str) -> bytes:
    try:
        key = secret.encode()
        _SIGNATURES.get_algorithm_by_name(_ALGORITHM).prepare_key(key)
    except (UnicodeEncodeError, jwt.PyJWTError) as exc:
        # A public key or certificate is known to everybody; PyJWT knows their looks.
        raise ConfigError("auth.secret: must be secret text, not a public key or certificate") from exc
    if len(key) < MIN_SECRET_BYTES:
        raise ConfigError(f"auth.secret: at least {MIN_SECRET_BYTES} bytes are needed")
    return key


def mint(
    secret: str, user: str, permissions: Iterable[str] | None, expires_s: float, now: float, **claims: object
) -> str:
    """Return a signed token for *user* that expires *expires_s* seconds after *now*.

    *permissions* None leaves the claim out, which means ``chat`` and ``read``. Further *claims*
    (``iss``, ``aud``, ``jti``, ``email``, …) stand beside, and win over, the ones made here.

    Raises:
        ConfigError: the secret is too short.
        ValueError: *user* cannot name a user.
    """
    if not is_user_id(user):
        raise ValueError("a user is named by 1 to 256 characters without control characters")
    content: dict[str, object] = {"sub": user, "iat": int(now), "exp": round(now + expires_s, 3)}
    if permissions is not None:
        content["permissions"] = list(permissions)
    payload = json.dumps({**content, **claims}, separators=(",", ":")).encode()
    return _SIGNATURES.encode(payload, _key(secret), _ALGORITHM)
