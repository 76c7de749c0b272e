"""A person decides: the agent drafts, asks, and goes on only with an answer, whichever tab it comes from.

Give it to a server, in this folder:      netra-ws serve --agent approval_agent:publish
and ask it from another terminal:         netra-ws chat --agent publish "our new opening hours"
(the console at http://127.0.0.1:8000 shows buttons and a form)
Or see it work from end to end at once:   python approval_agent.py "our new opening hours"
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import attrs
import trio

import netra_ws


@attrs.frozen
class Details:
    """How to publish it."""

    channel: Annotated[Literal["website", "newsletter"], "Where it appears"]
    headline: Annotated[str, "At most 60 characters"] = attrs.field(validator=attrs.validators.max_len(60))
    urgent: bool = False


@netra_ws.tool(timeout_s=30)  # while it waits for a person, its time stands still
async def send(run: netra_ws.Run, text: str, details: Details) -> str:
    """Send a text out, once somebody has said yes."""
    if await run.ask(f"Send “{details.headline}” to the {details.channel}?", choices=["yes", "no"]) == "no":
        raise netra_ws.ToolDenied("the user said no")
    return f"sent {len(text)} characters to the {details.channel}"


async def publish(run: netra_ws.Run) -> str:
    """Draft a text, ask how to publish it, and ask again before it goes out."""
    await run.say(f"Here is a draft: News about {run.text}. ")
    try:
        details = await run.ask("How shall it be published?", schema=Details, expires_in=3600)
        await run.say(f"Done: {await send(run, run.said, details)}.")
    except netra_ws.InputDeclined as declined:  # somebody has declined, or nobody has answered within the hour
        await run.say(f"Not published: {declined.text}.")
    except netra_ws.ToolDenied as denied:
        await run.say(f"Not published: {denied.text}.")
    return run.said


async def main(text: str) -> None:
    """Serve the agent, start it as one client, and answer it as another one that comes later."""
    settings = netra_ws.Settings.make({"server.port": 0, "store.url": "memory:", "log.level": "warning"})
    async with netra_ws.open_server(settings, agents={"publish": publish}) as server:
        alice = netra_ws.Identity("alice")
        async with server.context_for(alice) as desk:
            run = await desk.start(text, agent="publish")
        answers = [{"channel": "newsletter", "headline": "New opening hours"}, "yes"]
        async with server.context_for(alice) as phone:  # the questions have waited for her
            async for heard in run:
                if heard.type == "input_required":
                    print("asked:", heard.fields["prompt"], heard.fields.get("choices") or "(a form)")
                    await phone.answer(heard.fields["input_id"], answers.pop(0))
                elif heard.type == "agent_completed":
                    print(f"{heard.fields['status']}: {heard.fields['final_response']}")


if __name__ == "__main__":
    trio.run(main, " ".join(sys.argv[1:]) or "our new opening hours")
