"""TLS over any stream of the seam.

All files are in one directory, so that TLS is one setting::

    DIR/ca.pem      the certificates that are trusted: of the cluster's own authority
    DIR/cert.pem    this server's certificate (with those between it and the authority)
    DIR/key.pem     its private key, mode 0600

A client needs only ``ca.pem``. Servers present their certificate, and the connecting
side verifies it: its authority, its dates, and the host in the address that it connects
to. The connecting side proves its membership with the cluster key, inside the encrypted
connection, as it does without TLS; so there are no certificates for clients. TLS 1.3
only. The files are checked for every new connection and read again when they have
changed.

:class:`trio.SSLStream` is not used, because it allocates new bytes for every record,
and our bodies go from the wire into the caller's buffer. Session tickets are off: they
would arrive on idle connections, which must receive nothing.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import cast

import trio

from gfs.io.private import others_can_read
from gfs.io.world import BlockingRunner, Buffer, File, Runner, Stream

log = logging.getLogger(__name__)

CA_NAME, CERTIFICATE_NAME, PRIVATE_KEY_NAME = "ca.pem", "cert.pem", "key.pem"
#: Received, or encrypted before it is sent, in one go. A record has 16 KiB.
PIECE_BYTES = 64 * 1024
FILE_BYTES = 256 * 1024
#: The first byte of a TLS connection, and of an alert that ends one before it begins.
_HANDSHAKE, _ALERT = 0x16, 0x15
#: How long a refused peer may take to read the reason.
HANG_UP_SECONDS = 1.0


class TlsError(ConnectionError):
    """No encrypted connection could be made. The message is one line for an operator."""


class NotTls(TlsError):
    """The peer does not speak TLS at all."""


class BadTls(ValueError):
    """Files that are missing or invalid."""


class Tls:
    """Encrypts connections. Raises BadTls."""

    def __init__(self, directory: Path, *, server: bool) -> None:
        self._directory = directory
        self._server = server
        self._seen = self._look()
        self._until_ns = 0
        self._contexts = self._load()

    def _look(self) -> tuple[object, ...]:
        seen: list[object] = []
        for name in (CA_NAME, CERTIFICATE_NAME, PRIVATE_KEY_NAME):
            try:
                found = os.stat(self._directory / name)
            except OSError:
                seen.append(None)
            else:
                seen.append((found.st_mtime_ns, found.st_ino, found.st_size))
        return tuple(seen)

    def _load(self) -> tuple[ssl.SSLContext, ssl.SSLContext | None]:
        directory = self._directory
        connector = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        connector.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            connector.load_verify_locations(directory / CA_NAME)
        except (OSError, ssl.SSLError) as error:
            raise BadTls(f"{directory / CA_NAME}: {error.strerror or error}") from None
        if not self._server:
            return connector, None
        acceptor = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        acceptor.minimum_version = ssl.TLSVersion.TLSv1_3
        acceptor.num_tickets = 0
        certificate, key = directory / CERTIFICATE_NAME, directory / PRIVATE_KEY_NAME
        for path in (certificate, key):
            if not path.is_file():
                raise BadTls(f"{path}: does not exist: a server needs its certificate and its key")
        if others_can_read(key.stat()):
            raise BadTls(f"{key}: others can read this key: chmod 600 {key}")
        try:
            acceptor.load_cert_chain(certificate, key, password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadTls(f"{certificate}, {key}: {reason}") from None
        ends = [*certificate_ends(certificate), max(certificate_ends(directory / CA_NAME))]
        self._until_ns = min(ends) * 1_000_000_000
        return connector, acceptor

    @property
    def until_ns(self) -> int:
        """When the server's certificate, one between it and the authority, or the last of
        the authorities ends, in ns since 1970; 0 of a client."""
        self._current()
        return self._until_ns

    def _current(self) -> tuple[ssl.SSLContext, ssl.SSLContext | None]:
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            try:
                self._contexts = self._load()
                log.info("%s: the changed certificates were read", self._directory)
            except BadTls as error:
                log.error("%s; the previous certificates stay in use", error)
        return self._contexts

    async def connect(self, stream: Stream, host: str, run_blocking: BlockingRunner) -> Stream:
        """Encrypt a connection to ``host``. Raises TlsError or another ConnectionError."""
        connector, _ = self._current()
        secured = TlsStream(stream, connector, host, run_blocking)
        await secured.shake_hands()
        return secured

    async def accept(self, stream: Stream, run_blocking: BlockingRunner) -> Stream:
        """Encrypt as the accepting side. After NotTls the peer can still be answered
        without TLS."""
        _, acceptor = self._current()
        if acceptor is None:
            raise TlsError("this side has no certificate")
        secured = TlsStream(stream, acceptor, None, run_blocking)
        await secured.shake_hands()
        return secured


def _no_password() -> str:
    raise ValueError(
        "the key is encrypted, and a server cannot be asked for its password: store "
        "the key without one"
    )


def certificate_ends(path: Path) -> list[int]:
    """When each certificate in a PEM file ends, in seconds since 1970. Raises BadTls.

    The standard library returns this only for a peer's certificate.
    """
    from cryptography.x509 import load_pem_x509_certificates  # clients need none

    try:
        found = load_pem_x509_certificates(path.read_bytes())
        return [int(one.not_valid_after_utc.timestamp()) for one in found]
    except (OSError, ValueError) as error:
        raise BadTls(f"{path}: {getattr(error, 'strerror', None) or error}") from None


class TlsStream:
    """As :class:`gfs.io.Stream`, over another one.

    One task may receive while another sends. A connection that ends without TLS's
    closing alert has ended normally: our frames have their lengths.
    """

    def __init__(
        self,
        stream: Stream,
        context: ssl.SSLContext,
        host: str | None,
        run_blocking: BlockingRunner,
    ) -> None:
        self.peer = stream.peer
        self._stream = stream
        self._host = host
        self._run_blocking = run_blocking
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=host is None, server_hostname=host
        )
        # With a buffer it returns the number of bytes that it put there.
        self._read = cast("Callable[[int, memoryview], int]", self._tls.read)
        self._sending = trio.Lock()
        self._piece = memoryview(bytearray(PIECE_BYTES))

    # --- the handshake -----------------------------------------------------------------

    async def shake_hands(self) -> None:
        """Raises TlsError or another ConnectionError; the caller closes then."""
        is_first = True
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                count = await self._stream.receive_into(self._piece)
                if not count:
                    raise ConnectionResetError(
                        f"{self.peer} ended the connection in the TLS handshake"
                    ) from None
                if is_first and self._piece[0] not in (_HANDSHAKE, _ALERT):
                    raise NotTls(self._plain_peer()) from None
                is_first = False
                self._incoming.write(self._piece[:count])
            except (ssl.SSLError, ssl.CertificateError) as error:
                await self._hang_up()
                raise TlsError(self._refusal(error)) from error
            else:
                await self._flush()
                return

    def _plain_peer(self) -> str:
        if self._host is None:
            return (
                "this server requires TLS: give the directory with the cluster's ca.pem "
                "(GFS_TLS, or tls in the state directory)"
            )
        return f"{self.peer} does not speak TLS: leave GFS_TLS and --tls out, or switch it on there"

    def _refusal(self, error: ssl.SSLError | ssl.CertificateError) -> str:
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"the certificate of {self.peer} is not trusted: {error.verify_message.rstrip('.')}"
            )
        reason = (error.reason or str(error)).lower().replace("_", " ")
        if "alert" in reason:
            return f"{self.peer} does not trust this side's certificate ({reason})"
        return f"no TLS with {self.peer}: {reason}"

    async def _hang_up(self) -> None:
        """Send the reason; then discard for a moment what the peer still sends, since
        closing with unread data would reset the connection before the peer has read the
        reason."""
        with trio.move_on_after(HANG_UP_SECONDS):
            try:
                await self._flush()
                while self._host is None and await self._stream.receive_into(self._piece):
                    pass
            except ConnectionError:
                pass

    # --- bytes -------------------------------------------------------------------------

    async def receive_into(self, buffer: memoryview, least: int = 1) -> int:
        held = 0
        while True:
            try:
                while held < len(buffer):
                    count = self._read(len(buffer) - held, buffer[held:])
                    if not count:
                        return held
                    held += count
                return held
            except ssl.SSLWantReadError:
                if held:
                    return held
            except ssl.SSLZeroReturnError:
                return held
            except ssl.SSLError as error:
                if held:
                    return held  # the next call raises it again
                raise ConnectionResetError(
                    f"the connection to {self.peer} failed: {error.reason or error}"
                ) from error
            if self._outgoing.pending and not self._sending.locked():
                await self._flush()
            # What is encrypted is no shorter, and a part of it may be here.
            rest = max(1, least - self._incoming.pending)
            count = await self._stream.receive_into(self._piece, min(rest, len(self._piece)))
            if not count:
                return 0
            self._incoming.write(self._piece[:count])

    async def send_all(self, *buffers: Buffer) -> None:
        for buffer in buffers:
            if not len(buffer):
                continue
            with memoryview(buffer) as view:
                done = 0
                while done < len(view):
                    try:
                        done += self._tls.write(view[done : done + PIECE_BYTES])
                    except ssl.SSLError as error:
                        raise ConnectionResetError(
                            f"the connection to {self.peer} failed: {error.reason or error}"
                        ) from error
                    if self._outgoing.pending >= PIECE_BYTES:
                        await self._flush()
        await self._flush()

    def send_now(self, data: Buffer) -> int:
        return 0  # what is encrypted has to be sent, however long that takes

    async def _flush(self) -> None:
        # The task that holds the lock also sends what others add meanwhile, in order.
        async with self._sending:
            while self._outgoing.pending:
                await self._stream.send_all(self._outgoing.read())

    async def send_file(
        self,
        file: File,
        offset: int,
        count: int,
        run: Runner | None = None,
    ) -> None:
        # A buffer of its own: a read that was abandoned may still fill it.
        buffer = memoryview(bytearray(min(FILE_BYTES, count)))
        end = offset + count
        while offset < end:
            got = await (run or self._run_blocking)(file.read_into, buffer[: end - offset], offset)
            if not got:
                raise EOFError(f"the file ends at byte {offset}")
            await self.send_all(buffer[:got])
            offset += got

    def ended(self) -> bool:
        return bool(self._incoming.pending or self._tls.pending()) or self._stream.ended()

    def pending(self) -> int:
        return self._stream.pending()

    def close(self) -> None:
        self._stream.close()
