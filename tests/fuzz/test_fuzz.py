"""Short runs of each target; long ones are ``python -m tests.fuzz``."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netra_ws.protocol.commands import TYPES
from netra_ws.testing.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_payload, frame
from tests.effort import share
from tests.protocol.strategies import JSON, OBJECTS

from . import campaign
from .__main__ import main
from .campaign import NAMES, Target, attempt, keep, replay, run, with_target
from .codec import check_message
from .corpus import frames as frame_corpus
from .corpus import heads as head_corpus
from .corpus import messages as message_corpus
from .heads import outcome
from .mutation import pieces
from .oracle import Oracle
from .streams import Streams

CORPORA = {"head": head_corpus.SEEDS, "frames": frame_corpus.SEEDS, "codec": message_corpus.SEEDS}
INPUTS = {"head": share(2000), "frames": share(200), "codec": 3000}
CUTS = st.lists(st.integers(0, 600), max_size=6).map(sorted)


@pytest.mark.heavy
@pytest.mark.parametrize("name", NAMES)
def test_a_short_campaign_finds_nothing(name: str) -> None:
    """Many changed inputs, always the same ones, are answered as they should be."""
    figures = run(name, 1, inputs=INPUTS[name])
    assert figures.inputs == INPUTS[name]
    assert not figures.found, figures.found[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_is_answered_however_it_is_cut(name: str) -> None:
    """What mutation begins with is right itself: at once, in halves, and byte by byte where it is short."""
    failures = []

    async def each(target: Target) -> None:
        for data in CORPORA[name]:
            for where in ((), (len(data) // 2,), tuple(range(1, len(data))) if len(data) < 200 else ()):
                failures.append(await attempt(target, data, where))

    with_target(name, each)
    assert [failure for failure in failures if failure] == []


# Heads.

NAMES_OF_FIELDS = st.sampled_from(
    ["Host", "Upgrade", "Connection", "Content-Length", "Transfer-Encoding", "Expect", "Sec-WebSocket-Key", "X y", ""]
) | st.text(max_size=8)
HEADS = st.builds(
    lambda method, target, version, fields, end, line: (
        line.join(
            [f"{method} {target} {version}", *(f"{name}:{space}{value}" for name, space, value in fields), ""]
        ).encode("utf-8", "surrogatepass")
        + line.encode()
        + end
    ),
    st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PRI", "get", ""]),
    st.sampled_from(["/", "/ws", "*", "/%00", "/../ws", "http://x/ws", "//", "/ws?a=%"]) | st.text(max_size=10),
    st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.1 ", ""]),
    st.lists(
        st.tuples(
            NAMES_OF_FIELDS,
            st.sampled_from([" ", "", "\t"]),
            st.sampled_from(["x", "5", "chunked", "websocket"]) | st.text(max_size=8),
        ),
        max_size=6,
    ),
    st.binary(max_size=20),
    st.sampled_from(["\r\n", "\r\n", "\r\n", "\n"]),
)


@given(data=HEADS | st.binary(max_size=200), where=CUTS)
@settings(deadline=None)
def test_a_head_is_read_or_refused_however_it_arrives(data: bytes, where: list[int]) -> None:
    """No head makes anything but a head, a refusal with a whole answer, or nothing; cuts change none of it."""
    seen = []

    async def both() -> None:
        seen.extend([await outcome([data] if data else []), await outcome(pieces(data, where))])

    trio.run(both)
    assert seen[0] == seen[1]


# Frames.

FRAMES = st.builds(
    frame,
    st.sampled_from([TEXT, TEXT, TEXT, BINARY, CONTINUATION, PING, PONG, CLOSE, 3]),
    st.sampled_from([b'{"type":"ping","id":"a"}', b"{", b"", b"\xf0\x9f", b"\x98\x80", close_payload(1000), b"x" * 125])
    | st.binary(max_size=140),
    fin=st.sampled_from([True, True, True, False]),
    rsv=st.sampled_from([0] * 20 + [1, 2, 4]),
    mask=st.sampled_from([b"abcd", b"abcd", b"abcd", bytes(4)] * 5 + [None]),
    size=st.sampled_from([None] * 20 + [2**16, 2**63]),
)


@given(st.lists(st.tuples(st.lists(FRAMES, max_size=8).map(b"".join) | st.binary(max_size=60), CUTS), max_size=5))
@settings(max_examples=share(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_frames_are_answered_however_they_arrive(sent: list[tuple[bytes, list[int]]]) -> None:
    """Pongs, errors and the Close are those that the RFC and the protocol ask for, whole or in pieces."""
    failures = []

    async def each(target: Target) -> None:
        for data, where in sent:
            failures.append(await attempt(target, data, where))

    with_target("frames", each)
    assert [failure for failure in failures if failure] == []


def test_the_oracle_knows_the_rfc() -> None:
    """The second reading is right where it is easy to say what is right."""

    def code(data: bytes) -> set[int | None]:
        return Oracle(100, 3).read(data).codes

    assert code(b"") == code(frame(TEXT, "x")) == {None}
    assert code(frame(TEXT, "x", mask=None)) == code(frame(3)) == code(frame(CONTINUATION, "x")) == {1002}
    assert code(frame(TEXT, b"\xff")) == {1007}
    assert code(frame(BINARY, b"x")) == {1003}
    assert code(frame(TEXT, "x" * 101)) == code(frame(TEXT, "", size=2**40)) == {1009}
    assert code(frame(TEXT, "", fin=False) + frame(CONTINUATION, "", fin=False) * 4) == {1008}
    assert code(frame(TEXT, "") * 20) == {1008}
    assert code(frame(CLOSE)) == {1005}
    assert code(frame(CLOSE, close_payload(4001))) == {4001}
    assert code(frame(CLOSE, close_payload(1005))) == code(frame(CLOSE, b"x")) == {1002}
    assert code(frame(TEXT, '{"type":"disconnect"}')) == {1000}
    assert Oracle(100, 3).read(frame(PING, "a") + frame(TEXT, "{")).errors == ["INVALID_JSON"]


# Messages.

COMMANDS = st.fixed_dictionaries(
    {"type": st.sampled_from(sorted(TYPES))},
    optional={
        name: JSON | st.text(max_size=20)
        for name in ("id", "message_id", "payload", "content", "user_request", "thread_id", "timestamp", "run_id")
    }
    | {"metadata": OBJECTS, "context": OBJECTS, "title": st.text(max_size=600), "limit": st.integers(-1, 300)},
)
RPC = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "method": st.sampled_from(sorted(TYPES)) | JSON},
    optional={"id": JSON, "params": COMMANDS | JSON},
)


@given(message=COMMANDS | RPC | JSON, cut=st.integers(0, 400), junk=st.binary(max_size=3))
def test_every_message_gets_a_command_or_an_error(message: Any, cut: int, junk: bytes) -> None:
    """Whatever JSON says, or what is left of it, the answer to it is JSON, too; nothing is raised."""
    text = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
    check_message(text)
    check_message(text[:cut] + junk + text[cut:])
    check_message(text[:cut])


@given(st.binary(max_size=300))
def test_every_bytes_get_a_command_or_an_error(data: bytes) -> None:
    """The same for what was never JSON."""
    check_message(data)


# The campaign itself.


class Broken:
    """A target with a fault: it cannot stand an ``x``."""

    name = "head"

    def make(self, chance: Any) -> bytes:
        return chance.choice((b"a", b"b", b"xyz"))

    async def check(self, data: bytes, where: Sequence[int]) -> None:
        assert b"x" not in data, "there is an x"


def test_a_finding_is_kept_and_can_be_checked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What failed is told, the exit status says so, and its file is enough to see it again."""
    monkeypatch.setattr(campaign, "Heads", Broken)
    monkeypatch.setattr(
        sys, "argv", ["fuzz", "head", "--seconds", "60", "--seed", "3", "--save", str(tmp_path / "found")]
    )
    assert main() == 1
    assert "there is an x" in capsys.readouterr().out
    (file,) = (tmp_path / "found").iterdir()
    monkeypatch.setattr(sys, "argv", ["fuzz", "--replay", str(file)])
    assert main() == 1
    monkeypatch.undo()
    assert replay(file) is None


def test_the_same_seed_makes_the_same_inputs() -> None:
    """A campaign is repeated by its seed alone."""
    first, second, other = (run("codec", seed, inputs=50) for seed in (5, 5, 6))
    assert first.size == second.size != other.size


async def test_a_failure_of_the_servers_own_is_found(autojump_clock: trio.testing.MockClock) -> None:
    """What the server logs as an error fails the input that was there."""
    async with Streams.open() as streams:
        assert await attempt(streams, frame(PING, "x"), ()) is None
        logging.getLogger("netra_ws.wire.pump").error("a bug")
        assert "a bug" in (await attempt(streams, frame(PING, "x"), ()) or "")


def test_a_file_says_what_was_wrong(tmp_path: Path) -> None:
    """The failure stands in the file as a comment, its lines too, and the bytes as they were."""
    file = keep(tmp_path, "codec", b"\x00'\"\n", (1, 2), "first\nsecond")
    assert file.read_text().startswith("# first\n# second\n('codec', b")
    assert replay(file) is None
