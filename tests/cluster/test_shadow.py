"""Shadow masters as processes: the master is killed for good, and another goes on."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from limits import HANG_SECONDS, wait_for
from processes import Processes, free_port, wait_until, wait_whole

import gfs
from gfs.client import Client
from gfs.errors import NotFound, NotTheMaster


class Shadowed(Processes):
    """A master and its shadow, on state directories of their own."""

    def __init__(self, directory: Path, replicas_before_ack: int, chunkservers: int = 3) -> None:
        self.addresses = {name: f"127.0.0.1:{free_port()}" for name in ("master", "shadow")}
        self.replicas_before_ack = replicas_before_ack
        self.directory = directory
        super().__init__(directory, chunkservers, 3.0)
        self.start_shadow("shadow", "master")

    def start_master(self) -> None:
        self.master_address = self.addresses["master"]
        self._start_master("master")

    def start_shadow(self, name: str, master: str) -> None:
        state = self.directory / name
        state.mkdir(exist_ok=True)
        shutil.copy(self.state / "cluster.key", state / "cluster.key")
        self._start_master(name, "--shadow-of", self.addresses[master])

    def _start_master(self, name: str, *arguments: str) -> None:
        state = self.state if name == "master" else self.directory / name
        self._start(
            name, "master", "--state", str(state), "--address", self.addresses[name],
            "--replicas-before-ack", str(self.replicas_before_ack), *arguments,
        )  # fmt: skip

    def promote(self, name: str, *arguments: str, code: int = 0) -> str:
        return self.gfs("promote", self.addresses[name], *arguments, code=code)

    def status(self, name: str) -> Any:
        return json.loads(self.gfs("status", "--json", master=self.addresses[name]))


@pytest.fixture
def shadowed(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shadowed]:
    made = Shadowed(tmp_path, getattr(request, "param", 1))
    yield made
    made.stop()


async def level(shadowed: Shadowed, name: str) -> None:
    """The shadow has everything, and hears from all chunkservers."""

    async def is_level() -> bool:
        async with gfs.connect(shadowed.addresses[name], key=shadowed.key) as fs:
            status = await fs.status()
        live = sum(server.state == "live" for server in status.servers)
        return status.role == "shadow" and not status.behind_operations and live == 3

    await wait_until(is_level, f"{name} that is level")


class Load:
    """Writers of small files, and what was acknowledged to them."""

    def __init__(self, sizes: Sequence[int] = (10, 70_000)) -> None:
        self.sizes = sizes
        self.sent: dict[str, bytes] = {}
        self.done: dict[str, bytes] = {}
        self.deleted: set[str] = set()

    async def write(self, fs: Client, name: str) -> None:
        chance = random.Random(name)
        for number in range(1_000_000):
            path, data = f"/{name}/{number}", chance.randbytes(chance.choice(self.sizes))
            self.sent[path] = data
            await fs.put(data, path)
            self.done[path] = data
            if number % 5 == 4:
                del self.done[path]  # either is right while there is no answer
                await fs.delete(path)
                self.deleted.add(path)

    async def check(self, fs: Client) -> None:
        assert self.done
        for path, data in self.sent.items():
            if path in self.deleted:
                with pytest.raises(NotFound):
                    await fs.stat(path)
                continue
            try:
                assert await fs.get(path) == data, path
            except NotFound:
                assert path not in self.done, f"{path} was acknowledged"

    async def wait_for_more(self, count: int) -> None:
        wanted = len(self.done) + count

        async def are_done() -> bool:
            return len(self.done) >= wanted

        await wait_until(are_done, f"{count} more files")


@pytest.mark.thin
async def test_the_masters_machine_burns_under_load(shadowed: Shadowed, tmp_path: Path) -> None:
    """Everything acknowledged is there, and clients and chunkservers go on."""
    await level(shadowed, "shadow")
    both = ",".join(shadowed.addresses.values())
    load = Load()
    async with gfs.connect(both, key=shadowed.key) as fs:
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(load.write, fs, f"writer{number}")
            await load.wait_for_more(50)
            shadowed.kill("master")
            shutil.rmtree(shadowed.state / "master")
            reported = await trio.to_thread.run_sync(shadowed.promote, "shadow")
            assert "in term 1" in reported
            assert "it has everything that was acknowledged" in reported
            # The new one waits for a shadow as well: a new machine becomes it.
            shadowed.addresses["another"] = f"127.0.0.1:{free_port()}"
            shadowed.start_shadow("another", "shadow")
            await load.wait_for_more(50)
            nursery.cancel_scope.cancel()
        await load.check(fs)
        await wait_whole(fs)
        await level(shadowed, "another")
    async with gfs.connect(shadowed.addresses["another"], key=shadowed.key) as reader:
        await load.check(reader)
        with pytest.raises(NotTheMaster, match=shadowed.addresses["shadow"]):
            await reader.mkdir("/x")


@pytest.mark.parametrize("shadowed", [0], indirect=True)
async def test_they_change_places_and_the_old_one_is_fenced(shadowed: Shadowed) -> None:
    await level(shadowed, "shadow")
    both = list(shadowed.addresses.values())
    load = Load()
    async with gfs.connect(both, key=shadowed.key) as fs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.write, fs, "writer")
            await load.wait_for_more(20)
            reported = await trio.to_thread.run_sync(shadowed.promote, "shadow")
            assert "nothing is lost" in reported
            await load.wait_for_more(20)
            await level(shadowed, "master")
            nursery.cancel_scope.cancel()
        await load.check(fs)
        # Started again, each is what it is now, whatever its command line says.
        for name in ("master", "shadow"):
            shadowed.kill(name)
        shadowed.start_master()
        shadowed.start_shadow("shadow", "master")
        await level(shadowed, "master")
        assert (await fs.status()).term >> 32 == 1
        # The one that is the master dies; the other is forced, for nobody can know.
        shadowed.kill("master")
        await fs.mkdir("/given up")
        shadowed.kill("shadow")
        shadowed.start_master()
        assert "may be" in await trio.to_thread.run_sync(lambda: shadowed.promote("master", code=1))
        await trio.to_thread.run_sync(shadowed.promote, "master", "--force")
        await fs.mkdir("/later")
        # It was promoted once, killed and replaced: the manual's command makes it a shadow.
        shadowed.start_shadow("shadow", "master")
        await level(shadowed, "shadow")
        assert list((shadowed.directory / "shadow" / "master").glob("data.mdb.before-term-*"))
        async with gfs.connect(shadowed.addresses["shadow"], key=shadowed.key) as reader:
            assert [entry.path for entry in await reader.list("/")] == ["/later", "/writer"]
        assert [entry.path for entry in await fs.list("/")] == ["/later", "/writer"]
        # And what it was sent is what it is, when it has to take over again.
        shadowed.kill("master")
        await trio.to_thread.run_sync(shadowed.promote, "shadow", "--force")
        await load.check(fs)
        # Without that command it has nothing to follow, and says what to do.
        shadowed.start_master()
        old = shadowed.processes.pop("master")
        assert await trio.to_thread.run_sync(old.wait, HANG_SECONDS) == 2
        assert "gfs master --shadow-of ADDRESS" in (shadowed.directory / "log").read_text()


def test_what_status_says(shadowed: Shadowed) -> None:
    trio.run(level, shadowed, "shadow")
    assert shadowed.status("shadow")["role"] == "shadow"
    wait_for(
        lambda: [s["state"] for s in shadowed.status("master")["shadows"]] == ["following"],
        "a follower",
    )
    shadow = shadowed.addresses["shadow"]
    reported = shadowed.gfs("status", master=shadow)
    assert f"the master is at {shadowed.addresses['master']}" in reported
    assert "1 shadow must have it" in shadowed.gfs("status")
    refused = shadowed.gfs("mkdir", "/x", code=1, master=shadow)
    assert "this is a shadow master, which serves reads only" in refused
    assert "this is the master already" in shadowed.promote("master", code=1)
