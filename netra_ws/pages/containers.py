"""Every queue, map, cache and limiter of a running server: its bound, and what happens at the bound.

Bounds are read from the constants and settings that enforce them. A test walks the source, finds whatever can
hold things, and fails for what stands neither here nor among its explained exceptions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import attrs

from netra_ws.access import freshness, tickets
from netra_ws.access.keys import MAX_KEYS
from netra_ws.agents import asyncio_thread, calling, delegation, inputs, processes, watchdog
from netra_ws.agents.llm import bounds, chunks
from netra_ws.agents.mcp import bounds as mcp
from netra_ws.contexts import connection, dispatch, jobs, lane, memory, quota, registry
from netra_ws.history import cursor, recorder, stream
from netra_ws.protocol.events import Event
from netra_ws.wire import crowd, head, heartbeat, pump, refusals
from netra_ws.wire import stream as duplex

from .sources import Sources

Per = Literal["process", "user", "thread", "run", "stream", "connection", "request"]


@attrs.frozen(kw_only=True)
class Container:
    """Something that holds things.

    Attributes:
        what: Its name, also as a label.
        where: ``file Class.field`` for each place in the source that this row stands for.
        per: What there is one of it for.
        bound: How much it holds at most, in *unit*.
        policy: What happens beyond it.
        shown: Metrics and statistics that show the policy at work.
        size: How much it holds now; None where counting would cost more than it tells.
    """

    what: str
    where: tuple[str, ...]
    per: Per
    bound: Callable[[Sources], float]
    policy: str
    shown: str
    unit: str = "entries"
    size: Callable[[Sources], int] | None = None


CONTAINERS: tuple[Container, ...] = (
    # The door.
    Container(
        what="handshakes",
        where=("wire/crowd.py Crowd.places", "wire/crowd.py Crowd._silent"),
        per="process",
        bound=lambda s: s.door.crowd.places.total_tokens,
        policy=f"above {crowd.CROWDED:.0%} the longest silent one has {crowd.HURRIED_S:g} s in all; "
        "when none is free the system's queue holds newcomers",
        shown='handshakes, connections_total{outcome="handshake_hurried"}',
        size=lambda s: s.door.crowd.under_way,
    ),
    Container(
        what="spare_descriptors",
        where=("wire/crowd.py Spare._descriptors",),
        per="process",
        bound=lambda s: crowd.SPARES,
        unit="descriptors for each address that is listened on",
        policy="given up one at a time to tell a newcomer that there is no room",
        shown='connections_total{outcome="accept_error"}',
    ),
    Container(
        what="request_head",
        where=(),
        per="request",
        bound=lambda s: head.MAX_HEAD_BYTES,
        unit="bytes",
        policy=f"413, as beyond {head.MAX_HEADERS} fields",
        shown='connections_total{outcome="HEAD_TOO_LARGE"}',
    ),
    Container(
        what="request_body",
        where=("wire/head.py Request.body",),
        per="request",
        bound=lambda s: head.MAX_BODY_BYTES,
        unit="bytes",
        policy="413",
        shown='connections_total{outcome="BODY_TOO_LARGE"}',
    ),
    Container(
        what="addresses",
        where=("access/limits.py AddressTable._addresses",),
        per="process",
        bound=lambda s: s.admission.addresses.max_tracked,
        policy="the least recently seen is forgotten",
        shown='bounded_size{what="addresses"}',
        size=lambda s: len(s.admission.addresses),
    ),
    Container(
        what="refusal_lines",
        where=("wire/refusals.py Refusals._written",),
        per="process",
        bound=lambda s: refusals.LINES_PER_MINUTE,
        unit="lines of the log in a minute",
        policy="left out; the next line says how many",
        shown="connections_total",
    ),
    Container(
        what="origin_strikes",
        where=(
            "access/strikes.py Strikes._struck",
            "access/strikes.py Strikes._blocked",
            "access/strikes.py Strikes._origins",
        ),
        per="process",
        bound=lambda s: s.admission.strikes.max_tracked,
        unit="pairs of origin and address; of one address no more than origins.strikes",
        policy="what has expired goes first, then the oldest that is not blocked, then the block that ends first",
        shown='origins_blocked, origins_refused_total{reason="blocked"}',
        size=lambda s: len(s.admission.strikes),
    ),
    Container(
        what="tickets",
        where=("access/tickets.py Tickets._tickets",),
        per="process",
        bound=lambda s: s.admission.tickets.max_total,
        unit=f"tickets, each of at most {tickets.TICKET_S:g} s",
        policy="what has expired goes first; then 503 OVERLOADED with Retry-After",
        shown='tickets_issued_total, rate_limited_total{budget="tickets"}',
        size=lambda s: len(s.admission.tickets),
    ),
    Container(
        what="tickets_of_user",
        where=("access/tickets.py Tickets._of_user",),
        per="user",
        bound=lambda s: s.admission.tickets.max_of_user,
        policy="the oldest is forgotten",
        shown='auth_total{outcome="ticket_invalid"}',
    ),
    Container(
        what="revocations",
        where=("access/revocations.py Revocations._users", "access/revocations.py Revocations._tokens"),
        per="process",
        bound=lambda s: 2 * s.registry.revocations.most,
        policy="a kick that would need one more ends what is there and answers QUOTA_EXCEEDED",
        shown='bounded_size{what="revocations"}',
        size=lambda s: len(s.registry.revocations),
    ),
    Container(
        what="public_keys",
        where=("access/keys.py PublicKeys._shelves",),
        per="process",
        bound=lambda s: 2 * MAX_KEYS,
        unit="keys of a file and of an address",
        policy="a set with more is not taken; the keys of before stay",
        shown='jwks_refreshes_total{outcome="failed"}',
        size=lambda s: len((s.admission.verifier and s.admission.verifier.public) or ()),
    ),
    Container(
        what="requests_for_new_keys",
        where=(),
        per="process",
        bound=lambda s: freshness.MAX_AWAITING,
        unit="requests and refresh_auth that wait for a fetch",
        policy="judged at once with the keys that are here",
        shown='auth_total{outcome="invalid"}',
    ),
    Container(
        what="key_set_thread",
        where=("keyring/sources.py from_address CapacityLimiter",),
        per="process",
        bound=lambda s: 1,
        unit="worker threads",
        policy="nobody else waits for it",
        shown="jwks_refreshes_total",
    ),
    Container(
        what="key_file_thread",
        where=("keyring/sources.py FileReader._threads",),
        per="process",
        bound=lambda s: 1,
        unit="worker threads",
        policy="the next look waits, and is given up",
        shown='jwks_refreshes_total{outcome="failed"}',
    ),
    # Users, connections, commands.
    Container(
        what="seats",
        where=(),
        per="process",
        bound=lambda s: s.registry.policy.max_connections,
        policy="503 OVERLOADED with Retry-After",
        shown='connections, connections_total{outcome="OVERLOADED"}',
        size=lambda s: s.registry.seats,
    ),
    Container(
        what="users",
        where=("contexts/registry.py Registry._contexts", "contexts/registry.py Registry._closing"),
        per="process",
        bound=lambda s: registry.USERS_PER_SEAT * s.registry.policy.max_connections,
        policy="new users get 503 OVERLOADED with Retry-After; those of an embedding program are let in",
        shown='users, connections_total{outcome="OVERLOADED"}',
        size=lambda s: sum(1 for _ in s.registry),
    ),
    Container(
        what="connections_of_user",
        where=("contexts/context.py UserContext.connections", "history/stream.py Stream._readers"),
        per="user",
        bound=lambda s: s.registry.policy.max_connections_per_user,
        policy="429 TOO_MANY_CONNECTIONS with Retry-After",
        shown='connections_total{outcome="TOO_MANY_CONNECTIONS"}',
        size=lambda s: max((len(context.connections) for context in s.registry), default=0),
    ),
    Container(
        what="inbox",
        where=("contexts/connection.py Connection open_memory_channel",),
        per="connection",
        bound=lambda s: connection.INBOX,
        unit=f"commands; one beyond {connection.INBOX_BYTES:,} bytes",
        policy="nothing more is read from the client",
        shown="commands_total",
    ),
    Container(
        what="library_queue",
        where=(),
        per="connection",
        bound=lambda s: pump.QUEUE,
        unit="messages, each of at most limits.max_message_bytes",
        policy="nothing more is read from the client",
        shown="bytes_total",
    ),
    Container(
        what="control_lane",
        where=("contexts/connection.py Connection._control",),
        per="connection",
        bound=lambda s: connection.CONTROL_MAX,
        unit="bytes",
        policy=f"above {connection.CONTROL_HIGH:,} nothing more is read from the client; at the bound close 4000",
        shown='closes_total{code="4000"}',
    ),
    Container(
        what="held_answers",
        where=("contexts/lane.py Lane.held",),
        per="connection",
        bound=lambda s: connection.HELD_HIGH + connection.INBOX,
        policy="nothing more is read from the client",
        shown="commands_total",
    ),
    Container(
        what="jobs_of_connection",
        where=("contexts/connection.py Connection.job_lanes", "contexts/connection.py Connection._rung"),
        per="connection",
        bound=lambda s: s.registry.policy.max_jobs_per_connection,
        policy="QUOTA_EXCEEDED",
        shown='commands_total{code="QUOTA_EXCEEDED"}',
    ),
    Container(
        what="open_jobs",
        where=(),
        per="user",
        bound=lambda s: jobs.MAX_OPEN,
        policy="QUOTA_EXCEEDED for who would open another one; retention closes those that are silent",
        shown='commands_total{code="QUOTA_EXCEEDED"}',
    ),
    Container(
        what="idle_jobs",
        where=("contexts/jobs.py Jobs._idle",),
        per="process",
        bound=lambda s: jobs.MAX_IDLE,
        unit=f"jobs, whose events in memory are at most {jobs.MAX_IDLE_BYTES:,} bytes together",
        policy="the least recently used one that is committed is forgotten; the store has it",
        shown='jobs, bounded_size{what="idle_jobs"}',
        size=lambda s: s.registry.jobs.idle,
    ),
    Container(
        what="own_frames",
        where=("wire/stream.py Duplex._own",),
        per="connection",
        bound=lambda s: duplex.OWN_HIGH,
        unit="bytes of pongs, beyond the last one",
        policy="nothing more is read from the client",
        shown="bytes_total",
    ),
    Container(
        what="waiting_answers",
        where=(),
        per="user",
        bound=lambda s: dispatch.MAX_WAITING,
        policy="error BUSY",
        shown='commands_total{code="BUSY"}',
        size=lambda s: max((context.waiting for context in s.registry), default=0),
    ),
    Container(
        what="parsers",
        where=("wire/pump.py Wiring.parsers",),
        per="process",
        bound=lambda s: s.wiring.parsers.total_tokens,
        unit="worker threads for large messages",
        policy="connections with a large message wait",
        shown='bounded_size{what="parsers"}',
        size=lambda s: s.wiring.parsers.borrowed_tokens,
    ),
    Container(
        what="remembered_users",
        where=("contexts/memory.py Memories._users",),
        per="process",
        bound=lambda s: memory.MAX_USERS,
        policy="the least recently seen is forgotten; its budgets are full again",
        shown='bounded_size{what="remembered_users"}',
        size=lambda s: len(s.registry.memories),
    ),
    Container(
        what="remembered_answers",
        where=("contexts/memory.py Shelf._kept",),
        per="process",
        bound=lambda s: memory.MAX_ALL_ANSWERS,
        policy=f"the oldest is forgotten, each after {memory.KEEP_S:g} s",
        shown='bounded_size{what="remembered_answers"}',
        size=lambda s: len(s.registry.memories.shelf),
    ),
    Container(
        what="ids_used_lately",
        where=("contexts/memory.py Lately._ids",),
        per="user",
        bound=lambda s: memory.MAX_LATELY,
        unit="ids of removed threads, and as many of runs",
        policy="the oldest is forgotten; the store knows it by then",
        shown="",
    ),
    Container(
        what="answers_of_user",
        where=("contexts/memory.py UserMemory._answers",),
        per="user",
        bound=lambda s: memory.MAX_ANSWERS,
        policy="the oldest is forgotten",
        shown='bounded_size{what="remembered_answers"}',
    ),
    # Threads and runs.
    Container(
        what="threads_of_user",
        where=("contexts/threads.py ThreadStates._threads",),
        per="user",
        bound=lambda s: s.registry.policy.max_threads_per_user,
        policy="idle ones are forgotten, the ledger has them; a new thread beyond it: QUOTA_EXCEEDED",
        shown='commands_total{code="QUOTA_EXCEEDED"}',
        size=lambda s: max((len(context.threads) for context in s.registry), default=0),
    ),
    Container(
        what="runs_of_user",
        where=("contexts/context.py UserContext.runs",),
        per="user",
        bound=lambda s: s.registry.policy.max_runs_per_user,
        unit="running ones; queued ones have the bound of their thread",
        policy="QUOTA_EXCEEDED",
        shown='runs, commands_total{code="QUOTA_EXCEEDED"}',
    ),
    Container(
        what="thread_queue",
        where=("contexts/threads.py ThreadState.queue", "agents/run.py Run._steered"),
        per="thread",
        bound=lambda s: s.registry.policy.max_queued_per_thread,
        unit="messages, and as many steered texts that are not read",
        policy="BUSY",
        shown='commands_total{code="BUSY"}',
    ),
    Container(
        what="run_threads",
        where=("policies.py context_policy CapacityLimiter",),
        per="process",
        bound=lambda s: s.registry.policy.run.threads.total_tokens,
        unit="worker threads of all runs",
        policy="run.thread waits, under the clocks of its run",
        shown="run_threads, run_threads_waiting",
        size=lambda s: s.registry.policy.run.threads.borrowed_tokens,
    ),
    Container(
        what="threads_of_user_runs",
        where=("contexts/memory.py UserMemory.threads",),
        per="user",
        bound=lambda s: memory.USER_THREADS,
        unit="worker threads of the runs of one user",
        policy="run.thread waits, under the clocks of its run, and holds nothing of the common pool",
        shown="run_threads_waiting",
        size=lambda s: max((context.memory.threads.borrowed_tokens for context in s.registry), default=0),
    ),
    Container(
        what="processes_of_run",
        where=("agents/processes.py Processes._started", "agents/processes.py Processes._parts"),
        per="run",
        bound=lambda s: processes.MAX_PROCESSES,
        policy="AgentError QUOTA_EXCEEDED in the agent",
        shown='runs_total{status="error"}',
    ),
    Container(
        what="mcp_message",
        where=("agents/mcp/pipe.py Pipe._heard",),
        per="run",
        bound=lambda s: mcp.MAX_MESSAGE_BYTES,
        unit="bytes of a message of each of its MCP servers",
        policy="AgentError MCP_BROKEN in the calls of that server",
        shown="runs",
    ),
    Container(
        what="mcp_complaints",
        where=("agents/mcp/pipe.py Pipe._complaints",),
        per="run",
        bound=lambda s: mcp.KEPT_COMPLAINTS,
        unit="lines of each of its MCP servers",
        policy=f"the oldest is dropped; {mcp.MAX_COMPLAINTS} are logged, the others are read slowly and dropped",
        shown="runs",
    ),
    Container(
        what="mcp_open_calls",
        where=("agents/mcp/questions.py Questions._calls",),
        per="run",
        bound=lambda s: calling.MAX_OPEN_CALLS,
        policy="AgentError QUOTA_EXCEEDED in the agent",
        shown='runs_total{status="error"}',
    ),
    Container(
        what="open_tool_calls",
        where=("agents/run.py Run.open_calls", "agents/bridge/crossing.py Crossing.at_end"),
        per="run",
        bound=lambda s: calling.MAX_OPEN_CALLS,
        policy="AgentError QUOTA_EXCEEDED in the agent",
        shown='runs_total{status="error"}',
    ),
    Container(
        what="open_sub_runs",
        where=("agents/run.py Run.children",),
        per="run",
        bound=lambda s: delegation.MAX_OPEN,
        policy="AgentError QUOTA_EXCEEDED in the agent",
        shown='runs_total{status="error"}',
    ),
    Container(
        what="open_questions",
        where=("agents/inputs.py Inputs._open",),
        per="user",
        bound=lambda s: inputs.MAX_OPEN,
        policy="AgentError QUOTA_EXCEEDED in the agent",
        shown='runs_total{status="error"}',
    ),
    Container(
        what="closed_questions",
        where=("agents/inputs.py Inputs._closed",),
        per="user",
        bound=lambda s: inputs.MAX_CLOSED,
        policy="the oldest is forgotten: an answer to it is NOT_FOUND",
        shown='commands_total{type="input_response"}',
    ),
    Container(
        what="usage",
        where=("agents/run.py Run.used",),
        per="run",
        bound=lambda s: s.registry.policy.run.max_event_bytes,
        unit="bytes",
        policy="EventTooLarge in the agent",
        shown='runs_total{status="error"}',
    ),
    Container(
        what="bridged_orders",
        where=("agents/bridge/orders.py Orders._waiting", "agents/bridge/crossing.py Crossing._taken"),
        per="run",
        bound=lambda s: 2 * asyncio_thread.MAX_ORDERS,
        policy="the bridged agent waits where it speaks",
        shown="events_total",
    ),
    Container(
        what="text_being_said",
        where=(
            "agents/speech.py Speech._pieces",
            "agents/speech.py Speech._thought",
            "agents/bridge/message.py Message._pieces",
        ),
        per="run",
        bound=lambda s: s.registry.policy.run.max_response_bytes,
        unit="bytes of a message, and of a thought",
        policy="the text goes on in a new message",
        shown="events_total",
    ),
    Container(
        what="answer_of_a_model",
        where=(
            "agents/llm/chunks.py Answer._text",
            "agents/llm/chunks.py Answer._slots",
            "agents/llm/chunks.py _Slot._arguments",
        ),
        per="run",
        bound=lambda s: chunks.MAX_CHARS,
        unit="characters",
        policy=f"the run fails with LLM_BROKEN, as beyond {chunks.MAX_CALLS} tool calls",
        shown='runs_total{status="error"}',
    ),
    Container(
        what="bytes_of_a_model",
        where=(
            "agents/llm/sse.py EventDecoder._line",
            "agents/llm/sse.py EventDecoder._data",
            "agents/llm/listening.py ChunkStream._ready",
            "agents/llm/listening.py Source.whole",
        ),
        per="run",
        bound=lambda s: bounds.MAX_WHOLE_BYTES,
        unit="bytes that are not read yet",
        policy=f"the run fails with LLM_BROKEN, as beyond {bounds.MAX_ANSWER_BYTES} bytes of one answer",
        shown='runs_total{status="error"}',
    ),
    Container(
        what="users_to_measure",
        where=("contexts/quota.py Quota._due",),
        per="process",
        bound=lambda s: quota.MAX_DUE,
        policy="measured after the next sixteenth of the quota that is written",
        shown="quota_threads_removed_total",
    ),
    # History.
    Container(
        what="streams",
        where=(
            "history/streams.py Streams._streams",
            "history/streams.py Streams._unpinned",
            "history/streams.py Streams._opening",
        ),
        per="process",
        bound=lambda s: (
            s.streams.max_idle
            + jobs.MAX_IDLE
            + s.registry.policy.max_connections * (registry.USERS_PER_SEAT + s.registry.policy.max_jobs_per_connection)
        ),
        unit="streams: of every user with something alive, of every job that is read, and idle ones",
        policy="the least recently used idle ones are forgotten, also by bytes; the store has them",
        shown="streams",
        size=lambda s: len(s.streams),
    ),
    Container(
        what="ring",
        where=("history/stream.py Stream._entries", "history/stream.py Stream._replaced"),
        per="stream",
        bound=lambda s: s.streams.ring_events + stream.BACKLOG_ENTRIES + 256,
        unit="events; and history.ring_bytes with what is not committed",
        policy="the oldest visible ones are dropped, late readers go on from the store",
        shown="replays_total",
        size=lambda s: max((each.statistics().entries for each in s.streams), default=0),
    ),
    Container(
        what="uncommitted",
        where=("history/stream.py Stream._uncommitted",),
        per="stream",
        bound=lambda s: stream.BACKLOG_ENTRIES,
        unit="events, beyond those that close runs",
        policy="agents wait for the store",
        shown="commit_seconds, store_errors_total",
        size=lambda s: max((each.last - each.visible for each in s.streams), default=0),
    ),
    Container(
        what="open_texts",
        where=("history/stream.py Stream._texts",),
        per="stream",
        bound=lambda s: 2 * s.registry.policy.max_runs_per_user,
        unit="messages and thoughts of running runs, besides those of their sub-runs",
        policy="gone with what the run says next, and with its end",
        shown="runs",
    ),
    Container(
        what="step",
        where=("history/stream.py Step.writes",),
        per="request",
        bound=lambda s: recorder.GROUP_WRITES,
        unit="rows; a step is what one command or event writes",
        policy="one transaction is not cut",
        shown="commit_seconds",
    ),
    Container(
        what="recorder",
        where=("history/recorder.py Recorder._steps",),
        per="process",
        bound=lambda s: recorder.BACKLOG_BYTES,
        unit="bytes not committed, beyond those that close runs",
        policy="agents wait for the store; clients hear connection_warning",
        shown="commit_seconds, store_errors_total",
        size=lambda s: s.recorder.statistics().waiting_bytes,
    ),
    Container(
        what="lag",
        where=(),
        per="connection",
        bound=lambda s: lane.LAG_BYTES,
        unit="bytes that the log grew while a reader was behind without a break; they cost only its position",
        policy="close 4000; the client goes on from its position",
        shown='closes_total{code="4000"}',
    ),
    Container(
        what="read_ahead",
        where=("history/cursor.py Cursor._ahead", "history/cursor.py Cursor._fulls"),
        per="connection",
        bound=lambda s: cursor.CHUNK_ROWS,
        unit=f"rows of the store, one beyond {cursor.CHUNK_BYTES:,} bytes; and one text per running run",
        policy="the next ones are read when these are taken",
        shown="replays_total",
    ),
    Container(
        what="store_threads",
        where=(
            "history/stores/sql.py SqlStore._writer",
            "history/stores/sql.py SqlStore._readers",
            "history/stores/sql.py __init__ CapacityLimiter",
        ),
        per="process",
        bound=lambda s: getattr(s.store, "worker_threads", 0),
        unit="worker threads: one writes, the others read",
        policy="whoever asks waits",
        shown="commit_seconds",
    ),
    # Writing, looking after, counting.
    Container(
        what="dirty",
        where=("wire/flusher.py Flusher._dirty",),
        per="process",
        bound=lambda s: s.registry.policy.max_connections,
        unit="connections, each at most once",
        policy="the next pass goes on where this one stopped",
        shown="bytes_total",
        size=lambda s: len(s.wiring.flusher),
    ),
    Container(
        what="heartbeats",
        where=("wire/heartbeat.py Heartbeat._moments",),
        per="process",
        bound=lambda s: 2 * s.registry.policy.max_connections + heartbeat.ENDED,
        policy="ended ones are taken out when they are half of it",
        shown='bounded_size{what="heartbeats"}',
        size=lambda s: len(s.heartbeat),
    ),
    Container(
        what="stalls",
        where=("agents/watchdog.py Watchdog.last",),
        per="process",
        bound=lambda s: watchdog.KEEP,
        policy="the oldest is forgotten",
        shown="loop_stall_seconds",
        size=lambda s: len(s.watchdog.last),
    ),
    Container(
        what="counters",
        where=(
            "access/admission.py Admission._auth",
            "access/admission.py Admission._origins_refused",
            "access/keys.py PublicKeys._refreshes",
            "access/limits.py AddressTable.refused",
            "contexts/counts.py RunCounts.ended",
            "contexts/counts.py RunCounts.seconds",
            "contexts/registry.py Registry.commands",
            "history/stream.py StreamCounts.events",
            "wire/door.py Door.outcomes",
            "wire/pump.py WireCounts.closes",
            "wire/pump.py WireCounts.replays",
            "wire/pump.py WireCounts.slowed",
        ),
        per="process",
        bound=lambda s: 40 * len(Event.__subclasses__()) * max(1, len(s.registry.policy.agents)),
        unit="labels: words of the protocol and names of agents, never a client's own; "
        f"{refusals.MAX_OUTCOMES} of refusals",
        policy="what is unknown is counted as one",
        shown="commands_total, events_total, runs_total, closes_total, connections_total, auth_total",
        size=lambda s: len(s.registry.commands) + len(s.registry.runs.ended) + len(s.door.outcomes),
    ),
)
