"""A disk for each container: a file of its ``storage_gb``, with a file system on it.

Podman can hold containers to a size on XFS with project quotas alone. So the root file
system and all volumes of a container are on a loop device of its own, wherever
the file is: what it writes, and however many files, no other can miss. The file's
blocks are allocated when it is made, so what was granted is there, and a machine that
has not got it says so before there is a container.

``disks/<id>.<number>.ext4`` is the file, ``disks/<id>`` where it is mounted::

    run/diff, run/work   what its run has written; made anew for each
    keys/                authorized_keys, which the container can only read, and the file that
                         becomes the next one
    etc/                 files of a container's network, for which Podman has some of this
                         machine's, where a container would fill a file system of it
    volumes/<hash>       a mount path: the same path, the same directory
    begun/<hash>         it has got what the image has there

The number says which users of this machine the container's users are: 65,536 from
``uid_base`` + 65,536 times the number on. It is unique as long as the disk exists; two
installations on one machine begin to count at different places.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from control.compute.backend import BackendUnavailable
from control.compute.podman.engine.service import environment

__all__ = ["ETC", "USERS", "Disk", "Disks"]

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)

GIB = 1024**3
#: Of each container, beginning with its root.
USERS = 65536
#: Up to where systemd has users for other purposes.
UID_END = 0x7FFE0000
SUFFIX = ".ext4"
UNFINISHED = ".new"
#: File in ``etc`` of a disk -> where a container has it.
ETC = {
    "hosts": "/etc/hosts",
    "hostname": "/etc/hostname",
    "resolv.conf": "/etc/resolv.conf",
    "containerenv": "/run/.containerenv",
}
#: As many as the driver's calls at once, and those who ask what is used.
THREADS = 24
#: Where ext4 has the label of a file system.
LABEL_AT = 1024 + 0x78
#: linux/fcntl.h, linux/fs.h
AT_FDCWD = -100
RENAME_EXCHANGE = 2
#: $0 is the file, $1 the directory.
MOUNT_ONCE = 'mountpoint -q "$1" || exec mount -o loop,nosuid,nodev,noinit_itable "$0" "$1"'
COMMAND_SECONDS = 60.0
#: Of what a volume without a disk held.
COPY_SECONDS = 3600.0
#: A tenth more than what is to be copied, for names and the file system's own.
COPY_SHARE = 1.1


class Disk:
    """One that is mounted. Its calls are for a thread: whoever writes to it says how long
    they take."""

    def __init__(self, file: Path, mounted: Path, uid: int) -> None:
        self.file = file
        self.path = mounted
        #: Which user of this machine its root is.
        self.uid = uid

    @property
    def keys(self) -> Path:
        """The directory of authorized_keys, for a mount that the container cannot write to."""
        return self.path / "keys"

    def etc(self, name: str) -> Path:
        """One of :data:`ETC`."""
        return self.path / "etc" / name

    def volume(self, name: str) -> Path:
        return self.path / "volumes" / name

    def begin(self, names: Iterable[str]) -> list[str]:
        """Make the directories of volumes; those that have not got what the image has."""
        new = []
        for name in names:
            if not self.volume(name).exists():
                self._make(self.volume(name))
            if not (self.path / "begun" / name).exists():
                new.append(name)
        return new

    def note_begun(self, name: str) -> None:
        (self.path / "begun" / name).touch()

    def write_keys(self, lines: Sequence[str]) -> None:
        """Whoever reads them sees the old or the new; they are written with every start.

        Two files take turns, so that a container that has made all files its disk can have
        still loses a key that is deleted.
        """
        if not self.keys.exists():
            self._make(self.keys)
        new, current = self.keys / "new", self.keys / "authorized_keys"
        for file in (new, current):
            file.touch(0o600)
            os.chown(file, self.uid, self.uid)
        new.write_text("".join(f"{line}\n" for line in lines))
        _exchange(new, current)
        new.write_text("")

    def write_etc(self, hostname: str, resolvers: Sequence[str]) -> None:
        """For a run that is about to begin: its user may write to them."""
        texts = {
            "hosts": f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {hostname}\n",
            "hostname": f"{hostname}\n",
            "resolv.conf": "".join(f"nameserver {each}\n" for each in resolvers),
            "containerenv": "",
        }
        for name in ETC:
            self.etc(name).write_text(texts[name])
            self.etc(name).chmod(0o644)
            os.chown(self.etc(name), self.uid, self.uid)

    def _make(self, path: Path) -> None:
        """A directory that is the container's root's."""
        path.mkdir(mode=0o755)
        os.chown(path, self.uid, self.uid)


class Disks:
    """All calls for one container come one after the other.

    Args:
        directory: Where they are; made if it is not there.
        cluster: Whose they are. Each begins to count users at a place of its own.
        uid_base: The first user of this machine that is a container's.
        reserve_gb: What is left free of the file system that they are on.
    """

    def __init__(self, directory: Path, cluster: str, uid_base: int, reserve_gb: int) -> None:
        self._directory = directory
        self._cluster = cluster
        #: Of each file system; ext4 has 16 bytes for it.
        self._label = f"gfs-{cluster[:12]}"
        self._uid_base = uid_base
        self._reserve_bytes = reserve_gb * GIB
        self._threads = trio.CapacityLimiter(THREADS)

    async def in_thread(self, call: Callable[..., T], *words: object, leave: bool = False) -> T:
        """Not among everybody's threads, since these may wait for a tenant's disk.

        Args:
            leave: Whoever is cancelled does not wait for the end: for what only looks.

        Raises BackendUnavailable: also in the place of an OSError.
        """
        try:
            return await trio.to_thread.run_sync(
                call, *words, limiter=self._threads, abandon_on_cancel=leave
            )
        except OSError as error:
            raise BackendUnavailable(_cannot_use(error)) from error

    async def all_owners(self) -> set[str]:
        return await self.in_thread(self.owners)

    async def used_bytes(self, container_id: str) -> int | None:
        """None if it is not mounted."""
        mounted = self._directory / container_id

        def look() -> int | None:
            if not mounted.is_mount():
                return None
            status = os.statvfs(mounted)
            return (status.f_blocks - status.f_bfree) * status.f_frsize

        return await self.in_thread(look, leave=True)

    def room_gb(self) -> int:
        """What all disks together may take: those there are, and what is free."""
        self._make_directory()
        status = os.statvfs(self._directory)
        free = status.f_bavail * status.f_frsize - self._reserve_bytes
        taken = 0
        for file, _, _ in self._files():
            with contextlib.suppress(FileNotFoundError):  # It is deleted just now.
                taken += file.stat().st_blocks * 512
        return max(0, free + taken) // GIB

    async def open(self, container_id: str, gb: int, bytes_to_copy: int = 0) -> Disk:
        """The container's disk, mounted; made if there is none. Raises BackendUnavailable.

        Args:
            gb: Its size, in GiB, unless ``bytes_to_copy`` to it need more.
        """
        found = self._find(container_id)
        if found is None:
            size = max(gb * GIB, int(bytes_to_copy * COPY_SHARE))
            found = await self._make(container_id, size)
        return await self._mounted(container_id, *found)

    async def find(self, container_id: str) -> Disk | None:
        """The container's disk, mounted; None if there is none. A control plane that was
        started again may see none of its predecessor's mounts (systemd's sandboxes)."""
        found = self._find(container_id)
        return None if found is None else await self._mounted(container_id, *found)

    async def _mounted(self, container_id: str, file: Path, number: int) -> Disk:
        mounted = self._directory / container_id
        if not await self.in_thread(mounted.is_mount):
            mounted.mkdir(mode=0o700, exist_ok=True)
            # Once only: also a mount that a process of ours left half done when it was killed
            # has ended by now. A loop device that has this file already is used again.
            await self._run("sh", "-c", MOUNT_ONCE, file, mounted, lock=file)
        await self.in_thread(_make_parts, mounted)
        return Disk(file, mounted, self._uid(number))

    async def close(self, container_id: str) -> None:
        """Unmount it; what uses it nevertheless can go on until it has ended."""
        mounted = self._directory / container_id
        if await self.in_thread(mounted.is_mount):
            found = self._find(container_id)
            await self._run("umount", "--lazy", mounted, lock=found and found[0])
        with contextlib.suppress(FileNotFoundError):
            mounted.rmdir()

    async def remove(self, container_id: str) -> None:
        await self.close(container_id)
        for file, name, _ in self._files():
            if name == container_id:
                await self._delete(file)

    async def hold_run(self, disk: Disk, *directories: Path) -> None:
        """From here on what is written to these is on the disk, and nothing of the last run
        any more: links take their place."""
        run = disk.path / "run"
        # However deep its user has made it.
        await self._run("rm", "-rf", run, lock=disk.file, seconds=COPY_SECONDS)
        await self.in_thread(run.mkdir, 0o700)
        for directory in directories:
            await self._run("cp", "-a", directory, run, lock=disk.file)
            await self._run("rm", "-rf", directory, lock=disk.file)
            directory.symlink_to(run / directory.name)

    async def sizes(self, directories: Sequence[Path]) -> int:
        """What they take with all that is in them, in bytes."""
        said = await self._run("du", "-s", "-B", "1", *directories, seconds=COPY_SECONDS)
        return sum(int(line.split()[0]) for line in said.splitlines())

    async def move_in(self, source: Path, target: Path, disk: Disk) -> None:
        """Make ``target``, on ``disk``, a copy of ``source``, where the users are this
        machine's: there they are the container's."""
        seen_as = disk.path / "source"
        await self._run("mkdir", "-p", seen_as)
        shift = f"0:{disk.uid}:{USERS}"
        mapped = f"X-mount.idmap=u:{shift} g:{shift}"
        await self._run("mount", "--bind", "-o", mapped, source, seen_as, lock=disk.file)
        try:
            await self.copy(seen_as, target, disk)
        finally:
            with trio.CancelScope(shield=True):
                await self._run("umount", "--lazy", seen_as)

    async def copy(self, source: Path, target: Path, disk: Disk) -> None:
        """``target`` may be there, if it is empty. It is filled when all is there."""
        unfinished = Path(f"{target}{UNFINISHED}")
        await self._run("rm", "-rf", unfinished, lock=disk.file, seconds=COPY_SECONDS)
        await self._run("cp", "-a", source, unfinished, lock=disk.file, seconds=COPY_SECONDS)
        await self.in_thread(os.rename, unfinished, target)

    async def _make(self, container_id: str, size: int) -> tuple[Path, int]:
        self._make_directory()
        for left, owner, _ in self._files():
            if owner == container_id:
                await self._delete(left)
        number = self._free_number()
        file = self._directory / f"{container_id}.{number}{SUFFIX}"
        unfinished = Path(f"{file}{UNFINISHED}")
        # From here on the number is taken.
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            try:
                status = os.statvfs(self._directory)
                if status.f_bavail * status.f_frsize - self._reserve_bytes < size:
                    raise BackendUnavailable(no_room(size))
                await trio.to_thread.run_sync(os.posix_fallocate, descriptor, 0, size)
            except OSError as error:
                raise BackendUnavailable(f"{no_room(size)} ({error.strerror or error})") from None
            finally:
                os.close(descriptor)
            # Reserved for this machine's root: a container whose disk is full can start.
            options: tuple[str, ...] = ("-q", "-F", "-m", "1", "-E", "nodiscard,lazy_itable_init=1")
            options += ("-L", self._label)
            await self._run("mkfs.ext4", *options, unfinished)
            os.rename(unfinished, file)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._delete(unfinished)
            raise
        return file, number

    async def _delete(self, file: Path) -> None:
        """The blocks of many gigabytes are given back for as long as a second."""
        await self.in_thread(partial(file.unlink, missing_ok=True))

    def _make_directory(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _files(self) -> list[tuple[Path, str, int]]:
        """Each with whose it is and its number; also those that are being made."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._directory):
                owner, _, rest = name.partition(".")
                number, _, suffix = rest.partition(".")
                if number.isdecimal() and suffix.startswith(SUFFIX[1:]):
                    found.append((self._directory / name, owner, int(number)))
        return found

    def owners(self) -> set[str]:
        """Containers whose disks this installation has made, for a thread. Those of an older
        version do not say whose they are: another's may be in the same directory."""
        found = set()
        for file, owner, _ in self._files():
            with contextlib.suppress(FileNotFoundError), file.open("rb") as opened:
                opened.seek(LABEL_AT)
                if opened.read(16).rstrip(b"\0") == self._label.encode():
                    found.add(owner)
        return found

    def _find(self, container_id: str) -> tuple[Path, int] | None:
        for file, owner, number in self._files():
            if owner == container_id and file.suffix == SUFFIX:
                return file, number
        return None

    def _free_number(self) -> int:
        taken = {number for _, _, number in self._files()}
        count = (UID_END - self._uid_base) // USERS
        first = zlib.crc32(self._cluster.encode())
        for step in range(count):
            number = (first + step) % count
            if number not in taken:
                return number
        raise BackendUnavailable("All users that this machine has for containers are in use.")

    def _uid(self, number: int) -> int:
        return self._uid_base + number * USERS

    async def _run(
        self, *command: str | Path, lock: Path | None = None, seconds: float = COMMAND_SECONDS
    ) -> str:
        """What it prints.

        Args:
            lock: A disk's file, that it locks as long as it runs: it outlives us if we are
                killed, and must not meet the same command of our successor.
        """
        name = command[0]
        if lock is not None:
            command = ("flock", "--no-fork", lock, *command)
        try:
            with trio.fail_after(seconds):
                done = await trio.run_process(
                    command,
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    env=environment({}),
                )
        except OSError as error:
            raise BackendUnavailable(
                f"{name} cannot be run ({error.strerror or error}): install mount and e2fsprogs."
            ) from None
        except trio.TooSlowError:
            raise BackendUnavailable(f"{name} does not end.") from None
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["nothing"]
            raise BackendUnavailable(f"{name} says: {said[0][:300]}")
        return done.stdout.decode()


def _exchange(one: Path, other: Path) -> None:
    """Both at once; Linux's alone."""
    words = os.fsencode(one), os.fsencode(other)
    if _libc.renameat2(AT_FDCWD, words[0], AT_FDCWD, words[1], RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one))


def _cannot_use(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return (
            "Its disk has no room for another file, which a new mount path takes: start it "
            "without, and delete files in it."
        )
    return f"Its disk cannot be used: {error.strerror or error}."


def _make_parts(mounted: Path) -> None:
    for name in ("volumes", "begun", "etc"):
        (mounted / name).mkdir(mode=0o700, exist_ok=True)


def no_room(size: int) -> str:
    return f"This machine has no room for a disk of {-(-size // GIB)} GiB."
