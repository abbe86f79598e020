"""When the trash has to go early: not before a write would fail otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfs.blocks import CHUNK_BYTES, MIB
from gfs.master.rules.trash_purge import ROOM_BYTES, WARN_SHARE, Shortage, room_bytes, shortage
from gfs.master.tables.servers import DEAD, LIVE, SILENT, Server
from gfs.protocol.messages import Disk

TIB = 1 << 40
GIB = 1 << 30

#: Total, free, state and, if it is known, file system of each disk of a server, all on one
#: machine; and the server's state.
Reports = tuple[list[tuple[int, int, str] | tuple[int, int, str, int]], str]
ROOM: Reports = ([(TIB, TIB // 2, "ok")], LIVE)
LITTLE: Reports = ([(TIB, 50 * GIB, "ok")], LIVE)
FULL: Reports = ([(TIB, 0, "full")], LIVE)
LOW: Reports = ([(TIB, ROOM_BYTES - 1, "ok")], LIVE)
ONE_OF_TWO_FULL: Reports = ([(TIB, 0, "full"), (TIB, 2 * ROOM_BYTES, "ok")], LIVE)
FAILED: Reports = ([(TIB, TIB // 2, "failed")], LIVE)
AWAY: Reports = ([], SILENT)
GONE: Reports = ([(TIB, TIB // 2, "ok")], DEAD)
#: Seen before it was away.
FULL_AND_AWAY: Reports = ([(TIB, 0, "full")], SILENT)
FULL_AND_GONE: Reports = ([(TIB, 0, "full")], DEAD)
UNKNOWN: Reports = ([], DEAD)
LITTLE_AND_AWAY: Reports = ([(TIB, 50 * GIB, "ok")], SILENT)
SMALL: Reports = ([(1000, 49, "ok")], LIVE)
#: Of each disk too little, but not of all of them together.
A_LITTLE_EACH: Reports = ([(TIB, ROOM_BYTES // 4, "ok")] * 4, LIVE)
ALMOST: Reports = ([(TIB, ROOM_BYTES // 4, "ok")] * 3 + [(TIB, 0, "full")], LIVE)
#: Disks of two sizes: the large ones say what room is, while they are used.
SMALL_FULL: Reports = ([(64 * GIB, 0, "full"), (TIB, 2 * GIB, "ok")], LIVE)
LARGE_FULL: Reports = ([(64 * GIB, 2 * GIB, "ok"), (TIB, 0, "full")], LIVE)
TOO_SMALL: Reports = ([(100 * MIB, 90 * MIB, "ok"), (10 * GIB, 0, "full")], LIVE)
LARGE_FAILED: Reports = ([(100 * MIB, 6 * MIB, "ok"), (0, 0, "failed")], LIVE)
LARGE_DRAINING: Reports = ([(100 * MIB, 6 * MIB, "ok"), (TIB, TIB // 2, "draining")], LIVE)
SMALL_DRAINING: Reports = ([(64 * GIB, GIB, "draining"), (TIB, 0, "full")], LIVE)
#: Enough of all of them together, and a chunk fits on none.
NO_CHUNK_FITS: Reports = ([(TIB, 60 * MIB, "ok")] * 20, LIVE)
#: Two directories on one file system; and servers on the same one.
TWICE: Reports = ([(TIB, 3 * ROOM_BYTES // 4, "ok", 7)] * 2, LIVE)
TOGETHER: Reports = ([(TIB, ROOM_BYTES // 2, "ok", 7)], LIVE)
TOGETHER_WITH_ROOM: Reports = ([(TIB, 4 * ROOM_BYTES, "ok", 7)], LIVE)


def servers(reported: list[Reports]) -> list[Server]:
    made = []
    for index, (disks, state) in enumerate(reported):
        server = Server(index, f"s{index}", f"host:{index}", "", 0.0, state=state)
        server.set_disks(
            [
                Disk(f"/d{at}", total, free, 0, of_disk, device=device[0] if device else 0)
                for at, (total, free, of_disk, *device) in enumerate(disks)
            ]
        )
        made.append(server)
    return made


@pytest.mark.parametrize(
    ("reported", "missing", "wanted"),
    [
        ([ROOM, ROOM, ROOM], None, 0),
        # One full server, or one full disk, while others have room.
        ([ROOM, ROOM, FULL], None, 0),
        ([ROOM, ONE_OF_TWO_FULL, ONE_OF_TWO_FULL], None, 0),
        ([ROOM, LITTLE, LOW], None, 0),
        # One that is away will be back with room.
        ([ROOM, AWAY, FULL], None, 0),
        ([AWAY, AWAY, AWAY], None, 0),
        ([ROOM, FULL, FULL], {1: 2 * ROOM_BYTES, 2: 2 * ROOM_BYTES}, 1),
        # Nor is one that nobody has forgotten a reason.
        ([ROOM, GONE, LOW], None, 0),
        ([ROOM, UNKNOWN, LOW], None, 0),
        # One that was full when it was there last is none that has room.
        ([ROOM, FULL_AND_GONE, LOW], {2: ROOM_BYTES + 1}, 1),
        ([ROOM, FULL_AND_AWAY, LOW], {2: ROOM_BYTES + 1}, 1),
        ([ROOM, A_LITTLE_EACH, FULL], None, 0),
        ([ROOM, ALMOST], {1: 2 * ROOM_BYTES - 3 * (ROOM_BYTES // 4)}, 1),
        ([LOW, FULL, FULL], {0: ROOM_BYTES + 1, 1: 2 * ROOM_BYTES, 2: 2 * ROOM_BYTES}, 2),
        ([ROOM, SMALL], {1: 51}, 1),
        ([ROOM, SMALL_FULL], None, 0),
        ([ROOM, LARGE_FULL], None, 0),
        ([ROOM, TOO_SMALL], {1: (1024 - 90) * MIB}, 1),
        ([ROOM, LARGE_FAILED], None, 0),
        ([ROOM, LARGE_DRAINING], None, 0),
        ([ROOM, SMALL_DRAINING], {1: 2 * ROOM_BYTES}, 1),
        ([ROOM, NO_CHUNK_FITS], {1: 2 * ROOM_BYTES - 60 * MIB}, 1),
        # What is free twice is there once,
        ([ROOM, TWICE], {1: 2 * ROOM_BYTES - 3 * ROOM_BYTES // 4}, 1),
        # and what goes from two servers on a file system frees space there twice.
        ([ROOM, TOGETHER, TOGETHER], dict.fromkeys((1, 2), 3 * ROOM_BYTES // 2), 1),
        ([TOGETHER] * 3, dict.fromkeys(range(3), 3 * ROOM_BYTES // 4), 2),
        # Servers are missing, and no space: there is none to be freed.
        ([ROOM], None, 0),
        ([ROOM, GONE, GONE], None, 0),
        ([ROOM, FAILED, FAILED], None, 0),
        ([FULL, FAILED, FAILED], None, 0),
        ([], None, 0),
    ],
)
def test_what_is_a_shortage(
    reported: list[Reports], missing: dict[int, int] | None, wanted: int
) -> None:
    expected = None if missing is None else Shortage(missing, wanted)
    assert shortage(servers(reported), 2) == expected


@pytest.mark.parametrize(
    ("reported", "low", "left"),
    [
        ([ROOM, ROOM, ROOM], False, TIB // 2 - ROOM_BYTES),
        ([ROOM, ROOM, FULL], False, TIB // 2 - ROOM_BYTES),
        ([ROOM, LITTLE, FULL], True, 50 * GIB - ROOM_BYTES),
        ([ROOM, FULL, FULL], True, 0),
        ([ROOM], False, 0),
        # The trash is purged for want of space here, which that of an absent server cannot hide.
        ([FULL, LITTLE_AND_AWAY], True, 0),
        ([SMALL_FULL] * 2, True, GIB),
        # Each byte is written to three disks, and all of them are one.
        ([TOGETHER_WITH_ROOM] * 3, True, ROOM_BYTES),
    ],
)
def test_people_are_warned_before(reported: list[Reports], low: bool, left: int) -> None:
    made = servers(reported)
    assert (shortage(made, 2, WARN_SHARE) is not None) == low
    assert room_bytes(made, 2) == left


def test_what_is_being_deleted_already_is_waited_for() -> None:
    short = Shortage({1: 100, 2: 200, 3: 300}, 2)
    assert short.without({1: 0, 2: 199, 3: 0}) == Shortage({1: 100, 2: 1, 3: 300}, 2)
    assert short.without({1: 100, 2: 0, 3: 400}) == Shortage({2: 200}, 0)


class Cluster(NamedTuple):
    """What is really on the disks."""

    #: Of each file system.
    total: list[int]
    free: list[int]
    #: Of each server: its disks' states, by file system.
    disks: list[dict[int, str]]

    def servers(self) -> list[Server]:
        return servers(
            [([self._disk(*each) for each in mine.items()], LIVE) for mine in self.disks]
        )

    def _disk(self, at: int, state: str) -> tuple[int, int, str, int]:
        if state == "failed":
            return 0, 0, state, at + 1
        is_full = state == "ok" and not self.free[at]
        return self.total[at], self.free[at], "full" if is_full else state, at + 1

    def used(self, server: int) -> list[int]:
        return [at for at, state in self.disks[server].items() if state == "ok"]

    def room(self, server: int) -> int:
        return min(ROOM_BYTES, max((self.total[at] for at in self.used(server)), default=0) // 20)

    def with_free(self, least: Callable[[int], int]) -> int:
        """On how many servers one disk has that much, which depends on the server."""
        return sum(
            any(self.free[at] >= least(server) for at in self.used(server))
            for server in range(len(self.disks))
        )


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    total = draw(st.lists(st.sampled_from([100 * MIB, 10 * GIB, 64 * GIB, TIB]), min_size=1))
    free = [draw(st.integers(0, min(size // MIB, 2500))) * MIB for size in total]
    at = st.sampled_from(range(len(total)))
    states = st.sampled_from(["ok"] * 4 + ["draining", "failed"])
    disks = st.lists(st.dictionaries(at, states, min_size=1), min_size=1, max_size=5)
    return Cluster(total, free, draw(disks))


@given(clusters(), st.integers(1, 3), st.randoms(use_true_random=False))
def test_what_is_promised_can_be_written_before(
    cluster: Cluster, needed: int, chance: Random
) -> None:
    """However large the files are, and wherever they go."""
    promised = room_bytes(cluster.servers(), needed)
    for server in range(len(cluster.disks)) if promised else ():
        todo = promised
        while todo and any(cluster.free[at] for at in cluster.used(server)):
            at = chance.choice([each for each in cluster.used(server) if cluster.free[each]])
            piece = min(todo, cluster.free[at], chance.choice([MIB, CHUNK_BYTES // 2, CHUNK_BYTES]))
            cluster.free[at] -= piece
            todo -= piece
    assert not promised or shortage(cluster.servers(), needed) is None


@given(clusters(), st.integers(1, 3), st.data(), st.randoms(use_true_random=False))
def test_purges_end_when_there_is_room(
    cluster: Cluster, needed: int, data: st.DataObject, chance: Random
) -> None:
    """Or when nothing helps. None begins while enough servers have a disk with room, and on
    disks of its own a server gets at most three times its room, and a chunk for each of them."""
    trash = [
        {at: data.draw(st.integers(0, 3000)) for at, state in mine.items() if state != "failed"}
        for mine in cluster.disks
    ]
    freed = [0] * len(trash)
    while (short := shortage(cluster.servers(), needed)) is not None:
        assert cluster.with_free(lambda server: max(1, cluster.room(server))) < needed
        assert shortage(cluster.servers(), needed, WARN_SHARE) is not None
        servers = sorted(short.missing, key=lambda index: -sum(trash[index].values()))
        if not any(trash[servers[short.wanted - 1]].values()):
            return
        for server in servers[: short.wanted]:
            left = short.missing[server]
            while left > 0 and any(trash[server].values()):
                at = chance.choice([at for at, count in trash[server].items() if count])
                trash[server][at] -= 1
                left -= MIB
                if cluster.disks[server][at] == "ok":
                    cluster.free[at] += MIB
                    freed[server] += MIB
    uses = Counter(at for mine in cluster.disks for at in mine)
    for server, count in enumerate(freed):
        used = cluster.used(server)
        if all(uses[at] == 1 for at in used):
            least = min(CHUNK_BYTES, cluster.room(server))
            assert count <= 3 * cluster.room(server) + len(used) * least + MIB
    could = sum(any(cluster.total[at] for at in cluster.used(s)) for s in range(len(trash)))
    if could >= needed:
        fits = cluster.with_free(lambda server: max(1, min(CHUNK_BYTES, cluster.room(server))))
        assert fits >= needed
