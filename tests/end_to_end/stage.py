"""The server's side of a page's sockets, played by a test: what agents ask, and how answers are refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import attrs
from playwright.sync_api import Page, WebSocketRoute

Frame = dict[str, Any]
#: Says how an ``input_response`` is refused: the fields of an ``error`` frame; None takes it.
Judge = Callable[[Frame], Frame | None]

RUN, THREAD = "r1", "t1"


@attrs.define(eq=False)
class Stage:
    """One user's stream and thread; every page on it is served from here.

    Attributes:
        log: Every event so far, for replays.
        trimmed: Whether the log cannot be replayed any more.
        forgotten: Types of events that a replay does not bring.
        late: Whether a replay comes only behind the history.
        pending: Inputs that wait, by id.
        said: Every ``input_response`` that came.
        judge: See ``Judge``.
    """

    log: list[Frame] = attrs.field(factory=list)
    trimmed: bool = False
    forgotten: tuple[str, ...] = ()
    late: bool = False
    _due: list[Callable[[], None]] = attrs.field(factory=list)
    pending: dict[str, Frame] = attrs.field(factory=dict)
    active: dict[str, Frame] = attrs.field(factory=dict)
    said: list[Frame] = attrs.field(factory=list)
    judge: Judge = lambda command: None
    _sockets: list[WebSocketRoute] = attrs.field(factory=list)

    def attach(self, page: Page) -> None:
        """Answer the sockets that *page* opens from now on."""
        page.route_web_socket("**/ws*", lambda socket: self._welcome(socket))

    def event(self, type_: str, **fields: Any) -> Frame:
        """Add an event to the stream; every page hears it."""
        names = {"run_id": RUN, "thread_id": THREAD, "agent_name": "planner"}
        return self._add({"type": type_, **names, **self._stamp(), **fields})

    def announce(self, name: str, value: Any) -> None:
        """Add an event of no run and no thread, as a program says one to a user."""
        self._add({"type": "agent_event", "name": name, "value": value, **self._stamp()})

    def say(self, frame: Frame) -> None:
        """Send what is not in the stream."""
        for socket in self._sockets:
            socket.send(json.dumps(frame))

    def _stamp(self) -> Frame:
        return {
            "seq": len(self.log) + 1,
            "event_id": f"e{len(self.log)}",
            "timestamp": time.time(),
            "user_id": "ada",
        }

    def _add(self, event: Frame) -> Frame:
        self.log.append(event)
        self._note(event)
        self.say(event)
        return event

    def begin(self, text: str = "Plan the delivery", **fields: Any) -> None:
        """Have the user say something, and the agent start."""
        self.event("user_message", message_id="m1", content=text, disposition="started", **fields)
        self.event("agent_started", message_id="m1", trigger="message", **fields)

    def sub_run(self, run_id: str, agent: str, parent: str = RUN, **fields: Any) -> Frame:
        """Start a sub-run; return the names that its events carry."""
        names = {"run_id": run_id, "agent_name": agent, "parent_run_id": parent}
        self.event("agent_started", message_id="m1", trigger="delegate", **names, **fields)
        return names

    def ask(self, input_id: str, prompt: str, **fields: Any) -> None:
        self.event("input_required", input_id=input_id, prompt=prompt, **fields)

    def end(self, status: str = "success", response: Any = "", **fields: Any) -> None:
        """End a run."""
        outcome = {"status": status, "success": status == "success", "final_response": response}
        self.event("agent_completed", **outcome, duration_ms=1500, events=4, **fields)

    def _note(self, event: Frame) -> None:
        match event["type"]:
            case "agent_started" if "parent_run_id" not in event:
                names = ("run_id", "thread_id", "agent_name")
                self.active[event["run_id"]] = {
                    **{name: event[name] for name in names},
                    "state": "running",
                    "started_seq": event["seq"] - 1,
                }
            case "agent_completed":
                self.active.pop(event["run_id"], None)
                self.pending = {i: e for i, e in self.pending.items() if e["run_id"] != event["run_id"]}
            case "input_required":
                self.pending[event["input_id"]] = event
            case "input_received":
                self.pending.pop(event["input_id"], None)

    def _welcome(self, socket: WebSocketRoute) -> None:
        socket.on_message(lambda text: self._answer(socket, json.loads(text)))
        socket.on_close(lambda code, reason: self._sockets.remove(socket))
        self._sockets.append(socket)
        welcome = {
            "type": "connection_established",
            "connection_id": "c",
            "user_id": "ada",
            "protocol": "netra.v1",
            "server_time": time.time(),
            "heartbeat_interval_s": 25,
            "pong_timeout_s": 8,
            "limits": {"max_message_bytes": 1048576},
            "stream": {"epoch": "e", "seq": len(self.log)},
            "resumed": False,
            "active_runs": list(self.active.values()),
            "pending_inputs": list(self.pending.values()),
            "agents": ["planner"],
        }
        socket.send(json.dumps(welcome))

    def _answer(self, socket: WebSocketRoute, command: Frame) -> None:
        def reply(type_: str = "ack", **fields: Any) -> None:
            socket.send(json.dumps({"type": type_, "reply_to": command["id"], **fields}))

        match command["type"]:
            case "list_threads":
                times = {"created_at": 1.0, "updated_at": 1.0}
                thread = {"thread_id": THREAD, "title": "Delivery", "metadata": {}, **times}
                reply("thread_list", threads=[thread], next=None)
            case "get_thread_history":
                self._tell_history(reply, command["thread_id"])
                while self._due:
                    self._due.pop(0)()
            case "resume" if self.late:
                self._due.append(lambda: self._replay(socket, reply, command["seq"]))
            case "resume":
                self._replay(socket, reply, command["seq"])
            case "input_response":
                self.said.append(command)
                refusal = self.judge(command)
                if refusal is not None:
                    reply("error", **{"error": "no", "retryable": False} | refusal)
                    return
                reply()
                self.settle(command["input_id"], command["status"], command.get("value"))
            case _:
                reply()

    def settle(self, input_id: str, status: str, value: Any = None, by: str = "user") -> None:
        """Close an input, for whatever reason."""
        asked = self.pending[input_id]
        whose = {name: asked[name] for name in ("run_id", "thread_id", "agent_name", "parent_run_id") if name in asked}
        self.event("input_received", input_id=input_id, status=status, value=value, by=by, **whose)

    def _tell_history(self, reply: Callable[..., None], thread_id: str) -> None:
        users = [e for e in self.log if e["type"] == "user_message" and e["thread_id"] == thread_id]
        messages = [
            {"id": e["message_id"], "role": "user", "content": e["content"], "created_at": 1.0, "run_id": e["run_id"]}
            for e in users
        ]
        position = {"epoch": "e", "seq": len(self.log)}
        reply("thread_history", thread_id=thread_id, messages=messages, partial=[], stream=position, next=None)

    def _replay(self, socket: WebSocketRoute, reply: Callable[..., None], seq: int) -> None:
        reply()
        end = len(self.log)
        if self.trimmed:
            socket.send(json.dumps({"type": "stream_reset", "epoch": "e", "seq": end, "reason": "trimmed"}))
            return
        for event in self.log[seq:]:
            if event["type"] not in self.forgotten:
                socket.send(json.dumps(event))
        done = {"from_seq": seq, "to_seq": end, "count": end - seq, "complete": True, "reason": None}
        socket.send(json.dumps({"type": "replay_completed", "epoch": "e", **done}))
