"""The floor under us: the same bytes over the same sockets, with nothing else.

*Bare chain*: three Trio processes that receive, hash, write and pass on, as a
write chain must. *Bare sendfile*: one process sends a file from the page cache
with ``sendfile``, one Trio reader receives it, and nobody looks at the bytes.

The clock starts when all processes are up and connected. They are processes of
their own, not forks, so this can run in between the measurements of a cluster.
"""

from __future__ import annotations

import argparse
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from gfs.blocks import CHUNK_BYTES, MIB, block_sums

HEAD = 16 * 1024
LINKS = 3
READY, DONE = b"r", b"d"
STOP_SECONDS = 10.0


def chain(total: int, folder: Path) -> float:
    """MiB/s of a bare three-process chain, from one sender."""
    data = memoryview(os.urandom(MIB))
    with (
        _processes("link", LINKS, total, folder) as port,
        socket.create_connection(("127.0.0.1", port)) as sock,
    ):
        _expect(sock, READY)
        started = time.perf_counter()
        for _ in range(total // MIB):
            block_sums(data)
            sock.sendall(data)
        _expect(sock, DONE)
        return total / MIB / (time.perf_counter() - started)


def sendfile(total: int, folder: Path) -> float:
    """MiB/s of bare ``sendfile`` from the page cache to one Trio reader."""
    with _processes("send", 1, total, folder) as port:
        return trio.run(_read_all, port, total)


def _expect(sock: socket.socket, word: bytes) -> None:
    if sock.recv(1) != word:
        raise RuntimeError("a process of the bare measurement ended early")


@contextmanager
def _processes(role: str, count: int, total: int, folder: Path) -> Iterator[int]:
    """Run ``count`` processes, each connected to the next; yields the first's port."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for listener, onward in zip(listeners, [*ports[1:], 0], strict=True):
            running.append(
                subprocess.Popen(
                    [
                        sys.executable, "-m", "bench.bare", role,
                        str(listener.fileno()), str(onward), str(total), str(folder),
                    ],
                    pass_fds=[listener.fileno()],
                )
            )  # fmt: skip
        yield ports[0]
        for process in running:
            process.wait(STOP_SECONDS)
    finally:
        for process in running:
            process.kill()
            process.wait()
        for listener in listeners:
            listener.close()


async def _read_all(port: int, total: int) -> float:
    with trio.socket.socket() as sock:
        await sock.connect(("127.0.0.1", port))
        view = memoryview(mmap.mmap(-1, MIB))
        if await sock.recv(1) != READY:
            raise RuntimeError("the sender ended early")
        started = time.perf_counter()
        await sock.send(READY)
        done = 0
        while done < total:
            count = await sock.recv_into(view)
            if not count:
                raise RuntimeError("the sender ended early")
            done += count
        return total / MIB / (time.perf_counter() - started)


# --- what the processes do -------------------------------------------------------


async def _receive(sock: trio.socket.SocketType, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = await sock.recv_into(view[done:])
        if not count:
            raise EOFError
        done += count


async def _send(sock: trio.socket.SocketType, view: memoryview) -> None:
    done = 0
    while done < len(view):
        done += await sock.send(view[done:])


async def _link(listener: socket.socket, onward: int, total: int, folder: str) -> None:
    upstream, _ = await trio.socket.from_stdlib_socket(listener).accept()
    downstream = None
    if onward:
        downstream = trio.socket.socket()
        await downstream.connect(("127.0.0.1", onward))
        await downstream.recv(1)
    await upstream.send(READY)
    view = memoryview(mmap.mmap(-1, MIB))
    with tempfile.TemporaryDirectory(dir=folder) as own:
        file = -1
        for number in range(total // MIB):
            at = number * MIB % CHUNK_BYTES
            if at == 0:
                if file >= 0:
                    os.close(file)
                file = os.open(f"{own}/{number}", os.O_RDWR | os.O_CREAT)
            await _receive(upstream, view)
            block_sums(view)
            if downstream is not None:
                await _send(downstream, view)
            os.pwrite(file, view, HEAD + at)
        if downstream is not None:
            await downstream.recv(1)
        await upstream.send(DONE)


async def _send_file(listener: socket.socket, onward: int, total: int, folder: str) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        piece = os.urandom(MIB)
        for _ in range(CHUNK_BYTES // MIB):
            file.write(piece)
        file.flush()
        sock, _ = listener.accept()
        sock.sendall(READY)
        sock.recv(1)
        for number in range(total // MIB):
            at, end = number * MIB % CHUNK_BYTES, (number * MIB % CHUNK_BYTES) + MIB
            while at < end:
                at += os.sendfile(sock.fileno(), file.fileno(), at, end - at)
        sock.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["link", "send"])
    for name in ("listener", "onward", "total"):
        parser.add_argument(name, type=int)
    parser.add_argument("folder")
    arguments = parser.parse_args()
    role = _link if arguments.role == "link" else _send_file
    listener = socket.socket(fileno=arguments.listener)
    try:
        trio.run(role, listener, arguments.onward, arguments.total, arguments.folder)
    except (EOFError, ConnectionError, KeyboardInterrupt):
        sys.exit(1)  # the other side is gone, and says why


if __name__ == "__main__":
    main()
