"""What users have in files: the rows, and how each event changes them. Plain functions.

A *count* is a number of files and their bytes, under one of these names:

=================  ============================================================
``u/USER``         what the user has, in all storage namespaces
``f/USER``         after a boot, until all is counted: what he had before it, and what
                   came and went since
``p/SPACE``        it is being deleted, and the trash has no room for it
``r/USER``         what is reserved for him, the sum of his reservations
``s/SPACE``        what is in the storage namespace, of all users
``o/SPACE/USER``   the user's part of it (USER empty: files without an owner)
=================  ============================================================

A *reservation* is an upload or a deletion under way. It is *publishing* from just before
the file system is asked until its answer is entered; so those of a process that died are
harmless unless they were publishing. One whose outcome is not known any more is *lost*; it
ends with the next recount of its storage namespace.

An upload may count on the room of the file that it *replaces*: only one at a time for each
file, and only as long as that file is there. If it goes otherwise, the upload can never be
published, and has what it counted on reserved like any other bytes until it ends.

Deleted files go to the file system's *trash*, but no more of a user's at a time than his
quota: the rest is deleted for good. Rows have how much went there and until when it stays.

*Recounts* are exact while files come and go. While one is under way, each change that is
recorded in that storage namespace leaves a *touch* for each file that came or went. A file
that the walk met counts unless a touch says that it went; one that it did not meet counts if
a touch says that it came. (Inodes are never used again, and files here never change.) The recount
waits for the reservations that are publishing when the walk ends, since the walk may have met
their files; a file of a later one cannot have been met, and is added.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from control.errors import Conflict, QuotaReached, TooManyRequests
from control.quota.limits import Floor, Limits, check_quota
from control.records import Schema, Table, Txn

#: An upload of unknown length reserves ahead: at most so much, and no more than this share
#: of what the user has left; and nothing when that is little, so that several do not keep
#: one another out.
AHEAD_BYTES_MAX = 8 * 1024**2
AHEAD_SHARE = 64
LITTLE_SHARE = 16
#: Uploads of one user at once, so that a user without room cannot keep the store from others.
UPLOADS_MAX = 64
#: Files that leave the trash within this time share a row: a user has some 64 at most.
TRASH_SECONDS_MIN = 3600
TRASH_PARTS = 64
#: The file that an upload was to replace is not there any more.
GONE = -1


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
    #: Its final length is not known.
    is_growing: bool = False
    began_ns: int = 0
    #: The inode of the file that it takes the room of; 0: none.
    replaces: int = 0
    #: The bytes of that room.
    credit: int = 0


class State(msgspec.Struct, array_like=True, frozen=True):
    """Whether the counts of a storage namespace are known to be right."""

    space_id: str
    #: Reasons for a recount since the last one began; 0: none.
    recounts_due: int
    #: A recount is under way.
    is_walked: bool = False
    #: It was not counted since the machine was booted.
    is_uncounted: bool = False


class Trash(msgspec.Struct, array_like=True, frozen=True):
    """How much of a user's is in the trash until that time."""

    #: USER/SECONDS, on this machine's clock since it was booted.
    id: str
    files: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, user_id: str, files: int, length: int, now: float, seconds: float) -> Trash:
        """Deleted ``now``, in a file system that keeps that for so many ``seconds``."""
        part = max(TRASH_SECONDS_MIN, math.ceil(seconds / TRASH_PARTS))
        until = math.ceil((now + seconds) / part) * part if seconds else 0
        return cls(f"{user_id}/{until}", files, length)


class Touch(msgspec.Struct, array_like=True, frozen=True):
    #: SPACE/RESERVATION/NUMBER.
    id: str
    inode: int
    owner: str
    bytes: int
    came: bool


class MustYield(QuotaReached):
    """There would be room without growing uploads that began later, one of which must yield."""


@dataclass(frozen=True)
class Change:
    """A file that came or went."""

    inode: int
    owner: str
    bytes: int
    came: bool


@dataclass
class Tally:
    """The files that a walk through a storage namespace found."""

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
        """Apply the files that came and went during the walk."""
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


def _replacing(row: Reservation) -> list[str]:
    return [row.space_id, f"{row.space_id}/{row.replaces}"] if row.replaces > 0 else []


counts = Table("counts", Count, key=lambda row: row.name)
reservations = Table(
    "reservations",
    Reservation,
    key=lambda row: row.id,
    indexes={
        "publishing": lambda row: [row.space_id] if row.is_publishing else [],
        "lost": lambda row: ["yes"] if row.is_lost else [],
        "user": lambda row: [] if row.is_lost or not row.user_id else [row.user_id],
        "replacing": _replacing,
    },
)
states = Table(
    "states",
    State,
    key=lambda row: row.space_id,
    indexes={
        "doubtful": lambda row: ["yes"] if row.recounts_due else [],
        "walked": lambda row: ["yes"] if row.is_walked else [],
        "uncounted": lambda row: ["yes"] if row.is_uncounted else [],
    },
)
touches = Table("touches", Touch, key=lambda row: row.id)

trash = Table("trash", Trash, key=lambda row: row.id)

USAGE = Schema("usage", 1, [counts, reservations, states, touches, trash])


def count(txn: Txn, kind: str, *names: str) -> Count:
    name = "/".join((kind, *names))
    return counts.get(txn, name) or Count(name)


def used_by(txn: Txn, user_id: str) -> Count:
    """The files of the user; until all are counted after a boot, no fewer than before it."""
    counted, floor = count(txn, "u", user_id), count(txn, "f", user_id)
    return Count(user_id, max(0, counted.files, floor.files), max(0, counted.bytes, floor.bytes))


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
    Raises TooLarge, QuotaReached, MustYield, TooManyRequests, or Conflict (what it replaces has
    gone), and then it is as it was.

    Uploads that grow could each have a part of what is left, so that none can end. So the
    one that began last gives way: it is refused, and the others may try again (MustYield).
    """
    there = reservations.get(txn, wanted.id)
    before = there or Reservation(wanted.id, "", "")
    if before.replaces == GONE:
        raise Conflict("the file was replaced or deleted meanwhile: try again")
    if limits is not None:
        if there is None:
            _check_number(txn, wanted.user_id)
        _check_alone(txn, wanted)
        used, reserved = used_by(txn, wanted.user_id), count(txn, "r", wanted.user_id)
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


def _check_number(txn: Txn, user_id: str) -> None:
    if reservations.count(txn, "user", user_id) >= UPLOADS_MAX:
        raise TooManyRequests(
            f"{UPLOADS_MAX} uploads of yours are under way, and no more can be at once: "
            "try again when one has ended",
            1,
        )


def _check_alone(txn: Txn, wanted: Reservation) -> None:
    """Raises QuotaReached if another counts on the room of the same file."""
    name = f"{wanted.space_id}/{wanted.replaces}"
    if any(row.id != wanted.id for row in reservations.by(txn, "replacing", name)):
        raise QuotaReached(
            "your quota has no room for this beside the file that it replaces, and another "
            "upload replaces that file now: try again when it has ended"
        )


def _uncredit(txn: Txn, names: str) -> None:
    """The files that these uploads were to replace are gone."""
    for row in list(reservations.by(txn, "replacing", names)):
        changed = replace(row, bytes=row.bytes + row.credit, replaces=GONE, credit=0)
        reservations.put(txn, changed)
        _add(txn, 0, row.credit, "r", row.user_id)


def _check_last(txn: Txn, wanted: Reservation, story: str) -> None:
    """Raises MustYield if another of the user's that grows began later."""
    for row in reservations.by(txn, "user", wanted.user_id):
        began_later = (row.began_ns, row.id) > (wanted.began_ns, wanted.id)
        if row.is_growing and row.bytes and began_later:
            raise MustYield(story)


def release(txn: Txn, reservation_id: str) -> None:
    """End a reservation that changed nothing, or whose change is recorded."""
    row = reservations.delete(txn, reservation_id)
    if row is not None:
        _add(txn, -row.files, -row.bytes, "r", row.user_id)


def record(
    txn: Txn,
    reservation_id: str,
    space_id: str,
    changes: Iterable[Change],
    is_there: Callable[[], bool],
) -> None:
    """Record what the file system has done, and end the reservation.

    ``is_there``: whether the storage namespace is not deleted. It is called in this
    transaction, since a deletion is committed before it calls :func:`drop_space`: a change
    recorded before that is dropped with the rest, a later one is not recorded.
    """
    release(txn, reservation_id)
    if not is_there():
        return
    state = states.get(txn, space_id)
    for number, change in enumerate(changes):
        sign = 1 if change.came else -1
        _add_files(txn, space_id, change.owner, sign, sign * change.bytes)
        if counts.get(txn, f"f/{change.owner}") is not None:
            _add(txn, sign, sign * change.bytes, "f", change.owner)
        if not change.came:
            _uncredit(txn, f"{space_id}/{change.inode}")
        if state is not None and state.is_walked:
            id_ = f"{space_id}/{reservation_id}/{number}"
            touches.put(txn, Touch(id_, change.inode, change.owner, change.bytes, change.came))


def mark_lost(txn: Txn, reservation_id: str) -> None:
    """The outcome of the reservation is not known."""
    row = reservations.get(txn, reservation_id)
    if row is not None:
        reservations.put(txn, replace(row, is_lost=True))


def end_process(txn: Txn, process: str) -> None:
    """End the reservations of a process that died: only publishing ones may have had effect."""
    for row in list(reservations.scan(txn, prefix=f"{process}.")):
        if row.is_publishing:
            reservations.put(txn, replace(row, is_lost=True))
        else:
            release(txn, row.id)


# --- the trash -----------------------------------------------------------------------------


def add_to_trash(txn: Txn, deleted: Trash, limits: Limits, now: float) -> bool:
    """Add it if it fits into the trash of its user, beside what is there ``now``; whether it
    did. A file without an owner fits."""
    user_id = deleted.id.partition("/")[0]
    if not user_id:
        return True
    files, length = deleted.files, deleted.bytes
    for row in list(trash.scan(txn, prefix=f"{user_id}/")):
        if int(row.id.partition("/")[2]) <= now:
            trash.delete(txn, row.id)
        else:
            files, length = files + row.files, length + row.bytes
    if files > limits.files or length > limits.bytes:
        return False
    _add_trash(txn, deleted, 1)
    return True


def remove_from_trash(txn: Txn, deleted: Trash) -> None:
    """Undo :func:`add_to_trash`: it was not deleted."""
    if trash.get(txn, deleted.id) is not None:
        _add_trash(txn, deleted, -1)


def _add_trash(txn: Txn, deleted: Trash, sign: int) -> None:
    row = trash.get(txn, deleted.id) or Trash(deleted.id)
    files, length = row.files + sign * deleted.files, row.bytes + sign * deleted.bytes
    trash.put(txn, replace(row, files=files, bytes=length))


# --- storage namespaces -----------------------------------------------------------------


def add_space(txn: Txn, space_id: str, *, is_counted: bool) -> None:
    """Add a storage namespace. ``is_counted``: it is new and has no files."""
    if states.get(txn, space_id) is None:
        recounts_due = 0 if is_counted else 1
        states.put(txn, State(space_id, recounts_due, is_uncounted=not is_counted))


def require_recount(txn: Txn, space_id: str) -> None:
    """A change in the storage namespace could not be recorded."""
    row = states.get(txn, space_id)
    if row is not None:
        states.put(txn, replace(row, recounts_due=row.recounts_due + 1))


def trash_space(
    txn: Txn, space_id: str, limits_of: Callable[[str], Limits], now: float, seconds: float
) -> bool:
    """As :func:`drop_space`. Returns whether the trash of each owner has room for his files for
    ``seconds``; called again it returns the same, until :func:`forget_purge`."""
    purge = Count(f"p/{space_id}", 1)
    if counts.get(txn, purge.name) is None:
        going: list[Trash] = []
        for row in list(counts.scan(txn, prefix=f"o/{space_id}/")):
            owner = row.name.split("/", 2)[2]
            theirs = Trash.of(owner, max(0, row.files), max(0, row.bytes), now, seconds)
            if not add_to_trash(txn, theirs, limits_of(owner), now):
                counts.put(txn, purge)
                break
            going.append(theirs)
        if counts.get(txn, purge.name) is not None:
            for theirs in going:
                remove_from_trash(txn, theirs)
    drop_space(txn, space_id)
    return counts.get(txn, purge.name) is None


def forget_purge(txn: Txn, space_id: str) -> None:
    """The storage namespace is deleted from the file system."""
    counts.delete(txn, f"p/{space_id}")


def drop_space(txn: Txn, space_id: str) -> None:
    """Remove the counts of a storage namespace that was deleted with all of its files."""
    _uncredit(txn, space_id)
    for row in list(counts.scan(txn, prefix=f"o/{space_id}/")):
        _add_files(txn, space_id, row.name.split("/", 2)[2], -row.files, -row.bytes)
    _forget_touches(txn, space_id)
    state = states.delete(txn, space_id)
    if state is not None and state.is_uncounted:
        _forget_floors(txn)


def due(txn: Txn) -> list[str]:
    """Storage namespaces that have to be counted."""
    found = {row.space_id for row in reservations.by(txn, "lost", "yes")}
    return sorted(found | {row.space_id for row in states.by(txn, "doubtful", "yes")})


def add_floors(txn: Txn, floors: Iterable[Floor]) -> None:
    """After a boot: until all is counted, users count as having at least ``floors``."""
    for floor in floors:
        counts.put(txn, Count(f"f/{floor.user_id}", floor.files, floor.bytes))


def is_uncounted(txn: Txn) -> bool:
    """Whether there are storage namespaces that were not counted since the machine was booted."""
    return states.find(txn, "uncounted", "yes") is not None


def _forget_floors(txn: Txn) -> None:
    """Remove the floors once everything is counted."""
    if not is_uncounted(txn):
        for row in list(counts.scan(txn, prefix="f/")):
            counts.delete(txn, row.name)


# --- recounts ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Begun:
    """The reasons for a recount that one answers which begins now."""

    recounts_due: int
    #: Reservations that were lost.
    lost: list[str]


def forget_walks(txn: Txn) -> None:
    """End the recounts of a process that died."""
    for row in list(states.by(txn, "walked", "yes")):
        states.put(txn, replace(row, is_walked=False))
        _forget_touches(txn, row.space_id)


def begin_recount(txn: Txn, space_id: str) -> Begun:
    """From here on each change leaves a touch."""
    add_space(txn, space_id, is_counted=False)
    state = states.get(txn, space_id)
    assert state is not None
    states.put(txn, replace(state, is_walked=True))
    lost = [row.id for row in reservations.by(txn, "lost", "yes") if row.space_id == space_id]
    return Begun(state.recounts_due, lost)


def publishing(txn: Txn, space_id: str) -> set[str]:
    """Reservations there that are publishing, of live processes."""
    return {row.id for row in reservations.by(txn, "publishing", space_id) if not row.is_lost}


def end_recount(
    txn: Txn, space_id: str, begun: Begun, tally: Tally, is_there: Callable[[], bool]
) -> None:
    """Replace the counts by the result of the recount."""
    for id_ in begun.lost:
        release(txn, id_)
    state = states.get(txn, space_id)
    if state is None or not is_there():
        drop_space(txn, space_id)
        return
    noted = list(touches.scan(txn, prefix=f"{space_id}/"))
    tally.correct(noted)
    _forget_touches(txn, space_id)
    replacing = list(reservations.by(txn, "replacing", space_id))
    if replacing:
        there = {*tally.inodes, *(touch.inode for touch in noted if touch.came)}
        for inode in {row.replaces for row in replacing} - there:
            _uncredit(txn, f"{space_id}/{inode}")
    found = dict(tally.totals)
    for row in list(counts.scan(txn, prefix=f"o/{space_id}/")):
        owner = row.name.split("/", 2)[2]
        files, length = found.pop(owner, (0, 0))
        _add_files(txn, space_id, owner, files - row.files, length - row.bytes)
    for owner, (files, length) in found.items():
        _add_files(txn, space_id, owner, files, length)
    states.put(txn, State(space_id, state.recounts_due - begun.recounts_due))
    if state.is_uncounted:
        _forget_floors(txn)


def _forget_touches(txn: Txn, space_id: str) -> None:
    for touch in list(touches.scan(txn, prefix=f"{space_id}/")):
        touches.delete(txn, touch.id)
