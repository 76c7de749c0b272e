"""Tests of ``netra_ws.history.stores.trimming``; what it does for a store is in ``tests/contract``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from netra_ws.history.stores.sqlite import SqliteFile
from netra_ws.history.stores.trimming import Cut, find, remove
from netra_ws.history.stores.writes import carry_out
from tests.contract.rows import KEY, put_event, put_stream


def test_a_front_that_goes_while_it_is_looked_at(tmp_path: Path) -> None:
    """A stream that loses its old events between two statements of the search is passed over."""
    with contextlib.closing(SqliteFile(tmp_path / "netra_ws.db", "process")) as database:
        database.open()
        with database.writing() as writer:
            for key in (KEY, "user:bob"):
                rows = [put_event(1, key=key), put_event(2, key=key), put_event(3, key=key, at=9.0)]
                carry_out(writer, [put_stream(key), *rows])
        statements: list[Any] = []

        def shorten(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            statements.append(statement)
            if len(statements) == 2:  # the page of streams was read, the front of Alice's was not
                with database.writing() as writer:
                    remove(writer, {KEY: 2})

        with database.reading() as connection:
            sa.event.listen(connection, "before_cursor_execute", shorten)
            assert find(connection, 5.0, "") == ([Cut("user:bob", 2)], None)
        assert len(statements) > 2
