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

import struct
from typing import ClassVar, Union, get_args

import msgspec

from gfs.blocks import CHUNK_BYTES, KIB, MIB
from gfs.protocol.records import FRAME_BYTES_MAX

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
#: A replica's state in replies: it may lack what was last written, since its machine lost its
#: power or its write-intent records are damaged. The value stays what it was: a server of
#: another version that did not know it would copy such a replica.
POSSIBLY_STALE = "forgetful"
#: The same in a report, as a bit of the length. No chunk is that long.
POSSIBLY_STALE_BIT = 1 << 31
#: A replica in the body of a report: handle, version, length.
REPLICA_RECORD = struct.Struct(">QII")
#: Replicas up to this are copied many at a time; so many are named in one order.
SMALL_REPLICA_BYTES_MAX = 256 * KIB
CLONES_MAX = 256
PATH_BYTES_MAX = 4096
#: A page of a listing stays below a head's limit.
PAGE_BYTES_MAX = 48 * KIB
#: What a file may carry beside its bytes: so many attributes, with names and values
#: of so many bytes of UTF-8 together. See gfs.protocol.attributes.
ATTRIBUTES_MAX = 16
ATTRIBUTES_BYTES_MAX = 1024
FILE_DIGEST_BYTES = 16
#: Chunk rows a reply carries at most (each below 128 bytes, servers apart).
LOCATE_CHUNKS_MAX = 256


class Message(msgspec.Struct, array_like=True, gc=False):
    """What all messages share: the id that pairs a request with its reply."""

    BODY_BYTES_MAX: ClassVar[int] = 0
    id: int


class Mutation(Message):
    """A client's change of the namespace. Its answer is remembered under the client's id
    and the client's ``sequence``: asked again, it gives the answer of the first time, and
    changes nothing."""

    client: str
    sequence: int


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
    #: See gfs.blocks.FileDigest; empty when it is not known.
    digest: bytes = b""
    #: What its writer gave the file to keep.
    attributes: dict[str, str] = msgspec.field(default_factory=dict)
    #: Records are appended: the replicas of its last chunk may know of a greater length.
    appended: bool = False


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
    total_bytes: int  # 0 while it is failed or missing, as are free_bytes and chunks
    free_bytes: int  # above the reserve
    chunks: int
    state: str = "ok"  # "ok" | "slow" | "full" | "draining" | "failed" | "missing"
    id: str = ""
    #: Why it is in that state; empty where the state says it all.
    reason: str = ""
    #: Calls that it refused, or that hung, since the server was started.
    errors: int = 0


class BadReplica(Part):
    """A replica that its own chunkserver found damaged. ``kind``: corrupt."""

    handle: int
    version: int
    kind: str


class ReplicaName(Part):
    """A replica exactly as known: an order never touches another version."""

    handle: int
    version: int


class CloneFailure(Part):
    """``server`` is the source's id if its replica is to blame."""

    handle: int
    code: str
    message: str
    server: str = ""


class ReplicaState(Part):
    """Of one replica asked for by ReadReplicas or LookFor. ``sums`` are the stored sums of its
    blocks, unverified: the reader verifies. ``large``: to be read by itself."""

    handle: int
    state: str  # "good" | "corrupt" | "missing" | "stale" | "forgetful" | "large"
    version: int = 0
    length: int = 0
    sums: bytes = b""


class AppendedChunk(Part):
    """A chunk that records were appended to: every replica of ``version`` holds
    ``length`` bytes."""

    handle: int
    version: int
    inode: int
    length: int


class Scrub(Part):
    """How far a chunkserver's reading of everything is."""

    done_bytes: int = 0
    total_bytes: int = 0
    #: When this pass began, and the last whole one ended; -1: not yet.
    began_ms: int = -1
    ended_ms: int = -1


class ServerStatus(Part):
    id: str
    address: str
    rack: str
    #: "live" | "silent" (no heartbeat lately) | "dead" | "stopped" (it was drained before)
    state: str
    heartbeat_age_ms: int
    chunks: int
    disks: list[Disk]
    #: "" | "draining" | "drained": then it can be stopped.
    drain: str = ""
    #: Of one that is drained: chunks that still need it, and uploads under way to it.
    drain_chunks: int = 0
    drain_uploads: int = 0
    scrub: Scrub = msgspec.field(default_factory=Scrub)
    #: Of the chunks that still need it: lost ones, of which it has the remains.
    drain_lost: int = 0
    #: It may be away for so long without being dead; 0: it is not under maintenance.
    maintenance_ms: int = 0
    #: When its certificate ends; 0: it has none.
    certificate_until_ns: int = 0


class MetadataSpace(Part):
    """The master's database, and the disk that it is on; -1: not known."""

    used_bytes: int = -1
    #: ``used_bytes`` grows no further.
    map_bytes: int = -1
    disk_total_bytes: int = -1
    disk_free_bytes: int = -1


class ClusterTotals(Part):
    files: int
    directories: int
    chunks: int
    bytes: int  # logical: the sum of the files' lengths
    under_replicated: int
    corrupt: int
    lost: int
    #: Replicas that are to be deleted, and are not known to be yet.
    orphaned: int
    stale: int
    repairs_active: int
    repairs_queued: int
    #: Corrupt replicas found since the cluster was made, healed or not.
    corruptions: int = 0
    #: What was deleted and can be undeleted: how often, and what it has. None of it
    #: is in the counts above, only in ``chunks``.
    trash_rows: int = 0
    trash_files: int = 0
    trash_bytes: int = 0
    #: Bytes that files share with others (snapshots): counted in ``bytes`` for each
    #: of them, stored once.
    shared_bytes: int = 0
    #: Copies for draining and rebalancing, of chunks that are at their goal.
    moves_active: int = 0
    moves_queued: int = 0
    #: The highest goal that a chunk is below of; 0: none is.
    goal_unmet: int = 0
    #: Of the lost: chunks of which all replicas there are damaged. They are being put
    #: together from what is good in these, or cannot be from what is there.
    salvages: int = 0
    beyond_repair: int = 0
    #: Of the corrupt: those that are all that is left of a lost chunk.
    corrupt_kept: int = 0
    #: Of what can be undeleted: when the oldest was deleted, and when it goes; 0: nothing
    #: can be, or that is not known.
    trash_oldest_ns: int = 0
    trash_until_ns: int = 0
    #: What went from the trash before its time, for want of space, since the master was
    #: started: how often, and how long it was.
    trash_purged: int = 0
    trash_purged_bytes: int = 0
    #: At least so many bytes can be written before the trash goes early; and whether that
    #: is so little that room should be made.
    room_bytes: int = 0
    room_low: bool = False
    #: Chunks of which no chunkserver told this master yet that it has a replica, which
    #: was started or promoted a moment ago. They count as lost when all had the time.
    unlocated: int = 0
    #: Of the orphaned: what they take on disks, heads included.
    orphaned_bytes: int = 0


class TrashEntry(Part):
    """What was deleted, as a whole, by one delete, and can be undeleted."""

    path: str
    inode: int
    kind: str  # "file" | "directory"
    length: int  # bytes; of a directory in all files below it, -1 while it is counted
    files: int  # the same
    deleted_ns: int
    until_ns: int


class ShadowStatus(Part):
    """A shadow master as its master sees it."""

    address: str
    #: "following" | "not counted" (it follows, and replicas_before_ack waits for others
    #: until those know of it) | "away"
    state: str
    sequence: int  # the last operation that it has on disk; -1: not known
    #: For how long it has been without the newest operation; -1: not known.
    behind_ms: int
    certificate_until_ns: int = 0  # as of a chunkserver


class GarbageReplica(Part):
    """A replica on a chunkserver that the namespace does not want."""

    server: str
    handle: int
    version: int
    kind: str  # "orphaned" | "stale" | "forgetful" | "corrupt"
    #: Its chunk has too few good replicas for it to go.
    kept: bool = False


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
    #: Without any good replica: who has a damaged one.
    damaged: list[int] = []
    inode: int = 0


class FileChunkName(Part):
    """A chunk by its place in a file, whatever the file is named now."""

    inode: int
    index: int


# --- the handshake -----------------------------------------------------------


class Hello(Message, tag=1):
    """The first frame each way. See :mod:`gfs.protocol.handshake`."""

    magic: str
    version: int
    role: str  # "client" | "chunkserver" | "master" | "shadow"
    peer: str  # the sender's own id
    cluster: str  # "" while the sender does not know it yet
    nonce: bytes
    proof: bytes = b""
    #: The master's own term; of all others the highest they know of.
    term: int = 0
    #: Names of cluster keys (8 bytes each): the connector's own; of the acceptor the
    #: one that both prove to have.
    keys: list[bytes] = msgspec.field(default_factory=list)


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
    #: What was deleted at and below ``path`` and can be undeleted.
    trash_files: int = 0
    trash_bytes: int = 0
    #: Of ``bytes`` and ``replicated_bytes``: what other files have too, here or
    #: elsewhere (snapshots and what they were made of). Deleting frees the rest.
    shared_bytes: int = 0
    shared_replicated_bytes: int = 0
    #: Of the files, shared ones for each of them.
    chunks: int = 0


class Status(Message, tag=18):
    """The whole cluster at a glance, with the servers that follow ``after``, which is the rack
    and the id of the last one that is known: empty at first."""

    after: list[str] = []


class StatusReply(Message, tag=19):
    """``master`` is where the master is, if this comes from a shadow; its ``totals``
    of replicas are the master's, as far as it was told. ``servers`` are in the order of
    their racks and ids, as many as there is room for; ``more``: others follow."""

    cluster: str
    epoch: int
    servers: list[ServerStatus]
    totals: ClusterTotals
    role: str = "master"  # "master" | "shadow"
    term: int = 0
    sequence: int = 0
    master: str = ""
    behind_operations: int = 0
    behind_ms: int = 0
    shadows: list[ShadowStatus] = []
    replicas_before_ack: int = 0
    metadata: MetadataSpace = msgspec.field(default_factory=MetadataSpace)
    certificate_until_ns: int = 0  # as of a chunkserver
    #: The goal of new files.
    replication: int = 0
    repair_paused: bool = False
    more: bool = False
    #: How long what is deleted now can be undeleted; told by masters, not by shadows.
    trash_ms: int = 0


class FsckPage(Message, tag=20):
    """Chunks of the files at and below ``path``, in pages.

    ``cursor`` is empty first, then what the last reply said; an empty
    ``cursor`` in the reply ends it. With ``again`` nothing is walked: the reply has
    these chunks as they are now, in the order asked, as many as it has room for and at
    least one, without their paths. One that is not there any more has version 0.
    """

    path: str
    cursor: bytes
    limit: int
    again: list[FileChunkName] = []


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


class Publish(Mutation, tag=36):
    """Make a written file visible under ``path``, whole, in one transaction.

    The body is a msgpack ``list[PublishedChunk]`` whose ``servers`` index the
    ``servers`` field. ``replace`` swaps out a file of that name. Missing
    parents are made if ``parents``; if ``below`` is not empty, only below that
    directory, which must be there. ``expect`` is -1, or what must be at the path
    instead of what ``replace`` allows: 0, nothing; else the file of that inode.
    """

    BODY_BYTES_MAX: ClassVar[int] = 16 * MIB
    path: str
    length: int
    replication: int
    replace: bool
    parents: bool
    servers: list[str]
    digest: bytes = b""
    attributes: dict[str, str] = msgspec.field(default_factory=dict)
    expect: int = -1
    below: str = ""


class PublishReply(Message, tag=37):
    entry: Entry
    #: The file that had the name until then, if one had.
    replaced: list[Entry] = []


# --- client to master: namespace mutations ------------------------------------


class MakeDirectory(Mutation, tag=40):
    """Answered by StatReply."""

    path: str
    parents: bool
    exist_ok: bool


class Rename(Mutation, tag=41):
    """Atomic, for files and directories. ``replace``: a file over a file."""

    source: str
    target: str
    replace: bool
    parents: bool


class Delete(Mutation, tag=42):
    """``expect`` is -1, or the inode that must be at the path. ``now``: it cannot
    be undeleted."""

    path: str
    recursive: bool
    expect: int = -1
    now: bool = False


class ListTrash(Message, tag=100):
    """What was deleted at and below ``path``, by path, then by time, in pages.

    ``cursor`` is empty first, then what the last reply said; an empty ``cursor``
    in the reply ends it.
    """

    path: str
    cursor: bytes
    limit: int


class ListTrashReply(Message, tag=101):
    entries: list[TrashEntry]
    cursor: bytes


class Undelete(Mutation, tag=102):
    """Answered by StatReply. Of what was deleted under ``path`` the last one, or the
    one with ``inode`` if that is not 0, gets its name again, or that of ``target``
    if it is not empty. Missing parents are made."""

    path: str
    target: str = ""
    inode: int = 0


class EmptyTrash(Mutation, tag=103):
    """What was deleted under ``path`` (and below it, if ``recursive``; only the one
    with ``inode``, if that is not 0) goes now. A bounded number for each request:
    to be asked again while the reply says that there is ``more``."""

    path: str
    recursive: bool = False
    inode: int = 0


class EmptyTrashReply(Message, tag=104):
    rows: int
    more: bool


class SetReplication(Mutation, tag=105):
    """A file gets another goal, 0: the cluster's default. Answered by StatReply;
    copies are made, or given up, afterwards."""

    path: str
    replication: int


class Snapshot(Mutation, tag=106):
    """``target`` becomes a copy of ``source``, a file or a directory with all that is
    in it, as it is at one instant (the paper, 3.4). Missing parents of ``target`` are
    made if ``parents``. To be asked again, the same, until it is ``done``."""

    source: str
    target: str
    parents: bool = False


class SnapshotReply(Message, tag=107):
    """What was copied until now."""

    done: bool
    files: int
    directories: int
    bytes: int  # of the files; their chunks are shared


# --- client to master: mutating a file in place --------------------------------


class Drain(Message, tag=120):
    """Empty a chunkserver (by id or address), so that it can be stopped; or, with
    ``cancel``, do not. ``fewer_racks`` accepts that replicas are in fewer racks.
    DrainRefused if it is impossible."""

    server: str
    cancel: bool = False
    fewer_racks: bool = False


class DrainReply(Message, tag=121):
    server: ServerStatus


class ForgetServer(Message, tag=124):
    """A chunkserver (by id or address) that is dead, or drained and stopped, never comes
    back. Should it come back all the same, it is a new one, with what it has."""

    server: str


class Maintenance(Message, tag=125):
    """A chunkserver (by id or address) may be away for so many seconds without being dead:
    its replicas are not copied for it. 0: no longer. Answered by Done."""

    server: str
    seconds: int


class RepairRank(Part):
    """Chunks that have so many good replicas and should have ``goal``."""

    have: int
    goal: int
    chunks: int
    missing: int  # copies for each
    bytes: int  # of all these copies


class Repair(Message, tag=126):
    """How far repair is; and before that, if these are given: pause it or go on, and set
    ``clones_per_server``, ``clones_total``, ``moves_total`` or ``bytes_per_second`` (of each
    chunkserver that serves clients), -1: as the settings say that a process has."""

    paused: bool | None = None
    settings: dict[str, int] = msgspec.field(default_factory=dict)


class RepairReply(Message, tag=127):
    paused: bool
    #: As they hold now; ``bytes_per_second`` -1: each chunkserver's own.
    settings: dict[str, int]
    ranks: list[RepairRank]  # the most urgent first
    orders: int  # to copy, under way
    replicas: int  # that these copy
    replicas_per_second: float
    bytes_per_second: float
    lost: int  # chunks without any good replica: nothing to copy from
    #: Servers under maintenance that the master has not heard of since it was started.
    spared: int = 0


class DiskOrder(Message, tag=160):
    """Have a chunkserver (by id or address) add, drain, undrain, remove or retry the disk
    at ``path``. A client asks the master, and the master the chunkserver."""

    server: str
    path: str
    action: str  # "add" | "drain" | "undrain" | "remove" | "retry"


class DiskOrderReply(Message, tag=161):
    disks: list[Disk]


class AcquireLease(Message, tag=45):
    """Who is primary for chunk ``index`` of ``inode``, now. The file loses its
    digest before the answer.

    ``index`` one past the last chunk adds an empty chunk. ``version`` says that
    the chain of that version broke, ``failed`` at which servers: a new version is
    granted to the others. ``append``: records will be appended, from now on the
    file's length is what the replicas of its last chunk say.
    """

    client: str
    sequence: int
    inode: int
    index: int
    version: int
    failed: list[str]
    append: bool = False


class LeaseReply(Message, tag=46):
    """``chunk.servers`` is the chain, the primary first."""

    servers: list[ServerAddress]
    chunk: ChunkLocation
    lease_ms: int


class SetLength(Mutation, tag=47):
    """Bytes were written past the old end; never makes a file shorter."""

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
    term: int = 0  # the term of the master that it saw it of


class RegisterReply(Message, tag=61):
    cluster: str
    sequence: int
    heartbeat_ms: int


class ReportReplicas(Message, tag=62):
    """The body is packed ``REPLICA_RECORD``; the highest bit of the length says that the
    replica is possibly stale (``POSSIBLY_STALE_BIT``).

    Answered by Orders. ``complete`` marks the last batch of a registration. Or the
    replicas are ``gone``: their disk has failed, or their files were deleted.
    """

    BODY_BYTES_MAX: ClassVar[int] = REPLICA_RECORD.size * REPORT_RECORDS_MAX
    complete: bool
    gone: bool = False


class Heartbeat(Message, tag=63):
    """Sent every ``heartbeat_ms``. The body is a rotating sample of replicas."""

    BODY_BYTES_MAX: ClassVar[int] = REPLICA_RECORD.size * REPORT_RECORDS_MAX
    disks: list[Disk]
    chunks: int
    bad: list[BadReplica]
    leases: list[int]  # handles under lease here that were mutated lately
    #: Chunks that this server appended to as primary since it last told.
    appended: list[AppendedChunk] = []
    scrub: Scrub = msgspec.field(default_factory=Scrub)
    certificate_until_ns: int = 0


class Orders(Message, tag=64):
    """The master's answer to a report or heartbeat. It is carried out before
    the next heartbeat is made, unless ``sequence`` is below the highest that the server
    has seen: that master's memory is younger than the server's.
    """

    sequence: int
    #: Always empty: see DeleteReplicas.
    delete: list[ReplicaName]
    extend_leases: list[int]
    lease_ms: int
    #: Where the master's shadows are: one of them may be the next master.
    masters: list[str] = []
    #: For copies and scrubbing while clients are served; -1: as the server's settings say.
    background_bytes_per_second: int = -1


# --- master to chunkserver ------------------------------------------------------


class GrantLease(Message, tag=70):
    """Raise the replica from ``version`` to ``new_version``, durably.

    Idempotent. ``lease_ms`` > 0 makes this server the primary; the empty
    replica of a chunk just added is made when ``version`` is 0.

    The server of a possibly stale replica refuses, unless the replica was ``elected``, for
    want of a better one: then it is no longer possibly stale, and has ``length`` bytes at
    least, zeros where it had none.
    """

    handle: int
    version: int
    new_version: int
    lease_ms: int
    elected: bool = False
    length: int = 0


class DeleteReplicas(Message, tag=74):
    """Delete these replicas, each if it is of exactly that version. Answered by Done when
    all that could be deleted are, or after some seconds; what is still there then is
    reported as ever. Refused when ``sequence`` is below the highest that the server has
    seen: that master's memory is younger than the server's.
    """

    sequence: int
    replicas: list[ReplicaName]


class RevokeLease(Message, tag=71):
    """Order no more mutations of the chunk. One under way may take ``patience_ms``
    to end."""

    handle: int
    patience_ms: int = 0


class CloneChunk(Message, tag=72):
    """Copy a replica from one of ``sources``; answered by Done when it is whole.

    With ``salvage`` none is whole: one of at least ``length`` bytes is to be made good
    with blocks of the others, and of the one that may be at the target.

    After ``seconds`` it is given up, here and by the master.
    """

    handle: int
    version: int
    sources: list[str]  # addresses
    salvage: bool = False
    length: int = 0
    seconds: int = 60


class CloneChunks(Message, tag=75):
    """Copy small replicas from ``source``, many at a time. Answered by CloneChunksReply
    when each is whole, or was given up. ``seconds`` as in CloneChunk."""

    source: str  # address
    replicas: list[ReplicaName]
    seconds: int = 60


class CloneChunksReply(Message, tag=76):
    """All are good here but these."""

    failures: list[CloneFailure]


class CopyChunk(Message, tag=73):
    """Make a copy of the replica here, as a replica of the chunk ``target``, which no
    file has yet; durably. ``lease_ms`` > 0 makes this server its primary."""

    handle: int
    version: int
    target: int
    target_version: int
    lease_ms: int


# --- masters among themselves ---------------------------------------------------


class Follow(Message, tag=90):
    """A shadow master has applied the log up to ``sequence``, whose row has the
    checksum ``chain``. Sequence 0: it has nothing."""

    address: str  # where the shadow serves
    term: int
    sequence: int
    chain: int


class FollowReply(Message, tag=91):
    """LogRows follow, unless a ``copy`` must be fetched first: the shadow's
    history is another one, or the log does not reach back to it."""

    copy: bool
    term: int
    sequence: int
    chunkservers_ms: int  # a chunkserver's heartbeat


class ReadCopy(Message, tag=92):
    """Piece ``number`` of a copy of the store as it is when piece 0 is asked for.
    Pieces are asked for in order."""

    number: int


class CopyPiece(Message, tag=93):
    """The body is a msgpack array of keys and values in turn, of ``database``;
    ``sums`` is its checksum. The ``last`` has none: ``sums`` is the checksum of all
    pieces, ``state`` the store's counters."""

    BODY_BYTES_MAX: ClassVar[int] = 64 * MIB
    database: str
    last: bool
    sums: bytes
    state: bytes = b""
    cluster: str = ""


class LogRows(Message, tag=94):
    """From the master: rows of the log from ``first`` on. The body is a msgpack
    array: of rows, each [the row, the answer]; and of what is known of locations,
    each [handle, [server id]]. Sent at least every second. Answered by LogAck when
    the rows are on the shadow's disk.

    ``sequence`` is the newest there is; when the rows reach to it, ``state`` are the
    counters that the shadow must have come to as well.
    """

    BODY_BYTES_MAX: ClassVar[int] = 64 * MIB
    first: int
    sequence: int
    state: bytes
    #: Where the other shadows are.
    peers: list[str]
    totals: ClusterTotals


class LogAck(Message, tag=95):
    sequence: int
    certificate_until_ns: int = 0


class Position(Message, tag=96):
    """Who are you, and how far have you come?"""


class PositionReply(Message, tag=97):
    role: str  # "master" | "shadow" | "copying"
    term: int
    sequence: int
    chain: int
    #: The master that it follows just now.
    follows: str = ""
    #: The highest term that it promised, and all to whom: those that were not followed
    #: or released yet.
    promised: int = 0
    promised_to: list[str] = []
    #: The term that it may be about to begin.
    beginning: int = 0
    #: It was the master of ``term`` and handed over to the shadow here.
    heir: str = ""


class Bind(Message, tag=122):
    """From a shadow at ``address`` that is to be promoted to ``term``: follow no master
    of a lower one from now on. Refused by a shadow that follows one, without ``leave``.
    The PositionReply tells what it had promised before, and all it has on disk: it
    acknowledges nothing more to those.

    It asks ``address`` from time to time, and is free again when that says that it is
    not about to begin ``term`` and did not.
    """

    term: int
    address: str
    leave: bool


class ForgetShadow(Message, tag=123):
    """From an operator: the shadow master at ``address`` is lost for good. It does not
    count any more for ``replicas_before_ack``; what it has is not to be promoted."""

    address: str


class Retire(Message, tag=98):
    """From a shadow that is to be promoted to ``term``: end what is under way, take
    no more, and answer when this shadow has all of it. The master is a shadow of
    ``address`` from then on, and has promised it ``term`` as by Bind."""

    term: int
    address: str


class Promote(Message, tag=99):
    """From an operator: be the master from now on. Without ``force`` it is refused
    if operations that were acknowledged could be lost."""

    force: bool


class PromoteReply(Message, tag=89):
    term: int
    sequence: int
    message: str  # for the operator


# --- to a chunkserver, bulk and control ----------------------------------------


class VerifyChunk(Message, tag=80):
    """Read all of a replica's blocks against their sums; only tell its state
    as it is known when ``blocks`` is false. Tell the sums, too, if ``sums``."""

    handle: int
    version: int
    blocks: bool = True
    sums: bool = False


class VerifyReply(Message, tag=81):
    state: str  # "good" | "corrupt" | "missing" | "stale" | "forgetful"
    version: int
    length: int
    bad_blocks: list[int]
    sums: bytes = b""


class LookFor(Message, tag=140):
    """The states of many replicas as they are known, and whether their files are there
    and long enough: none is read, or opened."""

    replicas: list[ReplicaName]


class LookForReply(Message, tag=141):
    """In the order of the question."""

    states: list[ReplicaState]


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


class ReadReplicas(Message, tag=110):
    """Whole small replicas of exactly these versions, to copy them; at most
    ``CLONES_MAX``. Answered for as many as fit, to be asked again for the others."""

    replicas: list[ReplicaName]


class ReadReplicasReply(Message, tag=111):
    """The body is the bytes of those that are good, in this order."""

    BODY_BYTES_MAX: ClassVar[int] = 1 * MIB
    states: list[ReplicaState]


class WriteChunk(Message, tag=84):
    """Opens a write exchange; Packets follow on the same connection.

    ``chain`` are the servers after this one, in order. ``mode``:

    * ``"upload"``: an unpublished chunk. Bytes past ``offset`` are dropped
      (an earlier, broken exchange wrote them without an acknowledgement),
      writing goes on from there. The replica is made if it is not there and
      ``offset`` is 0.
    * ``"mutate"``: a published chunk, under lease at the first server. Writes
      anywhere up to the present length, or extending it, or past it with a hole.
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

    ``hole``: the replica may end so many bytes before ``offset``, and has zeros there
    then. The primary says of its own how many they are; to the servers after it that is
    where their replicas end, too.
    """

    BODY_BYTES_MAX: ClassVar[int] = PACKET_BYTES_MAX
    offset: int
    last: bool
    sums: bytes
    flush: bool = False
    hole: int = 0


class PacketAck(Message, tag=86):
    """Every replica of the chain holds packets 0 … ``id``.

    With the last one, ``length`` is the replica's length.
    """

    length: int


class Working(Message, tag=68):
    """Not an answer yet: the server works on the write, or the append, that ``id`` began,
    and its disk gets on. Comes until the answer does (:mod:`gfs.protocol.patience`)."""


class AppendRecords(Message, tag=87):
    """To the primary, for the end of a chunk under lease: the body is frames (see
    :mod:`gfs.protocol.records`), each of which is to be there whole."""

    BODY_BYTES_MAX: ClassVar[int] = FRAME_BYTES_MAX
    handle: int
    version: int
    inode: int
    chain: list[ServerAddress]  # the secondaries


class AppendReply(Message, tag=88):
    """Every replica holds the first ``placed`` frames, one after another from
    ``offset`` of the chunk on. The others did not fit: the chunk is ``full``."""

    offset: int
    placed: int
    full: bool


AnyMessage = Union[  # noqa: UP007 - a list this long reads better so
    Hello, HelloProof, Failure, Done, Ping,
    Stat, StatReply, List, ListReply, Locate, LocateReply,
    DiskUsage, DiskUsageReply, Status, StatusReply,
    FsckPage, FsckPageReply, ListGarbage, ListGarbageReply,
    Reserve, ReserveReply, Recover, RecoverReply, Reclaim, Release, Publish, PublishReply,
    MakeDirectory, Rename, Delete, AcquireLease, LeaseReply, SetLength, ReportReplica,
    Register, RegisterReply, ReportReplicas, Heartbeat, Orders,
    GrantLease, RevokeLease, CloneChunk, CopyChunk, DeleteReplicas,
    CloneChunks, CloneChunksReply, ReadReplicas, ReadReplicasReply,
    ListTrash, ListTrashReply, Undelete, EmptyTrash, EmptyTrashReply,
    SetReplication, Snapshot, SnapshotReply, Drain, DrainReply, DiskOrder, DiskOrderReply,
    ForgetServer, Maintenance, Repair, RepairReply,
    Follow, FollowReply, ReadCopy, CopyPiece, LogRows, LogAck, Position, PositionReply,
    Bind, Retire, Promote, PromoteReply, ForgetShadow,
    VerifyChunk, VerifyReply, LookFor, LookForReply, ReadChunk, ReadReply,
    WriteChunk, Packet, PacketAck, AppendRecords, AppendReply, Working,
]  # fmt: skip

ALL_MESSAGES: tuple[type[Message], ...] = get_args(AnyMessage)

#: Messages that answer a request: they go to the caller that waits for their id.
REPLIES: tuple[type[Message], ...] = (
    Failure, Done, StatReply, ListReply, LocateReply, DiskUsageReply, StatusReply,
    FsckPageReply, ListGarbageReply, ReserveReply, RecoverReply, PublishReply,
    LeaseReply, RegisterReply, Orders, VerifyReply, ReadReply, PacketAck,
    CloneChunksReply, ReadReplicasReply, RepairReply,
    ListTrashReply, EmptyTrashReply, SnapshotReply, DrainReply, DiskOrderReply,
    FollowReply, CopyPiece, LogAck, PositionReply, PromoteReply, AppendReply, LookForReply,
    Working,
)  # fmt: skip
