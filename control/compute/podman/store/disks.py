"""A disk for each container: a file of its ``storage_gb``, with a file system on it.

Podman can limit the size of containers only on XFS with project quotas. So the root file
system and all volumes of a container are on a loop device of its own, on any file
system: its files, however many, take no space from other containers. The file's
blocks are allocated when it is created, so the granted space exists, and a machine
without enough space refuses before the container is created.

``disks/<id>.<number>.ext4`` is the file, ``disks/<id>`` where it is mounted::

    run/diff, run/work   the files that its run has written; new for each run
    keys/                authorized_keys, which the container can only read, and the file that
                         replaces it next
    etc/                 resolv.conf and the like; Podman's own ones would be on a file system
                         of this machine, which a container could fill
    volumes/<hash>       a mount path; the same path always has the same directory
    begun/<hash>         exists once the files of the image are in it

The number determines the users of this machine that the container's users are: 65,536 from
``uid_base`` + 65,536 times the number. It is unique as long as the disk exists; two
installations on one machine begin to count at different numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import trio

from control.compute.backend import BackendUnavailable
from control.compute.podman.engine import environment

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)

GIB = 1024**3
#: How many users each container has, beginning with its root.
USERS = 65536
#: From here on systemd uses user ids for other purposes.
UID_END = 0x7FFE0000
SUFFIX = ".ext4"
UNFINISHED = ".new"
#: A file in ``etc`` of a disk -> its path in a container.
ETC = {
    "hosts": "/etc/hosts",
    "hostname": "/etc/hostname",
    "resolv.conf": "/etc/resolv.conf",
    "containerenv": "/run/.containerenv",
}
#: As many as calls of the driver and readers of usage at once.
THREADS = 24
#: The offset of a file system's label in ext4.
LABEL_AT = 1024 + 0x78
#: linux/fcntl.h, linux/fs.h
AT_FDCWD = -100
RENAME_EXCHANGE = 2
#: $0 is the file, $1 the directory.
MOUNT_ONCE = 'mountpoint -q "$1" || exec mount -o loop,nosuid,nodev,noinit_itable "$0" "$1"'
COMMAND_SECONDS = 60.0
#: How long copying the volumes of an older version may take.
COPY_SECONDS = 3600.0
#: The space for a copy: a tenth more, for names and the file system itself.
COPY_SHARE = 1.1


class Disk:
    """A mounted disk. Call its methods in a thread, since the tenant who writes to it
    determines how long they take."""

    def __init__(self, file: Path, mounted: Path, uid: int) -> None:
        self.file = file
        self.path = mounted
        #: The user of this machine that its root is.
        self.uid = uid

    @property
    def keys(self) -> Path:
        """The directory of authorized_keys, which is mounted read-only."""
        return self.path / "keys"

    def etc(self, name: str) -> Path:
        """The path of one of :data:`ETC`."""
        return self.path / "etc" / name

    def volume(self, name: str) -> Path:
        return self.path / "volumes" / name

    def device(self) -> tuple[int, int]:
        """The numbers of its loop device."""
        number = self.path.stat().st_dev
        return os.major(number), os.minor(number)

    def begin(self, names: Iterable[str]) -> list[str]:
        """Create the directories of volumes. Returns those without the image's files yet."""
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
        """Replace the keys in one step; this happens at every start.

        Two files take turns, so that a deleted key is also withdrawn from a container that
        has used up all files of its disk.
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
        """Write the files before a run begins; its user may change them."""
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
        """Create a directory that belongs to root of the container."""
        path.mkdir(mode=0o755)
        os.chown(path, self.uid, self.uid)


class Disks:
    """The disks. The calls for one container come one after the other.

    Args:
        directory: Their directory, which is created if it does not exist.
        cluster: The id of the installation. Each begins to count users at its own number.
        uid_base: The first user of this machine for containers.
        reserve_gb: How much space stays free in the file system of the directory.
    """

    def __init__(self, directory: Path, cluster: str, uid_base: int, reserve_gb: int) -> None:
        self._directory = directory
        self._cluster = cluster
        #: The label of each file system; ext4 has 16 bytes for it.
        self._label = f"gfs-{cluster[:12]}"
        self._uid_base = uid_base
        self._reserve_bytes = reserve_gb * GIB
        self._threads = trio.CapacityLimiter(THREADS)

    async def in_thread(self, call: Callable[..., T], *words: object, leave: bool = False) -> T:
        """Run ``call`` in a thread that is not one of the common ones, since it may wait for a
        tenant's disk.

        Args:
            leave: A cancellation abandons the thread; for calls that only read.

        Raises BackendUnavailable, also instead of an OSError.
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
        """How much of the disk is used; None if it is not mounted."""
        mounted = self._directory / container_id

        def look() -> int | None:
            if not mounted.is_mount():
                return None
            status = os.statvfs(mounted)
            return (status.f_blocks - status.f_bfree) * status.f_frsize

        return await self.in_thread(look, leave=True)

    def room_gb(self) -> int:
        """How much all disks together may take: the existing ones, and the free space."""
        self._make_directory()
        status = os.statvfs(self._directory)
        free = status.f_bavail * status.f_frsize - self._reserve_bytes
        taken = 0
        for file, _, _ in self._files():
            with contextlib.suppress(FileNotFoundError):  # It was just deleted.
                taken += file.stat().st_blocks * 512
        return max(0, free + taken) // GIB

    async def open(self, container_id: str, gb: int, bytes_to_copy: int = 0) -> Disk:
        """The container's disk, mounted. It is created if there is none. Raises
        BackendUnavailable.

        Args:
            gb: Its size in GiB, unless ``bytes_to_copy`` need more.
        """
        found = self._find(container_id)
        if found is None:
            size = max(gb * GIB, int(bytes_to_copy * COPY_SHARE))
            found = await self._make(container_id, size)
        return await self._mounted(container_id, *found)

    async def find(self, container_id: str) -> Disk | None:
        """The container's disk, mounted; None if there is none. After a restart the control
        plane may not see its earlier mounts (in systemd's sandboxes)."""
        found = self._find(container_id)
        return None if found is None else await self._mounted(container_id, *found)

    async def _mounted(self, container_id: str, file: Path, number: int) -> Disk:
        mounted = self._directory / container_id
        if not await self.in_thread(mounted.is_mount):
            mounted.mkdir(mode=0o700, exist_ok=True)
            # The lock makes this happen once, also beside a mount that a killed process of
            # ours has left running. A loop device that has this file is used again.
            await self._run("sh", "-c", MOUNT_ONCE, file, mounted, lock=file)
        await self.in_thread(_make_parts, mounted)
        return Disk(file, mounted, self._uid(number))

    async def close(self, container_id: str) -> None:
        """Unmount the disk. Processes that use it nevertheless can go on until they end."""
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
        """Replace ``directories`` by links to new directories on the disk, and delete the files
        of the last run."""
        run = disk.path / "run"
        # rm handles directories of any depth.
        await self._run("rm", "-rf", run, lock=disk.file, seconds=COPY_SECONDS)
        await self.in_thread(run.mkdir, 0o700)
        for directory in directories:
            await self._run("cp", "-a", directory, run, lock=disk.file)
            await self._run("rm", "-rf", directory, lock=disk.file)
            directory.symlink_to(run / directory.name)

    async def sizes(self, directories: Sequence[Path]) -> int:
        """The size of directories with everything in them, in bytes."""
        said = await self._run("du", "-s", "-B", "1", *directories, seconds=COPY_SECONDS)
        return sum(int(line.split()[0]) for line in said.splitlines())

    async def move_in(self, source: Path, target: Path, disk: Disk) -> None:
        """Copy ``source`` to ``target`` on ``disk``. The owners in ``source`` are users of this
        machine; in the copy they are those of the container."""
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
        """Copy ``source`` to ``target``, which may exist if it is empty. It gets all files in
        one step."""
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
        # From now on the number is taken.
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
            # Reserve 1 % for this machine's root, so that a container with a full disk can start.
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
        """Delete a disk. Freeing many gigabytes may take a second."""
        await self.in_thread(_discard, file)

    def _make_directory(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _files(self) -> list[tuple[Path, str, int]]:
        """The files, each with its container and number; also those that are being created."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._directory):
                owner, _, rest = name.partition(".")
                number, _, suffix = rest.partition(".")
                if number.isdecimal() and suffix.startswith(SUFFIX[1:]):
                    found.append((self._directory / name, owner, int(number)))
        return found

    def owners(self) -> set[str]:
        """The containers whose disks this installation has created; call it in a thread. Disks
        of an older version do not name their installation, and another installation's may
        be in the same directory."""
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
        """Run a command; returns its output.

        Args:
            lock: The file of a disk, which the command locks while it runs: it outlives us
                if we are killed, and must not run beside that of the next process.
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
            raise BackendUnavailable(f"{name} failed: {said[0][:300]}")
        return done.stdout.decode()


def _discard(file: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        # Its space is free then, also if something of this machine still holds its loop device.
        os.truncate(file, 0)
        file.unlink()


def _exchange(one: Path, other: Path) -> None:
    """Exchange two paths in one step; only Linux can."""
    words = os.fsencode(one), os.fsencode(other)
    if _libc.renameat2(AT_FDCWD, words[0], AT_FDCWD, words[1], RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one))


def _cannot_use(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return (
            "Its disk has no room for another file, which a new mount path needs: start it "
            "without the path, and delete files in it."
        )
    return f"Its disk cannot be used: {error.strerror or error}."


def _make_parts(mounted: Path) -> None:
    for name in ("volumes", "begun", "etc"):
        (mounted / name).mkdir(mode=0o700, exist_ok=True)


def no_room(size: int) -> str:
    return f"This machine has no room for a disk of {-(-size // GIB)} GiB."
