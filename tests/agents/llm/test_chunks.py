"""An answer is put together rightly from the chunks of all kinds of servers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netra_ws.agents.llm.chunks import MAX_CALLS, MAX_CHARS, Answer, AskedCall, Nonsense, Piece, TokenCounts

from .endpoint import call, chunk, finish, say, think, used


def take(*parts: Any) -> Answer:
    answer = Answer()
    for part in parts:
        for one in part if isinstance(part, list) else [part]:
            answer.take(one)
    return answer


def asked(answer: Answer) -> list[tuple[str, Any]]:
    return [(one.name, json.loads(one.arguments)) for one in answer.calls()]


def part(index: int | None = None, call_id: str | None = None, name: str | None = None, arguments: Any = None) -> Any:
    """Return one fragment of a tool call with just these fields."""
    function = {"name": name, "arguments": arguments}
    fields = {"index": index, "id": call_id, "function": {k: v for k, v in function.items() if v is not None}}
    return {key: value for key, value in fields.items() if value is not None}


def parts(*fragments: Any) -> Any:
    return chunk({"tool_calls": list(fragments)})


def test_text() -> None:
    """Pieces of text are told as they come and make one text; the end and the usage are noted."""
    answer = Answer()
    assert answer.take(chunk({"role": "assistant", "content": ""})) == []
    assert answer.take(chunk({"content": "Hel"})) == [Piece("text", "Hel")]
    assert answer.take(chunk({"content": "lo"})) == [Piece("text", "lo")]
    assert answer.finish_reason == ""
    for last in (*finish(), *used(7, 3, cached=2)):
        assert answer.take(last) == []
    assert (answer.text, answer.finish_reason) == ("Hello", "stop")
    assert answer.counts == TokenCounts(7, 3, 2)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning(field: str) -> None:
    """Reasoning is told apart from the text, whichever of both names it has."""
    answer = Answer()
    pieces = [piece for one in think("I ", "see", field=field) for piece in answer.take(one)]
    assert pieces == [Piece("reasoning", "I "), Piece("reasoning", "see")]
    assert answer.text == ""


def test_reasoning_under_both_names() -> None:
    """A server that sends the reasoning under both names is heard once."""
    assert Answer().take(chunk({"reasoning_content": "so", "reasoning": "so"})) == [Piece("reasoning", "so")]


def test_content_in_parts() -> None:
    """Content in parts is read: thinking as reasoning, text as text, what is neither is left out."""
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    content = [thinking, {"type": "text", "text": "yes"}, {"type": "reference", "ids": [1]}, 7]
    assert Answer().take(chunk({"content": content})) == [Piece("reasoning", "hm"), Piece("text", "yes")]


def test_refusal() -> None:
    """A refusal is the model's answer, and read like one."""
    assert take(chunk({"refusal": "I can't."})).text == "I can't."


@pytest.mark.parametrize("choices", [(), None, ...])
def test_usage_without_choices(choices: Any) -> None:
    """The chunk with the usage may have no choice, null for them, or none at all."""
    assert take(used(1, 2, choices=choices)).counts == TokenCounts(1, 2, None)


def test_usage_that_grows() -> None:
    """Where each chunk has a usage, the last one counts."""
    one, other = chunk({"content": "a"}, usage={"prompt_tokens": 5, "completion_tokens": 1}), used(5, 9)
    assert take(one, other).counts == TokenCounts(5, 9, None)


@pytest.mark.parametrize("usage", [None, 7, {}, {"prompt_tokens": "7"}, {"prompt_tokens": -1}, {"prompt_tokens": True}])
def test_usage_that_says_nothing(usage: Any) -> None:
    """A count that is absent or no count is not known, which is not zero."""
    assert take(chunk(usage=usage)).counts.input_tokens is None


def test_other_choices() -> None:
    """Only the first choice is listened to."""
    other = chunk({"content": "no"})
    other["choices"][0]["index"] = 1
    assert take(say("yes"), other).text == "yes"


class TestCalls:
    def test_by_the_book(self) -> None:
        """Id and name come first, arguments in fragments, several calls at indexes of their own."""
        answer = take(call("a", '{"x"', ":1}"), call("b", "{}", index=1, call_id="call_b"), finish("tool_calls"))
        assert answer.calls() == [AskedCall("call_a", "a", '{"x":1}'), AskedCall("call_b", "b", "{}")]

    def test_interleaved(self) -> None:
        """Fragments of several calls may come in turns."""
        answer = take(
            parts(part(0, "i", "a", ""), part(1, "j", "b", "")),
            parts(part(1, arguments='{"y":')),
            parts(part(0, arguments='{"x":')),
            parts(part(1, arguments="2}")),
            parts(part(0, arguments="1}")),
        )
        assert asked(answer) == [("a", {"x": 1}), ("b", {"y": 2})]

    def test_index_reused(self) -> None:
        """A server that counts no further than 0 opens another call by another id."""
        answer = take(call("a", '{"x":', "1}"), call("a", '{"x":', "2}", call_id="call_b"))
        assert asked(answer) == [("a", {"x": 1}), ("a", {"x": 2})]
        assert [one.call_id for one in answer.calls()] == ["call_a", "call_b"]

    def test_index_reused_without_arguments(self) -> None:
        """So does one whose calls have no arguments, by another name."""
        assert asked(take(call("a"), call("b", call_id="call_b"))) == [("a", {}), ("b", {})]

    def test_fresh_id_on_each_delta(self) -> None:
        """Another id in the middle of the arguments is no other call; behind their end it is."""
        answer = take(
            parts(part(0, "i1", "a", "")),
            parts(part(0, "i2", arguments='{"x": "}')),
            parts(part(0, "i3", arguments='"')),
            parts(part(0, "i4", arguments="}")),
            parts(part(0, "i5", "b", "{}")),
        )
        assert asked(answer) == [("a", {"x": "}"}), ("b", {})]
        assert answer.calls()[0].call_id == "i1"

    @pytest.mark.parametrize("call_id", ["i", None])
    def test_missing_index(self, call_id: str | None) -> None:
        """Without an index, fragments go on with the call of their id, or with the last one."""
        answer = take(parts(part(None, "i", "a", '{"x"')), parts(part(None, call_id, arguments=":1}")))
        assert asked(answer) == [("a", {"x": 1})]

    def test_missing_index_interleaved(self) -> None:
        """Without an index, ids alone tell calls apart."""
        answer = take(
            parts(part(None, "i", "a", '{"x":1}')),
            parts(part(None, "j", "b", '{"y":')),
            parts(part(None, "j", arguments="2}")),
        )
        assert asked(answer) == [("a", {"x": 1}), ("b", {"y": 2})]

    def test_whole_calls_without_index_or_id(self) -> None:
        """Several whole calls in one delta are several, though nothing else tells them apart; each gets an id."""
        answer = take(parts(part(name="a", arguments={"x": 1}), part(name="a", arguments={"x": 1}), part(name="b")))
        assert asked(answer) == [("a", {"x": 1}), ("a", {"x": 1}), ("b", {})]
        assert len({one.call_id for one in answer.calls()}) == 3

    def test_calls_without_anything(self) -> None:
        """Two calls of the same tool in one delta are two, also with nothing but the name."""
        assert asked(take(parts(part(name="a"), part(name="a")))) == [("a", {}), ("a", {})]

    def test_whole_calls_in_turn(self) -> None:
        """Several whole calls in deltas of their own are several, at the same index and without ids."""
        answer = take(parts(part(0, name="a", arguments='{"x":1}')), parts(part(0, name="a", arguments='{"x":2}')))
        assert asked(answer) == [("a", {"x": 1}), ("a", {"x": 2})]

    @pytest.mark.parametrize("arguments", [{"x": [1, {"y": None}]}, {}])
    def test_arguments_as_object(self, arguments: Any) -> None:
        """Arguments that come as an object and not as its text are read."""
        assert asked(take(parts(part(0, "i", "a", arguments)))) == [("a", arguments)]

    def test_name_at_each_fragment(self) -> None:
        """A server that repeats the name with each fragment calls nothing twice, nor by a double name."""
        fragments = ['{"x"', ":", "1}"]
        assert asked(take(*(parts(part(0, "i", "a", fragment)) for fragment in fragments))) == [("a", {"x": 1})]

    def test_empty_ids(self) -> None:
        """Ids that are empty are none, and the same id of two calls is made two."""
        answer = take(parts(part(0, "", "a", "{}"), part(1, "", "b", "{}")))
        assert len({one.call_id for one in answer.calls()} - {""}) == 2
        answer = take(parts(part(0, "i", "a", "{}"), part(1, "i", "b", "{}"), part(2, "call_1", "c", "{}")))
        assert len({one.call_id for one in answer.calls()}) == 3

    def test_bad_arguments_stay(self) -> None:
        """Arguments that are no JSON are given on as they are: the model is told."""
        assert take(call("a", '{"x": ')).calls()[0].arguments == '{"x":'

    def test_in_a_whole_message(self) -> None:
        """A message in place of a delta, as without streaming, is read in the same way."""
        message = {"content": "one moment", "tool_calls": [part(None, "i", "a", "{}")]}
        answer = take({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})
        assert (answer.text, asked(answer), answer.finish_reason) == ("one moment", [("a", {})], "tool_calls")

    @settings(deadline=None)
    @given(
        arguments=st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=10), max_size=3), max_size=4),
        size=st.integers(1, 7),
        style=st.sampled_from(["index", "reuse", "fresh", "id"]),
    )
    def test_any_fragments(self, arguments: list[dict[str, str]], size: int, style: str) -> None:
        """In each style, arguments of any content in fragments of any size come together as they were sent."""
        deltas = []
        for number, one in enumerate(arguments):
            text = json.dumps(one, ensure_ascii=False)
            for at in range(0, len(text), size):
                first = at == 0
                call_id = f"c{number}" if first or style == "id" else f"c{number}-{at}" if style == "fresh" else None
                index = {"index": number, "id": None}.get(style, 0)
                deltas.append(parts(part(index, call_id, "t" if first else None, text[at : at + size])))
        assert [json.loads(one.arguments) for one in take(*deltas).calls()] == arguments


class TestBounds:
    def test_calls(self) -> None:
        """A model that asks for more calls than a run may have open sends nonsense."""
        with pytest.raises(Nonsense):
            take(*(call("a", "{}", index=n, call_id=f"c{n}") for n in range(MAX_CALLS + 1)))

    @pytest.mark.parametrize(
        "delta",
        [{"content": "a" * 2**20}, {"reasoning": "a" * 2**20}, {"tool_calls": [part(0, "i", "a", "a" * 2**20)]}],
    )
    def test_characters(self, delta: Any) -> None:
        """An answer without an end is nonsense before it fills the memory, whatever it is made of."""
        with pytest.raises(Nonsense):
            take(*(chunk(delta) for _ in range(MAX_CHARS // 2**20 + 1)))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"choices": 7},
            {"choices": {}},
            {"choices": [7]},
            chunk() | {"choices": [{"index": 0, "delta": [1]}]},
            chunk({"tool_calls": {"a": 1}}),
            chunk({"tool_calls": [7]}),
        ],
    )
    def test_nonsense(self, wrong: Any) -> None:
        """What is no chunk is refused with a text that does not quote it."""
        with pytest.raises(Nonsense) as caught:
            take(wrong)
        assert caught.value.code == "LLM_BROKEN"

    @settings(deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["choices", "delta", "content", "tool_calls", "function", "arguments", "usage", "id"]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        )
    )
    def test_any_json(self, value: Any) -> None:
        """Any JSON object is taken or refused; nothing else happens."""
        answer = Answer()
        try:
            answer.take({"choices": [{"delta": value}]})
            answer.take(value if isinstance(value, dict) else {})
        except Nonsense:
            return
        answer.calls()
