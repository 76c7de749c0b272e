"""A real server in a process of its own, for tests that come to it from outside."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import attrs

from netra_ws.access import mint

from .agents import INTERNALS

ROOT = Path(__file__).parents[2]
SECRET = "a secret that only the end-to-end tests use"
START_S = 20.0
STOP_S = 15.0


@attrs.define(eq=False)
class ServerProcess:
    """A server with a store of its own; it can be killed and started again on the same port.

    Attributes:
        folder: Where the store and the log are.
        port: 0 before the first start.
    """

    folder: Path
    overrides: dict[str, object] = attrs.field(factory=dict)
    port: int = 0
    _process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http{self._secure}://127.0.0.1:{self.port}"

    @property
    def _secure(self) -> str:
        return "s" if "server.tls_cert" in self.overrides else ""

    @property
    def socket_url(self) -> str:
        return f"ws{self._secure}://127.0.0.1:{self.port}/ws"

    def token(self, user: str, expires_s: float = 3600.0, permissions: Sequence[str] | None = None) -> str:
        return mint(SECRET, user, permissions, expires_s, time.time())

    def login(self, user: str, expires_s: float = 3600.0) -> str:
        """Return the address that signs a browser in."""
        return f"{self.url}/#token={quote(self.token(user, expires_s))}"

    def start(self) -> None:
        """Start it and wait until it can be connected to."""
        settings = {
            "server.port": self.port,
            "server.console": True,
            "auth.secret": SECRET,
            "store.url": f"sqlite:///{self.folder / 'netra_ws.db'}",
            **self.overrides,
        }
        with (self.folder / "server.log").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.serve", json.dumps(settings)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._process = process
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], START_S)
        line = process.stdout.readline() if ready else ""
        if not line:
            self.kill()
            raise AssertionError(f"the server did not start:\n{self.log()}")
        self.port = int(line)

    def kill(self) -> None:
        """End it as ``kill -9`` does, and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate(timeout=STOP_S)

    def stop(self) -> int:
        """End it in order and return its exit status."""
        process, self._process = self._process, None
        assert process is not None
        try:
            process.communicate("", timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate(timeout=STOP_S)
        return process.returncode

    def log(self) -> str:
        """Return what it wrote to its standard error."""
        return (self.folder / "server.log").read_text(encoding="utf-8")


@contextmanager
def running_server(folder: Path, **overrides: object) -> Iterator[ServerProcess]:
    """Run a server beside the block; at the end it must leave in order, with nothing bad in its log.

    Args:
        overrides: Settings by dotted name; where it was killed and not started again, nothing is checked.
    """
    server = ServerProcess(folder, dict(overrides))
    try:
        server.start()
        yield server
        if server._process is not None:
            assert server.stop() == 0, server.log()
        log = server.log()
        assert log.count("Traceback") == log.count(f"ValueError: {INTERNALS}"), log
    finally:
        server.kill()
