"""What the older system asked of origins in each environment, and what it found suspicious."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

import attrs

from netra_ws.access.origins import Origin

#: Ports on which development servers listen by default.
_COMMON_PORTS = frozenset(
    {80, 443, 3000, 3001, 3002, 3003, 4000, 4001, 4200, 5173, 5174, *range(8000, 8004), *range(8080, 8084)}
)
#: Anybody can have a name below these.
_TUNNELS = (".ngrok.io", ".ngrok.app", ".ngrok-free.app", ".localtunnel.me", ".loca.lt", ".herokuapp.com")
THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "[::1]"})  # noqa: S104 - a name in a URL


@attrs.frozen
class Rules:
    """What an environment asks for.

    Attributes:
        local: Pages of this machine and its private network pass, and clients without an Origin.
        https: Pages that came over plain HTTP do not pass, even if they are listed.
        suspicious: Nor do those that are suspicious.
        spares_this_machine: Pages of this machine are not suspicious.
    """

    local: bool
    https: bool
    suspicious: bool
    spares_this_machine: bool = False


RULES: Mapping[str, Rules] = {
    "development": Rules(local=True, https=False, suspicious=False),
    "testing": Rules(local=True, https=False, suspicious=False),
    "staging": Rules(local=False, https=False, suspicious=True, spares_this_machine=True),
    "production": Rules(local=False, https=True, suspicious=True),
}


def is_suspicious(origin: Origin) -> bool:
    """Whether no page of a service should have this origin: an extension, a tunnel, an address, an odd local port."""
    if origin.scheme.endswith("-extension") or _address(origin) is not None:
        return True
    if origin.host == "localhost":
        return origin.port not in _COMMON_PORTS
    return origin.host.endswith(_TUNNELS)


def is_local(origin: Origin) -> bool:
    """Whether a page can only come from this machine or its network: a name without a dot is no public one."""
    if origin.scheme not in ("http", "https"):
        return False
    address = _address(origin)
    return address.is_private if address is not None else origin.is_loopback or "." not in origin.host


def _address(origin: Origin) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(origin.host.strip("[]"))
    except ValueError:
        return None
