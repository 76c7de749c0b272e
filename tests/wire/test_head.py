from __future__ import annotations

import base64
import json

import attrs
import h11
import pytest
import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_pair

from netra_ws.errors import Refused
from netra_ws.wire.head import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_QUERY_FIELDS,
    Head,
    Reply,
    Request,
    canonical_upgrade,
    check_upgrade,
    json_reply,
    refusal,
)

KEY = base64.b64encode(bytes(range(16))).decode()
UPGRADE = (
    "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
).encode()

Ends = tuple[
    trio.StapledStream[MemorySendStream, MemoryReceiveStream], trio.StapledStream[MemorySendStream, MemoryReceiveStream]
]


@pytest.fixture
def ends() -> Ends:
    return memory_stream_pair()


def told(data: bytes, ends: Ends) -> Request:
    """A request on which *data* arrived, and nothing will follow."""
    ours, _ = ends
    ours.receive_stream.put_data(data)
    ours.receive_stream.put_eof()
    return Request(ours, "203.0.113.5")


async def head_of(data: bytes, ends: Ends) -> Head:
    head = await told(data, ends).head()
    assert head is not None
    return head


async def test_a_head_is_read_with_its_path_query_headers_and_peer(ends: Ends) -> None:
    """A head tells method, path, first values of the query, headers in lower case, and who sent it."""
    head = await head_of(
        b"GET /ws?a=1&a=2&empty=&b=%20x HTTP/1.1\r\nHost: x\r\nX-One: A, b\r\nx-one:  c \r\n\r\n", ends
    )
    assert (head.method, head.path, head.peer, head.http_version) == ("GET", "/ws", "203.0.113.5", "1.1")
    assert head.query == {"a": "1", "empty": "", "b": " x"}
    assert head.get(b"x-one") == b"A, b"
    assert head.get(b"missing") is None
    assert head.tokens(b"x-one") == ["a", "b", "c"]


@pytest.mark.parametrize(("count", "fits"), [(MAX_HEADERS, True), (MAX_HEADERS + 1, False)])
async def test_a_head_has_at_most_a_hundred_fields(count: int, fits: bool, ends: Ends) -> None:
    """One more is answered like a head with too many bytes."""
    data = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * (count - 1) + b"\r\n"
    if fits:
        assert len((await head_of(data, ends)).headers) == count
        return
    with pytest.raises(Refused) as refused:
        await head_of(data, ends)
    assert (refused.value.status, refused.value.code) == (413, "HEAD_TOO_LARGE")


async def test_a_head_may_arrive_byte_by_byte(ends: Ends, autojump_clock: trio.testing.MockClock) -> None:
    """A head in the smallest pieces is the same head."""
    ours, theirs = ends
    heads: list[Head | None] = []

    async def read() -> None:
        heads.append(await Request(ours, "x").head())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for position in range(len(UPGRADE)):
            await theirs.send_all(UPGRADE[position : position + 1])
            await trio.testing.wait_all_tasks_blocked()
    assert heads[0] is not None
    assert heads[0].path == "/ws"


async def test_a_client_that_leaves_before_its_head_is_no_request(ends: Ends) -> None:
    """Nothing is answered to somebody who connects and goes."""
    assert await told(b"", ends).head() is None


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/health?x", "/health"),
        ("http://example.org/health?x=1", "/health"),
        ("//evil/health", "//evil/health"),
        ("/health#x", "/health#x"),
        ("/%68ealth", "/%68ealth"),
        ("*", "*"),
        ("/", "/"),
    ],
)
async def test_the_path_of_each_form_of_target(target: str, path: str, ends: Ends) -> None:
    """Origin, absolute and asterisk form are read as RFC 9112 says; a path that begins with // names no host."""
    assert (await head_of(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), ends)).path == path


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /ws HTTP/1.1\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\n folded: x\r\nbad name: x\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHo",
        b"GET /?" + b"&".join(b"%d=" % n for n in range(MAX_QUERY_FIELDS + 1)) + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_answered_with_400(data: bytes, ends: Ends) -> None:
    """Garbage, broken and ambiguous heads are refused with 400."""
    with pytest.raises(Refused) as caught:
        await told(data, ends).head()
    assert (caught.value.status, caught.value.code) == (400, "BAD_REQUEST")


async def test_a_head_beyond_the_limit_is_answered_with_413(ends: Ends) -> None:
    """A head that does not end is given up at its limit."""
    with pytest.raises(Refused) as caught:
        await told(b"GET /ws HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 2 * MAX_HEAD_BYTES, ends).head()
    assert (caught.value.status, caught.value.code) == (413, "HEAD_TOO_LARGE")


async def test_other_methods_are_answered_with_405_and_those_that_exist(ends: Ends) -> None:
    """A 405 names the methods that may be used (RFC 9110 §15.5.6)."""
    with pytest.raises(Refused) as caught:
        await told(b"DELETE /ws HTTP/1.1\r\nHost: x\r\n\r\n", ends).head()
    assert caught.value.status == 405
    assert caught.value.headers == (("Allow", "GET, HEAD, OPTIONS, POST"),)


async def test_frames_glued_to_the_upgrade_are_kept(ends: Ends) -> None:
    """Bytes behind the head of an upgrade are handed out, not lost."""
    request = told(UPGRADE + b"\x81\x80abcd", ends)
    await request.head()
    assert request.rest() == b"\x81\x80abcd"


@pytest.mark.parametrize("header", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
async def test_an_upgrade_with_a_body_is_refused_at_once(header: bytes, ends: Ends) -> None:
    """Nobody waits for the body of an upgrade."""
    request = told(UPGRADE.replace(b"Host: x", b"Host: x\r\n" + header), ends)
    await request.head()
    with pytest.raises(Refused) as caught:
        request.rest()
    assert caught.value.status == 400


async def test_a_body_is_read_up_to_its_limit(ends: Ends) -> None:
    """The body of a POST comes whole, also in chunks."""
    data = b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    request = told(data, ends)
    await request.head()
    assert await request.body() == b"abcde"


@pytest.mark.parametrize(
    ("length", "sent", "status"),
    [(MAX_BODY_BYTES + 1, MAX_BODY_BYTES + 1, 413), (10, 3, 400)],
)
async def test_a_body_too_large_or_cut_short_is_refused(length: int, sent: int, status: int, ends: Ends) -> None:
    """A body above the limit is 413, one that breaks off 400."""
    request = told(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length + b"a" * sent, ends)
    await request.head()
    with pytest.raises(Refused) as caught:
        await request.body()
    assert caught.value.status == status


async def test_a_broken_chunk_is_refused(ends: Ends) -> None:
    """A body in broken chunks is 400."""
    request = told(b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ends)
    await request.head()
    with pytest.raises(Refused) as caught:
        await request.body()
    assert caught.value.status == 400


async def answered(method: str, reply: Reply, ends: Ends) -> bytes:
    request = told(f"{method} / HTTP/1.1\r\nHost: x\r\n\r\n".encode(), ends)
    await request.head()
    await request.answer(reply)
    await request.answer(reply)  # a second answer is none
    return bytes(await ends[1].receive_some(65536))


async def test_an_answer_says_its_length_and_that_the_connection_ends(ends: Ends) -> None:
    """One answer per connection."""
    data = await answered("GET", json_reply(404, {"a": 1}, (("X-Y", "z"),)), ends)
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.receive_data(data)
    response, body = client.next_event(), client.next_event()
    assert isinstance(response, h11.Response)
    assert isinstance(body, h11.Data)
    assert (response.status_code, bytes(response.reason)) == (404, b"Not Found")
    headers = dict(response.headers)
    assert headers[b"connection"] == b"close"
    assert headers[b"content-length"] == str(len(body.data)).encode()
    assert headers[b"x-y"] == b"z"
    assert json.loads(bytes(body.data)) == {"a": 1}


async def test_the_answer_to_head_has_no_body(ends: Ends) -> None:
    """HEAD gets the headers of GET and nothing else."""
    data = await answered("HEAD", json_reply(200, {"a": 1}), ends)
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"Content-Length: 9" in head
    assert body == b""


def test_a_refusal_tells_code_text_and_when_to_come_back() -> None:
    """A refusal is JSON with ``code`` and ``error``; Retry-After stands where it is temporary."""
    reply = refusal(Refused(429, "RATE_LIMITED", "Later.", retry_after_s=7, headers=(("A", "b"),)))
    assert reply.status == 429
    assert json.loads(reply.body) == {"code": "RATE_LIMITED", "error": "Later."}
    assert reply.headers == (("A", "b"), ("Retry-After", "7"))


def upgrade_head(**changes: bytes | None) -> Head:
    """A good upgrade with some headers replaced, or left out by None; ``twice`` repeats the key."""
    headers = {
        b"host": b"x",
        b"upgrade": b"h2c, WebSocket",
        b"connection": b"keep-alive, UPGRADE",
        b"sec-websocket-version": b"13",
        b"sec-websocket-key": KEY.encode(),
        **{name.replace("_", "-").encode(): value for name, value in changes.items()},
    }
    kept = [(name, value) for name, value in headers.items() if value is not None]
    return Head(method="GET", path="/ws", query={}, headers=kept, peer="x")


def test_a_good_upgrade_passes() -> None:
    """Names of tokens are compared without case, among others."""
    check_upgrade(upgrade_head())


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (upgrade_head(upgrade=None), 426),
        (upgrade_head(upgrade=b"h2c"), 426),
        (upgrade_head(connection=None), 426),
        (upgrade_head(connection=b"close"), 426),
        (attrs.evolve(upgrade_head(), method="POST"), 426),
        (attrs.evolve(upgrade_head(), http_version="1.0"), 426),
        (upgrade_head(sec_websocket_version=None), 426),
        (upgrade_head(sec_websocket_version=b"8"), 426),
        (upgrade_head(sec_websocket_version=b"13, 8"), 426),
        (upgrade_head(sec_websocket_key=None), 400),
        (upgrade_head(sec_websocket_key=b""), 400),
        (upgrade_head(sec_websocket_key=b"c2hvcnQ="), 400),
        (upgrade_head(sec_websocket_key=base64.b64encode(bytes(17))), 400),
        (upgrade_head(sec_websocket_key=KEY.encode() + b"\r\nX: y"), 400),
        (upgrade_head(sec_websocket_key=b"not base64 at all!!!!!!!"), 400),
        (upgrade_head(sec_websocket_key=b"\xff" * 24), 400),
        (
            attrs.evolve(
                upgrade_head(), headers=[*upgrade_head().headers, (b"sec-websocket-key", base64.b64encode(bytes(16)))]
            ),
            400,
        ),
    ],
)
def test_each_fault_of_an_upgrade_has_its_status(head: Head, status: int) -> None:
    """What is no WebSocket of version 13 is 426 and says what is spoken here; a bad key is 400."""
    with pytest.raises(Refused) as caught:
        check_upgrade(head)
    assert caught.value.status == status
    if status == 426:
        assert dict(caught.value.headers) == {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}


def test_the_library_sees_nothing_of_the_client_but_its_key() -> None:
    """The canonical head holds the checked key and the chosen subprotocol, and is one whole request."""
    head = upgrade_head(host=b"evil\xff", sec_websocket_protocol=b"jwt.secret, netra.v1", x_more=b"\xe9")
    data = canonical_upgrade(head, "netra.v1")
    assert b"evil" not in data
    assert b"jwt" not in data
    assert data.isascii()
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    event = server.next_event()
    assert isinstance(event, h11.Request)
    headers = dict(event.headers)
    assert headers[b"sec-websocket-key"] == KEY.encode()
    assert headers[b"sec-websocket-protocol"] == b"netra.v1"
    assert b"sec-websocket-extensions" not in headers
    assert b"protocol" not in canonical_upgrade(head, None).lower()
