"""Chunks that several files have, after a snapshot (the paper, section 3.4).

A chunk's row counts the files that refer to it. Once there was more than one it is
*frozen*, for good: it is not written again, and a file that is to be written gets a
copy under a new handle first. It stays frozen when only one file is left, because a
client may still have a cached location that says that the chunk belongs to a file which
has another chunk by now: if the chunk were written for the last file that has it, a
reader of the other file would see that.

A chunk's goal is the highest of its files'. So that it can be lowered again, a frozen
chunk's row has, after the fixed part, how many files there are of each goal. A chunk is
frozen if its row has this part.

Plain arithmetic on rows; nothing here reads or writes.
"""

from __future__ import annotations

import struct

from gfs.errors import invariant
from gfs.master.metadata.rows import Chunk

_goal = struct.Struct(">HI")


def is_frozen(chunk: Chunk) -> bool:
    return bool(chunk.goals)


def goals_of(chunk: Chunk) -> dict[int, int]:
    """Goal → how many files of that goal have the chunk."""
    if not chunk.goals:
        return {chunk.replication: chunk.references}
    return dict(_goal.iter_unpack(chunk.goals))


def _with(chunk: Chunk, goals: dict[int, int]) -> Chunk:
    packed = b"".join([_goal.pack(goal, files) for goal, files in sorted(goals.items()) if files])
    return chunk._replace(
        references=sum(goals.values()),
        replication=max(goal for goal, files in goals.items() if files),
        goals=packed,
    )


def shared(chunk: Chunk, goal: int) -> Chunk:
    """Add a file of that goal."""
    goals = goals_of(chunk)
    goals[goal] = goals.get(goal, 0) + 1
    return _with(chunk, goals)


def released(chunk: Chunk, goal: int) -> Chunk | None:
    """Remove a file of that goal; None if no file is left."""
    if chunk.references <= 1:
        return None
    goals = goals_of(chunk)
    invariant(goals.get(goal, 0) > 0, "a shared chunk has the goals of its files")
    goals[goal] -= 1
    return _with(chunk, goals)


def regoaled(chunk: Chunk, before: int, after: int) -> Chunk:
    """Change the goal of one of its files."""
    if not chunk.goals:
        return chunk._replace(replication=after)
    goals = goals_of(chunk)
    invariant(goals.get(before, 0) > 0, "a shared chunk has the goals of its files")
    goals[before] -= 1
    goals[after] = goals.get(after, 0) + 1
    return _with(chunk, goals)
