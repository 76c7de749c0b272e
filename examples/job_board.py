"""A job: an agent of one user writes its progress, and other users who were granted it watch.

Give it to a server, in this folder:      netra-ws serve --agent job_board:bake
and ask it from another terminal:         netra-ws chat --agent bake "cake-7"
Or see it work from end to end at once:   python job_board.py "cake-7"
"""

from __future__ import annotations

import secrets
import sys
import time

import trio

import netra_ws
from netra_ws.access import mint

STEPS = ("mix", "rest", "bake", "glaze")


async def bake(run: netra_ws.Run) -> str:
    """Bake the cake that the text names, and tell each step in the job of that name."""
    board = run.job(run.text)  # who says the first word opens it, and owns it from then on
    for number, step in enumerate(STEPS, 1):
        await trio.sleep(0.01)
        await board.emit("step", {"step": step, "at": f"{number}/{len(STEPS)}"})
    await board.close()  # whoever watches gets what was said, and then its end; the name is free again
    return f"{run.text} is ready"


async def watch(
    url: str, token: str, job_id: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Print what is said in a job until it is over, whatever happens to the connection meanwhile."""
    async with netra_ws.connect(url, token) as session:
        events = session.events(job_id=job_id)  # before joining, so that nothing is said in between
        await session.connect_job(job_id)
        task_status.started()
        async for heard in events:
            if heard.type == "agent_event":
                value = heard.fields["value"]
                print(f"{session.welcome.user_id} sees: {value['step']} ({value['at']})")
            else:  # job_disconnected, or stream_reset for who was away for too long
                print(f"{session.welcome.user_id} sees: {heard.type}")


async def main(job_id: str) -> None:
    """Serve the agent, let bob and carol watch, and have it start for alice."""
    secret = secrets.token_hex(32)
    settings = netra_ws.Settings.make(
        {"server.port": 0, "store.url": "memory:", "auth.secret": secret, "log.level": "warning"}
    )
    granted = ["read", f"job:{job_id}"]  # netra-ws token --permission does the same; "job:cake-*" grants them all
    async with netra_ws.open_server(settings, agents={"bake": bake}) as server, trio.open_nursery() as nursery:
        for user in ("bob", "carol"):
            await nursery.start(watch, server.url, mint(secret, user, granted, 600, time.time()), job_id)
        async with server.context_for(netra_ws.Identity("alice")) as alice:
            run = await alice.start(job_id, agent="bake")
            print((await run.result()).final_response)


if __name__ == "__main__":
    trio.run(main, " ".join(sys.argv[1:]) or "cake-7")
