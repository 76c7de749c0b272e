"""How SQLite carries out the reads of the SQL store."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from sqlalchemy.dialects import sqlite

from netra_ws.history.stores import queries
from netra_ws.history.stores.sqlite import SqliteFile

PLANS = {
    "STREAM": "SEARCH stream USING PRIMARY KEY (key=?)",
    "EVENTS": "SEARCH event USING PRIMARY KEY (stream=? AND epoch=? AND seq>? AND seq<?)",
    "RUN_EVENTS": "SEARCH event USING INDEX event_of_run (run_id=? AND stream=? AND epoch=?)",
    "THREADS": "SEARCH thread USING INDEX thread_by_time (user_id=? AND (updated_at,thread_id)<(?,?))",
    "MESSAGES": "SEARCH message USING INDEX message_by_place (user_id=? AND thread_id=? AND seq<?)",
    "RUN_OF_COMMAND": "SEARCH run USING INDEX run_of_command (user_id=? AND command_id=?)",
    "UNFINISHED_RUNS": "SCAN run USING INDEX run_unfinished",
}


@pytest.mark.parametrize("name", PLANS)
def test_reads_follow_an_index(tmp_path: Path, name: str) -> None:
    """Each read is one walk along one index, in its order: no table is scanned, nothing is sorted."""
    query = getattr(queries, name).compile(dialect=sqlite.dialect())
    values = tuple(1 for _ in query.positiontup)
    with contextlib.closing(SqliteFile(tmp_path / "netra_ws.db", "process")) as database:
        database.open()
        with database.reading() as connection:
            steps = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", values).all()
    assert [step[-1] for step in steps] == [PLANS[name]]
