"""Chunks that several files have, after a snapshot (the paper, section 3.4).

A chunk's row counts the files that refer to it. Once there was more than one it is
*frozen*, for good: it is not written again, and a file that is to be written
gets a copy under a new handle first. It stays so when only one file is left,
because a client may still have cached, for as long as it caches locations, that the
chunk belongs to a file that has another one by now: were it written for the last
file that has it, a reader of the other would see that.

A chunk's goal is the highest of its files'. So that it can be lowered again, a
frozen chunk's row has, after the fixed part, how many files there are of each
goal; that this part is there at all is what makes the chunk frozen.

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
    """One more file, of that goal, has the chunk."""
    goals = goals_of(chunk)
    goals[goal] = goals.get(goal, 0) + 1
    return _with(chunk, goals)


def released(chunk: Chunk, goal: int) -> Chunk | None:
    """A file of that goal does not have the chunk any more; None: nobody has."""
    if chunk.references <= 1:
        return None
    goals = goals_of(chunk)
    invariant(goals.get(goal, 0) > 0, "a chunk knows the goals of the files that have it")
    goals[goal] -= 1
    return _with(chunk, goals)


def regoaled(chunk: Chunk, before: int, after: int) -> Chunk:
    """One of its files has another goal."""
    if not chunk.goals:
        return chunk._replace(replication=after)
    goals = goals_of(chunk)
    invariant(goals.get(before, 0) > 0, "a chunk knows the goals of the files that have it")
    goals[before] -= 1
    goals[after] = goals.get(after, 0) + 1
    return _with(chunk, goals)
