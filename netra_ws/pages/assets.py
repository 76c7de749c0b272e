"""The console and the browser client: files of this package, read once, sent with a strict policy."""

from __future__ import annotations

import re
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

#: Only our own files and sockets, no frames.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'"
)
_HOST = re.compile(rb"[A-Za-z0-9_.:\[\]-]{1,261}")

_HEADERS: tuple[tuple[str, str], ...] = (("Content-Security-Policy", POLICY), ("Cache-Control", "no-cache"))
#: Pages of any origin may use the browser client; the socket has its own rule for origins.
_FOR_ALL = (("Access-Control-Allow-Origin", "*"), ("Cross-Origin-Resource-Policy", "cross-origin"))


@attrs.frozen
class Asset:
    """One file as a page."""

    reply: Reply

    async def page(self, head: Head, body: bytes) -> Reply:
        """Answer with the file."""
        host = head.get(b"host") or b""
        if not _HOST.fullmatch(host):
            return self.reply
        # 'self' means the own sockets, too, but older browsers want them named.
        name = host.decode("ascii")
        policy = f"{POLICY} ws://{name} wss://{name}"
        return attrs.evolve(self.reply, headers=(("Content-Security-Policy", policy), *self.reply.headers[1:]))


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
            path, headers = "/netra-ws.js", (*_HEADERS, *_FOR_ALL)
        elif not console:
            continue
        elif name == "index.html":
            path = "/"
        assets[path] = Asset(Reply(200, file.read_bytes(), content_type, headers))
    return assets
