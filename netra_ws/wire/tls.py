"""TLS over a socket, for the server's side.

Not ``trio.SSLStream``: a send of it that is cancelled halfway breaks the stream for good, so a client
that reads slowly would never see the Close frame of a server that ends. Here the records that are made stay in
order behind each other until the socket takes them, whoever waits for that, or has stopped to wait.
"""

from __future__ import annotations

import contextlib
import ssl

import attrs
import trio

#: Bytes per reading: at most one full record of the client's, so that a thousand tiny ones cannot hold up the rest.
READ_BYTES = 16 * 1024
#: Bytes that TLS itself may have to answer in the life of a connection: some hundred new keys of 27 bytes each, where
#: one is due after 2**24 records. A client that asks for more is after our time, which no other budget counts.
MAX_ANSWERS = 8 * 1024


@attrs.define(eq=False, repr=False)
class TlsStream(trio.abc.HalfCloseableStream):
    """A client's connection; ``do_handshake`` comes first.

    ``send_all`` takes everything at once; cancelled, it has stopped waiting for the socket, but what it took
    leaves with what is sent next. One task may send and another one receive.
    """

    transport: trio.SocketStream
    _context: ssl.SSLContext
    _incoming: ssl.MemoryBIO = attrs.field(factory=ssl.MemoryBIO)
    _outgoing: ssl.MemoryBIO = attrs.field(factory=ssl.MemoryBIO)
    _ssl: ssl.SSLObject = attrs.field(init=False)
    _records: memoryview = attrs.field(factory=lambda: memoryview(b""))
    _tickets: bytes = b""
    _answers: int = 0
    _sending: trio.Lock = attrs.field(factory=trio.Lock)
    _open: bool = False
    _over: bool = False

    def __attrs_post_init__(self) -> None:
        self._ssl = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def do_handshake(self, said: bytes = b"") -> None:
        """Do the handshake, of which the client has *said* the beginning.

        Raises:
            BrokenResourceError: The client does not speak TLS as we want it, or has gone.
        """
        self._incoming.write(said)
        while True:
            try:
                self._ssl.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                await self._hear()
            except ssl.SSLError as exc:
                raise trio.BrokenResourceError from exc
        self._open = True
        if self._ssl.version() == "TLSv1.3":
            # They go with the first answer, as a client that never reads does not expect them.
            self._tickets = self._outgoing.read()
        else:
            await self._flush()

    # In.

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what the client said; behind our own end, wait for its end and drop what it says.

        An end without close_notify counts as one: WebSocket and HTTP have marks of their own for what is cut.
        """
        if self._over:
            while await self.transport.receive_some(READ_BYTES):
                pass
            return b""
        await trio.lowlevel.checkpoint()
        limit = READ_BYTES if max_bytes is None else min(max_bytes, READ_BYTES)
        while (data := self._listen(limit)) is None:
            if self._outgoing.pending:  # a new key was asked for
                await self._flush()
            await self._hear()
        return data

    def _listen(self, limit: int) -> bytes | None:
        """Decrypt, and count what TLS has to answer."""
        before = self._outgoing.pending
        data = self._decrypt(limit)
        self._answers += self._outgoing.pending - before
        if self._answers > MAX_ANSWERS:
            self._open = False
            raise trio.BrokenResourceError
        return data

    def _decrypt(self, limit: int) -> bytes | None:
        """Return what is there of at most *limit* bytes; empty at the end, None when there must be more."""
        data = bytearray()
        while len(data) < limit:
            try:
                piece = self._ssl.read(limit - len(data))
            except ssl.SSLWantReadError:
                return bytes(data) or None
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                break
            except ssl.SSLError as exc:
                if data:
                    break  # the next reading fails again
                self._open = False
                raise trio.BrokenResourceError from exc
            if not piece:
                break
            data += piece
        return bytes(data)

    async def _hear(self) -> None:
        heard = await self.transport.receive_some(READ_BYTES)
        if heard:
            self._incoming.write(heard)
        else:
            self._incoming.write_eof()

    # Out.

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send *data*, and wait until the socket has taken it.

        *Cancellation:* it is sent nevertheless, with what is sent next; nothing is torn.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._over or not self._open:
            raise trio.ClosedResourceError if self._over else trio.BrokenResourceError
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._ssl.write(rest) :]
        except ssl.SSLError as exc:
            self._open = False
            raise trio.BrokenResourceError from exc
        await self._flush()

    async def _flush(self) -> None:
        """Give the socket what it takes of our records, in the order in which they were made."""
        async with self._sending:
            while self._records or self._outgoing.pending:
                if not self._records:
                    tickets, self._tickets = self._tickets, b""
                    self._records = memoryview(tickets + self._outgoing.read())
                try:
                    sent = await self.transport.socket.send(self._records)
                except OSError as exc:
                    raise trio.BrokenResourceError from exc
                self._records = self._records[sent:]

    async def wait_send_all_might_not_block(self) -> None:
        await self.transport.wait_send_all_might_not_block()

    # Ending.

    async def send_eof(self) -> None:
        """Say that nothing follows, in TLS and in TCP, behind everything that was sent."""
        if not self._over:
            self._over = True
            if self._open:
                with contextlib.suppress(ssl.SSLError):  # close_notify is written, the client's is not waited for
                    self._ssl.unwrap()
            await self._flush()
            await self.transport.send_eof()

    async def aclose(self) -> None:
        """Close now; ``send_eof`` before it is the polite way."""
        self._over = True
        await self.transport.aclose()


async def end_and_drain(stream: trio.abc.Stream) -> None:
    """Say that nothing follows and wait for the client's end, dropping what it says.

    Closing with unread data would make the system send a reset, which destroys what is still on its way to the
    client. The caller bounds the time, and closes.
    """
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        if isinstance(stream, trio.SSLStream):
            # A program's own says its end, waits for the client's, and gives up its transport.
            transport, _ = await stream.unwrap()
            await trio.aclose_forcefully(transport)
        elif isinstance(stream, trio.abc.HalfCloseableStream):
            await stream.send_eof()
            while await stream.receive_some(64 * 1024):
                pass
