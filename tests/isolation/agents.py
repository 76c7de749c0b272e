"""Agents that keep things where programs keep them: in variables of the context, in globals, in the history."""

from __future__ import annotations

import contextlib
import contextvars
from collections import defaultdict, deque

import trio

from netra_ws import AgentError, Run, tool
from netra_ws.agents.toolbox import Toolbox

from .marks import NOBODY

#: Set by clients' tasks to ``NOBODY``, by agents to their user's mark; an agent must never find it set.
WHOSE: contextvars.ContextVar[str] = contextvars.ContextVar("WHOSE", default="")
#: A job that nobody was granted: who comes first has it, until it is closed.
OPEN_TO_ALL = "job-3"
#: What a careful program does with a global: everything under (user, thread).
BOOK: defaultdict[tuple[str, str], deque[str]] = defaultdict(lambda: deque(maxlen=5))


def own_job(mark: str) -> str:
    """Return the id of the job into which only one user speaks."""
    return f"own.{mark}"


async def echo(run: Run) -> str:
    """Tell what was asked in every way there is."""
    await run.think(f"thinking of {run.text}")
    await run.think(f"more of {run.text}", delta=True)
    async with run.tool("look", {"query": run.text}, context=dict(run.context)) as call:
        await call.progress(0.5, f"half of {run.text}")
        call.results = [run.text, [each.name for each in run.attachments]]
    await run.emit("note", {"text": run.text, "who": run.user_id, "may": sorted(run.identity.permissions)})
    await run.say(run.text)
    return run.text


async def variables(run: Run) -> str:
    """Tell what stands in a variable of the context before anything was put there; then leave something."""
    found = [WHOSE.get()]
    WHOSE.set(run.text)

    async def child() -> None:
        await trio.sleep(0.5)
        found.append(WHOSE.get())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)
    await run.emit("found", found)
    return NOBODY if found[0] else run.text


async def book(run: Run) -> str:
    """Remember in a global what each conversation has said."""
    page = BOOK[run.user_id, run.thread_id]
    page.append(run.text)
    await trio.sleep(0.1)
    await run.say(" | ".join(page))
    return page[-1]


async def historian(run: Run) -> str:
    """Tell what this conversation and a search over all conversations of the user have."""
    for row in await run.thread.history(20):
        await run.say(f"{row.content}\n")
    for row in await run.ledger.search(run.user_id, "secret", 20):
        await run.emit("hit", {"text": row.content, "thread": row.thread_id})
    return "that is all"


async def slow(run: Run) -> str:
    """Work for seconds and tell what was handed in meanwhile."""
    async with run.tool("wait", text=run.text):
        for number in range(20):
            await run.say(f"{number} {run.text} ")
            await trio.sleep(0.5)
    return " ".join([run.text, *run.steered()])


async def fails(run: Run) -> None:
    """Break with the user's own words in the error."""
    async with run.tool("break", text=run.text):
        raise AgentError(f"cannot do {run.text}")


async def stubborn(run: Run) -> None:
    """Cannot be stopped for longer than anybody waits."""
    async with run.tool("shielded", text=run.text):
        with trio.CancelScope(shield=True):
            await trio.sleep(40)


async def asks(run: Run) -> str:
    """Ask the user by their own words, and tell the answer."""
    try:
        return str(await run.ask(f"sure about {run.text}?", expires_in=6))
    except AgentError as error:
        return error.code


async def family(run: Run) -> str:
    """Have sub-runs do the same, one of them asking."""
    async with run.tool("family", text=run.text), trio.open_nursery() as nursery:
        for agent in ("echo", "variables", "asks"):
            nursery.start_soon(run.delegate, agent, run.text)
    return run.text


@tool(per_user=1, timeout_s=5)
async def shelf(run: Run, text: str) -> dict[str, str]:
    """A declared tool with one place per user."""
    await trio.sleep(0.2)
    return {"of": run.user_id, "text": text}


async def declared(run: Run) -> str:
    """Use declared tools as a model would."""
    attempts = [await Toolbox([shelf]).attempt(run, name, run.text) for name in ("shelf", "none")]
    await shelf(run, run.text)
    return " ".join(attempt.for_model() for attempt in attempts)


async def foreman(run: Run) -> str:
    """Speak into jobs: one's own, one that whoever comes first has, and one that others were granted, too."""
    mark = run.user_id.removeprefix("user-")
    for job_id in (own_job(mark), OPEN_TO_ALL, f"job-{int(mark[2:4]) % 3}"):
        with contextlib.suppress(AgentError):
            job = run.job(job_id)
            await job.emit("note", {"text": run.text})
            await trio.sleep(0.2)
            await job.emit("note", {"text": run.text})
            if job_id in (own_job(mark), OPEN_TO_ALL) and len(run.run_id) % 2:
                await job.close()
    return run.text


AGENTS = {
    "echo": echo,
    "variables": variables,
    "book": book,
    "historian": historian,
    "slow": slow,
    "fails": fails,
    "stubborn": stubborn,
    "asks": asks,
    "family": family,
    "declared": declared,
    "foreman": foreman,
}
