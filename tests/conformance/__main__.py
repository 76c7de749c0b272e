"""``python -m tests.conformance``: the Autobahn TestSuite against ``/ws/echo`` of a real server process.

Exit status: 0 when no case failed, 1 when one did, 2 on bad usage, 77 when the suite cannot be had on
this machine (no Python 2.7 with pip, or no package registry), as test drivers write "skipped".
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import trio

from netra_ws.access import mint
from netra_ws.version import __version__
from tests.kit import SECRET
from tests.load.process import serving

from .results import Case, Word, failures, judge, patterns, table
from .suite import CannotRun, Ran, Suite, find_python2, install

SKIPPED = 77
#: The largest messages of group 9.
LARGEST_BYTES = 16 * 2**20
#: Worth a line each: what is neither good nor failed.
_TOLD = (Word.NON_STRICT, Word.INFORMATIONAL)


def main() -> int:
    """Run the suite as the command line says."""
    args = _parser().parse_args()
    try:
        with _folder(args.folder) as folder:
            python = find_python2(args.python2)
            print(f"installing the suite for {python}", flush=True)
            install(python, folder / "suite")
            began = time.monotonic()
            ran = trio.run(_run, Suite(python, folder / "suite", folder, args.case_s, args.whole_s), args)
            return _tell(ran, time.monotonic() - began, args.json)
    except CannotRun as exc:
        print(f"skipped: {exc}", file=sys.stderr)
        return SKIPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--cases", type=_cases, default="1-7,9,10", help="such as 1-7,9,10.1.1; default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument("--folder", type=Path, help="keep the suite and its reports there, and use them again")
    parser.add_argument(
        "--python2", default=os.environ.get("NETRA_WS_TEST_PYTHON2"), help="a Python 2.7; default: the first found"
    )
    parser.add_argument("--case-s", type=float, default=120.0, help="seconds for one case")
    parser.add_argument("--whole-s", type=float, default=1200.0, help="seconds for all of them")
    parser.add_argument("--max-message-bytes", type=int, default=LARGEST_BYTES, help="the server's limit")
    return parser


def _cases(text: str) -> list[str]:
    try:
        return patterns(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="netra_ws_conformance_") as folder:
            yield Path(folder)


async def _run(suite: Suite, args: argparse.Namespace) -> Ran:
    with tempfile.TemporaryDirectory(prefix="netra_ws_conformance_server_") as folder:
        settings = {"LIMITS_MAX_MESSAGE_BYTES": args.max_message_bytes, "LOG_LEVEL": "warning"}
        async with serving(Path(folder), settings) as process:
            # The suite cannot send headers of ours, so the token goes as a subprotocol.
            token = mint(SECRET, "autobahn", None, args.whole_s + 3600.0, time.time())
            url = f"ws://127.0.0.1:{process.port}/ws/echo"
            ran = await suite.run(url, ["netra.v1", f"jwt.{token}"], args.cases)
            process.signal()
            status = await process.ended()
            if status or process.log().count("\n") > 1:  # everything behind "Listening on" is a warning
                print(f"the server ended with {status}; its log:\n{process.log()}")
            return ran


def _tell(ran: Ran, seconds: float, file: Path | None) -> int:
    cases = judge(ran.asked, ran.reports)
    failed = failures(cases)
    print(table(cases))
    for case in cases:
        if case.word in _TOLD or case in failed:
            print(f"  {case.case}: {case.said}")
    longest = sorted(ran.seconds.items(), key=lambda item: -item[1])[:3]
    print(f"{seconds:.1f} s; longest: {', '.join(f'{case} {took:.1f} s' for case, took in longest)}")
    if ran.stopped:
        print(f"stopped: {ran.stopped}")
    if file is not None:
        file.write_text(json.dumps(_results(cases, failed, ran, seconds), indent=1) + "\n")
    good = not failed and not ran.stopped and bool(cases)
    print("no case failed" if good else f"{len(failed)} failed")
    return 0 if good else 1


def _results(cases: list[Case], failed: list[Case], ran: Ran, seconds: float) -> dict[str, object]:
    return {
        "version": __version__,
        "seconds": round(seconds, 1),
        "stopped": ran.stopped,
        "failed": [case.case for case in failed],
        "cases": {
            case.case: {"word": case.word.value, "said": case.said, "seconds": ran.seconds.get(case.case)}
            for case in cases
        },
    }


if __name__ == "__main__":
    sys.exit(main())
