"""What thousands of slow clients of one address cost a client of another.

    python -m bench.slow                       # 5,000 of every kind together
    python -m bench.slow --kinds silent,head   # only of some kinds

The crowd is a process of its own at 127.0.0.2: clients that say nothing, whose heads or
bodies drip, who read 1 KiB of a large file a second, WebSockets that read nothing, and
event streams. A byte a second keeps each alive; one that is turned away or closed comes
back some five seconds later, for ever. Meanwhile a client at 127.0.0.1 asks for a file of 1 KiB,
in turns on a connection that it keeps and on a new one. The figures are milliseconds
for an answer, in turns with the crowd there and without.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench import cluster
from bench.rest import SPACE, Rest, log_in, upload_raw
from gfs.blocks import KIB, MIB

SECONDS = 6.0
GATHER_SECONDS = 10.0
LARGE_BYTES = 64 * MIB
DRIP_SECONDS = 1.0
AGAIN_SECONDS = 5.0
OURS, THEIRS = "127.0.0.1", "127.0.0.2"
KINDS = ("silent", "head", "body", "reader", "websocket", "events")


def first_bytes(kind: str, token: str) -> bytes:
    """What a slow client of this kind sends at once."""
    head = f"Host: bench\r\nAuthorization: Bearer {token}\r\n"
    large = f"/storage/{SPACE}/large"
    return {
        "silent": "",
        "head": "GET /healthz HTTP/1.1\r\n",
        "body": f"PUT {large}-%d?overwrite=true HTTP/1.1\r\n{head}Content-Length: 99999\r\n\r\n",
        "reader": f"GET {large} HTTP/1.1\r\n{head}\r\n",
        "websocket": f"GET /compute/ws HTTP/1.1\r\n{head}Upgrade: websocket\r\nConnection: "
        "Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n",
        "events": f"GET /sse/progress?id=bench-%d HTTP/1.1\r\n{head}\r\n",
    }[kind].encode()


class Crowd:
    """So many slow clients, in one thread, for ever."""

    def __init__(self, place: tuple[str, int], token: str, kinds: list[str], size: int) -> None:
        self._place = place
        self._first = {kind: first_bytes(kind, token) for kind in kinds}
        self._kinds = [kinds[number % len(kinds)] for number in range(size)]
        self._selector = selectors.DefaultSelector()
        self._sockets: dict[int, socket.socket] = {}
        #: When which client does what it does next.
        self._turns = [(time.monotonic(), number) for number in range(size)]
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        while True:
            now = time.monotonic()
            while self._turns and self._turns[0][0] <= now:
                self._turn(heapq.heappop(self._turns)[1])
            for key, events in self._selector.select(0.02):
                self._ready(key.data, bool(events & selectors.EVENT_WRITE))

    def _turn(self, number: int) -> None:
        sock = self._sockets.get(number)
        if sock is None:
            self._connect(number)
            return
        kind = self._kinds[number]
        try:
            if kind == "head":
                sock.send(b"X")
            elif kind == "body":
                sock.send(b"x")
            elif kind == "reader":
                sock.recv(KIB)
        except BlockingIOError:
            pass
        except OSError:
            self._leave(number)
            return
        self._in(number, DRIP_SECONDS)

    def _in(self, number: int, seconds: float) -> None:
        heapq.heappush(self._turns, (time.monotonic() + seconds, number))

    def _connect(self, number: int) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
        sock.setblocking(False)
        try:
            sock.bind((THEIRS, 0))
            sock.connect_ex(self._place)
        except OSError:
            sock.close()
            self._in(number, AGAIN_SECONDS * random.uniform(0.5, 1.5))
            return
        self.counts["connects"] += 1
        self._sockets[number] = sock
        self._selector.register(sock, selectors.EVENT_WRITE, number)

    def _ready(self, number: int, writable: bool) -> None:
        sock = self._sockets[number]
        kind = self._kinds[number]
        try:
            if writable:
                first = self._first[kind]
                sock.send(first % number if b"%d" in first else first)
                reads = kind not in ("reader", "websocket")
                if reads:
                    self._selector.modify(sock, selectors.EVENT_READ, number)
                else:
                    self._selector.unregister(sock)
                self._in(number, DRIP_SECONDS)
            elif not sock.recv(64 * KIB):
                raise ConnectionResetError
        except BlockingIOError:
            pass
        except OSError:
            self._leave(number)

    def _leave(self, number: int) -> None:
        """Closed by the server: come again."""
        sock = self._sockets.pop(number)
        with suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        sock.close()
        self.counts["closed"] += 1
        self._in(number, AGAIN_SECONDS * random.uniform(0.5, 1.5))


@contextmanager
def crowd(rest: Rest, kinds: list[str], size: int) -> Iterator[None]:
    host, port = rest.address
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "bench.slow",
            "--crowd",
            f"{host}:{port}",
            "--clients",
            str(size),
            "--kinds",
            ",".join(kinds),
        ],
        stdin=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(rest.token.encode() + b"\n")
    process.stdin.flush()
    try:
        time.sleep(GATHER_SECONDS)
        yield
    finally:
        process.kill()
        process.wait()


# --- the client at the other address ----------------------------------------------------


def ask(sock: socket.socket, request: bytes) -> None:
    sock.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < KIB:
        more = sock.recv(64 * KIB)
        if not more:
            raise RuntimeError(f"the other client was cut off after {data[:200]!r}")
        data += more
    if not data.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"the other client was answered {data[:200]!r}")


def measured(rest: Rest, seconds: float) -> dict[str, list[float]]:
    request = rest.head("GET", f"/storage/{SPACE}/small", None)
    times: dict[str, list[float]] = {"kept": [], "new": []}
    end = time.monotonic() + seconds
    with socket.create_connection(rest.address, 60, (OURS, 0)) as kept:
        kept.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.monotonic() < end:
            start = time.perf_counter()
            ask(kept, request)
            times["kept"].append(time.perf_counter() - start)
            start = time.perf_counter()
            with socket.create_connection(rest.address, 60, (OURS, 0)) as new:
                ask(new, request)
            times["new"].append(time.perf_counter() - start)
            time.sleep(0.01)
    return times


def figures(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100)
    return {name: round(cuts[at - 1] * 1000, 2) for name, at in [("p50", 50), ("p95", 95)]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.slow", description=__doc__)
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--crowd", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    kinds = arguments.kinds.split(",")
    if arguments.crowd:
        host, _, port = arguments.crowd.rpartition(":")
        Crowd((host, int(port)), sys.stdin.readline().strip(), kinds, arguments.clients).run()
    environment = {"GFS_CONTROL_WORKERS": str(arguments.workers)}
    result: dict[str, object] = {"load_before": round(os.getloadavg()[0], 2)}
    with (
        cluster.interrupted_cleanly(),
        cluster.running(environment=environment) as servers,
        tempfile.TemporaryDirectory() as folder,
    ):
        rest = log_in(servers)
        source = Path(folder) / "large"
        source.write_bytes(bytes(LARGE_BYTES))
        upload_raw(rest, source)
        with socket.create_connection(rest.address) as sock:
            head = rest.head("PUT", f"/storage/{SPACE}/small", KIB)
            sock.sendall(head + bytes(KIB))
            sock.recv(64 * KIB)
        times: dict[str, list[float]] = {}
        for _ in range(arguments.rounds):
            for name, found in measured(rest, SECONDS).items():
                times.setdefault(f"{name}, alone", []).extend(found)
            before = cluster.cpu_seconds_of(servers.control)
            with crowd(rest, kinds, arguments.clients):
                busy = cluster.cpu_seconds_of(servers.control) - before
                for name, found in measured(rest, SECONDS).items():
                    times.setdefault(f"{name}, beside the crowd", []).extend(found)
            print(f"the control plane used {busy:.1f} s of CPU in the crowd's first 10 s")
    for name in sorted(times):
        result[name] = figures(times[name])
        print(f"{name:26} {result[name]} ms")
    print(json.dumps(result | {"load_after": round(os.getloadavg()[0], 2)}))


if __name__ == "__main__":
    main()
