"""Long runs: ``python -m tests.fuzz [--seconds N] [--seed S] [head|frames|codec]``.

Without a target each has its share of the time. The exit status is 1 when something was found; each finding
is kept as a file, and ``--replay FILE`` checks it again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from .campaign import NAMES, keep, replay, run


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", choices=NAMES)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="for the same inputs again (default: a new one)")
    parser.add_argument("--save", type=Path, default=Path("fuzz-found"), help="folder for findings")
    parser.add_argument("--replay", type=Path, help="check a finding again and do nothing else")
    asked = parser.parse_args()
    if asked.replay is not None:
        failure = replay(asked.replay)
        print(failure or "nothing is wrong with it")
        return 1 if failure else 0
    seed = random.randrange(10**6) if asked.seed is None else asked.seed
    names = (asked.target,) if asked.target else NAMES
    found = 0
    for name in names:
        began = time.monotonic()
        figures = run(name, seed, seconds=asked.seconds / len(names))
        took_s = time.monotonic() - began
        print(
            f"{name}: seed {seed}, {figures.inputs:,} inputs of {figures.size:,} bytes in {took_s:.0f} s, "
            f"{len(figures.found)} found",
            flush=True,
        )
        for data, where, failure in figures.found:
            print(f"{failure}\n{data[:2000]!r}\ncut at {where}; kept as {keep(asked.save, name, data, where, failure)}")
        found += len(figures.found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
