"""Both sides prove that they hold the cluster key before anything else is said.

::

    connector                                     acceptor
    Hello(role, peer, cluster, nonce a)    ->
                                           <-     Hello(…, nonce b, proof B)
    HelloProof(proof A)                    ->

A proof is a keyed BLAKE2b over both Hellos' fields, both nonces and the side
that makes it, so it fits one connection only and cannot be reflected. The
connector may send its first request right behind its proof. This proves
membership; it does not encrypt or sign what follows.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from gfs.errors import GfsError, ProtocolError, WrongCluster, WrongClusterKey, from_wire
from gfs.io import Stream, World
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import MAGIC, PROTOCOL_VERSION, Failure, Hello, HelloProof, Message

NONCE_BYTES = 16
#: A peer that says nothing is let go after this long.
HANDSHAKE_SECONDS = 5.0
CONNECT_SECONDS = 2.0


@dataclass
class Identity:
    """Who this process is, to its peers. ``cluster`` may become known later."""

    role: str  # "client" | "chunkserver" | "master"
    peer: str
    key: bytes
    cluster: str = ""


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
    ):
        mac.update(len(field).to_bytes(4, "big"))
        mac.update(field)
    return mac.digest()


def _hello(identity: Identity, world: World) -> Hello:
    return Hello(
        id=0,
        magic=MAGIC,
        version=PROTOCOL_VERSION,
        role=identity.role,
        peer=identity.peer,
        cluster=identity.cluster,
        nonce=world.random_bytes(NONCE_BYTES),
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

    Raises ``ConnectionError``, DeadlineExceeded, ProtocolError,
    WrongClusterKey or WrongCluster; nothing is left open then.
    """
    with deadline(seconds, f"connection to {address}"):
        stream = await world.network.connect(address)
    connection = BulkConnection(stream)
    try:
        with deadline(HANDSHAKE_SECONDS, f"hello from {address}"):
            ours = _hello(identity, world)
            await connection.send(ours)
            theirs = _check_hello(await connection.receive(), address)
            expected = _proof(identity.key, b"acceptor", ours, theirs)
            if not hmac.compare_digest(expected, theirs.proof):
                raise WrongClusterKey(
                    f"{address} holds another cluster key: copy the cluster.key "
                    "of its state directory, or check the address"
                )
            _check_cluster(theirs.cluster, identity.cluster, address)
            await connection.send(
                HelloProof(id=0, proof=_proof(identity.key, b"connector", ours, theirs))
            )
    except BaseException:
        connection.close()
        raise
    connection.peer_role = theirs.role
    connection.peer_id = theirs.peer
    connection.peer_cluster = theirs.cluster
    return connection


async def accept(world: World, stream: Stream, identity: Identity) -> BulkConnection:
    """The other side. Tells the peer why it is refused; closes on every error."""
    connection = BulkConnection(stream)
    try:
        with deadline(HANDSHAKE_SECONDS, f"hello from {stream.peer}"):
            try:
                theirs = _check_hello(await connection.receive(), stream.peer)
                _check_cluster(theirs.cluster, identity.cluster, stream.peer)
                ours = _hello(identity, world)
                ours.proof = _proof(identity.key, b"acceptor", theirs, ours)
                await connection.send(ours)
                answer = await connection.receive()
                expected = _proof(identity.key, b"connector", theirs, ours)
                if not isinstance(answer, HelloProof) or not hmac.compare_digest(
                    expected, answer.proof
                ):
                    raise WrongClusterKey(f"{stream.peer} holds another cluster key")
            except GfsError as error:
                await connection.send(Failure(id=0, code=error.code, message=str(error)))
                raise
    except BaseException:
        connection.close()
        raise
    connection.peer_role = theirs.role
    connection.peer_id = theirs.peer
    connection.peer_cluster = theirs.cluster
    return connection
