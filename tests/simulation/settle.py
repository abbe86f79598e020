"""After the faults: the cluster comes to rest, and all that was promised is true.

*At rest*, within a bound of simulated time: every chunk has exactly as many good
replicas as its goal, each on its own server, no other chunk file is on any disk,
and the master counts nothing endangered, lost or on its way out. Then everything
is read, by a new client and straight from the disks of every replica; the tree is
compared with the history of calls; and the master's rows are checked.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Collection
from contextlib import aclosing
from dataclasses import dataclass
from random import Random

import trio

from gfs.blocks import CHUNK_BYTES
from gfs.chunkserver.files import read_state
from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.chunkserver.files.journal import NAMES as JOURNAL_NAMES
from gfs.chunkserver.packs import DATA_NAME
from gfs.client import Client, Entry
from gfs.errors import (
    CorruptReplica,
    DeadlineExceeded,
    DiskFailed,
    GfsError,
    NotFound,
    StartupError,
)
from gfs.master.metadata.rows import Chunk
from gfs.master.tables.salvage_queue import HOPELESS_SECONDS
from gfs.protocol.messages import ClusterTotals, StatusReply
from gfs.testing import SimCluster
from gfs.testing.files import SimFileSystem
from gfs.testing.life import Onlooker

from .faults import Faults
from .files_model import FileModel
from .linear import Event, Undecided, explain, find_order
from .log_model import records_in
from .losses import Losses, bad_blocks, handle_of, journal_of, records_of
from .metadata import Metadata, is_past, problems, read_metadata
from .names_model import OK, Everything, Sight, split
from .packs import bytes_of, packed_on
from .plan import DAMAGING, Plan
from .record import Record, Violation
from .truth import CURRENT_SECONDS, Truth

LOOK_SECONDS = 2.0
#: On top of what the settings ask for: detection, a few rounds of copies, backoff.
REST_SECONDS = 180.0
#: Longer than a server may be dead or a file gone before it is noticed, and told.
TOLD_SECONDS = 15.0
#: A disk that works is used again after fewer tries.
TRIES_MAX = 30
#: So many looks in a row must find nothing, the last one a check of every block.
LOOKS = 2
VERSION_MAX = 2**32 - 1


@dataclass
class Replica:
    server: str
    path: str
    version: int
    length: int
    good: bool


def is_current(replica: Replica, chunk: Chunk) -> bool:
    return replica.good and replica.version >= chunk.version and replica.length >= chunk.length


def is_on(disks: Collection[tuple[str, str]], name: str, path: str) -> bool:
    """Whether a file of a server is on one of these."""
    return any(name == server and path.startswith(f"{disk}/") for server, disk in disks)


def disks_down(status: StatusReply) -> set[tuple[str, str]]:
    """Those that their servers have given up."""
    return {
        (server.address.partition(":")[0], disk.path)
        for server in status.servers
        for disk in server.disks
        if disk.state in ("failed", "missing")
    }


def replicas_on_disks(
    cluster: SimCluster, losses: Losses, without: Collection[tuple[str, str]] = ()
) -> dict[int, list[Replica]]:
    """What is on the disks, read without the chunkservers; blocks verified."""
    found: dict[int, list[Replica]] = {}
    for name in cluster.chunkservers:
        for path in cluster.chunk_files(name):
            if is_on(without, name, path):
                continue
            handle = handle_of(path)
            found.setdefault(handle, []).append(_look(cluster, losses, name, path, handle))
        for directory in cluster.disks:
            if (name, directory) in without:
                continue
            damaged = losses.damaged_packs(name, directory)
            for packed in packed_on(cluster, name, directory):
                handle, version, _, length, *_ = packed.record
                if handle not in damaged:
                    replica = Replica(name, packed.path, version, length, packed.is_whole)
                    found.setdefault(handle, []).append(replica)
            for handle in damaged:
                path = f"{directory}/{DATA_NAME}/{handle:016x}"
                replica = Replica(name, path, VERSION_MAX, CHUNK_BYTES, good=True)  # as below
                found.setdefault(handle, []).append(replica)
    return found


def _look(cluster: SimCluster, losses: Losses, name: str, path: str, handle: int) -> Replica:
    disk = cluster.machine(name).disk
    if disk.inode(path).damaged or losses.is_torn(name, path):
        # Whoever is to repair it must find it first: see come_to_rest. What a power cut
        # made older or shorter is known as soon as its server is back.
        return Replica(name, path, VERSION_MAX, CHUNK_BYTES, good=True)
    files = SimFileSystem(disk, Onlooker())
    try:
        state = read_state(files, path, handle, records_of(disk, path))
    except (GfsError, OSError):
        state = None
    if state is None:
        return Replica(name, path, 0, 0, good=False)
    return Replica(name, path, state.version, state.length, good=True)


def stored_bytes(cluster: SimCluster, replica: Replica, handle: int, length: int) -> bytes:
    """The first ``length`` bytes of a replica, all if it is negative; every block
    verified.

    Raises GfsError or OSError as the chunkserver would.
    """
    pack, _, name = replica.path.rpartition("/")
    if pack.endswith(f"/{DATA_NAME}"):
        for packed in packed_on(cluster, replica.server, pack.rpartition("/")[0]):
            if packed.record.handle == handle and packed.is_whole:
                data = bytes_of(cluster, packed)
                return data if length < 0 else data[:length]
        raise CorruptReplica(f"{name} is damaged")
    disk = cluster.machine(replica.server).disk
    files, records = SimFileSystem(disk, Onlooker()), records_of(disk, replica.path)
    chunk = ChunkFile.open(files, replica.path, handle, journal_of(files, replica.path), records)
    try:
        length = chunk.length if length < 0 else length
        return chunk.read_verified(0, length) if length else b""
    finally:
        chunk.close()


class Settling:
    def __init__(self, cluster: SimCluster, plan: Plan, record: Record, faults: Faults) -> None:
        self.cluster = cluster
        self.plan = plan
        self.record = record
        self.faults = faults
        self.losses = faults.losses
        self.chance = Random(f"{plan.seed}/settling")
        #: (Server, directory) of the disks that their servers have given up.
        self.down: set[tuple[str, str]] = set()
        #: Chunks below their goal while status says that there are none: since when.
        self._untold: dict[int, float] = {}

    async def look(self, fs: Client) -> None:
        """Read everything while it is still as the faults left it: what damage nobody
        has noticed yet must not be shown to anybody."""
        since = trio.current_time()
        try:
            entries = [entry async for entry in fs.walk("/") if entry.kind == "file"]
        except GfsError as error:
            self.record.tell(f"nothing can be read yet: {error}")
            return
        for entry in entries:
            model = self.record.model(entry)
            try:
                data = await fs.get(entry.path)
            except GfsError as error:
                self.record.tell(f"{entry.path} cannot be read yet: {error}")
                continue
            if model is not None:
                self.record.check_read(model, 0, data, since)

    async def come_to_rest(self, fs: Client) -> None:
        """Until no replica anywhere is unfit: damage that nobody met is found by
        having every replica read itself, and repaired like all other. First with the
        disks that are left; then those that servers have given up are put right."""
        for _ in range(TRIES_MAX):
            await self._settle(fs)
            await self._check_status(fs)
            if not await self._put_disks_right(fs):
                return
        raise Violation(f"tried {TRIES_MAX} times, and still failed: {sorted(self.down)}")

    async def _settle(self, fs: Client) -> None:
        settings = self.plan.master
        bound = REST_SECONDS + settings.lease_seconds + 4 * settings.dead_seconds
        bound += settings.garbage_grace_seconds + settings.client_silence_seconds
        if any(kind.startswith("disk") for kind in self.plan.faults):
            # What was read in vain is read again after that.
            bound += HOPELESS_SECONDS
        until = trio.current_time() + bound
        calm = 0
        while calm < LOOKS:
            await trio.sleep(LOOK_SECONDS)
            unrest = await self._unrest(fs)
            calm = 0 if unrest else calm + 1
            if calm == LOOKS:
                unrest = await self._unfit(fs)
                if not unrest and await self._make_journals_anew():
                    # Which doubts whatever is on their disks: all of it again.
                    unrest, until = ["redo journals were damaged"], trio.current_time() + bound
                calm = 0 if unrest else calm
            if unrest:
                self.losses.count()
                await self._keep_what_is_needed(fs)
            if unrest and trio.current_time() > until:
                raise Violation(f"not at rest after {bound:.0f} s: " + "; ".join(unrest[:8]))

    async def _check_status(self, fs: Client) -> None:
        """What it says is so, as soon as all have told and been told of what is."""
        until = trio.current_time() + CURRENT_SECONDS
        # The chunks that a dead client had reserved count as orphaned after its silence, for
        # the grace, written or not.
        until += self.plan.master.client_silence_seconds + self.plan.master.garbage_grace_seconds
        # What the master before this one may have leased is copied when that is over.
        until += self.plan.master.lease_seconds + self.plan.master.lease_margin_seconds
        while True:
            status, metadata = await fs.status(), read_metadata(self.cluster.directory)
            found = self._truth(status, metadata).differences(metadata, status)
            if not found:
                return
            # Files that nobody refers to are closed, which a run leaves undone.
            gc.collect()
            if trio.current_time() > until:
                raise Violation("at rest, and by what status says " + "; ".join(found[:8]))
            await trio.sleep(LOOK_SECONDS)

    def _truth(self, status: StatusReply, metadata: Metadata) -> Truth:
        self.down = self.faults.failed & disks_down(status)
        draining, settings = self.record.draining, self.plan.chunkserver
        away = self._away(metadata)
        there = replicas_on_disks(self.cluster, self.losses, self.down) if away else {}
        left = {handle: there.get(handle, []) for handle in away}
        # The unreadable replicas of chunks that wait for a disk are kept meanwhile, and whether
        # their servers count them depends on when they noticed.
        remains = {
            (replica.server, replica.path)
            for replicas in left.values()
            for replica in replicas
            if not replica.good or replica.version == VERSION_MAX
        }
        gone = {
            handle
            for handle, replicas in left.items()
            if not any(is_current(replica, metadata.chunks[handle]) for replica in replicas)
        }
        return Truth(self.cluster, settings, self.losses, self.down, draining, remains, away, gone)

    async def _keep_what_is_needed(self, fs: Client) -> None:
        """Do not empty servers, or disks, without which no file can be at its goal: a goal
        may be raised when they are empty already, the other disks of a server may fail, and
        only an operator can tell what to do."""
        metadata = read_metadata(self.cluster.directory)
        drained = [server.address for server in metadata.servers if server.draining]
        goal = max((chunk.replication for chunk in metadata.chunks.values()), default=0)
        kept, emptied = 0, []
        for name in self.cluster.chunkservers:
            address = self.cluster.address(name)
            disks = [path for path in self.cluster.disks if (name, path) not in self.down]
            takes = self._taking_disks(name)
            kept += bool(takes) and address not in drained
            emptied += [(address, path) for path in disks if not takes]
        if kept >= goal:
            return
        if drained:
            await fs.drain(drained[0], cancel=True)
        elif emptied:
            try:
                await fs.order_disk(*emptied[0], "undrain")
            except (DiskFailed, StartupError) as error:
                self.record.tell(f"not yet: {error}")  # it has just been given up
                return
            self.record.draining.discard(emptied[0])

    async def _put_disks_right(self, fs: Client) -> bool:
        """Whether there were disks that servers have given up: they are tried again, or the
        server is started again."""
        # What a disk refused to write back may go as soon as its server reads it again.
        self.losses.count()
        for name, path in sorted(self.down):
            self.losses.server_is_gone(name)
            if self.chance.random() < 0.5:
                self.record.tell(f"{path} of {name} is tried again")
                try:
                    await fs.order_disk(self.cluster.address(name), path, "retry")
                except (DeadlineExceeded, DiskFailed) as error:
                    # Calls that hang; or the first who asks is told of an old failure.
                    self.record.tell(f"not yet: {error}")
            else:
                self.record.tell(f"{name} starts again, that has given {path} up")
                await self.cluster.restart(name)
        return bool(self.down)

    async def _make_journals_anew(self) -> bool:
        """Whether there were redo journals with holes. Once nothing is written, nothing is
        in them any more; then a start does not lose anything, but cannot know that."""
        torn = self.losses.torn()
        for name, directory in torn:
            disk = self.cluster.machine(name).disk
            paths = [f"{directory}/{each}" for each in JOURNAL_NAMES]
            before: list[bytes] = []
            while before != (now := [disk.read(path) for path in paths]):
                before = now
                await trio.sleep(self.plan.chunkserver.mark_seconds + LOOK_SECONDS)
            self.losses.is_emptied(name, directory)
        for name in sorted({name for name, _ in torn}):
            self.record.tell(f"{name} starts again: its redo journal is damaged")
            await self.cluster.restart(name)
        return bool(torn)

    async def _unfit(self, fs: Client) -> list[str]:
        metadata = read_metadata(self.cluster.directory)
        excused = self.losses.handles | self._away(metadata)
        problems = [p for p in (await fs.fsck()).problems if p.handle not in excused]
        if problems:
            self.record.tell(f"fsck finds {len(problems)} problems")
        return [f"fsck finds {problem}" for problem in problems]

    async def _unrest(self, fs: Client) -> list[str]:
        status = await fs.status()
        self.down = self.faults.failed & disks_down(status)
        metadata = read_metadata(self.cluster.directory)
        found, short = self._replica_problems(metadata)
        totals = status.totals
        self._check_told(short, totals)
        if found:
            return found
        counts = {
            "under-replicated": totals.under_replicated,
            "corrupt": totals.corrupt,
            "lost": totals.lost,
            "orphaned": totals.orphaned,
            "stale": totals.stale,
            "being copied": totals.repairs_active,
            "being moved": totals.moves_active,
        }
        excused = len(self.losses.handles | self._away(metadata)) * self.plan.chunkservers
        return [f"{n} {what}" for what, n in counts.items() if n > excused]

    def _away(self, metadata: Metadata) -> set[int]:
        """Chunks whose only current replicas are on disks that were given up. What is stale
        elsewhere is kept meanwhile, and repairs nothing."""
        if not self.down:
            return set()
        away: set[int] = set()
        for handle, replicas in replicas_on_disks(self.cluster, self.losses).items():
            chunk = metadata.chunks.get(handle)
            current = [r for r in replicas if chunk is not None and is_current(r, chunk)]
            used = [r for r in current if not is_on(self.down, r.server, r.path)]
            if len(used) < len(current) and not any(map(self._is_whole, used)):
                away.add(handle)
        return away

    def _is_whole(self, replica: Replica) -> bool:
        """Nobody can tell of a damaged one, or of one of which a power cut has left a part,
        whether it is enough to repair the chunk."""
        is_packed = replica.path.rpartition("/")[0].endswith(f"/{DATA_NAME}")
        if is_packed or replica.version == VERSION_MAX:
            return replica.version < VERSION_MAX
        try:
            return not bad_blocks(self.cluster.machine(replica.server).disk, replica.path)
        except GfsError:
            return False

    def _check_told(self, short: set[int], totals: ClusterTotals) -> None:
        """Status must not say for long that all chunks are at their goal if some are not."""
        now = trio.current_time()
        if totals.under_replicated or totals.lost:
            short = set()
        self._untold = {handle: self._untold.get(handle, now) for handle in sorted(short)}
        settings = self.plan.master
        bound = TOLD_SECONDS + settings.dead_seconds + self.plan.chunkserver.scan_seconds
        late = [f"{handle:x}" for handle, since in self._untold.items() if now > since + bound]
        if late:
            raise Violation(
                f"for {bound:g} s status says that no chunk is below its goal, though there are "
                f"{', '.join(late[:8])}"
            )

    def _replica_problems(self, metadata: Metadata) -> tuple[list[str], set[int]]:
        """What is not as it should be, and which chunks have too few replicas."""
        found: list[str] = []
        short: set[int] = set()
        there = replicas_on_disks(self.cluster, self.losses, self.down)
        usable = {
            name for name in self.cluster.chunkservers
            if any((name, path) not in self.down for path in self.cluster.disks)
        }  # fmt: skip
        excused = self.losses.handles | self._away(metadata)
        kept = metadata.kept()
        drained = {server.address for server in metadata.servers if server.draining}
        wanted = {handle for (inode, _), handle in metadata.file_chunks.items() if inode in kept}
        for handle, chunk in metadata.chunks.items():
            if handle in excused or handle not in wanted:
                continue
            good = [r for r in there.get(handle, []) if is_current(r, chunk)]
            goal = min(chunk.replication, len(usable))
            if len({r.server for r in good}) < goal:
                short.add(handle)
            if len({r.server for r in good}) != goal or len(there.get(handle, [])) != goal:
                have = ", ".join(f"{r.server} v{r.version}" for r in there.get(handle, []))
                found.append(f"chunk {handle:x} v{chunk.version} has {have or 'nothing'}")
            else:
                holders = {r.server for r in good}
                staying = [
                    name
                    for name in sorted(usable)
                    if self.cluster.address(name) not in drained
                    and (name in holders or self._taking_disks(name))
                ]
                found += self._misplaced(handle, goal, holders, staying)
        for handle, replicas in there.items():
            if handle not in metadata.chunks:
                found += [f"{r.path} on {r.server} is of no file" for r in replicas]
        for name in self.cluster.chunkservers:
            paths = self.cluster.machine(name).disk.paths()
            left = [
                p for p in paths
                if "/chunks/" in p and not p.endswith(".chunk") and not is_on(self.down, name, p)
            ]  # fmt: skip
            found += [f"{path} on {name} is left over" for path in left]
        return found, short

    def _taking_disks(self, name: str) -> list[str]:
        """Those of a server's disks that take new replicas."""
        address = self.cluster.address(name)
        return [
            path
            for path in self.cluster.disks
            if (name, path) not in self.down and (address, path) not in self.record.draining
        ]

    def _misplaced(
        self, handle: int, goal: int, holders: set[str], staying: list[str]
    ) -> list[str]:
        """Replicas on servers that are to be emptied though others could have them, or
        in a rack that has two more than another."""
        cluster = self.cluster
        if len(staying) < goal:
            return []
        names = ", ".join(sorted(holders))
        if holders - set(staying):
            return [f"chunk {handle:x} is on {names}, and should be on {', '.join(staying)}"]
        racks = Counter(cluster.racks[name] for name in holders)
        others = [racks[cluster.racks[name]] for name in staying if name not in holders]
        if others and max(racks.values()) - min(others) > 1:
            return [f"chunk {handle:x} is on {names}, which could be in more racks"]
        return []

    async def check(self, fs: Client) -> None:
        await self._check_names(fs)
        if await self._bring_back(fs):
            # Damage of what was in the trash is found now, as of all that has a name.
            await self.look(fs)
            await self.come_to_rest(fs)
        await self._check_files(fs)
        metadata = read_metadata(self.cluster.directory)
        self._check_replicas(metadata)
        found = problems(metadata)
        if found:
            raise Violation("the master's rows: " + "; ".join(found[:8]))
        if metadata.state.corruptions and not DAMAGING & self.plan.faults.keys():
            raise Violation("corrupt replicas were found, and no disk did any harm")

    async def _check_names(self, fs: Client) -> None:
        since = trio.current_time()
        event = Event("the end", Everything(self.record.next_number()), since)
        nodes: dict[tuple[str, ...], Sight] = {}
        async for entry in fs.walk("/"):
            nodes[split(entry.path)] = self.record.sight(entry, since)
        event.ended, event.outcome, event.seen = trio.current_time(), OK, nodes
        history = [*self.record.history, event]
        try:
            order = find_order(history)
        except Undecided as undecided:
            self.record.failures["undecided"] += 1
            self.record.tell(f"undecided: {undecided}")
            return
        if order is None:
            raise Violation(explain(history))

    async def _bring_back(self, fs: Client) -> bool:
        """All that is in the trash, to be looked at as if it had never been there; whether
        there was anything."""
        entries = [entry async for entry in fs.trash()]
        for entry in entries:
            target = f"/undeleted/{entry.inode}"
            try:
                await fs.undelete(entry.path, target=target, inode=entry.inode)
            except NotFound:
                if not is_past(self.cluster, entry.until_ns):
                    raise Violation(f"{entry} is in the trash, and cannot be undeleted") from None
        return bool(entries)

    async def _check_files(self, fs: Client) -> None:
        entries = [entry async for entry in fs.walk("/") if entry.kind == "file"]
        for entry in entries:
            model = self.record.model(entry)
            since = trio.current_time()
            try:
                data = await fs.get(entry.path)
            except GfsError as error:
                if self.losses.may_be_lost(entry.inode):
                    continue
                raise Violation(f"{entry.path} cannot be read: {error}") from error
            if model is not None:
                self.record.check_read(model, 0, data, since)
                self._check_goal(entry, model)
                if model.log is not None:
                    await self._check_log(fs, entry.path, model)
            elif not self.record.candidates(data, since):
                raise Violation(f"{entry.path}: {len(data)} bytes that no file had then")

    async def _check_log(self, fs: Client, path: str, model: FileModel) -> None:
        """Each record that was acknowledged is given once, and no other more often, however
        often they were sent and are stored."""
        since = trio.current_time()
        async with aclosing(fs.records(path)) as every:
            found = [record async for record in every]
        self.record.check_records(model, found, since, 0, once=True)

    def _check_goal(self, entry: Entry, model: FileModel) -> None:
        if model.number < 0:
            return  # a copy: nobody knows what the goal was when it was made
        usual = self.plan.master.replication
        goals = {goal or usual for goal in self.record.goals_of(model)}
        if (entry.replication or usual) not in goals:
            raise Violation(f"{entry}: its goal must be one of {sorted(goals)}")

    def _check_replicas(self, metadata: Metadata) -> None:
        """Every replica by itself, not only those that a reader happens to meet."""
        self.losses.count()
        there = replicas_on_disks(self.cluster, self.losses)
        live = metadata.live()
        for (inode, index), handle in metadata.file_chunks.items():
            if inode not in live:
                continue  # nobody looks after what is on its way out
            model = self.record.of_inode(inode)
            chunk = metadata.chunks.get(handle)
            if model is None or chunk is None or handle in self.losses.handles:
                continue
            for replica in there.get(handle, []):
                self._check_replica(model, index, handle, chunk.length, replica)

    def _check_replica(
        self, model: FileModel, index: int, handle: int, length: int, replica: Replica
    ) -> None:
        # Of a log, the master may not know all that is there.
        wanted = length if model.log is None else -1
        if not wanted:
            return
        try:
            data = stored_bytes(self.cluster, replica, handle, wanted)
        except (GfsError, OSError) as error:
            raise Violation(f"{replica.path} on {replica.server}: {error}") from error
        now, start = trio.current_time(), index * CHUNK_BYTES
        try:
            if model.log is not None:
                found, end = records_in(data, start), start + CHUNK_BYTES
                self.record.check_records(model, found, now, start, end)
            else:
                self.record.check_read(model, start, data, now)
        except Violation as violation:
            raise Violation(f"{replica.path} on {replica.server}: {violation}") from None
