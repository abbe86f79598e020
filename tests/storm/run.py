"""One storm, from an empty directory to the verdict."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import httpx
import trio
from harness import Cluster, environment
from limits import HANG_SECONDS

import gfs
from gfs.config import ClientSettings
from gfs.errors import GfsError

from .faults import Storm, of_chunkservers, of_control, of_master
from .judge import Judge
from .model import LOG, SHARED, content, museum
from .work import SPACE

CLIENT_RETRY_SECONDS = 30.0


def run(
    directory: Path, seed: str, seconds: float, clients: int = 4, slowness: float = 1.0
) -> list[str]:
    """Returns what was wrong; prints all there is to know. ``slowness`` as for Judge."""
    cluster = Cluster(directory, control=True)
    password = secrets.token_urlsafe(12)
    cluster.environment["GFS_ADMIN_PASSWORD"] = password
    began = time.monotonic()
    try:
        cluster.start()
        problems = trio.run(_storm, cluster, directory, seed, seconds, clients, slowness, password)
    finally:
        cluster.stop()
    print(f"{time.monotonic() - began:.0f} s in all; seed {seed}; again:")
    print(f"    python -m tests.storm --seconds {seconds:g} --seed {seed} --clients {clients}")
    for problem in problems:
        print(f"FAILED: {problem}")
    return problems


async def _storm(
    cluster: Cluster, directory: Path, seed: str, seconds: float, clients: int, slowness: float,
    password: str,
) -> list[str]:  # fmt: skip
    url = cluster.ready["control"]["storage"]
    logs = {number: directory / f"client-{number}.log" for number in range(1, clients + 1)}
    with httpx.Client(base_url=url, timeout=HANG_SECONDS) as http:
        variables = {
            "STORM_TOKEN": await trio.to_thread.run_sync(_log_in, http, password),
            "GFS_CLIENT_RETRY_SECONDS": f"{slowness * CLIENT_RETRY_SECONDS:g}",
            "PATH": os.environ["PATH"],
        }
        settings = ClientSettings(retry_seconds=HANG_SECONDS)
        async with gfs.connect(state=cluster.state, settings=settings) as fs:
            await _until_whole(cluster)
            for path, what in museum().items():
                await fs.put(content(0, *what), path)
            await fs.put(b"", SHARED)
            await fs.put(b"", LOG)
            workers = [
                _start(cluster, seed, number, clients, log, url * (number == clients), variables)
                for number, log in logs.items()
            ]
            try:
                with (directory / "faults.log").open("w") as faults:
                    storm = Storm(cluster, fs, faults)
                    async with trio.open_nursery() as nursery:
                        until = time.monotonic() + seconds
                        for row in (of_chunkservers, of_master, of_control):
                            nursery.start_soon(storm.run, row(seed), until)
                        await _watch(workers, until)
                for worker in workers:
                    await trio.to_thread.run_sync(worker.communicate, None, HANG_SECONDS)
            finally:
                for worker in workers:
                    worker.kill()
                    worker.wait()
        judge = Judge(logs, directory / "faults.log", slowness)
        judge.problems += storm.problems
        judge.judge_calls()
        if not await _until_whole(cluster):
            judge.problems.append("gfs fsck --verify is not clean")
        async with gfs.connect(state=cluster.state) as fs:
            await judge.judge_files(fs)
        await trio.to_thread.run_sync(judge.judge_rest, http, SPACE)
    failed = sum(call.result != "ok" for call in judge.calls)
    print(f"{len(judge.calls)} calls, {failed} failed; {storm.counts}; the longest:")
    print("\n".join(judge.longest()))
    return judge.problems


async def _watch(workers: list[subprocess.Popen[bytes]], until: float) -> None:
    """Raises when one ends by itself: nothing is to be learnt from what follows."""
    while time.monotonic() < until:
        for worker in workers:
            assert worker.poll() is None, f"a client ended by itself: {worker.args!r}"
        await trio.sleep(0.5)


def _log_in(http: httpx.Client, password: str) -> str:
    answer = http.post("/api/login", json={"username": "admin", "password": password})
    token = str(answer.raise_for_status().json()["token"])
    http.headers["Authorization"] = f"Bearer {token}"
    http.post("/storage/namespaces", json={"name": SPACE}).raise_for_status()
    return token


def _start(
    cluster: Cluster,
    seed: str,
    number: int,
    clients: int,
    log: Path,
    rest: str,
    variables: dict[str, str],
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "tests.storm.work", "--number", str(number), "--seed", seed,
            "--clients", str(clients), "--state", str(cluster.state), "--log", str(log),
            "--rest", rest,
        ],
        stdin=subprocess.PIPE,
        cwd=Path(__file__).parent.parent.parent,
        env=environment(**variables),
    )  # fmt: skip


async def _until_whole(cluster: Cluster) -> bool:
    """Until all chunkservers are live and every replica is good."""
    with trio.move_on_after(HANG_SECONDS):
        while True:
            try:
                async with gfs.connect(state=cluster.state) as fs:
                    servers = (await fs.status()).servers
                    if sum(server.state == "live" for server in servers) == 3:
                        done = await trio.to_thread.run_sync(
                            lambda: cluster.gfs("fsck", "--verify", code=None)
                        )
                        if not done.returncode:
                            return True
            except GfsError as error:
                print(f"fsck: {error}", flush=True)
            await trio.sleep(0.5)
    return False
