"""User contexts of the older surface: whom they name, and that nothing in them changes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import attrs
import pytest

from netra_ws.compat.context import MAX_DEPTH, UserExecutionContext
from netra_ws.errors import ContextIsolationError, InvalidArgument, InvalidContextError


def make(**fields: Any) -> UserExecutionContext:
    return UserExecutionContext(**{"user_id": "ada", "thread_id": "t1", "run_id": "r1", **fields})


def test_it_names_user_thread_and_run() -> None:
    """A context has what it was given, a request id of its own, and a time with an offset."""
    one, two = make(), make()
    assert (one.user_id, one.thread_id, one.run_id) == ("ada", "t1", "r1")
    assert one.request_id != two.request_id
    assert one.created_at.utcoffset() is not None
    assert one.websocket_client_id is one.websocket_connection_id is None


def test_nothing_in_it_changes() -> None:
    """Fields and metadata are fixed; what the caller does to theirs afterwards is not seen."""
    metadata: dict[str, Any] = {"a": [1]}
    context = make(metadata=metadata)
    metadata["a"].append(2)
    metadata["b"] = 3
    assert context.metadata == {"a": [1]}
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        context.user_id = "bob"  # type: ignore[misc]
    with pytest.raises(TypeError):
        context.metadata["a"] = 1  # type: ignore[index]


@pytest.mark.parametrize("name", ["user_id", "thread_id", "run_id"])
@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "  ",
        5,
        "a\n",
        "registry",
        "placeholder",
        "Default",
        "temp",
        "none",
        "NULL",
        "undefined",
        "0",
        "1",
        "xxx",
        "yyy",
        "example",
        "test",
        "demo",
        "mock",
        "placeholder_1",
        "registry_a",
        "default_user",
        "temp_77",
    ],
)
def test_placeholders_name_nobody(name: str, value: Any) -> None:
    """What stands where somebody has forgotten an id is refused for each of the three, by name."""
    with pytest.raises(InvalidContextError) as caught:
        make(**{name: value})
    assert caught.value.argument == name
    assert isinstance(caught.value, InvalidArgument)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("value", ["temp_but_a_very_long_name", "defaulted", "tests", "10", "none-of-them"])
def test_ids_that_only_look_alike_are_good(value: str) -> None:
    """Ids that only begin like a placeholder are ids."""
    assert make(user_id=value).user_id == value


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("metadata", None),
        ("metadata", ["a"]),
        ("metadata", {1: 2}),
        *(("metadata", {name: "x"}) for name in ("user_id", "thread_id", "run_id", "request_id", "created_at")),
        ("request_id", ""),
        ("request_id", None),
        ("websocket_connection_id", 5),
        ("created_at", datetime(2030, 1, 1)),  # noqa: DTZ001
        ("operation_depth", -1),
        ("operation_depth", True),
    ],
)
def test_other_fields_are_checked(argument: str, value: Any) -> None:
    """Metadata, ids and times that are none are refused by name."""
    with pytest.raises(InvalidContextError) as caught:
        make(**{argument: value})
    assert caught.value.argument == argument


def test_a_child_is_a_part_of_its_parent() -> None:
    """A child has the same user, thread, run and connection, a request id of its own, and says whose child it is."""
    parent = make(metadata={"a": 1}, websocket_connection_id="c1", db_session="session")
    child = parent.create_child_context("search", {"b": 2})
    assert (child.user_id, child.thread_id, child.run_id) == ("ada", "t1", "r1")
    assert (child.websocket_connection_id, child.db_session) == ("c1", "session")
    assert child.request_id != parent.request_id
    assert (child.parent_request_id, child.operation_depth) == (parent.request_id, 1)
    assert child.metadata == {
        "a": 1,
        "b": 2,
        "operation_name": "search",
        "operation_depth": 1,
        "parent_request_id": parent.request_id,
    }
    assert parent.metadata == {"a": 1}
    with pytest.raises(InvalidContextError, match="operation_name"):
        parent.create_child_context(" ")
    with pytest.raises(InvalidContextError, match="additional_metadata"):
        parent.create_child_context("a", ["b"])  # type: ignore[arg-type]


def test_children_have_an_end() -> None:
    """Contexts are at most ten inside each other."""
    context = make()
    for _ in range(MAX_DEPTH):
        context = context.create_child_context("deeper")
    assert context.operation_depth == MAX_DEPTH == 10
    with pytest.raises(InvalidContextError, match="operation_depth"):
        context.create_child_context("deeper")


def test_contexts_of_others_stay_out() -> None:
    """A context of another user cannot be put into this one's metadata; one of the same user can."""
    assert make(metadata={"other": make()}).metadata["other"].user_id == "ada"
    with pytest.raises(ContextIsolationError):
        make(metadata={"other": make(user_id="bob")})


def test_a_session_is_never_told() -> None:
    """Only whether there is a session of a database is told; texts and comparisons do not have it."""
    plain = make()
    context = plain.with_db_session("secret")
    assert context == plain
    assert context.to_dict()["has_db_session"]
    assert not plain.to_dict()["has_db_session"]
    assert "secret" not in repr(context) + str(context.to_dict())


def test_what_it_is_found_by() -> None:
    """The correlation id has eight characters of each id; the connection or else the request tells managers apart."""
    context = make(user_id="a-long-user-id")
    assert context.get_correlation_id() == f"a-long-u:t1:r1:{context.request_id[:8]}"
    assert context.isolation_key == ("a-long-user-id", context.request_id)
    bound = context.with_websocket_connection("c1")
    assert bound.isolation_key == ("a-long-user-id", "c1")
    assert bound.websocket_client_id == "c1"
    with pytest.raises(InvalidContextError, match="websocket_connection_id"):
        context.with_websocket_connection("")
