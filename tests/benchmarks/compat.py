"""How long the work of the older system's surface takes: ``python -m tests.benchmarks.compat [word …]``.

Prints one line for each figure whose name has one of the words; nothing is asserted. A figure is a function that
does its work once and returns how many times; more of them are added to ``FIGURES``, here or by
``FIGURES.append`` of another module before ``main`` is called.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import attrs
import trio

from netra_ws.compat.cors import WebSocketCORSHandler
from netra_ws.compat.jsonrpc import make_request, read_jsonrpc
from netra_ws.compat.messages import ServerMessage, create_standard_message, validate_message
from netra_ws.compat.serialising import serialize_message_safely
from netra_ws.compat.timestamps import to_timestamp

#: The best of so many is printed: everything else is the machine's.
ROUNDS = 5


@attrs.frozen
class Figure:
    """Work whose time is printed.

    Attributes:
        name: What is done.
        work: Does it, and returns how many times.
    """

    name: str
    work: Callable[[], int] | Callable[[], Awaitable[int]]

    async def measure(self) -> tuple[float, int]:
        """Return the seconds of the quickest round, and how much was done in it."""
        best, count = float("inf"), 0
        for _ in range(ROUNDS):
            began = time.perf_counter()
            done = self.work()
            count = done if isinstance(done, int) else await done
            best = min(best, time.perf_counter() - began)
        return best, count


def validations() -> int:
    """Ask about allowed origins, half of them by a pattern."""
    handler = WebSocketCORSHandler("production", ["https://app.example.com", "https://*.netra.ai"])
    for _ in range(2500):
        assert handler.is_origin_allowed("https://app.netra.ai", "192.0.2.1")
        assert handler.is_origin_allowed("https://app.example.com", "192.0.2.1")
    return 5000


def refusals() -> int:
    """Ask about a thousand bad origins of one address."""
    handler = WebSocketCORSHandler("production")
    for number in range(1000):
        assert not handler.is_origin_allowed(f"https://evil{number}.example", "192.0.2.1")
    return 1000


FULL = WebSocketCORSHandler("production")
for place in range(1000):
    FULL.is_origin_allowed("https://evil.example", f"10.0.{place // 250}.{place % 250}")


def statistics() -> int:
    """Look at the statistics of a handler that remembers a thousand pairs."""
    for _ in range(100):
        assert FULL.get_security_stats()["tracked_origin_count"] == 1000
    return 100


MESSAGE: dict[str, Any] = {
    "content": "a question of a usual length, about a usual thing",
    "references": ["a", "b"],
    "metadata": {"page": 3, "seen": True, "ratio": 0.5},
}


def messages() -> int:
    """Make messages, write them, check them, and turn them into commands."""
    for _ in range(1000):
        message = create_standard_message("user_message", MESSAGE, "ada", "thread-1")
        assert validate_message(message.to_dict()).to_command()
    return 1000


def shown() -> int:
    """Show events in the older envelope."""
    event = {"type": "tool_completed", "seq": 5, "timestamp": 1.5, "tool_name": "t", "results": MESSAGE, "run_id": "r"}
    for _ in range(1000):
        assert ServerMessage.from_event(event).to_dict()
    return 1000


def serialised() -> int:
    """Serialise a message with times, ids, sets and a list of a hundred objects."""
    rows = [
        {"id": UUID(int=number), "at": datetime(2025, 9, 5, tzinfo=UTC), "tags": {"a", "b"}} for number in range(100)
    ]
    for _ in range(20):
        assert len(serialize_message_safely({"type": "report", "rows": rows})["rows"]) == 100
    return 20


def times() -> int:
    """Read times in three forms."""
    for _ in range(1000):
        to_timestamp("2025-09-05T12:00:00Z")
        to_timestamp("1757073600.25")
        to_timestamp(1757073600.25)
    return 3000


def calls() -> int:
    """Write and read JSON-RPC calls."""
    for number in range(1000):
        assert read_jsonrpc(make_request("user_message", MESSAGE, number).to_json()).id == number
    return 1000


FIGURES: list[Figure] = [
    Figure("origins: validate an allowed one", validations),
    Figure("origins: refuse invented ones of one address", refusals),
    Figure("origins: statistics of 1,000 pairs", statistics),
    Figure("messages: make, check, to a command", messages),
    Figure("messages: show an event", shown),
    Figure("messages: serialise 100 complex rows", serialised),
    Figure("messages: read a time", times),
    Figure("messages: JSON-RPC call there and back", calls),
]


async def main(words: list[str]) -> None:
    """Print the figures as a table."""
    print(f"{'figure':<48} {'times':>7} {'total ms':>10} {'µs each':>10} {'per second':>12}")
    for figure in FIGURES:
        if words and not any(word in figure.name for word in words):
            continue
        seconds, count = await figure.measure()
        each = seconds / count
        print(f"{figure.name:<48} {count:>7} {seconds * 1e3:>10.2f} {each * 1e6:>10.2f} {1 / each:>12,.0f}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
