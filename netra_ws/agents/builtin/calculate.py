"""The tool ``calculate``: arithmetic as people write it, in a bounded time.

Two steps.  `Notation` reads the text token by token and writes it again as one plain Python expression; nothing else,
no string, list, attribute or keyword, can get through it.  ``simpleeval`` then evaluates that expression with
operators and functions that refuse to make large numbers *before* they make them.

How people write, and what it means:

======================== =============================================================================
``2,340`` ``1,20,000``   thousands, except between the values of ``min max round log``: ``max(1,200)``
``× · ÷ −`` ``3 x 4``    times, divided by, minus
``^`` ``**`` ``5²``      power
``17% of 2340``          percent of
``20%`` ``20% * 50``     percent: 0.2
``17 % 5``               modulo, because a number, a name or ``(`` follows the sign
``200 + 10%``            220, as on a pocket calculator; ``5% + 3%`` is 0.08
``√16`` ``sqrt 16``      a function before one number needs no parentheses
``3 times 7 plus 2``     words: plus, minus, times, multiplied by, divided by, to the power of, mod, percent, squared, …
``$5 * 3 =`` ``2+2?``    currency signs, and ``=``, ``?``, ``.`` at the end, are dropped
======================== =============================================================================
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import simpleeval

from netra_ws.errors import AgentError

MAX_CHARS = 1_000
MAX_OPERATIONS = 200  # each costs the evaluator two Python frames, so this keeps clear of the recursion limit
MAX_DEPTH = 50
MAX_IN_A_ROW = 5  # functions without parentheses: "√√16"
MAX_BITS = 3_400  # 1,023 digits; Python itself refuses to print ints above 4,300
MAX_FACTORIAL = 450  # 1,001 digits

Number = int | float


def _failure(text: str) -> AgentError:
    return AgentError(text, code="CALCULATION_FAILED")


def _too_large() -> AgentError:
    return _failure("The result is too large: at most about 1,000 digits are calculated.")


def _bounded(value: Any) -> Number:
    """Return *value* if it is a real, finite number of at most ``MAX_BITS`` bits."""
    if isinstance(value, complex):
        raise _failure("There is no real number as the result.")
    if isinstance(value, float) and not math.isfinite(value):
        raise _too_large()
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise _too_large()
    number: Number = value
    return number


def _guarded(function: Callable[..., Any]) -> Callable[..., Number]:
    # Operands are bounded already, so only what grows faster than a product needs a look before the work.
    return lambda *values: _bounded(function(*values))


def _power(base: Number, exponent: Number) -> Any:
    if (
        isinstance(base, int)
        and isinstance(exponent, int)
        and exponent > 0
        and (abs(base).bit_length() - 1) * exponent > MAX_BITS
    ):
        raise _too_large()
    return base**exponent


def _shift_left(value: Any, places: Any) -> Any:
    if isinstance(places, int) and places > MAX_BITS and value:
        raise _too_large()
    return value << places


def _factorial(value: Number) -> int:
    if value != int(value) or not 0 <= value <= MAX_FACTORIAL:
        raise _failure(f"factorial takes whole numbers from 0 to {MAX_FACTORIAL}.")
    return math.factorial(int(value))


def _round(value: Number, digits: Number = 0) -> Number:
    # round(5, -10**9) would first compute 10**10**9.
    if not isinstance(digits, int) or abs(digits) > MAX_CHARS:
        raise _failure("round takes a whole number of digits, at most 1,000.")
    return round(value, digits)


_OPERATORS = {
    ast.Add: _guarded(operator.add),
    ast.Sub: _guarded(operator.sub),
    ast.Mult: _guarded(operator.mul),
    ast.Div: _guarded(operator.truediv),
    ast.FloorDiv: _guarded(operator.floordiv),
    ast.Mod: _guarded(operator.mod),
    ast.Pow: _guarded(_power),
    ast.LShift: _guarded(_shift_left),
    ast.RShift: _guarded(operator.rshift),
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
FUNCTIONS: Mapping[str, Callable[..., Number]] = {
    name: _guarded(function)
    for name, function in {
        **{name: getattr(math, name) for name in ("sqrt", "floor", "ceil", "log", "log10", "exp", "sin", "cos", "tan")},
        "abs": abs,
        "factorial": _factorial,
        "max": lambda *values: max(values),
        "min": lambda *values: min(values),
        "percent": lambda value: value / 100,
        "round": _round,
    }.items()
}
CONSTANTS: Mapping[str, float] = {"pi": math.pi, "e": math.e, "tau": math.tau}

_SEVERAL_VALUES = {"log", "max", "min", "round"}
_NODES = {ast.Expr, ast.Constant, ast.UnaryOp, ast.BinOp, ast.Call, ast.Name}

_NUMBER = re.compile(r" ?((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)")
_GROUPED = re.compile(r" ?([0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}(?!,?[0-9])(?:\.[0-9]+)?)")
_TOKEN = re.compile(
    r"""\ ?(?:
      (?P<open>\() | (?P<close>\)) | (?P<comma>,)
    | (?P<percent>% | per\ ?cent\b)
    | (?P<postfix>² | ³ | squared\b | cubed\b)
    | (?P<infix>\*\* | // | << | >> | [-+*/^×·⋅÷−–⁄] | of\b | plus\b | minus\b | times\b
        | multiplied\ by\b | divided\ by\b | (?:raised\ )?to\ the\ power\ of\b | mod(?:ulo)?\b | (?<!\b0)x(?=[ 0-9.(]))
    | (?P<name>√ | π | (?:the\ )?square\ root\ of\b | [a-z]+[0-9]*)
    )""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_INFIX = {
    **{sign: sign for sign in ("+", "-", "*", "/", "**", "//", "<<", ">>")},
    **dict.fromkeys(("×", "·", "⋅", "x", "times", "multiplied by", "of"), "*"),
    **dict.fromkeys(("÷", "⁄", "divided by"), "/"),
    **dict.fromkeys(("−", "–", "minus"), "-"),
    **dict.fromkeys(("^", "to the power of", "raised to the power of"), "**"),
    **dict.fromkeys(("mod", "modulo"), "%"),
    "plus": "+",
}
_NAMES = {"√": "sqrt", "π": "pi", "square root of": "sqrt", "the square root of": "sqrt"}


@attrs.define
class _Group:
    """An open parenthesis: where it starts in the output, and the functions that wait for its end."""

    start: int
    functions: list[str]
    # Seen between the values: "1,200" and "1, 200".
    tight: bool = False
    spaced: bool = False

    @property
    def several(self) -> bool:
        return bool(self.functions) and self.functions[-1] in _SEVERAL_VALUES


class Notation:
    """Reads one arithmetic expression, token by token, in a text that `tidy` has returned.

    Attributes:
        signs: Operators, ``call`` for a function, and postfixes so far, as they were written, in lower case.
    """

    def __init__(self, text: str) -> None:
        self.signs: list[str] = []
        self._text = text
        self._out: list[str] = []
        self._wants_value = True
        self._value_at = 0
        self._groups: list[_Group] = []
        self._functions: list[str] = []
        self._operations = 0

    @property
    def complete(self) -> bool:
        """Whether what was read so far is an expression."""
        return not (self._wants_value or self._groups)

    def expression(self) -> str:
        """Return the Python expression.

        Raises:
            AgentError: it is not complete.
        """
        if self._wants_value:
            raise _failure("The expression stops where a number should follow.")
        if self._groups:
            raise _failure("A closing parenthesis is missing.")
        return "".join(self._out)

    def take(self, at: int) -> int:
        """Read the token at index *at* and return the index after it.

        Raises:
            AgentError: no token that may stand here; this object is of no use any more.
        """
        in_values = bool(self._groups) and self._groups[-1].several
        number = (None if in_values else _GROUPED.match(self._text, at)) or _NUMBER.match(self._text, at)
        if number is not None:
            self._number(number[1])
            return number.end()
        token = _TOKEN.match(self._text, at)
        if token is None:
            raise _failure(f"{self._text[at : at + 20].strip()!r} is not something that can be calculated.")
        kind = str(token.lastgroup)
        word = token[kind].lower()
        if kind not in ("comma", "close"):
            self._operations += 1
            if self._operations > MAX_OPERATIONS:
                raise _failure(f"The expression has more than {MAX_OPERATIONS} operations.")
        if kind == "percent" and word == "%" and self._value_follows(token.end()):
            kind, word = "infix", "mod"
        getattr(self, f"_{kind}")(word, token.end())
        return token.end()

    def _value_follows(self, at: int) -> bool:
        token = _TOKEN.match(self._text, at)
        if token is None:
            return _NUMBER.match(self._text, at) is not None
        name = token["name"]
        return bool(token["open"]) or (name is not None and self._known(name.lower()) is not None)

    @staticmethod
    def _known(word: str) -> str | None:
        name = _NAMES.get(word, word)
        return name if name in FUNCTIONS or name in CONSTANTS else None

    def _value(self, text: str) -> None:
        if not self._wants_value:
            raise _failure(f"An operator is missing before {text[:20]!r}.")
        self._value_at = len(self._out)
        self._out += [f"{name}(" for name in self._functions] + [text] + [")"] * len(self._functions)
        self._functions = []
        self._wants_value = False

    def _number(self, text: str) -> None:
        digits = text.replace(",", "").lstrip("0") or "0"
        if not digits.isdigit() and math.isinf(float("0" + digits)):
            raise _too_large()
        self._value("0" + digits if digits[0] in ".eE" else digits)

    def _name(self, word: str, end: int) -> None:
        name = self._known(word)
        if name is None:
            raise _failure(f"{word[:20]!r} is not something that can be calculated.")
        if name in CONSTANTS:
            self._value(name)
        elif not self._wants_value:
            raise _failure(f"An operator is missing before {name!r}.")
        elif len(self._functions) == MAX_IN_A_ROW:
            raise _failure("There are too many functions in a row.")
        else:
            self._functions.append(name)
            # "sqrt 16" may be prose ("round 2 - 3 players"); the sign says whether there were parentheses.
            self.signs.append("call" if self._text[end : end + 1] == "(" or word in _NAMES else name)

    def _open(self, _word: str, _end: int) -> None:
        if not self._wants_value:
            raise _failure("An operator is missing before '('.")
        if len(self._groups) == MAX_DEPTH:
            raise _failure(f"Parentheses are nested deeper than {MAX_DEPTH}.")
        self._groups.append(_Group(len(self._out), self._functions))
        self._out += [f"{name}(" for name in self._functions] or ["("]
        self._functions = []

    def _close(self, _word: str, _end: int) -> None:
        if not self._groups:
            raise _failure("A closing parenthesis has no opening one.")
        if self._wants_value:
            raise _failure("A number is missing before ')'.")
        group = self._groups.pop()
        self._out += [")"] * max(1, len(group.functions))
        self._value_at = group.start

    def _comma(self, _word: str, end: int) -> None:
        if not self._groups or not self._groups[-1].several:
            raise _failure("A comma separates thousands (2,340); decimals are written with a point.")
        if self._wants_value:
            raise _failure("A number is missing before ','.")
        group = self._groups[-1]
        group.spaced |= self._text[end : end + 1] == " "
        group.tight |= re.compile("[0-9]{3}(?![0-9])").match(self._text, end) is not None
        if group.spaced and group.tight:
            # max(2,340, 1,200): two values or four?  A guess would be a wrong number that looks right.
            raise _failure(f"Please write the numbers in {group.functions[-1]}(...) without thousands commas.")
        self._out.append(",")
        self._wants_value = True

    def _infix(self, word: str, _end: int) -> None:
        sign = _INFIX[word]
        if not self._wants_value:
            self.signs.append(word)
        elif sign not in ("+", "-") or self._functions:
            raise _failure(f"A number is missing before {word!r}.")
        self._out.append(sign)
        self._wants_value = True

    def _percent(self, word: str, _end: int) -> None:
        self._require_value(word)
        self._out.insert(self._value_at, "percent(")
        self._out.append(")")

    def _postfix(self, word: str, _end: int) -> None:
        self._require_value(word)
        self.signs.append(word)
        self._out.append("**2" if word in ("²", "squared") else "**3")

    def _require_value(self, word: str) -> None:
        if self._wants_value:
            raise _failure(f"A number is missing before {word!r}.")


def tidy(text: str) -> str:
    """Return *text* with single spaces and without currency signs before numbers."""
    return re.sub(r"[$€£](?= ?[0-9.])", "", " ".join(text.split()))


def calculate(expression: str) -> Number:
    """Return the value of an arithmetic expression of at most 1,000 characters; never takes longer than about 50 ms.

    Knows ``+ - * / // % ** << >>``, the functions of `FUNCTIONS` and the constants ``pi``, ``e`` and ``tau``; angles
    are radians, ``log`` is the natural one unless a base is given, ``round`` rounds halves to the even digit.
    A whole result is an int, of up to about 1,000 digits; rounding noise is removed, so ``0.1 + 0.2`` is 0.3.

    Raises:
        AgentError: ``CALCULATION_FAILED``, with a sentence for the user, whatever the reason.
    """
    if len(expression) > MAX_CHARS:
        raise _failure(f"The expression is longer than {MAX_CHARS:,} characters.")
    text = tidy(expression).rstrip(" =?.;").removeprefix("=")
    if not text:
        raise _failure("There is nothing to calculate.")
    notation, at = Notation(text), 0
    while at < len(text):
        at = notation.take(at)
    evaluator = simpleeval.SimpleEval(operators=_OPERATORS, functions=dict(FUNCTIONS), names=dict(CONSTANTS))
    evaluator.nodes = {node: evaluate for node, evaluate in evaluator.nodes.items() if node in _NODES}
    source = notation.expression()
    try:
        value = evaluator.eval(source, previously_parsed=_percent_of_the_left(simpleeval.SimpleEval.parse(source)))
    except ZeroDivisionError:
        raise _failure("Division by zero has no result.") from None
    except OverflowError:
        raise _too_large() from None
    except ValueError:
        raise _failure("A function or operator is not defined for these numbers.") from None
    except TypeError:
        raise _failure("A function has the wrong number of values, or needs whole numbers.") from None
    except (SyntaxError, MemoryError, RecursionError, simpleeval.InvalidExpression):
        raise _failure("The expression cannot be understood.") from None
    return _without_noise(_bounded(value))


def _percent_of_the_left(tree: ast.stmt) -> ast.stmt:
    """Turn ``a + p%`` into ``a * (1 + p%)``, unless *a* is made of percentages, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and _adds_percent(node) and not _is_percent(node.left):
            node.right = ast.BinOp(ast.Constant(1), node.op, node.right)
            node.op = ast.Mult()
    return tree


def _adds_percent(node: ast.BinOp) -> bool:
    return isinstance(node.op, ast.Add | ast.Sub) and _is_percent(node.right)


def _is_percent(node: ast.expr) -> bool:
    while isinstance(node, ast.BinOp) and _adds_percent(node):
        node = node.left
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "percent"


def _without_noise(value: Number) -> Number:
    if isinstance(value, int):
        return value
    # Binary fractions miss short decimals by the 16th digit.  Only a number that gets *much* shorter was one.
    short = f"{value:.15g}"
    if len(short.partition("e")[0].lstrip("-0.").replace(".", "")) <= 12:
        value = float(short)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
