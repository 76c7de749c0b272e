"""Watching a job in the terminal when its right to read goes."""

from __future__ import annotations

import json

import pytest
from trio.testing import MockClock

from netra_ws.chat import ExitStatus, Options, visit
from netra_ws.chat.screen import JsonLines
from tests.scripted import JWT, ScriptedServer, Visit


async def test_a_job_that_cannot_be_joined_again(
    autojump_clock: MockClock,
    scripted: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """When a watched job is refused after a lost connection, the watcher says why and ends with 1."""

    async def first(visited: Visit) -> None:
        await visited.welcome()
        command = await visited.command("connect_job")
        stream = {"epoch": "j", "seq": 5}
        await visited.say(type="job_connected", reply_to=command["id"], job_id="clock", stream=stream)

    async def second(visited: Visit) -> None:
        await visited.welcome()
        command = await visited.command("connect_job")
        assert command["resume"] == "j:5"
        words = {"error": "there is no such job", "message": "", "retryable": False}
        await visited.say(type="error", reply_to=command["id"], code="NOT_FOUND", **words)
        await visited.goodbye()

    monkeypatch.setattr(visit, "_POLICY", scripted.policy(first, second))
    chat = visit.Chat(Options(url="http://h", token=JWT, job="clock"), JsonLines())
    await chat._visit()
    assert chat.status is ExitStatus.FAILED
    printed = capsys.readouterr()
    assert [json.loads(line)["type"] for line in printed.out.splitlines()] == ["job_disconnected"]
    assert "netra-ws: NOT_FOUND: there is no such job" in printed.err.splitlines()
