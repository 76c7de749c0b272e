"""Where a token is found in a request, and what makes it good.

A token is a JWT in compact form (RFC 7515 §7.1), signed with the secret or with a key of an identity
service. Claims are checked here and not by a library, because the clock is handed in.
"""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import attrs

from netra_ws.errors import ConfigError, Refused
from netra_ws.identity import DEFAULT_PERMISSIONS, Identity, is_user_id

from .challenge import not_good
from .jws import Compact, encode, put_together, read_json, take_apart
from .keys import PUBLIC_ALGORITHMS, SECRET_ALGORITHM, PublicKeys, Secret

Headers = Sequence[tuple[bytes, bytes]]

#: Far above any token of ours, far below what would make parsing a burden.
MAX_TOKEN_BYTES = 8192
#: The last second of the year 9999: a time above it is a slip (milliseconds) and breaks calendars.
_LAST_SECOND = 253_402_300_799
_CARRYING = ("jwt-auth.", "jwt.", "bearer.")
_BEARER = re.compile(r"bearer[ \t]+(\S.*)", re.IGNORECASE)
_PART = re.compile(r"[A-Za-z0-9_-]+")
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
    raise not_good("TOKEN_INVALID", f"The token is not valid: {why}.")


@attrs.frozen
class Verifier:
    """Turns a token into the identity it proves.

    Attributes:
        secret: HMAC key, at least 32 bytes as UTF-8; None where only public keys count.
        issuer: What ``iss`` must be; None accepts any.
        audience: What ``aud`` must be or hold; None accepts any.
        leeway_s: How far the clocks of issuer and server may differ.
        public: Keys of an identity service, which change while tokens are checked; None for none.
        algorithms: Further restriction of what the keys can check; empty for none.

    Raises:
        ConfigError: the secret is too short, or is a public key by its looks; or there is no key at all.
    """

    secret: str | None = attrs.field(repr=False)
    issuer: str | None = None
    audience: str | None = None
    leeway_s: float = 5.0
    public: PublicKeys | None = attrs.field(default=None, repr=False, eq=False)
    algorithms: Sequence[str] = ()
    _key: Secret | None = attrs.field(init=False, repr=False, eq=False)
    _allowed: frozenset[str] = attrs.field(init=False, repr=False, eq=False)

    @_key.default
    def _read_secret(self) -> Secret | None:
        if self.secret is None and self.public is None:
            raise ConfigError("auth.secret: there is neither a secret nor a public key")
        return None if self.secret is None else Secret.of(self.secret)

    @_allowed.default
    def _usable_algorithms(self) -> frozenset[str]:
        usable = {SECRET_ALGORITHM} if self.secret is not None else set()
        if self.public is not None:
            usable |= set(PUBLIC_ALGORITHMS)
        return frozenset(usable & set(self.algorithms or usable))

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

    def names_unknown_key(self, token: str) -> bool:
        """Whether *token* names a public key that nobody has: after news of the keys it may be good.

        Only the header is believed here, and only that far. A token of a known key costs no more than its parsing.
        """
        if self.public is None or len(token) > MAX_TOKEN_BYTES:
            return False
        try:
            parts = take_apart(token)
        except ValueError:
            return False
        algorithm, kid = parts.header.get("alg"), parts.header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._allowed or not isinstance(kid, str):
            return False
        return self.public.lacks(algorithm, kid, parts.signed, parts.signature)

    def _signed_claims(self, token: str) -> dict[str, Any]:
        if len(token) > MAX_TOKEN_BYTES:
            _refuse_invalid("it is not a JWT")
        # Before the signature is known to be good, nothing is told about the reason.
        try:
            parts = take_apart(token)
        except ValueError:
            _refuse_invalid("it was not signed here")
        if not self._is_signed(parts):
            _refuse_invalid("it was not signed here")
        # RFC 7515 §4.1.11: what we do not understand, we must refuse; b64 is RFC 7797's, which says crit besides.
        if "crit" in parts.header or parts.header.get("b64", True) is not True:
            _refuse_invalid("unknown critical header")
        try:
            claims = read_json(parts.payload)
        except ValueError:
            claims = None
        if not isinstance(claims, dict):
            _refuse_invalid("its claims are not an object")
        return claims

    def _is_signed(self, parts: Compact) -> bool:
        """Whether a key of the algorithm that the header names made the signature.

        Of the header only ``alg`` and ``kid`` are looked at: a key or address that a token brings
        along (``jwk``, ``jku``, ``x5c``, ``x5u``) proves nothing.
        """
        algorithm, kid = parts.header.get("alg"), parts.header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._allowed or not isinstance(kid, str | None):
            return False
        if algorithm == SECRET_ALGORITHM:
            return self._key is not None and self._key.verifies(parts.signed, parts.signature)
        return self.public is not None and self.public.verifies(algorithm, kid, parts.signed, parts.signature)

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
            raise not_good("TOKEN_EXPIRED", "The token has expired.")
        return expires_at


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
    signed = put_together({"alg": SECRET_ALGORITHM, "typ": "JWT"}, {**content, **claims})
    return f"{signed.decode()}.{encode(Secret.of(secret).sign(signed))}"
