"""The console and the browser client: files of this package, read once, sent with a strict policy."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

import attrs

from netra_ws.wire.head import Head, Reply

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

#: Only our own files, sockets to anywhere (a page may talk to another server of its owner), no frames.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' ws: wss:; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_HEADERS: tuple[tuple[str, str], ...] = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-cache"),
)


@attrs.frozen
class Asset:
    """One file as a page."""

    reply: Reply

    async def page(self, head: Head, body: bytes) -> Reply:
        """Answer with the file."""
        return self.reply


def load_assets(*, console: bool) -> Mapping[str, Asset]:
    """Return path → file: always the browser client, the console's files where it is shown."""
    folder = files("netra_ws.pages") / "console"
    assets = {}
    for file in folder.iterdir():
        name = file.name
        content_type = _TYPES.get(name.rpartition(".")[2])
        if content_type is None:
            continue
        headers = _HEADERS
        path = f"/console/{name}"
        if name == "netra-ws.js":
            # A page of another origin may use the client; the socket has its own rule for origins.
            path, headers = "/netra-ws.js", (*_HEADERS, ("Access-Control-Allow-Origin", "*"))
        elif not console:
            continue
        elif name == "index.html":
            path = "/"
        assets[path] = Asset(Reply(200, file.read_bytes(), content_type, headers))
    return assets
