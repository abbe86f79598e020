"""Both sides prove that they hold the cluster key before anything else is said.

::

    connector                                     acceptor
    Hello(role, peer, cluster, nonce a)    ->
                                           <-     Hello(…, nonce b, proof B)
    HelloProof(proof A)                    ->

A proof is a keyed BLAKE2b over both Hellos' fields, both nonces and the side
that makes it, so it fits one connection only and cannot be reflected. The
connector may send its first request right behind its proof. This proves
membership; it does not encrypt or sign what follows. That is TLS's business: with
it, all of this is said inside the encrypted connection.

While the cluster key is changed some hold the old one, some the new one, some both.
The connector names those it holds (``keys``), the acceptor takes the first of its own
that is among them, and says which: any two that share a key get on.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from gfs.errors import (
    GfsError,
    ProtocolError,
    TlsRefused,
    WrongCluster,
    WrongClusterKey,
    from_wire,
)
from gfs.io import Stream, World
from gfs.io.real import split_address
from gfs.io.tls import NotTls, Tls, TlsError
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.credentials import Credentials, as_credentials, key_name
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import MAGIC, PROTOCOL_VERSION, Failure, Hello, HelloProof, Message

NONCE_BYTES = 16
#: A peer that says nothing is let go after this long.
HANDSHAKE_SECONDS = 5.0
CONNECT_SECONDS = 2.0


@dataclass
class Identity:
    """Who this process is, to its peers. ``cluster`` may become known later.

    ``term`` is a master's own. All others tell the highest they know of and, with
    ``learns``, hear of a higher one from whomever they meet.
    """

    role: str  # "client" | "chunkserver" | "master" | "shadow"
    peer: str
    key: bytes | Credentials
    cluster: str = ""
    term: int = 0
    learns: bool = True

    @property
    def credentials(self) -> Credentials:
        return as_credentials(self.key)

    @property
    def certificate_until_ns(self) -> int:
        """When this server's certificate ends; 0: it has none."""
        tls = self.credentials.tls
        return 0 if tls is None else tls.until_ns

    def met(self, term: int) -> None:
        if self.learns and term > self.term:
            self.term = term


def _proof(key: bytes, side: bytes, connector: Hello, acceptor: Hello) -> bytes:
    mac = hashlib.blake2b(key=key, digest_size=32, person=b"gfs hello")
    for field in (
        side,
        connector.role.encode(),
        connector.peer.encode(),
        connector.cluster.encode(),
        connector.nonce,
        acceptor.role.encode(),
        acceptor.peer.encode(),
        acceptor.cluster.encode(),
        acceptor.nonce,
        *_terms(connector.term, acceptor.term),
        *(connector.keys if acceptor.keys else ()),
        *acceptor.keys,
    ):
        mac.update(len(field).to_bytes(4, "big"))
        mac.update(field)
    return mac.digest()


def _terms(connector: int, acceptor: int) -> tuple[bytes, ...]:
    """Nothing before the first promotion."""
    if not (connector or acceptor):
        return ()
    return b"%d" % connector, b"%d" % acceptor


def _hello(identity: Identity, world: World, keys: list[bytes]) -> Hello:
    return Hello(
        id=0,
        magic=MAGIC,
        version=PROTOCOL_VERSION,
        role=identity.role,
        peer=identity.peer,
        cluster=identity.cluster,
        nonce=world.random_bytes(NONCE_BYTES),
        term=identity.term,
        keys=keys,
    )


def _check_hello(message: Message, peer: str) -> Hello:
    if isinstance(message, Failure):
        raise from_wire(message.code, message.message)
    if not isinstance(message, Hello) or message.magic != MAGIC:
        raise ProtocolError(f"{peer} did not say hello: not a gfs server")
    if message.version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"{peer} speaks version {message.version} of the protocol, this side "
            f"{PROTOCOL_VERSION}: run the same release on both"
        )
    if len(message.nonce) != NONCE_BYTES:
        raise ProtocolError(f"{peer} sent a nonce of {len(message.nonce)} bytes")
    return message


def _check_cluster(theirs: str, ours: str, peer: str) -> None:
    if theirs and ours and theirs != ours:
        raise WrongCluster(f"{peer} belongs to cluster {theirs}, this side to {ours}")


async def connect(
    world: World, address: str, identity: Identity, seconds: float = CONNECT_SECONDS
) -> BulkConnection:
    """A connection whose peer has proved that it belongs to the cluster.

    Raises ``ConnectionError``, DeadlineExceeded, ProtocolError, TlsRefused,
    WrongClusterKey or WrongCluster; nothing is left open then.
    """
    with deadline(seconds, f"connection to {address}"):
        stream = await world.network.connect(address)
    try:
        with deadline(HANDSHAKE_SECONDS, f"hello from {address}"):
            stream = await _secured(world, stream, address, identity.credentials)
            connection = BulkConnection(stream)
            keys = {key_name(key): key for key in identity.credentials.current_keys()}
            ours = _hello(identity, world, list(keys))
            await connection.send(ours)
            theirs = _check_hello(await connection.receive(), address)
            chosen = theirs.keys[0] if theirs.keys else ours.keys[0]
            if chosen not in keys or not hmac.compare_digest(
                _proof(keys[chosen], b"acceptor", ours, theirs), theirs.proof
            ):
                raise WrongClusterKey(
                    f"{address} holds another cluster key: copy the cluster.key "
                    "of its state directory, or check the address"
                )
            _check_cluster(theirs.cluster, identity.cluster, address)
            await connection.send(
                HelloProof(id=0, proof=_proof(keys[chosen], b"connector", ours, theirs))
            )
    except BaseException:
        stream.close()
        raise
    connection.key = keys[chosen]
    connection.first_request = int.from_bytes(ours.nonce[:4], "big") << 8
    connection.peer_role = theirs.role
    connection.peer_id = theirs.peer
    connection.peer_cluster = theirs.cluster
    connection.peer_term = theirs.term
    identity.met(theirs.term)
    return connection


async def _secured(world: World, stream: Stream, address: str, credentials: Credentials) -> Stream:
    """The same, encrypted, if that is how it is to be. Raises TlsRefused."""
    if credentials.tls is None:
        return stream
    host = split_address(address)[0]
    try:
        return await credentials.tls.connect(stream, host, world.run_blocking)
    except TlsError as error:
        raise TlsRefused(str(error)) from error


async def accept(world: World, stream: Stream, identity: Identity) -> BulkConnection:
    """The other side. Tells the peer why it is refused; closes on every error."""
    try:
        with deadline(HANDSHAKE_SECONDS, f"hello from {stream.peer}"):
            if identity.credentials.tls is not None:
                stream = await _accept_secured(world, stream, identity.credentials.tls)
            connection = BulkConnection(stream)
            try:
                theirs = _check_hello(await connection.receive(), stream.peer)
                _check_cluster(theirs.cluster, identity.cluster, stream.peer)
                key, name = _choose(identity.credentials.current_keys(), theirs.keys)
                ours = _hello(identity, world, [name] if theirs.keys else [])
                ours.proof = _proof(key, b"acceptor", theirs, ours)
                await connection.send(ours)
                answer = await connection.receive()
                expected = _proof(key, b"connector", theirs, ours)
                if not isinstance(answer, HelloProof) or not hmac.compare_digest(
                    expected, answer.proof
                ):
                    raise WrongClusterKey(f"{stream.peer} holds another cluster key")
            except GfsError as error:
                await connection.send(Failure(id=0, code=error.code, message=str(error)))
                raise
    except BaseException:
        stream.close()
        raise
    connection.key = key
    connection.first_request = int.from_bytes(ours.nonce[:4], "big") << 8
    connection.peer_role = theirs.role
    connection.peer_id = theirs.peer
    connection.peer_cluster = theirs.cluster
    connection.peer_term = theirs.term
    identity.met(theirs.term)
    return connection


def _choose(keys: Sequence[bytes], theirs: list[bytes]) -> tuple[bytes, bytes]:
    """The first of ``keys`` that the connector has, and its name; else the first."""
    for key in keys:
        if key_name(key) in theirs:
            return key, key_name(key)
    return keys[0], key_name(keys[0])


async def _accept_secured(world: World, stream: Stream, tls: Tls) -> Stream:
    """Raises TlsRefused; a peer without TLS is told so in its own way."""
    try:
        return await tls.accept(stream, world.run_blocking)
    except NotTls as error:
        refusal = TlsRefused(str(error))
        await BulkConnection(stream).send(Failure(id=0, code=refusal.code, message=str(refusal)))
        raise refusal from error
    except TlsError as error:
        raise TlsRefused(str(error)) from error
