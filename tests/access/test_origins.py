import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.access.origins import OriginFault, OriginPolicy, parse_origin, spelling
from netra_ws.errors import ConfigError

PRODUCTION = OriginPolicy(["https://app.example.org", "https://*.example.net", "http://[2001:db8::1]:8080", "app://x"])
DEVELOPMENT = OriginPolicy([], environment="development")


def passes(policy: OriginPolicy, *origins: str, host: str | None = None) -> bool:
    return policy.fault([origin.encode() for origin in origins], host.encode() if host else None) is None


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.org",
        "https://app.example.org:443",
        "HTTPS://App.Example.ORG",
        "https://app.example.org.",
        "https://a.example.net",
        "http://[2001:db8::1]:8080",
        "http://[2001:DB8:0::1]:8080",
        "app://x",
    ],
)
def test_allowed(origin: str) -> None:
    """An origin is allowed in any spelling of the same scheme, host and port."""
    assert passes(PRODUCTION, origin)


@pytest.mark.parametrize(
    "origin",
    [
        "http://app.example.org",
        "https://app.example.org:8443",
        "https://example.org",
        "https://app.example.org.evil.example",
        "https://evilapp.example.org",
        "https://example.net",
        "https://a.b.example.net",
        "https://aexample.net",
        "http://a.example.net",
        "http://localhost",
        "http://[2001:db8::2]:8080",
    ],
)
def test_not_allowed(origin: str) -> None:
    """Another scheme, host, port or depth is another origin."""
    assert PRODUCTION.fault([origin.encode()], None) is OriginFault.NOT_ALLOWED


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "https://",
        "app.example.org",
        "https://app.example.org/",
        "https://app.example.org?x",
        "https://app.example.org#x",
        "https://user@app.example.org",
        "https://evil.example#@app.example.org",
        "https://app.example.org:",
        "https://app.example.org:0",
        "https://app.example.org:0443",
        "https://app.example.org:65536",
        "https://app.example.org:443443",
        "https://app.example.org:４４３",
        "https://app..example.org",
        "https://.example.org",
        "https://*.example.net",
        "https://app.example.org, https://app.example.org",
        "https://app.example.org\x00",
        "https://äpp.example.org",
        "https://[::1%25eth0]",
        "https://[::1",
        "https://[:::]",
        "https://" + "a" * 254,
    ],
)
def test_malformed(origin: str) -> None:
    """What no browser sends is refused, whatever it resembles."""
    assert PRODUCTION.fault([origin.encode()], None) is OriginFault.MALFORMED
    assert not passes(DEVELOPMENT, origin)


def test_opaque() -> None:
    """The origin null is refused everywhere, also among others."""
    assert PRODUCTION.fault([b"null"], None) is OriginFault.OPAQUE
    assert DEVELOPMENT.fault([b"http://localhost", b"null"], None) is OriginFault.OPAQUE


def test_several() -> None:
    """Two different Origin headers are refused; the same one twice is one."""
    assert PRODUCTION.fault([b"https://app.example.org", b"https://a.example.net"], None) is OriginFault.SEVERAL
    assert passes(PRODUCTION, "https://app.example.org", "https://app.example.org:443")


def test_missing() -> None:
    """A missing Origin passes unless one is required."""
    assert passes(PRODUCTION)
    assert OriginPolicy(["https://a.example"], required=True).fault([], None) is OriginFault.MISSING


@pytest.mark.parametrize("environment", ["development", "testing"])
@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "https://localhost",
        "http://app.localhost:5173",
        "http://127.0.0.1",
        "http://127.8.9.10:1",
        "http://[::1]:8000",
        "http://[0:0::1]:8000",
    ],
)
def test_loopback_without_a_list(environment: str, origin: str) -> None:
    """In development and testing, an empty list means every loopback origin."""
    assert passes(OriginPolicy([], environment=environment), origin)
    assert not passes(OriginPolicy(["https://a.example"], environment=environment), origin)


@pytest.mark.parametrize(
    "origin",
    ["http://localhost.evil.example", "http://notlocalhost", "http://128.0.0.1", "http://127.1", "x://localhost"],
)
def test_not_loopback(origin: str) -> None:
    """A name that only looks like loopback is not."""
    assert not passes(DEVELOPMENT, origin, host="a.example:8000")


def test_own_origin() -> None:
    """In development, the server's own pages may connect under the name that the client used."""
    assert passes(DEVELOPMENT, "http://dev.example:8000", host="dev.example:8000")
    assert passes(DEVELOPMENT, "https://dev.example", host="Dev.Example")
    assert not passes(DEVELOPMENT, "http://dev.example:8001", host="dev.example:8000")
    assert not passes(DEVELOPMENT, "http://dev.example", host="dev.example:8000")
    assert not passes(DEVELOPMENT, "http://dev.example")
    assert not passes(DEVELOPMENT, "x://dev.example", host="dev.example")
    assert not passes(OriginPolicy([]), "http://dev.example:8000", host="dev.example:8000")


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_empty_list(environment: str) -> None:
    """Outside development and testing, an empty list means no page at all."""
    assert not passes(OriginPolicy([], environment=environment), "http://localhost")


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "null",
        "example.org",
        "https://*",
        "https://example.org/",
        "https://a.*.org",
        "https://*.*.org",
        "https://*.[::1]",
        "https://*.0.0.1",
        "https://a.example:0",
        "https://straße.example",
        "https://a.example/\ud800",
    ],
)
def test_patterns_that_cannot_be_read(pattern: str) -> None:
    """A pattern that cannot be read fails at start and names the setting."""
    with pytest.raises(ConfigError, match=r"origins\.allowed"):
        OriginPolicy([pattern])


def test_punycode() -> None:
    """A configured name outside ASCII allows the spelling that browsers send."""
    policy = OriginPolicy(["https://München.example:8443", "https://*.中.example"])
    assert passes(policy, "https://xn--mnchen-3ya.example:8443", "https://xn--mnchen-3ya.example:8443")
    assert passes(policy, "https://a.xn--fiq.example")


def test_a_refusal_does_not_tell_why() -> None:
    """Whatever is wrong with an origin, its client reads the same 403 ORIGIN_REFUSED."""
    refusals = [fault.refusal() for fault in OriginFault]
    assert {(refused.status, refused.code) for refused in refusals} == {(403, "ORIGIN_REFUSED")}
    assert len({refused.text for refused in refusals}) == 1


@given(st.lists(st.binary(max_size=60) | st.text(max_size=30).map(lambda rest: b"http://" + rest.encode()), max_size=3))
def test_any_bytes(origins: list[bytes]) -> None:
    """Whatever a client sends as Origin or Host, the answer is yes or no."""
    host = origins[0] if origins else None
    assert DEVELOPMENT.fault(origins, host) in {None, *OriginFault}
    if origins:
        assert PRODUCTION.fault(origins, host) is not None


@given(st.from_regex(r"[a-z0-9]{1,9}(\.[a-z0-9]{1,9}){0,3}", fullmatch=True), st.integers(1, 65535))
def test_spelling_does_not_matter(host: str, port: int) -> None:
    """Upper case and the root label change nothing."""
    origin = parse_origin(f"http://{host}:{port}")
    assert origin is not None
    assert parse_origin(f"HTTP://{host.upper()}.:{port}") == origin


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        ([b"HTTPS://Evil.Example.:443"], "https://evil.example"),
        ([b"http://evil.example:8080"], "http://evil.example:8080"),
        ([b"http://[2001:DB8:0::1]:80"], "http://[2001:db8::1]"),
        ([b"app://X"], "app://x"),
        ([b"https://b.example", b"https://a.example", b"https://a.example"], "https://a.example, https://b.example"),
        ([b"null"], "null"),
        ([b"no origin\xff"], "no origin\xff"),
        ([], "(none)"),
    ],
)
def test_spelling(sent: list[bytes], text: str) -> None:
    """An origin is remembered under one text, however it was spelled; what is none, as it was sent."""
    assert spelling(sent) == text


@given(st.from_regex(r"[a-z0-9]{1,9}(\.[a-z0-9]{1,9}){0,3}", fullmatch=True), st.integers(1, 65535) | st.none())
def test_a_spelled_origin_reads_as_itself(host: str, port: int | None) -> None:
    """The text of an origin is one of its spellings."""
    origin = parse_origin(f"https://{host}" + (f":{port}" if port else ""))
    assert origin is not None
    assert parse_origin(str(origin)) == origin
