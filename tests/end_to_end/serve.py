"""Serves with the settings of its one argument (JSON, dotted names) until its standard input ends.

Prints the port on a line of its own when it can be connected to. Bound to its input, it never outlives
the test that started it.
"""

from __future__ import annotations

import json
import sys

import trio

import netra_ws

from . import agents

EXTRA = {
    "brief": agents.brief,
    "broken": agents.broken,
    "building": agents.building,
    "delegating": agents.delegating,
    "inquiring": agents.asking,
    "markup": agents.markup,
    "patient": agents.patient,
    "publishing": agents.publishing,
    "slow": agents.slow,
}


async def main(overrides: dict[str, object]) -> None:
    settings = netra_ws.Settings.make(overrides, environment="development")
    async with netra_ws.open_server(settings, agents=EXTRA) as server:
        print(server.port, flush=True)
        # An interrupted read of the input cannot be waited for, so its thread is left behind.
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    trio.run(main, json.loads(sys.argv[1]))
