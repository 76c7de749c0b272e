"""Everything that a running server waits for, and what ends each wait when nothing comes.

A bound is in seconds, read from the constant or setting that enforces it; None says that the wait may last as
long as what it belongs to, and *ends* names what that is.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from netra_ws.access import freshness
from netra_ws.agents import asyncio_thread, inputs, watchdog
from netra_ws.agents.llm import bounds
from netra_ws.agents.mcp import bounds as mcp
from netra_ws.contexts import dispatch, jobs, registry
from netra_ws.history import recorder
from netra_ws.wire import crowd, door, pump, stream

from .sources import Sources


@attrs.frozen(kw_only=True)
class Wait:
    """Somebody who waits.

    Attributes:
        what: What is waited for.
        where: ``file function`` for each place in the source that this row stands for.
        within_s: Seconds after which it is over at the latest, or None.
        ends: What ends it.
        shown: Metrics and statistics that show it.
    """

    what: str
    where: tuple[str, ...]
    within_s: Callable[[Sources], float] | None
    ends: str
    shown: str


WAITS: tuple[Wait, ...] = (
    Wait(
        what="the next client",
        where=("wire/door.py Door._accept",),
        within_s=None,
        ends=f"the end of the server; without descriptors tried again every {door.BACKOFF_S:g} s",
        shown='connections_total{outcome="accept_error"}',
    ),
    Wait(
        what="a client that is turned away for want of descriptors",
        where=("wire/door.py Door._turn_away",),
        within_s=lambda s: 3 * door.TURNED_AWAY_S,
        ends="its leaving, or the bound",
        shown='connections_total{outcome="accept_error"}',
    ),
    Wait(
        what="a proxy's word, a TLS handshake, a head, a body, an answer taken, a context, a stream of the store",
        where=(
            "wire/arrival.py Arrival._read_preface",
            "wire/arrival.py Arrival._start_tls",
            "wire/head.py Request._next",
            "wire/head.py Request.answer",
            "contexts/registry.py Registry.seat",
            "contexts/registry.py Registry.borrow",
            "history/streams.py Streams.open_key",
        ),
        within_s=lambda s: s.door.handshake_s,
        ends=f"timing.handshake_s; {crowd.HURRIED_S:g} s where handshakes are crowded",
        shown='connections_total{outcome="handshake_timeout"}',
    ),
    Wait(
        what="the moment at which public keys are read again",
        where=("keyring/ring.py Keyring.run",),
        within_s=lambda s: freshness.MOST_REFRESH_S,
        ends="that moment; a token with an unknown kid, not more often than "
        f"every {freshness.EARLY_S:g} s; the end of the server",
        shown="jwks_refreshes_total",
    ),
    Wait(
        what="public keys that are being fetched, for a token that names one that is not here",
        where=("keyring/ring.py Keyring.news",),
        within_s=lambda s: freshness.NEWS_S,
        ends="the end of that one fetch, the bound, or half of what is left of timing.handshake_s; then it is judged",
        shown="auth_total, jwks_refreshes_total",
    ),
    Wait(
        what="the answer of an identity service, or of the file system with its keys",
        where=("keyring/fetch.py fetch", "keyring/fetch.py _read", "keyring/sources.py FileReader.__call__"),
        within_s=lambda s: freshness.READ_S,
        ends="the last byte, or the bound",
        shown='jwks_refreshes_total{outcome="failed"}',
    ),
    Wait(
        what="a worker thread that reads a set of public keys",
        where=("keyring/sources.py from_address.read",),
        within_s=None,
        ends="the reading of a set of bounded size",
        shown="jwks_refreshes_total",
    ),
    Wait(
        what="a program's own rule, asked who it is",
        where=(),
        within_s=lambda s: s.door.handshake_s / 2,
        ends="its answer, or the bound: 503 UNAVAILABLE",
        shown='connections_total{outcome="UNAVAILABLE"}, auth_total{outcome="failed"}',
    ),
    Wait(
        what="the client's end after its HTTP answer",
        where=("wire/tls.py end_and_drain", "wire/tls.py TlsStream.send_eof"),
        within_s=lambda s: door.GOODBYE_S,
        ends="its closing, or the bound",
        shown="handshakes",
    ),
    Wait(
        what="the library's half of the upgrade; an older client's thread",
        where=("wire/pump.py Socket._accept",),
        within_s=lambda s: s.wiring.handshake_s,
        ends="timing.handshake_s",
        shown="closes_total",
    ),
    Wait(
        what="an older client's word that it has read its handshake; events wait behind it",
        where=("wire/pump.py Socket._end_quiet",),
        within_s=lambda s: pump.QUIET_S,
        ends="handshake_acknowledged, any other command, or the bound",
        shown="",
    ),
    Wait(
        what="the next message of a client",
        where=(
            "wire/pump.py Socket._pump",
            "wire/pump.py _echo",
            "wire/stream.py Duplex.receive_some",
            "wire/tls.py TlsStream.receive_some",
            "wire/tls.py TlsStream._hear",
        ),
        within_s=lambda s: s.heartbeat.interval_s + s.heartbeat.timeout_s,
        ends="anything it says, its pong above all; else the heartbeat closes with 4001 (an echo client: its leaving)",
        shown='closes_total{code="4001"}, ping_rtt_seconds',
    ),
    Wait(
        what="room in the inbox or the lanes, a token for a ping or a pong, room for a pong",
        where=(
            "contexts/connection.py Connection.wait_for_room",
            "contexts/connection.py Connection.put",
            "wire/stream.py Pace.wait",
            "wire/stream.py Duplex._next_portion",
            "wire/stream.py Duplex.send_all",
        ),
        within_s=lambda s: s.heartbeat.interval_s + s.heartbeat.timeout_s,
        ends="the dispatcher, the client's reading, or the clock; a client that is not heard is closed",
        shown='closes_total{code="4001"}',
    ),
    Wait(
        what="a worker thread that parses a large message",
        where=("wire/pump.py Socket._read",),
        within_s=None,
        ends="the parsing of at most limits.max_message_bytes",
        shown='bounded_size{what="parsers"}',
    ),
    Wait(
        what="a full socket to take more",
        where=(
            "wire/stream.py Duplex._wait_writable",
            "wire/stream.py Duplex._send_some",
            "wire/tls.py TlsStream._flush",
        ),
        within_s=lambda s: stream.STALL_S,
        ends=f"the client's reading; less than {stream.SLICE} bytes in that time, and it is closed with 4000",
        shown='closes_total{code="4000"}',
    ),
    Wait(
        what="the store, for a reader that fell off the ring",
        where=("wire/stream.py Duplex._refill",),
        within_s=lambda s: stream.STORE_RETRY_S,
        ends="the next try; the connection's end",
        shown="store_errors_total",
    ),
    Wait(
        what="the closing handshake",
        where=("wire/pump.py Socket._close", "wire/pump.py Socket._serve"),
        within_s=lambda s: pump.CLOSE_S,
        ends="the client's Close, or the bound",
        shown="closes_total",
    ),
    Wait(
        what="the commands that a client said before it left",
        where=("wire/pump.py Socket._converse",),
        within_s=lambda s: pump.CLOSE_S,
        ends="their end, or the bound",
        shown="commands_total",
    ),
    Wait(
        what="the last bytes to leave, and the client's end behind them",
        where=("wire/stream.py Duplex._drain",),
        within_s=lambda s: stream.LINGER_S,
        ends="its closing, or the bound",
        shown="closes_total",
    ),
    Wait(
        what="the next command of a connection",
        where=("contexts/connection.py Connection.next_command",),
        within_s=None,
        ends="the connection's end, which closes the inbox",
        shown="commands_total",
    ),
    Wait(
        what="the answer to an earlier sending of the same command; the proof of a stop",
        where=(
            "contexts/dispatch.py Turn._join",
            "contexts/stopping.py proof_of_end",
            "contexts/starting.py wait_for_leaving",
            "contexts/commands.py _delete_thread.delete",
        ),
        within_s=lambda s: 2 * s.registry.policy.run.finalise_s,
        ends="the run's end, sealed after timing.finalise_s, and then as long for its commit",
        shown="cancel_seconds, runs_stuck",
    ),
    Wait(
        what="the command that is being carried out for somebody who is kicked; a revocation to be kept",
        where=(
            "contexts/connection.py Connection.turn_over",
            "contexts/kicking.py Kick.proof",
            "contexts/registry.py Registry.kick.proof",
        ),
        within_s=lambda s: s.registry.policy.run.finalise_s + registry.KICK_S,
        ends="the command's end, the commit; or the bound, and the answer says which of it is open",
        shown='commands_total{type="kick"}',
    ),
    Wait(
        what="a job's row that somebody else reads from the store, or the place to open the job",
        where=("contexts/jobs.py Jobs.pin",),
        within_s=lambda s: dispatch.READ_S,
        ends="the read; for a command the bound, and the client is told UNAVAILABLE; for a run its deadlines",
        shown='commands_total{type="connect_job"}',
    ),
    Wait(
        what="the commit of a job's closing, and of what was published",
        where=("contexts/jobs.py Jobs.close",),
        within_s=lambda s: jobs.CLOSE_S,
        ends="the commit; or the bound, and the answer says that it is open",
        shown="commit_seconds",
    ),
    Wait(
        what="its turn to change the user's threads",
        where=(
            "contexts/starting.py ensure_thread",
            "contexts/starting.py start",
            "contexts/commands.py _rename_thread",
            "contexts/commands.py _delete_thread",
        ),
        within_s=None,
        ends="the store's answer to the command before",
        shown="commit_seconds",
    ),
    Wait(
        what="somebody to come back, the last run to end",
        where=("contexts/context.py UserContext._until_left",),
        within_s=lambda s: s.registry.policy.resume_window_s + s.registry.policy.run_timeout_s,
        ends="timing.resume_window_s after the last connection; with runs that continue, their clocks",
        shown="users",
    ),
    Wait(
        what="an agent to say something or to end",
        where=("agents/execution.py _keep",),
        within_s=lambda s: s.registry.policy.run_timeout_s + s.registry.policy.run.finalise_s,
        ends="timing.run_timeout_s and timing.idle_timeout_s, then timing.finalise_s until it is sealed",
        shown='run_seconds, runs_total{cancelled_by="timeout"}, runs_stuck',
    ),
    Wait(
        what="a person's answer to an agent's question",
        where=("agents/inputs.py ask",),
        within_s=lambda s: inputs.MAX_EXPIRES_IN,
        ends="the answer; its expiry, which the agent chooses (a day unless it says otherwise); the end of the run",
        shown='runs, commands_total{type="input_response"}',
    ),
    Wait(
        what="a model's server that is busy, before it is asked again",
        where=("agents/llm/agent.py LlmAgent._step",),
        within_s=lambda s: bounds.MAX_RETRY_AFTER_S + bounds.MAX_BACKOFF_S,
        ends=f"the clock, at most {bounds.ATTEMPTS - 1} times in a row; the end of the run",
        shown="runs, run_seconds",
    ),
    Wait(
        what="a sub-run to end",
        where=("agents/delegation.py delegate",),
        within_s=lambda s: s.registry.policy.run_timeout_s + s.registry.policy.run.finalise_s,
        ends="its end or its sealing; it has clocks of its own, and its parent's",
        shown='runs_total{agent="(other)"}',
    ),
    Wait(
        what="a place at a tool that has a number of them for each user",
        where=("agents/tools.py _place",),
        within_s=lambda s: s.registry.policy.run_timeout_s,
        ends="another call of the user that ends; timing.run_timeout_s",
        shown="run_seconds",
    ),
    Wait(
        what="a worker thread, and the code in it",
        where=("agents/thread.py RunThread.__call__",),
        within_s=None,
        ends="the code; the run is sealed without it, so nobody but its user's share waits",
        shown="run_threads, run_threads_waiting, runs_stuck",
    ),
    Wait(
        what="the asyncio side of a bridged run, and what that asks for",
        where=(
            "agents/bridge/orders.py Orders.news",
            "agents/bridge/crossing.py Crossing._answer_to",
            "agents/bridge/asyncio_run.py AsyncioRun.say",
            "agents/bridge/blocks.py Block._until_left",
            "agents/bridge/blocks.py Block.leave",
            "agents/bridge/belongings.py _close",
        ),
        within_s=lambda s: s.registry.policy.run_timeout_s + s.registry.policy.run.finalise_s,
        ends="the agent, or the clocks of its run, which cancel it; the run is sealed without what ignores that",
        shown="runs, runs_stuck",
    ),
    Wait(
        what="the thread of bridged agents to end",
        where=("agents/asyncio_thread.py AsyncioThread.close",),
        within_s=lambda s: asyncio_thread.JOIN_S,
        ends="the thread; when it is blocked, the bound, and the log says so",
        shown="",
    ),
    Wait(
        what="a child process to start, and the processes of a run to be gone",
        where=(
            "agents/processes.py Processes.start",
            "agents/processes.py Processes.end",
            "agents/processes.py end_lost",
            "agents/execution.py _gone",
        ),
        within_s=lambda s: s.registry.policy.run.finalise_s,
        ends="SIGKILL to their group, or timing.finalise_s; at a start, for those of a killed server, 5 s",
        shown="runs",
    ),
    Wait(
        what="an MCP server to tell its tools, to answer a call, to say anything",
        where=(
            "agents/mcp/opening.py _load",
            "agents/mcp/opening.py _opened",
            "agents/mcp/opening.py _close_when_cancelled",
            "agents/mcp/http.py Bounded.handle_async_request",
            "agents/mcp/http.py HttpWire.receive",
            "agents/mcp/link.py Link._hear",
            "agents/mcp/link.py Link._converse",
            "agents/mcp/pipe.py Pipe._line",
            "agents/mcp/pipe.py Pipe.hear_complaints",
            "agents/mcp/progress.py Progress.note",
        ),
        within_s=None,
        ends="start_timeout_s until it has told its tools, timeout_s of a call, the end of the agent's block",
        shown="runs",
    ),
    Wait(
        what="an MCP server to read a message",
        where=(
            "agents/mcp/http.py HttpWire.send",
            "agents/mcp/link.py Link._say",
            "agents/mcp/pipe.py Pipe.send",
        ),
        within_s=lambda s: mcp.STALL_S,
        ends="the bound; then it is broken",
        shown="runs",
    ),
    Wait(
        what="an MCP server to part",
        where=(
            "agents/mcp/http.py Body.aclose",
            "agents/mcp/http.py Bounded.aclose",
            "agents/mcp/pipe.py Pipe.close",
            "agents/mcp/pipe.py Pipe._ended",
        ),
        within_s=lambda s: 2 * min(mcp.PARTING_S, s.registry.policy.run.finalise_s / 4),
        ends="its going; the bound, and SIGKILL",
        shown="runs",
    ),
    Wait(
        what="a commit",
        where=(
            "history/recorder.py Recorder._commit_group",
            "history/recorder.py Recorder.settle",
            "history/stores/sql.py SqlStore._written",
            "contexts/quota.py Quota._remove_threads",
        ),
        within_s=None,
        ends=f"the store's return, tried again every {recorder.RETRY_S[1]:g} s at the latest; clients are told after "
        f"{recorder.AWAY_S:g} s, and answers given up after timing.finalise_s",
        shown="commit_seconds, store_errors_total",
    ),
    Wait(
        what="what a command, a reader or an agent reads in the store",
        where=("history/stores/sql.py SqlStore._read",),
        within_s=lambda s: dispatch.READ_S,
        ends="the engine's own timeouts; a command answers UNAVAILABLE after the bound and leaves the read alone",
        shown='commands_total{code="UNAVAILABLE"}',
    ),
    Wait(
        what="something to commit, to write, to ping, to warn of, to measure, to forget",
        where=(
            "history/recorder.py Recorder.run",
            "wire/flusher.py Flusher.run",
            "wire/heartbeat.py Heartbeat.run",
            "contexts/registry.py Registry.watch_outages",
            "contexts/quota.py Quota.run",
            "contexts/jobs.py Jobs.sweep",
            "history/recorder.py Recorder._retain",
        ),
        within_s=None,
        ends="the end of the server",
        shown="commit_seconds, bytes_total, ping_rtt_seconds",
    ),
    Wait(
        what="the next beat of the event loop, and of the asyncio loop",
        where=("agents/watchdog.py Watchdog.run", "agents/bridge/loop.py Loop._live"),
        within_s=lambda s: watchdog.BEAT_S,
        ends=f"the clock; what is late is named after {watchdog.STALL_S:g} s",
        shown="loop_stall_seconds",
    ),
    Wait(
        what="the store to open and to close, with no thread at work in it",
        where=(
            "history/stores/sql.py SqlStore.open",
            "history/stores/sql.py SqlStore.close",
            "history/stores/sql.py SqlStore._alone",
        ),
        within_s=lambda s: s.longest_end_s,
        ends="the disk; the alarm of the command line ends the process otherwise",
        shown="",
    ),
    Wait(
        what="the end of runs and of connections in a drain",
        where=(
            "contexts/registry.py Registry._settled",
            "contexts/registry.py Registry._answered",
            "contexts/registry.py Registry._stood_up_all",
        ),
        within_s=lambda s: s.longest_end_s,
        ends="timing.drain_s, then timing.finalise_s; for answers and sockets three times the closing handshake",
        shown="runs, connections",
    ),
    Wait(
        what="the last events of a drain to be committed",
        where=("history/recorder.py Recorder.flush",),
        within_s=lambda s: s.longest_end_s,
        ends="the commit, or the bound; the next start closes what is open",
        shown="commit_seconds",
    ),
    Wait(
        what="the contexts to be gone when the server ends",
        where=("contexts/registry.py Registry.close_all",),
        within_s=lambda s: s.registry.policy.run.finalise_s + 1.0,
        ends="the bound, with a line in the log",
        shown="users",
    ),
    Wait(
        what="the program that embeds the server",
        where=(
            "contexts/reading.py Events._read",
            "contexts/embedding.py RunHandle.result",
            "contexts/registry.py Registry.hold",
            "contexts/registry.py Registry.run",
            "server.py open_server",
            "server.py serve",
            "server.py _run_shielded",
        ),
        within_s=None,
        ends="the program: it may cancel each of them, and a cancelled server drains",
        shown="users",
    ),
)
