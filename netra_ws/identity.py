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
#: Far above any calendar; NaN, infinity and what overflows a float are not below it.
_LAST_MOMENT = 2.0**53


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


def _check_expires_at(_instance: object, _attribute: object, value: float | None) -> None:
    # A program's own rule may say anything; whoever reckons with it later looks after everybody.
    if value is not None and (type(value) not in (int, float) or not abs(value) <= _LAST_MOMENT):
        raise ValueError("expires_at must be Unix seconds, or None for never")


def _check_token_id(_instance: object, _attribute: object, value: str | None) -> None:
    if not isinstance(value, str | None):
        raise ValueError("token_id must be text or None")  # noqa: TRY004 - as the other fields do


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
    expires_at: float | None = attrs.field(default=None, validator=_check_expires_at)
    token_id: str | None = attrs.field(default=None, validator=_check_token_id)
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
