"""Lines of the log: JSON or for people, and whose they are."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
import trio

from netra_ws import Identity, Run
from netra_ws.logs import JsonFormatter, set_up_logging
from netra_ws.settings import Log
from netra_ws.testing import check_run, open_session


def test_log_lines_are_json() -> None:
    """A record is one line of JSON, also with an exception in it."""
    try:
        raise ValueError("why\nnot")
    except ValueError:
        record = logging.LogRecord("here", logging.ERROR, "f", 1, "so %s", ("it\nis",), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    fields = json.loads(line)
    assert (fields["level"], fields["logger"], fields["message"]) == ("error", "here", "so it\nis")
    assert "ValueError: why" in fields["exception"]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """The log as it was."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize(("format_", "pattern"), [("json", r'\{"time": .*\}\n'), ("console", r".* WARNING here: so\n")])
def test_log_formats(format_: str, pattern: str) -> None:
    """The log is JSON or readable as the settings say, from the level they say."""
    out = io.StringIO()
    set_up_logging(Log(format=format_, level="warning"), out)
    logging.getLogger("here").info("not this")
    logging.getLogger("here").warning("so")
    assert re.fullmatch(pattern, out.getvalue())


def _lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


async def test_whose_line_it_is() -> None:
    """What is logged in a run, by whomever and wherever, carries user, thread and run; what is not does not."""

    async def helper(run: Run) -> None:
        logging.getLogger("library").warning("in a sub-run")

    async def agent(run: Run) -> None:
        logging.getLogger("library").info("by logging %d", 1)
        structlog.get_logger("mine").info("by structlog", sources=3)
        await run.thread(logging.getLogger("library").info, "in a thread")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.delegate, helper, "x")
        await run.delegate(helper, "x")
        logging.getLogger("library").info("behind it")

    out = io.StringIO()
    set_up_logging(Log(format="json", level="info"), out)
    async with open_session({"agent": agent}) as (server, session), server.context_for(Identity("bob")) as bob:
        run = await session.start("x", agent="agent")
        other = await bob.start("x", agent="agent")
        assert (await run.result()).status == (await other.result()).status == "success"
        logging.getLogger("library").info("outside")
    lines = _lines(out)
    mine = [line for line in lines if line.get("run_id") == run.run_id]
    assert [line["message"] for line in mine] == [
        "run started",
        "by logging 1",
        "by structlog",
        "in a thread",
        "behind it",
        "run ended",
    ]
    names = {(line["user_id"], line["thread_id"], line["agent_name"]) for line in mine}
    assert names == {("tester", run.thread_id, "agent")}
    assert next(line["sources"] for line in mine if line["message"] == "by structlog") == 3
    assert (mine[-1]["status"], mine[-1]["cancelled_by"], mine[-1]["events"]) == ("success", None, 2)
    subs = [line for line in lines if line.get("parent_run_id") == run.run_id]
    assert sum(line["message"] == "in a sub-run" for line in subs) == 2
    assert all(line["user_id"] == "tester" and line["run_id"] != run.run_id for line in subs)
    outside = next(line for line in lines if line["message"] == "outside")
    assert outside.keys() == {"time", "level", "logger", "message"}


def test_fields_of_structlog_are_free() -> None:
    """An event of structlog may have fields of any name, also those that logging has for itself; none is lost."""
    out = io.StringIO()
    set_up_logging(Log(format="json", level="info"), out)
    names = ("name", "args", "module", "message", "thread", "level", "filename", "msg", "extra")
    structlog.get_logger("shop").info("order placed", **{name: f"my {name}" for name in names})
    try:
        raise ValueError("why")
    except ValueError:
        structlog.get_logger("shop").exception("failed", order=7)
    first, second = _lines(out)
    assert (first["message"], first["level"], first["logger"]) == ("order placed", "info", "shop")
    assert {f"my {name}" for name in names} <= set(first.values())
    assert (first["name"], first["level_"], first["message_"]) == ("my name", "my level", "my message")
    assert (second["order"], "ValueError: why" in second["exception"]) == (7, True)


class Broken(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("the collector is down")


async def test_a_handler_that_fails_hurts_no_run() -> None:
    """A program's handler that raises at every line changes nothing of a run, and nothing of the server."""

    async def agent(run: Run) -> str:
        return "done"

    async def fails(run: Run) -> None:
        raise ValueError("in the agent")

    async with open_session({"agent": agent, "fails": fails}) as (_, session):
        broken = Broken()
        logging.getLogger("netra_ws.agents").addHandler(broken)
        logging.getLogger("netra_ws.agents").setLevel(logging.DEBUG)
        try:
            for name, status in (("agent", "success"), ("fails", "error"), ("agent", "success")):
                run = await session.start("x", agent=name)
                assert check_run([event async for event in run]).status == status
        finally:
            logging.getLogger("netra_ws.agents").removeHandler(broken)
            logging.getLogger("netra_ws.agents").setLevel(logging.NOTSET)


def test_fields_for_people() -> None:
    """On a terminal the fields stand behind the text."""
    out = io.StringIO()
    set_up_logging(Log(format="console", level="info"), out)
    with structlog.contextvars.bound_contextvars(run_id="r"):
        logging.getLogger("here").info("so", extra={"status": "success", "error_code": None})
    assert out.getvalue().endswith(" INFO    here: so  run_id=r status=success\n")


def test_a_field_that_is_no_json() -> None:
    """Whatever stands in a field, the line is JSON, and nothing takes the place of its usual fields."""
    out = io.StringIO()
    set_up_logging(Log(format="json", level="info"), out)
    with structlog.contextvars.bound_contextvars(level="mine", time="mine"):
        logging.getLogger("here").info("so", extra={"thing": object()})
    (line,) = _lines(out)
    assert (line["level"], line["thing"][:7], line["time"] != "mine") == ("info", "<object", True)
    assert (line["level_"], line["time_"]) == ("mine", "mine")
