"""A command with a PTY in a running container.

Podman hands its terminal over as a raw stream both ways. Nothing is read before it is
asked for, so a slow reader slows the command through the socket (about 200 KiB), Podman
(a few KiB) and the PTY. Podman does not end a command whose terminal was left: it is
hung up on here, as a terminal line would, and killed if it stays.

Each command has a conmon, a process of this machine outside the container's limits, and
Podman loses sight of it when whoever starts it hangs up meanwhile: it says that nothing
runs, and it does. So starts are few at a time and have time enough, and no command is
left to chance: each has a :class:`Leash` as long as its terminal is open, and the
process that drives this machine ends, every :data:`SWEEP_SECONDS`, those whose leash
nobody holds. The kernel lets go of it for whoever is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from control.compute.backend import TERM, BackendUnavailable, Impossible
from control.compute.podman.engine.api import Api
from control.compute.podman.engine.http import Refused
from control.compute.podman.engine.processes import children, end, held, running
from gfs.io.filelock import try_flock

__all__ = ["Leashes", "PodmanTerminal", "Terminals"]

READ_BYTES = 64 * 1024
#: Two cores start as many as fast as they can.
STARTS_AT_ONCE = 4
#: For one's turn.
TURN_SECONDS = 30.0
#: A tenth of a second on a machine at rest.
START_SECONDS = 60.0
#: Between the stream and the process's number.
PID_SECONDS = 5.0
#: How long a command may take to end after the hang-up.
HANG_UP_SECONDS = 2.0
END_SECONDS = 5.0
SWEEP_SECONDS = 2.0
SWEEPS_AT_ONCE = 4


class PodmanTerminal:
    """See :class:`control.compute.backend.Terminal`."""

    def __init__(self, api: Api, exec_id: str, stream: trio.SocketStream, first: bytes) -> None:
        self._api = api
        self._id = exec_id
        self._stream = stream
        self._first = first
        self._exit_code: int | None = None

    @property
    def exit_code(self) -> int | None:
        return self._exit_code

    async def receive(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            await trio.lowlevel.checkpoint()
            return first
        try:
            output = bytes(await self._stream.receive_some(READ_BYTES))
        except trio.BrokenResourceError:
            output = b""
        if not output and self._exit_code is None:
            self._exit_code = await self._ended()
        return output

    async def send(self, data: bytes) -> None:
        # Input after the end is dropped; receive() reports the end.
        with contextlib.suppress(trio.BrokenResourceError):
            await self._stream.send_all(data)

    async def resize(self, columns: int, rows: int) -> None:
        with contextlib.suppress(Refused):
            await self._api.resize_exec(self._id, columns, rows)

    async def _ended(self) -> int | None:
        """The output ends a moment before Podman has noted how."""
        with contextlib.suppress(Refused, BackendUnavailable), trio.move_on_after(END_SECONDS):
            while (seen := await self._api.inspect_exec(self._id)) is not None:
                if not seen.running:
                    return seen.exit_code
                await trio.sleep(0.05)
        return None


class Leash:
    """A file by the name of a command, locked while its terminal is open."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @property
    def exec_id(self) -> str:
        return self._path.name

    def remove(self) -> None:
        """The command has ended."""
        self._path.unlink(missing_ok=True)

    def let_go(self) -> None:
        """Unless it was removed, whoever sweeps ends the command."""
        os.close(self._descriptor)


class Leashes:
    """Of all commands of an installation; several processes may share ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)

    def take(self, exec_id: str) -> Leash:
        with self._alone():
            descriptor = self._open(exec_id, os.O_CREAT)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Leash(self._directory / exec_id, descriptor)

    def dropped(self) -> list[Leash]:
        """Those that nobody held. The caller holds them now."""
        found = []
        for name in sorted(os.listdir(self._directory)):
            if name.startswith("."):
                continue
            with self._alone(), contextlib.suppress(FileNotFoundError):
                descriptor = self._open(name)
                if try_flock(descriptor):
                    found.append(Leash(self._directory / name, descriptor))
                else:
                    os.close(descriptor)
        return found

    def _open(self, name: str, flags: int = 0) -> int:
        return os.open(self._directory / name, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """A file is there for a moment before it is locked."""
        lock = self._open(".lock", os.O_CREAT)
        try:
            # Held by others for a fraction of a millisecond.
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


class Terminals:
    """Opens terminals, and ends what was left of others'."""

    def __init__(self, api: Api, directory: str) -> None:
        self._api = api
        self._leashes = Leashes(Path(directory) / "terminals")
        self._starts = trio.CapacityLimiter(STARTS_AT_ONCE)
        self._sweeps = trio.CapacityLimiter(SWEEPS_AT_ONCE)

    @asynccontextmanager
    async def open(
        self, name: str, command: list[str], columns: int, rows: int
    ) -> AsyncGenerator[PodmanTerminal, None]:
        """See :meth:`control.compute.backend.Backend.exec`."""
        leash = None
        try:
            async with AsyncExitStack() as stack:
                async with self._turn():
                    leash = self._leashes.take(await self._create(name, command))
                    # It would go on without us, and Podman not know of it.
                    with trio.CancelScope(shield=True):
                        starting = self._api.start_exec(leash.exec_id, columns, rows, START_SECONDS)
                        stream, first = await stack.enter_async_context(starting)
                        process = await _descriptor(self._api, leash.exec_id, stream)
                opened = PodmanTerminal(self._api, leash.exec_id, stream, first)
                try:
                    yield opened
                finally:
                    if process is not None:
                        await end(process, signal.SIGHUP, HANG_UP_SECONDS)
                        leash.remove()
        except Refused as refused:
            raise BackendUnavailable(f"Podman opens no terminal: {refused}") from None
        finally:
            if leash is not None:
                leash.let_go()

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None, None]:
        try:
            with trio.fail_after(TURN_SECONDS):
                await self._starts.acquire()
        except trio.TooSlowError:
            raise BackendUnavailable("Many terminals are being opened: try again.") from None
        try:
            yield
        finally:
            self._starts.release()

    async def _create(self, name: str, command: list[str]) -> str:
        try:
            return await self._api.create_exec(name, command, [f"TERM={TERM}"])
        except Refused as refused:
            if refused.status in (404, 409):
                raise Impossible("The container does not run.") from None
            raise

    # --- what is left of those that nobody has any more ---------------------------------

    async def sweep_for_ever(self) -> None:
        """One process of a machine at a time does."""
        while True:
            async with trio.open_nursery() as nursery:
                for leash in self._leashes.dropped():
                    nursery.start_soon(self._sweep, leash)
            await trio.sleep(SWEEP_SECONDS)

    async def _sweep(self, leash: Leash) -> None:
        try:
            async with self._sweeps:
                if await self._ends(leash.exec_id):
                    leash.remove()
        finally:
            leash.let_go()

    async def _ends(self, exec_id: str) -> bool:
        """Whether nothing is left of a command, and nothing will be."""
        forgotten = False
        # Also of one that is about to be started, which it then is not any more; Podman
        # answers when a start that it is in the middle of is over.
        with contextlib.suppress(BackendUnavailable):
            forgotten = await self._api.remove_exec(exec_id)
        # And what it does not know of, or does not want to forget since it runs.
        # All processes of this machine are looked at, and tenants say how many there are.
        conmons, commands = await trio.to_thread.run_sync(_commands, exec_id)
        async with trio.open_nursery() as nursery:
            for process in commands:
                nursery.start_soon(end, process, signal.SIGHUP, HANG_UP_SECONDS)
        return forgotten and not conmons


def _commands(exec_id: str) -> tuple[list[int], list[int]]:
    """What looks after a command, and descriptors of what it looks after."""
    conmons = running("conmon", exec_id)
    found = [held(pid) for conmon in conmons for pid in children(conmon)]
    return conmons, [process for process in found if process is not None]


async def _descriptor(api: Api, exec_id: str, stream: trio.SocketStream) -> int | None:
    """Of the command's process, so that nobody else is ever sent its signals; None when it
    has ended already, or is not known."""
    with trio.move_on_after(PID_SECONDS), contextlib.suppress(BackendUnavailable):
        while (seen := await api.inspect_exec(exec_id)) is not None:
            if seen.running and seen.pid:
                return held(seen.pid)
            # Not yet noted as running, or not any more: in the latter case something has
            # come of it, output or its end. What came first is noted soon after.
            has_begun = stream.socket.is_readable()
            await trio.sleep(0.02)
            if has_begun:
                seen = await api.inspect_exec(exec_id)
                return held(seen.pid) if seen is not None and seen.running else None
    return None
