"""The PROXY protocol, versions 1 and 2: what a balancer says in front of a client's own bytes.

Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt. A pure reading of bytes; who may say
it is decided by whoever calls.
"""

from __future__ import annotations

import ipaddress
import re

import attrs

SIGNATURE_1 = b"PROXY "
SIGNATURE_2 = b"\r\n\r\n\x00\r\nQUIT\n"
#: Bytes of a whole line of version 1 (§2.1), and what we take of version 2: addresses and its extras.
MAX_LINE_BYTES = 107
MAX_BLOCK_BYTES = 4096
_HEADER_2 = 16
_LOCAL, _PROXY = 0x20, 0x21
#: Family and transport → bytes of one address. Version 2 says Unix sockets and "unspecified", too.
_TCP = {0x11: 4, 0x21: 16}
_NO_ADDRESS = frozenset({0x00, 0x31, 0x32})
_PORT = re.compile(r"0|[1-9][0-9]{0,4}")


class BrokenPreface(Exception):
    """It began like a PROXY line and is none."""


@attrs.frozen
class Preface:
    """What was said.

    Attributes:
        size: Bytes of it; the client's own follow.
        source: Address of the client; None where the proxy speaks for itself, or cannot say.
    """

    size: int
    source: str | None


def may_be_preface(data: bytes) -> bool:
    """Whether *data* begins, as far as it goes, as a PROXY line does."""
    return any(data[: len(signature)] == signature[: len(data)] for signature in (SIGNATURE_1, SIGNATURE_2))


def read_preface(data: bytes) -> Preface | None:
    """Read a PROXY line at the beginning of *data*, which ``may_be_preface``; None when there must be more.

    Raises:
        BrokenPreface: There is none that we understand, or it is too long.
    """
    if data.startswith(SIGNATURE_2):
        return _read_2(data)
    if not data.startswith(SIGNATURE_1):
        return None  # a part of a signature
    end = data.find(b"\r\n", 0, MAX_LINE_BYTES)
    if end < 0:
        if len(data) >= MAX_LINE_BYTES:
            raise BrokenPreface
        return None
    return Preface(end + 2, _source_1(data[:end]))


def _source_1(line: bytes) -> str | None:
    words = line.decode("latin-1").split(" ")
    if words[1] == "UNKNOWN":
        return None  # the receiver must ignore anything behind it
    if len(words) != 6 or not all(_PORT.fullmatch(port) and int(port) <= 65535 for port in words[4:]):
        raise BrokenPreface
    readers: dict[str, type[ipaddress.IPv4Address | ipaddress.IPv6Address]]
    readers = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}
    reader = readers.get(words[1])
    if reader is None:
        raise BrokenPreface
    try:
        source, _ = reader(words[2]), reader(words[3])
    except ValueError:
        raise BrokenPreface from None
    return _spelled(source)


def _read_2(data: bytes) -> Preface | None:
    if len(data) < _HEADER_2:
        return None
    command, family = data[12], data[13]
    size = _HEADER_2 + int.from_bytes(data[14:16], "big")
    if command not in (_LOCAL, _PROXY) or size > MAX_BLOCK_BYTES:
        raise BrokenPreface
    if len(data) < size:
        return None
    if command == _LOCAL or family in _NO_ADDRESS:
        return Preface(size, None)
    width = _TCP.get(family)
    if width is None or size < _HEADER_2 + 2 * width + 4:
        raise BrokenPreface
    return Preface(size, _spelled(ipaddress.ip_address(data[_HEADER_2 : _HEADER_2 + width])))


def _spelled(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    # IPv4 inside IPv6 is IPv4: one client has one address.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
