"""Which address a request counts for, when it came through proxies that the operator has named.

``X-Forwarded-*`` can be written by anybody, so it is read only when the peer is a named proxy, and from the
right: each proxy appends the address that it saw. What stands left of the first address that is no
named proxy was written by that client, and is not looked at.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

import attrs

from netra_ws.errors import ConfigError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Entries of ``X-Forwarded-For`` that are looked at, from the right; more proxies than any site has.
MAX_HOPS = 32
#: What is believed where nobody was named: a proxy on the same machine.
LOOPBACK = ("127.0.0.0/8", "::1")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]{1,253})(?::[0-9]{1,5})?")
_BRACKETED = re.compile(r"\[([^\]]*)\](?::[0-9]{1,5})?")
_WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}")


def read_address(text: str) -> Address | None:
    """Read an address as proxies write it: with a port, brackets or a zone; None when it is none.

    IPv4 inside IPv6 is IPv4, and a zone is dropped: one client has one spelling.
    """
    text = text.strip()
    if match := _BRACKETED.fullmatch(text) or _WITH_PORT.fullmatch(text):
        text = match[1]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _networks(texts: Iterable[str]) -> tuple[Network, ...]:
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text.strip(), strict=False))
        except ValueError:
            raise ConfigError(f"server.trusted_proxies: {text!r} is no address and no network") from None
    return tuple(networks)


@attrs.frozen
class Seen:
    """Whom a request counts for.

    Attributes:
        peer: Address of the client.
        https: Whether the client spoke TLS with the first proxy that said so.
        host: What the client asked for, or None when no proxy says.
    """

    peer: str
    https: bool
    host: bytes | None = None


@attrs.frozen
class Proxies:
    """The proxies whose words are believed.

    Raises:
        ConfigError: One of them is no address and no network.
    """

    networks: tuple[Network, ...] = attrs.field(converter=_networks, default=())

    def trusts(self, peer: str) -> bool:
        """Whether *peer* is one of them."""
        address = read_address(peer) if self.networks else None
        return address is not None and self._holds(address)

    def _holds(self, address: Address) -> bool:
        return any(address in network for network in self.networks)

    def see(self, headers: Sequence[tuple[bytes, bytes]], peer: str, *, https: bool) -> Seen:
        """Return whom a request counts for that came from *peer*, over TLS of our own or not."""
        if not self.trusts(peer):
            return Seen(peer, https)
        proto = _last(headers, b"x-forwarded-proto")
        host = _last(headers, b"x-forwarded-host")
        return Seen(
            peer=self._client(_entries(headers, b"x-forwarded-for"), peer),
            https=https if proto is None else proto.lower() in (b"https", b"wss"),
            host=host if host is not None and _HOST.fullmatch(host) else None,
        )

    def _client(self, entries: Sequence[bytes], peer: str) -> str:
        known = peer
        for entry in entries[: -MAX_HOPS - 1 : -1]:
            address = read_address(entry.decode("latin-1"))
            if address is None:
                break  # "unknown", or garbage: whoever wrote it is the last that we know
            known = str(address)
            if not self._holds(address):
                break
        return known


def _entries(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    joined = b",".join(value for key, value in headers if key == name)
    return [entry.strip() for entry in joined.split(b",")] if joined else []


def _last(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    # The nearest proxy wrote the last one; the others may be the client's.
    entries = _entries(headers, name)
    return entries[-1] if entries else None
