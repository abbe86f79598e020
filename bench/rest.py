"""The REST API, as its users call it: curl for large files, 16 kept connections
for small ones.

    python -m bench.rest                      # rates
    python -m bench.rest --memory --gib 10    # what one large transfer takes of memory

Large: 1 GiB from a file to ``POST /storage/upload`` with ``curl -F`` (multipart) and
with ``curl -T`` (raw), and back to ``/dev/null``. Small: 1 KiB each way. The small
requests come from one process that costs next to nothing beside the servers: the
requests are made beforehand, and answers are only looked at for their status and
length. Printed beside each rate: what the control plane and the file system's
servers used of the processors for it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import selectors
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench import cluster
from bench.memory import forget_peak, resident
from gfs.blocks import KIB, MIB

SPACE = "bench"
ROUNDS = 3
CONNECTIONS = 16
SMALL_BYTES = 1 * KIB
#: What the small files can have left on the disks; a large one is above it.
LEFT_BYTES_MAX = 1024 * MIB
BOUNDARY = "bench-boundary-1f9b0e"
CALL_SECONDS = 60.0


@dataclass(frozen=True)
class Rest:
    """A logged-in user of a cluster that serves."""

    servers: cluster.Running
    token: str

    @property
    def base(self) -> str:
        return self.servers.url

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.base)
        return parts.hostname or "127.0.0.1", parts.port or 80

    def head(self, method: str, target: str, length: int | None, more: str = "") -> bytes:
        body = f"Content-Length: {length}\r\n" if length is not None else ""
        return (
            f"{method} {target} HTTP/1.1\r\nHost: bench\r\n"
            f"Authorization: Bearer {self.token}\r\n{body}{more}\r\n"
        ).encode()


def log_in(servers: cluster.Running) -> Rest:
    """Log in and make the storage namespace of this measurement."""
    answer = post(
        f"{servers.url}/api/login", {"username": "admin", "password": cluster.PASSWORD}, ""
    )
    rest = Rest(servers, str(answer["token"]))
    post(f"{servers.url}/storage/namespaces", {"name": SPACE, "visibility": 0}, rest.token)
    return rest


def post(url: str, value: object, token: str) -> dict[str, object]:
    request = urllib.request.Request(
        url,
        json.dumps(value).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=CALL_SECONDS) as response:
        answer: dict[str, object] = json.load(response)
        return answer


# --- large files ---------------------------------------------------------------------


def curl(*arguments: str) -> float:
    """Run curl; the seconds it took by its own count. Raises on any refusal."""
    done = subprocess.run(
        ["curl", "-sS", "--fail-with-body", "-w", "%{stderr}%{time_total}", *arguments],
        env={**os.environ, "no_proxy": "*"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"curl {arguments}: {done.stdout[:500]!r} {done.stderr[:500]!r}")
    return float(done.stderr.decode().split()[-1])


def upload_form(rest: Rest, source: Path) -> float:
    return curl(
        "-H", f"Authorization: Bearer {rest.token}",
        "-F", f"file=@{source};filename=large",
        f"{rest.base}/storage/upload?namespace={SPACE}&overwrite=true",
    )  # fmt: skip


def upload_raw(rest: Rest, source: Path) -> float:
    return curl(
        "-H", f"Authorization: Bearer {rest.token}",
        "-T", str(source),
        f"{rest.base}/storage/{SPACE}/large?overwrite=true",
    )  # fmt: skip


def download(rest: Rest, source: Path) -> float:
    return curl(
        "-H", f"Authorization: Bearer {rest.token}",
        "-o", os.devnull,
        f"{rest.base}/storage/download?namespace={SPACE}&name=large",
    )  # fmt: skip


def delete_large(rest: Rest, before: int) -> None:
    """Every upload finds the disks and their caches as the one before did: with ``before`` bytes
    of other files."""
    for target in (f"{SPACE}/large", f"namespaces/{SPACE}/trash?path=large"):
        request = urllib.request.Request(
            f"{rest.base}/storage/{target}",
            method="DELETE",
            headers={"Authorization": f"Bearer {rest.token}"},
        )
        with suppress(urllib.error.HTTPError):  # the first finds none
            urllib.request.urlopen(request, timeout=CALL_SECONDS).close()
    deadline = time.monotonic() + CALL_SECONDS
    while rest.servers.stored_bytes() > before + LEFT_BYTES_MAX:
        if time.monotonic() > deadline:
            raise RuntimeError("the chunks of a deleted file are not collected")
        time.sleep(0.1)


LARGE: dict[str, Callable[[Rest, Path], float]] = {
    "upload, multipart": upload_form,
    "upload, raw": upload_raw,
    "download": download,
}


def large_files(rest: Rest, mib: int, folder: str | None) -> None:
    with tempfile.TemporaryDirectory(prefix="gfs-rest-", dir=folder) as scratch:
        source = Path(scratch) / "source"
        piece = os.urandom(MIB)
        with open(source, "wb") as file:
            for _ in range(mib):
                file.write(piece)
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in LARGE}
        before = rest.servers.stored_bytes()
        for _ in range(ROUNDS):
            for name, load in LARGE.items():
                if load is not download:
                    delete_large(rest, before)
                control, others = _cpu(rest)
                seconds = load(rest, source)
                now_control, now_others = _cpu(rest)
                gib = mib / 1024
                found[name].append(
                    (mib / seconds, (now_control - control) / gib, (now_others - others) / gib)
                )
    print(f"\none file of {mib} MiB with curl, medians of {ROUNDS} rounds")
    for name, rounds in found.items():
        rate, control, others = (statistics.median(column) for column in zip(*rounds, strict=True))
        each = ", ".join(f"{r[0]:.0f}" for r in rounds)
        print(
            f"  {name:<18} {rate:6.0f} MiB/s ({each}); processor per GiB: "
            f"control {control:.2f} s, master and chunkservers {others:.2f} s"
        )


def _cpu(rest: Rest) -> tuple[float, float]:
    return cluster.cpu_seconds_of(rest.servers.control), rest.servers.cpu_seconds()


# --- small files -----------------------------------------------------------------------


class Connection:
    """One kept connection: a request is sent when the last one is answered."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, CALL_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began = 0.0
        self._got = b""
        self._has_body = True

    def send(self, request: bytes) -> None:
        self._got = b""
        self._has_body = not request.startswith(b"HEAD ")
        self.began = time.perf_counter()
        self.socket.sendall(request)

    def is_answered(self) -> bool:
        """Read what is there; raises unless the answer is a success."""
        data = self.socket.recv(256 * KIB)
        if not data:
            raise RuntimeError(f"hung up after {self._got[:300]!r}")
        self._got += data
        head, end, body = self._got.partition(b"\r\n\r\n")
        if not end:
            return False
        if not head.startswith(b"HTTP/1.1 2"):
            raise RuntimeError(f"answered {self._got[:500]!r}")
        if not self._has_body or head.startswith(b"HTTP/1.1 204"):
            return True
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
        return len(body) >= int(length) if length else body.endswith(b"\r\n0\r\n\r\n")


def rate(address: tuple[str, int], requests: Iterator[bytes]) -> list[float]:
    """The milliseconds of each request; every connection has one under way."""
    taken: list[float] = []
    chooser = selectors.DefaultSelector()
    connections = [Connection(address) for _ in range(CONNECTIONS)]
    under_way = 0

    def send(connection: Connection) -> None:
        nonlocal under_way
        if (request := next(requests, None)) is not None:
            connection.send(request)
            under_way += 1

    for connection in connections:
        chooser.register(connection.socket, selectors.EVENT_READ, connection)
        send(connection)
    while under_way:
        ready = chooser.select(CALL_SECONDS)
        if not ready:
            raise RuntimeError(f"no answer in {CALL_SECONDS:.0f} s")
        for key, _ in ready:
            connection = key.data
            if connection.is_answered():
                under_way -= 1
                taken.append(1000 * (time.perf_counter() - connection.began))
                send(connection)
    chooser.close()
    for connection in connections:
        connection.socket.close()
    return taken


def numbers(seconds: float) -> Iterator[int]:
    """0, 1, 2 and so on, until the time is over."""
    until = time.perf_counter() + seconds
    return itertools.takewhile(lambda _: time.perf_counter() < until, itertools.count())


def small_files(rest: Rest, seconds: float) -> None:
    data = os.urandom(SMALL_BYTES)

    def form(number: int) -> bytes:
        body = (
            (
                f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; '
                f'filename="small-{number}"\r\nContent-Type: application/octet-stream\r\n\r\n'
            ).encode()
            + data
            + f"\r\n--{BOUNDARY}--\r\n".encode()
        )
        more = f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        return rest.head("POST", f"/storage/upload?namespace={SPACE}", len(body), more) + body

    def raw(number: int) -> bytes:
        return rest.head("PUT", f"/storage/{SPACE}/raw-{number}", len(data)) + data

    uploaded = 0

    def fetch(number: int) -> bytes:
        name = f"small-{number * 7919 % uploaded}"
        return rest.head("GET", f"/storage/download?namespace={SPACE}&name={name}", None)

    print(f"\nfiles of {SMALL_BYTES} bytes, {CONNECTIONS} kept connections")
    for name, request in (("upload, multipart", form), ("upload, raw", raw), ("download", fetch)):
        control, others = _cpu(rest)
        started = time.perf_counter()
        taken = rate(rest.address, map(request, numbers(seconds)))
        per_second = len(taken) / (time.perf_counter() - started)
        now_control, now_others = _cpu(rest)
        taken.sort()
        count = len(taken)
        uploaded = uploaded or count
        print(
            f"  {name:<18} {per_second:6.0f} /s; median {taken[count // 2]:.1f} ms, 99 % within "
            f"{taken[count * 99 // 100]:.1f} ms; processor per request: control "
            f"{1000 * (now_control - control) / count:.2f} ms, master and chunkservers "
            f"{1000 * (now_others - others) / count:.2f} ms"
        )


# --- memory ----------------------------------------------------------------------------


def memory(rest: Rest, gib: float) -> None:
    """Peak resident set of the control process over its idle one, for one large
    file each way. The bytes come from a pipe and go to /dev/null."""
    pid = rest.servers.control
    idle = resident(pid)
    total = int(gib * 1024) * MIB
    for name, command in (
        ("upload", _upload_from_pipe(rest, total)),
        (
            "download",
            f"curl -sS --fail -o {os.devnull} -H 'Authorization: Bearer {rest.token}' "
            f"'{rest.base}/storage/{SPACE}/large'",
        ),
    ):
        forget_peak(pid)
        started = time.perf_counter()
        subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], check=True)
        seconds = time.perf_counter() - started
        peak = resident(pid, "VmHWM")
        print(
            f"{name} of one file of {gib:g} GiB: {peak - idle:.1f} MiB over idle ({peak:.1f} over "
            f"{idle:.1f}), in {seconds:.0f} s"
        )


def _upload_from_pipe(rest: Rest, total: int) -> str:
    return (
        f"head -c {total} /dev/zero | curl -sS --fail -T - -H 'X-File-Size: {total}' "
        f"-H 'Authorization: Bearer {rest.token}' "
        f"'{rest.base}/storage/{SPACE}/large?overwrite=true' -o {os.devnull}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.rest", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the large file (> 512)")
    parser.add_argument("--seconds", type=float, default=5.0, help="time per rate")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of rates")
    parser.add_argument("--gib", type=float, default=10.0, help="size of the file for --memory")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    arguments = parser.parse_args()
    with cluster.interrupted_cleanly(), cluster.running(folder=arguments.dir) as servers:
        load = os.getloadavg()[0]
        print(f"{os.cpu_count()} cores, load average {load:.1f} before")
        rest = log_in(servers)
        if arguments.memory:
            memory(rest, arguments.gib)
        else:
            small_files(rest, arguments.seconds)
            large_files(rest, arguments.mib, arguments.dir)


if __name__ == "__main__":
    main()
