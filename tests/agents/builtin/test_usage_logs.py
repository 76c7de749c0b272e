"""``analyze_usage`` counts what coding tools really used, once, and never makes up a cost."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.agents.builtin.usage_logs import MAX_COUNT, MAX_LINES, analyze_usage


def claude(output: int = 20, **changes: Any) -> dict[str, Any]:
    """Return a line as Claude Code writes it; *changes* are of its message or, for known names, of the line."""
    line = {"type": "assistant", "timestamp": "2025-09-05T10:00:00.123Z", "requestId": "req_1", "sessionId": "s"}
    message = {
        "id": "msg_1",
        "model": "claude-sonnet-4",
        "role": "assistant",
        "usage": {
            "input_tokens": 3,
            "cache_creation_input_tokens": 7,
            "cache_read_input_tokens": 90,
            "output_tokens": output,
            "cache_creation": {"ephemeral_5m_input_tokens": 7, "ephemeral_1h_input_tokens": 0},
            "service_tier": "standard",
        },
    }
    for name, value in changes.items():
        (line if name in line else message)[name] = value
    return {**line, "message": message}


def openai(**changes: Any) -> dict[str, Any]:
    """Return a chat completion as it is logged."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1757066400,
        "model": "gpt-5",
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "total_tokens": 120,
            "prompt_tokens_details": {"cached_tokens": 90},
        },
        **changes,
    }


def codex(total: int | None, last: int | None = None, timestamp: str = "2025-09-05T10:00:00Z") -> dict[str, Any]:
    """Return a token_count event whose input and output are both *total* (*last*), half of the input cached."""

    def usage(count: int | None) -> dict[str, int] | None:
        if count is None:
            return None
        return {
            "input_tokens": count,
            "cached_input_tokens": count // 2,
            "output_tokens": count,
            "reasoning_output_tokens": count // 4,
            "total_tokens": 2 * count,
        }

    details = {"total_token_usage": usage(total), "last_token_usage": usage(last), "model_context_window": 258400}
    return {"timestamp": timestamp, "type": "event_msg", "payload": {"type": "token_count", "info": details}}


def context(model: str) -> dict[str, Any]:
    """Return the line in which a Codex session names its model."""
    return {"timestamp": "2025-09-05T09:00:00Z", "type": "turn_context", "payload": {"model": model}}


def jsonl(*lines: object) -> str:
    """Return *lines* as a text of JSON lines."""
    return "".join(orjson.dumps(line).decode() + "\n" for line in lines)


def counts(result: dict[str, Any]) -> tuple[int, int, int, int]:
    """Return (input, output, cache_read, cache_write) of the totals."""
    totals = result["totals"]
    return totals["input"], totals["output"], totals["cache_read"], totals["cache_write"]


def outcome(result: dict[str, Any]) -> tuple[int, int, int, int]:
    """Return how many lines were (calls, duplicates, skipped, bad)."""
    return result["calls"], result["duplicates"], result["skipped"], result["bad_lines_total"]


def test_a_whole_result() -> None:
    """The result has the documented shape, and is made of JSON values."""
    logs = "\ufeff" + jsonl(claude(1), claude(20)) + "{oops\r\n\n" + jsonl({"type": "summary"}, openai()) + "\n\n"
    result = analyze_usage(logs, {"gpt-5": {"input": 1.25, "output": 10, "cached": 0.125}})
    gpt = {"calls": 1, "input": 10, "output": 20, "cache_read": 90, "cache_write": 0, "total": 120}
    sonnet = {"calls": 1, "input": 3, "output": 20, "cache_read": 90, "cache_write": 7, "total": 120}
    both: dict[str, Any] = {"calls": 2, "input": 13, "output": 40, "cache_read": 180, "cache_write": 7, "total": 240}
    cost = {"cost": 0.00022375, "cost_is_partial": False}
    both |= {"cache_hit_rate": 0.9, **cost, "cost_is_partial": True}
    assert result == {
        "lines": 5,
        "calls": 2,
        "duplicates": 1,
        "skipped": 1,
        "bad_lines_total": 1,
        "bad_lines": [{"line": 3, "reason": "not JSON"}],
        "unread_lines": 0,
        "period": {"from": "2025-09-05T10:00:00Z", "to": "2025-09-05T10:00:00.123000Z"},
        "totals": both,
        "cache_hit_rate": 0.9,
        "by_model": [
            {"model": "claude-sonnet-4", **sonnet, "cache_hit_rate": 0.9},
            {"model": "gpt-5", **gpt, "cache_hit_rate": 0.9, **cost},
        ],
        "by_day": [{"day": "2025-09-05", **both}],
        "unpriced_models": ["claude-sonnet-4"],
    }
    assert orjson.loads(orjson.dumps(result)) == result


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (claude(), (3, 20, 90, 7)),
        # an answer of the Messages API, not wrapped
        ({"id": "msg_1", "type": "message", **{k: claude()["message"][k] for k in ("model", "usage")}}, (3, 20, 90, 7)),
        (openai(), (10, 20, 90, 0)),
        # null where there is nothing
        (openai(usage={"prompt_tokens": 5, "completion_tokens": None, "prompt_tokens_details": None}), (5, 0, 0, 0)),
        # Responses API
        (
            {
                "object": "response",
                "usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 2},
            },
            (5, 2, 4, 0),
        ),
        # a line of a batch
        ({"custom_id": "a", "response": {"status_code": 200, "body": openai()}}, (10, 20, 90, 0)),
        ({"request": {}, "response": openai()}, (10, 20, 90, 0)),
        # gateways: both words for the same tokens, and all of them are in prompt_tokens
        (
            openai(
                usage={
                    "prompt_tokens": 100,
                    "completion_tokens": 2,
                    "prompt_tokens_details": {"cached_tokens": 60},
                    "cache_read_input_tokens": 60,
                    "cache_creation_input_tokens": 30,
                }
            ),
            (10, 2, 60, 30),
        ),
        (
            openai(usage={"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 3}}),
            (4, 0, 2, 3),
        ),
        # DeepSeek
        (openai(usage={"prompt_tokens": 9, "prompt_cache_hit_tokens": 8, "completion_tokens": 1}), (1, 1, 8, 0)),
        # codex exec --json
        (
            {"type": "turn.completed", "usage": {"input_tokens": 9, "cached_input_tokens": 4, "output_tokens": 2}},
            (5, 2, 4, 0),
        ),
        # flat
        ({"model": "m", "input_tokens": 9, "output_tokens": 2}, (9, 2, 0, 0)),
        ({"model": "m", "input_tokens": 9, "cached_input_tokens": 4, "output_tokens": 2}, (5, 2, 4, 0)),
        ({"model": "m", "input_tokens": 9, "cache_read_tokens": 40, "output_tokens": 2}, (9, 2, 40, 0)),
        ({"model": "m", "input_tokens": 9.0, "cache_write_tokens": 1, "ts": 1}, (9, 0, 0, 1)),
        ({"model": "m", "prompt_tokens": 9, "completion_tokens": 2}, (9, 2, 0, 0)),
    ],
)
def test_words(line: dict[str, Any], expected: tuple[int, ...]) -> None:
    """Every tool's words come to the same four counts, of which no token is in two."""
    result = analyze_usage([line])
    assert counts(result) == expected
    assert result["totals"]["total"] == sum(expected)
    assert outcome(result) == (1, 0, 0, 0)


def test_a_streamed_answer_is_one_call_with_its_last_counts() -> None:
    """Claude Code repeats a message while its output grows, and again in resumed sessions."""
    growing = [claude(1), claude(1), claude(159), claude(9)]
    assert counts(analyze_usage(growing)) == (3, 159, 90, 7)
    assert outcome(analyze_usage(growing)) == (1, 3, 0, 0)


def test_a_call_over_midnight_belongs_to_the_day_it_began() -> None:
    """The day of a repeated line is that of the first."""
    result = analyze_usage([claude(timestamp="2025-09-05T23:59:59Z"), claude(timestamp="2025-09-06T00:00:01Z")])
    assert [row["day"] for row in result["by_day"]] == ["2025-09-05"]


@pytest.mark.parametrize(
    ("lines", "calls"),
    [
        ([claude(id="a"), claude(id="b")], 2),
        ([claude(requestId="a"), claude(requestId="b")], 2),
        ([claude(requestId=None), claude(requestId=None)], 1),
        ([claude(id=None), claude(id=None)], 1),
        ([claude(id=None, requestId=None), claude(id=None, requestId=None)], 2),
        ([openai(), openai()], 1),
        ([openai(), openai(id="chatcmpl-2")], 2),
        # the id of a flat line may be the user's
        ([{"id": "u", "model": "m", "input_tokens": 1}] * 2, 2),
        ([{"request_id": "r", "model": "m", "input_tokens": 1}] * 2, 1),
    ],
)
def test_what_is_the_same_call(lines: list[Any], calls: int) -> None:
    """Lines are one call when the tool's own ids say so, and only then."""
    assert analyze_usage(lines)["calls"] == calls


def test_codex_sessions() -> None:
    """A rollout's calls have the model of the last turn; a refresh of the same running total is no call."""
    null = {"type": "event_msg", "payload": {"type": "token_count", "info": None}}
    lines = [
        {"type": "session_meta", "payload": {"id": "1"}},
        context("gpt-5"),
        null,
        codex(100, 100),
        codex(100, 100, "2025-09-05T10:00:09Z"),
        context("gpt-5-mini"),
        codex(140, 40),
        {"type": "session_meta", "payload": {"id": "2"}},
        codex(140, 140),
        {"type": "response_item", "payload": {"type": "message"}},
    ]
    result = analyze_usage(lines)
    assert outcome(result) == (3, 1, 6, 0)
    assert counts(result) == (140, 280, 140, 0)
    assert {row["model"]: row["total"] for row in result["by_model"]} == {
        "gpt-5": 200,
        "gpt-5-mini": 80,
        "unknown": 280,
    }


def test_codex_without_last_usage() -> None:
    """Where only running totals are written, their growth counts; a total that shrinks began again."""
    result = analyze_usage([codex(100), codex(160), codex(20), codex(None), codex(None, 4)])
    assert outcome(result) == (4, 0, 1, 0)
    assert result["totals"]["output"] == 100 + 60 + 20 + 4


def test_a_model_without_a_name_is_unknown() -> None:
    """A blank model is as none, and another word for it may have the name."""
    lines = [{"input_tokens": 1, "model": " "}, {"input_tokens": 2, "model": "", "model_name": "m"}]
    assert [row["model"] for row in analyze_usage(lines)["by_model"]] == ["m", "unknown"]


@pytest.mark.parametrize(
    "line",
    [
        {"type": "user", "message": {"role": "user", "content": "hi"}, "timestamp": "2025-09-05T10:00:00Z"},
        {"type": "user", "message": "hi"},
        {"type": "summary", "summary": "x", "leafUuid": "y"},
        {"type": "user", "toolUseResult": {"usage": {"input_tokens": 5}}},
        {"usage": None, "choices": []},
        {"usage": {}},
        {"usage": {"total_tokens": 5}},
        {"payload": "x"},
        claude(model="<synthetic>"),
        {},
    ],
)
def test_skipped_lines(line: dict[str, Any]) -> None:
    """A line that tells of no call is skipped, not bad."""
    assert outcome(analyze_usage([line])) == (0, 0, 1, 0)


NOT_WHOLE = "output_tokens is not a whole number from 0 to 10,000,000,000"
NO_TIME = "the time is neither ISO 8601 nor Unix time"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"model": ', "not JSON"),
        ("NaN", "not JSON"),
        ("\ud800", "not JSON"),
        ("[" * 3000, "not JSON"),
        ('{"a": "' + "x" * 70_000, "not JSON (a line of 70,007 characters)"),
        ("[]", "not a JSON object"),
        ("7", "not a JSON object"),
        (None, "not a JSON object"),
        ({"usage": 5}, "usage is not an object"),
        ({"usage": [1]}, "usage is not an object"),
        ({"input_tokens": "5"}, "input_tokens is not a number"),
        ({"input_tokens": True}, "input_tokens is not a number"),
        ({"output_tokens": -1}, NOT_WHOLE),
        ({"output_tokens": 1.5}, NOT_WHOLE),
        ({"output_tokens": math.nan}, NOT_WHOLE),
        ({"output_tokens": math.inf}, NOT_WHOLE),
        ({"output_tokens": 10**400}, NOT_WHOLE),
        (
            '{"output_tokens": 123456789012345678901234567890}',
            NOT_WHOLE,
        ),
        ({"input_tokens": 1, "cached_input_tokens": 2}, "more cached tokens than input tokens"),
        ({"input_tokens": 1, "model": 5}, "model is not a string of at most 100 characters"),
        ({"input_tokens": 1, "model": "m" * 101}, "model is not a string of at most 100 characters"),
        ({"input_tokens": 1, "ts": "yesterday"}, NO_TIME),
        ({"input_tokens": 1, "ts": "0001-01-01T00:00:00+14:00"}, NO_TIME),
        ({"input_tokens": 1, "ts": True}, NO_TIME),
        ({"input_tokens": 1, "ts": []}, NO_TIME),
        ({"input_tokens": 1, "ts": 10**400}, NO_TIME),
        ({"input_tokens": 1, "ts": "9" * 5000}, "the time is out of range"),
        ({"input_tokens": 1, "ts": math.inf}, "the time is out of range"),
        ({"input_tokens": 1, "ts": math.nan}, "the time is out of range"),
        ({"input_tokens": 1, "ts": -1}, "the time is out of range"),
    ],
)
def test_bad_lines(line: object, reason: str) -> None:
    """A line that cannot be counted is named by its number, and spoils no other."""
    result = analyze_usage([{"type": "user"}, line, openai()])
    assert result["bad_lines"] == [{"line": 2, "reason": reason}]
    assert outcome(result) == (1, 0, 1, 1)


def test_line_numbers_are_those_of_an_editor() -> None:
    """Blank lines count for the number and nothing else, and only a newline ends a line."""
    result = analyze_usage('\n \r\n{"summary": "a\u2028b\x85c"}\r\n{\n\nx')
    assert [bad["line"] for bad in result["bad_lines"]] == [4, 6]
    assert result["lines"] == 3


def test_only_the_first_bad_lines_are_named() -> None:
    """The number of bad lines is exact; a hundred of them are named."""
    result = analyze_usage("x\n" * 5000)
    assert result["bad_lines_total"] == result["lines"] == 5000
    assert [bad["line"] for bad in result["bad_lines"]] == list(range(1, 101))


@pytest.mark.parametrize("logs", ["{}\n" * (MAX_LINES + 7), [{}] * (MAX_LINES + 7)])
def test_too_many_lines_are_said_to_be_unread(logs: str | list[Any]) -> None:
    """What is beyond the limit is not counted, and the result says how much that is."""
    result = analyze_usage(logs)
    assert (result["lines"], result["unread_lines"]) == (MAX_LINES, 7)


@pytest.mark.parametrize("logs", ["", "\n\n", []])
def test_nothing(logs: str | list[Any]) -> None:
    """No lines give zeros, no rate, no period and no cost."""
    result = analyze_usage(logs, {"m": {"input": 1, "output": 1}})
    assert outcome(result) == (0, 0, 0, 0)
    assert result["period"] is result["cache_hit_rate"] is None
    assert "cost" not in result["totals"]


@pytest.mark.parametrize(
    ("time", "day"),
    [
        ("2025-09-05T23:30:00-02:00", "2025-09-06"),
        ("2025-09-05T23:30:00", "2025-09-05"),
        ("2025-09-05 23:30:00.5Z", "2025-09-05"),
        ("2025-09-05", "2025-09-05"),
        ("20250905", "2025-09-05"),
        ("1757066400", "2025-09-05"),
        (1757066400, "2025-09-05"),
        (1757066400.25, "2025-09-05"),
        (1757066400_000, "2025-09-05"),
        (1757066400_000_000, "2025-09-05"),
        (1757066400_000_000_000, "2025-09-05"),
        (0, "1970-01-01"),
        (None, "unknown"),
    ],
)
def test_times(time: object, day: str) -> None:
    """A day is a UTC date, from ISO 8601 or Unix time in any usual unit."""
    for name in ("timestamp", "ts", "time", "created", "created_at"):
        assert analyze_usage([{"input_tokens": 1, name: time}])["by_day"][0]["day"] == day


def test_the_time_may_stand_deeper() -> None:
    """A batch line has the time beside the usage."""
    result = analyze_usage([{"response": {"body": openai()}}])
    assert result["period"] == {"from": "2025-09-05T10:00:00Z", "to": "2025-09-05T10:00:00Z"}


PRICE = {"input": 3.0, "output": 15.0, "cached": 0.3, "cache_write": 3.75}


@pytest.mark.parametrize(
    ("price", "cost"),
    [
        (PRICE, (3 * 3 + 20 * 15 + 90 * 0.3 + 7 * 3.75) / 1e6),
        ({name: PRICE[name] for name in ("input", "output", "cached")}, (10 * 3 + 20 * 15 + 90 * 0.3) / 1e6),
        (dict.fromkeys(PRICE, 0), 0),
        ({"input": 3.0, "output": 15.0}, None),
        ({"output": 15.0, "cached": 0.3}, None),
        ({**PRICE, "output": math.nan}, None),
        ({**PRICE, "output": -1}, None),
        ({}, None),
    ],
)
def test_costs(price: dict[str, float], cost: float | None) -> None:
    """A call costs what its model's prices say; where one of them is missing it has no cost."""
    result = analyze_usage([claude()], {"claude-sonnet-4": price})
    assert result["totals"].get("cost") == (None if cost is None else pytest.approx(cost, abs=1e-9))
    assert result["unpriced_models"] == ([] if cost is not None else ["claude-sonnet-4"])


def test_without_prices_there_is_no_word_of_cost() -> None:
    """No prices: no cost, and no list of models without one."""
    result = analyze_usage([claude(), openai()])
    assert b"cost" not in orjson.dumps(result)
    assert result["unpriced_models"] == []


def test_a_price_is_for_the_exact_name() -> None:
    """A similar model's price would be a made-up cost."""
    result = analyze_usage([claude(model="claude-sonnet-4-20250514")], {"claude-sonnet-4": PRICE})
    assert "cost" not in result["totals"]
    assert result["unpriced_models"] == ["claude-sonnet-4-20250514"]


def test_many_models_and_days_are_folded() -> None:
    """Rows are bounded so that the result fits one event, and what is folded is still in the sums."""
    lines = [
        {"model": f"{n:0100}", "input_tokens": n, "output_tokens": 10**9, "ts": n * 86_400, "request_id": n}
        for n in range(2000)
    ]
    result = analyze_usage([*lines, {"input_tokens": 1}], {f"{5:0100}": PRICE})
    assert [len(result[name]) for name in ("by_model", "by_day", "unpriced_models")] == [101, 367, 100]
    assert result["by_model"][-1]["model"] == "(others)"
    assert (result["by_day"][0]["day"], result["by_day"][-1]["day"]) == ("(earlier)", "unknown")
    for rows in (result["by_model"], result["by_day"]):
        assert sum(row["total"] for row in rows) == result["totals"]["total"]
        assert sum(row.get("cost", 0) for row in rows) == result["totals"]["cost"]
    assert len(orjson.dumps(result)) < 256 * 1024


def test_sums_are_exact_in_every_json_reader() -> None:
    """The largest counts of the most lines stay below 2**53."""
    assert MAX_LINES * 4 * MAX_COUNT < 2**53


NAMES = """usage message payload info type response body model ts id requestId object input_tokens prompt_tokens
output_tokens cached_tokens cache_read_tokens last_token_usage total_token_usage"""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just("2025-09-05T10:00:00Z"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES.split()), inner, max_size=6),
    max_leaves=25,
)


@given(st.lists(JSON, max_size=12))
def test_every_line_has_one_fate(lines: list[Any]) -> None:
    """Whatever the lines are, each is a call, a repetition, skipped or bad, and nothing is raised."""
    result = analyze_usage(lines, {"m": PRICE})
    blank = sum(isinstance(line, str) and not line.strip() for line in lines)
    assert sum(outcome(result)) == result["lines"] == len(lines) - blank
    assert sum(row["total"] for row in result["by_model"]) == result["totals"]["total"]
    assert sum(row["total"] for row in result["by_day"]) == result["totals"]["total"]
    assert orjson.loads(orjson.dumps(result)) == result


@given(st.text())
def test_any_text(text: str) -> None:
    """Any text is analysed without an error."""
    result = analyze_usage(text)
    assert sum(outcome(result)) == result["lines"]
