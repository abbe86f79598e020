"""What users have in files: the rows, and how each event changes them. Plain functions.

A *count* is a number of files and their bytes, under one of these names:

=================  ============================================================
``u/USER``         what the user has, in all storage namespaces
``r/USER``         what is reserved for him, the sum of his reservations
``s/SPACE``        what is in the storage namespace, of whomever
``o/SPACE/USER``   what of it is the user's (nobody's: empty)
=================  ============================================================

A *reservation* is an upload or a deletion under way. It is *publishing* from just before
the file system is asked until its answer is entered; so those of a process that died are
harmless unless they were publishing. One of which nobody can say any more whether it was
carried out is *lost*; it ends with the next recount of its storage namespace.

*Recounts* are exact while files come and go. While one is under way, whatever is entered in
that storage namespace leaves a *touch* for each file that came or went. A file the walk met
counts, unless a touch says that it went; one it did not meet counts if a touch says that it
came. (Inodes are never used again, and files here never change.) What was publishing when the
walk ended is waited for, since the walk may have met its file; what begins later cannot have
been met, and is entered on top.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from control.errors import QuotaReached
from control.quota.limits import Limits, check_quota
from control.records import Schema, Table, Txn

#: An upload of unknown length reserves ahead: at most so much, and no more than this share
#: of what the user has left; and nothing when that is little, so that several do not keep
#: one another out.
AHEAD_BYTES_MAX = 8 * 1024**2
AHEAD_SHARE = 64
LITTLE_SHARE = 16


class Count(msgspec.Struct, array_like=True, frozen=True):
    name: str
    files: int = 0
    bytes: int = 0


class Reservation(msgspec.Struct, array_like=True, frozen=True):
    #: PROCESS.NUMBER.
    id: str
    user_id: str
    space_id: str
    files: int = 0
    bytes: int = 0
    is_publishing: bool = False
    is_lost: bool = False
    #: Nobody knows how much more it will take.
    is_growing: bool = False
    began_ns: int = 0


class State(msgspec.Struct, array_like=True, frozen=True):
    """Of a storage namespace: whether its counts are right, as far as anybody knows."""

    space_id: str
    #: Reasons to count it that no recount has begun after; 0: none.
    doubts: int
    #: A recount is under way.
    is_walked: bool = False


class Touch(msgspec.Struct, array_like=True, frozen=True):
    #: SPACE/RESERVATION/NUMBER.
    id: str
    inode: int
    owner: str
    bytes: int
    came: bool


class Crowded(QuotaReached):
    """There is room but for others that grow, and one of them is to give way."""


@dataclass(frozen=True)
class Change:
    """A file that came or went."""

    inode: int
    owner: str
    bytes: int
    came: bool


@dataclass
class Tally:
    """What a walk through a storage namespace met."""

    #: By owner: files, bytes.
    totals: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: Eight bytes for each file.
    inodes: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, inode: int, owner: str, length: int) -> None:
        self.inodes.append(inode)
        self._count(owner, 1, length)

    def _count(self, owner: str, files: int, length: int) -> None:
        before = self.totals.get(owner, (0, 0))
        self.totals[owner] = before[0] + files, before[1] + length

    def correct(self, touched: Iterable[Touch]) -> None:
        """With what came and went during the walk."""
        last: dict[int, Touch] = {}
        for touch in touched:
            if touch.inode not in last or not touch.came:
                last[touch.inode] = touch
        met = set(last).intersection(self.inodes) if last else set()
        for inode, touch in last.items():
            if touch.came and inode not in met:
                self._count(touch.owner, 1, touch.bytes)
            elif not touch.came and inode in met:
                self._count(touch.owner, -1, -touch.bytes)


counts = Table("counts", Count, key=lambda row: row.name)
reservations = Table(
    "reservations",
    Reservation,
    key=lambda row: row.id,
    indexes={
        "publishing": lambda row: [row.space_id] if row.is_publishing else [],
        "lost": lambda row: ["yes"] if row.is_lost else [],
    },
)
states = Table(
    "states",
    State,
    key=lambda row: row.space_id,
    indexes={
        "doubtful": lambda row: ["yes"] if row.doubts else [],
        "walked": lambda row: ["yes"] if row.is_walked else [],
    },
)
touches = Table("touches", Touch, key=lambda row: row.id)

USAGE = Schema("usage", 1, [counts, reservations, states, touches])


def count(txn: Txn, kind: str, *names: str) -> Count:
    name = "/".join((kind, *names))
    return counts.get(txn, name) or Count(name)


def _add(txn: Txn, files: int, length: int, kind: str, *names: str) -> None:
    before = count(txn, kind, *names)
    after = replace(before, files=before.files + files, bytes=before.bytes + length)
    if after.files or after.bytes:
        counts.put(txn, after)
    else:
        counts.delete(txn, after.name)


def _add_files(txn: Txn, space_id: str, owner: str, files: int, length: int) -> None:
    if not (files or length):
        return
    _add(txn, files, length, "s", space_id)
    _add(txn, files, length, "o", space_id, owner)
    if owner:
        _add(txn, files, length, "u", owner)


# --- uploads and deletions --------------------------------------------------------------


def reserve(txn: Txn, wanted: Reservation, limits: Limits | None = None) -> Reservation:
    """Let the reservation of this id be ``wanted``, within ``limits`` if there are any.

    One that grows gets some bytes more, if there is room. The reservation as it is now.
    Raises TooLarge, QuotaReached or Crowded, and then it is as it was.

    Uploads that grow could each have a part of what is left, so that none can end. So the
    one that began last gives way: it is refused, and the others may try again (Crowded).
    """
    before = reservations.get(txn, wanted.id) or Reservation(wanted.id, "", "")
    if limits is not None:
        used, reserved = count(txn, "u", wanted.user_id), count(txn, "r", wanted.user_id)
        others = reserved.bytes - before.bytes
        try:
            check_quota("bytes", limits.bytes, used.bytes, wanted.bytes, others)
        except QuotaReached as error:
            if wanted.is_growing and used.bytes + wanted.bytes <= limits.bytes:
                _check_last(txn, wanted, str(error))
            raise
        check_quota("files", limits.files, used.files, wanted.files, reserved.files - before.files)
        left = limits.bytes - used.bytes - others - wanted.bytes
        if wanted.is_growing and left > limits.bytes // LITTLE_SHARE:
            more = min(AHEAD_BYTES_MAX, left // AHEAD_SHARE)
            wanted = replace(wanted, bytes=wanted.bytes + more)
    reservations.put(txn, wanted)
    files, length = wanted.files - before.files, wanted.bytes - before.bytes
    _add(txn, files, length, "r", wanted.user_id)
    return wanted


def _check_last(txn: Txn, wanted: Reservation, story: str) -> None:
    """Raises Crowded if another of the user's that grows began later."""
    for row in reservations.scan(txn):
        began_later = (row.began_ns, row.id) > (wanted.began_ns, wanted.id)
        if row.user_id == wanted.user_id and row.is_growing and row.bytes and began_later:
            raise Crowded(story)


def release(txn: Txn, reservation_id: str) -> None:
    """It is over, and changed nothing, or what it changed is entered."""
    row = reservations.delete(txn, reservation_id)
    if row is not None:
        _add(txn, -row.files, -row.bytes, "r", row.user_id)


def settle(
    txn: Txn,
    reservation_id: str,
    space_id: str,
    changes: Iterable[Change],
    is_there: Callable[[], bool],
) -> None:
    """Enter what the file system has done, and end the reservation.

    ``is_there``: whether the storage namespace is not deleted. Asked here, since whoever
    deletes it first says so and then calls :func:`drop_space`: what is entered before that
    is dropped with the rest, what comes later is not entered.
    """
    release(txn, reservation_id)
    if not is_there():
        return
    state = states.get(txn, space_id)
    for number, change in enumerate(changes):
        sign = 1 if change.came else -1
        _add_files(txn, space_id, change.owner, sign, sign * change.bytes)
        if state is not None and state.is_walked:
            id_ = f"{space_id}/{reservation_id}/{number}"
            touches.put(txn, Touch(id_, change.inode, change.owner, change.bytes, change.came))


def lose(txn: Txn, reservation_id: str) -> None:
    """Nobody can say whether it was carried out."""
    row = reservations.get(txn, reservation_id)
    if row is not None:
        reservations.put(txn, replace(row, is_lost=True))


def end_process(txn: Txn, process: str) -> None:
    """What a process that died had under way: only what was publishing may have happened."""
    for row in list(reservations.scan(txn, prefix=f"{process}.")):
        if row.is_publishing:
            reservations.put(txn, replace(row, is_lost=True))
        else:
            release(txn, row.id)


# --- storage namespaces -----------------------------------------------------------------


def know_space(txn: Txn, space_id: str, *, is_counted: bool) -> None:
    """It exists. One that was just made is counted: it has nothing."""
    if states.get(txn, space_id) is None:
        states.put(txn, State(space_id, 0 if is_counted else 1))


def doubt(txn: Txn, space_id: str) -> None:
    """Something was changed there and could not be entered."""
    row = states.get(txn, space_id)
    if row is not None:
        states.put(txn, replace(row, doubts=row.doubts + 1))


def drop_space(txn: Txn, space_id: str) -> None:
    """It was deleted, with all that was in it."""
    for row in list(counts.scan(txn, prefix=f"o/{space_id}/")):
        _add_files(txn, space_id, row.name.split("/", 2)[2], -row.files, -row.bytes)
    _forget_touches(txn, space_id)
    states.delete(txn, space_id)


def doubtful(txn: Txn) -> list[str]:
    """Storage namespaces that have to be counted."""
    found = {row.space_id for row in reservations.by(txn, "lost", "yes")}
    return sorted(found | {row.space_id for row in states.by(txn, "doubtful", "yes")})


# --- recounts ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Begun:
    """What a recount that begins now will have answered when it ends."""

    doubts: int
    #: Reservations that were lost.
    lost: list[str]


def forget_walks(txn: Txn) -> None:
    """Whoever was recounting died."""
    for row in list(states.by(txn, "walked", "yes")):
        states.put(txn, replace(row, is_walked=False))
        _forget_touches(txn, row.space_id)


def begin_recount(txn: Txn, space_id: str) -> Begun:
    """From here on what comes and goes is noted."""
    know_space(txn, space_id, is_counted=False)
    state = states.get(txn, space_id)
    assert state is not None
    states.put(txn, replace(state, is_walked=True))
    lost = [row.id for row in reservations.by(txn, "lost", "yes") if row.space_id == space_id]
    return Begun(state.doubts, lost)


def publishing(txn: Txn, space_id: str) -> set[str]:
    """What is being done there, by processes that live."""
    return {row.id for row in reservations.by(txn, "publishing", space_id) if not row.is_lost}


def end_recount(
    txn: Txn, space_id: str, begun: Begun, tally: Tally, is_there: Callable[[], bool]
) -> None:
    """Take over what was counted."""
    for id_ in begun.lost:
        release(txn, id_)
    state = states.get(txn, space_id)
    if state is None or not is_there():
        drop_space(txn, space_id)
        return
    tally.correct(touches.scan(txn, prefix=f"{space_id}/"))
    _forget_touches(txn, space_id)
    found = dict(tally.totals)
    for row in list(counts.scan(txn, prefix=f"o/{space_id}/")):
        owner = row.name.split("/", 2)[2]
        files, length = found.pop(owner, (0, 0))
        _add_files(txn, space_id, owner, files - row.files, length - row.bytes)
    for owner, (files, length) in found.items():
        _add_files(txn, space_id, owner, files, length)
    states.put(txn, State(space_id, state.doubts - begun.doubts))


def _forget_touches(txn: Txn, space_id: str) -> None:
    for touch in list(touches.scan(txn, prefix=f"{space_id}/")):
        touches.delete(txn, touch.id)
