"""Podman's REST service, which we run for ourselves alone.

``podman system service`` is a child of the process that drives this machine's
containers; its socket, in a directory that only we can enter, serves the other worker
processes, too. It is used instead of the command ``podman`` since a command takes 60 to
180 ms and 40 MB, and the same call to the service 10 ms; and instead of the system's own
socket since many machines have none, and ours can have the settings that we need.

Containers do not depend on the service: if it ends it is started again. A service whose
parent was killed ends by itself soon after its last connection; while it answers, it is
used, and later ended, like our own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from pathlib import Path
from subprocess import DEVNULL

import trio

from control.compute.backend import BackendUnavailable
from control.compute.podman.engine.http import Client
from control.compute.podman.engine.processes import end, held
from gfs.variables import environment_of_child

SOCKET = "podman.sock"
LOG = "podman-service.log"
CONF = "containers.conf"
#: After this time without a connection it ends by itself. The watch always has one.
IDLE_SECONDS = 30
START_SECONDS = 20.0
PING_SECONDS = 5.0
STOP_SECONDS = 5.0
COMMAND_SECONDS = 60.0
#: The size of its log, which has a line for many calls that it refuses.
LOG_BYTES_MAX = 1024 * 1024
LOG_BYTES_KEPT = 64 * 1024

#: The kernel's struct ucred: pid, uid, gid.
_UCRED = struct.Struct("3i")

# Ctrl-P and Ctrl-Q belong to the program in a terminal. A process remembers for this many
# seconds (by default five minutes) how a command has ended; we ask at once.
_CONF = """\
[engine]
detach_keys = ""
exit_command_delay = 3
"""


class Service:
    """The service in ``directory``, which must exist and be ours alone (mode 0700)."""

    def __init__(self, directory: str, podman: str, runtime: str) -> None:
        self._directory = Path(directory)
        self._command = [podman, *(["--runtime", runtime] if runtime else [])]
        self.client = Client(directory, SOCKET)
        self._child: trio.Process | None = None
        #: The descriptor of a service that an earlier process has started.
        self._found: int | None = None
        self._tried = trio.Event()
        #: Why the last start failed; "": it did not.
        self._failure = ""

    async def answers(self) -> bool:
        try:
            await self.client.ask("GET", "/_ping", seconds=PING_SECONDS)
        except BackendUnavailable:
            return False
        return True

    async def ensure(self) -> None:
        """Return when the service answers; start it if it does not. Only the driver may call
        this.

        Raises BackendUnavailable if the service cannot be started.
        """
        try:
            await self._ensure()
            self._failure = ""
        except BackendUnavailable as error:
            self._failure = str(error)
            raise
        finally:
            self._tried.set()

    async def begun(self) -> None:
        """Return when :meth:`ensure` has ended once. Raises BackendUnavailable, with the
        reason, if the service could not be started."""
        with trio.move_on_after(START_SECONDS):
            await self._tried.wait()
        if self._failure:
            raise BackendUnavailable(self._failure)

    async def _ensure(self) -> None:
        if await self.answers():
            await self._take_over()
            return
        await self.close()
        with contextlib.suppress(FileNotFoundError):
            (self._directory / SOCKET).unlink()
        (self._directory / CONF).write_text(_CONF)
        self._child = await self._start()
        with trio.move_on_after(START_SECONDS):
            while self._child.poll() is None:
                if await self.answers():
                    return
                await trio.sleep(0.05)
        await self.close()
        raise BackendUnavailable(
            f"{' '.join(self._command)} system service does not start: {self._last_words()}"
        )

    def trim_log(self) -> None:
        """Truncate the log if it is too long. To be called now and then."""
        with (self._directory / LOG).open("a+b") as log:
            size = log.seek(0, os.SEEK_END)
            if size <= LOG_BYTES_MAX:
                return
            log.seek(size - LOG_BYTES_KEPT)
            kept = log.read(LOG_BYTES_KEPT)
            # The service appends, too, so its next line goes to the new end.
            log.truncate(0)
            log.write(kept.partition(b"\n")[2])

    async def close(self) -> None:
        """End the service, if we started it or took it over."""
        found, self._found = self._found, None
        if found is not None:
            await end(found, signal.SIGTERM, STOP_SECONDS)
        child, self._child = self._child, None
        if child is None:
            return
        with trio.CancelScope(shield=True):
            child.terminate()
            with trio.move_on_after(STOP_SECONDS):
                await child.wait()
            child.kill()
            await child.wait()

    async def _start(self) -> trio.Process:
        arguments = ["system", "service", "--time", str(IDLE_SECONDS)]
        # It starts in its own directory, since a socket's path must be short.
        where = f"unix:///proc/self/cwd/{SOCKET}"
        (self._directory / LOG).write_bytes(b"")
        with (self._directory / LOG).open("ab") as log:
            try:
                return await trio.lowlevel.open_process(
                    [*self._command, *arguments, where],
                    stdin=DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._directory,
                    env=environment({"CONTAINERS_CONF_OVERRIDE": str(self._directory / CONF)}),
                    # Ctrl-C in our terminal must not end it before us.
                    start_new_session=True,
                )
            except OSError as error:
                raise BackendUnavailable(_cannot_run(self._command[0], error)) from None

    async def _take_over(self) -> None:
        if self._child is not None or self._found is not None:
            return
        with contextlib.suppress(BackendUnavailable):
            async with self.client.connected() as stream:
                credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
                # Its listener is ours: nobody else can enter the directory.
                self._found = held(_UCRED.unpack(credentials)[0])

    def _last_words(self) -> str:
        lines = (self._directory / LOG).read_bytes()[-2000:].decode("utf-8", "replace").split("\n")
        return next(
            (line.strip() for line in reversed(lines) if line.strip()), "it printed nothing"
        )


async def run_podman(podman: str, runtime: str, *arguments: str) -> tuple[int, str]:
    """Run a command; returns its exit code and the last line of its output.

    Raises BackendUnavailable if it cannot be run or does not end.
    """
    command = [podman, *(["--runtime", runtime] if runtime else []), *arguments]
    try:
        with trio.fail_after(COMMAND_SECONDS):
            done = await trio.run_process(
                command, capture_stdout=True, capture_stderr=True, check=False, env=environment({})
            )
    except OSError as error:
        raise BackendUnavailable(_cannot_run(podman, error)) from None
    except trio.TooSlowError:
        raise BackendUnavailable(f"{' '.join(command)} does not end.") from None
    text = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
    return done.returncode, text.splitlines()[-1] if text else ""


def environment(more: dict[str, str]) -> dict[str, str]:
    """Our environment without our settings and passwords."""
    ours = environment_of_child(is_control=False)
    kept = {name: value for name, value in ours.items() if not name.startswith("GFS_")}
    # Podman warns at every start that cgroups v1 are old, which does not concern our users.
    return {**kept, "PODMAN_IGNORE_CGROUPSV1_WARNING": "1", **more}


def _cannot_run(podman: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"There is no program {podman!r}: install podman, or name it in compute.podman."
    return f"{podman!r} cannot be run: {error.strerror or error}."
