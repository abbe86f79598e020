"""The floor under us: the same bytes over the same sockets, with nothing else.

*Bare chain*: three Trio processes that receive, hash, write and pass on, as a
write chain must. *Bare sendfile*: one process sends a file with ``sendfile``,
one Trio reader receives it.
"""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
import time
from pathlib import Path

import trio

from gfs.blocks import CHUNK_BYTES, MIB, block_sums

HEAD = 16 * 1024


async def _receive(sock: trio.socket.SocketType, view: memoryview) -> bool:
    done = 0
    while done < len(view):
        count = await sock.recv_into(view[done:])
        if not count:
            return False
        done += count
    return True


async def _send(sock: trio.socket.SocketType, view: memoryview) -> None:
    done = 0
    while done < len(view):
        done += await sock.send(view[done:])


async def _link(listener: socket.socket, onward: int | None, folder: Path, total: int) -> None:
    accepting = trio.socket.from_stdlib_socket(listener)
    upstream, _ = await accepting.accept()
    downstream = None
    if onward is not None:
        downstream = trio.socket.socket()
        await downstream.connect(("127.0.0.1", onward))
    view = memoryview(mmap.mmap(-1, MIB))
    file = -1
    for number in range(total // MIB):
        at = number * MIB % CHUNK_BYTES
        if at == 0:
            if file >= 0:
                os.close(file)
            path = folder / f"{number}"
            file = os.open(path, os.O_RDWR | os.O_CREAT)
        await _receive(upstream, view)
        block_sums(view)
        if downstream is not None:
            await _send(downstream, view)
        os.pwrite(file, view, HEAD + at)
    if downstream is not None:
        await downstream.recv(1)
    await upstream.send(b"x")


def chain(total: int, folder: Path) -> float:
    """MiB/s of a bare three-process chain, from one sender."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [listener.getsockname()[1] for listener in listeners]
    children = []
    for number, listener in enumerate(listeners):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    onward = ports[number + 1] if number < 2 else None
                    trio.run(_link, listener, onward, Path(own), total)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    data = memoryview(os.urandom(MIB))
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", ports[0])) as sock:
        for _ in range(total // MIB):
            block_sums(data)
            sock.sendall(data)
        sock.recv(1)
    took = time.perf_counter() - started
    for pid in children:
        os.waitpid(pid, 0)
    for listener in listeners:
        listener.close()
    return total / MIB / took


async def _read_all(port: int, total: int) -> float:
    sock = trio.socket.socket()
    await sock.connect(("127.0.0.1", port))
    view = memoryview(mmap.mmap(-1, MIB))
    started = time.perf_counter()
    done = 0
    while done < total:
        done += await sock.recv_into(view)
    took = time.perf_counter() - started
    sock.close()
    return total / MIB / took


def sendfile(total: int, folder: Path) -> float:
    """MiB/s of bare ``sendfile`` from the page cache to one Trio reader."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        piece = os.urandom(MIB)
        for _ in range(CHUNK_BYTES // MIB):
            file.write(piece)
        file.flush()
        listener = socket.create_server(("127.0.0.1", 0))
        pid = os.fork()
        if not pid:
            try:
                sock, _ = listener.accept()
                left = total
                while left:
                    at = (total - left) % CHUNK_BYTES
                    left -= os.sendfile(sock.fileno(), file.fileno(), at, min(left, MIB))
            finally:
                os._exit(0)
        try:
            return trio.run(_read_all, listener.getsockname()[1], total)
        finally:
            os.waitpid(pid, 0)
            listener.close()
