"""What comes in front of a head on the server's own port: a proxy's word about the client, then TLS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import attrs
import trio

from netra_ws.access.proxies import Proxies
from netra_ws.errors import Refused

from .certificates import Certificates
from .head import Head, Request
from .proxies import MAX_BLOCK_BYTES, BrokenPreface, may_be_preface, read_preface
from .tls import TlsStream

#: First byte of a TLS record that holds a handshake (RFC 8446 §5.1).
HANDSHAKE = 0x16
_PLAIN = b"This port speaks TLS: use https:// or wss://.\n"
_PLAIN_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(_PLAIN), _PLAIN)
)


@attrs.frozen
class Arrival:
    """How clients of the port come.

    Attributes:
        proxies: Whose PROXY line is read; from anybody else it is no HTTP.
        certificates: None where the port does not speak TLS.
        outcomes: Counts ``tls_failed`` and ``proxy_failed``.
        meet: Takes one of the connections that an address may open in a minute; returns why it may not.
    """

    proxies: Proxies
    certificates: Certificates | None
    outcomes: Counter[str]
    meet: Callable[[str], Refused | None]

    async def prepare(self, request: Request) -> bool:
        """Read what comes in front of the head; return whether a head may follow.

        The address that the connection counts for is that of the peer or, if a proxy is believed, the one that the
        proxy names: in its PROXY line, or later in the head.

        Raises:
            BrokenResourceError: The connection cannot be used; it was counted.
            Refused: 429, where the client could be told only after a TLS handshake; ``can_answer`` is False then.
        """
        said = b""
        if self.proxies.trusts(request.peer):
            try:
                said = await self._read_preface(request)
            except BrokenPreface:
                self.outcomes["proxy_failed"] += 1
                return False
        if not self.proxies.trusts(request.peer):
            request.limited = self.meet(request.peer)
        if self.certificates is None:
            request.feed(said)
            return True
        if request.limited is not None:
            raise request.limited
        return await self._start_tls(request, said, self.certificates)

    def believe(self, request: Request, head: Head) -> Head:
        """Return *head* as its proxy tells it, if that is one whose word counts.

        Raises:
            Refused: 429, for the address that the connection counts for.
        """
        if request.limited is not None:
            raise request.limited
        if not self.proxies.trusts(request.peer):
            return head
        seen = self.proxies.see(head.headers, request.peer, https=request.https)
        request.peer, request.https = seen.peer, seen.https
        # Who comes from a proxy that names nobody is the proxy itself, which looks whether we are well.
        if not self.proxies.trusts(seen.peer) and (limited := self.meet(seen.peer)) is not None:
            raise limited
        headers = head.headers
        if seen.host is not None:
            headers = [(name, seen.host if name == b"host" else value) for name, value in headers]
        return attrs.evolve(head, peer=seen.peer, https=seen.https, headers=headers)

    def can_answer(self, request: Request) -> bool:
        """Whether the client understands an answer now: where TLS is spoken, not before."""
        return self.certificates is None or isinstance(request.stream, TlsStream)

    async def _read_preface(self, request: Request) -> bytes:
        """Take a PROXY line, if there is one; return what came behind it."""
        said = b""
        while may_be_preface(said):
            if (preface := read_preface(said)) is not None:
                request.peer = preface.source or request.peer
                return said[preface.size :]
            more = await request.stream.receive_some(MAX_BLOCK_BYTES)
            if not more:
                break
            said += more
        return said

    async def _start_tls(self, request: Request, said: bytes, certificates: Certificates) -> bool:
        plain = request.stream
        assert isinstance(plain, trio.SocketStream)
        if not (said := said or bytes(await plain.receive_some(MAX_BLOCK_BYTES))):
            return False  # somebody who only looked whether the port is open
        if said[0] != HANDSHAKE:
            self.outcomes["tls_failed"] += 1
            if said[:1].isalpha():
                await plain.send_all(_PLAIN_ANSWER)
            return False
        request.stream = tls = TlsStream(plain, certificates.context)
        try:
            await tls.do_handshake(said)
        except trio.BrokenResourceError:
            self.outcomes["tls_failed"] += 1
            raise
        request.https = True
        return True
