"""Who is here: the one fact about a client that every room may rely on."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeGuard

import attrs

#: What a token without ``permissions`` may do.
DEFAULT_PERMISSIONS = frozenset({"chat", "read"})
#: How permissions that name jobs begin, and the one among them that names none.
JOB = "job:"
PUBLISH = "job:publish"


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
        """Whether this user has the permission of that exact name; nothing in it is a wildcard."""
        return permission in self.permissions

    def may_read_job(self, job_id: str) -> bool:
        """Whether this user may read the stream of a job that another owns: by its id, or by a pattern.

        ``job:build-7`` names one job, ``job:build-*`` all whose id begins so, ``job:*`` every job.
        ``job:publish`` is a permission of its own and names no job, not even one called ``publish``.
        """
        return any(
            permission.startswith(JOB) and permission != PUBLISH and fits(permission.removeprefix(JOB), job_id)
            for permission in self.permissions
        )


def fits(pattern: str, text: str) -> bool:
    """Whether *text* is what *pattern* says: ``*`` is any run of characters, also none; all else is literal.

    No regular expression, and no going back: a token may carry any pattern, and each costs time in
    proportion to the lengths alone.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return text == first
    *middle, last = rest
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:  # the earliest place is as good as any: it leaves the most for what follows
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
