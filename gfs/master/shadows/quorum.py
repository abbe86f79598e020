"""The quorum of ``replicas_before_ack``: which shadow masters count, and what follows from that.

Acknowledged operations are on the disks of n of the shadow masters that *count*. The
operation log records which ones count, so that a shadow master that is to be promoted
without its master knows which others to ask. It has everything that was acknowledged if

* fewer than n of those that count do not answer, so that one of the others (or this
  one) has everything that was acknowledged, and none of them has more than this one;
  and
* those that answer acknowledge nothing any more to the previous master: each has
  *promised*, durably, to follow no master of a lower term than the one that is to begin
  (:class:`~gfs.master.metadata.store.Promise`).

*A change of the set* is an operation. Until enough shadows of the old set have that
operation, what is acknowledged is on n shadows of the old set and on n of the new one.
"Enough" is so many that a shadow master which knows only the old set, and asks all but
n - 1 of it, finds one that has more than itself. So one that was away cannot have been
replaced without finding out; and if no other one is left to agree, only the operator
can replace it (ShadowForgotten).

*A promoted shadow master* leaves the set without the agreement of others: what it
acknowledges as the master is on n of the others, and it has the operation itself. A shadow
that knows only the previous set either reaches this master, which refuses, or asks so many
others that one of them has what was acknowledged since. If the previous master handed over,
it takes the promoted shadow's place in the set.

Plain data; this is joint consensus as in Raft, with the master outside of the set and the
number n instead of a majority.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from gfs.master.metadata import Counted, State

#: The most shadow masters that count.
COUNTED_MAX = 16


def enough(counted: Counted) -> int:
    """How many shadow masters of the set certainly include one with everything that was
    acknowledged, and so must agree to a change."""
    return min(counted.wanted, len(counted.addresses))


def proposed(counted: Counted, wanted: int, following: Iterable[str]) -> Counted:
    """The set that should count, if these shadow masters follow."""
    if not wanted:
        return Counted()
    found = list(dict.fromkeys([*counted.addresses, *following]))
    return Counted(found[: max(COUNTED_MAX, len(counted.addresses))], wanted)


def acknowledged_up_to(state: State, acked: Mapping[str, int]) -> float:
    """The sequence up to which operations may be acknowledged, if the shadow masters
    have so much on disk."""
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
    """Whether enough shadows of the present set have the operation that changes it."""
    change = state.counted_next
    if change is None:
        return False
    knowing = [acked.get(each, -1) >= change.sequence for each in state.counted.addresses]
    return sum(knowing) >= enough(state.counted)


def in_force(state: State) -> list[Counted]:
    """The set that counts, and the next one, if it is being changed."""
    change = state.counted_next
    return [state.counted] if change is None else [state.counted, change.to]


def missing(state: State, asked: Collection[str]) -> list[str] | None:
    """The other shadow masters that must answer, so that one of those that do has
    everything that was acknowledged. None: their answers are not enough."""
    found: dict[str, None] = {}
    *before, last = in_force(state)
    if not enough(last):
        return None
    for counted in (*before, last):
        silent = [each for each in counted.addresses if each not in asked]
        # If no shadow master had to have an operation, nothing is guaranteed.
        if enough(counted) and len(silent) >= enough(counted):
            found.update(dict.fromkeys(silent))
    return list(found)


def missing_witnesses(state: State, asked: Collection[str]) -> list[str]:
    """The other shadow masters that must answer, so that one of them was also asked by
    any other one that could have been promoted."""
    found: dict[str, None] = {}
    for counted in in_force(state):
        silent = [each for each in counted.addresses if each not in asked]
        if len(counted.addresses) - len(silent) < enough(counted):
            found.update(dict.fromkeys(silent))
    return list(found)
