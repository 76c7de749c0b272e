"""Every command, about one's own things, others', names that many share, and things that never were."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from .agents import AGENTS, OPEN_TO_ALL, own_job
from .clients import User

Saying = tuple[str, dict[str, Any]]
ON_BUSY = ("enqueue", "reject", "interrupt", "rollback", "steer")


def _one(user: User, victim: User, kind: str, which: int) -> str:
    """Return an id: shared, one's own, or another's."""
    own: deque[str] = getattr(user, kind)
    foreign: deque[str] = getattr(victim, kind)
    first = kind[0]
    return (
        f"{first}-a",
        f"{first}-b",
        f"{first}.{user.mark}.{which % 3}",
        own[which % len(own)] if own else f"{first}-a",
        foreign[which % len(foreign)] if foreign else f"{first}-b",
        (victim.active or foreign)[-1] if kind == "runs" and foreign else f"{first}-c",
        f"{first}.{victim.mark}.{which % 3}",
        f"{first}-never-{which}",
    )[which % 8]


def chat(user: User, victim: User, a: int, b: int) -> Saying:
    """Return a message; some are the same for everybody, under the same command id."""
    agent = (*sorted(AGENTS), "slow", "slow", "asks")[b % (len(AGENTS) + 3)]
    if a % 4 == 3:
        return "chat", {"content": "secret hello", "agent": "echo", "id": f"same-{b % 3}", "thread_id": "t-a"}
    fields: dict[str, Any] = {
        "content": f"secret {user.mark} {a}",
        "agent": agent,
        "on_busy": ON_BUSY[a % 5],
        "context": {"whose": user.mark},
        "attachments": [{"name": f"{user.mark}.txt", "media_type": "text/plain", "url": f"https://{user.mark}/"}],
    }
    if a % 3:
        fields["thread_id"] = "t-a" if a % 3 == 1 else _one(user, victim, "threads", a * 5 + b)
    return "chat", fields


def start(user: User, victim: User, a: int, b: int) -> Saying:
    """Return a start under a run id of one's choice."""
    agent = ("echo", "stubborn", "slow", "historian", "stubborn")[a % 5]
    fields = {"user_request": f"secret {user.mark}", "agent": agent, "run_id": _one(user, victim, "runs", b)}
    return "start_agent", fields | ({"thread_id": _one(user, victim, "threads", a)} if a % 2 else {})


def stop(user: User, victim: User, a: int, b: int) -> Saying:
    mode = ("now", "after_step")[a % 2]
    run_id = victim.active[-1] if a % 3 and victim.active else _one(user, victim, "runs", b)
    return "stop_agent", {"run_id": run_id, "mode": mode, "reason": user.mark}


def create(user: User, victim: User, a: int, b: int) -> Saying:
    fields = {"title": f"title {user.mark}", "metadata": {"of": user.mark}, "id": f"create-{a % 4}"}
    return "create_thread", fields | {"thread_id": _one(user, victim, "threads", b)}


def list_threads(user: User, victim: User, a: int, b: int) -> Saying:
    before = (*victim.cursors, None, *user.cursors)[0]
    return "list_threads", {"limit": 1 + a % 3, "before": before}


def history(user: User, victim: User, a: int, b: int) -> Saying:
    before = None if a % 2 else str(victim.seq)
    return "get_thread_history", {"thread_id": _one(user, victim, "threads", b), "before": before}


def rename(user: User, victim: User, a: int, b: int) -> Saying:
    return "rename_thread", {"thread_id": _one(user, victim, "threads", b), "title": f"renamed by {user.mark}"}


def delete(user: User, victim: User, a: int, b: int) -> Saying:
    return "delete_thread", {"thread_id": _one(user, victim, "threads", b)}


def switch(user: User, victim: User, a: int, b: int) -> Saying:
    return "switch_thread", {"thread_id": _one(user, victim, "threads", b)}


def typing(user: User, victim: User, a: int, b: int) -> Saying:
    name = ("user_typing", "typing_stopped")[a % 2]
    return name, {"thread_id": _one(user, victim, "threads", b)}


def answer(user: User, victim: User, a: int, b: int) -> Saying:
    whose = (user, user, victim)[a % 3]
    input_id = whose.inputs[-1 - b % len(whose.inputs)] if whose.inputs else f"input-{b % 3}"
    status = ("resolved", "resolved", "resolved", "cancelled")[b % 4]
    return "input_response", {"input_id": input_id, "status": status, "value": f"secret {user.mark}"}


def job_of(user: User, victim: User, which: int) -> str:
    """Return a job: one that some were granted, one that nobody was, one's own, or another's."""
    return ("job-0", "job-1", "job-2", OPEN_TO_ALL, own_job(user.mark), own_job(victim.mark))[which % 6]


def connect_job(user: User, victim: User, a: int, b: int) -> Saying:
    job_id = job_of(user, victim, b)
    places = (None, f"{user.epoch}:0", f"{victim.epoch}:{victim.seq}", *(u.places.get(job_id) for u in (user, victim)))
    resume = places[a % 5]
    if resume is not None and a % 2:
        resume = resume.partition(":")[0] + ":0"
    return "connect_job", {"job_id": job_id, "resume": resume}


def publish(user: User, victim: User, a: int, b: int) -> Saying:
    return "publish_job", {"job_id": job_of(user, victim, b), "name": "note", "value": {"of": user.mark}}


def leave_job(user: User, victim: User, a: int, b: int) -> Saying:
    return "disconnect_job", {"job_id": job_of(user, victim, b)}


def resume(user: User, victim: User, a: int, b: int) -> Saying:
    epoch, seq = ((user.epoch, 0), (victim.epoch, 0), (victim.epoch, victim.seq), (user.epoch, victim.seq))[a % 4]
    return "resume", {"epoch": epoch, "seq": seq, **({"job_id": job_of(user, victim, b)} if b % 3 == 0 else {})}


def refresh(user: User, victim: User, a: int, b: int) -> Saying:
    return "refresh_auth", {"token": (f"{victim.mark}.no.token", victim.bearer, user.bearer)[a % 3]}


def kick(user: User, victim: User, a: int, b: int) -> Saying:
    return "kick", ({"user_id": victim.id} if a % 2 else {"jti": victim.mark})


def odd(user: User, victim: User, a: int, b: int) -> Saying:
    """Return something that no command is."""
    return (
        ("stop_agent", {"run_id": f"{user.mark} has blanks"}),
        ("chat", {"content": 5}),
        (f"what-{user.mark}", {}),
        ("chat", {"content": f"secret {user.mark}", "agent": f"agent-{user.mark}"}),
        ("get_thread_history", {"thread_id": "t-a", "before": user.mark}),
        ("connect", {}),
    )[a % 6]


SAYINGS: tuple[Callable[[User, User, int, int], Saying], ...] = (
    chat, start, stop, create, list_threads, history, rename, delete, switch, typing,
    answer, connect_job, publish, leave_job, resume, refresh, kick, odd,
    chat, start, stop, stop, stop, history, history, typing, answer, answer, connect_job, connect_job, publish,
)  # fmt: skip
