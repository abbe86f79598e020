"""What goes wrong in a general run. Each kind is one function: it strikes, waits,
and makes good what it did (but for damage that others have to repair).
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import trio

from gfs.blocks import CHUNK_BYTES, MIB
from gfs.chunkserver.disks.disk import PROBE
from gfs.chunkserver.disks.identity import LOCK, decode_server
from gfs.chunkserver.disks.identity import NAMES as SERVER_NAMES
from gfs.chunkserver.files import layout
from gfs.chunkserver.files.intents import NAME as MARKS_NAME
from gfs.chunkserver.files.journal import NAMES as JOURNAL_NAMES
from gfs.chunkserver.packs import DATA_NAME, INDEX_NAME
from gfs.chunkserver.packs.layout import RECORD_BYTES
from gfs.testing import SimCluster
from gfs.testing.files import SimDisk
from gfs.testing.inode import Hang, Volume
from gfs.testing.network import LATENCY_SECONDS
from gfs.testing.world import BLOCKING_SECONDS

from .elected import HOLD_SECONDS, Unkindness, WithEngine
from .losses import Losses, unsound_after_kill
from .metadata import read_metadata
from .packs import handles_on, packed_of, packed_on
from .plan import ABSENCE_SECONDS, DRIFT_MAX, ELECTIONS, HARMLESS, LONG_ABSENCE, Plan
from .record import Record, Violation

#: A kernel writes back what is dirty, a part of it each time.
WRITE_BACK_SECONDS = 5.0
#: A client's call to the master takes about this long; waited for is one for so long.
IN_CALL_SECONDS = 0.002
IN_CALL_WAIT_SECONDS = 10.0
#: A process that dies in the middle of its disk calls makes fewer than this.
IN_CALL_MAX = 12
#: Of all damage, what is in the notes on power cuts, in who the server is, and in the
#: redo journal.
MARKS_SHARE = 0.15
SERVER_SHARE = 0.05
JOURNAL_SHARE = 0.15
#: Who is to be away for long must not be down already: after so long, another look.
ABSENT_LOOK_SECONDS = 1.0
#: With these a packet takes nearly as long as its chain waits for it, and a few of them
#: longer than a lease and the death of a server.
OUTLIVING_BYTES_PER_SECOND = (550.0, 600.0, 750.0, 1500.0)
DAY_SECONDS = 86_400.0
#: A disk that is away is named within ten seconds.
NAMED_SECONDS = 10
#: In the directory of a disk, before anything is stored there.
MADE_BY_A_START = {
    *SERVER_NAMES, *(f"{name}.new" for name in SERVER_NAMES), *JOURNAL_NAMES, MARKS_NAME, LOCK,
    PROBE,
}  # fmt: skip
#: What hangs, where not everything does.
HANGING_KINDS: list[list[str]] = [
    [], [], [], ["read"], ["write", "create"], ["sync"], ["open", "close"], ["unlink"],
    ["rename"], ["list", "stat", "space"], ["mkdir", "truncate"],
]  # fmt: skip
#: The grant before a write, and the beginning of the write.
GRANTED_SECONDS = 0.03


def mount_disks(cluster: SimCluster, plan: Plan) -> None:
    """All as large as planned."""
    for name, capacity in zip(cluster.chunkservers, plan.capacities, strict=True):
        for disk in cluster.disks:
            cluster.machine(name).disk.mount(disk, capacity)


def is_good_record(disk: SimDisk, path: str) -> bool:
    """Whether a copy of who the server is, is there to stay."""
    try:
        decode_server(disk.read(path))
    except (OSError, ValueError):
        return False
    return disk.is_synced(path) and not disk.inode(path).unreadable


class Faults:
    """Strikes by the plan until told to stop, and counts."""

    def __init__(self, cluster: SimCluster, plan: Plan, record: Record, clients: list[str]) -> None:
        self.cluster = cluster
        self.plan = plan
        self.record = record
        self.losses = Losses(cluster, record, plan)
        self.counts: Counter[str] = Counter()
        self.chance = random.Random(f"{plan.seed}/faults")
        self._clients = clients
        #: What may not be struck now: somebody else works on it.
        self._busy: set[str] = set()
        #: Who is away for long.
        self._absent: set[str] = set()
        #: Whose redo journals may be damaged: what is only there, others must have as well.
        self._forgetting = self.chance.choice(cluster.chunkservers)
        #: (Server, directory) of disks that ever refused anything.
        self.failed: set[tuple[str, str]] = set()
        #: Disks that are not mounted, not there, or read-only now.
        self._away: dict[tuple[str, str], Volume] = {}
        record.all_shown = self._all_shown
        #: Whether a redo journal or marks were damaged.
        self.harmed_notes = False
        #: Set once that one is back.
        self.returned = trio.Event()

    async def run(self) -> None:
        """Strike until cancelled. What is under way then is not made good: see ``end``."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_back)
            for kind, mean in self.plan.faults.items():
                if kind != LONG_ABSENCE:
                    nursery.start_soon(self._strike_often, kind, mean)

    async def _strike_often(self, kind: str, mean_seconds: float) -> None:
        strike = STRIKES[kind]
        while True:
            await trio.sleep(self.chance.expovariate(1 / mean_seconds))
            await self._one(kind, strike)

    async def _one(self, kind: str, strike: Strike) -> None:
        if kind not in HARMLESS:
            self.record.begin_strike()
        try:
            if await strike(self):
                self.counts[kind] += 1
        finally:
            if kind not in HARMLESS:
                self.record.end_strike()

    async def _write_back(self) -> None:
        while True:
            await trio.sleep(WRITE_BACK_SECONDS)
            for name in self.cluster.chunkservers:
                disk = self.cluster.machine(name).disk
                disk.write_back(self.chance, self.chance.choice([0.0, 0.2, 1.0]))

    async def end(self) -> None:
        """Nothing is wrong any more, but for what was damaged, and who is away for long."""
        cluster = self.cluster
        cluster.network.heal()
        cluster.network.latency_seconds = LATENCY_SECONDS
        self._kind_again()
        names = [*cluster.names, *self._clients]
        for source in names:
            machine = cluster.universe.machine(source)
            machine.blocking_seconds = BLOCKING_SECONDS
            machine.time.rate = 1.0
            for target in names:
                if (source, target) in cluster.network.slow_links:
                    cluster.network.restore(source, target)
        for name, path in list(self._away):
            self._return(name, path)
        mount_disks(cluster, self.plan)
        for name in cluster.chunkservers:
            for path in cluster.disks:
                cluster.machine(name).disk.fail(path, 0)
                cluster.machine(name).disk.hang(path, None)
        for name in cluster.names:
            if name not in self._absent:
                if name in cluster.chunkservers and not cluster.node(name).running:
                    self.losses.server_is_gone(name)
                await cluster.spare(name)
        self._busy = set(self._absent)

    # --- who is struck -----------------------------------------------------------------

    def _machine(self) -> str:
        return self.chance.choice([*self.cluster.names, *self._clients])

    def _pair(self) -> tuple[str, str]:
        one, other = self.chance.sample([*self.cluster.names, *self._clients], 2)
        return one, other

    def _server(self) -> str:
        return self.chance.choice(self.cluster.chunkservers)

    async def _in_a_write(self, least: int = 0) -> list[str]:
        """Wait for a write in place to begin, of so many bytes at least: who has a
        replica of what is written."""
        count = -1
        with trio.move_on_after(IN_CALL_WAIT_SECONDS):
            while count < least:
                await self.record.written.wait()
                assert self.record.writing is not None
                model, start, count = self.record.writing
            metadata = read_metadata(self.cluster.directory)
            handle = metadata.file_chunks.get((model.inode, start // CHUNK_BYTES))
            return [
                name
                for name in self.cluster.chunkservers
                if handle in handles_on(self.cluster, name)
            ]
        return []

    def _note(self, text: str) -> None:
        self.record.tell(f"FAULT {text}")

    def _begin(self, name: str) -> None:
        node = self.cluster.node(name)
        if not node.running:
            self._note(f"start {name}")
            if name in self.cluster.chunkservers:
                self.losses.server_is_gone(name)  # damaged while it was down
            self.cluster.begin(name)

    async def _kill(self, name: str) -> None:
        self.cluster.hold(name)
        await self.cluster.crash(name)

    # --- the network ---------------------------------------------------------------------

    async def delay(self) -> bool:
        """Everything takes longer."""
        network, high = self.cluster.network, self.chance.choice([0.02, 0.2, 1.0])
        self._note(f"delay up to {high} s")
        network.latency_seconds = (LATENCY_SECONDS[0], high)
        await trio.sleep(self.chance.uniform(0.5, 5))
        network.latency_seconds = LATENCY_SECONDS
        return True

    async def cut(self) -> bool:
        """Between any two machines; or a client's to the master, in the middle of a call."""
        one, other = self._pair()
        if self.chance.random() < 0.6:
            with trio.move_on_after(IN_CALL_WAIT_SECONDS):
                await self.record.begun.wait()
                one, other = self.record.history[-1].who, self.cluster.present_master
                await trio.sleep(self.chance.uniform(0, IN_CALL_SECONDS))
        self._note(f"cut {one} {other}")
        return self.cluster.network.cut(one, other) > 0

    async def partition(self) -> bool:
        """One way, or both; between two machines, or one and all others."""
        one, other = self._pair()
        others = [other]
        if self.chance.random() < 0.4:
            others = [name for name in [*self.cluster.names, *self._clients] if name != one]
        ways = self.chance.choice(["to", "from", "both"])
        self._note(f"partition {one} {ways} {' '.join(others)}")
        for name in others:
            if ways != "from":
                self.cluster.network.block(one, name)
            if ways != "to":
                self.cluster.network.block(name, one)
        await trio.sleep(self.chance.choice([0.5, 3, 10, 25]))
        self._note(f"heal {one}")
        self.cluster.network.heal(one)
        return True

    async def slow_link(self) -> bool:
        one, other = self._pair()
        rate = self.chance.choice([500.0, 5_000.0, 50_000.0])
        self._note(f"slow link {one} {other} {rate:g} bytes/s")
        self.cluster.network.slow(one, other, (0.001, 0.3), rate)
        await trio.sleep(self.chance.uniform(1, 20))
        self.cluster.network.restore(one, other)
        return True

    async def outlived_lease(self) -> bool:
        """The master loses a server that is writing, and whose writes take longer than its
        lease: others are to have replicas of the same chunk meanwhile."""
        writing = await self._in_a_write(2 * MIB)
        if not writing:
            return False
        name = self.chance.choice(writing)
        rate = self.chance.choice(OUTLIVING_BYTES_PER_SECOND)
        for other in self.cluster.chunkservers:
            if other != name:
                self.cluster.network.slow(name, other, LATENCY_SECONDS, rate)
        # It may be the primary, which must have its lease by then.
        await trio.sleep(self.chance.uniform(0, GRANTED_SECONDS))
        masters = self.cluster.masters
        self._note(f"partition {name} both {' '.join(masters)}; {rate:g} bytes/s to the others")
        for master in masters:
            self.cluster.network.block(name, master)
            self.cluster.network.block(master, name)
        await trio.sleep(self.chance.uniform(5, 40))
        self._note(f"heal {name}")
        self.cluster.network.heal(name)
        for other in self.cluster.chunkservers:
            if other != name:
                self.cluster.network.restore(name, other)
        return True

    # --- machines ------------------------------------------------------------------------

    async def slow_disk(self) -> bool:
        machine = self.cluster.machine(self.chance.choice(self.cluster.names))
        high = self.chance.choice([0.05, 0.5, 3.0])
        self._note(f"slow disk {machine.name} up to {high} s")
        machine.blocking_seconds = (0.0, high)
        await trio.sleep(self.chance.uniform(1, 15))
        machine.blocking_seconds = BLOCKING_SECONDS
        return True

    async def crash(self) -> bool:
        return await self._one_down(self.cluster.names, power=False)

    async def machine_crash(self) -> bool:
        return await self._one_down(self.cluster.chunkservers, power=True)

    async def _one_down(self, names: list[str], power: bool) -> bool:
        """One of these; as often as not, one that is writing."""
        writing = await self._in_a_write() if self.chance.random() < 0.5 else []
        if writing:
            victim = self.chance.choice(writing)
            return await self._down([victim], self._absence(), power=power, in_call=True)
        return await self._down([self.chance.choice(names)], self._absence(), power=power)

    async def all_killed(self) -> bool:
        return await self._down(self.cluster.names, self._absence(), power=False)

    async def power_cut(self) -> bool:
        return await self._down(self.cluster.names, self._absence(), power=True)

    async def long_absence(self, begins: float) -> None:
        """Once. Not by :meth:`run`: it goes on where that is cancelled."""
        await trio.sleep(begins)
        name = self._server()
        while name in self._busy:
            await trio.sleep(ABSENT_LOOK_SECONDS)
            name = self._server()
        self._absent.add(name)
        self.record.begin_strike()
        try:
            await self._down([name], ABSENCE_SECONDS, power=self.chance.random() < 0.5)
        finally:
            self.record.end_strike()
        self._absent.clear()
        self.counts[LONG_ABSENCE] += 1
        self.returned.set()

    def _absence(self) -> float:
        return self.chance.choice([0.0, 0.5, 3.0, 10.0, 25.0])

    async def _down(
        self, names: list[str], seconds: float, power: bool, in_call: bool = False
    ) -> bool:
        names = [name for name in names if name not in self._busy]
        if not names:
            return False
        self._busy.update(names)
        what = "power cut" if power else "kill"
        self._note(f"{what} {' '.join(names)} for {seconds:g} s")
        servers = [name for name in names if name in self.cluster.chunkservers]
        for name in names:
            self.cluster.hold(name)
        if in_call or self.chance.random() < 0.5:
            # Each in the middle of whatever it does with its disk next, or in a write.
            if not in_call and self.chance.random() < 0.7:
                await self._in_a_write()
            for name in servers:
                self.cluster.kill_in_call(name, self.chance.randint(1, IN_CALL_MAX))
            await trio.sleep(self.chance.choice([0.05, 0.5, 1.5]))
        for name in names:
            self.cluster.kill(name)
        for name in servers:
            self.losses.server_is_gone(name)
        if power:
            self.losses.power_goes(servers)
            for name in servers:
                self.cluster.machine(name).disk.power_cut(self.chance)
            self.losses.power_is_gone()
        else:
            unsound = [each for name in servers for each in unsound_after_kill(self.cluster, name)]
            unsound += [each for name in servers for each in self.losses.unsound_packs(name)]
            if unsound:
                raise Violation("a kill left " + "; ".join(unsound))
        for name in names:
            await self._kill(name)
        await trio.sleep(seconds)
        for name in self.chance.sample(names, len(names)):
            self._begin(name)
            await trio.sleep(self.chance.choice([0, 0, 0.2]))
        self._busy.difference_update(names)
        return True

    async def client_crash(self) -> bool:
        name = self.chance.choice(self._clients)
        self._note(f"kill {name}")
        self.cluster.kill(name)
        return True

    # --- disks ---------------------------------------------------------------------------

    def _victim(self) -> tuple[str, str] | None:
        """What is damaged: (machine, path). A chunk file, as a rule."""
        name = self._server()
        disk = self.cluster.machine(name).disk
        fate = self.chance.random()
        paths: list[str] = []
        if fate < MARKS_SHARE:
            paths = self._present(disk, MARKS_NAME)
        elif fate < MARKS_SHARE + SERVER_SHARE:
            paths = self._spare_copies(disk)
        elif fate < MARKS_SHARE + SERVER_SHARE + JOURNAL_SHARE:
            name = self._forgetting
            disk = self.cluster.machine(name).disk
            paths = self._present(disk, *JOURNAL_NAMES)
        if not paths:
            # Each packed replica counts, and as many for its record as for its bytes.
            paths = self.cluster.chunk_files(name)
            for packed in packed_of(self.cluster, name):
                paths.append(f"{packed.directory}/{self.chance.choice([INDEX_NAME, DATA_NAME])}")
        return (name, self.chance.choice(paths)) if paths else None

    def _present(self, disk: SimDisk, *names: str) -> list[str]:
        paths = [f"{each}/{name}" for each in self.cluster.disks for name in names]
        return [path for path in paths if disk.exists(path)]

    def _spare_copies(self, disk: SimDisk) -> list[str]:
        """Copies of who the server is whose twins are good, whatever happens: who has lost
        both is for an operator to make anew."""
        return [
            f"{each}/{name}"
            for each in self.cluster.disks
            for name, twin in zip(SERVER_NAMES, reversed(SERVER_NAMES), strict=True)
            if disk.exists(f"{each}/{name}") and is_good_record(disk, f"{each}/{twin}")
        ]

    def _end_of_what_counts(self, disk: SimDisk, path: str) -> int:
        """Where damage to a file would not be taken for what a power cut may do. Of a redo
        journal that is what its head, as it is on the platter, says is there."""
        if path.rpartition("/")[2] not in JOURNAL_NAMES:
            return disk.file_size(path)
        content = disk.inode(path).on_platter()
        head = layout.decode_journal_head(content)
        end, last = layout.JOURNAL_HEAD_BYTES, 0
        while head is not None and len(content) > end:
            redo = layout.decode_redo(content, end)
            if redo is None or not last < redo.sequence <= head.synced:
                break
            last = redo.sequence
            end += layout.redo_bytes(redo)
        return min(end, disk.file_size(path))

    def _may_damage(self, name: str, path: str) -> bool:
        """Called before: what is only in the redo journal is harmed with it. False if
        nobody can tell what that is, since the disk is away."""
        kind = path.rpartition("/")[2]
        if kind in (*JOURNAL_NAMES, MARKS_NAME):
            self.harmed_notes = True
            self.losses.unsure.add(name)
        if kind in JOURNAL_NAMES:
            try:
                self.losses.journal_goes(name, path.rpartition("/")[0])
            except OSError:
                return False
        return True

    async def bit_flip(self) -> bool:
        victim = self._victim()
        if victim is None:
            return False
        name, path = victim
        disk = self.cluster.machine(name).disk
        size = self._end_of_what_counts(disk, path)
        if not size:
            return False
        # As many in what the file says of itself as in what it holds.
        end = self.chance.choice([min(size, 1100), size])
        offset = self.chance.randrange(end)
        if not self._may_damage(name, path):
            return False
        with self._in_packs(name, path) as used:
            offset = offset if used is None else used
            self._note(f"bit flip in byte {offset} of {path} of {name}")
            disk.flip_bit(path, 8 * offset + self.chance.randrange(8))
        self.losses.count()
        return True

    async def unreadable_sector(self) -> bool:
        victim = self._victim()
        if victim is None:
            return False
        name, path = victim
        disk = self.cluster.machine(name).disk
        size = disk.file_size(path)
        if not size:
            return False
        offset = self.chance.randrange(size)
        if not self._may_damage(name, path):
            return False
        with self._in_packs(name, path) as used:
            offset = offset if used is None else used
            self._note(f"unreadable sector at byte {offset} of {path} of {name}")
            disk.spoil(path, offset)
        self.losses.count()
        return True

    @contextmanager
    def _in_packs(self, name: str, path: str) -> Iterator[int | None]:
        """An offset of a file of packed replicas that is of one of them; None for other files.
        What is done to it in this block has damaged those that are not whole after it."""
        directory, _, kind = path.rpartition("/")
        if kind not in (INDEX_NAME, DATA_NAME):
            yield None
            return
        disk, data = self.cluster.machine(name).disk, f"{directory}/{DATA_NAME}"
        before = packed_on(self.cluster, name, directory)
        size = disk.file_size(data) if before else 0
        # A power cut may have left a record and not its bytes.
        there = [each for each in before if each.record.offset + each.record.length <= size]
        if not there:
            yield None
        else:
            packed = self.chance.choice(there)
            at, length = packed.at, packed.record.length
            if kind == INDEX_NAME:
                yield at + self.chance.randrange(RECORD_BYTES)
            else:
                yield packed.record.offset + self.chance.randrange(length)
        self.losses.packs_go(name, directory, before)

    async def disk_full(self) -> bool:
        name = self._server()
        disk, path = self.cluster.machine(name).disk, self.chance.choice(self.cluster.disks)
        # One that is away is not mounted by this.
        if (name, path) in self._away or not disk.exists(path):
            return False
        space = disk.space(path)
        room = self.chance.choice([0, 3_000, 40_000])
        self._note(f"disk full {name} {path}: {room} bytes left")
        disk.mount(path, space.total_bytes - space.free_bytes + room)
        self.record.begin_full(name)
        await trio.sleep(self.chance.uniform(1, 20))
        self.record.end_full(name)
        volume = self._away.get((name, path)) or disk.volume(path)
        volume.capacity_bytes = self.plan.capacities[self.cluster.chunkservers.index(name)]
        return True

    def _fails(self, name: str, path: str) -> None:
        self.failed.add((name, path))
        self.losses.unsure.add(name)

    async def disk_error(self) -> bool:
        """A disk refuses for a while to sync, to be written, or anything at all."""
        name, path = self._server(), self.chance.choice(self.cluster.disks)
        what = self.chance.choice([["sync"], ["write", "sync"], ["read", "write", "sync"]])
        self._note(f"disk error {name} {path}: {' '.join(what)}")
        disk = self.cluster.machine(name).disk
        self._fails(name, path)
        disk.fail(path, what=what)
        await trio.sleep(self.chance.choice([0.1, 1.0, self.chance.uniform(1, 20)]))
        # Its server drops what the disk refused as soon as it can be read again.
        self.losses.count()
        self._note(f"disk {name} {path} is well again")
        disk.fail(path, 0)
        return True

    async def disk_gone(self) -> bool:
        """One is unmounted, pulled, or read-only; and its server perhaps starts without it."""
        name, path = self._server(), self.chance.choice(self.cluster.disks)
        disk = self.cluster.machine(name).disk
        if (name, path) in self._away:
            return False
        struck = self.record.struck
        how = self.chance.choice(["unmounted", "pulled", "read-only"])
        self._note(f"disk {path} of {name} is {how}")
        self._fails(name, path)
        if how == "unmounted":
            self._away[name, path] = disk.unmount(path)
        elif how == "pulled":
            self.losses.power_goes([name], path)
            self._away[name, path] = disk.pull(path, self.chance)
            self.losses.power_is_gone()
        else:
            self._away[name, path] = volume = disk.volume(path)
            volume.read_only = errno.EROFS
        seconds = self.chance.choice([0.5, 3, NAMED_SECONDS])
        process, alone = self.cluster.node(name).process, self.record.strikes == 1
        await trio.sleep(seconds)
        alone = alone and self.record.strikes == 1 and self.cluster.node(name).process is process
        if alone and seconds == NAMED_SECONDS:
            await self._check_named(name, path)
        if self.chance.random() < 0.3:
            await self._down([name], self._absence(), power=False)
            await trio.sleep(self.chance.choice([0.5, 3, 12]))
        self._return(name, path, self.record.strikes == 1 and self.record.struck == struck)
        return True

    async def _check_named(self, name: str, path: str) -> None:
        """A disk has been away for long, and nothing else is wrong: status says so, if it
        tells of now."""
        with trio.move_on_after(IN_CALL_WAIT_SECONDS):
            async with self.cluster.client(f"operator of {name}{path}") as fs:
                for server in (await fs.status()).servers:
                    is_fresh = server.state == "live" and server.heartbeat_age_ms < 2000
                    states = {disk.path: disk.state for disk in server.disks}
                    if server.address.partition(":")[0] != name or not is_fresh:
                        continue
                    if states[path] not in ("failed", "missing"):
                        raise Violation(f"{path} of {name} is away, and the disks are {states}")

    def _return(self, name: str, path: str, alone: bool = False) -> None:
        """``alone``: nothing else was wrong while it was away."""
        disk, volume = self.cluster.machine(name).disk, self._away.pop((name, path))
        self._note(f"disk {path} of {name} is back")
        if volume.read_only:
            volume.read_only = 0
        elif volume.gone:
            disk.plug(path, volume)
        else:
            left = disk.paths(path)
            if left and (alone or not self._is_of_a_new_server(disk, path, left)):
                raise Violation(f"{name} made files where {path} was not mounted: {left}")
            for each in left:  # else it would be seen the next time as well
                disk.delete(each)
            disk.mount_again(path, volume)

    def _is_of_a_new_server(self, disk: SimDisk, path: str, left: list[str]) -> bool:
        """Whether this is no more than what a server makes that is started without any of its
        disks, and has not heard yet that it is none of the master's: it takes that away when it
        does, unless its start fails."""
        if not set(left) <= {f"{path}/{name}" for name in MADE_BY_A_START}:
            return False
        known = read_metadata(self.cluster.directory).rows["servers"]
        for name in SERVER_NAMES:
            with suppress(OSError, ValueError):
                if decode_server(disk.read(f"{path}/{name}")).id.encode() in known:
                    return False
        return True

    @contextmanager
    def _all_shown(self) -> Iterator[None]:
        hidden = {
            where: volume
            for where, volume in self._away.items()
            if not volume.gone and not volume.read_only
        }
        for (name, path), volume in hidden.items():
            self.cluster.machine(name).disk.mount_again(path, volume)
        try:
            yield
        finally:
            for name, path in hidden:
                self.cluster.machine(name).disk.unmount(path)

    async def disk_hang(self) -> bool:
        """Some calls to a disk return after a while only, which may be long."""
        name, path = self._server(), self.chance.choice(self.cluster.disks)
        disk = self.cluster.machine(name).disk
        if (name, path) in self._away:
            return False
        share, longest = self.chance.choice([0.05, 0.3, 1.0]), self.chance.choice([2.0, 15.0, 60.0])
        self._note(f"disk {path} of {name} hangs for up to {longest} s, in {share:g} of all calls")
        self._fails(name, path)
        volume = disk.volume(path)
        volume.hang = Hang(share, (0.0, longest), tuple(self.chance.choice(HANGING_KINDS)))
        await trio.sleep(self.chance.uniform(1, 20))
        volume.hang = None
        self._note(f"disk {path} of {name} does not hang any more")
        return True

    # --- clocks --------------------------------------------------------------------------

    async def clock_jump(self) -> bool:
        """The wall clock; the monotonic one never jumps."""
        name = self._machine()
        jump = self.chance.choice([5.0, 3600.0, DAY_SECONDS, 10 * DAY_SECONDS])
        jump *= self.chance.choice([-1, 1])
        self._note(f"clock of {name} jumps {jump:g} s")
        self.cluster.universe.machine(name).time.wall_offset_seconds += jump
        return True

    async def clock_drift(self) -> bool:
        name = self._machine()
        rate = 1 + self.chance.uniform(-DRIFT_MAX, DRIFT_MAX)
        self._note(f"clock of {name} runs at {rate:.4f}")
        self.cluster.universe.machine(name).time.rate = rate
        return True

    # --- elections -------------------------------------------------------------------------

    async def elections(self) -> bool:
        """What happens to the master that was elected, and what engines do."""
        cluster = self.cluster
        assert isinstance(cluster, WithEngine)
        engine, holder = cluster.engine, cluster.present_master
        what = self.chance.choice(
            ["dies", "suspended", "cut off", "isolated", "away", "late", "lies"]
        )
        self._note(f"elections: {what}, {holder}")
        seconds = self.chance.uniform(0, 3 * HOLD_SECONDS)
        if what == "dies":
            return await self._down([holder], self._absence(), power=False)
        if what == "suspended":
            cluster.machine(holder).time.suspended_seconds += seconds
            return True
        others = [name for name in cluster.names if name != holder]
        if what == "cut off":
            engine.away = {holder}
        elif what == "isolated":  # but not from clients
            engine.away = {holder}
            for name in others:
                cluster.network.block(holder, name)
                cluster.network.block(name, holder)
        elif what == "away":
            engine.away = set(cluster.masters)
        elif what == "late":
            late = self.chance.choice([0.01, 0.3, 0.7, 2.0])
            lost = self.chance.choice([0.0, 0.1, 0.3])
            engine.unkind = Unkindness(late=late, lost=lost)
        else:
            engine.unkind = Unkindness(early=self.chance.choice([0.3, 0.6]))
            self.record.begin_lie()
        await trio.sleep(seconds)
        if what == "isolated":
            cluster.network.heal(holder)
        self._kind_again()
        return True

    def _kind_again(self) -> None:
        if isinstance(self.cluster, WithEngine):
            self.cluster.engine.away, self.cluster.engine.unkind = set(), Unkindness()
            self.record.end_lie()


Strike = Callable[[Faults], Awaitable[bool]]

STRIKES: dict[str, Strike] = {
    "delay": Faults.delay,
    "cut": Faults.cut,
    "partition": Faults.partition,
    "slow link": Faults.slow_link,
    "outlived lease": Faults.outlived_lease,
    "slow disk": Faults.slow_disk,
    "crash": Faults.crash,
    "machine crash": Faults.machine_crash,
    "all killed": Faults.all_killed,
    "power cut": Faults.power_cut,
    "bit flip": Faults.bit_flip,
    "unreadable sector": Faults.unreadable_sector,
    "disk full": Faults.disk_full,
    "disk error": Faults.disk_error,
    "disk gone": Faults.disk_gone,
    "disk hang": Faults.disk_hang,
    "clock jump": Faults.clock_jump,
    "clock drift": Faults.clock_drift,
    "client crash": Faults.client_crash,
    ELECTIONS: Faults.elections,
}
