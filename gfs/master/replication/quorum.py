"""Which shadow masters count for ``replicas_before_ack``, and what follows from it.

What is acknowledged is on the disks of n of the shadows that *count*. Who counts is
in the operation log, so that a shadow that is to be promoted without its master
knows whom it has to ask. It has everything if

* of those that count fewer than n cannot be asked, so that one of the others (or
  it) has whatever was acknowledged, and none of them has more than it has; and
* those that are asked acknowledge nothing any more to the master before it: they
  *promise*, durably, to follow no master of a lower term than the one that is to
  begin (:class:`~gfs.master.metadata.store.Promise`).

*When others are to count*, an operation says so, and until enough of those that
counted have that operation, what is acknowledged is on n of the ones and on n of
the others. Enough are so many that whoever knows only of the ones, and asks all
but n - 1 of them, meets one that has more than it. So a shadow that was away cannot
have been replaced without knowing it; and where there is none but it to agree,
only an operator's word replaces it (ShadowForgotten).

*A new master* counts no more, and nobody has to agree to that: what it acknowledges
is on n of the others, and it has the operation itself. So whoever knows only of those
that counted before either finds this master, which refuses, or, without it, asks so
many that one has what was acknowledged since. If the master before it handed over,
that one counts in its place.

Plain data; this is joint consensus as in Raft, with the master outside of those that
count and the number n of them instead of a majority.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from gfs.master.metadata.store import Counted, State

#: More than these never count.
COUNTED_MAX = 16


def enough(counted: Counted) -> int:
    """So many of them have whatever was acknowledged, and must agree to a change."""
    return min(counted.wanted, len(counted.addresses))


def proposed(counted: Counted, wanted: int, following: Iterable[str]) -> Counted:
    """Who should count, when these follow."""
    if not wanted:
        return Counted()
    found = list(dict.fromkeys([*counted.addresses, *following]))
    return Counted(found[: max(COUNTED_MAX, len(counted.addresses))], wanted)


def acknowledged_up_to(state: State, acked: Mapping[str, int]) -> float:
    """Everything up to here may be acknowledged, when the shadows have so much on disk."""
    before, change = _level(state.counted, acked), state.counted_next
    if change is None or before < change.sequence:
        return before
    return min(before, max(_level(change.to, acked), change.sequence - 1))


def _level(counted: Counted, acked: Mapping[str, int]) -> float:
    if not counted.wanted:
        return math.inf
    found = sorted((acked[each] for each in counted.addresses if each in acked), reverse=True)
    return found[counted.wanted - 1] if len(found) >= counted.wanted else -1


def is_agreed(state: State, acked: Mapping[str, int]) -> bool:
    """Enough of those that count know that others are to."""
    change = state.counted_next
    if change is None:
        return False
    knowing = [acked.get(each, -1) >= change.sequence for each in state.counted.addresses]
    return sum(knowing) >= enough(state.counted)


def in_force(state: State) -> list[Counted]:
    """Who counts; and who is to, if that changes just now."""
    change = state.counted_next
    return [state.counted] if change is None else [state.counted, change.to]


def missing(state: State, asked: Collection[str]) -> list[str] | None:
    """Who else of those that count has to be asked, so that one of the asked has whatever
    was acknowledged. None: that takes more than asking."""
    found: dict[str, None] = {}
    *before, last = in_force(state)
    if not enough(last):
        return None
    for counted in (*before, last):
        silent = [each for each in counted.addresses if each not in asked]
        # Where no shadow had to have anything, nothing was promised.
        if enough(counted) and len(silent) >= enough(counted):
            found.update(dict.fromkeys(silent))
    return list(found)


def missing_witnesses(state: State, asked: Collection[str]) -> list[str]:
    """Who else has to be asked, so that one of the asked was asked by whoever else could
    have been promoted."""
    found: dict[str, None] = {}
    for counted in in_force(state):
        silent = [each for each in counted.addresses if each not in asked]
        if len(counted.addresses) - len(silent) < enough(counted):
            found.update(dict.fromkeys(silent))
    return list(found)
