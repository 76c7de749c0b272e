"""Who is here: the one fact about a client that every room may rely on."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeGuard

import attrs

#: What a token without ``permissions`` may do.
DEFAULT_PERMISSIONS = frozenset({"chat", "read"})


def is_user_id(value: object) -> TypeGuard[str]:
    """Whether *value* can name a user: 1 to 256 characters, none of them a control character."""
    # Lone surrogates go, too: JSON can write them ("\\ud800"), no store or frame can.
    return (
        isinstance(value, str)
        and 1 <= len(value) <= 256
        and not any(unicodedata.category(character) in ("Cc", "Cs") for character in value)
    )


def _check_user_id(_instance: object, _attribute: object, value: str) -> None:
    if not is_user_id(value):
        raise ValueError("user_id must be a text of 1 to 256 characters without control characters")


def _frozen_claims(claims: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(claims))


def _frozen_permissions(permissions: Iterable[str]) -> frozenset[str]:
    return frozenset(permissions)


@attrs.frozen
class Identity:
    """A user as the lock let them in.

    Attributes:
        user_id: 1 to 256 characters, none of them a control character; compared exactly.
        permissions: ``chat``, ``read``, ``job:<id or pattern>``, ``job:publish``, ``operator``.
        expires_at: Unix seconds after which the identity is no longer valid; None for never.
        token_id: ``jti`` of the token, if it had one.
        claims: All claims, read only, for agents that need more.
    """

    user_id: str = attrs.field(validator=_check_user_id)
    permissions: frozenset[str] = attrs.field(default=DEFAULT_PERMISSIONS, converter=_frozen_permissions)
    expires_at: float | None = None
    token_id: str | None = None
    claims: Mapping[str, Any] = attrs.field(factory=dict, converter=_frozen_claims, eq=False, repr=False)

    def may(self, permission: str) -> bool:
        """Whether this user has the permission of that exact name."""
        return permission in self.permissions
