"""Everything that goes wrong around one server: by explicit call, or by a plan that a seed replays."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Literal, get_args

import attrs
import trio

from .lines import Line
from .links import Link
from .store import FaultyStore

Kind = Literal[
    "drop",
    "half_open",
    "stall",
    "cut_mid_frame",
    "slow_reader",
    "refuse",
    "store.fail",
    "store.hang",
    "store.full",
    "store.lose_answers",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: How long faults of a plan last, in seconds: on average, and at most. Most are short, so that much happens.
_MEAN_S = 2.0
_LINK_S = 20.0


@attrs.frozen
class Struck:
    """One fault that was injected.

    Attributes:
        at: Seconds of Trio's clock since the server was opened.
        where: The line, such as ``alice/2``, or ``store``; ``alice/0`` when there was no line yet.
        what: The call that was made, such as ``stall seconds=1.5 towards=client``.
    """

    at: float
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.at:10.3f} s  {self.where}: {self.what}"


@attrs.frozen
class Planned:
    """One fault to come: *delay_s* after the one before, what, and its arguments (``Link`` names them)."""

    delay_s: float
    kind: Kind
    towards: Literal["client", "server", "both"]
    seconds: float
    count: int


def plan(seed: int, name: str, rate: float, kinds: Sequence[Kind]) -> Iterator[Planned]:
    """Return the endless plan of one link, or of the store.

    It depends on nothing but its arguments: neither on what other links do, nor on what became of
    the faults before, nor on the order in which Trio runs its tasks. So it replays.

    Args:
        rate: Faults a second, on average; moments come as a Poisson process has them.
    """
    dice = random.Random(f"{seed}/{name}")  # noqa: S311  (a replayable game, no secret)
    while True:
        yield Planned(
            delay_s=dice.expovariate(rate),
            kind=dice.choice(kinds),
            towards=dice.choice(("client", "server", "both")),
            seconds=round(min(_LINK_S, 0.05 + dice.expovariate(1 / _MEAN_S)), 3),
            count=dice.choice((1, 2, 3, dice.randint(1, 30), dice.randint(1, 400))),
        )


@attrs.define(eq=False)
class Faults:
    """The fault injector of one server.

    Attributes:
        seed: Everything random in the kit comes from it: plans, and the jitter of clients and server.
        store: Has ``fail``, ``hang``, ``full``, ``lose_answers`` and ``recover``.
        links: Name → the link of that client.
        log: What was injected so far, in order.
    """

    seed: int
    store: FaultyStore
    _carry: Callable[[Line], None] = attrs.field(repr=False)
    links: dict[str, Link] = attrs.field(factory=dict)
    log: list[Struck] = attrs.field(factory=list, repr=False)
    _since: float = attrs.field(factory=trio.current_time, repr=False)
    _newcomer: Callable[[Link], None] = attrs.field(default=lambda link: None, repr=False)

    def link(self, name: str) -> Link:
        """Return the link of that name; made at the first mention, so it can be prepared before its client comes."""
        link = self.links.get(name)
        if link is None:
            link = self.links[name] = Link(name, self._carry, self._note)
            self._newcomer(link)
        return link

    def dice(self, name: str) -> random.Random:
        """Return a source of randomness that only depends on the seed and *name*."""
        return random.Random(f"{self.seed}/{name}")  # noqa: S311

    @asynccontextmanager
    async def chaos(
        self, rate: float = 0.2, *, kinds: Sequence[Kind] = KINDS, links: Sequence[str] | None = None
    ) -> AsyncIterator[None]:
        """Let things go wrong at random inside the block; leaving it heals all that can heal.

        The same seed, the same names of links and the same behaviour on a virtual clock give the
        same ``log``. Which of two tasks Trio runs first at one moment stays random, on purpose: a
        test that depends on it has found something. Commands may fail meanwhile (``CommandFailed``:
        the store is away), and a client gives up for good after its policy's patience.

        Args:
            rate: Faults a second of Trio's clock, for each link and for the store.
            kinds: What may happen; ``KINDS`` is all of it.
            links: Names of the links that are struck; None for all, those to come included.
        """
        wire_kinds = [kind for kind in kinds if not kind.startswith("store.")]
        store_kinds = [kind for kind in kinds if kind.startswith("store.")]
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:

            def strike(link: Link) -> None:
                if wire_kinds and (links is None or link.name in links):
                    nursery.start_soon(_strike_link, link, plan(self.seed, link.name, rate, wire_kinds))

            for link in list(self.links.values()):
                strike(link)
            if store_kinds:
                nursery.start_soon(self._strike_store, plan(self.seed, "store", rate, store_kinds))
            self._newcomer = strike
            try:
                yield
            except Exception as exc:  # of the block; raised outside, so that nobody has to look into a group
                failure = exc
            finally:
                self._newcomer = lambda link: None
                nursery.cancel_scope.cancel()
                self.heal()
        if failure is not None:
            raise failure

    def heal(self) -> None:
        """End what can end: stalls, slowness, refusals, the outage of the store."""
        for link in self.links.values():
            link.heal()
        self.store.recover()

    def report(self) -> str:
        """Return the seed and the log as text, a line for each fault."""
        return "\n".join([f"seed {self.seed}, {len(self.log)} faults:", *map(str, self.log)])

    def _note(self, where: str, what: str) -> None:
        self.log.append(Struck(trio.current_time() - self._since, where, what))

    async def _strike_store(self, planned: Iterator[Planned]) -> None:
        turns = {
            "store.fail": self.store.fail,
            "store.hang": self.store.hang,
            "store.full": self.store.full,
            "store.lose_answers": self.store.lose_answers,
        }
        for each in planned:
            await trio.sleep(each.delay_s)
            self._note("store", f"{each.kind.removeprefix('store.')} seconds={each.seconds:g}")
            turns[each.kind]()
            await trio.sleep(each.seconds)
            self.store.recover()


async def _strike_link(link: Link, planned: Iterator[Planned]) -> None:
    for each in planned:
        await trio.sleep(each.delay_s)
        match each.kind:
            case "drop":
                link.drop()
            case "half_open":
                link.half_open(each.towards)
            case "stall":
                link.stall(each.seconds, each.towards)
            case "cut_mid_frame":
                link.cut_mid_frame(each.count, each.towards)
            case "slow_reader":
                link.slow_reader(100.0 * each.count, each.seconds)
            case "refuse":
                link.refuse(each.seconds)
