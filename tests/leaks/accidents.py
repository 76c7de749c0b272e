"""What may go wrong inside a server: agents that the real process is given, and bugs of ours on demand.

The bugs show what a traceback would show: each raises with the ``repr`` of what it works with, as a
careless message or a debugger does.
"""

from __future__ import annotations

import gc
import logging
from typing import Any

import trio

import netra_ws.contexts.dispatch
import netra_ws.wire.door
import netra_ws.wire.pump
from netra_ws.agents.run import Run
from netra_ws.errors import AgentError, StoreError

logger = logging.getLogger("netra_ws.accidents")


async def claims(run: Run) -> None:
    """Fail with everything that is known of the user."""
    raise RuntimeError(f"cannot work for {run.identity!r} {dict(run.identity.claims)!r} {run!r} {run.request!r}")


async def quoting(run: Run) -> None:
    """Tell the user an error with everything in it."""
    raise AgentError(f"cannot work for {run.identity!r} {run!r}")


async def reprs(run: Run) -> int:
    """Log the ``repr`` of every object of ours that is alive in the process; return how many there are."""
    gc.collect()
    kinds: dict[str, int] = {}
    for thing in gc.get_objects():
        home = type(thing).__module__
        # h11 holds heads; what the other libraries show is frames, a client's own words, and they log nothing.
        if isinstance(home, str) and home.startswith(("netra_ws", "h11")):
            kind = type(thing).__qualname__
            kinds[kind] = kinds.get(kind, 0) + 1
            if kinds[kind] <= 50:
                logger.debug("%s: %s", kind, _repr(thing))
    logger.debug("kinds: %s", sorted(kinds))
    await trio.lowlevel.checkpoint()
    return len(kinds)


def _repr(thing: object) -> str:
    try:
        return repr(thing)
    except Exception as exc:  # one that is not finished yet
        return f"no repr: {exc!r}"


async def break_door(run: Run) -> None:
    """From now on every upgrade with ``?accident`` fails in the door, and one with ``?later`` in its seat."""
    check, seat = netra_ws.wire.door.check_upgrade, netra_ws.wire.pump.Socket._seat

    def bad_check(head: Any) -> None:
        if "accident" in head.query:
            raise RuntimeError(f"a bug with {head!r}")
        check(head)

    def bad_seat(socket: Any) -> Any:
        if "later" in socket.admitted.head.query:
            raise RuntimeError(f"a bug with {socket.admitted!r} {socket!r} {socket.stream!r}")
        return seat(socket)

    netra_ws.wire.door.check_upgrade = bad_check  # type: ignore[attr-defined]
    netra_ws.wire.pump.Socket._seat = bad_seat  # type: ignore[method-assign]


async def break_commands(run: Run) -> None:
    """From now on every command of a thread ``broken`` fails with a bug, and one of ``away`` with the store."""
    carry_out = netra_ws.contexts.dispatch._guarded

    async def bad(command: Any, work: Any) -> Any:
        async def worse() -> Any:
            if getattr(command, "reason", None) == "broken" or command.type == "refresh_auth":
                raise RuntimeError(f"a bug with {command!r}")
            if getattr(command, "title", None) == "away":
                raise StoreError("the store failed")
            return await work()

        return await carry_out(command, worse)

    netra_ws.contexts.dispatch._guarded = bad
