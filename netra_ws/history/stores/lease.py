"""The lease of a file: one process at a time works on it, and a killed one lets go at once."""

from __future__ import annotations

from pathlib import Path

import filelock

from netra_ws.errors import StoreLeased


def take_lease(path: Path) -> filelock.FileLock:
    """Take the lease of *path*, a lock of the operating system on ``<path>.lock``, without waiting.

    The lock file stays when the lease is given back by ``release()``: removing it would let two others
    lock two files of that name.

    Raises:
        StoreLeased: Another process, or another store of this one, has it.
        OSError: The lock file cannot be made.
    """
    # Symbolic links are followed: two names of one file are one lease. Not bound to a thread: it is
    # taken and given back in whichever worker thread is free.
    real = path.resolve()
    lock = filelock.FileLock(f"{real}.lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout as exc:
        raise StoreLeased(f"store {path} is in use by another server; one file serves one process at a time") from exc
    return lock
