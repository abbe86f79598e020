"""A command with a PTY in a running container.

Podman passes the output as a raw stream. Nothing is read ahead, so a slow reader slows down
the command through the socket (about 200 KiB), Podman (a few KiB) and the PTY. Podman does
not end a command whose terminal was closed: it gets SIGHUP from here, as from a terminal
line, and SIGKILL if it goes on.

Each command has a conmon, a process of this machine outside the container's limits, which
holds the PTY. It would also pass on the input, but it waits for room in the PTY's queue
(some 12 KiB) and meanwhile does nothing else: it passes no output on, and does not notice
that the command has ended, so Podman never removes the container. So the input is written
here, to a copy of conmon's descriptor, and only as much as there is room for. A conmon that
does not notice the end of its command nevertheless is killed.

Podman loses track of it if the caller hangs up during the start: then it reports that nothing
runs although the command does. So few starts run at a time, with a long timeout, and
every command is tracked: it has a :class:`Leash`, a locked file, as long as its terminal is
open, and the process that drives this machine ends, every :data:`SWEEP_SECONDS`, the
commands whose file is not locked. The kernel releases the locks of a killed process.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from control.compute.backend import TERM, BackendUnavailable, Impossible
from control.compute.podman.engine import (
    Api,
    Refused,
    children,
    copy_descriptor,
    end,
    held,
    parent,
    reaped,
    running,
)
from control.compute.podman.machine_limits import has_free_pty
from control.compute.podman.shapes import PTYS
from gfs.io import try_flock

log = logging.getLogger("control.compute")

READ_BYTES = 64 * 1024
#: The name of the file by which the holder of a PTY has it.
PTMX = "ptmx"
#: How many starts keep two cores busy.
STARTS_AT_ONCE = 4
#: How long a start waits for its turn.
TURN_SECONDS = 30.0
#: How long a start may take; on an idle machine it is a tenth of a second.
START_SECONDS = 60.0
#: How long the process id may take after the stream is open.
PID_SECONDS = 5.0
#: How long a command may take to end after SIGHUP.
HANG_UP_SECONDS = 2.0
END_SECONDS = 5.0
#: How long conmon may take to notice that its command has ended.
REAP_SECONDS = 1.0
#: How long the end of a terminal waits until nothing is left of its command. Then the sweep
#: goes on with it.
CLEAR_SECONDS = 20.0
#: Podman's exit code of a command that it could not start; its output is the reason.
NOT_STARTED = 125
SWEEP_SECONDS = 2.0
SWEEPS_AT_ONCE = 4


class PodmanTerminal:
    """See :class:`control.compute.backend.Terminal`."""

    def __init__(
        self, api: Api, exec_id: str, stream: trio.SocketStream, first: bytes, pty: int | None
    ) -> None:
        self._api = api
        self._id = exec_id
        self._stream = stream
        self._first = first
        self._pty = pty
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
        await trio.lowlevel.checkpoint()
        if self._pty is None:
            return  # the command ended as soon as it began
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._pty, left) :]
            except BlockingIOError:
                if _is_hung_up(self._pty):
                    return
                await trio.lowlevel.wait_writable(self._pty)
            except OSError:
                return  # input after the end is dropped; receive() reports the end

    async def resize(self, columns: int, rows: int) -> None:
        with contextlib.suppress(Refused):
            await self._api.resize_exec(self._id, columns, rows)

    async def _ended(self) -> int | None:
        """The exit code, which Podman has a moment after the end of the output."""
        with contextlib.suppress(Refused, BackendUnavailable), trio.move_on_after(END_SECONDS):
            while (seen := await self._api.inspect_exec(self._id)) is not None:
                if not seen.running:
                    return seen.exit_code
                await trio.sleep(0.05)
        return None


class Leash:
    """A file named after a command, and locked while its terminal is open."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @property
    def exec_id(self) -> str:
        return self._path.name

    def remove(self) -> None:
        """Delete the file, since the command has ended."""
        self._path.unlink(missing_ok=True)

    def let_go(self) -> None:
        """Unlock the file. Unless it was removed, a sweep then ends the command."""
        os.close(self._descriptor)


class Leashes:
    """The leashes of all commands of an installation; processes may share ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)

    def take(self, exec_id: str) -> Leash:
        with self._alone():
            descriptor = self._open(exec_id, os.O_CREAT)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Leash(self._directory / exec_id, descriptor)

    def dropped(self) -> list[Leash]:
        """The leashes that no process held. The caller holds them now."""
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
        """Exclude other processes: a file exists for a moment before it is locked."""
        lock = self._open(".lock", os.O_CREAT)
        try:
            # Other processes hold it for a fraction of a millisecond.
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


class Terminals:
    """Opens terminals, and ends commands of processes that died."""

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
                    # Otherwise it would run on without Podman knowing it.
                    with trio.CancelScope(shield=True):
                        starting = self._api.start_exec(leash.exec_id, columns, rows, START_SECONDS)
                        stream, first = await stack.enter_async_context(starting)
                        process = await _descriptor(self._api, leash.exec_id, stream)
                        if process is not None:
                            stack.push_async_callback(_end, process)
                pty = None if process is None else stack.enter_context(_pty_of(process))
                if process is None:
                    await self._check_started(name, leash.exec_id, stream)
                yield PodmanTerminal(self._api, leash.exec_id, stream, first, pty)
        except Refused as refused:
            raise BackendUnavailable(f"Podman opens no terminal: {refused}") from None
        finally:
            if leash is not None:
                await self._clear(leash)

    async def _check_started(self, name: str, exec_id: str, stream: trio.SocketStream) -> None:
        """Raise BackendUnavailable, with a reason for the user, if the command could not be
        started."""
        seen = await self._api.inspect_exec(exec_id)
        if seen is None or seen.exit_code != NOT_STARTED:
            return
        said = b""
        with trio.move_on_after(END_SECONDS), contextlib.suppress(trio.BrokenResourceError):
            said = bytes(await stream.receive_some(READ_BYTES))
        log.warning("podman: no terminal in %s: %s", name, said.decode("utf-8", "replace").strip())
        if has_free_pty():
            raise BackendUnavailable(
                f"The container cannot start a terminal: it has none of its {PTYS} PTYs left, no "
                f"process or no memory. End something in it, or stop and start it."
            )
        raise BackendUnavailable(
            "This machine has no PTY left, so no terminal can be opened: try again later. Its "
            "operator can raise kernel.pty.max."
        )

    async def _clear(self, leash: Leash) -> None:
        """End what is left of a command. Returns when nothing is: until then the terminal counts
        for its container."""
        try:
            with trio.move_on_after(CLEAR_SECONDS, shield=True):
                while True:
                    if await self._ends({leash.exec_id}):
                        leash.remove()
                        return
                    await trio.sleep(0.05)
        finally:
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
        except Refused:
            seen = await self._api.inspect(name)
            if seen is None or not seen.runs:
                raise Impossible("The container does not run.") from None
            raise

    # --- commands without a terminal ----------------------------------------------------

    async def sweep_regularly(self) -> None:
        """End commands whose leash no process holds. One process of a machine does this."""
        while True:
            async with trio.open_nursery() as nursery:
                for leash in self._leashes.dropped():
                    nursery.start_soon(self._sweep, leash)
            await trio.sleep(SWEEP_SECONDS)

    async def _sweep(self, leash: Leash) -> None:
        try:
            async with self._sweeps:
                if await self._ends({leash.exec_id}):
                    leash.remove()
        finally:
            leash.let_go()

    async def end_all(self, exec_ids: Collection[str]) -> None:
        """End these commands of a container that is to be removed: Podman does not remove it
        while one of them runs, or seems to. Raises nothing; takes some seconds at most, and a
        minute if Podman is just starting one of them."""
        await self._ends(exec_ids)

    async def _ends(self, exec_ids: Collection[str]) -> bool:
        """End commands. Returns whether nothing of them is left or can still start."""
        forgotten = True
        # This also prevents a command from being started; if Podman is just starting it,
        # Podman answers after that.
        for exec_id in exec_ids:
            try:
                forgotten &= await self._api.remove_exec(exec_id)
            except BackendUnavailable:
                forgotten = False
        # This finds a command that Podman does not know, or refuses to forget since it
        # runs. It reads all processes, whose number tenants determine, so in a thread.
        conmons, commands = await trio.to_thread.run_sync(_commands, exec_ids)
        async with trio.open_nursery() as nursery:
            for process in commands:
                nursery.start_soon(_end, process)
        return forgotten and not conmons


async def _end(process: int) -> None:
    """End a command, with its conmon if that does not notice it. Closes the descriptor. Cannot
    be cancelled; takes some seconds at most."""
    kept = os.dup(process)
    conmon = parent(process, "conmon")
    await end(process, signal.SIGHUP, HANG_UP_SECONDS)
    if conmon is not None:
        if await reaped(kept, REAP_SECONDS):
            os.close(conmon)
        else:
            await end(conmon, signal.SIGKILL, HANG_UP_SECONDS)
            await reaped(kept, REAP_SECONDS)
    os.close(kept)


@contextlib.contextmanager
def _pty_of(process: int) -> Iterator[int | None]:
    """The PTY of a command, for writing without waiting; None if the command has ended. Raises
    BackendUnavailable."""
    conmon = parent(process, "conmon")
    if conmon is None:
        yield None
        return
    try:
        pty = copy_descriptor(conmon, PTMX)
    except PermissionError:
        raise BackendUnavailable(
            "No terminal can be opened: the control plane lacks the capability CAP_SYS_PTRACE, "
            "with which it gives input to commands in containers."
        ) from None
    except OSError:
        pty = None
    finally:
        os.close(conmon)
    if pty is None:
        yield None
        return
    try:
        # For conmon as well, which only reads from it when there is something to read.
        os.set_blocking(pty, False)
        yield pty
    finally:
        os.close(pty)


def _is_hung_up(pty: int) -> bool:
    """Whether no process has it open any more. Then it has no room, and counts as writable."""
    look = select.poll()
    look.register(pty, 0)
    return any(event & select.POLLHUP for _, event in look.poll(0))


def _commands(exec_ids: Collection[str]) -> tuple[list[int], list[int]]:
    """The conmon processes of commands, and descriptors of their children."""
    conmons = running("conmon", exec_ids)
    found = [held(pid) for conmon in conmons for pid in children(conmon) if not _cleans_up(pid)]
    return conmons, [process for process in found if process is not None]


def _cleans_up(pid: int) -> bool:
    """Whether it is Podman, which conmon runs at its own end, and not of a container."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/comm").read_text() == "podman\n":
            return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
    return False


async def _descriptor(api: Api, exec_id: str, stream: trio.SocketStream) -> int | None:
    """A descriptor of the command's process, so that signals never reach another one; None if
    it has ended already, or is not known."""
    with trio.move_on_after(PID_SECONDS), contextlib.suppress(BackendUnavailable):
        while (seen := await api.inspect_exec(exec_id)) is not None:
            if seen.running and seen.pid:
                return held(seen.pid)
            # Podman reports it as running not yet, or not any more. In the latter case there
            # is output or the end to read.
            has_begun = stream.socket.is_readable()
            await trio.sleep(0.02)
            if has_begun:
                seen = await api.inspect_exec(exec_id)
                return held(seen.pid) if seen is not None and seen.running else None
    return None
