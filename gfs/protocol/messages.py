"""Every message of the wire, one ``msgspec.Struct`` each.

A head is one of these, encoded as a msgpack array whose first element is the
tag. Tags are never reused. A message that may carry a body says how large that
body may be in ``BODY_BYTES_MAX``; all others carry none. Fields are only ever
appended, with a default, so that an older peer's head still decodes.

*Requests* carry an ``id`` chosen by the sender, and are answered by exactly one
*reply* with the same id, or by :class:`Failure`. Either side of a control
connection may send requests; the two sides' ids are independent. Requests that
mutate the namespace also carry ``client`` and ``sequence``: the master
remembers the answer under these, so that a retry gets the same answer.

Times on the wire are durations in milliseconds (each side counts on its own
monotonic clock), or, for files, wall-clock nanoseconds since 1970.

``tests/unit/test_protocol.py`` fuzzes the codec of all of them.
"""

from __future__ import annotations

from typing import ClassVar, Union, get_args

import msgspec

from gfs.blocks import CHUNK_BYTES, KIB, MIB

PROTOCOL_VERSION = 1
MAGIC = "gfs1"

#: A head is refused above this, before it is read.
HEAD_BYTES_MAX = 64 * KIB
#: A write packet's data at most; a multiple of the block size.
PACKET_BYTES_MAX = 1 * MIB
#: A sender's window in packets, at least. See Packet.
PACKETS_IN_FLIGHT_MIN = 4
#: Replica reports: packed records, 16 bytes each, at most this many a batch.
REPORT_RECORDS_MAX = 4096
PATH_BYTES_MAX = 4096
#: A page of a listing stays below a head's limit.
PAGE_BYTES_MAX = 48 * KIB
#: Chunk rows a reply carries at most (each below 128 bytes, servers apart).
LOCATE_CHUNKS_MAX = 256


class Message(msgspec.Struct, array_like=True, gc=False):
    """What all messages share: the id that pairs a request with its reply."""

    BODY_BYTES_MAX: ClassVar[int] = 0
    id: int


class Part(msgspec.Struct, array_like=True, gc=False):
    """A value inside a message."""


# --- values ----------------------------------------------------------------


class Entry(Part):
    """A file or directory as ``stat`` and ``list`` tell it."""

    path: str
    inode: int
    kind: str  # "file" | "directory"
    length: int  # bytes; 0 for a directory
    replication: int  # goal; 0 for a directory
    created_ns: int
    modified_ns: int
    chunks: int = 0


class ServerAddress(Part):
    id: str
    address: str
    rack: str


class ChunkLocation(Part):
    """One chunk and where its live, current replicas are.

    ``servers`` are positions in the ``servers`` table of the same message.
    """

    handle: int
    version: int
    length: int
    servers: list[int]


class PublishedChunk(Part):
    """One chunk of a file about to be published, and who acknowledged it."""

    handle: int
    version: int
    length: int
    servers: list[int]


class Disk(Part):
    """One directory of a chunkserver."""

    path: str
    total_bytes: int
    free_bytes: int
    chunks: int
    state: str = "ok"  # "ok" | "full" | "slow" | "failed"


class BadReplica(Part):
    """A replica its own chunkserver found unfit. ``kind``: corrupt | missing."""

    handle: int
    version: int
    kind: str


class ReplicaName(Part):
    """A replica exactly as known: an order never touches another version."""

    handle: int
    version: int


class ServerStatus(Part):
    id: str
    address: str
    rack: str
    state: str  # "live" | "silent" (no heartbeat lately) | "dead"
    heartbeat_age_ms: int
    chunks: int
    disks: list[Disk]


class ClusterTotals(Part):
    files: int
    directories: int
    chunks: int
    bytes: int  # logical: the sum of the files' lengths
    under_replicated: int
    corrupt: int
    lost: int
    orphaned: int
    stale: int
    repairs_active: int
    repairs_queued: int
    #: Corrupt replicas found since the cluster was made, healed or not.
    corruptions: int = 0


class GarbageReplica(Part):
    """A replica on a chunkserver that the namespace does not want."""

    server: str
    handle: int
    version: int
    kind: str  # "orphaned" | "stale" | "corrupt"


class FsckChunk(Part):
    """One chunk of one file, with every replica the master knows of."""

    path: str
    index: int
    handle: int
    version: int
    length: int
    goal: int
    servers: list[int]
    lease_ms: int = 0
    primary: str = ""


# --- the handshake -----------------------------------------------------------


class Hello(Message, tag=1):
    """The first frame each way. See :mod:`gfs.protocol.handshake`."""

    magic: str
    version: int
    role: str  # "client" | "chunkserver" | "master"
    peer: str  # the sender's own id
    cluster: str  # "" while the sender does not know it yet
    nonce: bytes
    proof: bytes = b""


class HelloProof(Message, tag=2):
    proof: bytes


class Failure(Message, tag=3):
    """The error answer to any request. ``server`` names a failed replica."""

    code: str
    message: str
    server: str = ""


class Done(Message, tag=4):
    """Success, with nothing more to say."""


class Ping(Message, tag=5):
    """Answered by Done. Keeps a client's reservations alive."""


# --- client to master: reads -------------------------------------------------


class Stat(Message, tag=10):
    path: str


class StatReply(Message, tag=11):
    entry: Entry


class List(Message, tag=12):
    """One page of a directory's entries, by name, after ``after``."""

    path: str
    after: str
    limit: int


class ListReply(Message, tag=13):
    entries: list[Entry]
    more: bool


class Locate(Message, tag=14):
    """Chunks ``first`` … ``first + count - 1`` of a file.

    ``inode`` 0 looks the path up (an open); otherwise the file must still be
    that inode, wherever it is named now, and ``path`` is only for messages.
    """

    path: str
    inode: int
    first: int
    count: int


class LocateReply(Message, tag=15):
    entry: Entry
    servers: list[ServerAddress]
    chunks: list[ChunkLocation]


class DiskUsage(Message, tag=16):
    """What is at and below ``path``; a directory does not count itself."""

    path: str


class DiskUsageReply(Message, tag=17):
    files: int
    directories: int
    bytes: int
    replicated_bytes: int


class Status(Message, tag=18):
    """The whole cluster at a glance."""


class StatusReply(Message, tag=19):
    cluster: str
    epoch: int
    servers: list[ServerStatus]
    totals: ClusterTotals


class FsckPage(Message, tag=20):
    """Chunks of the files at and below ``path``, in pages.

    ``cursor`` is empty first, then what the last reply said; an empty
    ``cursor`` in the reply ends it.
    """

    path: str
    cursor: bytes
    limit: int


class FsckPageReply(Message, tag=21):
    servers: list[ServerAddress]
    chunks: list[FsckChunk]
    files: int
    cursor: bytes


class ListGarbage(Message, tag=22):
    after: int  # handle
    limit: int


class ListGarbageReply(Message, tag=23):
    replicas: list[GarbageReplica]
    more: bool


# --- client to master: writing new files ------------------------------------


class Reserve(Message, tag=30):
    """Handles for ``count`` new chunks, placed. Nothing is in the namespace yet.

    The reservation lives as long as its client is heard from (Ping), and ends
    with Publish or Release. ``avoid`` lists servers that just failed the caller.
    """

    client: str
    count: int
    replication: int
    avoid: list[str]


class ReserveReply(Message, tag=31):
    """``chunks[i].servers`` is the write chain, the primary first."""

    replication: int
    servers: list[ServerAddress]
    chunks: list[ChunkLocation]


class Recover(Message, tag=32):
    """A write chain of a reserved chunk broke: a higher version without ``failed``."""

    client: str
    handle: int
    version: int
    failed: list[str]


class RecoverReply(Message, tag=33):
    servers: list[ServerAddress]
    chunk: ChunkLocation


class Reclaim(Message, tag=34):
    """After a reconnect: these reserved replicas are still being written."""

    BODY_BYTES_MAX: ClassVar[int] = 16 * MIB  # msgpack list[PublishedChunk]
    client: str
    servers: list[str]


class Release(Message, tag=35):
    """The client gave an upload up; its chunks are garbage."""

    client: str
    handles: list[int]


class Publish(Message, tag=36):
    """Make a written file visible under ``path``, whole, in one transaction.

    The body is a msgpack ``list[PublishedChunk]`` whose ``servers`` index the
    ``servers`` field. ``replace`` swaps out a file of that name. Missing
    parents are made if ``parents``.
    """

    BODY_BYTES_MAX: ClassVar[int] = 16 * MIB
    client: str
    sequence: int
    path: str
    length: int
    replication: int
    replace: bool
    parents: bool
    servers: list[str]


class PublishReply(Message, tag=37):
    entry: Entry


# --- client to master: namespace mutations ------------------------------------


class MakeDirectory(Message, tag=40):
    client: str
    sequence: int
    path: str
    parents: bool
    exist_ok: bool


class Rename(Message, tag=41):
    """Atomic, for files and directories. ``replace``: a file over a file."""

    client: str
    sequence: int
    source: str
    target: str
    replace: bool
    parents: bool


class Delete(Message, tag=42):
    client: str
    sequence: int
    path: str
    recursive: bool


# --- client to master: mutating a file in place --------------------------------


class AcquireLease(Message, tag=45):
    """Who is primary for chunk ``index`` of ``inode``, now.

    ``index`` one past the last chunk adds an empty chunk. ``version`` says that
    the chain of that version broke, ``failed`` at which servers: a new version is
    granted to the others.
    """

    client: str
    sequence: int
    inode: int
    index: int
    version: int
    failed: list[str]


class LeaseReply(Message, tag=46):
    """``chunk.servers`` is the chain, the primary first."""

    servers: list[ServerAddress]
    chunk: ChunkLocation
    lease_ms: int


class SetLength(Message, tag=47):
    """Bytes were written past the old end; never makes a file shorter."""

    client: str
    sequence: int
    inode: int
    length: int


class ReportReplica(Message, tag=48):
    """A reader found this replica bad or gone. The master has it checked."""

    handle: int
    version: int
    server: str
    kind: str  # "corrupt" | "missing" | "stale" | "short"


# --- chunkserver to master ------------------------------------------------------


class Register(Message, tag=60):
    """First on a connection. Replica reports follow, then RegisterEnd."""

    server: str
    incarnation: int  # grows with every start of this chunkserver
    address: str
    rack: str
    disks: list[Disk]
    sequence: int  # the highest operation-log sequence it has seen


class RegisterReply(Message, tag=61):
    cluster: str
    sequence: int
    heartbeat_ms: int


class ReportReplicas(Message, tag=62):
    """The body is packed records: handle u64, version u32, length u32, big-endian.

    Answered by Orders. ``complete`` marks the last batch of a registration.
    """

    BODY_BYTES_MAX: ClassVar[int] = 16 * REPORT_RECORDS_MAX
    complete: bool


class Heartbeat(Message, tag=63):
    """Sent every ``heartbeat_ms``. The body is a rotating sample of replicas."""

    BODY_BYTES_MAX: ClassVar[int] = 16 * REPORT_RECORDS_MAX
    disks: list[Disk]
    chunks: int
    bad: list[BadReplica]
    leases: list[int]  # handles under lease here that were mutated lately


class Orders(Message, tag=64):
    """The master's answer to a report or heartbeat. It is carried out before
    the next heartbeat is made.

    A server refuses ``delete`` when ``sequence`` is below the highest it has
    seen: that master's memory is younger than the server's.
    """

    sequence: int
    delete: list[ReplicaName]
    extend_leases: list[int]
    lease_ms: int


# --- master to chunkserver ------------------------------------------------------


class GrantLease(Message, tag=70):
    """Raise the replica from ``version`` to ``new_version``, durably.

    Idempotent. ``lease_ms`` > 0 makes this server the primary; the empty
    replica of a chunk just added is made when ``version`` is 0.
    """

    handle: int
    version: int
    new_version: int
    lease_ms: int


class RevokeLease(Message, tag=71):
    handle: int


class CloneChunk(Message, tag=72):
    """Copy a replica from one of ``sources``; answered by Done when it is whole."""

    handle: int
    version: int
    sources: list[str]  # addresses


# --- to a chunkserver, bulk and control ----------------------------------------


class VerifyChunk(Message, tag=80):
    """Read all of a replica's blocks against their sums; only tell its state
    as it is known when ``blocks`` is false."""

    handle: int
    version: int
    blocks: bool = True


class VerifyReply(Message, tag=81):
    state: str  # "good" | "corrupt" | "missing" | "stale"
    version: int
    length: int
    bad_blocks: list[int]


class ReadChunk(Message, tag=82):
    """Bytes ``offset`` … ``offset + length - 1`` of a replica of at least ``version``."""

    handle: int
    version: int
    offset: int
    length: int


class ReadReply(Message, tag=83):
    """The body is ``length`` bytes from ``offset``.

    ``whole`` blocks: the body starts and ends at block boundaries (or at the
    replica's end) and ``sums`` are the stored block sums, unverified: the
    reader verifies. Otherwise the server verified the blocks it read and
    ``sums`` is one digest of exactly these bytes.
    """

    BODY_BYTES_MAX: ClassVar[int] = CHUNK_BYTES
    offset: int
    length: int
    whole: bool
    sums: bytes


class WriteChunk(Message, tag=84):
    """Opens a write exchange; Packets follow on the same connection.

    ``chain`` are the servers after this one, in order. ``mode``:

    * ``"upload"``: an unpublished chunk. Bytes past ``offset`` are dropped
      (an earlier, broken exchange wrote them without an acknowledgement),
      writing goes on from there. The replica is made if it is not there and
      ``offset`` is 0.
    * ``"mutate"``: a published chunk, under lease at the first server. Writes
      anywhere up to the present length, or extending it.
    """

    version: int
    handle: int
    offset: int
    mode: str
    chain: list[ServerAddress]
    primary: bool


class Packet(Message, tag=85):
    """The next bytes of the exchange, block sums made by the client.

    Blocks are counted from the first byte of the packet's ``offset`` rounded
    down: a packet that starts inside a block carries the sum of its bytes up
    to the block boundary first. ``id`` counts packets from 0. ``last`` ends
    the exchange: its acknowledgement means that every replica holds all of it,
    head included. Servers pass acknowledgements on up to two packets late: a
    sender must allow at least ``PACKETS_IN_FLIGHT_MIN`` before it waits for one,
    or ask with ``flush`` for all that are due up to this packet.
    """

    BODY_BYTES_MAX: ClassVar[int] = PACKET_BYTES_MAX
    offset: int
    last: bool
    sums: bytes
    flush: bool = False


class PacketAck(Message, tag=86):
    """Every replica of the chain holds packets 0 … ``id``.

    With the last one, ``length`` is the replica's length.
    """

    length: int


AnyMessage = Union[  # noqa: UP007 - a list this long reads better so
    Hello, HelloProof, Failure, Done, Ping,
    Stat, StatReply, List, ListReply, Locate, LocateReply,
    DiskUsage, DiskUsageReply, Status, StatusReply,
    FsckPage, FsckPageReply, ListGarbage, ListGarbageReply,
    Reserve, ReserveReply, Recover, RecoverReply, Reclaim, Release, Publish, PublishReply,
    MakeDirectory, Rename, Delete, AcquireLease, LeaseReply, SetLength, ReportReplica,
    Register, RegisterReply, ReportReplicas, Heartbeat, Orders,
    GrantLease, RevokeLease, CloneChunk,
    VerifyChunk, VerifyReply, ReadChunk, ReadReply, WriteChunk, Packet, PacketAck,
]  # fmt: skip

ALL_MESSAGES: tuple[type[Message], ...] = get_args(AnyMessage)

#: Messages that answer a request: they go to the caller that waits for their id.
REPLIES: tuple[type[Message], ...] = (
    Failure, Done, StatReply, ListReply, LocateReply, DiskUsageReply, StatusReply,
    FsckPageReply, ListGarbageReply, ReserveReply, RecoverReply, PublishReply,
    LeaseReply, RegisterReply, Orders, VerifyReply, ReadReply, PacketAck,
)  # fmt: skip
