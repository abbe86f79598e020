"""A cluster in one Trio run: a master, chunkservers and clients, simulated.

The processes are the production entry points on simulated machines; only the
master's LMDB is real, in a directory of its own, its commits taken as atomic.
Every process can be killed at any instant and started again on what is on its
disk. All of it follows from one seed, together with
:func:`gfs.testing.determinism.run_simulated`.

The machines are named ``master``, ``chunkserver0`` … and ``client0`` …; their names are
also their addresses.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any

import trio

from gfs.chunkserver import run_chunkserver
from gfs.client import Client, connect
from gfs.config import ChunkserverSettings, ClientSettings, MasterSettings
from gfs.errors import innermost
from gfs.io import World
from gfs.master import run_master
from gfs.testing.endings import (
    BugCatcher,
    has_cancelled,
    only_ends,
    plain,
    without_ordinary,
)
from gfs.testing.files import CAPACITY_BYTES
from gfs.testing.life import Crashed
from gfs.testing.network import SimNetwork
from gfs.testing.scratch import make_scratch
from gfs.testing.trace import Trace
from gfs.testing.world import Machine, Process, Universe

MASTER = "master"
MASTER_PORT = 9400
MASTER_ADDRESS = f"{MASTER}:{MASTER_PORT}"
CHUNKSERVER_PORT = 9500
#: Virtual seconds within which a process must serve, or be gone after its end.
START_SECONDS = 60.0
STOP_SECONDS = 60.0
#: How often ``wait_until`` evaluates its predicate, in virtual seconds.
LOOK_SECONDS = 0.1
#: How long a supervisor waits before it starts a process again.
RESTART_SECONDS = 2.0
TRACE_LINES = 40


class Node:
    """One named process of the cluster, whichever incarnation runs now."""

    def __init__(self, name: str, machine: Machine, main: Callable[..., Awaitable[None]]) -> None:
        self.name = name
        self.machine = machine
        self.main = main
        self.process: Process | None = None
        self.scope = trio.CancelScope()
        self.ready = trio.Event()
        self.ended = trio.Event()
        self.ended.set()
        #: Held: no supervisor starts it.
        self.held = False

    @property
    def running(self) -> bool:
        return not self.ended.is_set()

    def begin(self) -> Process:
        """The next incarnation, which runs as soon as somebody runs it."""
        if self.running:
            raise ValueError(f"{self.name} runs already")
        self.held = False
        self.process = self.machine.start_process()
        self.scope, self.ended = trio.CancelScope(), trio.Event()
        return self.process

    async def live(self, process: Process, cluster: SimCluster, nursery: trio.Nursery) -> None:
        """Run ``process`` to its end. One that cannot go on is begun again after a pause, which
        is waited for in the ``nursery``, if the cluster is supervised."""
        ended, ready = self.ended, self.ready
        try:
            with self.scope:
                async with trio.open_nursery() as inner:
                    await inner.start(self.main, process.world)
                    ready.set()
            if not self.scope.cancelled_caught:
                raise RuntimeError(f"{self.name} ended by itself")
        except BaseException as error:
            # Errors of a killed process while its tasks unwind are ignored; our own
            # cancellation is not.
            rest = without_ordinary(error) if not process.alive else error
            if cluster.supervised and process.alive and only_ends(error):
                cluster.trace.add(f"{process.life.name} ended: {innermost(error)}")
                process.kill()
                nursery.start_soon(self._start_again, process, cluster)
            elif rest is not None:
                raise rest from None
        finally:
            ended.set()

    async def _start_again(self, process: Process, cluster: SimCluster) -> None:
        await trio.sleep(RESTART_SECONDS)
        if self.process is process and not self.held:
            cluster.begin(self.name)

    def kill(self) -> None:
        if self.process is not None and self.process.alive:
            self.process.kill()
        self.scope.cancel()

    async def gone(self) -> None:
        with trio.move_on_after(STOP_SECONDS) as scope:
            await self.ended.wait()
        if scope.cancelled_caught:
            raise TimeoutError(f"the tasks of {self.name} do not end: something is shielded")


class SimCluster:
    """A running cluster, as an async context manager.

    ::

        async with SimCluster(seed, chunkservers=3) as cluster:
            async with cluster.client() as fs:
                await fs.put(b"bytes", "/file")
            await cluster.crash("chunkserver1")

    Everything has started when the block begins, unless ``start`` is False. An
    error that one of the processes ends with, unless it was killed, ends the
    block; so do, at its end, errors that a process only logged as bugs.

    Args:
        seed: determines the whole run. chunkservers: how many. racks: the rack of each
        chunkserver; default: each its own. disks: directories of each chunkserver:
        ``/disk0`` … master, chunkserver, client: settings; addresses are overruled.
        start: start all processes. supervised: a process that ends because it cannot go
        on (StartupError, DiskFailed) is started again after a pause, as by a
        supervisor; otherwise that is an error.
    """

    def __init__(
        self,
        seed: int,
        *,
        chunkservers: int = 3,
        racks: Sequence[str] | None = None,
        disks: int = 1,
        master: MasterSettings | None = None,
        chunkserver: ChunkserverSettings | None = None,
        client: ClientSettings | None = None,
        start: bool = True,
        supervised: bool = False,
    ) -> None:
        self.supervised = supervised
        self.seed = seed
        self.universe = Universe(seed)
        self.trace: Trace = self.universe.trace
        self.network: SimNetwork = self.universe.network
        self.universe.guards_loop = True
        self.key = self.universe.generator("key").randbytes(32)
        #: The master, and what else may be one.
        self.masters = [MASTER]
        self.chunkservers = [f"chunkserver{n}" for n in range(chunkservers)]
        places = racks or [f"rack{n}" for n in range(chunkservers)]
        self.racks = dict(zip(self.chunkservers, places, strict=True))
        #: The directories of each chunkserver.
        self.disks = [f"/disk{n}" for n in range(disks)]
        self._master_settings = master or MasterSettings(map_bytes=1 << 30)
        self._chunkserver_settings = chunkserver or ChunkserverSettings()
        self.client_settings = client or ClientSettings()
        self._start = start
        self._nodes: dict[str, Node] = {}
        self._clients = 0
        self._catcher = BugCatcher(supervised)

    # --- the block -----------------------------------------------------------------

    async def __aenter__(self) -> SimCluster:
        self._directory = make_scratch()
        self._make_nodes()
        logging.getLogger("gfs").addHandler(self._catcher)
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        try:
            if self._start:
                await self.start_all()
        except BaseException as error:
            if await self._leave(error):
                raise AssertionError("a start was cancelled, but not by this cluster") from error
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return await self._leave(error)

    async def _leave(self, error: BaseException | None) -> bool:
        """Stop everything. True if ``error`` was only our own cancellation."""
        tail = self.trace.tail(TRACE_LINES)
        try:
            for node in self._nodes.values():
                node.held = True  # a process that cannot start is not tried again
                node.scope.cancel()
            # The block's own error is raised to the caller unchanged: the nursery gets
            # none, unless it is the nursery's own cancellation.
            inner = error if has_cancelled(error) else None
            swallowed = await self._manager.__aexit__(
                type(inner) if inner else None, inner, inner.__traceback__ if inner else None
            )
            if error is None and self.bugs:
                raise ExceptionGroup("logged as bugs", [plain(e) for e in self.bugs])
        except BaseException as failure:
            _explain(failure, self.seed, tail)
            raise
        finally:
            logging.getLogger("gfs").removeHandler(self._catcher)
            shutil.rmtree(self._directory, ignore_errors=True)
        if error is not None and inner is None:
            _explain(error, self.seed, tail)
        return bool(inner is not None and swallowed)

    def _make_nodes(self) -> None:
        async def run_the_master(world: World, task_status: trio.TaskStatus[Any]) -> None:
            settings = _replace(self._master_settings, address=MASTER_ADDRESS)
            await run_master(world, settings, self._directory, self.key, task_status=task_status)

        async def run_one(name: str, world: World, task_status: trio.TaskStatus[Any]) -> None:
            settings = _replace(
                self._chunkserver_settings,
                address=self.address(name),
                master=",".join(self.master_addresses),
                rack=self.racks[name],
            )
            await run_chunkserver(world, settings, self.disks, self.key, task_status=task_status)

        self._add(MASTER, run_the_master)
        for name in self.chunkservers:
            self._add(name, partial(run_one, name))
            for disk in self.disks:
                self.machine(name).disk.mount(disk, CAPACITY_BYTES)

    def _add(self, name: str, main: Callable[..., Awaitable[None]]) -> Node:
        node = self._nodes[name] = Node(name, self.universe.machine(name), main)
        return node

    # --- what there is -----------------------------------------------------------

    @property
    def bugs(self) -> list[BaseException]:
        """The bugs that processes logged so far without ending."""
        return [*self._catcher.bugs, *self.universe.wrongs]

    @property
    def master_addresses(self) -> list[str]:
        return [f"{name}:{MASTER_PORT}" for name in self.masters]

    @property
    def present_master(self) -> str:
        """The master, or whichever of several is that, as far as is known."""
        return self.masters[0]

    @property
    def directory(self) -> str:
        """The real directory of the master's metadata."""
        return self._directory

    @property
    def names(self) -> list[str]:
        """The masters and the chunkservers."""
        return [*self.masters, *self.chunkservers]

    def node(self, name: str) -> Node:
        return self._nodes[name]

    def machine(self, name: str) -> Machine:
        return self._nodes[name].machine

    def world(self, name: str) -> World:
        """The world of the present incarnation of a process."""
        process = self._nodes[name].process
        if process is None:
            raise ValueError(f"{name} was never started")
        return process.world

    def address(self, name: str) -> str:
        """The address of a chunkserver."""
        return f"{name}:{CHUNKSERVER_PORT}"

    def chunk_files(self, name: str) -> list[str]:
        """The paths of the chunk files on a chunkserver's disks, sorted."""
        disk = self._nodes[name].machine.disk
        return [path for path in disk.paths() if path.endswith(".chunk")]

    # --- processes ---------------------------------------------------------------

    async def start_all(self) -> None:
        """Start the processes that do not run; returns when all serve."""
        for name in self.names:
            if not self._nodes[name].running:
                self.begin(name)
        for name in self.names:
            await self.ready(name)

    async def start(self, name: str) -> None:
        """Start a process and wait until it serves."""
        self.begin(name)
        await self.ready(name)

    def begin(self, name: str) -> None:
        """Start a process; does not wait."""
        node = self._nodes[name]
        process = node.begin()
        if node.ready.is_set():  # else a task may wait for a process that ended before it served
            node.ready = trio.Event()
        self.trace.add(f"start {process.life.name}")
        self._nursery.start_soon(node.live, process, self, self._nursery, name=name)

    async def ready(self, name: str) -> None:
        """Wait until a process that was begun serves."""
        node = self._nodes[name]
        with trio.move_on_after(START_SECONDS) as scope:
            await node.ready.wait()
        if scope.cancelled_caught:
            raise TimeoutError(f"{name} does not serve after {START_SECONDS:g} s")

    def hold(self, name: str) -> None:
        """Keep the process from being started again until :meth:`begin` is called."""
        self._nodes[name].held = True

    def kill(self, name: str) -> None:
        """``kill -9``, at this instant; does not wait for its tasks to unwind."""
        self._nodes[name].kill()

    def kill_in_call(self, name: str, calls: int) -> None:
        """``kill -9`` in place of the ``calls``-th disk call from now on that changes
        something, so in the middle of the operation that the call belongs to."""
        process = self._nodes[name].process
        if process is not None and process.alive:
            process.life.light(calls, lambda: self.kill(name))

    async def spare(self, name: str) -> None:
        """Cancel :meth:`hold` and :meth:`kill_in_call`, and start the process if it
        does not run."""
        node = self._nodes[name]
        node.held = False
        if node.process is not None and node.process.alive:
            node.process.life.light(0)
            return
        await self._nodes[name].gone()
        if not node.running:
            self.begin(name)

    async def crash(self, name: str) -> None:
        """``kill -9``. Its connections end, its disk stays as it is. When this
        returns it can be started again."""
        self.kill(name)
        await self._nodes[name].gone()

    async def crash_all(self) -> None:
        """``kill -9`` of the master and all chunkservers at one instant."""
        for name in self.names:
            self.kill(name)
        for name in self.names:
            await self._nodes[name].gone()

    async def stop(self, name: str) -> None:
        """End a process as SIGTERM does: its clean-up runs."""
        self._nodes[name].scope.cancel()
        await self._nodes[name].gone()
        process = self._nodes[name].process
        if process is not None:
            process.kill()

    async def restart(self, name: str) -> None:
        """Crash it if it runs, start it, and wait until it serves."""
        await self.crash(name)
        await self.start(name)

    # --- clients -----------------------------------------------------------------

    @asynccontextmanager
    async def client(
        self,
        name: str | None = None,
        settings: ClientSettings | None = None,
        *,
        masters: list[str] | None = None,
        refused_seconds: float = math.inf,
    ) -> AsyncIterator[Client]:
        """A connected client on a machine of its own; ``masters`` are the addresses that it
        is given.

        :meth:`crash` with its name kills it: the block then ends without an error.
        Raises Crashed if it is killed before it is connected.
        """
        if name is None:
            name = f"client{self._clients}"
            self._clients += 1
        node = self._nodes.get(name)
        if node is None:
            node = Node(name, self.universe.machine(name), _nothing)
            self._nodes[name] = node
        process = node.begin()
        connected = False
        try:
            with node.scope:
                async with connect(
                    masters or self.master_addresses,
                    key=self.key,
                    settings=settings or self.client_settings,
                    world=process.world,
                    refused_seconds=refused_seconds,
                ) as fs:
                    connected = True
                    yield fs
        except BaseException as error:
            rest = without_ordinary(error) if not process.alive else error
            if rest is not None:
                raise
        finally:
            if process.alive:
                process.kill()
            node.ended.set()
        if not connected:
            raise Crashed(name)

    # --- waiting --------------------------------------------------------------------

    async def wait_until(
        self,
        predicate: Callable[[], bool | Awaitable[bool]],
        timeout: float = 60.0,
        what: str = "",
        every: float = LOOK_SECONDS,
    ) -> float:
        """Wait, in virtual time, until ``predicate`` (it may be async) holds;
        it is evaluated ``every`` so many seconds.

        Returns how long that took. Raises TimeoutError after ``timeout`` seconds.
        """
        start = trio.current_time()
        while True:
            held = predicate()
            if not isinstance(held, bool):
                held = await held
            waited = trio.current_time() - start
            if held:
                return waited
            if waited > timeout:
                raise TimeoutError(f"not within {timeout:g} s: {what or predicate}")
            await trio.sleep(every)


def _explain(error: BaseException, seed: int, tail: str) -> None:
    if not isinstance(error, trio.Cancelled):
        error.add_note(f"the last of seed {seed}:\n{tail}")


async def _nothing() -> None:
    """A client's node runs nothing by itself."""


def _replace(settings: Any, **changes: Any) -> Any:
    return type(settings)(
        **{**{f: getattr(settings, f) for f in settings.__struct_fields__}, **changes}
    )
