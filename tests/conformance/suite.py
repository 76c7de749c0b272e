"""The Autobahn TestSuite: found, installed, and run as a client of one server, with a bound on every wait.

It is a program for Python 2.7 and lives in a folder of its own; nothing of it is imported here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
#: Optional, compiled at installation: without it the suite checks UTF-8 and masks in Python, and takes longer.
ACCELERATOR = "wsaccel==0.6.6"
#: What the server is called in the suite's own reports.
AGENT = "netra_ws"
#: Seconds for an installation.
INSTALL_S = 600.0

_STARTED = re.compile(rb"Running test case ID ([0-9.]+) ")
_ASKED = re.compile(rb"^Cases = (\[.*\])$", re.MULTILINE)
#: ``.pth`` files, which zope's namespace needs, are only read in a site folder.
_RUN = "import site, sys; sys.path.insert(0, sys.argv[1]); site.addsitedir(sys.argv.pop(1)); \
from autobahntestsuite.wstest import run; run()"


class CannotRun(Exception):
    """There is nothing to run the suite with; says what is missing."""


def find_python2(given: str | None = None) -> Path:
    """Return a Python 2.7 that has pip: the given one, else one on PATH or of pyenv.

    Raises:
        CannotRun: There is none.
    """
    tried = []
    for candidate in [given] if given else _candidates():
        if _is_python2(candidate):
            return Path(candidate)
        tried.append(candidate)
    looked = f" (not fit: {', '.join(tried)})" if tried else ""
    raise CannotRun(f"the Autobahn TestSuite needs a Python 2.7 with pip, and there is none{looked}")


def _candidates() -> Iterator[str]:
    for name in ("python2.7", "python2"):
        if found := shutil.which(name):
            yield found
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(root.glob("versions/2.7*/bin/python2.7")))


def _is_python2(python: str) -> bool:
    try:
        done = subprocess.run(
            [python, "-m", "pip", "--version"], env=_environ(), capture_output=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and b"(python 2.7)" in done.stdout


def _environ() -> dict[str, str]:
    """Return the environment without what is meant for the Python that runs this."""
    ours = ("PYTHON", "COVERAGE", "NETRA_WS_", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def install(python: Path, folder: Path) -> None:
    """Install the pinned suite into *folder*; what an earlier call has installed there is used again.

    Raises:
        CannotRun: It cannot be had.
    """
    done, wanted = folder / "installed.txt", REQUIREMENTS.read_text()
    if done.exists() and done.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    _pip(python, folder, ["--requirement", str(REQUIREMENTS)])
    try:
        _pip(python, folder, [ACCELERATOR])
    except CannotRun:
        print("without wsaccel, which needs a C compiler: the suite is slower", file=sys.stderr)
    done.write_text(wanted)


def _pip(python: Path, folder: Path, what: Sequence[str]) -> None:
    words = ["install", "--quiet", "--no-deps", "--no-compile", "--disable-pip-version-check", "--target", str(folder)]
    try:
        subprocess.run(
            [str(python), "-m", "pip", *words, *what],
            env={**_environ(), "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INSTALL_S,
            check=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as exc:
        output = (exc.output or b"").decode(errors="replace")
        raise CannotRun(f"the Autobahn TestSuite cannot be installed: {exc}\n{output}") from None


@attrs.define
class Ran:
    """What one run of the suite came to.

    Attributes:
        asked: Ids of the cases that it meant to run.
        reports: Its own word on each case that has ended, by id.
        seconds: Of each case that has ended, by the suite's clock.
        stopped: Why it was ended before its end, or None.
    """

    asked: list[str]
    reports: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]
    stopped: str | None


@attrs.define
class Suite:
    """One run of the installed suite against one server.

    Attributes:
        python: A Python 2.7.
        site: Where the suite is installed.
        folder: For its specification, its output and its reports.
        case_s: Seconds that one case may take; the suite's own timeouts are shorter.
        whole_s: Seconds that the run may take.
    """

    python: Path
    site: Path
    folder: Path
    case_s: float = 120.0
    whole_s: float = 1200.0
    _begun: list[tuple[str, float]] = attrs.field(factory=list)
    _stopped: str | None = None

    async def run(self, url: str, protocols: Iterable[str], cases: Iterable[str]) -> Ran:
        """Run *cases*, patterns such as ``9.*`` or ``1.1.1``, against *url*."""
        shutil.rmtree(self.folder / "reports", ignore_errors=True)  # of an earlier run, not ours
        server = {"agent": AGENT, "url": url, "protocols": list(protocols)}
        spec = {"outdir": str(self.folder / "reports"), "servers": [server], "cases": list(cases)}
        path = self.folder / "spec.json"
        path.write_text(json.dumps({**spec, "exclude-cases": [], "exclude-agent-cases": {}}))
        words = [
            str(self.python),
            "-u",
            "-W",
            "ignore",
            "-c",
            _RUN,
            str(self.site),
            "--mode",
            "fuzzingclient",
            "--spec",
            str(path),
        ]
        with (self.folder / "suite.log").open("wb") as log:
            async with trio.open_nursery() as nursery:
                process = await nursery.start(self._process, words, log.fileno())
                nursery.start_soon(self._watch, process)
                await process.wait()
                nursery.cancel_scope.cancel()
        self._note()
        return self._ran()

    async def _process(
        self, words: Sequence[str], log: int, task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await trio.run_process(
            words,
            env=_environ(),
            cwd=self.folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
            task_status=task_status,
        )

    async def _watch(self, process: trio.Process) -> None:
        """End the suite when a case, or the whole, takes too long; it has no such bound itself."""
        began = time.monotonic()
        while True:
            await trio.sleep(0.2)
            self._note()
            now = time.monotonic()
            case, since = self._begun[-1] if self._begun else ("the start", began)
            if now - since > self.case_s:
                self._stopped = f"{case} took more than {self.case_s:g} s"
            elif now - began > self.whole_s:
                self._stopped = f"the run took more than {self.whole_s:g} s, in {case}"
            if self._stopped:
                process.kill()
                return

    def _note(self) -> None:
        seen = _STARTED.findall((self.folder / "suite.log").read_bytes())
        for case in seen[len(self._begun) :]:
            self._begun.append((case.decode(), time.monotonic()))

    def _ran(self) -> Ran:
        output = (self.folder / "suite.log").read_bytes()
        asked = _ASKED.search(output)
        if asked is None:
            return Ran([], {}, {}, f"the suite did not start:\n{output.decode(errors='replace')[-2000:]}")
        index = self.folder / "reports" / "index.json"
        reports = json.loads(index.read_text()).get(AGENT, {}) if index.exists() else {}
        seconds = {case: report["duration"] / 1000 for case, report in reports.items()}
        return Ran(json.loads(asked[1].replace(b"'", b'"')), reports, seconds, self._stopped)
