"""Who this chunkserver is, kept on each of its disks, and what it must not forget.

``server.json`` holds the server's id, the cluster it belongs to, how often it
was started (its incarnation), and the highest operation-log sequence a master
ever told it: a master behind that sequence has a younger memory than this
server, and its deletion orders are refused (see ``Orders``).
"""

from __future__ import annotations

import logging

import msgspec

from gfs.errors import StartupError
from gfs.io import File, FileSystem, World

log = logging.getLogger(__name__)

NAME = "server.json"
LOCK = "lock"


class ServerRecord(msgspec.Struct):
    id: str
    cluster: str = ""
    incarnation: int = 0
    sequence: int = 0


class IdentityFile:
    """The record, the same on every disk. All methods block."""

    def __init__(self, files: FileSystem, directories: list[str]) -> None:
        self._files = files
        self._directories = directories
        self._locks: list[File] = []
        self.record = ServerRecord(id="")

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
        records = [r for r in map(self._read_one, self._directories) if r is not None]
        if len({record.id for record in records}) > 1:
            raise StartupError(
                "these directories belong to different chunkservers: "
                + ", ".join(self._directories)
            )
        if records:
            self.record = max(records, key=lambda r: (r.incarnation, r.sequence))
        else:
            self.record = ServerRecord(id=world.random_bytes(6).hex())
        return bool(records)

    def _read_one(self, directory: str) -> ServerRecord | None:
        path = f"{directory}/{NAME}"
        if not self._files.exists(path):
            return None
        file = self._files.open(path, "r")
        try:
            data = bytearray(min(file.size(), 64 * 1024))
            file.read_into(memoryview(data), 0)
            return msgspec.json.decode(data, type=ServerRecord)
        except msgspec.DecodeError as error:
            raise StartupError(
                f"{path}: damaged ({error}): restore it from the same server's other "
                "directory, or empty this directory to start as a new server"
            ) from None
        finally:
            file.close()

    def save(self) -> None:
        """The record is on every disk when this returns, synced."""
        data = msgspec.json.encode(self.record)
        for directory in self._directories:
            path = f"{directory}/{NAME}"
            try:
                file = self._files.open(path + ".new", "replace")
                try:
                    file.write(data, 0)
                    file.sync()
                finally:
                    file.close()
                self._files.rename(path + ".new", path)
                self._files.sync_directory(directory)
            except OSError as error:
                raise StartupError(f"{path}: cannot be written: {error.strerror}") from None

    def close(self) -> None:
        while self._locks:
            self._locks.pop().close()
