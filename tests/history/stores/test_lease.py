"""One process at a time, and a killed one holds nothing back."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from netra_ws.errors import StoreError, StoreLeased
from netra_ws.history.opening import make_store
from netra_ws.history.stores.contract import Store
from tests.contract.rows import EPOCH, KEY, put_stream

HOLDER = """
import sys, trio
from netra_ws.history.opening import make_store

async def main():
    store = make_store(sys.argv[1])
    await store.open()
    print("open", flush=True)
    await trio.to_thread.run_sync(sys.stdin.read)

trio.run(main)
"""

WRITER = """
import itertools, sys, trio
from netra_ws.history.opening import make_store
from tests.contract.rows import put_event, put_stream

async def main():
    store = make_store(sys.argv[1])
    await store.open()
    await store.write([put_stream()])
    for number in itertools.count():
        await store.write([put_event(number * 50 + place) for place in range(50)])
        print(number, flush=True)

trio.run(main)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "netra_ws.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    store = make_store(f"sqlite:///{path}")
    await store.open()
    yield store
    await store.close()


@contextlib.contextmanager
def running(program: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """Run *program* on the store of *url* in another process, killed on the way out."""
    command = [sys.executable, "-c", program, url]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def test_a_file_serves_one_store(store: Store, path: Path) -> None:
    """A second open of a file, also by another name of it, fails at once and names it; the first goes on."""
    link = path.with_name("link.db")
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(StoreLeased, match=rf"^store {name} is in use by another server[^\n]*$"):
            await make_store(f"sqlite:///{name}").open()
    await store.write([put_stream()])
    assert await store.stream(KEY) is not None


async def test_an_open_store_cannot_be_opened_again(store: Store) -> None:
    """Opening the same store twice is an error that does it no harm."""
    with pytest.raises(StoreError, match=r"^the store is open already$"):
        await store.open()
    await store.ping()


async def test_a_killed_process_frees_the_file(path: Path) -> None:
    """While another process has the store it is refused; as soon as that is killed, it opens."""
    with running(HOLDER, f"sqlite:///{path}") as process:
        assert line(process) == "open"
        store = make_store(f"sqlite:///{path}")
        with pytest.raises(StoreLeased):
            await store.open()
        process.kill()
        process.wait()
        await store.open()
        await store.close()


async def test_a_killed_writer_loses_nothing_it_told_of(path: Path) -> None:
    """After kill -9 amid writes every batch that was acknowledged is there, and no batch in part."""
    with running(WRITER, f"sqlite:///{path}") as process:
        while (told := int(line(process))) < 20:
            pass
        process.kill()
        process.wait()
    store = make_store(f"sqlite:///{path}")
    await store.open()
    seqs = [event.seq for event in await store.events(KEY, EPOCH, -1, 10**9, 10**9)]
    await store.close()
    assert seqs == list(range(len(seqs)))
    assert len(seqs) % 50 == 0
    assert len(seqs) >= (told + 1) * 50
