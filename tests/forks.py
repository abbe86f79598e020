"""``gfs`` commands as processes that are forked of one which has imported what they need.

Each is a process of its own, with its own descriptors, environment and end. But a new
interpreter with these imports takes half a second of CPU, and with those of the control
plane a whole one, which is most of what many commands take, and some tests start a hundred.

So are those that ``gfs up`` and the control plane start, and start again: they are children
of it, as they are for users, with the descriptors that it gives them. Tests of how a new
interpreter starts use one.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import functools
import gc
import importlib
import json
import os
import platform
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from limits import HANG_SECONDS
from signals import send

MESSAGE_BYTES_MAX = 128 * 1024
GFS_CLI = Path(__file__).parents[1] / "gfs" / "cli"
IMPORTED = [
    *(f"gfs.cli.{path.stem}" for path in GFS_CLI.glob("[a-z]*.py")),
    *("gfs.chunkserver", "gfs.client.sync", "gfs.cluster.supervisor", "gfs.master.process"),
    *("rich.console", "rich.progress", "rich.table"),
]
#: What the control plane is built on, and that itself.
BELOW_CONTROL = [
    *("argon2", "cryptography.hazmat.primitives.asymmetric.ec", "cryptography.x509"),
    *("hypercorn.trio", "jwt", "multipart", "quart", "quart_trio", "wsproto"),
]
CONTROL = ["control.auth", "control.cli.serving", "control.compute", "control.storage"]
#: A process that forks the children of another: what ``ps`` calls it.
STARTER = "forks-children"
PR_SET_NAME = 15
CLONE_PARENT = 0x8000
SYS_CLONE = {"x86_64": 56, "aarch64": 220}
#: Why the test that runs may start no process (tests/tiers.py).
refused = ""
#: A directory with ``gfs`` and ``control`` of another release, of which every second chunkserver
#: then is.
OTHERS = os.environ.get("GFS_TEST_OTHERS", "")
SECOND = re.compile(r"/chunkserver-[0-9]*[02468]$")
#: None of our processes has so many descriptors when it begins.
DESCRIPTOR_MIN = 200


class Command:
    """A command that runs, as :class:`subprocess.Popen` has it."""

    def __init__(
        self,
        arguments: Sequence[str | os.PathLike[str]],
        *,
        stdin: int | None = None,
        stdout: int,
        stderr: int,
        env: Mapping[str, str],
        cwd: str | os.PathLike[str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """The descriptors stay the caller's. Without ``stdin`` there is none to be read."""
        if refused:
            raise AssertionError(refused)
        self.returncode: int | None = None
        self._end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, open(os.devnull, "rb") as nothing:
            if stdin is None:
                stdin = nothing.fileno()
            request = {
                "arguments": [os.fspath(argument) for argument in arguments],
                "environment": dict(env),
                "directory": os.fspath(cwd or os.getcwd()),
                "numbers": [0, 1, 2, *pass_fds],
            }
            with _lock:
                descriptors = [stdin, stdout, stderr, *pass_fds, theirs.fileno()]
                socket.send_fds(
                    _server(*_imports(arguments)), [json.dumps(request).encode()], descriptors
                )
        self.pid = int(self._end.recv(100))

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._end.settimeout(timeout)
            try:
                self.returncode = int(self._end.recv(100))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(f"pid {self.pid}", timeout or 0) from None
            self._end.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                send(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    arguments: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str],
    input: bytes = b"",
    cwd: str | os.PathLike[str] | None = None,
    timeout: float = HANG_SECONDS,
    text: bool = False,
) -> subprocess.CompletedProcess[Any]:
    """As :func:`subprocess.run` does with captured output."""
    (stdin, feed), (out, stdout), (err, stderr) = os.pipe(), os.pipe(), os.pipe()
    try:
        command = Command(arguments, stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd)
    finally:
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)
    with ThreadPoolExecutor(3) as threads:
        threads.submit(_write, feed, input)
        results = [threads.submit(_read, descriptor) for descriptor in (out, err)]
        try:
            code = command.wait(timeout)
        except BaseException:
            command.kill()
            command.wait()
            raise
        found = [each.result() for each in results]
    return subprocess.CompletedProcess(
        arguments, code, *(each.decode() if text else each for each in found)
    )


def _write(descriptor: int, data: bytes) -> None:
    # A command need not read all.
    with contextlib.suppress(BrokenPipeError), open(descriptor, "wb", buffering=0) as file:
        while data:
            data = data[file.write(data) :]


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


_lock = threading.Lock()


def _imports(arguments: Sequence[str | os.PathLike[str]]) -> list[str]:
    """What is imported before a command is forked."""
    if "control" not in arguments and ("up" not in arguments or "--no-control" in arguments):
        return IMPORTED
    # Workers share their metrics, which is decided where these are imported.
    has_workers = any("workers" in os.fspath(argument) for argument in arguments)
    return IMPORTED + BELOW_CONTROL + ([] if has_workers else CONTROL)


@functools.cache
def _server(*imports: str) -> socket.socket:
    """Of this process; it ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), *imports],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def serve(requests: socket.socket) -> list[str] | None:
    """Fork for each request: returns in each child what it is to do, and None at the end."""
    ends: dict[int, socket.socket] = {}
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # Ctrl-C ends the tests, which end this and want to know how their commands ended.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            os.read(woken, 1024)
            while ends:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                with ends.pop(pid) as end:
                    _report(end, os.waitstatus_to_exitcode(status))
        if requests in ready:
            data, descriptors, _, _ = socket.recv_fds(requests, MESSAGE_BYTES_MAX, 20)
            if not data:
                return None
            end = socket.socket(fileno=descriptors.pop())
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for each in (requests, end, *ends.values()):
                    each.close()
                os.close(woken)
                os.close(wake)
                return _become(descriptors, **json.loads(data))
            _report(end, pid)
            ends[pid] = end
            for descriptor in descriptors:
                os.close(descriptor)


def _report(end: socket.socket, number: int) -> None:
    # Nobody may wait for it any more.
    with contextlib.suppress(OSError):
        end.send(str(number).encode())


def _become(
    descriptors: Sequence[int],
    *,
    arguments: list[str],
    environment: dict[str, str],
    directory: str,
    numbers: Sequence[int],
) -> list[str]:
    """Make this new process that of the command; returns its arguments."""
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, DESCRIPTOR_MIN) for each in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(moved, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    more = environment.get("PYTHONPATH", "")
    if more != os.environ.get("PYTHONPATH", ""):
        sys.path[:0] = filter(None, more.split(os.pathsep))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    if OTHERS and "chunkserver" in arguments and any(map(SECOND.search, arguments)):
        started = [sys.executable, "-m", "gfs.cli", *arguments]
        os.execve(sys.executable, started, {**environment, "PYTHONPATH": OTHERS})
    sys.argv = [str(GFS_CLI / "__main__.py"), *arguments]
    return _fork_what_it_starts(arguments)


def _fork_what_it_starts(arguments: list[str]) -> list[str]:
    """From now on this process forks where it would start a new interpreter with ``gfs``.

    That cannot be done in the middle of whatever it does. So another process does it for
    it, which was forked while nothing had begun; it makes siblings, not children. Returns
    in each of those, too, with its own arguments.
    """
    starts_some = "up" in arguments or any("--workers" in argument for argument in arguments)
    if not starts_some or platform.machine() not in SYS_CLONE:
        return arguments
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        _start_through(ours)
        return arguments
    ours.close()
    _name_process(STARTER)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What the command was given ends with it.
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.closerange(3, theirs.fileno())
    os.closerange(theirs.fileno() + 1, 2 * DESCRIPTOR_MIN)
    while True:
        data, descriptors, _, _ = socket.recv_fds(theirs, MESSAGE_BYTES_MAX, 20)
        if not data:
            os._exit(0)
        pid = _fork_sibling()
        if not pid:
            theirs.close()
            _name_process("gfs")
            os.setsid()
            return _become(descriptors, **json.loads(data))
        _report(theirs, pid)
        for descriptor in descriptors:
            os.close(descriptor)


def _name_process(name: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def _fork_sibling() -> int:
    """As :func:`os.fork`, but the new process is a child of this one's parent."""
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    call = ctypes.c_long(SYS_CLONE[platform.machine()])
    # Of PyDLL, which does not let go of the interpreter's lock meanwhile.
    flags = ctypes.c_long(CLONE_PARENT | signal.SIGCHLD)
    pid = int(ctypes.PyDLL(None).syscall(call, flags, None, None, None, None))
    (python.PyOS_AfterFork_Parent if pid else python.PyOS_AfterFork_Child)()
    return pid


def _start_through(starter: socket.socket) -> None:
    import trio

    from gfs.cluster.children import interpreter

    class Child:
        """What is used of a :class:`trio.Process`."""

        def __init__(self, pid: int) -> None:
            self.pid = pid
            self._returncode: int | None = None

        @property
        def returncode(self) -> int | None:
            if self._returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self._returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self._returncode

        async def wait(self) -> int:
            if self.returncode is None:
                descriptor = os.pidfd_open(self.pid)
                try:
                    await trio.lowlevel.wait_readable(descriptor)
                finally:
                    os.close(descriptor)
            assert self.returncode is not None
            return self.returncode

        def terminate(self) -> None:
            self._send(signal.SIGTERM)

        def kill(self) -> None:
            self._send(signal.SIGKILL)

        def _send(self, number: int) -> None:
            if self.returncode is None:
                os.kill(self.pid, number)

    start_interpreter = trio.lowlevel.open_process
    prefix = interpreter()

    async def open_process(command: Sequence[str], **options: Any) -> Any:
        if list(command[: len(prefix)]) != prefix:
            return await start_interpreter(command, **options)
        passed = options["pass_fds"]
        request = {
            "arguments": command[len(prefix) :],
            "environment": options["env"],
            "directory": os.getcwd(),
            "numbers": [1, 2, *passed],
        }
        output = [
            number if options[name] is None else options[name]
            for number, name in ((1, "stdout"), (2, "stderr"))
        ]
        socket.send_fds(starter, [json.dumps(request).encode()], [*output, *passed])
        return Child(int(starter.recv(100)))

    trio.lowlevel.open_process = open_process


def _end() -> None:
    """Without taking down, object by object, what this process shares with others: that is
    half of what short commands would take. The last of what is done at its exit."""
    code = _exit_code
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120  # as the interpreter has it
    os._exit(code)


_exit_code = 1  # of an exception

if __name__ == "__main__":
    # The folder of this file is no place for a command's imports.
    del sys.path[0]
    atexit.register(_end)
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    asked = serve(socket.socket(fileno=int(sys.argv[1])))
    if asked is not None:
        from gfs.cli.command import run as run_command

        _exit_code = run_command(asked)
