"""Jobs on the wire: who may read and say what, and that a job's stream keeps the promises of a stream."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio

from netra_ws import AgentError, ClientError, Identity, Position, Run, open_server
from netra_ws.contexts import jobs as jobs_module
from netra_ws.errors import InvalidArgument

from ..conftest import StartServer
from ..kit import Client, connect, holdings, http, settings, settles, token

READER = ("read", "job:build-*")
PUBLISHER = (*READER, "job:publish")


async def build(run: Run) -> str:
    """Say every word of the text into the job ``build-7``."""
    job = run.job("build-7")
    for word in run.text.split():
        await job.emit("step", word)
    return "built"


async def joined(client: Client, job_id: str = "build-7", **fields: Any) -> dict[str, Any]:
    """Connect a client to a job and return the answer."""
    answer = await client.ask("connect_job", job_id=job_id, **fields)
    assert answer["type"] == "job_connected", answer
    return answer


async def values(client: Client, count: int) -> list[Any]:
    """Return the values of the next *count* events of a job."""
    found: list[Any] = []
    while len(found) < count:
        heard = await client.receive()
        if heard["type"] == "agent_event":
            assert heard["job_id"]
            found.append(heard["value"])
    return found


def place(answer: dict[str, Any], seq: int | None = None) -> str:
    """Return the position of an answer as a client writes it."""
    stream = answer["stream"]
    return f"{stream['epoch']}:{stream['seq'] if seq is None else seq}"


async def test_an_agent_speaks_to_all_who_were_granted(server: StartServer) -> None:
    """What an agent says into a job reaches its owner and who was granted it, alike, and nobody else."""
    running = await server(agents={"build": build})
    async with (
        connect(running, "ada") as owner,
        connect(running, "bob", permissions=READER) as reader,
        connect(running, "eve") as stranger,
    ):
        await running.job("ada", "build-7").emit("opened", 0)
        for client in (owner, reader):
            await joined(client)
        refused = await stranger.ask("connect_job", job_id="build-7")
        assert (refused["type"], refused["code"]) == ("error", "NOT_FOUND")
        await owner.ask("start_agent", user_request="one two", agent="build")
        heard = [
            [h for h in await client.until("agent_event", value="two") if "job_id" in h] for client in (owner, reader)
        ]
        assert heard[0] == heard[1]
        first, second = heard[0]
        assert [first["value"], second["value"]] == ["one", "two"]
        assert second["seq"] == first["seq"] + 1
        assert (first["user_id"], first["agent_name"], first["name"], first["job_id"]) == (
            "ada",
            "build",
            "step",
            "build-7",
        )
        assert first["run_id"]
        assert "thread_id" not in first
        assert (await stranger.ask("ping"))["type"] == "pong"  # the next thing that it hears


@pytest.mark.parametrize("job_id", ["build-8", "nothing", "build-7"])
async def test_not_there_and_not_granted_are_the_same(server: StartServer, job_id: str) -> None:
    """Of a job that was not granted a client cannot even tell whether it is there, by no command."""
    running = await server()
    await running.job("ada", "build-7").emit("x", 1)
    async with connect(running, "eve", permissions=("chat", "read", "job:publish")) as client:
        for command in ("connect_job", "disconnect_job", "publish_job", "resume"):
            more = {"name": "n", "value": 1} if command == "publish_job" else {}
            more |= {"epoch": "e", "seq": 1} if command == "resume" else {}
            answer = await client.ask(command, job_id=job_id, **more)
            assert (answer["type"], answer["code"], answer["error"]) == ("error", "NOT_FOUND", "there is no such job")
    assert len(running.registry.jobs) <= 2


async def test_who_waits_before_it_is_opened(server: StartServer) -> None:
    """A granted reader may come before the first word, and gets it; the position holds."""
    running = await server()
    async with connect(running, "bob", permissions=READER) as reader:
        answer = await joined(reader)
        await running.job("ada", "build-7").emit("step", "first")
        assert await values(reader, 1) == ["first"]
        await joined(reader, resume=place(answer))
        assert await values(reader, 1) == ["first"]
        done = (await reader.until("replay_completed"))[-1]
        assert (done["job_id"], done["complete"], done["count"], done["epoch"]) == (
            "build-7",
            True,
            1,
            answer["stream"]["epoch"],
        )


async def test_publishing(server: StartServer) -> None:
    """Who was granted a job and publishing may speak there; the answer comes when it is committed, with its seq."""
    running = await server()
    job = running.job("ada", "build-7")
    await job.emit("opened", 0)
    async with (
        connect(running, "bob", permissions=PUBLISHER) as publisher,
        connect(running, "cyd", permissions=READER) as reader,
    ):
        await joined(reader)
        answer = await publisher.ask("publish_job", job_id="build-7", name="note", value={"a": [1]})
        assert answer["type"] == "ack"
        (heard,) = (h for h in await reader.until("agent_event") if h["type"] == "agent_event")
        assert (heard["seq"], heard["user_id"], heard["value"]) == (answer["seq"], "bob", {"a": [1]})
        assert not {"run_id", "agent_name", "thread_id"} & heard.keys()
        refused = await reader.ask("publish_job", job_id="build-7", name="note", value=1)
        assert refused["code"] == "FORBIDDEN"
        again = await publisher.ask("publish_job", job_id="build-7", name="note", value=1, id="once")
        repeat = await publisher.ask("publish_job", job_id="build-7", name="note", value=1, id="once")
        assert repeat["seq"] == again["seq"] == (await job.position()).seq


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "", "value": 1}, "$.name"),
        ({"name": "x" * 257, "value": 1}, "$.name"),
        ({"name": 5, "value": 1}, "$.name"),
        ({"value": 1}, "$.name"),
        ({"name": "n", "value": "x" * 300_000}, "$.value"),
        ({"name": "n", "value": 1, "job_id": "no id"}, "$.job_id"),
    ],
)
async def test_what_cannot_be_published(server: StartServer, fields: dict[str, Any], field: str) -> None:
    """A wrong field is named by its path, and nothing is said or opened."""
    running = await server()
    async with connect(running, "bob", permissions=PUBLISHER) as client:
        answer = await client.ask("publish_job", **{"job_id": "build-7", **fields})
        assert answer["code"] == "INVALID_MESSAGE"
        assert list(answer["details"]["fields"]) == [field]
    assert await running.store.job("build-7") is None


@pytest.mark.parametrize("resume", ["", "x", "e:", "e:-1", "e:1.5", 5])
async def test_what_is_no_position(server: StartServer, resume: Any) -> None:
    """A position that is none is refused by its path, and the client is not connected."""
    running = await server()
    async with connect(running, "bob", permissions=READER) as client:
        answer = await client.ask("connect_job", job_id="build-7", resume=resume)
        assert (answer["code"], list(answer["details"]["fields"])) == ("INVALID_MESSAGE", ["$.resume"])
        assert (await client.ask("disconnect_job", job_id="build-7"))["code"] == "NOT_FOUND"


async def test_a_job_outlives_the_server(store_url: str) -> None:
    """After a restart the job has its owner, its epoch and its events; numbers go on."""
    chosen = settings(store__url=store_url, history__ring_events=8)
    async with open_server(chosen) as first:
        job = first.job("ada", "build-7")
        for number in range(40):
            await job.emit("step", number)
        before = await job.position()
    async with open_server(chosen) as second:
        position = await second.job("ada", "build-7").position()
        assert position.epoch == before.epoch
        with pytest.raises(ClientError, match="NOT_FOUND"):
            await second.job("bob", "build-7").emit("step", "mine")
        await second.job("ada", "build-7").emit("step", 40)
        await second.recorder.flush()
        async with connect(second, "bob", permissions=READER) as reader:
            await joined(reader, resume=f"{before.epoch}:10")
            assert await values(reader, 31) == list(range(10, 41))
            replayed = (await reader.until("replay_completed"))[-1]
            assert (replayed["count"], replayed["from_seq"]) == (31, 10)


async def test_positions_that_cannot_be_continued(server: StartServer) -> None:
    """A position of another epoch, or ahead, is answered by a reset of that job's stream, and nothing partial."""
    running = await server()
    job = running.job("ada", "build-7")
    for number in range(3):
        await job.emit("step", number)
    async with connect(running, "bob", permissions=READER) as reader:
        for position, reason in (("elsewhere:1", "epoch_changed"), (None, "ahead")):
            answer = await joined(reader, resume=position or f"{(await job.position()).epoch}:99999")
            reset = (await reader.until("stream_reset"))[-1]
            assert (reset["job_id"], reset["reason"], reset["seq"]) == ("build-7", reason, answer["stream"]["seq"])
        await job.emit("step", 3)
        assert await values(reader, 1) == [3]


async def test_resume_of_a_job_sets_its_cursor_alone(server: StartServer) -> None:
    """The command ``resume`` with a job id moves that job's cursor, and leaves the user's own stream alone."""
    running = await server(agents={"build": build})
    async with connect(running, "ada") as client:
        await running.job("ada", "build-7").emit("step", 0)
        answer = await joined(client)
        await client.ask("start_agent", user_request="one two", agent="build")
        await client.until("agent_completed")
        resumed = await client.ask("resume", job_id="build-7", epoch=answer["stream"]["epoch"], seq=0)
        assert resumed["type"] == "ack"
        heard = await client.until("replay_completed")
        assert [h["value"] for h in heard if h["type"] == "agent_event"] == [0, "one", "two"]
        assert heard[-1]["job_id"] == "build-7"
        assert not [h for h in heard if h["type"] == "agent_completed"]


async def test_leaving_really_leaves(server: StartServer) -> None:
    """Behind ``job_disconnected`` nothing of the job is heard, and nothing of the seat is left."""
    running = await server()
    job = running.job("ada", "build-7")
    await job.emit("step", 0)
    async with connect(running, "bob", permissions=READER) as reader:
        await joined(reader)
        assert await job.members() == 1
        left = await reader.ask("disconnect_job", job_id="build-7")
        assert (left["type"], left["job_id"]) == ("job_disconnected", "build-7")
        assert await job.members() == 0
        await job.emit("step", 1)
        assert (await reader.ask("ping"))["type"] == "pong"
        again = await reader.ask("disconnect_job", job_id="build-7")
        assert again["code"] == "NOT_FOUND"
        await joined(reader)
        await joined(reader)  # twice is once
        assert await job.members() == 1
        await job.emit("step", 2)
        assert await values(reader, 1) == [2]


async def test_closing_frees_the_id(server: StartServer) -> None:
    """Who reads a job that is closed gets its last word, then ``job_disconnected``; the id is another one's then."""
    running = await server()
    job = running.job("ada", "build-7")
    async with connect(running, "cyd", permissions=READER) as reader:
        await job.emit("step", "last")
        answer = await joined(reader, resume=f"{(await job.position()).epoch}:0")
        await job.close()
        heard = await reader.until("job_disconnected", job_id="build-7")
        assert [h["value"] for h in heard if h["type"] == "agent_event"] == ["last"]
        with pytest.raises(ClientError, match="NOT_FOUND"):
            await job.close()
        await running.job("bob", "build-7").emit("step", "mine")
        with pytest.raises(ClientError, match="NOT_FOUND"):
            await job.emit("step", "still mine?")
        await joined(reader, resume=place(answer))
        reset = (await reader.until("stream_reset"))[-1]
        assert reset["reason"] == "epoch_changed"
        await running.job("bob", "build-7").emit("step", "new")
        assert await values(reader, 1) == ["new"]


async def test_only_the_owner_closes(server: StartServer) -> None:
    """Neither a granted publisher nor a stranger can close a job."""
    running = await server()
    await running.job("ada", "build-7").emit("step", 0)
    for identity in (Identity("bob", frozenset(PUBLISHER)), Identity("eve"), Identity("bob", frozenset({"job:*"}))):
        with pytest.raises(ClientError, match="NOT_FOUND"):
            await running.job(identity, "build-7").close()
    await running.recorder.flush()
    assert (await running.store.job("build-7")) is not None


async def test_a_gone_connection_is_in_no_job(server: StartServer) -> None:
    """However a connection ends, its jobs forget it, and the server holds what it held."""
    running = await server(timing__resume_window_s=0)
    job = running.job("ada", "build-7")
    await job.emit("step", 0)
    before = holdings(running)
    for explicit in (True, False):
        async with connect(running, "bob", permissions=READER) as reader:
            for name in ("build-7", "build-8"):
                await joined(reader, name)
            if explicit:
                await reader.ask("disconnect")
        await settles(running, before)
        assert await job.members() == 0


async def test_a_connection_has_a_bound_of_jobs(server: StartServer) -> None:
    """One job more than ``limits.max_jobs_per_connection`` is refused, and room comes back by leaving."""
    running = await server(limits__max_jobs_per_connection=2)
    async with connect(running, "bob", permissions=("job:*",)) as reader:
        for name in ("a", "b"):
            await joined(reader, name)
        assert (await reader.ask("connect_job", job_id="c"))["code"] == "QUOTA_EXCEEDED"
        await joined(reader, "a")  # it is there already
        await reader.ask("disconnect_job", job_id="a")
        await joined(reader, "c")


async def test_a_user_has_a_bound_of_open_jobs(server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has opened as many jobs as there may be opens no more until one is closed."""
    monkeypatch.setattr(jobs_module, "MAX_OPEN", 2)
    running = await server()
    for name in ("a", "b"):
        await running.job("ada", name).emit("x", 1)
    await running.recorder.flush()
    with pytest.raises(ClientError, match="QUOTA_EXCEEDED"):
        await running.job("ada", "c").emit("x", 1)
    await running.job("bob", "c").emit("x", 1)
    await running.job("ada", "a").close()
    await running.job("ada", "d").emit("x", 1)


async def test_a_new_token_takes_jobs_away(server: StartServer) -> None:
    """After ``refresh_auth`` a client reads only the jobs that the new token grants, and is told of the others."""
    running = await server()
    async with connect(running, "bob", permissions=("job:a", "job:b")) as reader:
        for name in ("a", "b"):
            await joined(reader, name)
        await reader.send("refresh_auth", token=token("bob", permissions=("job:b",)))
        told = (await reader.until("job_disconnected"))[-1]
        assert (told["job_id"], "reply_to" in told) == ("a", False)
        for name in ("a", "b"):
            await running.job("ada", name).emit("x", name)
        assert await values(reader, 1) == ["b"]


@pytest.mark.parametrize(
    ("permissions", "allowed"),
    [
        (("job:build-7",), True),
        (("job:build-*",), True),
        (("job:*",), True),
        (("job:publish",), False),
        (("read", "chat"), False),
        (("job:build-8", "job:build"), False),
        (("operator",), False),
    ],
)
async def test_what_grants_a_job(server: StartServer, permissions: tuple[str, ...], allowed: bool) -> None:
    """A job is read by its id or by a pattern among the permissions, and by nothing else."""
    running = await server()
    await running.job("ada", "build-7").emit("x", 1)
    async with connect(running, "bob", permissions=permissions) as client:
        answer = await client.ask("connect_job", job_id="build-7")
        assert (answer["type"] == "job_connected") is allowed


async def test_an_owner_needs_the_right_to_read(server: StartServer) -> None:
    """An owner whose token may not read hears nothing of the job either."""
    running = await server()
    await running.job("ada", "build-7").emit("x", 1)
    async with connect(running, "ada", permissions=("chat",)) as client:
        assert (await client.ask("connect_job", job_id="build-7"))["code"] == "NOT_FOUND"


async def test_a_foreign_agent_may_not_speak(server: StartServer) -> None:
    """An agent that speaks into another user's job gets an error that its user may read, and the job hears nothing."""
    running = await server(agents={"build": build})
    job = running.job("ada", "build-7")
    await job.emit("x", 1)
    await running.recorder.flush()
    before = await job.position()
    async with connect(running, "eve") as client:
        await client.ask("start_agent", user_request="one", agent="build")
        ended = (await client.until("agent_completed"))[-1]
    assert (ended["status"], ended["error"]["code"], ended["error"]["message"]) == (
        "error",
        "NOT_FOUND",
        "there is no such job",
    )
    assert await job.position() == before


async def test_what_an_agent_gets_wrong(server: StartServer) -> None:
    """A wrong id, name or value is an error at its place; a run that goes on after it can still speak."""
    caught: list[Any] = []

    async def clumsy(run: Run) -> None:
        for job_id in ("", "a b", "x" * 129, 5):
            try:
                run.job(job_id)  # type: ignore[arg-type]
            except InvalidArgument as exc:
                caught.append(exc.argument)
        for name, value in (("n" * 257, 1), ("n", object()), ("n", "x" * 300_000)):
            try:
                await run.job("a").emit(name, value)
            except (AgentError, TypeError) as exc:
                caught.append(type(exc).__name__)
        await run.job("a").emit("n", "right")

    running = await server(agents={"clumsy": clumsy})
    async with connect(running, "ada") as client:
        await client.ask("start_agent", user_request="x", agent="clumsy")
        ended = (await client.until("agent_completed"))[-1]
        assert ended["status"] == "success"
    assert caught == ["job_id"] * 4 + ["EventTooLarge", "TypeError", "EventTooLarge"]
    job = running.job("ada", "a")
    async with job.events(after=attrs.evolve(await job.position(), seq=0)) as events:
        assert (await anext(events)).fields["value"] == "right"


async def test_words_into_a_job_count_for_the_run(server: StartServer) -> None:
    """A run that says more than ``limits.max_events_per_run`` into a job ends like any other that says too much."""

    async def loud(run: Run) -> None:
        while True:
            await run.job("a").emit("n", 1)

    running = await server(agents={"loud": loud}, limits__max_events_per_run=50)
    async with connect(running, "ada") as client:
        await client.ask("start_agent", user_request="x", agent="loud")
        ended = (await client.until("agent_completed"))[-1]
        assert (ended["status"], ended["cancelled_by"]) == ("cancelled", "quota")
        assert ended["events"] < 10  # of its own stream
    assert (await running.job("ada", "a").position()).seq < 50


async def test_a_run_that_is_over_is_silent_in_jobs(server: StartServer) -> None:
    """A job that an agent has kept beyond its run says nothing any more."""
    kept: list[Any] = []

    async def keep(run: Run) -> None:
        kept.append(run.job("a"))
        await kept[0].emit("n", 1)

    running = await server(agents={"keep": keep})
    async with connect(running, "ada") as client:
        await client.ask("start_agent", user_request="x", agent="keep")
        await client.until("agent_completed")
        with pytest.raises(Exception, match="has ended"):
            await kept[0].emit("n", 2)
    assert (await running.job("ada", "a").position()).seq == 1


async def test_a_program_reads_and_counts(server: StartServer) -> None:
    """A program reads a job live and from a position; a foreign one gets NOT_FOUND."""
    running = await server()
    job = running.job("ada", "build-7")
    await job.emit("x", 1)
    await running.recorder.flush()
    start = await job.position()
    async with job.events() as events, trio.open_nursery() as nursery:
        nursery.start_soon(job.emit, "x", 2)
        heard = await anext(events)
        assert (heard.fields["value"], heard.fields["job_id"]) == (2, "build-7")
    async with job.events(after=Position(epoch=start.epoch, seq=start.seq)) as events:
        assert (await anext(events)).fields["value"] == 2
    with pytest.raises(ClientError) as caught:
        async with job.events(after=Position(epoch="other", seq=0)):
            pass
    assert caught.value.details == {"reason": "epoch_changed"}
    foreign = running.job("eve", "build-7")
    for work in (foreign.members, foreign.position, foreign.close):
        with pytest.raises(ClientError, match="NOT_FOUND"):
            await work()


@pytest.mark.parametrize(
    ("owner", "job_id", "argument"),
    [("ada", "a b", "job_id"), ("ada", 5, "job_id"), ("", "a", "owner"), (5, "a", "owner")],
)
async def test_what_is_no_job(server: StartServer, owner: Any, job_id: Any, argument: str) -> None:
    """A wrong owner or id is refused by its name."""
    running = await server()
    with pytest.raises(InvalidArgument) as caught:
        running.job(owner, job_id)
    assert caught.value.argument == argument


async def test_jobs_are_counted(server: StartServer) -> None:
    """The gauge and the configuration tell of jobs."""
    running = await server()
    await running.job("ada", "a").emit("x", 1)
    metrics = (await http(running, "/metrics")).body.decode()
    assert "netra_ws_jobs 1.0" in metrics
    assert (await http(running, "/ws/config")).json()["features"]["jobs"] is True


async def test_an_id_can_be_opened_without_a_word(server: StartServer) -> None:
    """``open`` makes an id a user's own, as the first word does; twice is once, and nobody else can take it."""
    running = await server()
    job = running.job("ada", "build-7")
    for _ in range(2):
        await job.open()
    assert (await job.position()).seq == 0
    for work in (running.job("bob", "build-7").open(), running.job("bob", "build-7").emit("x", 1)):
        with pytest.raises(ClientError, match="NOT_FOUND"):
            await work
    await job.close()
    await running.job("bob", "build-7").open()


async def test_nobody_waits_in_an_id_that_was_not_granted(server: StartServer) -> None:
    """A program in the name of a user who was not granted an id cannot wait there for what its owner will say."""
    running = await server()
    with pytest.raises(ClientError, match="NOT_FOUND"):
        async with running.job("eve", "build-7").events():
            pass
    granted = running.job(Identity("bob", frozenset(READER)), "build-7")
    async with granted.events() as events:
        assert await running.job("ada", "build-7").emit("x", 1) == 1
        assert (await anext(events)).fields["value"] == 1


async def test_a_grant_is_enough_to_resume_a_job(server: StartServer) -> None:
    """A token that grants a job and not the user's own stream resumes the job by the command, and that alone."""
    running = await server()
    await running.job("ada", "build-7").emit("step", 1)
    async with connect(running, "bob", permissions=("job:build-7",)) as reader:
        answer = await joined(reader)
        place = {"epoch": answer["stream"]["epoch"], "seq": 0}
        assert (await reader.ask("resume", **place))["code"] == "FORBIDDEN"
        assert (await reader.ask("resume", job_id="build-8", **place))["code"] == "NOT_FOUND"
        assert (await reader.ask("resume", job_id="build-7", **place))["type"] == "ack"
        assert (await reader.until("replay_completed"))[-1]["count"] == 1


async def test_connecting_twice_tells_where_one_is(server: StartServer) -> None:
    """Who connects again to a job that is read already hears the position behind which the next event comes."""
    running = await server()
    job = running.job("ada", "build-7")
    await job.open()
    async with connect(running, "bob", permissions=READER, receive_buffer=4096) as reader:
        await joined(reader)
        for _ in range(60):
            await job.emit("step", "x" * 100_000)
        await running.recorder.flush()
        await reader.send("connect_job", job_id="build-7", id="again")
        told = (await reader.until("job_connected"))[-1]["stream"]["seq"]
        following = (await reader.until("agent_event"))[-1]["seq"]
        assert following == told + 1
        assert told < 60


async def test_a_program_reads_to_the_end(server: StartServer) -> None:
    """Who reads a job as a program gets everything up to its closing, waiting or not, and then the end."""
    running = await server()
    job = running.job("ada", "build-7")
    await job.emit("x", 1)
    start = attrs.evolve(await job.position(), seq=0)
    heard: list[Any] = []

    async def read() -> None:
        async with job.events(after=start) as events:
            heard.extend([event.fields["value"] async for event in events])

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await job.emit("x", 2)
            await trio.testing.wait_all_tasks_blocked()
            await job.emit("x", 3)
            await trio.testing.wait_all_tasks_blocked()  # the last word is read, and the reader waits
            await job.close()
        silent = running.job("ada", "build-8")
        await silent.open()
        async with silent.events() as events:
            await silent.close()
            assert [event async for event in events] == []
    assert heard == [1, 2, 3]
