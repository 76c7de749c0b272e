"""One conversation, told in terms that any client library can follow, and what must be true of it.

``converse`` awaits nothing but its ``Line``, so it runs under asyncio and under Trio alike.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import attrs

Frame = dict[str, Any]

#: Seconds for the whole conversation.
DEADLINE_S = 15.0
QUESTION = "What is 17% of 2,340?"
ANSWER = "17% of 2,340 = 397.8"
#: Message frames of both answers that are read before the line is cut.
READ_BEFORE_CUT = 9
CRITICAL = ["agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_completed"]
COUNTED = "".join(f"word{number} " for number in range(30))


class Line(Protocol):
    """A WebSocket in the hands of somebody's library."""

    async def send(self, text: str) -> None: ...

    async def receive(self) -> str | None:
        """Return the next text; None when the connection is closed."""
        ...

    async def ping(self) -> None:
        """Send a ping frame and wait for its pong."""
        ...

    async def close(self) -> None:
        """Close with 1000."""
        ...

    @property
    def subprotocol(self) -> str | None: ...

    @property
    def close_code(self) -> int | None: ...


Dial = Callable[[str], AbstractAsyncContextManager[Line]]


@attrs.define
class Transcript:
    """What came over two connections, the second of which went on where the first one stopped.

    Attributes:
        first: Frames of the first connection: both questions, the second answer up to where it was cut.
        second: Frames of the second one.
        subprotocols: What each connection agreed on.
        close_codes: How each ended: by the client, by the command ``disconnect``.
        pongs: Answered ping frames.
    """

    first: list[Frame] = attrs.field(factory=list)
    second: list[Frame] = attrs.field(factory=list)
    subprotocols: list[str | None] = attrs.field(factory=list)
    close_codes: list[int | None] = attrs.field(factory=list)
    pongs: int = 0


async def converse(dial: Dial, loads: Callable[[str], Frame], dumps: Callable[[Frame], str]) -> Transcript:
    """Ask, be answered, ask again, leave in mid-answer, come back by position, say goodbye."""
    told = Transcript()

    async def until(line: Line, into: list[Frame], enough: Callable[[Frame], bool]) -> None:
        """Read up to the first frame that is enough, or to the end of the line."""
        while (text := await line.receive()) is not None:
            into.append(loads(text))
            if enough(into[-1]):
                return

    async with dial("") as line:
        told.subprotocols.append(line.subprotocol)
        await until(line, told.first, _is("connection_established"))
        await line.send(dumps({"type": "user_message", "id": "q1", "content": QUESTION, "thread_id": "t1"}))
        await until(line, told.first, _is("agent_completed"))
        await line.ping()
        told.pongs += 1
        await line.send(dumps({"type": "ping", "id": "p1", "timestamp": 1.5}))
        await until(line, told.first, _is("pong"))
        await line.send(
            dumps({"type": "start_agent", "id": "q2", "user_request": "count", "agent": "brief", "thread_id": "t1"})
        )
        await until(line, told.first, _is("agent_started"))
        await until(line, told.first, lambda frame: len(_texts(told.first)) == READ_BEFORE_CUT)
        await line.close()
        told.close_codes.append(line.close_code)
    epoch = told.first[0]["stream"]["epoch"]
    seq = max(frame.get("seq", 0) for frame in told.first)
    async with dial(f"?resume={epoch}:{seq}") as line:
        told.subprotocols.append(line.subprotocol)
        await until(line, told.second, _is("agent_completed"))
        await line.send(dumps({"type": "disconnect", "id": "bye"}))
        await until(line, told.second, lambda frame: False)
        told.close_codes.append(line.close_code)
    return told


def _texts(frames: list[Frame]) -> list[Frame]:
    return [frame for frame in frames if frame["type"] == "agent_message"]


def _is(wanted: str) -> Callable[[Frame], bool]:
    return lambda frame: frame["type"] == wanted


def check(told: Transcript) -> None:
    """Hold a transcript against the contract."""
    assert told.subprotocols == ["netra.v1", "netra.v1"]
    assert told.close_codes == [1000, 1000]
    assert told.pongs == 1
    types = [frame["type"] for frame in told.first]
    assert "error" not in types
    assert types[0] == "connection_established"

    question = next(frame for frame in told.first if frame["type"] == "user_message")
    acks = {frame["reply_to"]: frame for frame in [*told.first, *told.second] if frame["type"] == "ack"}
    assert acks.keys() == {"q1", "q2", "bye"}
    assert told.first.index(question) < told.first.index(acks["q1"])
    assert acks["q1"]["message_id"] == question["message_id"]
    pong = next(frame for frame in told.first if frame["type"] == "pong")
    assert pong["original_timestamp"] == 1.5

    run = [frame for frame in told.first if frame.get("run_id") == acks["q1"]["run_id"] and "seq" in frame]
    assert [frame["type"] for frame in run if frame["type"] in CRITICAL] == CRITICAL
    assert run[-1]["type"] == "agent_completed"
    assert run[-1]["status"] == "success"
    assert run[-1]["final_response"] == ANSWER
    assert _texts(run)[-1]["content"] == ANSWER

    welcome = told.second[0]
    assert welcome["resumed"] is True
    assert [active["run_id"] for active in welcome["active_runs"]] == [acks["q2"]["run_id"]]
    replay = next(frame for frame in told.second if frame["type"] == "replay_completed")
    numbers = [frame["seq"] for frame in told.first + told.second if "seq" in frame and frame["type"] != "ack"]
    assert numbers == sorted(set(numbers)), "an event came twice or out of order"
    assert replay["complete"] is True
    assert replay["from_seq"] == max(frame.get("seq", 0) for frame in told.first)
    _check_text(_texts(told.first + told.second))
    assert told.second[-1]["type"] == "ack"


def _check_text(frames: list[Frame]) -> None:
    """No word of the second answer is missing or doubled where the two connections meet."""
    message_id = frames[-1]["message_id"]
    text = ""
    for frame in frames:
        if frame["message_id"] != message_id:
            continue
        if frame["phase"] == "full":
            assert frame["content"] == text
        else:
            text += frame["content"]
    assert text == COUNTED
