"""The usage of users: its rows, and how each event changes them. Plain functions.

A file that is in many folders counts as several files, see :func:`weight`: so the rows that a user
has in the master, which are of files and of folders, are bounded by the quota of files. The folders
are shared, and go with their last file; a file's path says all that is needed to count it again.

A *count* is a number of files, by their weights, and their bytes, under one of these names:

=================  ============================================================
``u/USER``         what the user has, in all storage namespaces
``f/USER``         after a boot, until all is counted: what the user had before it, plus
                   files published and minus files deleted since
``p/SPACE``        the storage namespace is being deleted, and the trash has no room for it
``r/USER``         the sum of the user's reservations
``s/SPACE``        all files in the storage namespace, each as one
``o/SPACE/USER``   those of the user (USER empty: files without an owner)
=================  ============================================================

A *reservation* is an upload or a deletion under way. It is *publishing* from just before
the file system is asked until its answer is recorded; so the reservations of a process
that died have changed nothing unless they were publishing. A reservation whose outcome is
not known is *lost*; it ends with the next recount of its storage namespace.

An upload may count on the room of the file that it *replaces*: only one at a time for each
file, and only as long as that file exists. If the file is deleted otherwise, the upload
can never be published; the bytes that it counted on are then reserved until it ends.

Deleted files go to the file system's *trash*, but at any time no more of one user than the
quota: the rest is deleted for good. Rows record how much went there and until when it stays.
So it is with *replaced* files, which the file system keeps for their readers for some minutes: at
any time no more of one user than the quota, besides the trash. The rest is deleted at once.

*Recounts* are exact while files are published and deleted. While one is under way, each
change that is recorded in that storage namespace leaves a *touch* for each file that was
published or deleted. A file that the walk found counts unless a touch says that it was
deleted; one that the walk did not find counts if a touch says that it was published. (Inodes
are never used again, and files here never change.) The recount waits for the reservations
that are publishing when the walk ends, since the walk may have found their files; it cannot
have found the file of a later one, which is added.
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

#: An upload of unknown length reserves ahead: at most this many bytes, and no more than this
#: share of the room that the user has left; and nothing when that is little, so that several
#: uploads do not block one another.
AHEAD_BYTES_MAX = 8 * 1024**2
AHEAD_SHARE = 64
LITTLE_SHARE = 16
#: Uploads of one user at once, so that a user without room cannot keep the store from others.
UPLOADS_MAX = 64
#: Files that leave the trash within this time share a row, so a user has some 64 rows.
TRASH_SECONDS_MIN = 10
TRASH_PARTS = 64
#: The file system takes so long to delete what it has kept for readers.
REPLACED_REST_SECONDS = 10.0
#: Changes of one request that leave touches: others wait for this transaction.
TOUCHES_MAX = 10_000
#: The file that an upload was to replace is not there any more.
GONE = -1
#: A file in fewer folders counts as one, in fewer than twice as many as two, and so on.
FOLDERS_PER_FILE = 8


def weight(folders: int) -> int:
    """As how many files one counts that is in so many folders. It and its folders are at most
    ``FOLDERS_PER_FILE`` rows of the master for each."""
    return 1 + folders // FOLDERS_PER_FILE


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
    #: Whether its final length is not known.
    is_growing: bool = False
    began_ns: int = 0
    #: The inode of the file on whose room it counts; 0: none.
    replaces: int = 0
    #: The bytes of that room.
    credit: int = 0


class State(msgspec.Struct, array_like=True, frozen=True):
    """Whether the counts of a storage namespace are correct."""

    space_id: str
    #: Reasons for a recount since the last one began; 0: none.
    recounts_due: int
    #: Whether a recount is under way.
    is_walked: bool = False
    #: Whether it was not counted since the machine was booted.
    is_uncounted: bool = False


class Trash(msgspec.Struct, array_like=True, frozen=True):
    """How much of a user's is in the trash, or kept for readers, until some time."""

    #: USER/SECONDS, or USER:replaced/SECONDS, on this machine's clock since it was booted.
    id: str
    files: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, user_id: str, files: int, length: int, now: float, seconds: float) -> Trash:
        """Files that were deleted ``now`` and stay in the trash for ``seconds``."""
        part = max(TRASH_SECONDS_MIN, math.ceil(seconds / TRASH_PARTS))
        until = math.ceil((now + seconds) / part) * part if seconds else 0
        return cls(f"{user_id}/{until}", files, length)

    @classmethod
    def replaced(cls, user_id: str, length: int, now: float, seconds: float) -> Trash:
        """A file that is replaced ``now``, and kept for its readers for ``seconds``."""
        account = f"{user_id}:replaced" if user_id else ""
        return cls.of(account, 1, length, now, seconds + REPLACED_REST_SECONDS)


class Touch(msgspec.Struct, array_like=True, frozen=True):
    #: SPACE/RESERVATION/NUMBER.
    id: str
    inode: int
    owner: str
    bytes: int
    came: bool
    weight: int = 1


class MustYield(QuotaReached):
    """There would be room if growing uploads that began later yielded."""


@dataclass(frozen=True)
class Change:
    """A file that was published or deleted."""

    inode: int
    owner: str
    bytes: int
    came: bool
    #: As how many files it counts.
    weight: int = 1
    #: 0: it was there before, and counts as so many more, or fewer, since it was moved.
    files: int = 1

    @classmethod
    def moved(cls, inode: int, owner: str, more: int) -> Change:
        return cls(inode, owner, 0, True, more, 0)


@dataclass
class Tally:
    """The files that a walk through a storage namespace found."""

    files: int = 0
    #: Owner -> files, by their weights, and bytes.
    totals: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: The inodes that were found; eight bytes each.
    inodes: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, inode: int, owner: str, length: int, weight: int = 1) -> None:
        self.inodes.append(inode)
        self._count(1, owner, weight, length)

    def _count(self, sign: int, owner: str, weight: int, length: int) -> None:
        self.files += sign
        before = self.totals.get(owner, (0, 0))
        self.totals[owner] = before[0] + sign * weight, before[1] + sign * length

    def correct(self, touched: Iterable[Touch]) -> None:
        """Apply the files that were published and deleted during the walk."""
        last: dict[int, Touch] = {}
        for touch in touched:
            if touch.inode not in last or not touch.came:
                last[touch.inode] = touch
        met = set(last).intersection(self.inodes) if last else set()
        for inode, touch in last.items():
            if touch.came and inode not in met:
                self._count(1, touch.owner, touch.weight, touch.bytes)
            elif not touch.came and inode in met:
                self._count(-1, touch.owner, touch.weight, touch.bytes)


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


def _count_weights(txn: Txn) -> None:
    """All files counted as one: count them again."""
    for row in list(states.scan(txn)):
        states.put(txn, replace(row, recounts_due=row.recounts_due + 1))


USAGE = Schema("usage", 2, [counts, reservations, states, touches, trash], {1: _count_weights})


def count(txn: Txn, kind: str, *names: str) -> Count:
    name = "/".join((kind, *names))
    return counts.get(txn, name) or Count(name)


def used_by(txn: Txn, user_id: str) -> Count:
    """The usage of the user; until all is counted after a boot, no less than before it."""
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
    _add(txn, files, length, "o", space_id, owner)
    if owner:
        _add(txn, files, length, "u", owner)


# --- uploads and deletions --------------------------------------------------------------


def reserve(txn: Txn, wanted: Reservation, limits: Limits | None = None) -> Reservation:
    """Change the reservation of this id to ``wanted``, within ``limits`` if there are any.

    One that grows gets some bytes ahead, if there is room. Returns the new reservation.
    Raises TooLarge, QuotaReached, MustYield, TooManyRequests, or Conflict (the file that it
    replaces is gone); then it is unchanged.

    Growing uploads could each hold a part of the room that is left, so that none can end. So
    the one that began last yields: it is refused, and the others may try again (MustYield).
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
            f"{UPLOADS_MAX} of your uploads are under way, which is the maximum: "
            "try again when one has ended",
            1,
        )


def _check_alone(txn: Txn, wanted: Reservation) -> None:
    """Raises QuotaReached if another upload counts on the room of the same file."""
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


def _check_last(txn: Txn, wanted: Reservation, message: str) -> None:
    """Raises MustYield if another growing upload of the user began later."""
    for row in reservations.by(txn, "user", wanted.user_id):
        began_later = (row.began_ns, row.id) > (wanted.began_ns, wanted.id)
        if row.is_growing and row.bytes and began_later:
            raise MustYield(message)


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
    *,
    moved: bool = False,
) -> None:
    """Record what the file system has done, and end the reservation.

    ``is_there`` returns whether the storage namespace still exists. It is called in this
    transaction, since a deletion is committed before it calls :func:`drop_space`: a change
    recorded before that is dropped with the rest, a later one is not recorded.

    ``moved``: files were moved, or undeleted, and have the inodes that they had. A recount that
    is under way cannot know whether it has found them, so another one follows; and so it does
    after more than ``TOUCHES_MAX`` changes.
    """
    release(txn, reservation_id)
    if not is_there():
        return
    state = states.get(txn, space_id)
    totals: dict[str, tuple[int, int]] = {}
    noted = list(changes)
    number = size = 0
    for change in noted:
        sign = 1 if change.came else -1
        files, length = totals.get(change.owner, (0, 0))
        totals[change.owner] = files + sign * change.weight, length + sign * change.bytes
        number, size = number + sign * change.files, size + sign * change.bytes
    if number or size:
        _add(txn, number, size, "s", space_id)
    for owner, (files, length) in totals.items():
        _add_files(txn, space_id, owner, files, length)
        if counts.get(txn, f"f/{owner}") is not None:
            _add(txn, files, length, "f", owner)
    if reservations.find(txn, "replacing", space_id) is not None:
        for change in noted:
            if not change.came:
                _uncredit(txn, f"{space_id}/{change.inode}")
    if state is None or not state.is_walked:
        return
    if moved or len(noted) > TOUCHES_MAX:
        states.put(txn, replace(state, recounts_due=state.recounts_due + 1))
        return
    for number, change in enumerate(noted):
        id_ = f"{space_id}/{reservation_id}/{number}"
        touch = Touch(id_, change.inode, change.owner, change.bytes, change.came, change.weight)
        touches.put(txn, touch)


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
    """Add files to the trash of their user, or to what was replaced, if there is room ``now``;
    returns whether there was. Files without an owner always fit."""
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
    """Undo :func:`add_to_trash`: the files were not deleted."""
    if trash.get(txn, deleted.id) is not None:
        _add_trash(txn, deleted, -1)


def take_from_trash(txn: Txn, undeleted: Trash) -> None:
    """Files were undeleted. Without effect if they do not count any more as in the trash."""
    row = trash.get(txn, undeleted.id)
    if row is not None and row.files >= undeleted.files and row.bytes >= undeleted.bytes:
        _add_trash(txn, undeleted, -1)


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
    """Require a recount: a change in the storage namespace could not be recorded."""
    row = states.get(txn, space_id)
    if row is not None:
        states.put(txn, replace(row, recounts_due=row.recounts_due + 1))


def trash_space(
    txn: Txn, space_id: str, limits_of: Callable[[str], Limits], now: float, seconds: float
) -> bool:
    """As :func:`drop_space`. Returns whether the trash of each owner has room for the files for
    ``seconds``; until :func:`forget_purge`, later calls return the same."""
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
    """Forget the answer of :func:`trash_space`: the file system has deleted the files."""
    counts.delete(txn, f"p/{space_id}")


def drop_space(txn: Txn, space_id: str) -> None:
    """Remove the counts of a storage namespace that was deleted with all of its files."""
    _uncredit(txn, space_id)
    for row in list(counts.scan(txn, prefix=f"o/{space_id}/")):
        _add_files(txn, space_id, row.name.split("/", 2)[2], -row.files, -row.bytes)
    counts.delete(txn, f"s/{space_id}")
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
    """The reasons for a recount, when it began."""

    recounts_due: int
    #: Reservations that were lost.
    lost: list[str]


def forget_walks(txn: Txn) -> None:
    """End the recounts of a process that died."""
    for row in list(states.by(txn, "walked", "yes")):
        states.put(txn, replace(row, is_walked=False))
        _forget_touches(txn, row.space_id)


def begin_recount(txn: Txn, space_id: str) -> Begun:
    """Begin a recount: from now on each change leaves a touch."""
    add_space(txn, space_id, is_counted=False)
    state = states.get(txn, space_id)
    assert state is not None
    states.put(txn, replace(state, is_walked=True))
    lost = [row.id for row in reservations.by(txn, "lost", "yes") if row.space_id == space_id]
    return Begun(state.recounts_due, lost)


def publishing(txn: Txn, space_id: str) -> set[str]:
    """The reservations in the storage namespace that live processes are publishing."""
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
    before = count(txn, "s", space_id)
    size = sum(length for _, length in tally.totals.values())
    _add(txn, tally.files - before.files, size - before.bytes, "s", space_id)
    states.put(txn, State(space_id, state.recounts_due - begun.recounts_due))
    if state.is_uncounted:
        _forget_floors(txn)


def _forget_touches(txn: Txn, space_id: str) -> None:
    for touch in list(touches.scan(txn, prefix=f"{space_id}/")):
        touches.delete(txn, touch.id)
