"""A run of one target for some time: make, check, keep what failed."""

from __future__ import annotations

import ast
import hashlib
import random
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import attrs
import trio
from trio.testing import MockClock

from .codec import Codec
from .heads import Heads
from .mutation import cuts
from .streams import Streams

NAMES = ("head", "frames", "codec")


class Target(Protocol):
    """Something that reads a client's bytes."""

    @property
    def name(self) -> str: ...

    def make(self, chance: random.Random) -> bytes: ...

    async def check(self, data: bytes, where: Sequence[int]) -> None: ...


@attrs.define
class Figures:
    """What a campaign came to.

    Attributes:
        inputs: How many were checked.
        found: The inputs that failed: data, cuts, and how.
    """

    inputs: int = 0
    size: int = 0
    found: list[tuple[bytes, tuple[int, ...], str]] = attrs.field(factory=list)


def run(name: str, seed: int, *, seconds: float = 3600.0, inputs: int = 10**9, most_found: int = 5) -> Figures:
    """Check random inputs of a target until the time or the number is over, or enough was found.

    The same seed makes the same inputs. After a failure of ``frames`` the server is a new one.
    """
    chance, figures, ends = random.Random(f"{name}/{seed}"), Figures(), time.monotonic() + seconds

    async def go_on(target: Target) -> None:
        while time.monotonic() < ends and figures.inputs < inputs:
            data = target.make(chance)
            where = cuts(chance, len(data))
            figures.inputs += 1
            figures.size += len(data)
            if (failure := await attempt(target, data, where)) is not None:
                figures.found.append((data, where, failure))
                return

    while time.monotonic() < ends and figures.inputs < inputs and len(figures.found) < most_found:
        with_target(name, go_on)
    return figures


def with_target(name: str, work: Worker) -> None:
    """Call *work* with the target of that name, in a Trio of its own on a virtual clock."""

    async def main() -> None:
        if name == "frames":
            async with Streams.open() as streams:
                await work(streams)
        else:
            await work(Heads() if name == "head" else Codec())

    trio.run(main, clock=MockClock(autojump_threshold=0))


class Worker(Protocol):
    """What is done with a target."""

    async def __call__(self, target: Target, /) -> None: ...


async def attempt(target: Target, data: bytes, where: Sequence[int]) -> str | None:
    """Check one input; return how it failed, or None."""
    try:
        await target.check(data, where)
    except (KeyboardInterrupt, trio.Cancelled):
        raise
    except BaseException:  # whatever it is, it was found
        return traceback.format_exc(limit=-6)
    return None


def keep(folder: Path, name: str, data: bytes, where: tuple[int, ...], failure: str) -> Path:
    """Write a failing input as a file that ``replay`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}.py"
    told = "".join(f"# {line}\n" for line in failure.splitlines())
    file.write_text(f"{told}({name!r}, {data!r}, {where!r})\n")
    return file


def replay(file: Path) -> str | None:
    """Check a kept input again; return how it failed, or None."""
    name, data, where = ast.literal_eval(file.read_text())
    outcome: list[str | None] = []

    async def once(target: Target) -> None:
        outcome.append(await attempt(target, data, where))

    with_target(name, once)
    return outcome[0]
