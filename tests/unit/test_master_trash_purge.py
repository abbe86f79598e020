"""When the trash has to go early: not before a write would fail otherwise."""

from __future__ import annotations

import pytest

from gfs.master.rules.trash_purge import ROOM_BYTES, WARN_SHARE, Shortage, room_bytes, shortage
from gfs.master.tables.servers import DEAD, LIVE, SILENT, Server
from gfs.protocol.messages import Disk

TIB = 1 << 40
GIB = 1 << 30

#: Total, free, state of each disk of a server; and the server's state.
Reports = tuple[list[tuple[int, int, str]], str]
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


def servers(reported: list[Reports]) -> list[Server]:
    made = []
    for index, (disks, state) in enumerate(reported):
        server = Server(index, f"s{index}", "", "", 0.0, state=state)
        server.set_disks([Disk("/d", total, free, 0, of_disk) for total, free, of_disk in disks])
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
