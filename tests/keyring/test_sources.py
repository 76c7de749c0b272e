from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from netra_ws.access.freshness import LOOK_S, Unread
from netra_ws.access.jwks import MAX_SET_BYTES
from netra_ws.keyring import file_problems, key_sources
from netra_ws.keyring import sources as module
from netra_ws.keyring.sources import FileReader
from netra_ws.settings import Settings
from tests.key_pairs import KINDS, jwk, jwks, private_pem, public_pem


def reader(path: Path) -> FileReader:
    return FileReader(path, frozenset(KINDS))


async def test_a_file_is_read_when_it_has_changed(tmp_path: Path) -> None:
    """A file that is the same gives nothing new; another one gives its keys, also behind a link."""
    first, second, link = tmp_path / "1", tmp_path / "2", tmp_path / "link"
    first.write_bytes(jwks(jwk("ES256", "one")))
    second.write_bytes(public_pem("EdDSA"))
    link.symlink_to(first)
    read = reader(link)
    keys, after_s = await read()
    assert keys is not None
    assert [key.kid for key in keys.keys] == ["one"]
    assert after_s == LOOK_S
    assert await read() == (None, LOOK_S)
    link.unlink()
    link.symlink_to(second)  # as Kubernetes changes what it mounts
    keys, _ = await read()
    assert keys is not None
    assert [key.algorithm for key in keys.keys] == ["EdDSA"]


async def test_a_fault_is_told_once(tmp_path: Path) -> None:
    """A file that is broken or gone is a fault, known until it changes; the same file again is read again."""
    path = tmp_path / "keys"
    path.write_bytes(public_pem("EdDSA"))
    before = path.stat()
    read = reader(path)
    await read()
    for broken in (b"broken", None):
        if broken is None:
            path.unlink()
        else:
            path.write_bytes(broken)
        for known in (False, True, True):
            with pytest.raises(Unread) as caught:
                await read()
            assert caught.value.known is known
            assert caught.value.lasting
    path.write_bytes(public_pem("EdDSA"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (await read())[0] is not None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "there is no such file"),
        (b"", "neither a JWK Set nor PEM"),
        (b"{}", "not a JWK Set"),
        (private_pem("ES256"), "a private key"),
        (jwks(jwk("ES256", "a", private=True)), "a private key"),
        (jwks({"kty": "oct", "k": "c2VjcmV0LWtleQ", "kid": "a"}), "a symmetric key"),
        (b" " * (MAX_SET_BYTES + 1), "more than 262144 bytes"),
        ("folder", "there is no such file"),
        ("pipe", "there is no such file"),
    ],
    ids=["none", "empty", "object", "private PEM", "private JWK", "symmetric", "large", "folder", "pipe"],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: Any, why: str) -> None:
    """Each is one line for check-config that names the setting, and shows nothing of the file."""
    path = tmp_path / "keys"
    if content == "folder":
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    elif content is not None:
        path.write_bytes(content)
    (line,) = file_problems(Settings.make({"auth.jwks_file": str(path)}))
    assert line.startswith("auth.jwks_file: ")
    assert why in line
    assert "c2Vj" not in line


def test_files_that_can_be_used(tmp_path: Path) -> None:
    """A good file is no problem, and neither is none; one without a key of the chosen algorithm is."""
    path = tmp_path / "keys"
    path.write_bytes(public_pem("ES256"))
    assert file_problems(Settings()) == []
    assert file_problems(Settings.make({"auth.jwks_file": str(path)})) == []
    (line,) = file_problems(Settings.make({"auth.jwks_file": str(path), "auth.algorithms": ["RS256"]}))
    assert "auth.algorithms leaves ES256 out" in line


async def test_a_file_system_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look has its seconds, and of all looks one thread hangs."""
    path = tmp_path / "keys"
    path.write_bytes(public_pem("ES256"))
    monkeypatch.setattr(module, "READ_S", 0.05)
    read = reader(path)
    async with trio.open_nursery() as nursery:
        release = trio.Event()

        async def hang() -> None:
            async with read._threads:
                await release.wait()

        nursery.start_soon(hang)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            with pytest.raises(Unread, match="no answer"):
                await read()
        release.set()
    monkeypatch.setattr(module, "READ_S", 10.0)
    assert (await read())[0] is not None


async def test_what_came_too_late_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changed while the file system was slow is not taken for one that was read."""
    path = tmp_path / "keys"
    path.write_bytes(jwks(jwk("ES256", "one")))
    read = reader(path)
    await read()
    path.write_bytes(jwks(jwk("ES256", "another")))
    usual, go = module.read_key_file, threading.Event()

    def late(*args: Any) -> Any:
        go.wait(10)
        return usual(*args)

    monkeypatch.setattr(module, "read_key_file", late)
    monkeypatch.setattr(module, "READ_S", 0.05)
    with pytest.raises(Unread, match="no answer"):
        await read()
    go.set()
    monkeypatch.setattr(module, "READ_S", 10.0)
    keys, _ = await read()
    assert keys is not None
    assert [key.kid for key in keys.keys] == ["another"]


def test_names_show_no_secret(tmp_path: Path) -> None:
    """What messages call a source holds neither query nor path of a file."""
    settings = Settings.make({"auth.jwks_file": str(tmp_path), "auth.jwks_url": "https://id.example/k?x=hidden"})
    assert [source.name for source in key_sources(settings)] == [
        "auth.jwks_file",
        "auth.jwks_url: https://id.example/k",
    ]
    assert key_sources(Settings()) == ()
