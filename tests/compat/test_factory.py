"""Managers by user context: isolated, limited, forgotten when idle, and never one for everybody."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
import weakref
from typing import Any

import attrs
import pytest
import trio

from netra_ws.compat import factory as module
from netra_ws.compat.connection import WebSocketConnection
from netra_ws.compat.context import UserExecutionContext
from netra_ws.compat.factory import (
    WebSocketManagerFactory,
    create_websocket_manager,
    get_factory_stats,
    get_websocket_manager,
)
from netra_ws.compat.manager import UnifiedWebSocketManager, WebSocketManager
from netra_ws.compat.serialising import serialize_message_safely
from netra_ws.errors import ContextIsolationError, InvalidArgument, InvalidContextError, LimitReached, ManagerClosed

from .sockets import JsonSocket


@attrs.define
class Clock:
    """Seconds that go on when they are told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def context(user: str = "ada", **fields: Any) -> UserExecutionContext:
    return UserExecutionContext(user, "t1", "r1", **fields)


async def test_one_context_has_one_manager() -> None:
    """The same context gets the same manager while that is alive, and a new one after its end."""
    mine = context()
    manager = create_websocket_manager(mine)
    assert manager.user_context is mine
    assert create_websocket_manager(mine) is manager
    manager.close()
    other = create_websocket_manager(mine)
    assert other is not manager
    assert not other.closed
    other.close()


async def test_the_connection_tells_contexts_apart() -> None:
    """Two requests over one connection share its manager; two users never do, whatever their ids look like."""
    made = WebSocketManagerFactory()
    one = made.create_manager(context(websocket_connection_id="c1"))
    assert made.create_manager(context(websocket_connection_id="c1")) is one
    assert made.create_manager(context("bob", websocket_connection_id="c1")) is not one
    assert made.create_manager(context("ada:c", websocket_connection_id="1")) is not made.create_manager(
        context("ada", websocket_connection_id="c:1")
    )


async def test_without_a_context_it_works_isolated_and_warns() -> None:
    """The accessor without a context gives a new manager each time, which shares nothing, and warns of it."""
    with pytest.warns(UserWarning, match=r"SECURITY WARNING.*create_websocket_manager\(user_context\)"):
        one, two = get_websocket_manager(), get_websocket_manager()
    assert one is not two
    socket = JsonSocket()
    await one.connect_user("ada", socket)
    assert await two.broadcast({"type": "m"}) == 0
    assert not await two.send_to_user("ada", {"type": "m"})
    assert socket.got == []
    assert two.get_stats()["total_connections"] == 0


async def test_with_a_context_it_is_that_ones() -> None:
    """The accessor with a context gives the context's manager, without a warning."""
    mine = context()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager = get_websocket_manager(mine)
    assert manager is create_websocket_manager(mine)
    manager.close()


@pytest.mark.parametrize("mode", ["unified", "isolated", "emergency", "degraded", object()])
async def test_a_mode_is_ignored_with_a_warning(mode: object) -> None:
    """Whatever the mode, the manager is an isolated one, and the warning says that the mode does nothing."""
    with pytest.warns(UserWarning, match="mode is ignored"):
        manager = get_websocket_manager(context(), mode)
    assert manager.user_context is not None
    manager.close()


@pytest.mark.parametrize("bad", [None, {}, "ada", object(), {"user_id": "ada"}])
async def test_what_is_no_context_opens_nothing(bad: Any) -> None:
    """Without a good context nothing is opened; there is no other manager in its place."""
    before = get_factory_stats()["factory_metrics"]["managers_created"]
    with pytest.raises(InvalidContextError, match="user_context"):
        create_websocket_manager(bad)
    if bad is not None:
        with pytest.raises(InvalidContextError):
            get_websocket_manager(bad)
        with pytest.raises(InvalidContextError):
            UnifiedWebSocketManager(user_context=bad)
    assert get_factory_stats()["factory_metrics"]["managers_created"] == before


async def test_a_failure_to_open_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a manager cannot be made, the error comes out and no manager of another kind is returned or kept."""

    def fail(*_args: object, **_more: object) -> UnifiedWebSocketManager:
        raise OSError("no room")

    monkeypatch.setattr(module, "UnifiedWebSocketManager", fail)
    made = WebSocketManagerFactory()
    with pytest.raises(OSError, match="no room"):
        made.create_manager(context())
    assert made.get_factory_stats()["current_state"]["active_managers"] == 0


async def test_a_bound_manager_serves_its_user_only() -> None:
    """A manager of one user takes no connection of another, sends nothing to one, and tells nothing about one."""
    made = WebSocketManagerFactory()
    manager = made.create_manager(context())
    socket = JsonSocket()
    await manager.connect_user("ada", socket)
    calls = [
        manager.connect_user("bob", JsonSocket()),
        manager.add_connection(WebSocketConnection("c1", "bob", JsonSocket())),
        manager.send_to_user("bob", {"type": "m"}),
        manager.emit_critical_event("bob", "m", {}),
        manager.disconnect_user("bob", socket),
    ]
    for call in calls:
        with pytest.raises(ContextIsolationError) as caught:
            await call
        assert caught.value.argument == "user_id"
    with pytest.raises(ContextIsolationError):
        manager.get_user_connections("bob")
    assert manager.get_stats()["connections_by_user"] == {"ada": 1}
    assert socket.got == []
    assert made.get_factory_stats()["factory_metrics"]["security_violations_detected"] == 6


async def test_a_user_has_so_many_managers() -> None:
    """A user has at most five managers; one more is refused with an error that names the limit; others are free."""
    made = WebSocketManagerFactory()
    managers = [made.create_manager(context()) for _ in range(5)]
    with pytest.raises(LimitReached) as caught:
        made.create_manager(context())
    assert (caught.value.what, caught.value.most) == ("managers of this user", 5)
    assert isinstance(caught.value, RuntimeError)
    made.create_manager(context("bob"))
    managers[0].close()
    made.create_manager(context())
    assert made.get_factory_stats()["factory_metrics"]["resource_limit_hits"] == 1


async def test_there_are_so_many_managers_in_all() -> None:
    """There is a bound for all users together, and what is over it is refused, not taken from somebody."""
    made = WebSocketManagerFactory(max_managers=2)
    one = made.create_manager(context("ada"))
    made.create_manager(context("bob"))
    with pytest.raises(LimitReached, match=r"^managers:"):
        made.create_manager(context("eve"))
    assert not one.closed


async def test_idle_managers_expire_when_somebody_asks() -> None:
    """A manager without a call for half an hour is closed when anybody asks; one that was used stays."""
    clock = Clock()
    made = WebSocketManagerFactory(clock=clock)
    idle, used = made.create_manager(context("ada")), made.create_manager(context("bob"))
    clock.now += 1000
    await used.connect_user("bob", JsonSocket())
    clock.now += 799
    assert made.get_factory_stats()["current_state"]["active_managers"] == 2
    clock.now += 1
    made.create_manager(context("eve"))
    assert (idle.closed, used.closed) == (True, False)
    with pytest.raises(ManagerClosed):
        idle.get_stats()
    clock.now += 1000
    assert made.get_factory_stats()["user_distribution"] == {"eve": 1}


async def test_what_is_in_use_does_not_expire() -> None:
    """A manager inside ``async with`` stays however long it is silent."""
    clock = Clock()
    made = WebSocketManagerFactory(clock=clock)
    async with made.create_manager(context()) as manager:
        clock.now += 10_000
        assert made.get_factory_stats()["current_state"]["active_managers"] == 1
        assert not manager.closed
    assert made.get_factory_stats()["current_state"]["active_managers"] == 0


async def test_statistics_of_the_factory() -> None:
    """The numbers tell what was made, is alive and has gone, for whom, and how old the oldest is."""
    clock = Clock()
    made = WebSocketManagerFactory(clock=clock)
    first = made.create_manager(context("ada", request_id="q1"))
    clock.now += 10
    second = made.create_manager(context("ada", request_id="q2"))
    await second.connect_user("ada", JsonSocket())
    clock.now += 5
    assert made.get_factory_stats() == {
        "factory_metrics": {
            "managers_created": 2,
            "managers_active": 2,
            "managers_cleaned_up": 0,
            "users_with_active_managers": 1,
            "resource_limit_hits": 0,
            "total_connections_managed": 1,
            "security_violations_detected": 0,
            "average_manager_lifetime_seconds": 0.0,
        },
        "configuration": {"max_managers_per_user": 5, "max_managers": 10_000, "connection_timeout_seconds": 1800.0},
        "current_state": {"active_managers": 2, "users_with_managers": 1, "isolation_keys": ["ada:q1", "ada:q2"]},
        "user_distribution": {"ada": 2},
        "oldest_manager_age_seconds": 15.0,
    }
    first.close()
    told = made.get_factory_stats()
    assert told["factory_metrics"]["average_manager_lifetime_seconds"] == 15.0
    assert told["oldest_manager_age_seconds"] == 5.0


async def test_three_at_the_same_time() -> None:
    """Three tasks that open managers for their contexts get three of them, each its own."""
    found: list[UnifiedWebSocketManager] = []

    async def open_one(user: str) -> None:
        async with create_websocket_manager(context(user)) as manager:
            found.append(manager)
            await trio.testing.wait_all_tasks_blocked()

    async with trio.open_nursery() as nursery:
        for user in ("ada", "bob", "eve"):
            nursery.start_soon(open_one, user)
    assert len({id(one) for one in found}) == 3
    assert {one.user_context.user_id for one in found if one.user_context} == {"ada", "bob", "eve"}


async def test_a_hundred_managers_leave_nothing() -> None:
    """A hundred managers are made, each knows only its own, and when they are closed none is left in memory."""
    made = WebSocketManagerFactory()
    managers = [made.create_manager(context(f"user{number}")) for number in range(100)]
    for number, manager in enumerate(managers):
        await manager.connect_user(f"user{number}", JsonSocket())
    assert all(len(manager.connection_registry) == 1 for manager in managers)
    weak = [weakref.ref(manager) for manager in managers]
    for manager in managers:
        await manager.shutdown()
    del manager, managers
    gc.collect()
    assert [ref() for ref in weak] == [None] * 100
    assert made.get_factory_stats()["factory_metrics"]["managers_cleaned_up"] == 100
    assert made.get_factory_stats()["user_distribution"] == {}


async def test_a_server_is_one_of_the_contexts_terms() -> None:
    """The manager of a context cannot be had for another server than the one it stands on."""
    made = WebSocketManagerFactory()
    mine = context()
    made.create_manager(mine)
    with pytest.raises(InvalidArgument, match="server"):
        made.create_manager(mine, server=object())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argument", "value"), [("max_managers_per_user", 0), ("max_managers", True), ("idle_s", 0), ("idle_s", "1800")]
)
async def test_limits_of_a_factory_are_checked(argument: str, value: Any) -> None:
    """A limit that is none is refused by name."""
    with pytest.raises(InvalidArgument) as caught:
        WebSocketManagerFactory(**{argument: value})
    assert caught.value.argument == argument


async def test_the_usual_name_is_the_manager() -> None:
    """The two names of the manager are one class, and it emits itself."""
    assert WebSocketManager is UnifiedWebSocketManager
    manager = WebSocketManager()
    socket = JsonSocket()
    await manager.connect_user("ada", socket)
    assert await manager.emit_critical_event("ada", "agent_started", {})
    assert socket.types == ["agent_started"]


async def test_the_docstrings_say_what_matters() -> None:
    """The factory's documentation says that managers are isolated by user, and what comes in place of the accessor."""
    assert "user" in (create_websocket_manager.__doc__ or "")
    assert "nothing of one user to another" in (WebSocketManagerFactory.__doc__ or "")
    assert "create_websocket_manager(user_context)" in module.WARNING


async def test_ids_are_made_up_and_never_empty() -> None:
    """A context without a request id gets one of its own; a connection needs an id, and gets a time by itself."""
    assert len({context().request_id for _ in range(100)}) == 100
    with pytest.raises(InvalidArgument, match="connection_id"):
        WebSocketConnection("", "ada")
    assert WebSocketConnection("c1", "ada").connected_at is not None


@pytest.mark.parametrize("value", [None, {"a": 1}, 5, "text", [1], {"🙂": "λ"}])
async def test_serialising_gives_an_object(value: object) -> None:
    """Whatever is serialised comes out as an object."""
    assert isinstance(serialize_message_safely(value), dict)


async def test_the_factory_is_imported_without_a_server() -> None:
    """Importing the factory opens nothing and needs neither the server nor a library of sockets."""
    code = "import sys, netra_ws.compat.factory; print(*{'trio_websocket', 'h11', 'sqlalchemy'} & sys.modules.keys())"
    done = await trio.to_thread.run_sync(
        lambda: subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    )
    assert done.stdout.strip() == ""
