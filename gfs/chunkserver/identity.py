"""Who this chunkserver is, kept on each of its disks, and what it must not forget.

``server.json`` holds the server's id, the cluster it belongs to, how often it
was started (its incarnation), the highest term of a master it registered with,
and the highest operation-log sequence that a master of that term told it: a
master behind that sequence has a younger memory than this server, and its
deletion orders are refused (see ``Orders``); one of a lower term is none any more.
Also where the master's shadows are: one of them may be the next master; and how far
the scrubber has come.

It is there twice, since nothing else can tell who this server is: a copy that is damaged,
or cannot be read, is made anew from the other one.
"""

from __future__ import annotations

import logging

import msgspec

from gfs.blocks import block_sum
from gfs.errors import StartupError
from gfs.io import File, FileSystem, World

log = logging.getLogger(__name__)

NAME = "server.json"
NAMES = (NAME, f"{NAME}.copy")
LOCK = "lock"


class ServerRecord(msgspec.Struct):
    id: str
    cluster: str = ""
    incarnation: int = 0
    sequence: int = 0
    term: int = 0
    masters: list[str] = []
    #: The scrubber's present pass has read all replicas up to this handle, and began
    #: then; the last whole pass ended then. Wall clock.
    scrubbed: int = 0
    scrub_began_ns: int = 0
    scrub_ended_ns: int = 0


#: The last field of the file: the checksum of everything before it.
_SUM = b',"sum":"%s"}'
_SUM_BYTES = len(_SUM % bytes(16))


def encode_server(record: ServerRecord) -> bytes:
    fields = msgspec.json.encode(record)[:-1]
    return fields + _SUM % block_sum(fields).hex().encode()


def decode_server(data: bytes) -> ServerRecord:
    """Raises ``ValueError`` if it is not what :meth:`encode_server` made."""
    fields = data[:-_SUM_BYTES]
    if data[len(fields) :] != _SUM % block_sum(fields).hex().encode():
        raise ValueError("it fails its checksum")
    return msgspec.json.decode(fields + b"}", type=ServerRecord)


class IdentityFile:
    """The record, the same on every disk. All methods block."""

    def __init__(self, files: FileSystem, directories: list[str]) -> None:
        self._files = files
        self._directories = directories
        self._locks: list[File] = []
        self.record = ServerRecord(id="")
        #: Cluster and term of the last record that some disk took.
        self._saved = ("", 0)

    @property
    def remembers(self) -> bool:
        """Whether the next start knows of the present cluster and term: it reads all
        disks, and ends if it cannot, so one that has them is enough."""
        return self._saved == (self.record.cluster, self.record.term)

    def open(self, world: World) -> None:
        """Lock the disks, read or make the record. Raises StartupError."""
        if not self._directories or len(set(self._directories)) != len(self._directories):
            raise StartupError("a chunkserver needs one or more different directories (--dir)")
        try:
            for directory in self._directories:
                self._lock(directory)
            known = self._read(world)
            # From the clock, so that it grows even if it cannot be saved; but
            # never back, whatever the clock does.
            now = world.clock.time_ns() // 1_000_000
            self.record.incarnation = max(self.record.incarnation + 1, now)
            try:
                self.save()
            except StartupError:
                if not known:
                    raise
                # A disk that was full before must not stay so because of this.
                log.exception("the server starts all the same")
        except BaseException:
            self.close()
            raise

    def _lock(self, directory: str) -> None:
        try:
            self._files.make_directories(directory)
            self._files.sync_directory(directory.rstrip("/").rpartition("/")[0] or "/")
            self._locks.append(self._files.lock(f"{directory}/{LOCK}"))
        except BlockingIOError:
            raise StartupError(
                f"{directory}: another chunkserver uses this directory: stop it, or name another"
            ) from None
        except OSError as error:
            raise StartupError(
                f"{directory}: cannot be written: {error.strerror or error}"
            ) from None

    def _read(self, world: World) -> bool:
        """Whether there was a record; a new one is made otherwise."""
        records = [record for each in self._directories for record in self._read_copies(each)]
        if len({record.id for record in records}) > 1:
            raise StartupError(
                "these directories belong to different chunkservers: "
                + ", ".join(self._directories)
            )
        if records:
            self.record = max(records, key=lambda r: (r.incarnation, r.term, r.sequence))
            self._saved = (self.record.cluster, self.record.term)
        else:
            self.record = ServerRecord(id=world.random_bytes(6).hex())
        return bool(records)

    def _read_copies(self, directory: str) -> list[ServerRecord]:
        """The good ones. Raises StartupError if there are some, and none is good."""
        found: list[ServerRecord] = []
        wrong: list[str] = []
        is_damaged = False
        for name in NAMES:
            path = f"{directory}/{name}"
            try:
                found += self._read_one(path)
            except OSError as error:
                wrong.append(f"{path}: cannot be read: {error.strerror}")
            except ValueError as error:
                wrong.append(f"{path}: damaged ({error})")
                is_damaged = True
        if wrong and not found:
            what = "; ".join(wrong)
            if is_damaged:
                what += (
                    ": restore it from the same server's other directory, or empty this "
                    "directory to start as a new server"
                )
            raise StartupError(what)
        for each in wrong:
            log.error("%s: the other copy is used", each)
        return found

    def _read_one(self, path: str) -> list[ServerRecord]:
        if not self._files.exists(path):
            return []
        file = self._files.open(path, "r")
        try:
            data = bytearray(min(file.size(), 64 * 1024))
            file.read_into(memoryview(data), 0)
            return [decode_server(bytes(data))]
        finally:
            file.close()

    def save(self) -> None:
        """The record is on every disk when this returns, synced. Raises StartupError if
        some disk does not take it; the others have it all the same."""
        record = msgspec.structs.replace(self.record)  # as it is now: this blocks
        data = encode_server(record)
        refused: list[str] = []
        for directory in self._directories:
            try:
                for name in NAMES:
                    self._save_one(f"{directory}/{name}", data)
                self._files.sync_directory(directory)
                self._saved = (record.cluster, record.term)
            except OSError as error:
                refused.append(f"{directory}/{NAME}: cannot be written: {error.strerror}")
        if refused:
            raise StartupError("; ".join(refused))

    def _save_one(self, path: str, data: bytes) -> None:
        file = self._files.open(path + ".new", "replace")
        try:
            file.write(data, 0)
            file.sync()
        finally:
            file.close()
        self._files.rename(path + ".new", path)

    def close(self) -> None:
        while self._locks:
            self._locks.pop().close()
