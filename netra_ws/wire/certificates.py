"""The server's certificate and key: read and checked before the port opens, and again when asked to.

What was read is never replaced by something worse: a file that is half written, or does not fit the other,
leaves the ones in use where they are, with one line in the log.
"""

from __future__ import annotations

import errno
import logging
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import attrs

from netra_ws.errors import ConfigError

logger = logging.getLogger(__name__)

#: Seconds before its end from which a certificate deserves a warning.
SOON_S = 14 * 86_400.0
#: For TLS 1.2; those of 1.3 are all of this kind: forward secrecy, authenticated encryption.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class _Encrypted(Exception):
    """OpenSSL asked for a password."""


def _refuse_password() -> str:
    raise _Encrypted


@attrs.define(eq=False)
class Certificates:
    """A chain and its key, as new handshakes use them.

    Attributes:
        chain: Path of a PEM file: the server's certificate, then those between it and its root.
        key: Path of a PEM file: the private key, not encrypted.
        context: What a handshake uses; another one after each reading.
        expires_at: When the first certificate of the chain ends, in Unix seconds.

    Raises:
        ConfigError: They cannot be used; one line.
    """

    chain: Path = attrs.field(converter=Path)
    key: Path = attrs.field(converter=Path)
    clock: Callable[[], float] = time.time
    context: ssl.SSLContext = attrs.field(init=False, repr=False)
    expires_at: float = attrs.field(init=False)
    _key_mode: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._read()

    def _read(self) -> None:
        expires_at, context = _end_of(self.chain), _load(self.chain, self.key)
        try:
            self._key_mode = self.key.stat().st_mode
        except OSError as exc:  # gone between two readings
            raise ConfigError(f"server.tls_key: {self.key} cannot be read: {exc.strerror}") from None
        self.context, self.expires_at = context, expires_at

    def reload(self) -> bool:
        """Read the files again, for the handshakes to come; return whether they could be used.

        If not, the log says why and what was read before stays in use. Connections keep what they have.
        """
        try:
            self._read()
        except ConfigError as exc:
            logger.error("the certificate was not replaced: %s", exc)
            return False
        ends = datetime.fromtimestamp(self.expires_at, UTC).isoformat(timespec="seconds")
        logger.info("certificate read again, it ends at %s", ends)
        self.warn()
        return True

    def warn(self) -> None:
        """Log what deserves a second look, one line each."""
        for line in self.doubts():
            logger.warning("%s", line)

    def doubts(self) -> Iterator[str]:
        """Yield what deserves a second look, one line each."""
        left_s = self.expires_at - self.clock()
        if left_s <= 0:
            yield f"server.tls_cert: {self.chain} has ended {-left_s / 86_400:.0f} days ago; clients will refuse it"
        elif left_s < SOON_S:
            yield f"server.tls_cert: {self.chain} ends in {left_s / 86_400:.0f} days"
        if self._key_mode & stat.S_IROTH:
            yield f"server.tls_key: {self.key} can be read by everybody on this machine"


def _end_of(chain: Path) -> float:
    from cryptography import x509  # for a tenth of a second; only needed with TLS

    try:
        certificates = x509.load_pem_x509_certificates(_content("server.tls_cert", chain))
        return min(certificate.not_valid_after_utc.timestamp() for certificate in certificates)
    except (ValueError, x509.InvalidVersion):
        raise ConfigError(f"server.tls_cert: {chain} is not a PEM file of certificates") from None


def _content(setting: str, path: Path) -> bytes:
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # a pipe would hold up everything until somebody writes
            raise ConfigError(f"{setting}: {path} is not a file")
        return path.read_bytes()
    except OSError as exc:
        what = "does not exist" if exc.errno == errno.ENOENT else f"cannot be read: {exc.strerror}"
        raise ConfigError(f"{setting}: {path} {what}") from None


def _load(chain: Path, key: Path) -> ssl.SSLContext:
    if b"PRIVATE KEY-----" not in _content("server.tls_key", key):
        raise ConfigError(f"server.tls_key: {key} is not a PEM file of a private key")
    context = make_context()
    try:
        context.load_cert_chain(chain, key, _refuse_password)
    except _Encrypted:
        raise ConfigError(f"server.tls_key: {key} is encrypted; keep it in a file without a password") from None
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"server.tls_key: {key} is not the key of {chain}") from None
        why = (exc.reason or "unreadable").replace("_", " ").lower()
        raise ConfigError(f"server.tls_cert, tls_key: {chain} and {key} cannot be used ({why})") from None
    except OSError as exc:  # gone between two readings
        raise ConfigError(f"server.tls_cert, tls_key: {exc.strerror}") from None
    return context


def make_context() -> ssl.SSLContext:
    """Return the rules of our side: TLS 1.2 and 1.3 with modern ciphers, HTTP/1.1, no renegotiation."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    return context
