"""Another's job is like a job that never was: the same bytes, and the same questions to the store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from netra_ws.testing import open_test_server

from .test_foreign_ids import Counting, Stage, filled, plain

#: What may be with Ada's job ``theirs-1`` when Bob, who was not granted it, comes.
STATES = ("read", "idle", "opened without a word", "in the store", "closed")
QUESTIONS: Sequence[Mapping[str, Any]] = (
    {"type": "connect_job", "job_id": "{1}"},
    {"type": "connect_job", "job_id": "{1}", "resume": "{epoch}:0"},
    {"type": "publish_job", "job_id": "{1}", "name": "n", "value": 1},
    {"type": "disconnect_job", "job_id": "{1}"},
    {"type": "resume", "epoch": "{epoch}", "seq": 0, "job_id": "{1}"},
)


@asynccontextmanager
async def staged(state: str) -> AsyncIterator[tuple[Stage, str]]:
    """Let Ada have a job in that state; gives its epoch, too."""
    store = Counting()
    if state == "in the store":
        async with open_test_server(store=store) as server:
            await server.server.job("ada", "theirs-1").emit("n", "of ada")
            epoch = (await server.server.job("ada", "theirs-1").position()).epoch
    async with open_test_server(store=store) as server, server.connect_raw("ada") as ada:
        job = server.server.job("ada", "theirs-1")
        if state == "opened without a word":
            await job.open()
        elif state != "in the store":
            await job.emit("n", "of ada")
        if state != "in the store":
            epoch = (await job.position()).epoch
        if state == "read":
            await ada.ask("connect_job", job_id="theirs-1")
        if state == "closed":
            await job.close()
        await server.server.recorder.flush()
        async with server.connect_raw("bob") as bob:
            yield Stage(server, store, ada, bob), epoch


@pytest.mark.parametrize("permissions", [("chat", "read", "job:publish"), ("job:publish", "job:theirs", "job:x-*"), ()])
@pytest.mark.parametrize("state", STATES)
async def test_a_foreign_job_is_like_a_missing_one(
    autojump_clock: MockClock, state: str, permissions: tuple[str, ...]
) -> None:
    """Whatever state another's job is in, each command about it is answered as about none, after the same reads."""
    for question in QUESTIONS:
        results = []
        for whose in ("theirs", "absent"):
            async with staged(state) as (stage, epoch):
                token = stage.server.token("bob", permissions=permissions)
                names = {"1": f"{whose}-1", "epoch": epoch if whose == "theirs" else "0123456789ab"}
                async with stage.server.connect_raw("bob", link="again", token=token) as stage.bob:
                    heard, asked = await stage.heard(filled(question, names))
                assert b"of ada" not in heard
                results.append((plain(heard, names), asked))
        assert results[0] == results[1], question
        assert b'"NOT_FOUND"' in results[0][0] or b'"FORBIDDEN"' in results[0][0]


async def test_asking_for_foreign_jobs_keeps_nothing(autojump_clock: MockClock) -> None:
    """However many ids a client tries that it was not granted, the server keeps nothing of them."""
    async with staged("idle") as (stage, _):
        jobs, streams = stage.server.server.registry.jobs, stage.server.server.streams
        before = len(jobs), len(streams)
        for number in range(50):
            await stage.bob.ask("connect_job", job_id=f"guess-{number}")
            await stage.bob.ask("connect_job", job_id="theirs-1")
        assert (len(jobs), len(streams)) == before


async def test_the_owner_needs_no_grant(autojump_clock: MockClock) -> None:
    """An owner connects, publishes and resumes without any grant, whether the job is in memory or in the store."""
    for state in ("idle", "opened without a word", "in the store"):
        async with staged(state) as (stage, epoch):
            token = stage.server.token("ada", permissions=("read", "job:publish"))
            async with stage.server.connect_raw("ada", link="again", token=token) as ada:
                answer = await ada.ask("connect_job", job_id="theirs-1", resume=f"{epoch}:0")
                assert answer["type"] == "job_connected"
                assert (await ada.until("replay_completed"))[-1]["complete"] is True
                assert (await ada.ask("publish_job", job_id="theirs-1", name="n", value=1))["type"] == "ack"


async def test_a_store_that_is_away_tells_nothing(autojump_clock: MockClock) -> None:
    """While the store does not answer, a foreign job in memory is answered like a missing one, too."""
    async with staged("read") as (stage, _):
        stage.store.fail()
        answers = [await stage.bob.ask("connect_job", job_id=job_id, id="x") for job_id in ("theirs-1", "absent-1")]
        assert [answer["code"] for answer in answers] == ["UNAVAILABLE"] * 2
        await trio.sleep(1)
        stage.store.recover()
