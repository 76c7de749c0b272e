"""Which tool the assistant uses for a text, by rules that can be read.

In this order:

1. JSON lines came along: ``analyze_usage``.
2. A request to search one's own messages: ``search_history`` with what to look for.  That is "search for …", a verb of
   searching with a place ("in my messages"), something quoted to "find", or a question about what was said ("did I
   mention …").
3. A question for the time or the day, now: ``clock`` with the place; ``UTC`` when none is named.
4. An arithmetic expression: ``calculate`` with it.  ``+ * ^ ×`` between numbers, and functions with parentheses, are
   arithmetic wherever they stand.  Other signs and words stand in prose, too (9-5, 24/7, 3 times, iPhone 12 plus), so
   they count only directly after a request ("what is", "how much is", "calculate", …), before ``=``, or when they are
   the whole text.  What looks like a date or a phone number counts only after "calculate" and the like.
5. Otherwise none.
"""

from __future__ import annotations

import itertools
import re
from typing import Literal

import attrs

from netra_ws.errors import AgentError

from .calculate import CONSTANTS, FUNCTIONS, Notation, tidy

MAX_CHARS = 1_000  # of the text that are looked at
MAX_ARGUMENT_CHARS = 200


def _pattern(*parts: str) -> re.Pattern[str]:
    return re.compile("".join(parts), re.IGNORECASE)


_POLITE = r"^(?:(?:hi|hello|hey|ok|okay)[,!.]? )?(?:please |can you |could you |would you |i want to |i'd like to )*"
_OWN = r"(?:(?:all|any|my|our|of|the|this|past|old|older|previous|earlier|chat|message|conversation|thread) )"
_PLACE = r"(?:messages|history|histories|chats|conversations?|threads|notes)\b"
_SAID = r"(?:mention(?:ed)?|say|said|write|wrote|written|ask(?:ed)?(?: you)?|discuss(?:ed)?|noted?"
_SAID += r"|talk(?:ed)?(?: to you)?|tell you|told you)\b"
_SEARCHES = (
    _pattern(r"\b(?:search|look|check|scan)(?: in| through| within)? ", _OWN, "{0,4}", _PLACE, r" (?:for|about) (.+)"),
    _pattern(
        r"\b(?:search(?: for)?|find|look(?: up| for)?|show(?: me)?|list|get)(?: me)? (.+?)",
        *(r" (?:in|from|within|across|through) ", _OWN, "{1,4}", _PLACE, "(?=[?.!,]| please|$)"),
    ),
    _pattern(_POLITE, r"search(?: in| through)? ", _OWN, "{1,4}", _PLACE, r"[:,]? (.+)"),
    _pattern(_POLITE, r"search(?: for|:) (?!the web|the internet|google|online)(.+)"),
    _pattern(_POLITE, r"(?:find|search|look for|look up) ([\"'“‘«].+)"),
    _pattern(
        *(_POLITE, r"(?:find|show|list|get|which|what)(?: me)? ", _OWN, "{0,4}", _PLACE),
        r" (?:are about|about|with|mentioning|containing|that mention|mention(?:ed)?|contain(?:ed)?) (.+)",
    ),
    _pattern(
        *(r"\b(?:did|have) (?:i|we) (?:ever |already |previously |just )?", _SAID),
        r"(?: (?:anything|something))?(?: (?:about|of|on|regarding))? (.+)",
    ),
    _pattern(r"\bdid you (?:ever )?(?:say|mention|tell me|write)(?: (?:anything|something))?(?: about)? (.+)"),
)
_SEARCH_END = _pattern(
    r"(?: (?:yet|before|already|please|recently|earlier|anywhere|(?:in|from) ",
    *(_OWN, "{1,4}", _PLACE, r"))+$|[ ?.!,;:]+$"),
)
_QUOTED = _pattern(
    r"^(?:the )?(?:words? |phrase |text |term )?",
    r"(?:\"([^\"]+)\"|'([^']+)'(?!\w)|“([^”]+)”|‘([^’]+)’|«([^»]+)»)",
)

_NOW = r"(?: (?:right now|now|today|currently|at the moment|please|there|here))*"
_WHERE = r"(?: (?:in|at|for) (?:the )?((?:[^\W\d_]|[+−-](?=\d))[^?!.,;]{0,60}?))?"
# What may follow such a question; "what is the time complexity of …" is another one.
_REST = _NOW + _WHERE + _NOW + r" ?(?:[?!.,;]|$| and\b| or\b)"
_TIMES = (
    _pattern(r"\bwhat(?:'s|s| is)? (?:the )?(?:current |local |exact )?time(?: is it| it is)?", _REST),
    _pattern(r"\b(?:what|which) (?:day|date|weekday|month|year)(?: of the week)? (?:is it|is today)", _REST),
    _pattern(r"\bwhat(?:'s|s| is) (?:the )?(?:current |today's )?(?:day|date|weekday)(?: of the week)?", _REST),
    _pattern(r"\bhow late is it", _REST),
    _pattern(
        r"\b(?:tell me|give me|show me|do you (?:know|have)|i need|need to know) (?:the |what |today's )?",
        *(r"(?:current |local )?(?:time|date|day|weekday)(?: it is| is it)?", _REST),
    ),
    _pattern(_POLITE, r"(?:the )?(?:current|local|today's) (?:time|date|day)", _REST),
    # Without any word of asking only a short place: "time in Tokyo".
    _pattern(r"^(?:time|date|clock)", _NOW, r"(?: (?:in|at|for) ([^\W\d][^ ?]*(?: [^ ?]+)?))?", _NOW, r" ?\??$"),
)

MAX_STARTS = 100  # places in a text at which an expression is looked for; "(1 + (1 + …" makes each of them long
_NAMES = "|".join(("(?:the )?square root", *FUNCTIONS, *CONSTANTS))
_START = _pattern(r"(?<![^ (\[{\"'`:=;,])(?:[0-9.(√π]|[+−-](?=[0-9.(])|(?:", _NAMES, r")\b)")
_SURE = {"+", "*", "×", "·", "⋅", "÷", "^", "**", "//", "<<", ">>", "²", "³", "call"}
_DASHES = {"-", "−", "–", "/", "⁄"}
_FILLED = r"(?: (?:the|result|value|answer|sum|of|to|for|me|please|exactly|be))*[ :(\"'`]*$"
_COMMANDED = _pattern(r"\b(?:calc|calculate|compute|evaluate|solve|work out)", _FILLED)
_ASKED = _pattern(
    r"\b(?:what(?:'s|s| is| are| does| would)|how (?:much|many)(?: \w+){0,2} (?:is|are|does|would)",
    *(r"|result of|tell me|give me)", _FILLED),
)
_ENDED = _pattern(r" ?(?:[=?.!,;:)\]\"'`]|$|(?:please|and|or|equals?)\b)")
_DAY, _MONTH = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])"
_DATE = re.compile(rf"(?<!\d)(?:\d{{4}}[-/–]{_MONTH}[-/–]{_DAY}|{_DAY}[-/–]{_DAY}[-/–](?:\d{{4}}|\d{{2}}))(?!\d)")
_PHONE = re.compile(r"\+[\d /–-]+|(?:\d{1,4}-)?\d{3,4}-\d{2,4}-\d{4}(?:-\d{4})?|0\d+[-/–].*")
_LOCAL_PHONE = re.compile(r"\d{3}-\d{4}")


@attrs.frozen
class Intent:
    """The tool for a text, and its argument: an expression, a zone, a query, or nothing."""

    tool: Literal["calculate", "clock", "search_history", "analyze_usage"] | None = None
    argument: str = ""


def read_intent(text: str, has_logs: bool) -> Intent:
    """Return the tool that the first 1,000 characters of *text* ask for, in a bounded time."""
    if has_logs:
        return Intent("analyze_usage")
    looked_at = tidy(text[:MAX_CHARS]).replace("’", "'")
    if query := _query(looked_at):
        return Intent("search_history", query)
    if zone := _zone(looked_at):
        return Intent("clock", zone)
    # An expression that is cut off has another value; the sign keeps it from being complete.
    if expression := _expression(looked_at + (" *" if len(text) > MAX_CHARS else "")):
        return Intent("calculate", expression)
    return Intent()


def _query(text: str) -> str:
    for pattern in _SEARCHES:
        if match := pattern.search(text):
            query = match[1].strip()
            while shorter := _SEARCH_END.search(query):
                query = query[: shorter.start()]
            if quoted := _QUOTED.match(query):
                query = next(filter(None, quoted.groups()))
            if query := query.strip(" \"'“”‘«»"):
                return query[:MAX_ARGUMENT_CHARS]
    return ""


def _zone(text: str) -> str:
    for pattern in _TIMES:
        if match := pattern.search(text):
            return (match[1] or "UTC").strip()
    return ""


def _expression(text: str) -> str:
    done = 0
    for start in itertools.islice(_START.finditer(text), MAX_STARTS):
        if start.start() < done or not _stands_alone(text, start.start()):
            continue
        end, signs = _longest(text, start.start())
        if signs and _means_it(text, start.start(), end, signs):
            return text[start.start() : end].rstrip(" .")
        done = end
    return ""


def _longest(text: str, at: int) -> tuple[int, list[str]]:
    """Return the end of the longest expression that starts at *at*, and its signs."""
    notation, end, signs = Notation(text), at, 0
    try:
        while at < len(text):
            at = notation.take(at)
            if notation.complete:
                end, signs = at, len(notation.signs)
    except AgentError:
        pass
    return end, notation.signs[:signs]


def _stands_alone(text: str, start: int) -> bool:
    """Whether nothing before *start* belongs to it, such as ``x *`` or the ``10:`` of a time."""
    before = text[:start]
    if before.endswith((":", ",", "(")):
        return not before[-2:-1].isalnum() or (before[-1] != "(" and not before[-2].isdigit())
    left = before.rstrip()
    return not left.endswith(tuple("+*/^×÷%<>-−–")) or left == "-"


def _means_it(text: str, start: int, end: int, signs: list[str]) -> bool:
    """Whether what can be read as an expression is meant as one."""
    found, before, after = text[start:end].rstrip(" ."), text[:start][-80:], text[end:]
    if re.match(r"[^\W_]|_| ?[+*/^×÷%<>]| ?- ?[^\W\d_]{1,2}\b", after):
        return False
    if _COMMANDED.search(before):
        return True
    if _DATE.search(found) or _PHONE.fullmatch(found):
        return False
    if not _SURE.isdisjoint(signs):
        return True
    if found == text.strip(" =?.!;:"):
        return not _LOCAL_PHONE.fullmatch(found)
    if after.lstrip().startswith("="):
        return True
    return bool(_ASKED.search(before)) and (_DASHES.isdisjoint(signs) or bool(_ENDED.match(after)))
