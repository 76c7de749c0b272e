"""``kick``: signing out is at once, complete, proven, and outlives a restart."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import trio

from netra_ws import Identity, Refused, Run
from netra_ws.testing import FaultyStore
from netra_ws.wire.head import Head

from ..conftest import StartServer
from ..kit import PATIENCE_S, Answer, connect, http, operator, raw, token, upgrade


class Clock:
    """The system's clock, which can be put forward."""

    def __init__(self) -> None:
        self.offset_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset_s


async def endless(run: Run) -> str:
    await run.say("going on")
    await trio.sleep_forever()
    return "never"


@attrs.define
class Stubborn:
    """An agent that does not stop before it is let go."""

    let_go: trio.Event = attrs.field(factory=trio.Event)

    async def __call__(self, run: Run) -> str:
        await run.say("going on")
        with trio.CancelScope(shield=True):
            await self.let_go.wait()
        return "late"


async def slow(run: Run) -> str:
    await run.say("going on")
    with trio.CancelScope(shield=True):
        await trio.sleep(0.3)
    return "late"


AGENTS = {"endless": endless, "slow": slow}


async def refused(server: Any, bearer: str) -> Answer:
    async with raw(server) as client:
        await client.send_bytes(upgrade("/ws", bearer=bearer))
        return await client.read_answer()


async def post(server: Any, fields: object, bearer: str | None) -> Answer:
    return await http(server, "/ws/kick", method="POST", bearer=bearer, body=json.dumps(fields).encode())


async def test_a_user_is_signed_out_everywhere(server: StartServer) -> None:
    """All sockets close with 4010, running and queued runs end by ``admin``, and the answer comes behind all that."""
    running = await server(agents=AGENTS)
    async with (
        connect(running, "root", bearer=operator()) as boss,
        connect(running) as one,
        connect(running) as two,
        connect(running, "bob") as bob,
    ):
        for on_disconnect in ("continue", "grace", "cancel"):
            await one.ask("start_agent", user_request="x", agent="endless", on_disconnect=on_disconnect)
        assert (await one.ask("start_agent", user_request="y", agent="endless"))["disposition"] == "queued"
        answer = await boss.ask("kick", user_id="ada", reason="lost laptop")
        assert (answer["type"], answer["connections"], answer["runs"]) == ("ack", 2, 4)
        assert running.registry.statistics().runs == 0
        for tab in (one, two):
            close = await tab.receive_close()
            assert (close.code, close.reason) == (4010, "lost laptop")
        assert (await bob.ask("ping"))["type"] == "pong"
    async with connect(running, iat=time.time() + 1) as again:
        await again.ask("resume", epoch=again.welcome["stream"]["epoch"], seq=0)
        ends = [m for m in await again.until("replay_completed") if m["type"] == "agent_completed"]
    assert [(end["status"], end["cancelled_by"]) for end in ends] == [("cancelled", "admin")] * 4


async def test_old_tokens_are_refused_and_new_ones_are_not(server: StartServer) -> None:
    """Every token of the user that was issued up to the kick answers 401; one that came later gets in."""
    running = await server()
    old, other, undated = token(), token(expires_s=60), token(iat=None)
    async with connect(running, bearer=old), connect(running, "root", bearer=operator()) as boss:
        assert (await boss.ask("kick", user_id="ada"))["connections"] == 1
    for bearer in (old, other):
        answer = await refused(running, bearer)
        assert (answer.status, json.loads(answer.body)["code"]) == (401, "TOKEN_REVOKED")
    assert (await refused(running, undated)).status == 401
    async with connect(running, iat=time.time() + 1) as client:
        assert client.welcome["user_id"] == "ada"
    async with connect(running, "bob", iat=1) as bob:
        assert bob.welcome["user_id"] == "bob"


async def test_one_token_is_called_back(server: StartServer) -> None:
    """A jti closes its sockets, whoever they are of, and stays refused; other sockets and runs of the user go on."""
    running = await server(agents=AGENTS)
    lost = token(jti="j1")
    async with connect(running, bearer=lost) as phone, connect(running, jti="j2") as desk:
        started = await phone.ask("start_agent", user_request="x", agent="endless")
        async with connect(running, "root", bearer=operator()) as boss:
            answer = await boss.ask("kick", jti="j1")
            assert (answer["connections"], answer["runs"]) == (1, 0)
        assert (await phone.receive_close()).code == 4010
        stopped = await desk.ask("stop_agent", id="stop", run_id=started["run_id"])
        assert stopped["status"] == "cancelled", stopped
        assert json.loads((await refused(running, lost)).body)["code"] == "TOKEN_REVOKED"


async def test_the_last_socket_of_a_token_ends_the_user_at_once(server: StartServer) -> None:
    """Whoever is signed out gets no grace: the runs end without the resume window."""
    running = await server(agents=AGENTS, timing__resume_window_s=3600)
    async with connect(running, jti="j1") as phone, connect(running, "root", bearer=operator()) as boss:
        await phone.ask("start_agent", user_request="x", agent="endless")
        await boss.ask("kick", jti="j1")
        await phone.leave()
        with trio.fail_after(PATIENCE_S):
            while running.registry.statistics().runs:
                await trio.sleep(0.01)


async def test_runs_without_a_socket_end_too(server: StartServer) -> None:
    """A user whose runs go on while nobody is there can be kicked; so can one who was never here."""
    running = await server(agents=AGENTS)
    async with connect(running) as client:
        await client.ask("start_agent", user_request="x", agent="endless", on_disconnect="continue")
    async with connect(running, "root", bearer=operator()) as boss:
        answer = await boss.ask("kick", user_id="ada")
        assert (answer["connections"], answer["runs"]) in [(0, 1), (1, 1)]
        answer = await boss.ask("kick", user_id="nobody")
        assert (answer["connections"], answer["runs"]) == (0, 0)
        assert (await boss.ask("kick", jti="nothing"))["connections"] == 0


@pytest.mark.parametrize("away", [False, True], ids=["well", "store away"])
async def test_operators_can_sign_themselves_out(server: StartServer, away: bool) -> None:
    """Who kicks their own user hears the answer, then 4010; also when the answer has waited for the store in vain."""
    store = FaultyStore()
    running = await server(store=store, timing__finalise_s=0.2)
    async with connect(running, "root", bearer=operator()) as boss, connect(running, "root") as tab:
        if away:
            store.full()
        answer = await boss.ask("kick", user_id="root")
        assert (answer["type"], (answer.get("details") or answer)["connections"]) == ("error" if away else "ack", 2)
        assert (await boss.receive_close()).code == 4010
        assert (await tab.receive_close()).code == 4010
    store.recover()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, "INVALID_MESSAGE"),
        ({"user_id": "ada", "jti": "j"}, "INVALID_MESSAGE"),
        ({"user_id": ""}, "INVALID_MESSAGE"),
        ({"user_id": 5}, "INVALID_MESSAGE"),
        ({"user_id": "a\nb"}, "INVALID_MESSAGE"),
        ({"jti": ""}, "INVALID_MESSAGE"),
        ({"user_id": "ada", "reason": 5}, "INVALID_MESSAGE"),
    ],
)
async def test_a_kick_names_exactly_one(server: StartServer, fields: Mapping[str, object], code: str) -> None:
    """A kick of nobody, or of two things at once, is told what it lacks and does nothing, by either way."""
    running = await server()
    async with connect(running) as ada, connect(running, "root", bearer=operator()) as boss:
        assert (await boss.ask("kick", **fields))["code"] == code
        answer = await post(running, fields, operator())
        assert (answer.status, json.loads(answer.body)["code"]) == (400, code)
        assert (await ada.ask("ping"))["type"] == "pong"


async def test_only_operators(server: StartServer) -> None:
    """Nobody else can kick: not over a socket, not by the page, not with an odd method."""
    running = await server()
    async with connect(running) as ada, connect(running, "bob") as bob:
        assert (await bob.ask("kick", user_id="ada"))["code"] == "FORBIDDEN"
        for bearer, status in ((None, 401), (token("bob"), 403), ("x.y.z", 401)):
            assert (await post(running, {"user_id": "ada"}, bearer)).status == status
        assert (await http(running, "/ws/kick", bearer=operator())).status == 405
        assert (await http(running, "/ws/kick", method="OPTIONS")).headers["allow"] == "OPTIONS, POST"
        assert (await ada.ask("ping"))["type"] == "pong"


async def test_the_page_does_what_the_command_does(server: StartServer) -> None:
    """POST /ws/kick ends sockets and runs and answers with their numbers; a body that is no object is told so."""
    running = await server(agents=AGENTS)
    async with connect(running) as ada:
        await ada.ask("start_agent", user_request="x", agent="endless")
        answer = await post(running, {"user_id": "ada"}, operator())
        body = json.loads(answer.body)
        assert (answer.status, body["type"], body["connections"], body["runs"]) == (200, "ack", 1, 1)
        assert (await ada.receive_close()).code == 4010
    deep = b'{"user_id":"ada","x":' + b"[" * 400 + b"]" * 400 + b"}"
    other = b'{"jsonrpc": "2.0", "method": "ping", "id": 1}'
    for body, code in (
        (b"", "INVALID_JSON"),
        (b"[]", "INVALID_MESSAGE"),
        (b"{", "INVALID_JSON"),
        (deep, "INVALID_MESSAGE"),
        (other, "INVALID_MESSAGE"),
    ):
        answer = await http(running, "/ws/kick", method="POST", bearer=operator(), body=body)
        assert (answer.status, json.loads(answer.body)["code"]) == (400, code)


async def test_a_run_that_cannot_be_stopped_is_told(server: StartServer) -> None:
    """The sockets close all the same; the answer says CANCEL_TIMEOUT."""
    stubborn = Stubborn()
    running = await server(agents={"stubborn": stubborn.__call__}, timing__finalise_s=0.2)
    async with connect(running) as ada, connect(running, "root", bearer=operator()) as boss:
        await ada.ask("start_agent", user_request="x", agent="stubborn")
        await ada.until("agent_message")
        assert (await boss.ask("kick", user_id="ada"))["code"] == "CANCEL_TIMEOUT"
        assert (await ada.receive_close()).code == 4010
    stubborn.let_go.set()


async def test_what_was_being_stopped_ends_too(server: StartServer) -> None:
    """A run that is cut short for another is waited for, and what was steered into it starts nothing any more."""
    running = await server(agents=AGENTS)
    async with connect(running) as ada, connect(running, "root", bearer=operator()) as boss:
        await ada.ask("start_agent", user_request="x", agent="slow", thread_id="t", on_disconnect="continue")
        await ada.until("agent_message")
        for on_busy in ("steer", "interrupt"):
            await ada.ask("chat", content="y", agent="endless", thread_id="t", on_busy=on_busy)
        assert (await boss.ask("kick", user_id="ada"))["runs"] == 2
        assert running.registry.statistics().runs == 0


async def test_the_page_answers_in_time(server: StartServer) -> None:
    """A proof that takes longer than a request may is not waited for: the answer says so, and the kick stands."""
    stubborn = Stubborn()
    running = await server(agents={"stubborn": stubborn.__call__}, timing__handshake_s=1, timing__finalise_s=60)
    async with connect(running) as ada:
        await ada.ask("start_agent", user_request="x", agent="stubborn")
        await ada.until("agent_message")
        answer = await post(running, {"user_id": "ada"}, operator())
        assert (answer.status, json.loads(answer.body)["code"]) == (503, "UNAVAILABLE")
        assert (await ada.receive_close()).code == 4010
    stubborn.let_go.set()


async def test_many_runs_are_waited_for_together(server: StartServer) -> None:
    """With the store away an operator waits for all the runs of a user as long as for one of them."""
    store = FaultyStore()
    running = await server(agents=AGENTS, store=store, timing__finalise_s=0.5, limits__max_runs_per_user=20)
    async with connect(running) as ada, connect(running, "root", bearer=operator()) as boss:
        for number in range(20):
            await ada.ask("start_agent", user_request="x", agent="endless", thread_id=f"t{number}")
        store.full()
        with trio.fail_after(5):
            assert (await boss.ask("kick", user_id="ada"))["code"] == "UNAVAILABLE"
        store.recover()


async def test_a_restart_forgets_nothing(server: StartServer, store_url: str) -> None:
    """After a restart on the same store the tokens are still refused, until they would have expired anyway."""
    clock = Clock()
    old = token(jti="j1")
    bobs = token("bob", jti="j2")
    running = await server(store__url=store_url, clock=clock)
    async with connect(running, "bob", bearer=bobs), connect(running, "root", bearer=operator()) as boss:
        await boss.ask("kick", user_id="ada")
        await boss.ask("kick", jti="j2")
    with trio.fail_after(10):
        await running.drain()
        await running.store.close()
    again = await server(store__url=store_url, clock=clock)
    for bearer in (old, bobs):
        assert json.loads((await refused(again, bearer)).body)["code"] == "TOKEN_REVOKED"
    assert len(again.registry.revocations) == 2


async def test_a_client_on_its_way_in_is_met(server: StartServer) -> None:
    """Who was let in before the kick and gets its seat after it is closed with 4010 as well."""
    gate, asked = trio.Event(), trio.Event()

    class SlowStore(FaultyStore):
        async def stream(self, key: str) -> Any:
            if key == "user:ada":
                asked.set()
                await gate.wait()
            return await super().stream(key)

    running = await server(store=SlowStore())
    async with connect(running, "root", bearer=operator()) as boss, raw(running) as client:
        await client.send_bytes(upgrade("/ws", bearer=token()))
        await asked.wait()
        assert (await boss.ask("kick", user_id="ada"))["connections"] == 0
        gate.set()
        assert (await client.read_head()).status == 101
        assert (await client.receive_close()).code == 4010


async def test_a_start_under_way_is_cancelled_too(server: StartServer) -> None:
    """A start that waits for the store while its user is kicked leaves no run behind."""
    gate, asked = trio.Event(), trio.Event()

    class SlowStore(FaultyStore):
        async def thread(self, user_id: str, thread_id: str) -> Any:
            if user_id == "ada":
                asked.set()
                await gate.wait()
            return await super().thread(user_id, thread_id)

    running = await server(store=SlowStore(), agents=AGENTS)
    async with connect(running, "root", bearer=operator()) as boss, connect(running) as ada:
        await ada.send("start_agent", user_request="x", agent="endless", thread_id="t", on_disconnect="continue")
        await asked.wait()
        await boss.send("kick", id="k", user_id="ada")
        with trio.fail_after(5):
            while not running.registry.revocations:
                await trio.sleep(0)
        gate.set()
        await boss.until("ack", reply_to="k")
        assert running.registry.statistics().runs == 0


async def test_nobody_has_to_wait_for_a_kick(server: StartServer) -> None:
    """A start under way is cancelled also when the operator is gone before it could be answered."""
    gate, asked = trio.Event(), trio.Event()

    class SlowStore(FaultyStore):
        async def thread(self, user_id: str, thread_id: str) -> Any:
            asked.set()
            await gate.wait()
            return await super().thread(user_id, thread_id)

    running = await server(store=SlowStore(), agents=AGENTS)
    async with connect(running) as ada:
        await ada.send("start_agent", user_request="x", agent="endless", thread_id="t", on_disconnect="continue")
        await asked.wait()
        async with connect(running, "root", bearer=operator()) as boss:
            await boss.send("kick", user_id="ada")
            await boss.send("disconnect")
            await boss.receive_close()
        with trio.fail_after(PATIENCE_S):
            while running.registry.statistics().users > 1:
                await trio.sleep(0.01)
            gate.set()
            await ada.leave()
            while running.registry.statistics().users:
                await trio.sleep(0.01)
        assert running.registry.runs.ended == {("endless", "cancelled", "admin"): 1}


async def test_while_the_store_is_away(server: StartServer) -> None:
    """A kick takes effect at once and says that it may not outlive a restart; it is kept when the store is back."""
    store = FaultyStore()
    running = await server(store=store, timing__finalise_s=0.2)
    async with connect(running) as ada, connect(running, "root", bearer=operator()) as boss:
        store.full()
        answer = await boss.ask("kick", user_id="ada")
        assert (answer["code"], answer["retryable"]) == ("UNAVAILABLE", True)
        assert (await ada.receive_close()).code == 4010
        assert json.loads((await refused(running, token(iat=1))).body)["code"] == "TOKEN_REVOKED"
        store.recover()
        with trio.fail_after(10):
            await running.recorder.flush()
        assert [row.subject for row in await store.revocations(0.0, 9)] == ["ada"]


async def test_a_program_with_a_rule_of_its_own(server: StartServer) -> None:
    """Its users are kicked as others are; whether they come again is its own business, unless it names tokens."""

    async def authenticate(head: Head) -> Identity:
        name = (head.get(b"x-user") or b"").decode()
        if not name:
            raise Refused(401, "NO_USER", "Who are you?")
        return Identity(name, frozenset({"chat", "read", "operator"}), token_id=f"session-{name}")

    def as_user(name: str) -> bytes:
        return upgrade("/ws", headers=[("x-user", name)])

    running = await server(authenticate=authenticate)
    async with raw(running) as boss, raw(running) as ada, raw(running) as bob:
        for client, name in ((boss, "root"), (ada, "ada"), (bob, "bob")):
            await client.open(as_user(name))
        assert (await boss.ask("kick", user_id="ada"))["connections"] == 1
        assert (await boss.ask("kick", jti="session-bob"))["connections"] == 1
        assert (await ada.receive_close()).code == (await bob.receive_close()).code == 4010
    async with raw(running) as ada:
        await ada.open(as_user("ada"))
    answer = None
    async with raw(running) as bob:
        await bob.send_bytes(as_user("bob"))
        answer = await bob.read_answer()
    assert json.loads(answer.body)["code"] == "TOKEN_REVOKED"


async def test_a_rule_that_was_thinking_when_its_user_was_kicked(server: StartServer) -> None:
    """What a program's rule said of somebody who was kicked while it thought gives no ticket."""
    gate, asked = trio.Event(), trio.Event()

    async def authenticate(head: Head) -> Identity:
        name = (head.get(b"x-user") or b"").decode()
        if name == "ada":
            asked.set()
            await gate.wait()
        return Identity(name, frozenset({"chat", "read", "operator"}))

    running = await server(authenticate=authenticate)
    answers: list[Answer] = []

    async def ask() -> None:
        answers.append(await http(running, "/ws/ticket", method="POST", headers=[("x-user", "ada")]))

    async with trio.open_nursery() as nursery, raw(running) as boss:
        await boss.open(upgrade("/ws", headers=[("x-user", "root")]))
        nursery.start_soon(ask)
        await asked.wait()
        await boss.ask("kick", user_id="ada")
        gate.set()
    await ask()  # from now on it is the rule's business
    codes = [(answer.status, json.loads(answer.body).get("code")) for answer in answers]
    assert codes == [(401, "TOKEN_REVOKED"), (200, None)]


async def test_an_issuer_ahead_of_our_clock(server: StartServer) -> None:
    """A token that says it was issued in our near future, which the leeway allows, is revoked with the others."""
    running = await server()
    ahead = token(iat=time.time() + 3)
    async with connect(running, bearer=ahead), connect(running, "root", bearer=operator()) as boss:
        await boss.ask("kick", user_id="ada")
    assert json.loads((await refused(running, ahead)).body)["code"] == "TOKEN_REVOKED"
    async with connect(running, iat=time.time() + 4) as again:
        assert again.welcome["user_id"] == "ada"


async def test_a_rule_that_counts_in_milliseconds(server: StartServer) -> None:
    """A time of issue that no clock can have locks nobody out who comes again after a kick."""

    async def authenticate(head: Head) -> Identity:
        issued_at = float(head.get(b"x-issued") or b"0")
        return Identity("ada", frozenset({"chat", "read", "operator"}), claims={"iat": issued_at})

    running = await server(authenticate=authenticate)
    async with raw(running) as ada:
        await ada.open(upgrade("/ws", headers=[("x-issued", str(1000 * time.time()))]))
        body = json.dumps({"user_id": "ada"}).encode()
        stamp = ("x-issued", str(time.time()))
        assert (await http(running, "/ws/kick", method="POST", headers=[stamp], body=body)).status == 200
        assert (await ada.receive_close()).code == 4010
    async with raw(running) as again:
        await again.open(upgrade("/ws", headers=[("x-issued", str(time.time() + 1))]))


async def test_who_kicked_whom_is_logged(server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    """An operator's kick leaves one line with who, whom, why and how much, and no token."""
    caplog.set_level("INFO")
    running = await server()
    secretive = token("bob", jti="a-token-id")
    async with connect(running), connect(running, "bob", bearer=secretive):
        await post(running, {"user_id": "ada", "reason": "lost\nlaptop"}, operator("boss"))
        await post(running, {"jti": "a-token-id"}, operator("boss"))
    lines = [record.getMessage() for record in caplog.records if "signing out" in record.getMessage()]
    assert lines == [
        "signing out user='ada' by='boss' reason='lost\\nlaptop': <Kick of 1 connections, 0 runs>",
        "signing out user=None by='boss' reason=None: <Kick of 1 connections, 0 runs>",
    ]


async def test_a_repeat_has_the_first_answer(server: StartServer) -> None:
    """The id of a kick is remembered: a repeat signs nobody out again."""
    running = await server()
    async with connect(running, "root", bearer=operator()) as boss:
        async with connect(running):
            assert (await boss.ask("kick", id="k", user_id="ada"))["connections"] == 1
        async with connect(running, iat=time.time() + 1) as ada:
            assert (await boss.ask("kick", id="k", user_id="ada"))["connections"] == 1
            assert (await ada.ask("ping"))["type"] == "pong"
