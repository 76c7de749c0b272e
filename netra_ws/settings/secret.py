"""The secret that the commands of one user share in development."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from netra_ws.errors import ConfigError

from .rules import MIN_SECRET_BYTES, SECRET


def development_secret(folder: Path | None = None) -> str:
    """Return the secret that all commands of this user share in development, made on first use.

    It is kept in *folder*, by default the user's state folder, in a file that only the user can read.

    Raises:
        ConfigError: the file is open to others, too short, or cannot be made.
    """
    if folder is None:
        from platformdirs import user_state_path  # only development pays for this import

        folder = user_state_path("netra_ws")
    path = folder / "development_secret"
    try:
        if not path.exists():
            _make_secret(path)
        return _read_secret(path)
    except OSError as exc:
        raise ConfigError(f"auth.secret: {path} cannot be used: {exc.strerror}; set auth.secret instead") from exc


def _make_secret(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
        # A link appears complete or not at all and never replaces: of two first starts, one wins for both.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()


def _read_secret(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise ConfigError(f"auth.secret: {path} must be a file that only you can read (chmod 600), or be removed")
        content = file.read(4096)
    secret = content.decode("utf-8", "replace").strip()
    if not SECRET.holds(secret):
        raise ConfigError(f"auth.secret: {path} holds less than {MIN_SECRET_BYTES} bytes; remove it to get a new one")
    return secret
