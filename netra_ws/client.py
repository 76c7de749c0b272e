"""Client of the protocol ``netra.v1`` for Trio programs.

::

    async with netra_ws.connect("https://example.org", token) as session:
        run = await session.start("What is 17% of 2,340?")
        async for event in run:
            match event.message:
                case AgentMessage(phase="delta", content=piece):
                    print(piece, end="")
        print((await run.result()).status)

It reconnects with full jitter and goes on from its position, drops events it has seen, sends
unanswered commands again under their own id (the server answers a repeat without a second effect),
asks for a new token, and stops for good where the server said no. It joins its jobs again, too::

    events = session.events(job_id="build-7")
    await session.connect_job("build-7")
    async for event in events:
        print(event.fields["name"], event.fields["value"])

``netra-ws.js`` is its sibling.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import random
import re
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

import attrs
import h11
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from netra_ws.errors import CommandFailed, Rejected, SessionError
from netra_ws.joined import read_job_id, write_position
from netra_ws.pending import PendingInput
from netra_ws.protocol import commands as say
from netra_ws.protocol.codec import Heard, read_server
from netra_ws.protocol.replies import (
    Ack,
    AuthExpiring,
    ConnectionEstablished,
    ConnectionWarning,
    Error,
    JobConnected,
    JobDisconnected,
    Position,
    Reply,
    ThreadCreatedReply,
    ThreadDeletedReply,
    ThreadHistory,
    ThreadList,
    ThreadRenamedReply,
    ThreadSwitched,
)
from netra_ws.protocol.values import Id, JsonlLogs, JsonObject, Page100, Page200, Seconds, Seq, Title
from netra_ws.session import (
    QUEUE_LIMIT,
    TRANSITIONS,
    Conversation,
    Ended,
    EventQueue,
    Pending,
    Policy,
    Run,
    SessionState,
    StateChange,
    backoff_delay,
    lost,
    refusal,
)

logger = logging.getLogger(__name__)

Token = str | Callable[[], str | Awaitable[str]]
R = TypeVar("R", bound=Reply)
E = TypeVar("E", bound=BaseException)

PROTOCOL = "netra.v1"

#: Commands on their way at the same time; further callers wait for their turn.
MAX_PENDING = 256
#: Seconds between two new tokens at least, unless the end of the first is nearer.
RENEW_EVERY_S = 60.0
#: Messages that trio-websocket holds for us; its default of one makes it deaf for pings.
_LIBRARY_QUEUE = 64
_READ_BYTES = 64 * 1024
_TOKEN = re.compile(r"[!-~]+")
#: What trio-websocket lets out of its reader when a server talks nonsense, before and after the handshake.
_BROKEN_PROTOCOL = (h11.ProtocolError, LocalProtocolError, RemoteProtocolError, UnicodeError)
_SCHEMES = {"http": False, "ws": False, "https": True, "wss": True}


@attrs.frozen(kw_only=True)
class ClientPolicy:
    """Bounds of one session; durations in seconds.

    Attributes:
        connect_s: Until the first connection must be there.
        patience_s: Without a connection, later on, until the session ends with ``ConnectionLost``.
        opening_s: One attempt: address, TLS, handshake and welcome.
        command_s: Until the answer to a command must be there, also without a connection.
        close_s: For saying goodbye.
        stable_s: A connection shorter than this does not reset the backoff.
        queue_limit: Events that wait for the reader of one run.
        max_message_bytes: Of one message of the server.
        random: From 0 (inclusive) to 1 (exclusive), for the jitter.
        open_stream: Opens the transport to (host, port, context or None) in another way, such as through a proxy.
    """

    connect_s: float = 30.0
    patience_s: float = 300.0
    opening_s: float = 10.0
    command_s: float = 30.0
    close_s: float = 2.0
    stable_s: float = 5.0
    backoff_base_s: float = 0.5
    backoff_cap_s: float = 30.0
    queue_limit: int = QUEUE_LIMIT
    max_message_bytes: int = 64 * 2**20
    random: Callable[[], float] = random.random
    open_stream: Callable[[str, int, ssl.SSLContext | None], Awaitable[trio.abc.Stream]] | None = None


_DEFAULT = ClientPolicy()


@attrs.frozen
class Address:
    """Where a server is.

    Attributes:
        host: Without brackets.
        authority: Host and port as the ``Host`` header wants them.
        path: Where the sockets are.
        query: What the URL asked for.
    """

    tls: bool
    host: str
    port: int
    authority: str
    path: str
    query: tuple[tuple[str, str], ...] = attrs.field(repr=False)  # perhaps with a token

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read ``http(s)://`` or ``ws(s)://``; no path means ``/ws``, a fragment is dropped.

        Raises:
            ValueError: It is no such URL. The text does not repeat it, since it may hold a token.
        """
        try:
            parts = urlsplit(url)
            tls, port = _SCHEMES.get(parts.scheme), parts.port
        except ValueError:
            tls = None
        if tls is None or not parts.hostname:
            raise ValueError("expected http(s)://host or ws(s)://host, with a number where there is a port")
        path = "/ws" if parts.path in ("", "/") else parts.path
        authority = parts.netloc.rpartition("@")[2]
        port = port or (443 if tls else 80)
        return cls(tls, parts.hostname, port, authority, path, tuple(parse_qsl(parts.query, keep_blank_values=True)))

    def target(self, position: Position | None, thread_id: str | None) -> str:
        """Return the request target that goes on from *position* in *thread_id*."""
        query = list(self.query)
        if position is not None:
            query.append(("resume", f"{position.epoch}:{position.seq}"))
        if thread_id is not None:
            query.append(("thread_id", thread_id))
        return f"{self.path}?{urlencode(query)}" if query else self.path


@attrs.define(eq=False)
class _Tap:
    """What trio-websocket uses of a stream; remembers when it heard something, and that it heard its end.

    trio-websocket itself waits for ever when a connection ends in the middle of its handshake.
    """

    inner: trio.abc.Stream
    heard_at: float = attrs.field(factory=trio.current_time)
    ended: trio.Event = attrs.field(factory=trio.Event)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        with self._noticing():
            piece = await self.inner.receive_some(max_bytes)
        self.heard_at = trio.current_time()
        if not piece:
            self.ended.set()
        return piece

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._noticing():
            await self.inner.send_all(data)

    async def aclose(self) -> None:  # pragma: no cover - the library may close; so far it fails before it does
        await self.inner.aclose()

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.ended.set()
            raise


@attrs.define(eq=False)
class Session:
    """A user's talk with the server, over as many sockets as it takes. Made by ``connect``."""

    _address: Address
    _token: Token = attrs.field(repr=False)
    _policy: ClientPolicy
    _ssl: ssl.SSLContext | None
    _on_state: Callable[[StateChange], None]
    _book: Conversation = attrs.field(init=False)
    _state: SessionState = SessionState.CONNECTING
    _attempt: int = 0
    _leaving: bool = False
    _give_up_at: float = 0.0
    _opened_at: float | None = None
    _renewed_at: float = float("-inf")
    _opened: trio.Event = attrs.field(factory=trio.Event)
    _over: trio.Event = attrs.field(factory=trio.Event)
    _slots: trio.Semaphore = attrs.field(factory=lambda: trio.Semaphore(MAX_PENDING))
    _unsent: deque[Pending] | None = None  # None without a connection
    _more: trio.Event = attrs.field(factory=trio.Event)
    _early: EventQueue | None = None

    def __attrs_post_init__(self) -> None:
        self._book = Conversation(self._policy.queue_limit, self.stop)

    def begin(
        self, position: Position | None, thread_id: str | None, job_positions: Mapping[str, Position] | None = None
    ) -> None:
        """Go on from what an earlier session knew; before ``run``.

        Raises:
            InvalidArgument: *job_positions* holds what is no id of a job, or no position.
        """
        self._book.position = position
        self._book.thread_id = thread_id
        self._book.jobs.restore(job_positions or {})
        if position is not None or job_positions:
            # What is replayed may come before the program has had a chance to ask for it.
            self._early = self._book.events(QUEUE_LIMIT, "reset")

    # What there is to know.

    @property
    def state(self) -> SessionState:
        return self._state

    @property
    def position(self) -> Position | None:
        """Position of the last event heard; give it to a later ``connect`` to go on from there."""
        return self._book.position

    @property
    def job_positions(self) -> dict[str, Position]:
        """The jobs that this session reads, and where it stands in each; give them to a later ``connect``."""
        return self._book.jobs.positions

    @property
    def thread_id(self) -> str | None:
        """The thread to which a message without one goes; None: the next one opens a thread."""
        return self._book.thread_id

    @property
    def welcome(self) -> ConnectionEstablished:
        """What the server said first on the newest connection: user, limits, agents, active runs."""
        assert self._book.welcome is not None
        return self._book.welcome

    @property
    def pending_inputs(self) -> tuple[PendingInput, ...]:
        """What agents of this user have asked and nobody has answered yet, oldest first, in whatever thread.

        Known from the welcome of each connection and kept up to date by events; at most ``pending.MAX_INPUTS``.
        """
        return tuple(self._book.inputs)

    @property
    def error(self) -> SessionError | None:
        """What the session ended with, or None."""
        return self._book.error

    def events(self, *, job_id: str | None = None, limit: int = QUEUE_LIMIT, policy: Policy = "reset") -> EventQueue:
        """Return every numbered event of this user and of the jobs that are joined from now on, for ``async for``.

        A job's event has its ``job_id`` and a ``seq`` of that job's own. A ``stream_reset`` says that some are
        missing, of the user where it has no ``job_id``: reload what you show (``history``). A ``job_disconnected``
        says that a job is read no more: it was closed, no permission is left, or it was left here; with the fields
        ``code`` and ``error`` it could not be joined again.

        The first queue of a session that was given positions begins right behind them. A queue is let go when
        nobody holds it.

        Args:
            job_id: Only what is said in that job. Such a queue ends behind ``job_disconnected``, and may be asked
                for before ``connect_job``, so that nothing is said in between.

        Raises:
            InvalidArgument: *job_id* is no id.
        """
        if job_id is not None:
            return self._book.events(limit, policy, read_job_id(job_id), self._early)
        queue, self._early = self._early, None
        if queue is None:
            return self._book.events(limit, policy)
        queue.limit, queue.policy = limit, policy
        return queue

    # What there is to say. Each waits for its answer; every one may raise the errors of ``command``.

    async def start(
        self,
        text: str,
        *,
        agent: str | None = None,
        thread_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        on_busy: say.OnBusy = "enqueue",
        on_disconnect: say.OnDisconnect | None = None,
        timeout_s: float | None = None,
        attachments: Sequence[say.Attachment] = (),
        jsonl_logs: str | Sequence[Mapping[str, Any]] | None = None,
    ) -> Run:
        """Say something to an agent; return its run once the server has stored the text.

        *Cancellation:* the run may begin nevertheless; it is then seen in ``events`` only.
        """
        thread = thread_id or self._book.thread_id
        command = say.UserMessage(
            content=say.Text(text),
            agent=agent,
            thread_id=None if thread is None else Id(thread),
            context=None if context is None else JsonObject(dict(context)),
            on_busy=on_busy,
            on_disconnect=on_disconnect,
            timeout_s=None if timeout_s is None else Seconds(timeout_s),
            attachments=list(attachments),
            jsonl_logs=None if jsonl_logs is None else JsonlLogs(jsonl_logs),
        )
        pending, ack = await self._ask(command, Ack)
        if self._book.thread_id is None and thread_id is None:
            self._book.thread_id = ack.thread_id
        return self._book.follow(pending, ack)

    async def steer(self, thread_id: str, text: str) -> Run:
        """Hand a text to the agent that runs in a thread, or start one; return the run that has it."""
        return await self.start(text, thread_id=thread_id, on_busy="steer")

    async def stop(self, run_id: str, *, mode: say.StopMode = "now", reason: str | None = None) -> str:
        """Stop a run; when this returns, nothing of it is left. Returns its final status."""
        ack = (await self._ask(say.StopAgent(run_id=Id(run_id), mode=mode, reason=reason), Ack))[1]
        return ack.status or ""

    async def answer(self, input_id: str, value: Any) -> None:
        """Answer an ``input_required`` with what it asks for: one of its choices, a value of its schema, or a text.

        Raises:
            AlreadyAnswered: Somebody was first, or it has expired.
            UnknownInput: There is no such input.
            UnfitAnswer: It does not fit; ``fields`` names what, and the input still waits.
        """
        await self._ask(say.InputResponse(input_id=Id(input_id), status="resolved", value=value), Ack)

    async def decline(self, input_id: str) -> None:
        """Leave an ``input_required`` unanswered, for good; the agent is told so.

        Raises:
            AlreadyAnswered: Somebody was first, or it has expired.
            UnknownInput: There is no such input.
        """
        await self._ask(say.InputResponse(input_id=Id(input_id), status="cancelled"), Ack)

    async def history(self, thread_id: str, *, limit: int = 100, before: str | None = None) -> ThreadHistory:
        """Return a page of a thread, oldest message first; its ``next`` is the *before* of the page before it."""
        command = say.GetThreadHistory(thread_id=Id(thread_id), limit=Page200(limit), before=before)
        return (await self._ask(command, ThreadHistory))[1]

    async def threads(self, *, limit: int = 50, before: str | None = None) -> ThreadList:
        """Return a page of the user's threads, newest first."""
        return (await self._ask(say.ListThreads(limit=Page100(limit), before=before), ThreadList))[1]

    async def create_thread(
        self, title: str = "", *, thread_id: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> ThreadCreatedReply:
        """Create a thread, or return the one of that id as it is."""
        command = say.CreateThread(
            thread_id=None if thread_id is None else Id(thread_id),
            title=Title(title),
            metadata=None if metadata is None else JsonObject(dict(metadata)),
        )
        return (await self._ask(command, ThreadCreatedReply))[1]

    async def rename_thread(self, thread_id: str, title: str) -> ThreadRenamedReply:
        """Give a thread another title."""
        command = say.RenameThread(thread_id=Id(thread_id), title=Title(title))
        return (await self._ask(command, ThreadRenamedReply))[1]

    async def delete_thread(self, thread_id: str) -> ThreadDeletedReply:
        """Delete a thread; its runs are cancelled first."""
        return (await self._ask(say.DeleteThread(thread_id=Id(thread_id)), ThreadDeletedReply))[1]

    async def switch_thread(self, thread_id: str) -> None:
        """Make a thread the one to which messages without a thread go."""
        self._book.thread_id = (await self._ask(say.SwitchThread(thread_id=Id(thread_id)), ThreadSwitched))[1].thread_id

    async def connect_job(self, job_id: str, resume: Position | None = None) -> Position:
        """Read a job from now on, also over later connections; its events come by ``events``.

        Whoever reads it already goes on where it is; with *resume*, there.

        Args:
            resume: Where to go on instead: ``job_positions`` of an earlier session. What cannot be continued
                gives a ``stream_reset`` with that ``job_id``.

        Returns:
            The end of what was said in it until now.

        Raises:
            InvalidArgument: *job_id* or *resume* is none.
            CommandFailed: ``NOT_FOUND``: it was not granted to this user. ``QUOTA_EXCEEDED``: too many jobs.

        *Cancellation:* the server may send its events nevertheless until the connection ends; nobody gets them.
        """
        place = None if resume is None else write_position(resume, "resume")
        command = say.ConnectJob(job_id=read_job_id(job_id), resume=place)
        return (await self._ask(command, JobConnected))[1].stream

    async def disconnect_job(self, job_id: str) -> None:
        """Read a job no more: behind this, nothing of it comes.

        Raises:
            InvalidArgument: *job_id* is none.
            CommandFailed: ``NOT_FOUND``: it was not read.

        *Cancellation:* it may be left nevertheless.
        """
        command = say.DisconnectJob(job_id=read_job_id(job_id))
        joined = job_id in self._book.jobs
        try:
            await self._ask(command, JobDisconnected)
        except CommandFailed as refused:
            if refused.code != "NOT_FOUND" or not joined:
                raise  # else it ended meanwhile, which is as good

    async def publish_job(self, job_id: str, name: str, value: Any) -> int:
        """Say something into a job, once, whatever happens to the connection; whoever reads it gets an ``agent_event``.

        It need not be read here; it needs the permission ``job:publish``, and the job.

        Returns:
            The ``seq`` of the event; by then it is stored.

        Raises:
            InvalidArgument: *job_id* is none.
            TypeError: *value* is no JSON value.
            CommandFailed: ``NOT_FOUND``, ``FORBIDDEN``, or what else the server has against it.

        *Cancellation:* it may be said nevertheless.
        """
        command = say.PublishJob(job_id=read_job_id(job_id), name=name, value=value)
        return (await self._ask(command, Ack))[1].seq or 0

    async def resume(self, position: Position, *, job_id: str | None = None) -> None:
        """Go back to an earlier position, with *job_id* of a job: everything after it comes again, its ``seq`` tells.

        Raises:
            InvalidArgument: *job_id* is no id.
            CommandFailed: ``NOT_FOUND``: that job is not read.
        """
        job = None if job_id is None else read_job_id(job_id)
        await self.command(say.Resume(epoch=position.epoch, seq=Seq(position.seq), job_id=job))

    async def command(self, command: say.Command) -> Heard:
        """Say any command of the protocol and return its answer.

        Raises:
            CommandFailed: The server answered with an error, or not in time (``TIMEOUT``).
            Rejected: The server said no for good; so for everything after it.
            ConnectionLost: There was no connection for too long.

        *Cancellation:* the command may take effect nevertheless.
        """
        return (await self._send(command))[1]

    async def _ask(self, command: say.Command, expected: type[R]) -> tuple[Pending, R]:
        pending, heard = await self._send(command)
        if not isinstance(heard.message, expected):
            raise SessionError(f"{command.type}: the server gave an answer that this client does not know")
        return pending, heard.message

    async def _send(self, command: say.Command) -> tuple[Pending, Heard]:
        with trio.move_on_after(self._policy.command_s):
            async with self._slots:
                pending = self._book.ask(command)
                try:
                    if self._unsent is not None:
                        self._unsent.append(pending)
                        self._more.set()
                    await pending.done.wait()
                finally:
                    self._book.forget(pending)
                    if self._unsent is not None and pending in self._unsent:
                        self._unsent.remove(pending)
                if pending.error is not None:
                    raise pending.error
                assert pending.heard is not None
                return pending, pending.heard
        raise CommandFailed("TIMEOUT", f"no answer to {command.type} in {self._policy.command_s:g} s", retryable=True)

    # Staying connected.

    async def opened(self) -> None:
        """Wait for the first connection.

        Raises:
            Rejected: The server does not want us.
            ConnectionLost: There is no server.
        """
        await self._opened.wait()
        if self._book.error is not None:
            raise self._book.error

    async def leave(self) -> None:
        """Say goodbye and wait until the connection is closed, at most ``close_s`` seconds."""
        self._leaving = True
        if self._unsent is None:
            return
        with trio.move_on_after(self._policy.close_s, shield=True), contextlib.suppress(SessionError):
            await self.command(say.Disconnect())
            await self._over.wait()

    async def run(self) -> None:
        """Connect again and again until somebody says no, nobody answers, or the user leaves."""
        error: SessionError | None = None
        self._give_up_at = trio.current_time() + self._policy.connect_s
        try:
            await self._keep_connected()
        except SessionError as exc:
            error = exc
        finally:
            self._book.end(error)
            self._over.set()
            self._enter(SessionState.CLOSED, reason=str(error or ""), error=error)
        self._opened.set()

    async def _keep_connected(self) -> None:
        renewed = False
        while not self._leaving:
            self._enter(SessionState.CONNECTING)
            ended = await self._connect_once()
            again = ended.word == "TOKEN_EXPIRED" and callable(self._token) and not renewed
            if not self._leaving and not again:
                if (no := refusal(ended, renewable=callable(self._token))) is not None:
                    raise no
                await self._wait(ended)
            renewed = again  # it may have expired on its way: ask once more, at once

    async def _wait(self, ended: Ended) -> None:
        policy = self._policy
        least_s = max(ended.retry_after_s, self._book.reconnect_after_s)
        delay_s = least_s + backoff_delay(self._attempt, policy.random, policy.backoff_base_s, policy.backoff_cap_s)
        if trio.current_time() + delay_s > self._give_up_at:
            raise lost(ended, policy.connect_s if self._book.welcome is None else policy.patience_s)
        self._attempt += 1
        self._enter(SessionState.WAITING, reason=ended.reason, delay_s=delay_s)
        await trio.sleep(delay_s)

    def _enter(self, state: SessionState, **more: Any) -> None:
        assert state is self._state or state in TRANSITIONS[self._state]
        self._state = state
        self._on_state(StateChange(state=state, attempt=self._attempt, **more))

    async def _connect_once(self) -> Ended:
        """Carry one connection from its dial to its end; whatever ends it is returned."""
        token = await self._ask_token()
        if isinstance(token, Ended):
            return token
        ended = Ended(reason="the server has gone silent")  # only that cancels the nursery from within
        try:
            async with trio.open_nursery() as nursery:
                ended = await self._carry(token, nursery)
                nursery.cancel_scope.cancel()
        except* ConnectionRejected as group:
            ended = _rejection(_first(group))
        except* (OSError, trio.BrokenResourceError, *_BROKEN_PROTOCOL) as group:
            ended = Ended(reason=_reason(_first(group)))
        opened_at, self._opened_at = self._opened_at, None
        self._unsent = None
        if opened_at is not None:
            now = trio.current_time()
            self._give_up_at = now + self._policy.patience_s
            if now - opened_at >= self._policy.stable_s:
                self._attempt = 0
        return ended

    async def _ask_token(self) -> str | Ended:
        token: Any = self._token
        if callable(token):
            try:
                token = token()
                if inspect.isawaitable(token):
                    token = await token
            except Exception as exc:  # the program's own code: a network that is away must not end the session
                if self._book.welcome is None:
                    raise
                logger.warning("the token function failed", exc_info=exc)
                return Ended(reason=f"the token function failed: {exc!r}")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token.strip()):
            raise Rejected(None, "TOKEN_INVALID", "a token is text of visible ASCII characters")
        return token.strip()

    # One connection.

    async def _carry(self, token: str, nursery: trio.Nursery) -> Ended:
        tap: _Tap | None = None
        try:
            with trio.move_on_after(self._policy.opening_s) as opening:
                tap = alive = _Tap(await self._open_stream())
                resuming = self._book.position is not None
                opened = await self._upgrade(alive, token, nursery)
            if opening.cancelled_caught:
                return Ended(reason=f"the server did not answer within {self._policy.opening_s:g} s")
            if isinstance(opened, Ended):
                return opened
            socket, welcome = opened
            nursery.start_soon(_notice_silence, socket, alive, welcome, nursery)
            self._welcomed(socket, welcome, resuming, nursery)
            return await self._listen(socket, nursery)
        finally:
            if tap is not None:
                await trio.aclose_forcefully(tap.inner)

    async def _open_stream(self) -> trio.abc.Stream:
        address = self._address
        if address.tls and self._ssl is None:
            self._ssl = ssl.create_default_context()  # once: it takes 27 ms
        context = self._ssl if address.tls else None
        if self._policy.open_stream is not None:
            return await self._policy.open_stream(address.host, address.port, context)
        if context is None:
            return await trio.open_tcp_stream(address.host, address.port)
        stream = await trio.open_ssl_over_tcp_stream(
            address.host, address.port, ssl_context=context, https_compatible=True
        )
        try:
            await stream.do_handshake()  # here, where a certificate that is refused can be told from a lost connection
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    async def _upgrade(
        self, tap: _Tap, token: str, nursery: trio.Nursery
    ) -> tuple[WebSocketConnection, ConnectionEstablished] | Ended:
        opened: list[WebSocketConnection] = []
        async with trio.open_nursery() as watching:

            async def give_up_at_the_end() -> None:
                await tap.ended.wait()
                watching.cancel_scope.cancel()

            watching.start_soon(give_up_at_the_end)
            socket = await wrap_client_stream(
                nursery,
                cast("trio.SocketStream", tap),  # any stream will do
                self._address.authority,
                self._address.target(self._book.position, self._book.thread_id),
                subprotocols=[PROTOCOL],
                extra_headers=[(b"Authorization", b"Bearer " + token.encode())],
                message_queue_size=_LIBRARY_QUEUE,
                max_message_size=self._policy.max_message_bytes,
                receive_buffer_size=_READ_BYTES,
            )
            opened.append(socket)
            watching.cancel_scope.cancel()
        if not opened:
            return Ended(reason="the connection ended in its handshake")
        socket = opened[0]
        try:
            heard = _read(await socket.get_message())
        except ConnectionClosed as closed:
            return _closed(closed)
        if heard is None or not isinstance(heard.message, ConnectionEstablished):
            return Ended(reason=f"the server does not speak {PROTOCOL}")
        return socket, heard.message

    def _welcomed(
        self, socket: WebSocketConnection, welcome: ConnectionEstablished, resuming: bool, nursery: trio.Nursery
    ) -> None:
        self._opened_at = trio.current_time()
        self._unsent = deque(self._book.welcomed(welcome, resuming=resuming))
        nursery.start_soon(self._speak, socket, self._unsent)
        self._enter(SessionState.OPEN, welcome=welcome)
        self._opened.set()

    async def _speak(self, socket: WebSocketConnection, unsent: deque[Pending]) -> None:
        """Send commands. One task alone: a send that is cancelled halfway leaves a torn frame."""
        with contextlib.suppress(ConnectionClosed):  # the listener hears of it, too
            while True:
                while unsent:
                    await socket.send_message(unsent.popleft().text)
                self._more = trio.Event()
                await self._more.wait()

    async def _listen(self, socket: WebSocketConnection, nursery: trio.Nursery) -> Ended:
        while True:
            try:
                heard = _read(await socket.get_message())
            except ConnectionClosed as closed:
                return _closed(closed)
            if heard is not None:
                self._book.hear(heard)
                self._notice(heard, nursery)
                while self._book.put_off:
                    nursery.start_soon(self._come_back, *self._book.put_off.pop())

    def _notice(self, heard: Heard, nursery: trio.Nursery) -> None:
        if isinstance(heard.message, AuthExpiring) and callable(self._token):
            nursery.start_soon(self._renew, heard.message.expires_in_s)
        elif isinstance(heard.message, ConnectionWarning | Error) and heard.reply_to is None:
            logger.warning("the server says %s: %s", heard.message.code, heard.message.error)

    async def _come_back(self, job_id: str, refused: CommandFailed) -> None:
        """Ask once more, later, to read a job that the server had no time for, on this connection."""
        policy, jobs = self._policy, self._book.jobs
        least_s = (refused.details or {}).get("retry_after_s", 0.0)
        while (job := jobs.unseated(job_id)) is not None:
            await trio.sleep(least_s + backoff_delay(job.refusals, policy.random, policy.backoff_base_s))
            job.refusals += 1
            if self._unsent is not None and (pending := self._book.come_back_later(job_id)) is not None:
                self._unsent.append(pending)
                self._more.set()
                return

    async def _renew(self, left_s: float) -> None:
        """Give the server a new token; where that fails, the next connection brings it."""
        if trio.current_time() - self._renewed_at < RENEW_EVERY_S:
            # Tokens that live shorter than the server's warning are warned of at once: not round in a circle.
            await trio.sleep(left_s / 2)
        self._renewed_at = trio.current_time()
        token = await self._ask_token()
        if isinstance(token, str):
            with contextlib.suppress(SessionError):
                await self.command(say.RefreshAuth(token=token))


async def _notice_silence(
    socket: WebSocketConnection, tap: _Tap, welcome: ConnectionEstablished, nursery: trio.Nursery
) -> None:
    """End a connection on which nothing arrives: the server pings each interval, so silence is suspicious."""
    quiet_s = welcome.heartbeat_interval_s + welcome.pong_timeout_s

    async def ping() -> None:
        with contextlib.suppress(ConnectionClosed):
            await socket.ping()

    while True:
        await trio.sleep_until(tap.heard_at + quiet_s)
        pinged_at = trio.current_time()
        if tap.heard_at + quiet_s > pinged_at:
            continue
        nursery.start_soon(ping)  # beside, because what is cancelled halfway leaves a torn frame
        await trio.sleep(welcome.pong_timeout_s)
        if tap.heard_at < pinged_at:
            nursery.cancel_scope.cancel()


def _read(message: str | bytes) -> Heard | None:
    try:
        return read_server(message)
    except (ValueError, KeyError):
        logger.debug("a message that is not of %s was ignored", PROTOCOL)
        return None


def _closed(closed: ConnectionClosed) -> Ended:
    code, text = (1006, None) if closed.reason is None else (closed.reason.code, closed.reason.reason)
    return Ended(reason=text or f"closed with {code}", code=code)


def _rejection(rejected: ConnectionRejected) -> Ended:
    """Read an HTTP refusal: ``{"code", "error"}`` and ``Retry-After`` in seconds, both optional."""
    try:
        body = json.loads(rejected.body or b"")
    except ValueError:
        body = None
    fields: Mapping[str, Any] = body if isinstance(body, dict) else {}
    retry_after = next((value for name, value in rejected.headers if name.lower() == b"retry-after"), b"")
    return Ended(
        reason=str(fields.get("error", f"refused with HTTP {rejected.status_code}")),
        status=rejected.status_code,
        word=str(fields.get("code", f"HTTP_{rejected.status_code}")),
        retry_after_s=float(retry_after) if retry_after.isdigit() else 0.0,
    )


def _reason(exc: BaseException) -> str:
    if isinstance(exc.__cause__, ssl.SSLCertVerificationError):  # Trio says only that the stream is broken
        return f"the server's certificate was refused: {exc.__cause__.verify_message}"
    return str(exc) or "the connection was lost"


def _first(group: BaseExceptionGroup[E]) -> E:
    exc: BaseException = group
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return cast("E", exc)


@asynccontextmanager
async def connect(
    url: str,
    token: Token,
    *,
    position: Position | None = None,
    job_positions: Mapping[str, Position] | None = None,
    thread_id: str | None = None,
    on_state: Callable[[StateChange], None] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    policy: ClientPolicy = _DEFAULT,
) -> AsyncIterator[Session]:
    """Open a session with a server; it is open when the block begins.

    Leaving the block tells the server that no return is meant: runs end without grace, except those
    that were started with ``on_disconnect="continue"``.

    Args:
        url: ``https://host`` or ``wss://host/path``; no path means ``/ws``.
        token: A JWT, or a function (async or not) that is asked for each connection and before the
            token expires. What it raises before the first connection is raised here.
        position: Where to go on: ``session.position`` of an earlier session.
        job_positions: The jobs to join, and where to go on in each: ``session.job_positions`` of an earlier session.
        thread_id: Where messages without a thread go.
        on_state: Is told each change of state, from the session's own task; what it raises ends the session.
        ssl_context: Whom to believe about certificates; by default the system's authorities, or those of the file
            that ``SSL_CERT_FILE`` names.

    Raises:
        ValueError: *url* is no such URL.
        InvalidArgument: *job_positions* holds what is no id of a job, or no position.
        Rejected: The server does not want us.
        ConnectionLost: There was no server for ``policy.connect_s`` seconds.
    """
    session = Session(Address.parse(url), token, policy, ssl_context, on_state or (lambda change: None))
    session.begin(position, thread_id, job_positions)
    raised: Exception | None = None
    failure: BaseException | None = None
    # Shielded, so that a program that is cancelled can still say goodbye.
    background = trio.CancelScope(shield=True)

    async def run() -> None:
        with background:
            await session.run()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            try:
                await session.opened()
                yield session
            except Exception as exc:  # of the block; raised outside, so that nobody has to look into a group
                raised = exc
            finally:
                await session.leave()
                background.cancel()
    except BaseExceptionGroup as group:
        failure = group
        while isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
            failure = failure.exceptions[0]
    if raised is not None and failure is not None:
        raise BaseExceptionGroup("the block and the session failed", [raised, failure])
    if (error := raised or failure) is not None:
        raise error
