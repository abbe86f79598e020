"""Our HTTP server beside Hypercorn, with the same application, in one run.

    python -m bench.http                 # a table, and bench/out/http.json
    python -m bench.http --rounds 5 --mib 1024

Each server is a process of its own and serves the same two applications: a small one on
Quart-Trio (JSON of 1 KiB, an upload that is only counted, a download from memory) and the
control plane itself without modules (its ``/healthz``, whose request goes through router,
access and metrics). Three servers are compared:

- *ours*: ``control.http``;
- *Hypercorn*: its Trio worker, with the same classes of Quart (``HttpConnection``), so that
  only the server differs;
- *Hypercorn, plain Quart*: the same with Quart's own classes, as anybody would start it. The
  control plane needs ours.

Over TLS, curl uploads and downloads (the certificate is made with ``openssl``).

The servers take turns, round by round, and the medians are shown: what else the machine does
meets all of them. The client is this process, which looks at no more of an answer than its
length. "CPU" is what the server's process used, by the kernel's count.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import hypercorn.trio
import trio
from hypercorn.config import Config
from quart import Quart, Response, request
from quart_trio import QuartTrio

from bench import rest
from bench.cluster import cpu_seconds_of
from bench.memory import resident
from control.api.runtime import Control
from control.app import ControlApp
from control.http import HttpConnection, HttpLimits, StreamingRequest, listen, serve
from control.settings import ControlSettings
from gfs.blocks import KIB, MIB

OUT = Path("bench/out/http.json")
SERVERS = {
    "ours": ("control.http", True),
    "hypercorn": ("Hypercorn", True),
    "hypercorn-plain": ("Hypercorn, plain Quart", False),
}
CONNECTIONS = 16
IDLE = 1000
PIECE = bytes(256 * KIB)
ANSWER = {"text": "x" * 1000}
START_SECONDS = 60.0
KEPT_SECONDS = 600.0
#: Row of the table, unit, decimals.
ROWS = {
    "json_per_s": ("JSON of 1 KiB", "requests/s", 0),
    "json_cpu_us": ("JSON of 1 KiB", "µs of CPU a request", 0),
    "healthz_per_s": ("control plane, /healthz", "requests/s", 0),
    "healthz_cpu_us": ("control plane, /healthz", "µs of CPU a request", 0),
    "upload_mib_s": ("upload", "MiB/s", 0),
    "upload_cpu_s_per_gib": ("upload", "s of CPU a GiB", 2),
    "download_mib_s": ("download", "MiB/s", 0),
    "download_cpu_s_per_gib": ("download", "s of CPU a GiB", 2),
    "tls_upload_mib_s": ("upload over TLS", "MiB/s", 0),
    "tls_download_mib_s": ("download over TLS", "MiB/s", 0),
    "idle_kib": (f"{IDLE:,} idle connections", "KiB each", 1),
}

Asgi = Callable[[Any, Any, Any], Awaitable[None]]


# --- the servers -----------------------------------------------------------------------


def small_app(ours: bool) -> Quart:
    """An application like any other; *ours*: with the classes of ``control.http``."""
    app = QuartTrio("bench")
    if ours:
        app.asgi_http_class = HttpConnection  # type: ignore[assignment]
        app.request_class = StreamingRequest
    app.config.update(MAX_CONTENT_LENGTH=None, BODY_TIMEOUT=None, RESPONSE_TIMEOUT=None)

    @app.get("/json")
    async def answer() -> dict[str, str]:
        return ANSWER

    @app.post("/upload")
    async def upload() -> dict[str, int]:
        return {"bytes": sum([len(piece) async for piece in request.body])}

    @app.get("/download/<int:size>")
    async def download(size: int) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(size // len(PIECE)):
                yield PIECE

        return Response(pieces(), headers={"Content-Length": str(size)})

    return app


def control_app(state: Path) -> Asgi:
    """The control plane, on a server that does not know its ways to cancel a request."""
    app = ControlApp(Control(ControlSettings(), state, []), [])

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["extensions"] = {"control.refuse": print, **scope.get("extensions", {})}
        await app(scope, receive, send)

    return wrapped


async def run_server(kind: str, app: Any, descriptor: int, certificate: str) -> None:
    """Serve until killed; with TLS if there is a certificate with its key."""
    sock = socket.socket(fileno=descriptor)
    if kind == "ours":
        limits = HttpLimits(
            connections_max=2 * IDLE, per_address_max=2 * IDLE, keep_alive_seconds=KEPT_SECONDS
        )
        tls = None
        if certificate:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(certificate)
        await serve(app, [sock], limits, tls=tls)
    else:
        config = Config()
        config.bind = [f"fd://{sock.detach()}"]
        config.keep_alive_timeout = KEPT_SECONDS
        config.keep_alive_max_requests = 10**9
        config.errorlog = None
        if certificate:
            config.certfile = config.keyfile = certificate
        await hypercorn.trio.serve(app, config)


class Server:
    """One server process with one application."""

    base = ""
    token = ""

    def __init__(self, kind: str, app: str, state: Path, certificate: str) -> None:
        [sock] = listen("127.0.0.1:0")
        with sock:
            self.address: tuple[str, int] = sock.getsockname()[:2]
            descriptor = sock.fileno()
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "bench.http",
                    "--serve",
                    kind,
                    app,
                    str(descriptor),
                    certificate,
                ],
                pass_fds=[descriptor],
                env={**os.environ, "GFS_BENCH_STATE": str(state), "GFS_ADMIN_PASSWORD": "x" * 16},
                stdout=subprocess.DEVNULL,
            )

    @property
    def cpu_seconds(self) -> float:
        return cpu_seconds_of(self.process.pid)

    def ask(self, head: bytes) -> None:
        """One request on a connection of its own."""
        connection = rest.Connection(self.address)
        connection.send(head)
        while not connection.is_answered():
            pass
        connection.socket.close()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def started(app: str, certificate: str = "") -> Iterator[dict[str, Server]]:
    """All servers with this application."""
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for kind, (_, is_ours) in SERVERS.items():
            if app == "small" or is_ours:
                state = stack.enter_context(tempfile.TemporaryDirectory(prefix="gfs-http-"))
                servers[kind] = Server(kind, app, Path(state), certificate)
                stack.callback(servers[kind].stop)
        for server in servers.values() if not certificate else ():
            server.ask(head("GET", "/json" if app == "small" else "/healthz"))
        yield servers


# --- the client ------------------------------------------------------------------------


def head(method: str, path: str, length: int | None = None) -> bytes:
    more = "" if length is None else f"Content-Length: {length}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: bench\r\n{more}\r\n".encode()


Figures = dict[str, float]


def requests(server: Server, path: str, name: str, seconds: float) -> Figures:
    """Kept connections, one request at a time on each."""
    sent = head("GET", path)
    cpu = server.cpu_seconds
    started = time.perf_counter()
    taken = rest.rate(server.address, (sent for _ in rest.numbers(seconds)))
    per_second = len(taken) / (time.perf_counter() - started)
    used = server.cpu_seconds - cpu
    return {f"{name}_per_s": per_second, f"{name}_cpu_us": 1e6 * used / len(taken)}


def upload(server: Server, mib: int) -> Figures:
    with socket.create_connection(server.address, START_SECONDS) as sock:
        cpu, began = server.cpu_seconds, time.perf_counter()
        sock.sendall(head("POST", "/upload", mib * MIB))
        for _ in range(mib * MIB // len(PIECE)):
            sock.sendall(PIECE)
        answer = sock.recv(64 * KIB)
        seconds = time.perf_counter() - began
        assert b" 200 " in answer, answer
    return _moved("upload", mib, seconds, server.cpu_seconds - cpu)


def download(server: Server, mib: int) -> Figures:
    buffer = bytearray(MIB)
    with socket.create_connection(server.address, START_SECONDS) as sock:
        cpu, began = server.cpu_seconds, time.perf_counter()
        sock.sendall(head("GET", f"/download/{mib * MIB}"))
        left = mib * MIB
        while left > 0:
            taken = sock.recv_into(buffer)
            assert taken, f"{left} bytes are missing"
            left -= taken
        seconds = time.perf_counter() - began
    return _moved("download", mib, seconds, server.cpu_seconds - cpu)


def _moved(name: str, mib: int, seconds: float, cpu_seconds: float) -> Figures:
    return {f"{name}_mib_s": mib / seconds, f"{name}_cpu_s_per_gib": cpu_seconds / mib * 1024}


def idle(server: Server) -> Figures:
    """What the server's memory grows by with connections that have had one request."""
    before = resident(server.process.pid)
    connections: list[rest.Connection] = []
    for _ in range(IDLE):  # one after another: Hypercorn lets 100 wait to be accepted
        connections.append(rest.Connection(server.address))
        connections[-1].send(head("GET", "/json"))
        while not connections[-1].is_answered():
            pass
    grown = resident(server.process.pid) - before
    for connection in connections:
        connection.socket.close()
    return {"idle_kib": grown * KIB / IDLE}


def over_tls(server: Server, source: Path) -> Figures:
    """curl, one file each way."""
    url = f"https://127.0.0.1:{server.address[1]}"
    options = ["-k", "--http1.1", "-o", os.devnull, "--retry", "9", "--retry-connrefused"]
    size = source.stat().st_size
    sent = rest.curl(*options, "-X", "POST", "-T", str(source), f"{url}/upload")
    got = rest.curl(*options, f"{url}/download/{size}")
    return {"tls_upload_mib_s": size / MIB / sent, "tls_download_mib_s": size / MIB / got}


def make_certificate(directory: Path) -> str:
    """A self-signed certificate and its key in one file."""
    key, certificate, both = (directory / name for name in ("key.pem", "cert.pem", "both.pem"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    return str(both)


def measure(rounds: int, seconds: float, mib: int) -> dict[str, dict[str, list[float]]]:
    """Of each server and figure what each round found."""
    found: dict[str, dict[str, list[float]]] = {kind: {} for kind in SERVERS}

    def note(kind: str, figures: Figures) -> None:
        for name, figure in figures.items():
            found[kind].setdefault(name, []).append(figure)

    with started("small") as servers:
        for kind, server in servers.items():
            note(kind, idle(server))  # once, while the process is fresh
        for _ in range(rounds):
            for kind, server in servers.items():
                note(kind, requests(server, "/json", "json", seconds))
            for kind, server in servers.items():
                note(kind, upload(server, mib))
            for kind, server in servers.items():
                note(kind, download(server, mib))
    with tempfile.TemporaryDirectory(prefix="gfs-http-") as scratch:
        source = Path(scratch) / "source"
        source.write_bytes(bytes(mib * MIB))
        with started("small", make_certificate(Path(scratch))) as servers:
            for _ in range(rounds):
                for kind, server in servers.items():
                    note(kind, over_tls(server, source))
    with started("control") as servers:
        for _ in range(rounds):
            for kind, server in servers.items():
                note(kind, requests(server, "/healthz", "healthz", seconds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.http",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of requests in each round")
    parser.add_argument("--mib", type=int, default=512, help="size of an upload and a download")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        kind, name, descriptor, certificate = arguments.serve
        is_ours = SERVERS[kind][1]
        state = Path(os.environ["GFS_BENCH_STATE"])
        app = small_app(is_ours) if name == "small" else control_app(state)
        trio.run(run_server, kind, app, int(descriptor), certificate)
        return
    load = os.getloadavg()[0]
    found = measure(arguments.rounds, arguments.seconds, arguments.mib)
    medians = {
        kind: {name: statistics.median(rounds) for name, rounds in figures.items()}
        for kind, figures in found.items()
    }
    result = {
        "when": time.strftime("%Y-%m-%d"),
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "mib": arguments.mib,
        "medians": medians,
        "rounds": found,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(
        f"{result['when']}, {result['cpus']} cores, Python {result['python']}, load average "
        f"{load:.1f} before and {result['load_after']:.1f} after; medians of {arguments.rounds} "
        f"rounds, files of {arguments.mib} MiB\n"
    )
    print(f"| | | {' | '.join(label for label, _ in SERVERS.values())} |")
    print(f"| --- | --- |{' ---: |' * len(SERVERS)}")
    for key, (what, unit, decimals) in ROWS.items():
        cells = [
            f"{figures[key]:,.{decimals}f}" if key in figures else "-"
            for figures in medians.values()
        ]
        print(f"| {what} | {unit} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
