"""Which address a request counts for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.access.proxies import LOOPBACK, MAX_HOPS, Proxies, Seen, read_address
from netra_ws.errors import ConfigError

PROXIES = Proxies(("10.0.0.1", "10.1.0.0/16", "fd00::/8"))


def forwarded(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-forwarded-for", value.encode("latin-1")) for value in values]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("1.2.3.4", "1.2.3.4"),
        (" 1.2.3.4 ", "1.2.3.4"),
        ("1.2.3.4:5678", "1.2.3.4"),
        ("2001:DB8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:80", "fe80::1"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("[::ffff:1.2.3.4]:80", "1.2.3.4"),
        ("", None),
        ("unknown", None),
        ("_hidden", None),
        ("1.2.3", None),
        ("1.2.3.4.5", None),
        ("01.2.3.4", None),
        ("1.2.3.256", None),
        ("1.2.3.4:", None),
        ("1.2.3.4:port", None),
        ("[1.2.3.4", None),
        ('"1.2.3.4"', None),
        ("example.org", None),
        ("1.2.3.4 5.6.7.8", None),
    ],
)
def test_addresses_have_one_spelling(text: str, address: str | None) -> None:
    """Ports, brackets, zones and IPv4 inside IPv6 make no second client of one; anything else is no address."""
    found = read_address(text)
    assert (None if found is None else str(found)) == address


@pytest.mark.parametrize(
    ("entries", "peer"),
    [
        (["8.8.8.8"], "8.8.8.8"),
        (["9.9.9.9, 8.8.8.8"], "8.8.8.8"),
        (["9.9.9.9", "8.8.8.8"], "8.8.8.8"),
        (["9.9.9.9, 8.8.8.8, 10.1.2.3"], "8.8.8.8"),
        (["9.9.9.9, 8.8.8.8", "10.1.2.3, fd00::5"], "8.8.8.8"),
        (["8.8.8.8:4711, 10.1.2.3:80"], "8.8.8.8"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["10.1.2.3"], "10.1.2.3"),
        (["10.1.2.3, 10.1.2.4"], "10.1.2.3"),
        (["8.8.8.8, unknown"], "10.0.0.1"),
        (["8.8.8.8, unknown, 10.1.2.3"], "10.1.2.3"),
        (["8.8.8.8, "], "10.0.0.1"),
        (["8.8.8.8,,10.1.2.3"], "10.1.2.3"),
        ([""], "10.0.0.1"),
        ([","], "10.0.0.1"),
        (["\xff\x00"], "10.0.0.1"),
        ([], "10.0.0.1"),
        (["8.8.8.8" + ", 10.1.2.3" * (MAX_HOPS - 1)], "8.8.8.8"),
        (["8.8.8.8" + ", 10.1.2.3" * MAX_HOPS], "10.1.2.3"),
        (["x" * 10_000], "10.0.0.1"),
    ],
)
def test_the_rightmost_address_that_is_no_proxy(entries: list[str], peer: str) -> None:
    """What stands behind it was written by named proxies, what stands before it by anybody; garbage ends the walk."""
    assert PROXIES.see(forwarded(*entries), "10.0.0.1", https=False).peer == peer


@pytest.mark.parametrize("peer", ["8.8.8.8", "10.0.0.2", "127.0.0.1", "::1", "local", "?", "", "proxy.example"])
def test_nobody_else_is_believed(peer: str) -> None:
    """Whatever a stranger writes, it is the one who came."""
    headers = [*forwarded("1.1.1.1"), (b"x-forwarded-proto", b"https"), (b"x-forwarded-host", b"a.example")]
    assert PROXIES.see(headers, peer, https=False) == Seen(peer, https=False)
    assert not PROXIES.trusts(peer)


def test_without_proxies_nobody_is_believed() -> None:
    """That is so without any setting."""
    assert Proxies().see(forwarded("1.1.1.1"), "127.0.0.1", https=True) == Seen("127.0.0.1", https=True)


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.4.4.4", "::1", "::ffff:127.0.0.1"])
def test_the_own_machine(peer: str) -> None:
    """Where no proxy was named, one on this machine is believed."""
    assert Proxies(LOOPBACK).see(forwarded("1.1.1.1"), peer, https=False).peer == "1.1.1.1"


@pytest.mark.parametrize(
    ("own", "protos", "https"),
    [
        (False, [], False),
        (True, [], True),
        (False, [b"https"], True),
        (False, [b"HTTPS"], True),
        (False, [b"wss"], True),
        (True, [b"http"], False),
        (False, [b"https, http"], False),
        (False, [b"http", b"https"], True),
        (False, [b"gopher"], False),
        (False, [b""], False),
    ],
)
def test_the_nearest_proxy_says_whether_tls_was_spoken(own: bool, protos: list[bytes], https: bool) -> None:
    """Without its word, our own connection with it counts."""
    headers = [(b"x-forwarded-proto", value) for value in protos]
    assert PROXIES.see(headers, "10.0.0.1", https=own).https is https


@pytest.mark.parametrize(
    ("said", "host"),
    [
        (b"app.example", b"app.example"),
        (b"evil.example, app.example:8443", b"app.example:8443"),
        (b"[2001:db8::1]:80", b"[2001:db8::1]:80"),
        (b"a b", None),
        (b"a@b", None),
        (b"a/b", None),
        (b"a.example:port", None),
        (b"", None),
        (b"x" * 300, None),
    ],
)
def test_the_host_that_was_asked_for(said: bytes, host: bytes | None) -> None:
    """Only what can be a host counts."""
    assert PROXIES.see([(b"x-forwarded-host", said)], "10.0.0.1", https=False).host == host


@given(st.lists(st.binary(max_size=60), max_size=5), st.sampled_from(["10.0.0.1", "8.8.8.8"]))
def test_any_bytes(values: list[bytes], peer: str) -> None:
    """Whatever is in the headers, an address comes out and nothing is raised."""
    headers = [(name, value) for value in values for name in (b"x-forwarded-for", b"x-forwarded-host")]
    seen = PROXIES.see(headers, peer, https=False)
    assert read_address(seen.peer) is not None


def test_what_is_no_network() -> None:
    """It is refused by the name of its setting."""
    with pytest.raises(ConfigError, match=r"server.trusted_proxies: 'proxy.example' is no address"):
        Proxies(("proxy.example",))
