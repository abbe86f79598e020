"""Both sides prove that they have the cluster key before any other message is sent.

::

    connector                                     acceptor
    Hello(role, peer, cluster, nonce a)    ->
                                           <-     Hello(…, nonce b, proof B)
    HelloProof(proof A)                    ->

A proof is a keyed BLAKE2b over both Hellos' fields, both nonces and the side
that makes it, so it fits one connection only and cannot be reflected. The
connector may send its first request right behind its proof. This proves
membership; it does not encrypt or sign what follows. TLS does that: with it, the whole
handshake runs inside the encrypted connection.

While the cluster key is changed, some processes have the old key, some the new one,
some both. The connector names its keys (``keys``); the acceptor chooses the first of
its own that is among them, and names it: any two processes that share a key can
connect. Who names none of the acceptor's keys is refused for that, and learns nothing else: not
the acceptor's role, id, cluster, term or key. The names are no secret to those who can read
the connections of others; only TLS hides them.

Each side names the oldest and the newest version of the protocol that it speaks; the
connection has the newest that both speak, and there is none without one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from gfs.errors import (
    ForeignPeer,
    GfsError,
    ProtocolError,
    TlsRefused,
    WrongCluster,
    WrongClusterKey,
    from_wire,
)
from gfs.io import Stream, World, split_address
from gfs.io.tls import NotTls, Tls, TlsError
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.credentials import Credentials, as_credentials, key_name
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import (
    MAGIC,
    PROTOCOL_NEWEST,
    PROTOCOL_OLDEST,
    Failure,
    Hello,
    HelloProof,
    Message,
)

NONCE_BYTES = 16
#: The connection of a peer that sends nothing is closed after this long.
HANDSHAKE_SECONDS = 5.0
CONNECT_SECONDS = 2.0
#: Where one of several addresses is the master's, each gets this long, and twice as long in each
#: further round: one whose process stands still hides the master shortly, and all may be busy.
TURN_SECONDS_MIN = 1.0
TURN_SECONDS_MAX = CONNECT_SECONDS + HANDSHAKE_SECONDS


@dataclass
class Identity:
    """How this process identifies itself to its peers. ``cluster`` may become known later.

    ``term`` is a master's own. All other processes send the highest term that they know
    and, with ``learns``, take over a higher one from any peer.
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
        *_newests(connector.newest, acceptor.newest),
    ):
        mac.update(len(field).to_bytes(4, "big"))
        mac.update(field)
    return mac.digest()


def _terms(connector: int, acceptor: int) -> tuple[bytes, ...]:
    """The terms as bytes to be signed; empty before the first promotion."""
    if not (connector or acceptor):
        return ()
    return b"%d" % connector, b"%d" % acceptor


def _newests(connector: int, acceptor: int) -> tuple[bytes, ...]:
    """As bytes to be signed; empty if one side is of release 0.1, which has none."""
    if not (connector and acceptor):
        return ()
    return b"%d" % connector, b"%d" % acceptor


def _hello(identity: Identity, world: World, keys: list[bytes]) -> Hello:
    return Hello(
        id=0,
        magic=MAGIC,
        version=PROTOCOL_OLDEST,
        newest=PROTOCOL_NEWEST,
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
        raise ForeignPeer(f"{peer} did not answer the handshake: it is not a gfs server")
    if _common_version(message) < max(message.version, PROTOCOL_OLDEST):
        raise ProtocolError(
            f"{peer} speaks versions {message.version} to {_newest(message)} of the protocol, "
            f"this side {PROTOCOL_OLDEST} to {PROTOCOL_NEWEST}: upgrade the older one, release "
            "by release"
        )
    if len(message.nonce) != NONCE_BYTES:
        raise ProtocolError(f"{peer} sent a nonce of {len(message.nonce)} bytes")
    return message


def _newest(hello: Hello) -> int:
    return max(hello.newest, hello.version)


def _common_version(hello: Hello) -> int:
    return min(_newest(hello), PROTOCOL_NEWEST)


def _check_cluster(theirs: str, ours: str, peer: str) -> None:
    if theirs and ours and theirs != ours:
        raise WrongCluster(f"{peer} belongs to cluster {theirs}, this side to {ours}")


async def connect(
    world: World, address: str, identity: Identity, seconds: float = CONNECT_SECONDS
) -> BulkConnection:
    """Connect to ``address``, whose process must prove that it belongs to the cluster.

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
            try:
                hello = await connection.receive()
            except (ProtocolError, TlsRefused) as error:  # another service's port, for example
                raise type(error)(f"{address}: {error}") from error
            if isinstance(hello, Failure) and hello.code == WrongClusterKey.code:
                raise _has_another_key(address)
            theirs = _check_hello(hello, address)
            chosen = theirs.keys[0] if theirs.keys else ours.keys[0]
            if chosen not in keys or not hmac.compare_digest(
                _proof(keys[chosen], b"acceptor", ours, theirs), theirs.proof
            ):
                raise _has_another_key(address)
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
    connection.version = _common_version(theirs)
    identity.met(theirs.term)
    return connection


async def _secured(world: World, stream: Stream, address: str, credentials: Credentials) -> Stream:
    """``stream``, encrypted if TLS is configured. Raises TlsRefused."""
    if credentials.tls is None:
        return stream
    host = split_address(address)[0]
    try:
        return await credentials.tls.connect(stream, host, world.run_blocking)
    except TlsError as error:
        raise TlsRefused(str(error)) from error


async def accept(world: World, stream: Stream, identity: Identity) -> BulkConnection:
    """The acceptor's side. A refused peer is sent the reason; every error closes the stream."""
    try:
        with deadline(HANDSHAKE_SECONDS, f"hello from {stream.peer}"):
            if identity.credentials.tls is not None:
                stream = await _accept_secured(world, stream, identity.credentials.tls)
            connection = BulkConnection(stream)
            try:
                theirs = _check_hello(await connection.receive(), stream.peer)
                key = _choose(identity.credentials.current_keys(), theirs.keys, stream.peer)
                _check_cluster(theirs.cluster, identity.cluster, stream.peer)
                ours = _hello(identity, world, [key_name(key)])
                ours.proof = _proof(key, b"acceptor", theirs, ours)
                await connection.send(ours)
                answer = await connection.receive()
                expected = _proof(key, b"connector", theirs, ours)
                if not isinstance(answer, HelloProof) or not hmac.compare_digest(
                    expected, answer.proof
                ):
                    raise WrongClusterKey(f"{stream.peer} has another cluster key")
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
    connection.version = _common_version(theirs)
    identity.met(theirs.term)
    return connection


def _choose(keys: Sequence[bytes], theirs: list[bytes], peer: str) -> bytes:
    """The first of ``keys`` that the connector names. Raises WrongClusterKey if there is none."""
    for key in keys:
        if key_name(key) in theirs:
            return key
    raise WrongClusterKey(f"{peer} has another cluster key: copy the server's cluster.key")


def _has_another_key(address: str) -> WrongClusterKey:
    return WrongClusterKey(
        f"{address} has another cluster key: copy the cluster.key of its state directory, or "
        "check the address"
    )


async def _accept_secured(world: World, stream: Stream, tls: Tls) -> Stream:
    """Raises TlsRefused. A peer without TLS is sent the reason in an unencrypted frame."""
    try:
        return await tls.accept(stream, world.run_blocking)
    except NotTls as error:
        refusal = TlsRefused(str(error))
        await BulkConnection(stream).send(Failure(id=0, code=refusal.code, message=str(refusal)))
        raise refusal from error
    except TlsError as error:
        raise TlsRefused(str(error)) from error
