"""The tool ``analyze_usage``: what LLM coding tools wrote about their tokens, added up by model and by day.

Shapes of a line that are known, from what the tools write:

- Anthropic: ``message`` (or the line itself) with ``model`` and ``usage``.  Claude Code writes one line per part of
  an answer and repeats the usage in each, with ``output_tokens`` still growing; resumed sessions repeat older lines.
  Lines of one ``message.id`` and ``requestId`` are one call, with the largest counts (ccusage issue 901).
- OpenAI: ``model``, ``usage``, ``created``; also inside ``response`` and ``response.body`` (batches).
- Codex rollouts: ``payload.info.last_token_usage``, for the model of the last ``turn_context``.  The event is written
  again, unchanged but for its time, when rate limits are refreshed: an unchanged running total is a repetition
  (ccusage issue 1288).  Without ``last_token_usage`` the growth of the running total counts.
- Flat: counts, ``model`` and a time side by side.

Two words for cached tokens mean two things.  ``cached…`` is OpenAI's and a *part* of the input; ``cache_read…`` and
``cache_creation…`` are Anthropic's and stand *beside* the input, except where the input is called ``prompt_tokens``
(gateways), which holds everything.  Here ``input`` is always the part that no cache has seen, and
``total = input + cache_read + cache_write + output``.  Reasoning tokens are a part of the output.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
import orjson

MAX_LINES = 200_000
MAX_BAD_NAMED = 100
LONG_LINE_CHARS = 65_536  # real lines are longer at times (a tool's result); only a bad one is told so
MAX_MODELS = 100
MAX_DAYS = 366
MAX_NAME_CHARS = 100
MAX_COUNT = 10**10  # of one line; 200,000 lines of four such counts stay below 2**53, exact in every JSON reader

Prices = Mapping[str, Mapping[str, float]]
Record = Mapping[Any, Any]

_TIMES = ("timestamp", "ts", "time", "created", "created_at", "date")
_MODELS = ("model", "model_name", "model_id")
_INPUTS = ("prompt_tokens", "input_tokens")
_OUTPUTS = ("completion_tokens", "output_tokens")
_CACHED_PARTS = ("cached_input_tokens", "cached_tokens", "prompt_cache_hit_tokens")
_CACHE_READS = ("cache_read_input_tokens", "cache_read_tokens")
_CACHE_WRITES = (
    "cache_creation_input_tokens",
    "cache_creation_tokens",
    "cache_write_input_tokens",
    "cache_write_tokens",
)
_DETAILS = ("prompt_tokens_details", "input_tokens_details")


class _Bad(Exception):
    """This line cannot be counted; the text says why, without quoting it."""


@attrs.frozen
class Tokens:
    """Counts of one or many calls; no token is in two of them."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0

    @property
    def total(self) -> int:
        return self.input + self.output + self.cache_read + self.cache_write

    def merge(self, other: Tokens, how: Callable[[int, int], int]) -> Tokens:
        return Tokens(
            how(self.input, other.input),
            how(self.output, other.output),
            how(self.cache_read, other.cache_read),
            how(self.cache_write, other.cache_write),
        )


@attrs.frozen
class _Call:
    model: str
    time: datetime | None
    tokens: Tokens
    # What repetitions of this call have in common, or None when it cannot be known.
    key: tuple[str, ...] | None


@attrs.define
class _Row:
    """A row of the result while it is added up."""

    calls: int = 0
    tokens: Tokens = Tokens()
    cost: float = 0.0
    priced: int = 0

    def add(self, calls: int, tokens: Tokens, cost: float | None) -> None:
        self.calls += calls
        self.tokens = self.tokens.merge(tokens, int.__add__)
        if cost is not None:
            self.cost += cost
            self.priced += calls

    def add_row(self, other: _Row) -> None:
        self.add(other.calls, other.tokens, None)
        self.cost += other.cost
        self.priced += other.priced

    def result(self) -> dict[str, Any]:
        tokens = self.tokens
        seen = tokens.input + tokens.cache_read + tokens.cache_write
        row = {
            "calls": self.calls,
            **attrs.asdict(tokens),
            "total": tokens.total,
            "cache_hit_rate": round(tokens.cache_read / seen, 4) if seen else None,
        }
        if self.priced:
            row |= {"cost": round(self.cost, 9), "cost_is_partial": self.priced < self.calls}
        return row


@attrs.define
class _Reader:
    """Turns lines into calls; knows what earlier lines said about the session."""

    calls: list[_Call] = attrs.Factory(list)
    skipped: int = 0
    duplicates: int = 0
    _places: dict[tuple[str, ...], int] = attrs.Factory(dict)
    _session_model: str | None = None
    _running_total: Tokens | None = None

    def read(self, record: object) -> None:
        """Count one line.

        Raises:
            _Bad: it cannot be counted.
        """
        if not isinstance(record, Mapping):
            raise _Bad("not a JSON object")
        payload = record.get("payload")
        if isinstance(payload, Mapping) and "usage" not in record:
            self._read_rollout(record, payload)
            return
        call = _call(record, self._session_model)
        if call is None:
            self.skipped += 1
        elif call.key is not None and call.key in self._places:
            self.duplicates += 1
            first = self.calls[self._places[call.key]]
            # The day is that of the first line: a call is not split by midnight.
            self.calls[self._places[call.key]] = attrs.evolve(first, tokens=first.tokens.merge(call.tokens, max))
        else:
            if call.key is not None:
                self._places[call.key] = len(self.calls)
            self.calls.append(call)

    def _read_rollout(self, record: Record, payload: Record) -> None:
        kind = record.get("type")
        if kind == "session_meta":
            self._session_model = self._running_total = None
        if kind in ("session_meta", "turn_context"):
            self._session_model = _model(payload) or self._session_model
        details = payload.get("info") if payload.get("type") == "token_count" else None
        if not isinstance(details, Mapping):
            self.skipped += 1
            return
        last, running = _tokens(details.get("last_token_usage")), _tokens(details.get("total_token_usage"))
        before, self._running_total = self._running_total, running or self._running_total
        if running is not None and running == before:
            self.duplicates += 1
            return
        if last is None and running is not None:
            # A total that shrinks has begun again, after a compaction.
            grown = running.merge(before or Tokens(), int.__sub__)
            last = grown if min(attrs.astuple(grown)) >= 0 else running
        if last is None:
            self.skipped += 1
            return
        self.calls.append(_Call(_model(payload) or self._session_model or "unknown", _time(record), last, None))


def _call(record: Record, session_model: str | None) -> _Call | None:
    """Return the call that a line tells of, or None for a line without usage."""
    message, response = record.get("message"), record.get("response")
    body = response.get("body") if isinstance(response, Mapping) else None
    for place in (record, message, response, body):
        if not isinstance(place, Mapping):
            continue
        usage = place.get("usage")
        # A flat line has the counts beside the model; deeper than that they are always in "usage".
        tokens = _tokens(usage if usage is not None or place is not record else record)
        if tokens is not None:
            break
    else:
        return None
    model = _model(place) or _model(record) or session_model or "unknown"
    if model == "<synthetic>":  # Claude Code's own words, such as "request interrupted"; no model was called
        return None
    call_id = place.get("id")
    if place is record and not ("object" in record or record.get("type") == "message"):
        call_id = None  # a flat line's id may be anybody's: the user, the session
    request_id = record.get("requestId", record.get("request_id"))
    ids = tuple(part for part in (call_id, request_id) if isinstance(part, str) and part)
    return _Call(model, _time(record) or _time(place), tokens, (model, *ids) if ids else None)


def _tokens(usage: object) -> Tokens | None:
    if usage is None:
        return None
    if not isinstance(usage, Mapping):
        raise _Bad("usage is not an object")
    details: Record = next((usage[name] for name in _DETAILS if isinstance(usage.get(name), Mapping)), {})
    part = _count(usage, _CACHED_PARTS)
    if part is None:
        part = _count(details, _CACHED_PARTS)
    read, write = _count(usage, _CACHE_READS), _count(usage, _CACHE_WRITES)
    if write is None:
        write = _count(details, _CACHE_WRITES)
    entered, output = _count(usage, _INPUTS), _count(usage, _OUTPUTS)
    if all(count is None for count in (entered, output, part, read, write)):
        return None
    fresh = entered or 0
    if part is not None or "prompt_tokens" in usage:
        # Gateways give both words for the same tokens.
        read = max(part or 0, read or 0)
        fresh -= read + (write or 0 if "prompt_tokens" in usage else 0)
        if fresh < 0:
            raise _Bad("more cached tokens than input tokens")
    return Tokens(fresh, output or 0, read or 0, write or 0)


def _count(usage: Record, names: tuple[str, ...]) -> int | None:
    for name in names:
        value = usage.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _Bad(f"{name} is not a number")
        if not 0 <= value <= MAX_COUNT or value != int(value):
            raise _Bad(f"{name} is not a whole number from 0 to {MAX_COUNT:,}")
        return int(value)
    return None


def _model(place: Record) -> str | None:
    for name in _MODELS:
        value = place.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or len(value) > MAX_NAME_CHARS:
            raise _Bad(f"{name} is not a string of at most {MAX_NAME_CHARS} characters")
        if value.strip():
            return value.strip()
    return None


def _time(place: Record) -> datetime | None:
    value = next((place[name] for name in _TIMES if place.get(name) is not None), None)
    if value is None:
        return None
    try:
        if isinstance(value, str) and not (value.isdecimal() and len(value) > len("20250905")):
            time = datetime.fromisoformat(value.strip())
            # Without a zone it is taken for UTC.
            return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise _Bad("the time is neither ISO 8601 nor Unix time")
        seconds = float(value)
        for _unit in ("milliseconds", "microseconds", "nanoseconds"):
            if seconds >= 1e11:  # in seconds, the year 5138
                seconds /= 1_000
        if not 0 <= seconds < 1e11:
            raise _Bad("the time is out of range")
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError):
        raise _Bad("the time is neither ISO 8601 nor Unix time") from None


def _parse(line: object) -> object:
    if not isinstance(line, str):
        return line
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        length = f" (a line of {len(line):,} characters)" if len(line) > LONG_LINE_CHARS else ""
        raise _Bad(f"not JSON{length}") from None


def analyze_usage(jsonl_logs: str | Sequence[object], prices: Prices | None = None) -> dict[str, Any]:
    """Add up the tokens in *jsonl_logs* (one string of JSON lines, or a list of objects) by model and by UTC day.

    *prices* are per million tokens: ``{model: {"input", "output", "cached", "cache_write"}}``.  ``cached`` is for cache
    reads; ``cache_write`` is as ``input`` when absent.  A cost is never guessed: a call has one only when its model's
    exact name has every price that it needs.  Time is linear in the input; a long one is work for a thread.

    The result is made of JSON values and, being bounded in its rows, below 256 KiB::

        {"lines": 5, "calls": 2, "duplicates": 1, "skipped": 1, "bad_lines_total": 1,   # the last four add up to lines
         "bad_lines": [{"line": 4, "reason": "not JSON"}],                              # the first 100; counted from 1
         "unread_lines": 0,                                                             # beyond the first 200,000
         "period": {"from": "2025-09-05T10:00:00Z", "to": "2025-09-05T11:00:00Z"},       # or None
         "totals": {"calls": 2, "input": 8, "output": 30, "cache_read": 90, "cache_write": 2, "total": 130,
                    "cache_hit_rate": 0.9,                                              # None when nothing was read
                    "cost": 0.0123, "cost_is_partial": True},                         # both only where a price is known
         "cache_hit_rate": 0.9,
         "by_model": [{"model": "…", **as_in_totals}],       # largest total first; after 100 rows "(others)"
         "by_day": [{"day": "2025-09-05", **as_in_totals}],  # the last 366 days, "(earlier)" before, "unknown" after
         "unpriced_models": ["…"]}                           # with calls that have no cost; empty without any prices
    """
    lines: Sequence[object] = jsonl_logs
    if isinstance(jsonl_logs, str):
        # Not splitlines(): U+2028 and form feeds may stand in a JSON string.
        lines = jsonl_logs.removeprefix("\ufeff").rstrip().split("\n")
    reader = _Reader()
    bad: list[dict[str, Any]] = []
    count = bad_total = 0
    for number, line in enumerate(lines[:MAX_LINES], 1):
        if isinstance(line, str) and not line.strip():
            continue
        count += 1
        try:
            reader.read(_parse(line))
        except _Bad as exc:
            bad_total += 1
            if len(bad) < MAX_BAD_NAMED:
                bad.append({"line": number, "reason": str(exc)})
    return {
        "lines": count,
        "calls": len(reader.calls),
        "duplicates": reader.duplicates,
        "skipped": reader.skipped,
        "bad_lines_total": bad_total,
        "bad_lines": bad,
        "unread_lines": max(0, len(lines) - MAX_LINES),
        **_add_up(reader.calls, prices or {}),
    }


def _add_up(calls: Sequence[_Call], prices: Prices) -> dict[str, Any]:
    cells: defaultdict[tuple[str, str], _Row] = defaultdict(_Row)
    for call in calls:
        cells[call.model, call.time.date().isoformat() if call.time else "unknown"].add(1, call.tokens, None)
    totals, models, days = _Row(), defaultdict[str, _Row](_Row), defaultdict[str, _Row](_Row)
    for (model, day), cell in cells.items():
        cost = _cost(cell.tokens, prices.get(model))
        for row in (totals, models[model], days[day]):
            row.add(cell.calls, cell.tokens, cost)
    times = [call.time for call in calls if call.time is not None]
    by_model = sorted(models.items(), key=lambda item: (-item[1].tokens.total, item[0]))
    by_day = sorted(days.items(), reverse=True)  # newest first, so that the oldest are folded; "unknown" above digits
    return {
        "period": {"from": _iso(min(times)), "to": _iso(max(times))} if times else None,
        "totals": totals.result(),
        "cache_hit_rate": totals.result()["cache_hit_rate"],
        "by_model": [{"model": name, **row.result()} for name, row in _folded(by_model, MAX_MODELS, "(others)")],
        "by_day": [{"day": name, **row.result()} for name, row in reversed(_folded(by_day, MAX_DAYS, "(earlier)"))],
        "unpriced_models": [name for name, row in by_model if prices and row.priced < row.calls][:MAX_MODELS],
    }


def _folded(rows: list[tuple[str, _Row]], limit: int, name: str) -> list[tuple[str, _Row]]:
    if len(rows) <= limit:
        return rows
    rest = _Row()
    for _, row in rows[limit:]:
        rest.add_row(row)
    return [*rows[:limit], (name, rest)]


def _cost(tokens: Tokens, price: Mapping[str, float] | None) -> float | None:
    if price is None:
        return None
    rates = {
        "input": price.get("input"),
        "output": price.get("output"),
        "cache_read": price.get("cached"),
        "cache_write": price.get("cache_write", price.get("input")),
    }
    cost = 0.0
    for kind, count in attrs.asdict(tokens).items():
        rate = rates[kind]
        if count and (rate is None or not math.isfinite(rate) or rate < 0):
            return None
        cost += count * (rate or 0)
    return cost / 1_000_000


def _iso(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
