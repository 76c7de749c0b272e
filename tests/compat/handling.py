"""What the tests of the agent handler share: agents, and what a program of its own brings to the handler."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from sqlalchemy import create_engine, select
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from netra_ws import AgentError, Run
from netra_ws.compat.agent_message import RequestContext
from netra_ws.protocol.codec import Heard
from tests.kit import Client

FIVE = ["agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_completed"]


def said(content: Any = "hello", type_name: str = "chat", **payload: Any) -> dict[str, Any]:
    """Return an older message."""
    field = "user_request" if type_name == "start_agent" else "content"
    return {"type": type_name, "payload": {field: content, **payload}}


async def five(run: Run) -> str:
    """Do everything that the older system's clients wait for."""
    await run.think(f"about {run.text}")
    async with run.tool("look_up", {"query": run.text}) as call:
        call.results = {"found": run.text.upper()}
    return run.text.upper()


async def failing(run: Run) -> None:
    """Fail as an agent of a program may."""
    raise RuntimeError("a secret of the program")


async def refusing(run: Run) -> None:
    """Fail with an error that is meant for the user."""
    raise AgentError("the agent does not know this")


async def slow(run: Run) -> str:
    """Work for so many seconds as the text says."""
    await run.think("working")
    await trio.sleep(float(run.text))
    return "done"


@attrs.define
class Witness:
    """An agent that keeps the context of each of its requests; those whose text begins with ``wait`` wait."""

    seen: list[RequestContext] = attrs.field(factory=list)
    ended: list[str] = attrs.field(factory=list)
    let_go: trio.Event = attrs.field(factory=trio.Event)
    waiting: int = 0

    async def __call__(self, run: Run) -> str:
        self.seen.append(RequestContext.of(run))
        try:
            if run.text.startswith("wait"):
                self.waiting += 1
                await self.let_go.wait()
            return run.text
        finally:
            self.ended.extend([run.text, *run.steered()])

    async def until(self, waiting: int) -> None:
        """Wait until so many of its runs wait."""
        with trio.fail_after(5.0):
            while self.waiting < waiting:
                await trio.sleep(0.001)


@attrs.define(eq=False)
class Socket:
    """A program's own socket; it keeps what it was told."""

    told: list[dict[str, Any]] = attrs.field(factory=list)

    async def send_json(self, message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append(message)


@attrs.define
class Board:
    """A program's own manager, as small as the handler lets it be.

    Attributes:
        sockets: Connection id → its socket.
        threads: Connection id → its thread.
        notices: What users were told, in its order.
        calls: Which of its functions were called.
        ill: Name of a function → what it raises.
    """

    sockets: dict[str, object] = attrs.field(factory=dict)
    threads: dict[str, str] = attrs.field(factory=dict)
    notices: list[tuple[str, str]] = attrs.field(factory=list)
    calls: list[str] = attrs.field(factory=list)
    ill: dict[str, BaseException] = attrs.field(factory=dict)

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.ill:
            raise self.ill[name]

    def get_connection_id_by_websocket(self, websocket: object) -> str | None:
        self._called("get_connection_id_by_websocket")
        return next((name for name, socket in self.sockets.items() if socket is websocket), None)

    def update_connection_thread(self, connection_id: str, thread_id: str) -> bool:
        self._called("update_connection_thread")
        self.threads[connection_id] = thread_id
        return True

    async def send_error(self, user_id: str, text: str) -> None:
        self._called("send_error")
        await trio.lowlevel.checkpoint()
        self.notices.append((user_id, text))


class Base(DeclarativeBase):
    """The program's own tables."""


class Note(Base):
    """One note of a user."""

    __tablename__ = "notes"

    number: Mapped[int] = mapped_column(primary_key=True)
    who: Mapped[str]
    note: Mapped[str]


@attrs.define(eq=False)
class Database:
    """A program's own database: a table of notes, and sessions that are committed or rolled back.

    Attributes:
        opened, closed: How many sessions were.
        open: Those that are open now.
        ill: What opening a session raises.
    """

    engine: Engine
    opened: int = 0
    closed: int = 0
    open: list[Session] = attrs.field(factory=list)
    ill: BaseException | None = None

    @classmethod
    def at(cls, url: str) -> Database:
        """Return the database at a URL, with an empty table."""
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        return cls(engine)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Open a session: committed when the block ends well, rolled back when it does not."""
        if self.ill is not None:
            raise self.ill
        session = Session(self.engine)
        self.opened += 1
        self.open.append(session)
        try:
            yield session
            await trio.to_thread.run_sync(session.commit)
        except BaseException:
            await trio.to_thread.run_sync(session.rollback)
            raise
        finally:
            await trio.to_thread.run_sync(session.close)
            self.open.remove(session)
            self.closed += 1

    def notes(self) -> list[tuple[str, str]]:
        """Return what is kept, in any order."""
        with Session(self.engine) as session:
            return sorted((kept.who, kept.note) for kept in session.scalars(select(Note)))

    def dispose(self) -> None:
        """Let every connection go."""
        self.engine.dispose()


async def note(run: Run) -> str:
    """Write a note in the session of the request, which keeps it when the run has ended; some texts fail or wait."""
    session: Session = RequestContext.of(run).db_session
    session.add(Note(who=run.user_id, note=run.text))
    if run.text.startswith(("fail", "wait")):
        await trio.to_thread.run_sync(session.flush)
    if run.text.startswith("wait"):
        await run.think("waiting")
        await trio.sleep_forever()
    if run.text.startswith("fail"):
        raise RuntimeError("after the note")
    return run.text


@attrs.define
class Spans:
    """Sessions of a SQLite file without threads, for tests on a virtual clock.

    Attributes:
        opens_in_s, closes_in_s: Seconds that it takes.
        closed_with: The class of what each session was closed with.
        most: How many were open at the same time.
    """

    path: str = ":memory:"
    opens_in_s: float = 0.0
    closes_in_s: float = 0.0
    opened: int = 0
    open: int = 0
    most: int = 0
    closed_with: list[type[BaseException] | None] = attrs.field(factory=list)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[sqlite3.Connection]:
        await trio.sleep(self.opens_in_s)
        connection = sqlite3.connect(self.path)
        self.opened += 1
        self.open += 1
        self.most = max(self.most, self.open)
        error: BaseException | None = None
        try:
            yield connection
        except BaseException as exc:
            error = exc
            raise
        finally:
            await trio.sleep(self.closes_in_s)
            connection.close()
            self.open -= 1
            self.closed_with.append(None if error is None else type(error))


def types_of(events: Iterable[Heard], user_messages: bool = False) -> list[str]:
    """Return the types of the events of runs, in their order."""
    return [one.type for one in events if one.type in FIVE or (user_messages and one.type == "user_message")]


def of_run(events: Iterable[Heard], run_id: str) -> list[Heard]:
    """Return the events of one run."""
    return [one for one in events if one.fields.get("run_id") == run_id]


async def end_of(client: Client, run_id: str | None = None) -> list[dict[str, Any]]:
    """Read up to the end of a run, of any one by default; return the events of runs."""
    wanted = {} if run_id is None else {"run_id": run_id}
    return [one for one in await client.until("agent_completed", **wanted) if one["type"] in FIVE]
