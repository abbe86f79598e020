"""S3 beside the REST API, in the same run: large objects, parts, small objects, lists.

    python -m bench.s3

Large: 1 GiB from a file in one PUT, by REST and by S3, and as parts over 4 connections, once of
whole chunks, which are joined, and once smaller ones, which are copied; and back. The client costs
next to nothing: the kernel sends the file. Small: 1 KiB each way over 16 kept connections, as in
``bench.rest``, with a signature each. Then all keys of a bucket, 1,000 at a time. And the memory of
the control plane while 1,000 objects of 5 TiB are on their way.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import trio

import gfs
from bench import cluster, rest
from bench.memory import resident
from control.s3.signature import ALGORITHM, UNSIGNED, Key, Signed, canonical, parse_query
from gfs.blocks import KIB, MIB

PARTS_BYTES = (64 * MIB, 32 * MIB)
PARALLEL = 4
#: The longest object of S3, and how much of each the crowd sends.
OBJECT_BYTES, CROWD_BYTES = 5 * 1024 * 1024 * MIB, 1 * MIB
#: A user may have no more uploads under way, and an address no more connections.
PER_USER, PER_ADDRESS = 64, 192
#: Seconds for one request: completing 1 GiB copies it.
SECONDS = 300.0
LIST_FOLDER = "listed"
BATCH = 5000


@dataclass(frozen=True)
class S3:
    host: str
    access_key_id: str
    secret: str

    @property
    def address(self) -> tuple[str, int]:
        name, _, port = self.host.partition(":")
        return name, int(port)

    def head(self, method: str, path: str, length: int | None, **query: str) -> bytes:
        """A signed head; the payload is not."""
        text = urlencode(query, quote_via=quote)
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = f"{date[:8]}/us-east-1/s3/aws4_request"
        headers = [("host", self.host), ("x-amz-content-sha256", UNSIGNED), ("x-amz-date", date)]
        names = tuple(name for name, _ in headers)
        signed = Signed(self.access_key_id, scope, date, names, "", UNSIGNED)
        form = canonical(method, path.encode(), parse_query(text.encode()), headers, signed)
        digest = hashlib.sha256(form.encode()).hexdigest()
        signature = Key(self.secret, scope).sign(ALGORITHM, date, digest)
        lines = [
            f"{method} {path}{'?' * bool(text)}{text} HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers),
            f"authorization: {ALGORITHM} Credential={self.access_key_id}/{scope}, "
            f"SignedHeaders={';'.join(names)}, Signature={signature}",
            *([f"content-length: {length}"] if length is not None else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    def call(self, method: str, path: str, body: bytes = b"", **query: str) -> tuple[bytes, bytes]:
        """Head and body of the answer."""
        return exchange(self.address, self.head(method, path, len(body), **query) + body)


def connected(servers: cluster.Running, user: str = "admin") -> S3:
    """With a new key of the user."""
    made = subprocess.run(
        [sys.executable, "-m", "gfs.cli", "control", "s3-key", user, "--state", servers.state],
        env=cluster.ENVIRONMENT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    key = dict(line.split(": ") for line in made.splitlines())
    return S3(urlsplit(servers.s3).netloc, key["access key"], key["secret key"])


def exchange(
    address: tuple[str, int], head: bytes, source: Path | None = None, at: int = 0, count: int = 0
) -> tuple[bytes, bytes]:
    """One request on a connection of its own, with ``count`` bytes of a file as its body. The
    answer's head, and the body unless it is long. Raises unless it is a success."""
    with socket.create_connection(address, SECONDS) as connection:
        connection.sendall(head)
        if source is not None:
            # A refusal comes before the end of the body.
            with open(source, "rb") as file, suppress(BrokenPipeError, ConnectionResetError):
                connection.sendfile(file, at, count)
        got = bytearray()
        while b"\r\n\r\n" not in got:
            data = connection.recv(64 * KIB)
            if not data:
                raise RuntimeError(f"hung up after {bytes(got[:300])!r}")
            got += data
        answer, _, body = bytes(got).partition(b"\r\n\r\n")
        found = re.search(rb"\r\ncontent-length: (\d+)", answer, re.IGNORECASE)
        left = int(found[1]) - len(body) if found else 0
        pieces, buffer = [body], bytearray(1 * MIB)
        if re.search(rb"\r\ntransfer-encoding: chunked", answer, re.IGNORECASE):
            # It begins before it is known how it ends.
            while not b"".join(pieces).endswith(b"0\r\n\r\n"):
                if not (data := connection.recv(64 * KIB)):
                    raise RuntimeError("hung up in a body")
                pieces.append(data)
            if b"<Error>" in b"".join(pieces):
                raise RuntimeError(f"answered {b''.join(pieces)[-500:]!r}")
        while left > 0:
            size = connection.recv_into(buffer)
            if not size:
                raise RuntimeError("hung up in a body")
            left -= size
            if len(pieces) < 64:
                pieces.append(bytes(buffer[:size]))
        if not answer.startswith(b"HTTP/1.1 2"):
            raise RuntimeError(f"answered {answer!r} {b''.join(pieces)[:500]!r}")
        return answer, b"".join(pieces)


# --- large objects -------------------------------------------------------------------------


class Large:
    """Each way moves the same bytes and returns the seconds."""

    def __init__(self, api: rest.Rest, s3: S3, source: Path) -> None:
        self._rest, self._s3, self._source = api, s3, source
        self._size = source.stat().st_size
        self._path = f"/{rest.SPACE}/large"

    def ways(self) -> dict[str, Callable[[], float]]:
        return {
            "PUT, REST": self.put_rest,
            "PUT, S3": self.put,
            **{f"4 parallel parts of {n // MIB} MiB": partial(self.parts, n) for n in PARTS_BYTES},
            "GET, REST": self.get_rest,
            "GET, S3": self.get,
        }

    def put_rest(self) -> float:
        target = f"/storage{self._path}?overwrite=true"
        return self._send(self._rest.address, self._rest.head("PUT", target, self._size))

    def put(self) -> float:
        return self._send(self._s3.address, self._s3.head("PUT", self._path, self._size))

    def _send(self, address: tuple[str, int], head: bytes) -> float:
        started = time.perf_counter()
        exchange(address, head, self._source, 0, self._size)
        return time.perf_counter() - started

    def get_rest(self) -> float:
        return self._receive(
            self._rest.address, self._rest.head("GET", f"/storage{self._path}", None)
        )

    def get(self) -> float:
        return self._receive(self._s3.address, self._s3.head("GET", self._path, None))

    def _receive(self, address: tuple[str, int], head: bytes) -> float:
        started = time.perf_counter()
        exchange(address, head)
        return time.perf_counter() - started

    def parts(self, part_bytes: int) -> float:
        started = time.perf_counter()
        _, begun = self._s3.call("POST", self._path, uploads="")
        upload = re.findall(rb"<UploadId>(.*?)<", begun)[0].decode()

        def send(number: int) -> str:
            at = (number - 1) * part_bytes
            count = min(part_bytes, self._size - at)
            head = self._s3.head("PUT", self._path, count, partNumber=str(number), uploadId=upload)
            answer, _ = exchange(self._s3.address, head, self._source, at, count)
            etag = re.findall(rb'\r\netag: (".*?")', answer, re.IGNORECASE)[0].decode()
            return f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"

        with ThreadPoolExecutor(PARALLEL) as pool:
            listed = "".join(pool.map(send, range(1, -(-self._size // part_bytes) + 1)))
        sent = time.perf_counter()
        body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        self._s3.call("POST", self._path, body, uploadId=upload)
        now = time.perf_counter()
        print(f"    parts {sent - started:.1f} s, completion {now - sent:.1f} s", flush=True)
        return now - started


def large(api: rest.Rest, s3: S3, mib: int, folder: str | None) -> None:
    with tempfile.TemporaryDirectory(prefix="gfs-s3-", dir=folder) as scratch:
        source = Path(scratch) / "source"
        piece = os.urandom(MIB)
        with open(source, "wb") as file:
            for _ in range(mib):
                file.write(piece)
        ways = Large(api, s3, source).ways()
        found: dict[str, list[float]] = {name: [] for name in ways}
        used: dict[str, list[float]] = {name: [] for name in ways}
        before, control = api.servers.stored_bytes(), api.servers.control
        print(f"\none object of {mib} MiB, {rest.ROUNDS} rounds")
        for _ in range(rest.ROUNDS):
            for name, way in ways.items():
                if not name.startswith("GET"):
                    rest.delete_large(api, before)
                cpu = cluster.cpu_seconds_of(control)
                found[name].append(mib / way())
                used[name].append((cluster.cpu_seconds_of(control) - cpu) * 1024 / mib)
        for name, rates in found.items():
            each = ", ".join(f"{rate:.0f}" for rate in rates)
            print(
                f"  {name:<27} {statistics.median(rates):6.0f} MiB/s ({each}); the control plane's "
                f"processor per GiB {statistics.median(used[name]):.2f} s"
            )


# --- small objects -------------------------------------------------------------------------


def small(api: rest.Rest, s3: S3, seconds: float) -> None:
    data = os.urandom(rest.SMALL_BYTES)
    stored = 0

    def name(number: int) -> str:
        return f"small-{number * 7919 % stored}"

    def put_rest(number: int) -> bytes:
        return api.head("PUT", f"/storage/{rest.SPACE}/rest-{number}", len(data)) + data

    def put(number: int) -> bytes:
        return s3.head("PUT", f"/{rest.SPACE}/small-{number}", len(data)) + data

    def get_rest(number: int) -> bytes:
        return api.head("GET", f"/storage/{rest.SPACE}/{name(number)}", None)

    def get(number: int) -> bytes:
        return s3.head("GET", f"/{rest.SPACE}/{name(number)}", None)

    print(f"\nobjects of {rest.SMALL_BYTES} bytes, {rest.CONNECTIONS} kept connections")
    for title, address, request in (
        ("puts, REST", api.address, put_rest),
        ("puts, S3", s3.address, put),
        ("gets, REST", api.address, get_rest),
        ("gets, S3", s3.address, get),
    ):
        used = cluster.cpu_seconds_of(api.servers.control)
        started = time.perf_counter()
        taken = rest.rate(address, map(request, rest.numbers(seconds)))
        per_second = len(taken) / (time.perf_counter() - started)
        used = 1000 * (cluster.cpu_seconds_of(api.servers.control) - used) / len(taken)
        taken.sort()
        stored = len(taken) if request is put else stored
        print(
            f"  {title:<11} {per_second:6.0f} /s; median {taken[len(taken) // 2]:.1f} ms, 99 % "
            f"within {taken[len(taken) * 99 // 100]:.1f} ms; processor per request of the "
            f"control plane {used:.2f} ms"
        )


def wait_until_idle(pid: int) -> None:
    """Until the process has taken what the kernel had for it."""
    before, used = 0.0, cluster.cpu_seconds_of(pid)
    while used - before > 0.02:
        time.sleep(0.5)
        before, used = used, cluster.cpu_seconds_of(pid)


def crowd(api: rest.Rest, count: int) -> None:
    control, piece = api.servers.control, os.urandom(64 * KIB)
    users: list[S3] = []
    for number in range(-(-count // PER_USER)):
        name = f"crowd-{number}"
        about = {"username": name, "password": cluster.PASSWORD, "display_name": name}
        rest.post(f"{api.base}/admin/users", about, api.token)
        users.append(connected(api.servers, name))
        users[-1].call("PUT", f"/{name}")
    found = {"idle": resident(control)}
    with ExitStack() as stack:
        connections = []
        for number in range(count):
            source = f"127.0.0.{2 + number // PER_ADDRESS}", 0
            user, s3 = number // PER_USER, users[number // PER_USER]
            connection = socket.create_connection(s3.address, SECONDS, source)
            connections.append(stack.enter_context(connection))
            connection.sendall(s3.head("PUT", f"/crowd-{user}/{number}", OBJECT_BYTES))
        for sent in range(len(piece), CROWD_BYTES + 1, len(piece)):
            for connection in connections:
                connection.sendall(piece)
            if sent in (CROWD_BYTES // 2, CROWD_BYTES):
                wait_until_idle(control)
                found[f"{sent // KIB} KiB of each"] = resident(control)
    said = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in found.items())
    print(f"\n{count} objects of 5 TiB at once, memory of the control plane: {said}")


def lists(servers: cluster.Running, s3: S3, count: int) -> None:
    trio.run(_fill, servers.state, count)
    keys, token, started = 0, "", time.perf_counter()
    while True:
        more = {"continuation-token": token} if token else {}
        query = {"list-type": "2", "prefix": f"{LIST_FOLDER}/", **more}
        _, page = s3.call("GET", f"/{rest.SPACE}", b"", **query)
        keys += page.count(b"<Key>")
        found = re.findall(rb"<NextContinuationToken>(.*?)<", page)
        if not found:
            break
        token = found[0].decode()
    seconds = time.perf_counter() - started
    if keys != count:
        raise RuntimeError(f"{keys} keys were listed, not {count}")
    print(f"\n{count} keys listed in {seconds:.2f} s")


async def _fill(state: Path, count: int) -> None:
    async with gfs.connect(state=state) as fs:
        spaces = [entry.path async for entry in fs.scan("/storage")]
        directory = next(path for path in spaces if f"/{rest.SPACE}." in path)
        for start in range(0, count, BATCH):
            numbers = range(start, min(start + BATCH, count))
            await fs.put_many(
                [(f"{directory}/{LIST_FOLDER}/{number:08}", b"") for number in numbers]
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.s3", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the large object")
    parser.add_argument("--seconds", type=float, default=5.0, help="time per rate")
    parser.add_argument("--keys", type=int, default=100_000, help="how many are listed")
    parser.add_argument("--connections", type=int, default=1000, help="in the crowd")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    arguments = parser.parse_args()
    # What is deleted is gone at once, and each object finds the disks as the one before did.
    environment = {"GFS_MASTER_TRASH_SECONDS": "0", "GFS_QUOTA_BYTES": str(1 << 53)}
    running = cluster.running(folder=arguments.dir, environment=environment)
    with cluster.interrupted_cleanly(), running as servers:
        print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before")
        api, s3 = rest.log_in(servers), connected(servers)
        small(api, s3, arguments.seconds)
        lists(servers, s3, arguments.keys)
        large(api, s3, arguments.mib, arguments.dir)
        crowd(api, arguments.connections)
        print(f"\nload average {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
