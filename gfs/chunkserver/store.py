"""The replicas of one chunkserver: which there are, on which disk, open or not.

The *inventory* (handle → disk, version, length) is in memory, read from the
heads of the chunk files at start: a chunkserver has the final word on which
chunks it holds (the paper, 2.6.2). Open files are kept in an LRU of bounded
size. A disk is one directory::

    DIR/server.json            this server's id, its cluster, what it has seen
    DIR/lock                   held while the server runs
    DIR/chunks/HH/HANDLE.chunk HH: the handle's lowest byte; all in hex
"""

from __future__ import annotations

import contextlib
import errno
import logging
import struct
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from typing import NamedTuple, TypeVar

import trio

from gfs.blocks import CHUNK_BYTES
from gfs.chunkserver.chunkfile import ChunkFile
from gfs.chunkserver.format import HEAD_BYTES, State, redo_path
from gfs.errors import CorruptReplica, DiskFailed, DiskFull, GfsError, NotFound, StaleVersion
from gfs.io import World
from gfs.protocol.deadline import Watch
from gfs.protocol.messages import BadReplica
from gfs.protocol.messages import Disk as DiskReport

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Open chunk files kept; each has up to 8 KiB of sums in memory besides.
OPEN_FILES_MAX = 512
#: A disk whose calls take longer than this says so in the heartbeat.
SLOW_SECONDS = 5.0

_RECORD = struct.Struct(">QII")


class Replica(NamedTuple):
    disk: int
    version: int
    length: int


class Disk:
    """One directory. Blocking calls on it share a bounded number of threads."""

    def __init__(self, index: int, path: str, threads: int) -> None:
        self.index = index
        self.path = path
        self.limiter = trio.CapacityLimiter(threads)
        self.chunks = 0
        self.total_bytes = 0
        self.free_bytes = 0
        #: Since free_bytes was read: chunks begun here, bytes written here.
        self.begun = 0
        self.written_bytes = 0
        self.failed = False
        self.busy_since: dict[int, float] = {}

    def chunk_path(self, handle: int) -> str:
        return f"{self.path}/chunks/{handle & 0xFF:02x}/{handle:016x}.chunk"

    def has_room(self, reserve_bytes: int) -> bool:
        """Whether new data may be written without touching the reserve."""
        return self.free_bytes - self.written_bytes >= reserve_bytes

    def state(self, now: float, reserve_bytes: int) -> str:
        if self.failed:
            return "failed"
        if self.busy_since and now - min(self.busy_since.values()) > SLOW_SECONDS:
            return "slow"
        return "ok" if self.has_room(reserve_bytes) else "full"


class OpenChunk:
    """An open replica, shared by everyone who uses it now.

    ``mutex`` is held by whoever mutates the file; ``watch`` is the present write
    exchange's, so that one with a higher version can end it.
    """

    def __init__(self, disk: Disk, file: ChunkFile) -> None:
        self.disk = disk
        self.file = file
        self.users = 0
        self.dropped = False
        self.mutex = trio.Lock()
        self.watch: Watch | None = None
        self.watch_version = 0

    def preempt(self, version: int | None = None) -> None:
        """End the write under way here, if it is of a lower version when one is given."""
        if self.watch is not None and (version is None or version > self.watch_version):
            watch, self.watch = self.watch, None
            watch.scope.cancel()


def map_disk_error(error: OSError, what: str) -> GfsError:
    """The error a client gets for a failure of a local disk."""
    if isinstance(error, GfsError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{what}: no space left on the chunkserver's disk")
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{what}: the chunk file is gone")
    return DiskFailed(f"{what}: {error.strerror or error}")


class ChunkStore:
    """All replicas of this server. One task at a time decides; threads only work."""

    def __init__(self, world: World, directories: list[str], threads: int, reserve: int) -> None:
        self.world = world
        self.reserve_bytes = reserve
        self.disks = [Disk(n, path, threads) for n, path in enumerate(directories)]
        self.inventory: dict[int, Replica] = {}
        #: Data of all replicas, without their heads.
        self.bytes = 0
        #: Replicas found unfit, by handle, until a clone or the master ends them.
        self.bad: dict[int, BadReplica] = {}
        self._open: OrderedDict[int, OpenChunk] = OrderedDict()
        self._opening: dict[int, trio.Event] = {}
        #: Of those being opened: what they open was replaced or deleted meanwhile.
        self._outdated: set[int] = set()
        self._calls = 0

    # --- blocking work ----------------------------------------------------------

    async def run(self, disk: Disk, function: Callable[..., T], *args: object) -> T:
        """Run a blocking call on ``disk`` under its limit, noting when it is slow."""
        self._calls += 1
        call = self._calls
        disk.busy_since[call] = self.world.clock.monotonic()
        try:
            return await self.world.run_blocking(function, *args, limiter=disk.limiter)
        finally:
            del disk.busy_since[call]

    # --- start --------------------------------------------------------------------

    def load(self) -> None:
        """Make the directories and read the inventory. Blocks; ``OSError`` if it can't."""
        files = self.world.files
        for disk in self.disks:
            files.make_directories(f"{disk.path}/chunks")
            files.sync_directory(disk.path)
            for name in sorted(files.list(f"{disk.path}/chunks")):
                self._load_folder(disk, f"{disk.path}/chunks/{name}")
            self.refresh_space(disk)

    def _load_folder(self, disk: Disk, folder: str) -> None:
        files = self.world.files
        for name in files.list(folder):
            path = f"{folder}/{name}"
            stem, _, kind = name.partition(".")
            if kind == "chunk.clone":
                files.unlink(path)  # a clone that a crash cut short
                continue
            try:
                handle = int(stem, 16)
            except ValueError:
                log.warning("%s is not a chunk file: left alone", path)
                continue
            if kind == "chunk":
                self._load_chunk(disk, handle, path)

    def _load_chunk(self, disk: Disk, handle: int, path: str) -> None:
        try:
            state = self._recover(path, handle)
            if state is None:
                self.world.files.unlink(path)  # never acknowledged to anybody
                return
        except (CorruptReplica, OSError) as error:
            log.error("%s: %s", path, error)
            self.bad[handle] = BadReplica(handle, 0, "corrupt")
            return
        known = self.inventory.get(handle)
        if known is not None and known.version >= state.version:
            return
        self._note(handle, Replica(disk.index, state.version, state.length))

    def _recover(self, path: str, handle: int) -> State | None:
        files = self.world.files
        if not files.exists(path + ".redo"):
            return ChunkFile.probe(files, path, handle)
        chunk = ChunkFile.open(files, path, handle)  # finishes the interrupted write
        chunk.close()
        return State(0, chunk.version, chunk.length, b"")

    def refresh_space(self, disk: Disk) -> None:
        try:
            disk.total_bytes, disk.free_bytes = self.world.files.space(disk.path)
            disk.begun = disk.written_bytes = 0
        except OSError as error:
            log.error("%s: %s", disk.path, error)
            disk.failed = True

    # --- inventory ------------------------------------------------------------------

    def _note(self, handle: int, replica: Replica) -> None:
        old = self.inventory.get(handle)
        if old is None:
            self.disks[replica.disk].chunks += 1
        elif old.disk != replica.disk:
            self.disks[old.disk].chunks -= 1
            self.disks[replica.disk].chunks += 1
        self.bytes += replica.length - (old.length if old is not None else 0)
        self.inventory[handle] = replica

    def note(self, chunk: OpenChunk) -> None:
        """The inventory says what the open file says."""
        if not chunk.dropped:
            file = chunk.file
            self._note(file.handle, Replica(chunk.disk.index, file.version, file.length))

    def forget(self, handle: int) -> None:
        replica = self.inventory.pop(handle, None)
        if replica is not None:
            self.disks[replica.disk].chunks -= 1
            self.bytes -= replica.length
        if handle in self._opening:
            self._outdated.add(handle)
        chunk = self._open.pop(handle, None)
        if chunk is not None:
            self._drop(chunk)

    def pack(self, handles: Iterable[int]) -> bytes:
        """Report records (see ReportReplicas) of those of ``handles`` held here."""
        found = ((h, self.inventory.get(h)) for h in handles)
        return b"".join(
            [_RECORD.pack(h, r.version, r.length) for h, r in found if r and h not in self.bad]
        )

    def reports(self) -> list[DiskReport]:
        now = self.world.clock.monotonic()
        return [
            DiskReport(
                path=disk.path,
                total_bytes=disk.total_bytes,
                free_bytes=max(0, disk.free_bytes - self.reserve_bytes),
                chunks=disk.chunks,
                state=disk.state(now, self.reserve_bytes),
            )
            for disk in self.disks
        ]

    def mark_bad(self, handle: int, kind: str) -> None:
        """This replica is unfit; the heartbeat tells the master until it is dealt with."""
        replica = self.inventory.get(handle)
        version = replica.version if replica else 0
        if handle not in self.bad:
            log.error("chunk %016x version %d is %s here", handle, version, kind)
        self.bad[handle] = BadReplica(handle, version, kind)

    def check_fit(self, handle: int) -> None:
        """Refuse to build on a replica that is known to be unfit: one whose file was
        deleted while it was open would take writes that no restart finds again."""
        bad = self.bad.get(handle)
        if bad is not None:
            raise CorruptReplica(f"chunk {handle:016x}: the replica here is {bad.kind}")

    # --- open chunks ------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def using(self, handle: int) -> AsyncIterator[OpenChunk]:
        """The open replica, pinned for as long as the block runs.

        Raises NotFound, CorruptReplica or DiskFailed.
        """
        chunk = await self.get(handle)
        chunk.users += 1
        try:
            yield chunk
        finally:
            chunk.users -= 1
            self.close_if_unused(chunk)

    def opened(self, handle: int) -> OpenChunk | None:
        """The replica if it is open now. Pin it before anything is awaited."""
        return self._open.get(handle)

    async def get(self, handle: int) -> OpenChunk:
        """As ``using``, but not pinned: pin it before anything is awaited."""
        while True:
            chunk = self._open.get(handle)
            if chunk is not None:
                self._open.move_to_end(handle)
                return chunk
            opening = self._opening.get(handle)
            if opening is not None:
                await opening.wait()
                continue
            chunk = await self._open_file(handle)
            if chunk is not None:
                return chunk

    async def _open_file(self, handle: int) -> OpenChunk | None:
        """None if the file was replaced or deleted while it was opened."""
        replica = self.inventory.get(handle)
        if replica is None:
            raise NotFound(f"chunk {handle:016x} is not on this chunkserver")
        disk = self.disks[replica.disk]
        done = self._opening[handle] = trio.Event()
        try:
            with trio.CancelScope(shield=True):  # a file opened is a file noted
                file = await self.run(
                    disk, ChunkFile.open, self.world.files, disk.chunk_path(handle), handle
                )
        except CorruptReplica:
            self.mark_bad(handle, "corrupt")
            raise
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                self.mark_bad(handle, "missing")
            raise map_disk_error(error, f"chunk {handle:016x}") from error
        finally:
            del self._opening[handle]
            done.set()
            outdated = handle in self._outdated
            self._outdated.discard(handle)
        if outdated:
            file.close()
            return None
        return self._keep(OpenChunk(disk, file))

    def _keep(self, chunk: OpenChunk) -> OpenChunk:
        self._open[chunk.file.handle] = chunk
        if len(self._open) > OPEN_FILES_MAX:
            for handle, other in self._open.items():
                if not other.users and other is not chunk:
                    del self._open[handle]
                    self._drop(other)
                    break
        return chunk

    def _drop(self, chunk: OpenChunk) -> None:
        chunk.dropped = True
        self.close_if_unused(chunk)

    def close_if_unused(self, chunk: OpenChunk) -> None:
        if chunk.dropped and not chunk.users:
            chunk.file.close()

    # --- making, replacing, deleting ------------------------------------------------

    def pick_disk(self, need_bytes: int = CHUNK_BYTES) -> Disk:
        """The disk for a new replica: the one with most free space.

        Raises DiskFull when the reserve would be touched everywhere.
        """
        fit = [d for d in self.disks if not d.failed and d.has_room(self.reserve_bytes)]
        if not fit:
            raise DiskFull("no disk of this chunkserver has space above its reserve")
        disk = max(fit, key=lambda d: (d.free_bytes - d.begun * need_bytes, -d.chunks))
        disk.begun += 1
        return disk

    async def create(self, handle: int, version: int) -> OpenChunk:
        """A new, empty replica, open; one that is there already is returned as it is.

        Nothing is on the disk, or in the inventory, before something is written.
        """
        if handle in self._open or handle in self.inventory or handle in self._opening:
            return await self.get(handle)
        disk = self.pick_disk()
        path = disk.chunk_path(handle)
        file = ChunkFile.create(self.world.files, path, handle, version)
        return self._keep(OpenChunk(disk, file))

    async def install(self, handle: int, disk: Disk, temporary: str, state: State) -> None:
        """Put a whole, closed chunk file in the place of whatever is there."""
        old = self.inventory.get(handle)
        path = disk.chunk_path(handle)
        with trio.CancelScope(shield=True):
            await self.run(disk, self._rename, temporary, path)
            self.forget(handle)
            if old is not None and old.disk != disk.index:
                other = self.disks[old.disk]
                with contextlib.suppress(OSError):
                    await self.run(other, self._unlink, other.chunk_path(handle))
        self.bad.pop(handle, None)
        self._note(handle, Replica(disk.index, state.version, state.length))

    def _unlink(self, path: str) -> None:
        self._unlink_redo(path)
        self.world.files.unlink(path)

    def _unlink_redo(self, path: str) -> None:
        """What an overwrite left that failed must not be applied to another file."""
        with contextlib.suppress(FileNotFoundError):
            self.world.files.unlink(redo_path(path))

    def _rename(self, temporary: str, path: str) -> None:
        self._unlink_redo(path)
        self.world.files.rename(temporary, path)
        self.world.files.sync_directory(path.rpartition("/")[0])

    async def delete(self, handle: int, version: int) -> None:
        """Delete the replica if it is of exactly this version (a damaged one that
        could not be read at start counts as version 0).

        Raises StaleVersion when it is another by now: a late order.
        """
        replica = self.inventory.get(handle)
        bad = self.bad.get(handle)
        if replica is None:
            if bad is not None and bad.version == version:
                for disk in self.disks:
                    with contextlib.suppress(FileNotFoundError):
                        await self.run(disk, self._unlink, disk.chunk_path(handle))
                self.bad.pop(handle, None)
            return
        if replica.version != version:
            raise StaleVersion(
                f"chunk {handle:016x} has version {replica.version} here, not {version}"
            )
        disk = self.disks[replica.disk]
        self.forget(handle)
        self.bad.pop(handle, None)
        with trio.CancelScope(shield=True):
            try:
                await self.run(disk, self._unlink, disk.chunk_path(handle))
            except FileNotFoundError:
                pass
            except OSError as error:
                raise map_disk_error(error, f"chunk {handle:016x}") from error

    def looks_right(self, disk: Disk, handles: list[int]) -> list[tuple[int, str]]:
        """Blocks. Which of these replicas' files are gone or too short, by a stat."""
        found = []
        for handle in handles:
            replica = self.inventory.get(handle)
            if replica is None or replica.disk != disk.index:
                continue
            try:
                size = self.world.files.file_size(disk.chunk_path(handle))
            except FileNotFoundError:
                found.append((handle, "missing"))
            except OSError:
                found.append((handle, "corrupt"))
            else:
                if replica.length and size < HEAD_BYTES + replica.length:
                    found.append((handle, "corrupt"))
        return found
