"""Mounting, and unmounting whatever happens."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from gfs.client import Client
from gfs.errors import NotADirectory, StartupError

if TYPE_CHECKING:
    from gfs.mount.operations import Operations

INSTALL = (
    "pip install 'gfs-control-plane[server,mount]', which needs libfuse 3 "
    "(Debian: apt-get install fuse3 libfuse3-dev pkg-config gcc python3-dev)"
)
#: What is in memory is stored within this when the mount is stopped.
STOP_SECONDS = 60.0
#: The kernel's own read-ahead: a request of the largest size, and another one.
READ_AHEAD_KIB = 2048
FUSE_TASKS_MAX = 64


def check(directory: Path) -> None:
    """Raise StartupError, which says what to do, if nothing can be mounted there."""
    try:
        import pyfuse3  # noqa: F401
    except ImportError as error:
        raise StartupError(f"gfs mount needs pyfuse3 ({error}): {INSTALL}") from None
    if not os.path.exists("/dev/fuse"):
        raise StartupError("there is no /dev/fuse: load the module (modprobe fuse)")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise StartupError("only root can mount without fusermount3: apt-get install fuse3")
    try:
        is_directory = directory.is_dir()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        raise StartupError(
            f"{directory}: a mount there has died: first  fusermount3 -u {directory}"
        ) from None
    if not is_directory:
        raise StartupError(f"{directory} is not a directory: make it first")
    if directory.is_mount():
        raise StartupError(f"{directory}: something is mounted there already")


async def mount(
    client: Client,
    path: str,
    directory: Path,
    *,
    allow_other: bool = False,
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Mount ``path`` of the file system at ``directory`` until somebody unmounts it, or a SIGTERM
    or SIGINT comes; what was written is stored then. Cancelled, it unmounts at once.

    Raises StartupError, NotFound, NotADirectory.
    """
    import pyfuse3

    from gfs.mount.operations import Operations

    root = await client.stat(path)
    if root.kind != "directory":
        raise NotADirectory(f"{path} is a file")
    options = {"default_permissions", f"fsname=gfs:{path.replace(',', '_')}", "subtype=gfs"}
    if allow_other:
        options.add("allow_other")
    async with trio.open_nursery() as files:
        operations = Operations(client, path, root, files)
        try:
            pyfuse3.init(operations, str(directory), options)
        except RuntimeError as error:
            raise StartupError(f"{directory} cannot be mounted: {error}") from None
        try:
            await files.start(_stop_on_signals, operations)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(operations.open_files.upkeep)
                    nursery.start_soon(read_ahead, directory)
                    nursery.start_soon(_say, ready)
                    await pyfuse3.main(max_tasks=FUSE_TASKS_MAX)
                    nursery.cancel_scope.cancel()
            finally:
                # Also if one of these fails. The uploads that are under way are not theirs.
                with trio.move_on_after(STOP_SECONDS):
                    await operations.close()
            files.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=True)


async def _say(ready: Callable[[], object]) -> None:
    ready()


async def _stop_on_signals(
    operations: Operations, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Programs are still answered while what they wrote is stored; the second signal ends that."""
    import pyfuse3

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        await anext(signals)
        with trio.move_on_after(STOP_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_on_signal, signals, nursery)
                await operations.open_files.store_all()
                nursery.cancel_scope.cancel()
        pyfuse3.terminate()


async def _cancel_on_signal(signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
    await anext(signals)
    nursery.cancel_scope.cancel()


async def read_ahead(directory: Path) -> None:
    """Have the kernel ask for much at once. Only root may; without it, it asks for 128 KiB."""

    def widen() -> None:
        device = os.stat(directory).st_dev
        name = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
        with suppress(OSError), open(name, "w") as file:
            file.write(str(READ_AHEAD_KIB))

    with suppress(OSError):
        await trio.to_thread.run_sync(widen, abandon_on_cancel=True)
