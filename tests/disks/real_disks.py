"""Disks that a test can break: ext4 on loop devices, and FUSE file systems that hang.

Each disk is an image file with an ext4 of its own, mounted over a loop device that goes
when it is unmounted. The images are on a tmpfs that the test mounts for them, so that no
disk is slow but the one that is meant to be. On some of them lies a ``bindfs`` (a FUSE
file system that passes everything on): with its process stopped, every call hangs for
as long as the test likes.

Needs root, and Debian's ``bindfs``, ``fuse3``, ``e2fsprogs`` and ``util-linux``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import on_disk
from limits import wait_for

from gfs.blocks import MIB

DISK_BYTES = 192 * MIB
#: Of all images together; they are sparse.
IMAGE_BYTES_MAX = 2048 * MIB
PROGRAMS = ("mount", "losetup", "fsfreeze", "mkfs.ext4", "bindfs", "fusermount3")
#: The caches of a FUSE file system may answer in the place of its server, or not.
UNCACHED = "direct_io,attr_timeout=0,entry_timeout=0,negative_timeout=0"
CACHED = "kernel_cache,attr_timeout=3600,entry_timeout=3600"
EMPTYING_SECONDS = 2.0
#: ext4's ioctl that ends all access, as the kernel does itself after some errors:
#: _IOR('X', 125, __u32), and "without writing the log".
_IOC_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, struct.pack("I", 2)


def missing() -> str:
    """Why there can be no such disks here; "" if there can."""
    gone = [program for program in PROGRAMS if shutil.which(program) is None]
    if os.geteuid() != 0:
        return "disks are mounted as root"
    if gone:
        return f"not installed: {', '.join(gone)} (bindfs fuse3 e2fsprogs util-linux)"
    for needed in (["unshare", "--mount", "true"], ["losetup", "--find"], ["stat", "/dev/fuse"]):
        done = subprocess.run(needed, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"no mounts, loop devices or FUSE here: {done.stderr.strip()}"
    return ""


def run(*command: str | os.PathLike[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr.strip()}"
    return done.stdout.strip()


def _is_refused(*command: str | os.PathLike[str]) -> bool:
    return subprocess.run(command, check=False).returncode != 0


class RealDisk:
    """``path`` is what a chunkserver gets as ``--dir``: a mount, or a directory in it."""

    def __init__(self, image: Path, mount: Path, below: str = "", fuse: str = "") -> None:
        self.image, self.below = image, below
        #: Of the ext4; with FUSE it is not where the chunkserver sees it.
        self.mount = mount.with_suffix(".ext4") if fuse else mount
        self.fuse_mount = mount if fuse else None
        self._fuse_options = fuse
        self._server: subprocess.Popen[bytes] | None = None
        self.path = mount / below if below else mount

    def make(self) -> None:
        """A new file system in the place of whatever there was."""
        self.image.unlink(missing_ok=True)
        with open(self.image, "wb") as file:
            file.truncate(DISK_BYTES)
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-J", "size=4", self.image)
        self.attach()

    def attach(self) -> None:
        self.mount.mkdir(parents=True, exist_ok=True)
        run("mount", "-o", "loop,errors=remount-ro", self.image, self.mount)
        if self.fuse_mount is not None:
            self.fuse_mount.mkdir(exist_ok=True)
            self._server = subprocess.Popen(
                ["bindfs", "-f", "-o", self._fuse_options, self.mount, self.fuse_mount],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            wait_for(self.fuse_mount.is_mount, "FUSE mount")
        if self.below:
            self.path.mkdir(exist_ok=True)

    def release(self) -> None:
        """Unmount it as an operator does who takes the disk away."""

        def released() -> bool:
            if self.mount.is_mount():
                subprocess.run(["umount", self.mount], capture_output=True, check=False)
            # Unmounted for all: what else is mounted of it would be as it was.
            return not self.mount.is_mount() and not run("losetup", "--associated", self.image)

        try:
            wait_for(released, "release")
        except AssertionError:
            raise AssertionError(f"{self.mount} is held: {self._holders()}") from None

    def _holders(self) -> list[str]:
        found = []
        for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                if (name := os.readlink(descriptor)).startswith(f"{self.mount}"):
                    found.append(f"{descriptor} {name}")
        for mounts in Path("/proc").glob("[0-9]*/mounts"):
            with contextlib.suppress(OSError):
                if f" {self.mount} " in mounts.read_text():
                    found.append(f"{mounts}")
        return found

    def wake(self) -> None:
        """Whatever hangs goes on."""
        self.go_on()
        with contextlib.suppress(AssertionError):
            self.thaw()

    def close(self) -> None:
        """Whatever state it is in: nothing of it is left."""
        self.wake()
        if self._server is not None:
            subprocess.run(["umount", "--lazy", self.fuse_mount or ""], check=False)
            self._server.terminate()
            self._server.wait()
        while self.mount.is_mount() and not _is_refused("umount", "--lazy", self.mount):
            pass

    # --- what can be done to it -------------------------------------------------------

    def shut_down(self) -> None:
        """Every call is EIO from now on, reads of what is in memory too."""
        descriptor = os.open(self.mount, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _IOC_SHUTDOWN, _NO_LOG_FLUSH)
        finally:
            os.close(descriptor)

    def lose_device(self) -> None:
        """All sectors are gone: what is in memory can be read and written, until the
        kernel wants to read or write the rest."""
        device = run("findmnt", "-n", "-o", "SOURCE", self.mount)
        os.truncate(self.image, 0)
        run("losetup", "--set-capacity", device)

    def find_error(self) -> None:
        """ext4 finds an error in its metadata, and is read-only from now on."""
        device = Path(run("findmnt", "-n", "-o", "SOURCE", self.mount)).name
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("by the test")

    def mount_read_only(self) -> None:
        run("mount", "-o", "remount,ro", self.mount)

    def mount_writable(self) -> None:
        run("mount", "-o", "remount,rw", self.mount)

    def unmount(self) -> None:
        run("umount", self.mount)

    def detach(self) -> None:
        """Take the mount away from under those who use it."""
        run("umount", "--lazy", self.mount)

    def empty(self) -> None:
        """``rm -rf`` of what is in it, again and again: it is in use, and what the server
        remembers may just be written anew."""
        deadline = time.monotonic() + EMPTYING_SECONDS
        while time.monotonic() < deadline:
            for entry in list(self.path.iterdir()):
                if entry.name == "lost+found":
                    continue
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)

    def replace_by_file(self) -> None:
        self.path.rename(self._aside)
        self.path.write_bytes(b"not a directory")

    def put_back(self) -> None:
        self.path.unlink()
        self._aside.rename(self.path)

    @property
    def _aside(self) -> Path:
        return self.path.with_name(self.path.name + ".aside")

    def fill(self) -> None:
        with (
            contextlib.suppress(OSError),
            open(self.path / "somebody-elses", "wb", buffering=0) as file,
        ):
            while True:
                file.write(bytes(64 * 1024))

    def make_room(self) -> None:
        (self.path / "somebody-elses").unlink()

    def freeze(self) -> None:
        """Writes, syncs, creations and deletions hang."""
        run("fsfreeze", "--freeze", self.mount)

    def thaw(self) -> None:
        run("fsfreeze", "--unfreeze", self.mount)

    def hang(self) -> None:
        """Every call hangs; with the caches on, all that the kernel cannot answer."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGCONT)

    # --- what is on it ----------------------------------------------------------------

    def replicas(self) -> set[int]:
        return set(on_disk.replicas(self.path))

    def below_mount(self) -> list[Path]:
        """What is in the directory that it was mounted at: for when it is not."""
        assert not self.mount.is_mount()
        return list(self.mount.iterdir())


@contextlib.contextmanager
def real_disks(directory: Path) -> Iterator[Callable[..., RealDisk]]:
    """Makes disks below ``directory``; all are gone at the end, and what they were on."""
    images = directory / "images"
    images.mkdir(parents=True)
    # What is unmounted here is unmounted in the containers that other tests run meanwhile, too.
    run("mount", "--bind", directory, directory)
    run("mount", "--make-shared", directory)
    run("mount", "-t", "tmpfs", "-o", f"size={IMAGE_BYTES_MAX}", "gfs-test", images)
    made: list[RealDisk] = []

    def make(name: str, below: str = "", fuse: str = "") -> RealDisk:
        image = images / f"{name.replace('/', '-')}.ext4"
        made.append(RealDisk(image, directory / name, below, fuse))
        made[-1].make()
        return made[-1]

    try:
        yield make
    finally:
        for disk in made:
            disk.close()
        _is_refused("umount", "--lazy", images)
        _is_refused("umount", "--lazy", directory)
