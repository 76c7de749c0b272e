"""The connection of the older surface as a value."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from netra_ws.compat.connection import WebSocketConnection
from netra_ws.errors import InvalidArgument

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def test_it_needs_ids_and_has_defaults() -> None:
    """A connection is made of its ids, a socket and a time; there is no metadata unless somebody gives it."""
    socket = object()
    connection = WebSocketConnection("c1", "ada", socket, NOW)
    assert (connection.connection_id, connection.user_id, connection.websocket) == ("c1", "ada", socket)
    assert (connection.connected_at, connection.metadata, connection.thread_id) == (NOW, None, None)
    made = WebSocketConnection("c1", "ada")
    assert made.connected_at.utcoffset() == timedelta(0)


def test_metadata_is_kept() -> None:
    """Metadata is what was given."""
    assert WebSocketConnection("c1", "ada", metadata={"browser": "x"}).metadata == {"browser": "x"}


def test_equal_values_are_equal() -> None:
    """Two connections with equal values are equal, whatever went over them; other values differ."""
    one, two = (WebSocketConnection("c1", "ada", None, NOW) for _ in range(2))
    two.touch(5.0)
    two.is_active = False
    assert one == two
    assert one != attrs.evolve(one, connection_id="c2")
    assert one != attrs.evolve(one, thread_id="t")


def test_its_text_shows_the_ids() -> None:
    """The text of a connection shows whose it is and which."""
    text = str(WebSocketConnection("c1", "ada"))
    assert "c1" in text
    assert "ada" in text


def test_whose_it_is_is_fixed() -> None:
    """The ids cannot be changed; the rest may."""
    connection = WebSocketConnection("c1", "ada")
    for name in ("connection_id", "user_id"):
        with pytest.raises(attrs.exceptions.FrozenAttributeError):
            setattr(connection, name, "other")
    connection.websocket = object()
    connection.metadata = {"a": 1}
    connection.thread_id = "t1"
    connection.is_active = False
    assert (connection.user_id, connection.thread_id) == ("ada", "t1")


def test_a_time_without_an_offset_is_utc() -> None:
    """Naive times are UTC, so that ages can be compared."""
    assert WebSocketConnection("c", "ada", connected_at=datetime(2030, 1, 1)).connected_at == NOW  # noqa: DTZ001


@pytest.mark.parametrize(
    ("argument", "fields"),
    [
        ("connection_id", {"connection_id": ""}),
        ("connection_id", {"connection_id": None}),
        ("user_id", {"user_id": ""}),
        ("user_id", {"user_id": "  "}),
        ("user_id", {"user_id": None}),
        ("user_id", {"user_id": 7}),
        ("user_id", {"user_id": "a\n"}),
        ("user_id", {"user_id": "\ud800"}),
        ("thread_id", {"thread_id": 5}),
        ("metadata", {"metadata": ["a"]}),
        ("connected_at", {"connected_at": "2030"}),
    ],
)
def test_what_names_nobody_is_refused(argument: str, fields: dict[str, Any]) -> None:
    """A connection without a user or an id cannot be made; the error names the argument."""
    with pytest.raises(InvalidArgument) as caught:
        WebSocketConnection(**{"connection_id": "c1", "user_id": "ada", **fields})
    assert caught.value.argument == argument
