"""What a seed decides before anything runs: the cluster, the work, the faults."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from msgspec.structs import replace

from gfs.blocks import BLOCK_BYTES, CHUNK_BYTES, MIB
from gfs.config import ChunkserverSettings, ClientSettings, MasterSettings

#: In most seeds there is work for so long, in simulated seconds; in a few as long as there may.
SHORT_SECONDS = (8.0, 90.0)
LONG_SHARE = 0.005
HOUR = 3600.0
#: In some a server comes back after an hour, most of which all others are idle.
ABSENCE_SHARE = 0.04
ABSENCE_SECONDS = HOUR
ABSENT_WITHIN_SECONDS = 60.0
#: The work stops for that when so much of it is done.
PAUSE_SHARE = (0.3, 0.7)
#: An idle hour must be cheap.
IDLE_HEARTBEAT_SECONDS = 4.0
IDLE_SCAN_SECONDS = 60.0
MAP_BYTES = 64 << 20
CALM_SHARE = 0.05
#: Of each disk; nothing but a fault fills it.
CAPACITY_BYTES = 1 << 40
#: Some seeds have servers of different sizes, in few racks or in one, and replicas move to
#: those that are emptier.
UNEVEN_SHARE = 0.25
UNEVEN_CHUNKS = (342, 684, 2736)
UNEVEN_BALANCE_SHARE = 0.005
#: Between the rates of two machines' clocks; leases allow for a twelfth.
DRIFT_MAX = 0.02

#: In some an engine elects one of three masters, and is as unkind as engines are.
ELECTIONS_SHARE = 0.12
ELECTIONS_EVERY = (6.0, 30.0)
ELECTIONS = "elections"
#: Once in a seed, if at all, and only where hours are simulated.
LONG_ABSENCE = "long absence"
#: Every kind of fault, and how many seconds apart its strikes are, at a rate of 1.
KINDS: dict[str, float] = {
    "delay": 15.0,
    "cut": 10.0,
    "partition": 20.0,
    "slow link": 20.0,
    "outlived lease": 20.0,
    "slow disk": 20.0,
    "crash": 15.0,
    "machine crash": 30.0,
    "all killed": 40.0,
    "power cut": 60.0,
    "bit flip": 15.0,
    "unreadable sector": 20.0,
    "disk full": 30.0,
    "disk error": 30.0,
    "disk gone": 30.0,
    "disk hang": 40.0,
    "clock jump": 15.0,
    "clock drift": 15.0,
    "client crash": 20.0,
    ELECTIONS: 15.0,
    LONG_ABSENCE: ABSENCE_SECONDS,
}
#: Kinds that belong to seeds of their own.
OF_THEIR_OWN = {ELECTIONS, LONG_ABSENCE}
#: Those by which no server fails anybody.
HARMLESS = {"clock jump", "clock drift", "client crash"}
#: Those that may leave a replica unfit by its own checksums.
DAMAGING = {
    "bit flip", "unreadable sector", "disk error", "disk gone", "machine crash", "power cut",
    LONG_ABSENCE,
}  # fmt: skip


@dataclass(frozen=True)
class Absence:
    """A server goes away and comes back an hour later. Clients and faults stop for most of
    that, and go on at the moment at which it is back. Both times are those of the work."""

    leaves: float
    pause: float


@dataclass
class Plan:
    seed: int
    #: How long clients and faults are at work.
    seconds: float
    chunkservers: int
    racks: list[str]
    disks: int
    clients: int
    calls: int
    master: MasterSettings
    chunkserver: ChunkserverSettings
    client: ClientSettings
    #: Of each chunkserver's disks.
    capacities: list[int]
    #: Kind of fault -> mean seconds between two strikes.
    faults: dict[str, float] = field(default_factory=dict)
    absence: Absence | None = None
    #: Kinds of calls: these alone, if any.
    only: tuple[str, ...] = ()

    def __str__(self) -> str:
        often = [kind for kind in self.faults if kind != LONG_ABSENCE]
        faults = [f"{kind} every {self.faults[kind]:.0f} s" for kind in often]
        if self.absence is not None:
            faults.append(f"a server away for {ABSENCE_SECONDS:.0f} s")
        sizes = "different" if self.is_uneven else "like"
        return (
            f"{self.seconds:.0f} s, {self.chunkservers} chunkservers with {self.disks} disks of "
            f"{sizes} sizes in {len(set(self.racks))} racks, "
            f"replication {self.master.replication}, {self.chunkserver.durability}, "
            f"{self.clients} clients with {self.calls} calls each, "
            f"{'one of three masters elected' if self.elects else 'one master'}; "
            f"{', '.join(faults) or 'no faults'}"
        )

    @property
    def elects(self) -> bool:
        return bool(self.master.elect)

    @property
    def is_uneven(self) -> bool:
        return len(set(self.capacities)) > 1


def make_plan(
    seed: int,
    hours: float = 1.0,
    kinds: list[str] | None = None,
    rate: float = 1.0,
    durability: str | None = None,
    only: tuple[str, ...] = (),
) -> Plan:
    """The plan of ``seed``: clients and faults are at work no longer than ``hours``, and
    a server may be away for one if that is an hour at least; faults of these kinds at
    ``rate`` times their usual frequency, or of kinds and at a rate of its own choice;
    with this ``durability``, or one of its own choice; with ``only`` these calls."""
    chance = random.Random(f"{seed}/plan")
    longest = hours * HOUR
    is_long = chance.random() < LONG_SHARE and longest > 2 * SHORT_SECONDS[1]
    low, high = SHORT_SECONDS
    seconds = min(low * (high / low) ** chance.random(), longest)
    if is_long:
        seconds = longest
    count = chance.choice([3, 4, 4, 5])
    racks = chance.choice([count, 2])
    plan = Plan(
        seed=seed,
        seconds=seconds,
        chunkservers=count,
        racks=[f"rack{n % racks}" for n in range(count)],
        disks=chance.choice([1, 2, 2, 3]),
        clients=chance.choice([2, 3, 4]),
        calls=chance.choice([6, 12, 20]),
        master=_master(chance, is_long),
        chunkserver=_chunkserver(chance, seed, durability),
        client=_client(chance),
        capacities=[CAPACITY_BYTES] * count,
        faults=_faults(chance, is_long, kinds, rate),
        only=only,
    )
    _make_uneven(plan)
    if longest >= ABSENCE_SECONDS:
        _make_absent(plan, is_long, kinds)
    if plan.absence is None and not is_long:
        _make_elected(plan, kinds, rate)
    return plan


def _make_elected(plan: Plan, kinds: list[str] | None, rate: float) -> None:
    """Where that is told, else in some seeds. With chance of its own, as below."""
    chance = random.Random(f"{plan.seed}/elections")
    is_chosen = chance.random() < ELECTIONS_SHARE
    if not (is_chosen if kinds is None else ELECTIONS in kinds):
        return
    plan.master = replace(plan.master, elect="the engine", replicas_before_ack=1)
    if plan.faults or kinds is not None:
        plan.faults[ELECTIONS] = chance.uniform(*ELECTIONS_EVERY) / rate


def _make_absent(plan: Plan, is_long: bool, kinds: list[str] | None) -> None:
    """Where that is told, else in some seeds. With chance of its own, as below."""
    chance = random.Random(f"{plan.seed}/absence")
    by_chance = is_long or chance.random() < ABSENCE_SHARE
    if not (by_chance if kinds is None else LONG_ABSENCE in kinds):
        return
    pause = chance.uniform(*PAUSE_SHARE) * plan.seconds
    plan.absence = Absence(chance.uniform(0, min(pause, ABSENT_WITHIN_SECONDS)), pause)
    plan.faults[LONG_ABSENCE] = ABSENCE_SECONDS
    plan.master = replace(plan.master, heartbeat_seconds=IDLE_HEARTBEAT_SECONDS)
    plan.chunkserver = replace(plan.chunkserver, scan_seconds=IDLE_SCAN_SECONDS)


def _make_uneven(plan: Plan) -> None:
    """In some seeds. With chance of its own: all others are what they were."""
    chance = random.Random(f"{plan.seed}/uneven")
    if chance.random() >= UNEVEN_SHARE:
        return
    small, *larger = (count * CHUNK_BYTES for count in UNEVEN_CHUNKS)
    others = [chance.choice(larger) for _ in range(plan.chunkservers - 1)]
    plan.capacities = [small, *others]
    chance.shuffle(plan.capacities)
    racks = chance.choice([1, 1, 2, 3])
    plan.racks = [f"rack{n % racks}" for n in range(plan.chunkservers)]
    plan.master = replace(plan.master, balance_share=UNEVEN_BALANCE_SHARE)


def _master(chance: random.Random, is_long: bool) -> MasterSettings:
    lease = chance.choice([6.0, 12.0, 60.0])
    return MasterSettings(
        replication=chance.choice([3, 3, 3, 2]),
        replicas_min=chance.choice([1, 2]),
        heartbeat_seconds=4.0 if is_long else chance.choice([0.5, 1.0, 2.0]),
        dead_seconds=chance.choice([6.0, 15.0]),
        lease_seconds=lease,
        lease_margin_seconds=lease / 12,
        garbage_grace_seconds=chance.choice([5.0, 20.0]),
        client_silence_seconds=chance.choice([15.0, 30.0]),
        # Whoever is away comes back in the end.
        forgetful_seconds=100 * HOUR,
        trash_seconds=chance.choice([4.0, 20.0, 3 * 24 * HOUR]),
        map_bytes=MAP_BYTES,
        sync=False,  # its commits count as atomic, and its disk is thrown away
    )


def _chunkserver(chance: random.Random, seed: int, durability: str | None) -> ChunkserverSettings:
    chosen = chance.choice(["replicated", "replicated", "fsync"])
    return ChunkserverSettings(
        durability=durability or chosen,
        mark_seconds=random.Random(f"{seed}/marks").choice([1.0, 5.0, 60.0]),
        packed_bytes_max=random.Random(f"{seed}/packs").choice([0, 1024, *[BLOCK_BYTES] * 4]),
        # Small enough to be full now and then.
        journal_bytes=random.Random(f"{seed}/journal").choice([4, 16, 256]) * BLOCK_BYTES,
        reserve_bytes=16 * BLOCK_BYTES,
        scan_seconds=chance.choice([2.0, 10.0]),
        scrub_seconds=chance.choice([20.0, 7 * 24 * HOUR]),
        background_bytes_per_second=chance.choice([64 * MIB, 4 * MIB]),
        idle_seconds=chance.choice([8.0, 30.0]),
    )


def _client(chance: random.Random) -> ClientSettings:
    return ClientSettings(
        memory_bytes=chance.choice([4 * MIB, 32 * MIB]),
        window_bytes=chance.choice([BLOCK_BYTES, 2 * MIB, 8 * MIB]),
        stall_seconds=chance.choice([1.0, 6.0]),
        retry_seconds=chance.choice([5.0, 15.0, 30.0]),
        location_seconds=chance.choice([3.0, 30.0]),
    )


def _faults(
    chance: random.Random, is_long: bool, kinds: list[str] | None, rate: float
) -> dict[str, float]:
    if kinds is not None:
        return {kind: KINDS[kind] / rate for kind in kinds if kind not in OF_THEIR_OWN}
    if chance.random() < CALM_SHARE:
        return {}
    possible = [kind for kind in KINDS if kind not in OF_THEIR_OWN]
    chosen = sorted(chance.sample(possible, chance.choice([1, 1, 2, 3, 5, len(possible)])))
    # The more kinds, the rarer each; a long seed is not made of faults alone.
    slower = max(1.0, len(chosen) / 4) * (20 if is_long else 1) / rate
    speed = chance.choice([0.3, 1.0, 2.0])
    return {kind: KINDS[kind] * slower * speed for kind in chosen}
