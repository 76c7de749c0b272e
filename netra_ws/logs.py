"""How the log looks: lines of JSON, or lines for people, each with the user, thread and run that it is about.

Whatever is logged inside of a run, by this package, by an agent, or by a library that an agent uses,
carries ``user_id``, ``thread_id``, ``run_id`` and ``agent_name``: they are bound as contextvars of structlog
where a run begins (``agents/execution.py``). Agents may log by ``logging`` or by ``structlog``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO

import structlog

from netra_ws.settings.sections import Log as LogSettings

#: What every record has; other attributes are fields that somebody has added.
_FIELDS = "netra_ws_fields"
_USUAL = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a record says besides its text: what is bound where it was made, and what was added to it."""
    added = {name: value for name, value in vars(record).items() if name not in _USUAL}
    fields = added.pop(_FIELDS, None)
    return {**structlog.contextvars.get_contextvars(), **added, **(fields if isinstance(fields, dict) else {})}


def _to_record(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return the keywords for ``logging``; its records have names of their own, so fields travel under one."""
    options = {name: event.pop(name) for name in ("exc_info", "stack_info", "stacklevel") if name in event}
    return {"msg": event.pop("event"), "extra": {_FIELDS: dict(event)}, **options}


class JsonFormatter(logging.Formatter):
    """Writes each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # A field that is called like one of these keeps its value, under a name beside it.
        line |= {f"{name}_" if name in line else name: value for name, value in fields_of(record).items()}
        return json.dumps(line, ensure_ascii=False, default=str)


class ConsoleFormatter(logging.Formatter):
    """Writes each record for people: time, level, who says it, the text, and the fields."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's own name)
        return "  ".join([super().formatMessage(record), *_pairs(fields_of(record))])


def _pairs(fields: Mapping[str, Any]) -> list[str]:
    return [" ".join(f"{name}={value}" for name, value in fields.items() if value is not None)] if fields else []


def set_up_logging(log: LogSettings, stream: TextIO) -> None:
    """Send every record of *log.level* and above to *stream*, also those that are made by structlog."""
    handler = logging.StreamHandler(stream)
    json_lines = (log.format or ("console" if stream.isatty() else "json")) == "json"
    handler.setFormatter(JsonFormatter() if json_lines else ConsoleFormatter())
    logging.basicConfig(level=log.level.upper(), handlers=[handler], force=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            _to_record,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
