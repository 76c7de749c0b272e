"""From the suite's own words on each case to a table and a verdict."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import attrs

#: Groups in which a failed case fails the run.
STRICT = (1, 2, 3, 4, 5, 6, 7, 9, 10)
GROUPS = {
    1: "framing",
    2: "pings and pongs",
    3: "reserved bits",
    4: "opcodes",
    5: "fragmentation",
    6: "UTF-8",
    7: "closing",
    9: "limits and performance",
    10: "miscellaneous",
    12: "compression (not offered, by design)",
    13: "compression parameters (by design)",
}


class Word(Enum):
    """What a case came to, best first."""

    OK = "OK"
    NON_STRICT = "NON-STRICT"
    INFORMATIONAL = "INFORMATIONAL"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    FAILED = "FAILED"


@attrs.frozen
class Case:
    """One case.

    Attributes:
        case: Its id, such as ``9.1.6``.
        said: The suite's words on the messages and on the close.
    """

    case: str
    word: Word
    said: str = ""

    @property
    def group(self) -> int:
        return group_of(self.case)


def group_of(case: str) -> int:
    """Return the group of a case or of a pattern."""
    return int(case.partition(".")[0])


def judge(asked: Iterable[str], reports: Mapping[str, Mapping[str, Any]]) -> list[Case]:
    """Return each case that was to run; one without a report has failed.

    The suite judges messages and the closing apart: both must be good.
    """
    cases = []
    for case in asked:
        report = reports.get(case)
        if report is None:
            cases.append(Case(case, Word.FAILED, "did not run to its end"))
            continue
        behaviour, close = str(report["behavior"]), str(report["behaviorClose"])
        word = next((word for word in Word if word.value == behaviour), Word.FAILED)
        if close not in ("OK", "INFORMATIONAL") and word is not Word.UNIMPLEMENTED:
            word = Word.FAILED
        said = behaviour if close in ("OK", behaviour) else f"{behaviour}, close {close}"
        cases.append(Case(case, word, said))
    return cases


def failures(cases: Iterable[Case]) -> list[Case]:
    """Return what fails the run: in the groups that are spoken here, what was not done counts as well."""
    bad = (Word.FAILED, Word.UNIMPLEMENTED)
    return [case for case in cases if case.word in bad and (case.group in STRICT or case.word is Word.FAILED)]


def table(cases: Iterable[Case]) -> str:
    """Return the counts of each group as text."""
    counts: dict[int, Counter[Word]] = {}
    for case in cases:
        counts.setdefault(case.group, Counter())[case.word] += 1
    rows = [["group", "", *(word.value for word in Word), "cases"]]
    for group, words in sorted(counts.items()):
        rows.append([str(group), GROUPS.get(group, ""), *(str(words[word]) for word in Word), str(words.total())])
    total = sum(counts.values(), Counter())
    rows.append(["all", "", *(str(total[word]) for word in Word), str(total.total())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if at < 2 else cell.rjust(width) for at, (cell, width) in enumerate(line))
        for line in (list(zip(row, widths, strict=True)) for row in rows)
    )


def patterns(text: str) -> list[str]:
    """Read ``1-7,9,10.1.1``: groups, ranges of them, and the suite's own patterns.

    Raises:
        ValueError: It cannot be read.
    """
    found = []
    for word in text.split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+))?", word.strip()):
            first, last = int(match[1]), int(match[2] or match[1])
            found += [f"{group}.*" for group in range(first, last + 1) if group in GROUPS]
        elif re.fullmatch(r"\d+(\.\d+)*(\.\*)?", word.strip()):
            found.append(word.strip())
        else:
            raise ValueError(f"cases are written as 1-7,9,10.1.1 or 9.1.*, not {word!r}")
    return found
