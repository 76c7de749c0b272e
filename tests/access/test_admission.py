from collections.abc import Mapping, Sequence

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.access import AddressTable, Admission, OriginPolicy, Tickets, Verifier, mint
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


def admit(admission: Admission, head: RequestHead, now: float, peer: str) -> Identity:
    """Do all that the door does before a seat."""
    admission.screen(head, now, peer)
    return admission.identify(head, now, peer)


def refusal(admission: Admission, head: RequestHead) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        admit(admission, head, NOW, PEER)
    return caught.value.status, caught.value.code


def test_admitted() -> None:
    """A good origin and a good token give an identity."""
    admission = make_admission()
    assert admit(admission, RequestHead([GOOD_ORIGIN, BEARER]), NOW, PEER).user_id == "ada"
    assert admit(admission, RequestHead([BEARER]), NOW, PEER).user_id == "ada"


def test_order() -> None:
    """A bad origin is said before too many attempts, and those before a bad token."""
    admission = make_admission(connects=1)
    assert refusal(admission, RequestHead([GOOD_ORIGIN])) == (401, "TOKEN_MISSING")
    assert refusal(admission, RequestHead([BAD_ORIGIN])) == (403, "ORIGIN_REFUSED")
    assert refusal(admission, RequestHead([GOOD_ORIGIN])) == (429, "RATE_LIMITED")


def test_a_foreign_page_uses_up_nothing_of_an_address() -> None:
    """Whatever a page of another origin tries, programs and allowed pages of the same address get in."""
    admission = make_admission(connects=2, failed=1)
    for _ in range(20):
        assert refusal(admission, RequestHead([BAD_ORIGIN, BEARER]))[0] == 403
    assert admit(admission, RequestHead([GOOD_ORIGIN, BEARER]), NOW, PEER).user_id == "ada"
    assert admit(admission, RequestHead([BEARER]), NOW, PEER).user_id == "ada"


def fetched(site: bytes, dest: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"sec-fetch-site", site), (b"sec-fetch-mode", b"no-cors"), (b"sec-fetch-dest", dest)]


@pytest.mark.parametrize("site", [b"cross-site", b"same-site"])
@pytest.mark.parametrize("dest", [b"image", b"iframe", b"empty"])
def test_nor_does_what_it_embeds(site: bytes, dest: bytes) -> None:
    """An image or frame of a foreign page, for which browsers send no Origin, is refused before it counts."""
    admission = make_admission(connects=1, failed=1)
    for _ in range(20):
        assert refusal(admission, RequestHead(fetched(site, dest), {"ticket": "x"}))[0] == 403
    assert admit(admission, RequestHead([BEARER]), NOW, PEER).user_id == "ada"


@pytest.mark.parametrize(
    "headers",
    [fetched(b"same-origin", b"empty"), fetched(b"none", b"document"), fetched(b"cross-site", b"document")],
    ids=["own page", "typed", "link"],
)
def test_what_a_person_opens_is_no_foreign_page(headers: list[tuple[bytes, bytes]]) -> None:
    """Our own pages, an address that was typed, and a link that was followed get in; so does an allowed origin."""
    admission = make_admission()
    assert admit(admission, RequestHead([*headers, BEARER]), NOW, PEER).user_id == "ada"
    assert admit(admission, RequestHead([*fetched(b"cross-site", b"empty"), GOOD_ORIGIN, BEARER]), NOW, PEER)


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([], {}),
        ([(b"authorization", b"Bearer x")], {}),
        ([BEARER, BEARER], {}),
        ([], {"ticket": "x"}),
        ([], {"token": TOKEN}),
    ],
)
def test_failures_are_counted(headers: list[tuple[bytes, bytes]], query: dict[str, str]) -> None:
    """Each kind of bad token or ticket counts as a failed attempt of its address."""
    admission = make_admission(failed=1)
    assert refusal(admission, RequestHead(headers, query))[0] == 401
    assert refusal(admission, RequestHead([BEARER])) == (429, "RATE_LIMITED")
    assert admit(admission, RequestHead([BEARER]), NOW, "192.0.2.2").user_id == "ada"


def test_strikes() -> None:
    """A foreign origin is refused five times and then blocked until the window has passed."""
    admission = make_admission()
    head = RequestHead([BAD_ORIGIN, BEARER])
    assert [refusal(admission, head)[1] for _ in range(7)] == 5 * ["ORIGIN_REFUSED"] + 2 * ["ORIGIN_BLOCKED"]
    again = RequestHead([(b"origin", b"HTTPS://Evil.Example.:443"), BEARER])
    assert refusal(admission, again) == (403, "ORIGIN_BLOCKED"), "however it is spelled"
    other = RequestHead([(b"origin", b"https://other.example")])
    assert refusal(admission, other) == (403, "ORIGIN_REFUSED"), "another origin is another pair"
    with pytest.raises(Refused, match="ORIGIN_REFUSED"):
        admit(admission, head, NOW, "192.0.2.2")
    with pytest.raises(Refused, match="ORIGIN_REFUSED"):
        admit(admission, head, NOW + 600, PEER)


def test_unblock_takes_any_spelling() -> None:
    """An operator need not spell an origin as it was recorded."""
    admission = make_admission()
    for _ in range(5):
        refusal(admission, RequestHead([BAD_ORIGIN]))
    assert [block.origin for block in admission.blocked(NOW, 10)] == ["https://evil.example"]
    assert admission.blocked(NOW, 0) == []
    assert admission.unblock("HTTPS://EVIL.example.:443", None, NOW) == 1
    assert refusal(admission, RequestHead([BAD_ORIGIN])) == (403, "ORIGIN_REFUSED")


def test_a_ticket_stands_behind_header_and_offer_and_before_the_query() -> None:
    """The first carrier that is there counts, and a bad one is not passed over."""
    admission = make_admission(allow_query=True)
    ticket = admission.issue_ticket(Identity("grace"), NOW).ticket
    offer = (b"sec-websocket-protocol", b"jwt." + TOKEN.encode())
    basic = (b"authorization", b"Basic YTpi")
    everything = {"ticket": ticket, "token": mint(SECRET, "eve", None, 60, NOW)}

    def who(headers: Sequence[tuple[bytes, bytes]], query: Mapping[str, str]) -> str:
        return admit(admission, RequestHead(headers, query), NOW, PEER).user_id

    assert who([BEARER], everything) == who([offer], everything) == "ada"
    assert who([], everything) == who([basic], everything) == "grace"
    assert who([], {**everything, "ticket": ""}) == "eve", "an empty one is none"
    assert refusal(admission, RequestHead([], {**everything, "ticket": "x"})) == (401, "TICKET_INVALID")
    assert refusal(admission, RequestHead([BEARER, BEARER], everything)) == (401, "TOKEN_INVALID")
    assert admission.ticket_of(RequestHead([BEARER], everything)) is None
    assert admission.ticket_of(RequestHead([], everything)) == ticket


def test_a_ticket_is_no_carrier_where_something_is_changed() -> None:
    """A look at a ticket does not use it up, so it opens nothing that may happen only once."""
    admission = make_admission()
    head = RequestHead([], {"ticket": admission.issue_ticket(Identity("ada"), NOW).ticket})
    assert admission.identify(head, NOW, PEER).user_id == "ada"
    with pytest.raises(Refused, match="TOKEN_MISSING"):
        admission.identify(head, NOW, PEER, tickets=False)


@pytest.mark.parametrize("carrier", ["token", "ticket"])
def test_the_revoked_stay_outside(carrier: str) -> None:
    """Who was signed out is refused with a token that is good otherwise, and with a ticket from before."""
    admission = make_admission(failed=1)
    identity = admit(admission, RequestHead([BEARER]), NOW, PEER)
    issued = admission.issue_ticket(identity, NOW)
    head = RequestHead([BEARER]) if carrier == "token" else RequestHead([], {"ticket": issued.ticket})
    admission.revocations.revoke(NOW, "ada", None)
    assert refusal(admission, head) == (401, "TOKEN_REVOKED")
    assert admission.statistics(NOW).auth["revoked"] == 1
    assert refusal(admission, head) == (429, "RATE_LIMITED")


def test_tickets_of_ones_own_rule_are_revoked_by_their_time() -> None:
    """A ticket that a program's rule gave before the user was signed out is refused, one from behind it is good."""
    admission = Admission(None, OriginPolicy([]), AddressTable(10, 100, 100))
    before = admission.issue_ticket(Identity("ada"), NOW - 1).ticket
    admission.revocations.revoke(NOW - 0.5, "ada", None)
    after = admission.issue_ticket(Identity("ada"), NOW).ticket
    assert refusal(admission, RequestHead([], {"ticket": before})) == (401, "TOKEN_REVOKED")
    assert admit(admission, RequestHead([], {"ticket": after}), NOW, PEER).user_id == "ada"
    admission.note_success(Identity("ada"), NOW, PEER)
    with pytest.raises(Refused, match="TOKEN_REVOKED"):
        admission.note_success(Identity("ada", claims={"iat": NOW - 60}), NOW, PEER)


def test_a_rule_of_ones_own() -> None:
    """Without a verifier only tickets are judged here, and what the program decided is counted."""
    admission = Admission(None, OriginPolicy([]), AddressTable(10, 100, 1))
    assert refusal(admission, RequestHead([BEARER])) == (401, "TOKEN_MISSING")
    elsewhere = "192.0.2.2"
    ticket = admission.issue_ticket(Identity("ada"), NOW).ticket
    head = RequestHead([BEARER, BEARER], {"ticket": ticket})
    assert admission.ticket_of(head) == ticket
    assert admit(admission, head, NOW, elsewhere).user_id == "ada"
    admission.note_success(Identity("bob"), NOW, elsewhere)
    admission.note_failure(Refused(503, "AWAY", "x"), NOW, elsewhere)
    admission.screen(RequestHead(), NOW, elsewhere)
    admission.note_failure(Refused(401, "NO_SESSION", "x"), NOW, elsewhere)
    with pytest.raises(Refused, match="RATE_LIMITED"):
        admission.screen(RequestHead(), NOW, elsewhere)
    counts = admission.statistics(NOW).auth
    assert {outcome: count for outcome, count in counts.items() if count} == {
        "missing": 1,
        "ok": 2,
        "failed": 1,
        "refused": 1,
    }


def test_query_token() -> None:
    """A token in the query is believed only where settings allow it."""
    head = RequestHead(query={"token": TOKEN})
    assert admit(make_admission(allow_query=True), head, NOW, PEER).user_id == "ada"
    assert refusal(make_admission(), head) == (401, "TOKEN_MISSING")


def test_own_origin_needs_one_host() -> None:
    """The server's own origin is known by its one Host header; of two, none is believed."""
    own = Admission(Verifier(SECRET), OriginPolicy([], environment="development"), AddressTable(10, 100, 100))
    head = [(b"origin", b"http://dev.example"), (b"host", b"dev.example"), BEARER]
    assert admit(own, RequestHead(head), NOW, PEER).user_id == "ada"
    assert refusal(own, RequestHead([*head, (b"host", b"other.example")])) == (403, "ORIGIN_REFUSED")


def test_screen_needs_no_token() -> None:
    """A program with its own rule for tokens still gets origins and budgets."""
    admission = make_admission()
    admission.screen(RequestHead([GOOD_ORIGIN]), NOW, PEER)
    with pytest.raises(Refused, match="ORIGIN_REFUSED"):
        admission.screen(RequestHead([BAD_ORIGIN]), NOW, PEER)


def test_statistics() -> None:
    """Every decision is counted once under its outcome."""
    admission = make_admission(connects=5, failed=4)
    admit(admission, RequestHead([BEARER]), NOW, PEER)
    expired = mint(SECRET, "ada", None, -60, NOW)
    for headers in ([], [(b"authorization", f"Bearer {expired}".encode())], [(b"authorization", b"Bearer x")]):
        refusal(admission, RequestHead(headers))
    refusal(admission, RequestHead([], {"ticket": "x"}))
    refusal(admission, RequestHead([BEARER]))
    with pytest.raises(Refused, match="RATE_LIMITED"):
        admit(admission, RequestHead([BEARER]), NOW + 1, PEER)
    for _ in range(6):
        refusal(admission, RequestHead([BAD_ORIGIN]))
    refusal(admission, RequestHead([(b"origin", b"null")]))
    admission.issue_ticket(Identity("ada"), NOW)
    statistics = admission.statistics(NOW)
    auth = {"ok": 1, "missing": 1, "expired": 1, "invalid": 1, "ticket_invalid": 1}
    assert statistics.auth == {**auth, "revoked": 0, "refused": 0, "failed": 0}
    refused = {"missing": 0, "several": 0, "opaque": 1, "malformed": 0, "not_allowed": 5, "blocked": 1}
    assert statistics.origins_refused == refused
    assert (statistics.origins_tracked, statistics.origins_blocked) == (2, 1)
    assert statistics.rate_limited == {"requests": 0, "connects": 0, "failed_connects": 2, "tickets": 0}
    assert statistics.addresses_tracked == 1
    assert (statistics.tickets, statistics.tickets_issued) == (1, 1)


def test_tickets_that_nobody_got_are_counted() -> None:
    """A full table of tickets is a limit like others; a token that has ended is not."""
    admission = Admission(None, OriginPolicy([]), AddressTable(10, 10, 10), tickets=Tickets(max_total=1))
    admission.issue_ticket(Identity("ada"), NOW)
    with pytest.raises(Refused, match="OVERLOADED"):
        admission.issue_ticket(Identity("bob"), NOW)
    with pytest.raises(Refused, match="TOKEN_EXPIRED"):
        admission.issue_ticket(Identity("bob", expires_at=NOW), NOW)
    assert admission.statistics(NOW).rate_limited["tickets"] == 1
    assert admission.statistics(NOW).tickets_issued == 1


NAMES = st.sampled_from([b"authorization", b"sec-websocket-protocol", b"origin", b"host", b"x"])


@given(st.lists(st.tuples(NAMES, st.binary(max_size=40)), max_size=5), st.text(max_size=10), st.text(max_size=10))
def test_any_head(headers: list[tuple[bytes, bytes]], text: str, peer: str) -> None:
    """Any bytes in a head become an identity or a refusal."""
    query = {"token": text, "ticket": text[::2]}
    try:
        identity = admit(make_admission(allow_query=True), RequestHead(headers, query), NOW, peer)
    except Refused as refused:
        assert refused.status in (401, 403)  # noqa: PT017
    else:
        assert isinstance(identity, Identity)
