"""Simulated machines and the processes on them.

::

    universe = Universe(seed)
    process = universe.machine("alpha").start_process()
    ... give process.world to anything that takes a World ...
    process.kill() # alpha's disk keeps its contents again =
    universe.machine("alpha").start_process()

They run in one Trio run under a clock that jumps
(:func:`gfs.testing.determinism.run_simulated`). All randomness comes from the
universe's seed: each machine and each process has its own generator, made from the seed
and its name, so that the draws of one do not change those of another.
"""

from __future__ import annotations

import random

from gfs.io import World
from gfs.testing.clock import MachineTime, SimClock
from gfs.testing.files import SimDisk, SimFileSystem
from gfs.testing.life import Life
from gfs.testing.network import SimEndpoint, SimNetwork
from gfs.testing.threads import Threads
from gfs.testing.trace import Trace

#: How long a blocking call takes, in virtual seconds: mostly the page cache.
BLOCKING_SECONDS = (10e-6, 200e-6)


class Process:
    """One incarnation of a process: its world, until it is killed."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.life = Life(name)
        self.life.guards_loop = machine.universe.guards_loop
        self.life.wrongs = machine.universe.wrongs
        threads = Threads(machine, self.life, machine.universe.generator(f"{name}/blocking"))
        self.world = World(
            network=SimEndpoint(machine.universe.network, machine.name, self.life),
            files=SimFileSystem(machine.disk, self.life),
            clock=SimClock(machine.time, self.life),
            random=machine.universe.generator(name),
            run_blocking=threads.run,
            boot=f"{machine.name}, boot {machine.disk.power_cuts}",
        )

    @property
    def alive(self) -> bool:
        return self.life.alive

    def kill(self) -> None:
        """``kill -9``: its connections end, its disk stays as it is, and further calls
        of its tasks through the world raise Crashed."""
        self.machine.universe.trace.add(f"kill {self.life.name}")
        self.life.kill()


class Machine:
    """A host: its name is its address, its disk outlives its processes."""

    def __init__(self, universe: Universe, name: str) -> None:
        self.universe = universe
        self.name = name
        self.disk = SimDisk(name, universe.trace)
        self.disk.chance = universe.generator(f"{name}/disk")
        self.time = MachineTime()
        #: The range that the duration of a blocking call is drawn from.
        self.blocking_seconds = BLOCKING_SECONDS
        self._incarnations = 0

    @property
    def may_hang(self) -> bool:
        """Whether a call to its disk may hang for a while."""
        return self.disk.mounts.may_hang

    def start_process(self) -> Process:
        self._incarnations += 1
        return Process(self, f"{self.name}#{self._incarnations}")


class Universe:
    """Everything that one seed determines: machines, the network between them, a trace."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.trace = Trace()
        self.random = self.generator("universe")
        self.network = SimNetwork(self.generator("network"), self.trace)
        self._machines: dict[str, Machine] = {}
        #: Whether a file call in the loop's thread is an error for processes that start
        #: from now on; and where there was one.
        self.guards_loop = False
        self.wrongs: list[BaseException] = []

    def generator(self, name: str) -> random.Random:
        """The generator of ``name``, the same for the same seed."""
        return random.Random(f"{self.seed}/{name}")

    def machine(self, name: str) -> Machine:
        """The machine of that name, which the first call makes."""
        machine = self._machines.get(name)
        if machine is None:
            machine = self._machines[name] = Machine(self, name)
        return machine

    @property
    def machines(self) -> list[Machine]:
        return list(self._machines.values())
