"""``read_intent`` picks the tool that a sentence asks for, and none where it asks for none."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.agents.builtin.calculate import calculate
from netra_ws.agents.builtin.intent import MAX_ARGUMENT_CHARS, Intent, read_intent
from netra_ws.errors import AgentError

ARITHMETIC = {
    "What is 17% of 2,340?": "17% of 2,340",
    "calculate sqrt(2)*3": "sqrt(2)*3",
    "12*(3+4)=?": "12*(3+4)",
    "how much is 3 times 7 plus 2": "3 times 7 plus 2",
    "2+2": "2+2",
    "=2+2": "2+2",
    "- 2+3": "2+3",
    "Hi! Could you compute 5^3 for me?": "5^3",
    "what's 10-4?": "10-4",
    "what’s 10 − 4 please": "10 − 4",
    "10-4": "10-4",
    "7/2": "7/2",
    "3 - 2": "3 - 2",
    "What is 500-1000?": "500-1000",
    "what is 2000-50-20?": "2000-50-20",
    "How much tip is 15% of 80 dollars?": "15% of 80",
    "15% of 80": "15% of 80",
    "I have 3 + 4 cats": "3 + 4",
    "I need 12 * 3 eggs.": "12 * 3",
    "Is 7 * 8 = 56?": "7 * 8",
    "is 10 - 4 = 6?": "10 - 4",
    "the square root of 144": "the square root of 144",
    "what is the square root of 144?": "the square root of 144",
    "What is 3 x 4?": "3 x 4",
    "3x7": "3x7",
    "What is 2^10?": "2^10",
    "What is -5 + 3?": "-5 + 3",
    "5² + 1": "5² + 1",
    "max(3, 4)": "max(3, 4)",
    "please give me log(100, 10) now": "log(100, 10)",
    "evaluate 10/5/2020": "10/5/2020",
    "calculate: 100/7": "100/7",
    "calculate:2-1": "2-1",
    "what is 10 divided by 4": "10 divided by 4",
    "17 mod 5": "17 mod 5",
    "what is 17 % 5": "17 % 5",
    "What is 100 minus 7?": "100 minus 7",
    "10 + 5% = ?": "10 + 5%",
    "1,000 + 2,000": "1,000 + 2,000",
    "$5 * 3": "5 * 3",
    "what is the result of 9 / 3?": "9 / 3",
    "calculate 9**9**9": "9**9**9",
    "2 * pi": "2 * pi",
    "pi * 2": "pi * 2",
    "what is 2+5.": "2+5",
    "(2+3)*4, please": "(2+3)*4",
    "it was (2+3) in total": "(2+3)",
    "what is 1 + 1 and why": "1 + 1",
    "My kids are 3, 5 and 7, what is 3 * 5?": "3 * 5",
    "price:5*3": "5*3",
}

CLOCK = {
    "what time is it in Tokyo?": "Tokyo",
    "What time is it?": "UTC",
    "what time is it there": "UTC",
    "what time is it in Tokyo and Berlin?": "Tokyo",
    "whats the time": "UTC",
    "what’s the time in New York right now?": "New York",
    "what time is it now in America/New_York?": "America/New_York",
    "what time is it in UTC+2?": "UTC+2",
    "What is the current time in Paris, France?": "Paris",
    "Good morning! What time is it in Kathmandu? I have a call.": "Kathmandu",
    "what day is it": "UTC",
    "What day is today?": "UTC",
    "which day of the week is it in Auckland?": "Auckland",
    "What year is it?": "UTC",
    "current time": "UTC",
    "the current time in Berlin please": "Berlin",
    "time in Tokyo": "Tokyo",
    "time in New York?": "New York",
    "clock": "UTC",
    "today's date": "UTC",
    "What's today's date?": "UTC",
    "what is the date today?": "UTC",
    "Tell me the time in São Paulo please": "São Paulo",
    "do you know what time it is in Paris?": "Paris",
    "how late is it in Berlin?": "Berlin",
}

SEARCH = {
    "search my messages for invoice": "invoice",
    "Search for invoices": "invoices",
    "search: invoice": "invoice",
    "Please search our chat history for 'quarterly report'.": "quarterly report",
    "find 'quarterly report' in my history": "quarterly report",
    "find the word “Kyoto” in my old messages, please": "Kyoto",
    'find "quarterly report"': "quarterly report",
    'Search for "red shoes" in our chats please.': "red shoes",
    "search my history: invoice 2024": "invoice 2024",
    "search my messages for 2+2": "2+2",
    "look through my old conversations for Kyoto": "Kyoto",
    "Show me cats in my notes": "cats",
    "show me messages about the roadmap": "the roadmap",
    "which messages mention Paris?": "Paris",
    "did I mention Berlin?": "Berlin",
    "Did I ever say anything about the budget?": "the budget",
    "Have I told you about my dog before?": "my dog",
    "what did I say about X": "X",
    "what have we discussed about the merger in our conversations?": "the merger",
    "when did we talk about what time it is?": "what time it is",
    "Did you mention a deadline?": "a deadline",
}

NOTHING = [
    "",
    "Hello",
    "Thanks!",
    "How are you?",
    "What can you do?",
    "Tell me a joke",
    "Write a poem about the sea",
    # numbers, by the way
    "I have 3 cats",
    "My kids are 3, 5 and 7",
    "I was born in 1984",
    "Who won the 2014 world cup?",
    "I ran 5 km in 25 min",
    "It costs $5",
    "version 3.11 is out",
    "Is it true that 50% of marriages fail?",
    "What is a 20% discount?",
    "what is 20%?",
    "Chapter 3 - 5 things",
    "I've been there 3 times 2 years ago",
    "what is iPhone 12 plus 2",
    "3 x 4 meter room",
    "1. foo 2. bar",
    "round 2 - 3 players left",
    # dates, times, telephones, and other numbers with dashes
    "2025-09-05",
    "What is 2025-09-05?",
    "The deadline is 2025-09-05.",
    "2025-09-05 + 3",
    "what is 12/24/2025",
    "Meet at 10:30 - 11:30",
    "what is 10:30-2?",
    "call 555-1234",
    "555-1234",
    "555-123-4567",
    "(555) 123-4567",
    "what is 1-800-555-0199",
    "call me at +49 30 1234567",
    "+49-30-1234567",
    "030/1234567",
    "My order number is 4711-0815",
    "My shift is 9-5",
    "I work 24/7",
    "What is 24/7 support?",
    "We are 50/50 on this",
    "room 12-14",
    "192.168.0.1 - 2",
    "http://example.com/1+2",
    # arithmetic of which only a part could be calculated
    "x + 2*3",
    "x - 2*3",
    "2*3 + x",
    "2*3 - x",
    "2*3px",
    "f(2+3)",
    "1,5+2",
    '"a"*10**9',
    "C++ 11",
    "A+ 3 times",
    "5!",
    # times that are not now
    "what time is the meeting?",
    "what is the time complexity of quicksort?",
    "what time is it in 3 hours?",
    "time flies",
    "time in prison is hard on people",
    "what is the date of the meeting?",
    # searches elsewhere
    "search the web for cats",
    "find a hotel in Rome",
    "find causes of war in history",
    "What did I say?",
    "search for ?",
]


def cases() -> list[tuple[str, Intent]]:
    """Return every sentence with what it asks for."""
    return [
        *((text, Intent("calculate", argument)) for text, argument in ARITHMETIC.items()),
        *((text, Intent("clock", argument)) for text, argument in CLOCK.items()),
        *((text, Intent("search_history", argument)) for text, argument in SEARCH.items()),
        *((text, Intent()) for text in NOTHING),
    ]


@pytest.mark.parametrize(("text", "intent"), cases())
def test_sentences(text: str, intent: Intent) -> None:
    """Each sentence gets its tool and the argument in it."""
    assert read_intent(text, False) == intent


@pytest.mark.parametrize("text", [*ARITHMETIC, *CLOCK, *SEARCH, *NOTHING])
def test_logs_come_first(text: str) -> None:
    """Whoever sends logs wants them analysed, whatever is said with them."""
    assert read_intent(text, True) == Intent("analyze_usage")


@pytest.mark.parametrize("expression", ARITHMETIC.values())
def test_expressions_can_be_calculated(expression: str) -> None:
    """What is handed to ``calculate`` is calculated, or too large."""
    if expression == "9**9**9":
        with pytest.raises(AgentError, match="too large"):
            calculate(expression)
    else:
        assert isinstance(calculate(expression), int | float)


def test_an_expression_that_is_cut_off_is_not_calculated() -> None:
    """A part of a long sum would be a wrong result that looks right."""
    assert read_intent("1 + 2 " + "+ 3 " * 300, False) == Intent()
    assert read_intent("1" * 2000 + " + 1", False) == Intent()
    assert read_intent("2 * 3, " + "please " * 200, False) == Intent("calculate", "2 * 3")


def test_a_query_is_bounded() -> None:
    """A long request does not become a long query."""
    assert read_intent("search for " + "x" * 900, False) == Intent("search_history", "x" * MAX_ARGUMENT_CHARS)


@pytest.mark.parametrize(
    "text",
    [
        "(1 + " * 300,
        "( " * 500,
        "(" * 1000,
        "sqrt " * 200,
        "1 " * 500,
        "1 + " * 300,
        "- " * 500,
        "a " * 500,
        "find " * 200,
        "find x in my my my " * 50,
        "search my my my my " * 50,
        "did i say " * 100,
        "what time is it in " * 60,
        "what is the time" + " now" * 250 + "x",
        "please " * 150,
        "find 'a" * 140,
        "search for a" + " before" * 140,
        '"' * 1000,
        "x" * 1_000_000,
        " " * 1_000_000,
    ],
)
def test_takes_no_time(text: str) -> None:
    """No text is slow to read."""
    times = []
    for _ in range(3):
        start = time.thread_time()
        read_intent(text, False)
        times.append(time.thread_time() - start)
    assert min(times) < 0.2  # about 20 ms; several times that under a tracer


VOCABULARY = "what is time it in my search for find messages 2 3.5 + - * / % ( ) ? , of sqrt( did I say 'a' x"
WORDS = st.sampled_from(VOCABULARY.split())


@given(st.text() | st.lists(WORDS, max_size=30).map(" ".join))
def test_any_text(text: str) -> None:
    """Any text gets an intent, with an argument exactly when the tool takes one."""
    intent = read_intent(text, False)
    assert bool(intent.argument) == (intent.tool is not None)
