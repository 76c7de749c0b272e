"""The public test kit: agents, clients and faults, with the real server in a test of your own.

Nothing here is a mock. The shortest way runs an agent and looks at its events::

    async def test_my_agent(autojump_clock):
        events = await run_agent(my_agent, "hello")
        assert check_run(events).final_response == "HELLO"

With clients, over connections in memory that fail when they are told to::

    async def test_my_agent_behind_a_bad_network(autojump_clock):
        async with open_test_server({"mine": my_agent}, seed=7) as server:
            async with server.connect("alice") as alice:  # the product's own client
                events = alice.events()
                run = await alice.start("hello")
                async with server.faults.chaos(rate=0.5):  # or server.link("alice").drop(), …
                    await run.result()
            check_no_gap_no_double([one async for one in events], await server.recorded("alice"))
            await server.settled()  # no run, task or process is left

``open_test_server`` says how clocks are meant; ``Link``, ``FaultyStore`` and ``Faults`` what can go wrong;
``RawClient`` is for tests of the wire itself. pytest is not needed; its fixture ``autojump_clock`` comes
with pytest-trio, and stands for ``trio.run(..., clock=trio.testing.MockClock(autojump_threshold=0))``.
"""

from __future__ import annotations

from .checks import check_family as check_family
from .checks import check_no_gap_no_double as check_no_gap_no_double
from .checks import check_run as check_run
from .checks import texts as texts
from .faults import KINDS as KINDS
from .faults import Faults as Faults
from .faults import Kind as Kind
from .faults import Struck as Struck
from .frames import Answer as Answer
from .frames import Ended as Ended
from .frames import Frame as Frame
from .links import Link as Link
from .raw import RawClient as RawClient
from .running import DECLINE as DECLINE
from .running import SECRET as SECRET
from .running import make_settings as make_settings
from .running import open_session as open_session
from .running import run_agent as run_agent
from .serving import MemoryServer as MemoryServer
from .serving import open_test_server as open_test_server
from .store import FaultyStore as FaultyStore
from .store import Health as Health

__all__ = [
    "DECLINE",
    "KINDS",
    "SECRET",
    "Answer",
    "Ended",
    "Faults",
    "FaultyStore",
    "Frame",
    "Health",
    "Kind",
    "Link",
    "MemoryServer",
    "RawClient",
    "Struck",
    "check_family",
    "check_no_gap_no_double",
    "check_run",
    "make_settings",
    "open_session",
    "open_test_server",
    "run_agent",
    "texts",
]
