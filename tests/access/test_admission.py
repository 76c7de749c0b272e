from collections.abc import Mapping, Sequence

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.access import AddressTable, Admission, OriginPolicy, Verifier, mint
from netra_ws.errors import Refused
from netra_ws.identity import Identity

SECRET = "s" * 32
NOW = 1_763_000_000.0
TOKEN = mint(SECRET, "ada", None, 60, NOW)
BEARER = (b"authorization", f"Bearer {TOKEN}".encode())
GOOD_ORIGIN = (b"origin", b"https://app.example.org")
BAD_ORIGIN = (b"origin", b"https://evil.example")
PEER = "192.0.2.1"


@attrs.frozen
class RequestHead:
    headers: Sequence[tuple[bytes, bytes]] = ()
    query: Mapping[str, str] = attrs.field(factory=dict)


def make_admission(*, failed: int = 100, connects: int = 1000, allow_query: bool = False) -> Admission:
    return Admission(
        Verifier(SECRET), OriginPolicy(["https://app.example.org"]), AddressTable(10, connects, failed), allow_query
    )


def refusal(admission: Admission, head: RequestHead) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        admission.admit(head, NOW, PEER)
    return caught.value.status, caught.value.code


def test_admitted() -> None:
    """A good origin and a good token give an identity."""
    admission = make_admission()
    assert admission.admit(RequestHead([GOOD_ORIGIN, BEARER]), NOW, PEER).user_id == "ada"
    assert admission.admit(RequestHead([BEARER]), NOW, PEER).user_id == "ada"


def test_order() -> None:
    """Too many attempts are said before a bad origin, and a bad origin before a bad token."""
    admission = make_admission(connects=2)
    assert refusal(admission, RequestHead([BAD_ORIGIN])) == (403, "ORIGIN_REFUSED")
    assert refusal(admission, RequestHead([GOOD_ORIGIN])) == (401, "TOKEN_MISSING")
    assert refusal(admission, RequestHead([BAD_ORIGIN])) == (429, "RATE_LIMITED")


@pytest.mark.parametrize("headers", [[BAD_ORIGIN, BEARER], [], [(b"authorization", b"Bearer x")], [BEARER, BEARER]])
def test_failures_are_counted(headers: list[tuple[bytes, bytes]]) -> None:
    """Each kind of refusal counts as a failed attempt of its address."""
    admission = make_admission(failed=1)
    assert refusal(admission, RequestHead(headers))[0] in (401, 403)
    assert refusal(admission, RequestHead([BEARER])) == (429, "RATE_LIMITED")
    assert admission.admit(RequestHead([BEARER]), NOW, "192.0.2.2").user_id == "ada"


def test_query_token() -> None:
    """A token in the query is believed only where settings allow it."""
    head = RequestHead(query={"token": TOKEN})
    assert make_admission(allow_query=True).admit(head, NOW, PEER).user_id == "ada"
    assert refusal(make_admission(), head) == (401, "TOKEN_MISSING")


def test_own_origin_needs_one_host() -> None:
    """The server's own origin is known by its one Host header; of two, none is believed."""
    own = Admission(Verifier(SECRET), OriginPolicy([], environment="development"), AddressTable(10, 100, 100))
    head = [(b"origin", b"http://dev.example"), (b"host", b"dev.example"), BEARER]
    assert own.admit(RequestHead(head), NOW, PEER).user_id == "ada"
    assert refusal(own, RequestHead([*head, (b"host", b"other.example")])) == (403, "ORIGIN_REFUSED")


def test_screen_needs_no_token() -> None:
    """A program with its own rule for tokens still gets origins and budgets."""
    admission = make_admission()
    admission.screen(RequestHead([GOOD_ORIGIN]), NOW, PEER)
    with pytest.raises(Refused, match="ORIGIN_REFUSED"):
        admission.screen(RequestHead([BAD_ORIGIN]), NOW, PEER)


def test_statistics() -> None:
    """Every decision is counted once under its outcome."""
    admission = make_admission(connects=6)
    admission.admit(RequestHead([BEARER]), NOW, PEER)
    expired = mint(SECRET, "ada", None, -60, NOW)
    for headers in (
        [],
        [(b"authorization", f"Bearer {expired}".encode())],
        [(b"authorization", b"Bearer x")],
        [BAD_ORIGIN],
    ):
        refusal(admission, RequestHead(headers))
    refusal(admission, RequestHead([(b"origin", b"null")]))
    refusal(admission, RequestHead([BEARER]))
    statistics = admission.statistics()
    assert statistics.auth == {"ok": 1, "missing": 1, "expired": 1, "invalid": 1, "revoked": 0}
    assert statistics.origins_refused == {"missing": 0, "several": 0, "opaque": 1, "malformed": 0, "not_allowed": 1}
    assert statistics.rate_limited == 1
    assert statistics.addresses_tracked == 1


NAMES = st.sampled_from([b"authorization", b"sec-websocket-protocol", b"origin", b"host", b"x"])


@given(st.lists(st.tuples(NAMES, st.binary(max_size=40)), max_size=5), st.text(max_size=10), st.text(max_size=10))
def test_any_head(headers: list[tuple[bytes, bytes]], token: str, peer: str) -> None:
    """Any bytes in a head become an identity or a refusal."""
    try:
        identity = make_admission(allow_query=True).admit(RequestHead(headers, {"token": token}), NOW, peer)
    except Refused as refused:
        assert refused.status in (401, 403)  # noqa: PT017
    else:
        assert isinstance(identity, Identity)
