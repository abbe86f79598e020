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

from gfs.blocks import BLOCK_BYTES, CHUNK_BYTES, KIB, MIB
from gfs.protocol.records import FRAME_BYTES_MAX

#: The versions of the protocol that this release speaks. A connection has the newest that
#: both sides speak. What a release adds to the messages belongs to a new version, and is sent
#: on connections of that version alone; a release speaks the version of the one before it.
PROTOCOL_OLDEST = 1
PROTOCOL_NEWEST = 2
MAGIC = "gfs1"

#: A head is refused above this, before it is read.
HEAD_BYTES_MAX = 64 * KIB
#: A write packet's data at most; a multiple of the block size.
PACKET_BYTES_MAX = 1 * MIB
#: A sender's window in packets, at least. See Packet.
PACKETS_IN_FLIGHT_MIN = 4
#: Replica reports: packed records, 16 bytes each, at most this many a batch.
REPORT_RECORDS_MAX = 4096
#: A replica's state in replies: it may lack the last writes, because its machine lost
#: power or its write-intent records are damaged. The value keeps its old name on the
#: wire: a server of another version that did not know a new one would copy such a
#: replica.
POSSIBLY_STALE = "forgetful"
#: The same in a report, as a bit of the length. No chunk is that long.
POSSIBLY_STALE_BIT = 1 << 31
#: A replica in the body of a report: handle, version, length.
REPLICA_RECORD = struct.Struct(">QII")
#: Replicas up to this size are copied many at a time, at most this many in one order.
SMALL_REPLICA_BYTES_MAX = 256 * KIB
CLONES_MAX = 256
#: What is read or written by one message without an exchange of its own: a block.
SMALL_BYTES_MAX = BLOCK_BYTES
PATH_BYTES_MAX = 4096
#: See :func:`readers_seconds`.
READERS_SECONDS_MAX = 600
#: Files that are joined to one, in one commit: no upload over S3 has more parts.
JOINED_MAX = 10_000
#: The most chunks of a file that is made so: 8 TiB.
JOINED_CHUNKS_MAX = 1 << 17
#: A page of a listing stays below a head's limit.
PAGE_BYTES_MAX = 48 * KIB
#: A file has at most so many attributes, with names and values of at most so many bytes
#: of UTF-8 together. See gfs.protocol.attributes.
ATTRIBUTES_MAX = 16
ATTRIBUTES_BYTES_MAX = 1024
FILE_DIGEST_BYTES = 16
#: Most chunk rows in a reply (each below 128 bytes, without the servers).
LOCATE_CHUNKS_MAX = 256


class Message(msgspec.Struct, array_like=True, gc=False):
    """What all messages share: the id that pairs a request with its reply."""

    BODY_BYTES_MAX: ClassVar[int] = 0
    #: The version of the protocol that it came with: an older peer is not sent it.
    SINCE: ClassVar[int] = PROTOCOL_OLDEST
    id: int


class Mutation(Message):
    """A client's change of the namespace. Its answer is remembered under the client's id
    and the client's ``sequence``: a repeated request gets the first answer and changes nothing."""

    client: str
    sequence: int


class Part(msgspec.Struct, array_like=True, gc=False):
    """A value inside a message."""


# --- values ----------------------------------------------------------------


class Entry(Part):
    """A file or directory as ``stat`` and ``list`` return it."""

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
    #: Small key-value pairs: those that the writer gave, or that were set since.
    attributes: dict[str, str] = msgspec.field(default_factory=dict)
    #: Records are appended to the file: the replicas of its last chunk may have a greater length.
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
    """One chunk of a file that is to be published, and the servers that acknowledged it."""

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
    #: Where its file system is mounted, or was when it was last used; "": not known, or it does
    #: not matter.
    mount: str = ""
    #: Of a draining disk: its replicas that are damaged, so that they cannot be moved.
    damaged: int = 0
    #: The number that its machine has for its file system (``st_dev``); 0: not known.
    device: int = 0


class BadReplica(Part):
    """A replica that its own chunkserver found damaged. ``kind``: corrupt."""

    handle: int
    version: int
    kind: str


class ReplicaName(Part):
    """A replica of exactly this version: an order never affects another one."""

    handle: int
    version: int


class CloneFailure(Part):
    """``server`` is the source's id if its replica is to blame."""

    handle: int
    code: str
    message: str
    server: str = ""


class ReplicaState(Part):
    """The state of one replica that ReadReplicas or LookFor names. ``sums`` are the
    stored sums of its blocks; the reader verifies them. ``large``: it must be read with
    ReadChunk."""

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
    """The progress of a chunkserver's scrub."""

    done_bytes: int = 0
    total_bytes: int = 0
    #: When this pass began, and the last complete one ended; -1: not yet.
    began_ms: int = -1
    ended_ms: int = -1
    #: When the last complete one began: what came later was perhaps not read in it.
    whole_began_ms: int = -1


class ServerStatus(Part):
    id: str
    address: str
    rack: str
    #: "live" | "silent" (no heartbeat lately) | "dead" | "stopped" (it was drained before)
    state: str
    heartbeat_age_ms: int
    chunks: int
    disks: list[Disk]
    #: "" | "draining" | "drained" (then the server can be stopped).
    drain: str = ""
    #: While it is drained: chunks that still need it, and uploads under way to it.
    drain_chunks: int = 0
    drain_uploads: int = 0
    scrub: Scrub = msgspec.field(default_factory=Scrub)
    #: How many of the chunks that still need it are lost, and it has a damaged replica.
    drain_lost: int = 0
    #: It may be away for so long without being declared dead; 0: no maintenance.
    maintenance_ms: int = 0
    #: When its certificate ends; 0: it has none.
    certificate_until_ns: int = 0


class MetadataSpace(Part):
    """The master's database, and the disk that it is on; -1: not known."""

    used_bytes: int = -1
    #: The upper limit of ``used_bytes``.
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
    #: Replicas that are to be deleted and are not confirmed as deleted yet.
    orphaned: int
    stale: int
    repairs_active: int
    repairs_queued: int
    #: Corrupt replicas found since the cluster was made, repaired or not.
    corruptions: int = 0
    #: What can be undeleted: the number of deletions, their files and bytes. Of the
    #: counts above, only ``chunks`` includes it.
    trash_rows: int = 0
    trash_files: int = 0
    trash_bytes: int = 0
    #: Bytes that files share with others (snapshots): counted in ``bytes`` for each
    #: of them, stored once.
    shared_bytes: int = 0
    #: Copies for draining and rebalancing, of chunks that are at their goal.
    moves_active: int = 0
    moves_queued: int = 0
    #: The highest goal of the chunks that are below theirs; 0 if none is.
    goal_unmet: int = 0
    #: Lost chunks whose damaged replicas are being salvaged, and those that cannot be
    #: salvaged from the damaged replicas there are.
    salvages: int = 0
    beyond_repair: int = 0
    #: Corrupt replicas that are kept because they are all that is left of a lost chunk.
    corrupt_kept: int = 0
    #: When the oldest deletion in the trash was made, and when it is purged; 0: the
    #: trash is empty, or that is not known.
    trash_oldest_ns: int = 0
    trash_until_ns: int = 0
    #: Deletions that were purged early, for want of space, since the master was
    #: started, and their bytes.
    trash_purged: int = 0
    trash_purged_bytes: int = 0
    #: At least so many bytes can be written before the trash is purged early; and
    #: whether that is so little that an operator should add space.
    room_bytes: int = 0
    room_low: bool = False
    #: Chunks of which no chunkserver has reported a replica yet, because the master was
    #: started or promoted a moment ago. They count as lost once it is out of safe mode.
    unlocated: int = 0
    #: The disk space of the orphaned replicas, heads included.
    orphaned_bytes: int = 0
    #: Files that were replaced and are kept for their readers, or are being reclaimed.
    #: Of the counts above, only ``chunks`` includes them.
    replaced_files: int = 0
    replaced_bytes: int = 0


class TrashEntry(Part):
    """A file or directory that one delete removed, and that can be undeleted."""

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
    #: "following" | "not counted" (it follows, but replicas_before_ack does not count
    #: it until the other shadow masters know of it) | "away"
    state: str
    sequence: int  # the last operation on its disk; -1: not known
    #: For how long it has lacked the newest operation; -1: not known.
    behind_ms: int
    certificate_until_ns: int = 0  # as of a chunkserver


class GarbageReplica(Part):
    """A replica on a chunkserver that no file needs."""

    server: str
    handle: int
    version: int
    kind: str  # "orphaned" | "stale" | "forgetful" | "corrupt"
    #: It is kept because its chunk has too few good replicas.
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
    #: If no replica is good: the servers with damaged ones.
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
    version: int  # the oldest that the sender speaks
    role: str  # "client" | "chunkserver" | "master" | "shadow"
    peer: str  # the sender's own id
    cluster: str  # "" while the sender does not know it yet
    nonce: bytes
    proof: bytes = b""
    #: A master's own term; other processes send the highest that they know.
    term: int = 0
    #: Names of cluster keys (8 bytes each). The connector sends all of its own, the
    #: acceptor the one that both sides prove to have.
    keys: list[bytes] = msgspec.field(default_factory=list)
    #: The newest version that the sender speaks; 0, of release 0.1: that in ``version``.
    newest: int = 0


class HelloProof(Message, tag=2):
    proof: bytes


class Failure(Message, tag=3):
    """The error answer to any request. ``server`` names a failed replica."""

    code: str
    message: str
    server: str = ""


class Done(Message, tag=4):
    """Success, without a result."""


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


class ListFiles(Message, tag=132):
    """The files below the directory ``path``, in order of the bytes of their paths, in pages.

    ``prefix`` and ``after`` are compared with paths relative to ``path``: only those that begin
    with the one and sort after the other are listed. They need not be UTF-8. ``folders``: a
    directory whose path, with a slash, begins with ``prefix`` and is longer is listed as that,
    without its contents. ``without``: directories, with a slash, that are passed over.

    A page ends after ``limit`` entries, or when it was long enough to read; it may be empty.
    ``after`` of the next one is the ``cursor``; that of the last page is empty.
    """

    SINCE: ClassVar[int] = 2

    path: str
    prefix: bytes
    after: bytes
    limit: int
    folders: bool = False
    without: list[bytes] = []


class ListFilesReply(Message, tag=133):
    entries: list[Entry]
    cursor: bytes


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
    #: The parts of ``bytes`` and ``replicated_bytes`` that are shared with other files,
    #: here or elsewhere (snapshots and their sources). Deleting frees the rest.
    shared_bytes: int = 0
    shared_replicated_bytes: int = 0
    #: Chunks of the files; a shared one counts for each of its files.
    chunks: int = 0


class Status(Message, tag=18):
    """The state of the cluster, and the servers that follow ``after``: the rack and the
    id of the last server that was received, empty at first."""

    after: list[str] = []


class StatusReply(Message, tag=19):
    """If a shadow master answers, ``master`` is the address of the master, and the
    ``totals`` of replicas are the last that it received from the master. ``servers``
    are in the order of their racks and ids, as many as there is room for; ``more``:
    others follow."""

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
    #: How long a file that is deleted now can be undeleted; shadow masters do not report it.
    trash_ms: int = 0
    #: A backup was restored: chunks that its metadata does not know are kept.
    restored: bool = False


class FsckPage(Message, tag=20):
    """Chunks of the files at and below ``path``, in pages.

    ``cursor`` is empty first, then that of the last reply; the last page has an empty
    one. With ``again`` the reply has the present state of these chunks, in this order,
    as many as it has room for and at least one, without their paths. A chunk that does
    not exist any more has version 0.
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
    """Reserve handles and servers for ``count`` new chunks. The namespace does not change.

    The reservation lasts as long as its client sends requests (Ping), and ends with
    Publish or Release. ``avoid`` lists servers that failed this client lately. ``together``:
    all on the same servers, in the same order, since small files go to each server in batches.
    """

    client: str
    count: int
    replication: int
    avoid: list[str]
    together: bool = False


class ReserveReply(Message, tag=31):
    """``chunks[i].servers`` is the write chain, the primary first."""

    replication: int
    servers: list[ServerAddress]
    chunks: list[ChunkLocation]


class Recover(Message, tag=32):
    """A write chain of a reserved chunk broke: grant a higher version without ``failed``."""

    client: str
    handle: int
    version: int
    failed: list[str]


class RecoverReply(Message, tag=33):
    servers: list[ServerAddress]
    chunk: ChunkLocation


class Reclaim(Message, tag=34):
    """After a reconnect: these reserved chunks are still being written."""

    BODY_BYTES_MAX: ClassVar[int] = 16 * MIB  # msgpack list[PublishedChunk]
    client: str
    servers: list[str]


class Release(Message, tag=35):
    """The client has ended an upload without publishing it; its chunks become orphans."""

    client: str
    handles: list[int]


class Publish(Mutation, tag=36):
    """Make an uploaded file visible under ``path``, in one transaction.

    The body is a msgpack ``list[PublishedChunk]`` whose ``servers`` index the
    ``servers`` field. ``replace`` replaces a file of that name. Missing parents are
    made if ``parents``; if ``below`` is not empty, only below that directory, which
    must exist. ``expect`` is -1, or a condition on the path that takes the place of
    ``replace``: with 0 the path must not exist, else the file there must have that
    inode. A file that is replaced is kept for its readers for a while
    (:func:`readers_seconds`) if ``keeps`` is -1 or its inode; else it is deleted at once.
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
    #: The file's time of change; 0: the present time.
    modified_ns: int = 0
    keeps: int = -1


class Join(Publish, tag=112):
    """Make a file of the chunks that other files have, which keep them: like :class:`Publish`, in
    one transaction, and no byte moves.

    The body is a msgpack list of their inodes, in the order of their bytes; there are no
    ``servers``. All but the last must be of whole chunks, and all together of at most
    ``JOINED_CHUNKS_MAX``. FileChanged if one was deleted, or written in place since it was
    published.
    """

    SINCE: ClassVar[int] = 2


def readers_seconds(chunks: int) -> int:
    """How long a replaced file of so many chunks is kept for those who have it open.

    A chunk is read in one request, during which the chunkserver has its file open; a
    reader of several chunks asks for the next ones much later.
    """
    return READERS_SECONDS_MAX if chunks > 1 else 10


class PublishReply(Message, tag=37):
    entry: Entry
    #: The file that had the name until then, if one had.
    replaced: list[Entry] = []


# --- client to master: namespace mutations ------------------------------------


class MakeDirectory(Mutation, tag=40):
    """``attributes`` are those of the last directory, if it is made. Answered by StatReply."""

    path: str
    parents: bool
    exist_ok: bool
    attributes: dict[str, str] = msgspec.field(default_factory=dict)


class Rename(Mutation, tag=41):
    """Rename a file or directory atomically. ``replace``: a file may replace a file."""

    source: str
    target: str
    replace: bool
    parents: bool


class Delete(Mutation, tag=42):
    """``expect`` is -1, or the inode that must be at the path. ``now``: the deletion
    does not go to the trash."""

    path: str
    recursive: bool
    expect: int = -1
    now: bool = False


class Prune(Mutation, tag=134):
    """Delete an empty directory, and those above it, below the directory ``below``, that have
    nothing else in them: in one step, and for good. Answered by Done."""

    SINCE: ClassVar[int] = 2

    path: str
    below: str


class ListTrash(Message, tag=100):
    """What was deleted at and below ``path``, by path, then by time, in pages.

    ``cursor`` is empty first, then that of the last reply; the last page has an empty one.
    """

    path: str
    cursor: bytes
    limit: int


class ListTrashReply(Message, tag=101):
    entries: list[TrashEntry]
    cursor: bytes


class Undelete(Mutation, tag=102):
    """Restore the last deletion of ``path``, or the one with ``inode`` if that is not
    0, under its old name, or as ``target`` if that is not empty. Missing parents are
    made. Answered by StatReply."""

    path: str
    target: str = ""
    inode: int = 0


class EmptyTrash(Mutation, tag=103):
    """Purge the deletions of ``path`` (and below it, if ``recursive``; only the one
    with ``inode``, if that is not 0). Each request purges a bounded number: it is
    repeated while the reply says that there is ``more``."""

    path: str
    recursive: bool = False
    inode: int = 0


class EmptyTrashReply(Message, tag=104):
    rows: int
    more: bool


class SetReplication(Mutation, tag=105):
    """Change the goal of a file (0: the cluster's default). Answered by StatReply;
    replicas are copied or deleted afterwards."""

    path: str
    replication: int


class SetAttributes(Mutation, tag=108):
    """Change attributes of a file or directory: those in ``attributes`` get these values,
    those in ``removed`` go, and others stay. Its time of change is then ``modified_ns``; 0: as
    before. ``expect`` is -1, or the inode that must be at the path. Answered by StatReply."""

    SINCE: ClassVar[int] = 2

    path: str
    attributes: dict[str, str]
    removed: list[str] = []
    modified_ns: int = 0
    expect: int = -1


class Snapshot(Mutation, tag=106):
    """Make ``target`` a copy of ``source``, a file or a directory with its contents, at
    one instant (the paper, 3.4). Missing parents of ``target`` are made if ``parents``.
    The client repeats the same request until the reply says ``done``."""

    source: str
    target: str
    parents: bool = False


class SnapshotReply(Message, tag=107):
    """What was copied so far."""

    done: bool
    files: int
    directories: int
    bytes: int  # of the files; their chunks are shared


# --- client to master: mutating a file in place --------------------------------


class Drain(Message, tag=120):
    """Drain a chunkserver (by id or address), so that it can be stopped; or ``cancel``
    the drain. ``fewer_racks`` accepts that replicas are in fewer racks. Answered by
    DrainRefused if it is impossible."""

    server: str
    cancel: bool = False
    fewer_racks: bool = False


class DrainReply(Message, tag=121):
    server: ServerStatus


class ForgetServer(Message, tag=124):
    """Remove a chunkserver (by id or address) that is dead, or drained and stopped,
    from the list. If it comes back nevertheless, it joins as a new one, with its
    replicas."""

    server: str


class Maintenance(Message, tag=125):
    """A chunkserver (by id or address) may be away for so many seconds without being
    declared dead, and its chunks are not re-replicated meanwhile. 0 ends this. Answered
    by Done."""

    server: str
    seconds: int


class RepairRank(Part):
    """Chunks that have ``have`` good replicas and should have ``goal``."""

    have: int
    goal: int
    chunks: int
    missing: int  # replicas that each lacks
    bytes: int  # of all these replicas


class Repair(Message, tag=126):
    """Pause or resume repair, if ``paused`` is given, and set ``clones_per_server``,
    ``clones_total``, ``moves_total`` or ``bytes_per_second`` (of each chunkserver that
    serves clients; -1 restores the value of the process's own settings). The reply has
    the progress of repair."""

    paused: bool | None = None
    settings: dict[str, int] = msgspec.field(default_factory=dict)


class RepairReply(Message, tag=127):
    paused: bool
    #: The present values; ``bytes_per_second`` -1: each chunkserver's own.
    settings: dict[str, int]
    ranks: list[RepairRank]  # the most urgent first
    orders: int  # copy orders under way
    replicas: int  # that these orders copy
    replicas_per_second: float
    bytes_per_second: float
    lost: int  # chunks without any good replica: nothing to copy from
    #: Servers under maintenance that have not registered since the master was started.
    spared: int = 0


class DiskOrder(Message, tag=160):
    """Have a chunkserver (by id or address) add, drain, undrain, remove or retry the disk
    at ``path``. A client sends it to the master, and the master to the chunkserver."""

    server: str
    path: str
    action: str  # see DiskOrders of the chunkserver
    #: The file systems (``st_dev``) that disks of other chunkservers on its machine are on; from
    #: the master.
    taken: list[int] = []


class DiskOrderReply(Message, tag=161):
    disks: list[Disk]


class AcquireLease(Message, tag=45):
    """The primary of chunk ``index`` of ``inode``, with a lease. The file's digest is
    removed before the answer, because the file will change.

    ``index`` one past the last chunk adds an empty chunk. ``version`` says that
    the chain of that version broke, ``failed`` at which servers: a new version is
    granted to the others. ``append``: records will be appended; from then on the
    replicas of the file's last chunk determine its length.
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
    """Bytes were written past the old end. It never makes a file shorter."""

    inode: int
    length: int


class ReportReplica(Message, tag=48):
    """A client found this replica damaged or missing. The master has it checked."""

    handle: int
    version: int
    server: str
    kind: str  # "corrupt" | "missing" | "stale" | "short"


# --- chunkserver to master ------------------------------------------------------


class Register(Message, tag=60):
    """The first message on a connection. ReportReplicas follow, the last one ``complete``."""

    server: str
    incarnation: int  # grows with every start of this chunkserver
    address: str
    rack: str
    disks: list[Disk]
    sequence: int  # the highest operation-log sequence it has received
    term: int = 0  # the term of the master that sent it
    #: New replicas of up to so many bytes are packed; 0: none, or it is of an older release.
    packed_bytes_max: int = 0


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
    #: Chunks that this server appended to as primary since its last report of them.
    appended: list[AppendedChunk] = []
    scrub: Scrub = msgspec.field(default_factory=Scrub)
    certificate_until_ns: int = 0


class Orders(Message, tag=64):
    """The master's answer to a report or heartbeat. It is carried out before the next
    heartbeat is made, unless ``sequence`` is below the highest that the server has
    received: then the master lacks operations that the server knows of.
    """

    sequence: int
    #: Always empty: see DeleteReplicas.
    delete: list[ReplicaName]
    extend_leases: list[int]
    lease_ms: int
    #: The addresses of the master's shadow masters, one of which may be the next master.
    masters: list[str] = []
    #: For copies and scrubbing while clients are served; -1: the server's own setting.
    background_bytes_per_second: int = -1


# --- master to chunkserver ------------------------------------------------------


class GrantLease(Message, tag=70):
    """Raise the replica from ``version`` to ``new_version``, durably.

    Idempotent. ``lease_ms`` > 0 makes this server the primary; the empty
    replica of a chunk just added is made when ``version`` is 0.

    The server of a possibly stale replica refuses, unless the replica was ``elected``
    because no better one is left: then it is not possibly stale any more, and is
    extended with zeros to at least ``length`` bytes.
    """

    handle: int
    version: int
    new_version: int
    lease_ms: int
    elected: bool = False
    length: int = 0


class DeleteReplicas(Message, tag=74):
    """Delete these replicas, each if it is of exactly that version. Answered by Done
    when all that can be deleted are, or after some seconds; replicas that are still
    there are reported as before. Refused when ``sequence`` is below the highest that
    the server has received: then the master lacks operations that the server knows of.
    """

    sequence: int
    replicas: list[ReplicaName]


class RevokeLease(Message, tag=71):
    """The primary must order no more mutations of the chunk. One under way may take
    ``patience_ms`` to end."""

    handle: int
    patience_ms: int = 0


class CloneChunk(Message, tag=72):
    """With ``salvage``: no replica of the chunk is good. Make a good one of at least
    ``length`` bytes from the good blocks of those at all ``sources``, and of the one that
    may be at the target. Answered by Done when it is complete.

    Without it, from a master of release 0.1: copy a replica from one of ``sources``.

    After ``seconds`` the server and the master give it up.
    """

    handle: int
    version: int
    sources: list[str]  # addresses
    salvage: bool = False
    length: int = 0
    seconds: int = 60


class CloneChunks(Message, tag=75):
    """Copy one replica, or small ones many at a time, from ``source``. Answered by
    CloneChunksReply when each is complete, or was given up. ``seconds`` as in CloneChunk.

    What cannot be copied from ``source`` is copied from one of ``others``; a server of
    release 0.1 leaves that to the master's next order."""

    source: str  # address
    replicas: list[ReplicaName]
    seconds: int = 60
    others: list[str] = []  # addresses


class CloneChunksReply(Message, tag=76):
    """All replicas were copied except these."""

    failures: list[CloneFailure]


class CopyChunk(Message, tag=73):
    """Copy the replica on this server, durably, as a replica of the chunk ``target``,
    which is in no file yet. ``lease_ms`` > 0 makes this server its primary."""

    handle: int
    version: int
    target: int
    target_version: int
    lease_ms: int


# --- masters among themselves ---------------------------------------------------


class Follow(Message, tag=90):
    """A shadow master has applied the log up to ``sequence``, whose row has the
    checksum ``chain``. Sequence 0: its store is empty."""

    address: str  # of the shadow master
    term: int
    sequence: int
    chain: int


class FollowReply(Message, tag=91):
    """LogRows follow, unless ``copy`` says that the shadow master must fetch a copy
    first, because its log differs from the master's or is older than the master's first
    row."""

    copy: bool
    term: int
    sequence: int
    chunkservers_ms: int  # a chunkserver's heartbeat


class ReadCopy(Message, tag=92):
    """Piece ``number`` of a copy of the store as it is when piece 0 is requested.
    Pieces must be requested in order."""

    number: int


class CopyPiece(Message, tag=93):
    """The body is a msgpack array of keys and values in turn, of ``database``;
    ``sums`` is its checksum. The ``last`` piece has no body: its ``sums`` is the
    checksum of all pieces, its ``state`` the store's counters."""

    BODY_BYTES_MAX: ClassVar[int] = 64 * MIB
    database: str
    last: bool
    sums: bytes
    state: bytes = b""
    cluster: str = ""


class LogRows(Message, tag=94):
    """From the master: rows of the log from ``first`` on. The body is a msgpack array
    of two arrays: of rows, each [the row, the answer], and of known locations, each
    [handle, [server id]]. Sent at least every second. Answered by LogAck when the rows
    are on the shadow's disk.

    ``sequence`` is the newest of the log. If the rows reach it, ``state`` has the
    counters that the shadow master must have after applying them.
    """

    BODY_BYTES_MAX: ClassVar[int] = 64 * MIB
    first: int
    sequence: int
    state: bytes
    #: The addresses of the other shadow masters.
    peers: list[str]
    totals: ClusterTotals


class ReadLog(Message, tag=109):
    """For a backup that has the log up to ``sequence``, whose row has the checksum
    ``chain``. The log is kept from there on for the next one of this ``name``."""

    SINCE: ClassVar[int] = 2

    name: str
    sequence: int
    chain: int


class LogPage(Message, tag=131):
    """The rows after that, some 1 MiB, with the counters in ``state`` if they reach the
    newest. The body is a msgpack array of [the row, the answer]. No rows if the log does
    not go back so far (``trimmed``) or has another row there (``other_history``)."""

    BODY_BYTES_MAX: ClassVar[int] = 64 * MIB
    cluster: str
    state: bytes = b""
    trimmed: bool = False
    other_history: bool = False


class LogAck(Message, tag=95):
    sequence: int
    certificate_until_ns: int = 0


class Position(Message, tag=96):
    """Ask a master or shadow master for its role and the end of its log."""


class PositionReply(Message, tag=97):
    role: str  # "master" | "shadow" | "copying"
    term: int
    sequence: int
    chain: int
    #: The master that it follows now.
    follows: str = ""
    #: The highest term that it promised, and the addresses that it promised it to and
    #: has neither followed nor been released by.
    promised: int = 0
    promised_to: list[str] = []
    #: The term that it may be about to begin.
    beginning: int = 0
    #: If it was the master of ``term`` and handed over: the address of its successor.
    successor: str = ""


class Bind(Message, tag=122):
    """From a shadow master at ``address`` that is to be promoted to ``term``: the
    receiver must promise to follow no master of a lower term from now on. Without
    ``leave`` a shadow master that follows one refuses. The PositionReply has its
    earlier promises and the end of its log on disk: it acknowledges nothing more to
    masters of lower terms.

    The receiver asks ``address`` from time to time, and is released from its promise
    when that answers that it did not begin ``term`` and is not about to.
    """

    term: int
    address: str
    leave: bool


class ForgetShadow(Message, tag=123):
    """From an operator: the shadow master at ``address`` is lost for good. It does not
    count any more for ``replicas_before_ack``, and must not be promoted with its
    data."""

    address: str


class AcceptRestore(Message, tag=130):
    """From an operator: what a restored backup does not know is lost for good. Chunks
    that no file has are garbage again."""

    SINCE: ClassVar[int] = 2


class Retire(Message, tag=98):
    """From a shadow master that is to be promoted to ``term``: the master completes the
    mutations under way, refuses new ones, and answers when this shadow master has them
    all. From then on it is a shadow master of ``address``, and has promised it ``term``
    as by Bind."""

    term: int
    address: str


class Promote(Message, tag=99):
    """From an operator: become the master. Without ``force`` it is refused if
    acknowledged operations could be lost."""

    force: bool


class PromoteReply(Message, tag=89):
    term: int
    sequence: int
    message: str  # for the operator


class Election(Message, tag=128):
    """From an operator: who has the hold, as far as this master or shadow master knows."""

    SINCE: ClassVar[int] = 2


class ElectionReply(Message, tag=129):
    """The answer to Election."""

    engine: str = ""  # for people; empty: no engine elects the masters of this cluster
    holder: str = ""  # its address; empty: nobody has the hold
    since_ns: int = 0  # when it got it, by its clock
    hold_ms: int = 0  # how long a hold lasts that is not renewed
    #: For how long the engine has not answered, and why; 0: it answers.
    away_ms: int = 0
    reason: str = ""


# --- to a chunkserver, bulk and control ----------------------------------------


class VerifyChunk(Message, tag=80):
    """Read and verify all blocks of a replica; if ``blocks`` is false, only return its
    known state. ``sums``: return the stored sums, too."""

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
    """The known states of many replicas, and whether their files exist and are long
    enough. No file is read or opened."""

    replicas: list[ReplicaName]


class LookForReply(Message, tag=141):
    """In the order of the request."""

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
    replica's end) and ``sums`` are the stored block sums, which the reader verifies.
    Otherwise the server verified the blocks it read and ``sums`` is one digest of
    exactly these bytes.
    """

    BODY_BYTES_MAX: ClassVar[int] = CHUNK_BYTES
    offset: int
    length: int
    whole: bool
    sums: bytes


class Multiplex(Message, tag=170):
    """The first message of a connection that carries small requests from then on, many at a
    time, each answered when it is done (:mod:`gfs.protocol.rpc`): ReadChunk and WriteSmall of
    at most ``SMALL_BYTES_MAX``, and VerifyChunk without ``blocks``, which releases before 0.2
    refuse here. It has no answer itself."""

    SINCE: ClassVar[int] = 2


class WriteSmall(Message, tag=171):
    """A whole unpublished chunk, in one message. ``sum`` is that of the body; ``chain`` are the
    servers after this one. Answered by Done when all replicas hold it. If it fails, the
    chunk is of no more use: the client writes another."""

    SINCE: ClassVar[int] = 2
    BODY_BYTES_MAX: ClassVar[int] = SMALL_BYTES_MAX
    handle: int
    version: int
    sum: bytes
    chain: list[ServerAddress]


class ReadReplicas(Message, tag=110):
    """Read small replicas of exactly these versions completely, to copy them; at most
    ``CLONES_MAX``. The reply has as many as fit; the others must be requested again."""

    replicas: list[ReplicaName]


class ReadReplicasReply(Message, tag=111):
    """The body is the bytes of the good ones, in the order of ``states``."""

    BODY_BYTES_MAX: ClassVar[int] = 1 * MIB
    states: list[ReplicaState]


class WriteChunk(Message, tag=84):
    """Opens a write exchange; Packets follow on the same connection.

    ``chain`` are the servers after this one, in order. ``mode``:

    * ``"upload"``: an unpublished chunk. Bytes past ``offset`` are dropped
      (an earlier, broken exchange wrote them without an acknowledgement),
      and writing continues there. The replica is created if it does not exist and ``offset`` is 0.
    * ``"mutate"``: a published chunk, under lease at the first server. Writes may begin
      at any offset; past the present length they leave a hole.
    """

    version: int
    handle: int
    offset: int
    mode: str
    chain: list[ServerAddress]
    primary: bool


class Packet(Message, tag=85):
    """The next bytes of the exchange, with block sums that the client computed.

    Blocks are counted from the first byte of the packet's ``offset`` rounded
    down: a packet that starts inside a block carries the sum of its bytes up
    to the block boundary first. ``id`` counts packets from 0. ``last`` ends
    the exchange: its acknowledgement means that every replica holds all of it,
    head included. Servers pass acknowledgements on up to three packets late: a
    sender must allow at least ``PACKETS_IN_FLIGHT_MIN`` before it waits for one,
    or ask with ``flush`` for all that are due up to this packet.

    ``hole``: the replica may end up to so many bytes before ``offset``, and is filled
    with zeros then. The primary sets it to the gap in its own replica; the replicas of
    the servers after it end at the same offset.
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
    """The server still works on the write or append that ``id`` began, and its disk
    makes progress. Sent until the answer is (:mod:`gfs.protocol.patience`)."""


class AppendRecords(Message, tag=87):
    """To the primary: append to a chunk under lease. The body is frames (see
    :mod:`gfs.protocol.records`), each of which is stored in one piece. A client may send the
    next request before this one is answered: that one ``follows``, and is refused if this one
    failed, so that no record takes the place of one before it. A server that speaks no version
    from ``FOLLOWS_SINCE`` on would not refuse it, so it is sent none."""

    FOLLOWS_SINCE: ClassVar[int] = 2
    BODY_BYTES_MAX: ClassVar[int] = FRAME_BYTES_MAX
    handle: int
    version: int
    inode: int
    chain: list[ServerAddress]  # the secondaries
    follows: bool = False


class AppendReply(Message, tag=88):
    """Every replica holds the first ``placed`` frames, one after another from
    ``offset`` of the chunk on. If others did not fit, the chunk is ``full``."""

    offset: int
    placed: int
    full: bool


AnyMessage = Union[  # noqa: UP007 - a list this long reads better so
    Hello, HelloProof, Failure, Done, Ping,
    Stat, StatReply, List, ListReply, ListFiles, ListFilesReply, Locate, LocateReply,
    DiskUsage, DiskUsageReply, Status, StatusReply,
    FsckPage, FsckPageReply, ListGarbage, ListGarbageReply,
    Reserve, ReserveReply, Recover, RecoverReply, Reclaim, Release, Publish, Join, PublishReply,
    MakeDirectory, Rename, Delete, Prune, AcquireLease, LeaseReply, SetLength, ReportReplica,
    Register, RegisterReply, ReportReplicas, Heartbeat, Orders,
    GrantLease, RevokeLease, CloneChunk, CopyChunk, DeleteReplicas,
    CloneChunks, CloneChunksReply, ReadReplicas, ReadReplicasReply,
    ListTrash, ListTrashReply, Undelete, EmptyTrash, EmptyTrashReply,
    SetReplication, SetAttributes, Snapshot, SnapshotReply,
    Drain, DrainReply, DiskOrder, DiskOrderReply,
    ForgetServer, Maintenance, Repair, RepairReply,
    Follow, FollowReply, ReadCopy, CopyPiece, LogRows, LogAck, Position, PositionReply,
    ReadLog, LogPage, AcceptRestore,
    Bind, Retire, Promote, PromoteReply, ForgetShadow, Election, ElectionReply,
    VerifyChunk, VerifyReply, LookFor, LookForReply, ReadChunk, ReadReply,
    Multiplex, WriteSmall, WriteChunk, Packet, PacketAck, AppendRecords, AppendReply, Working,
]  # fmt: skip

ALL_MESSAGES: tuple[type[Message], ...] = get_args(AnyMessage)

#: Messages that answer a request: they go to the caller that waits for their id.
REPLIES: tuple[type[Message], ...] = (
    Failure, Done, StatReply, ListReply, ListFilesReply, LocateReply, DiskUsageReply,
    StatusReply, FsckPageReply, ListGarbageReply, ReserveReply, RecoverReply, PublishReply,
    LeaseReply, RegisterReply, Orders, VerifyReply, ReadReply, PacketAck,
    CloneChunksReply, ReadReplicasReply, RepairReply,
    ListTrashReply, EmptyTrashReply, SnapshotReply, DrainReply, DiskOrderReply,
    FollowReply, CopyPiece, LogPage, LogAck, PositionReply, PromoteReply, ElectionReply,
    AppendReply, LookForReply, Working,
)  # fmt: skip
