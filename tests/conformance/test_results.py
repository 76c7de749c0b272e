"""What the suite says of its cases, and what that means for the run."""

from __future__ import annotations

import pytest

from tests.conformance.results import Word, failures, judge, patterns, table


def report(behaviour: str, close: str = "OK") -> dict[str, object]:
    return {"behavior": behaviour, "behaviorClose": close, "duration": 3}


def test_good_answers_do_not_fail_the_run() -> None:
    """What the suite calls good, lenient or up to the server fails no run."""
    reports = {
        "1.1.1": report("OK"),
        "3.2": report("NON-STRICT"),
        "7.13.1": report("INFORMATIONAL", "INFORMATIONAL"),
    }
    cases = judge(reports, reports)
    assert [case.word for case in cases] == [Word.OK, Word.NON_STRICT, Word.INFORMATIONAL]
    assert failures(cases) == []


@pytest.mark.parametrize(
    ("behaviour", "close"),
    [
        ("FAILED", "OK"),
        ("OK", "FAILED"),
        ("OK", "WRONG CODE"),
        ("OK", "UNCLEAN"),
        ("NON-STRICT", "FAILED BY CLIENT"),
        ("a word of a newer suite", "OK"),
    ],
)
def test_a_bad_message_or_close_fails_the_run(behaviour: str, close: str) -> None:
    """A case fails when either its messages or its closing were wrong, whatever the suite calls it."""
    reports = {"9.1.1": report(behaviour, close)}
    assert [case.case for case in failures(judge(reports, reports))] == ["9.1.1"]


def test_a_case_that_did_not_run_has_failed() -> None:
    """A suite that ended early, or a server that died, cannot pass by silence."""
    cases = judge(["1.1.1", "1.1.2"], {"1.1.1": report("OK")})
    assert [case.case for case in failures(cases)] == ["1.1.2"]


def test_only_compression_may_be_unimplemented() -> None:
    """Compression is not offered by design; anything else that is not implemented fails the run."""
    reports = {"6.1.1": report("UNIMPLEMENTED", "UNIMPLEMENTED"), "12.1.1": report("UNIMPLEMENTED", "UNIMPLEMENTED")}
    assert [case.case for case in failures(judge(reports, reports))] == ["6.1.1"]


def test_the_table_counts_each_group() -> None:
    """The table has a row for each group in order, and one for all."""
    reports = {"10.1.1": report("OK"), "2.1": report("OK"), "2.2": report("FAILED")}
    rows = [line.split() for line in table(judge(reports, reports)).splitlines()]
    assert [row[0] for row in rows] == ["group", "2", "10", "all"]
    assert rows[1][-6:] == ["1", "0", "0", "0", "1", "2"]
    assert rows[-1][-6:] == ["2", "0", "0", "0", "1", "3"]


def test_cases_are_chosen_by_group_range_or_pattern() -> None:
    """Groups that the suite does not have (8, 11) are left out of a range; nonsense is refused."""
    assert patterns("7-10, 1.1.1,9.3.*") == ["7.*", "9.*", "10.*", "1.1.1", "9.3.*"]
    for nonsense in ("", "x", "1.", "*"):
        with pytest.raises(ValueError, match="cases are written as"):
            patterns(nonsense)
