"""What everybody did and saw in one run, and what of it cannot be.

The clients of a run tell it of each call before it begins and after it ends. It
keeps the namespace's history for :mod:`.linear`, a model of each file for what is
read, and says :class:`Violation` at once when something is seen that no history
allows.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from random import Random

import trio
from xxhash import xxh3_64_digest, xxh3_128_digest

from gfs.blocks import BLOCK_BYTES
from gfs.client import Entry
from gfs.client import Record as AppendedRecord
from gfs.protocol.records import FRAME_HEAD_BYTES
from gfs.testing.trace import Trace

from .ancestry import Ancestry
from .files_model import FileModel, Write
from .linear import Event
from .log_model import Append, LogModel
from .names_model import (
    DIRECTORY,
    OK,
    UNKNOWN,
    Call,
    Delete,
    Path,
    Publish,
    Rename,
    Sight,
    Snapshot,
)

#: So much later all know that a disk is not full any more, and none of its others is.
FULL_SECONDS = 60.0
#: A holder that is none any more serves reads for so long at most, and clients remember them.
LIE_SECONDS = 40.0
#: The attribute that says which call made a file.
MADE_BY = "made-by"
#: An attribute that is set later, and again.
NOTE = "note"
#: The attribute of files that records are appended to.
LOG = "log"


class Violation(AssertionError):
    """A promise is broken."""


def digest_of(data: bytes) -> bytes:
    """As docs/formats.md tells it. Chunks are whole numbers of blocks."""
    blocks = range(0, len(data), BLOCK_BYTES)
    return xxh3_128_digest(b"".join(xxh3_64_digest(data[at : at + BLOCK_BYTES]) for at in blocks))


@dataclass
class Goal:
    """A change of a file's goal: of file ``of``, or of whichever was there."""

    value: int
    began: float
    ended: float = math.inf
    of: int | None = None


class Record:
    def __init__(self, trace: Trace, ancestry: Ancestry | None = None) -> None:
        self.ancestry = ancestry or Ancestry()
        self.history: list[Event] = []
        self.files: dict[int, FileModel] = {}
        self.appends: dict[bytes, Append] = {}
        #: Acknowledged, and to which file only its inode tells so far.
        self.unplaced: dict[int, list[Append]] = {}
        self.by_inode: dict[int, int] = {}
        #: Files that a snapshot made, by inode; their number is that of what they
        #: are a copy of, negative.
        self.copies: dict[int, FileModel] = {}
        #: Calls for a snapshot so far.
        self.snapshots = 0
        #: Files without the attribute, whose inode nobody was told yet.
        self.nameless: dict[int, None] = {}
        #: The values that :data:`NOTE` was given.
        self.notes: set[str] = set()
        self.calls: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.story: list[str] = []
        #: Set when the next call begins, and when the next write in place does.
        self.begun, self.written = trio.Event(), trio.Event()
        self.goals: list[Goal] = []
        #: Inodes that are in the trash for sure, and since when at least.
        self.trashed: dict[int, float] = {}
        #: Inodes that somebody began to take out of the trash, and how often.
        self.undeletions: Counter[int] = Counter()
        self._trace = trace
        self._last = 0
        #: Called before a read is called wrong: files may have been harmed since.
        self.look_for_losses: Callable[[], None] = lambda: None
        #: Called when a possibly stale replica of a chunk was elected.
        self.elected: Callable[[int], None] = lambda _: None
        #: Called when bytes of a file are acknowledged: they are on all its replicas.
        self.look_everywhere: Callable[..., None] = lambda *_, **__: None
        #: While in it, disks that are not mounted can be looked into.
        self.all_shown: Callable[[], AbstractContextManager[None]] = nullcontext
        #: Faults that are under way, and when the last one ended.
        self.strikes = 0
        self.struck = -math.inf
        #: When the engine may have had two holders, and what came of that lasted.
        self._lies: list[tuple[float, float]] = []
        #: Servers with a full disk, and until when they may count as full; the most at once.
        self.full: dict[str, float] = {}
        self.full_most = 0
        #: Servers that somebody began to empty.
        self.drained: set[str] = set()
        #: (Address, directory) of disks that somebody began to empty.
        self.draining: set[tuple[str, str]] = set()
        #: The inodes that records were appended to.
        self.took: dict[bytes, int] = {}
        #: What the last write in place that began is to: (file, offset, length).
        self.writing: tuple[FileModel, int, int] | None = None

    @property
    def now(self) -> float:
        return trio.current_time()

    def tell(self, text: str) -> None:
        """Into the trace, and into the story that people read."""
        self._trace.add(text)
        self.story.append(f"{self.now:12.6f} {text}")

    def next_number(self) -> int:
        self._last += 1
        return self._last

    def begin(self, who: str, call: Call, began: float | None = None) -> Event:
        """``began``: if that was earlier."""
        event = Event(who, call, self.now if began is None else began)
        self.history.append(event)
        if isinstance(call, Snapshot):
            self.snapshots += 1
            self.ancestry.look()
        self.tell(f"{who}: {call}")
        self.begun.set()
        self.begun = trio.Event()
        return event

    def end(self, event: Event, outcome: str, seen: object = None) -> None:
        is_change = outcome == OK and not event.call.pure
        if is_change or self._since(event.began) == event.began:
            event.ended, event.outcome, event.seen = self.now, outcome, seen
        if isinstance(event.call, Snapshot):
            self.ancestry.look()
        self.tell(f"{event.who}: {event.call.number} {outcome}")

    def may_be_gone(self, since: float) -> bool:
        """Whether a file that was open at ``since``, or that was found then, may be gone
        or replaced by now."""
        return any(
            event.ended >= since
            and event.outcome in (OK, UNKNOWN)
            and isinstance(event.call, (Delete, Publish, Rename))
            for event in self.history
        )

    def take_back(self, event: Event) -> None:
        """It did nothing, for a reason that the namespace does not know of."""
        self.history.remove(event)
        self.tell(f"{event.who}: {event.call.number} did nothing")

    def begin_strike(self) -> None:
        self.strikes += 1

    def end_strike(self) -> None:
        self.strikes -= 1
        self.struck = self.now

    def begin_lie(self) -> None:
        """The engine may have two holders from now on."""
        self._lies.append((self.now, math.inf))

    def end_lie(self) -> None:
        if self._lies and self._lies[-1][1] == math.inf:
            self._lies[-1] = (self._lies[-1][0], self.now + LIE_SECONDS)

    def _since(self, since: float) -> float:
        """When what is read now may be from, by one who asked at ``since``: with two holders,
        one may have been asked that is not the master any more."""
        return -math.inf if any(ended >= since for _, ended in self._lies) else since

    def begin_full(self, server: str) -> None:
        self.full[server] = math.inf
        self.full_most = max(self.full_most, sum(each >= self.now for each in self.full.values()))

    def end_full(self, server: str) -> None:
        self.full[server] = self.now + FULL_SECONDS

    def is_calm(self, seconds: float, since: float | None) -> bool:
        """Whether nothing is wrong, nor was at any time from so many ``seconds`` before
        ``since`` on; None: ever."""
        quiet_from = -math.inf if since is None else since - seconds
        return not self.strikes and (self.struck == -math.inf or self.struck < quiet_from)

    def begin_goal(self, value: int) -> Goal:
        goal = Goal(value, self.now)
        self.goals.append(goal)
        return goal

    def end_goal(self, goal: Goal, path: Path, seen: frozenset[int]) -> None:
        """It is done. If ``path`` was all the time the file ``seen``, it is that one's."""
        goal.ended = self.now
        meanwhile = [
            event
            for event in self.history
            if event.ended >= goal.began and event.call.touches(path)
        ]
        if len(seen) == 1 and not meanwhile:
            (goal.of,) = seen

    def all_goals_of(self, model: FileModel) -> set[int]:
        """All that the file's goal may ever have been."""
        of = abs(model.number)
        known = {self.files[of].goal}
        return known | {goal.value for goal in self.goals if goal.of in (None, of)}

    def goals_of(self, model: FileModel) -> set[int]:
        """What the file's goal may be now."""
        first = Goal(model.goal, -math.inf, -math.inf, model.number)
        known = [first, *(goal for goal in self.goals if goal.of in (None, model.number))]
        certain = [goal for goal in known if goal.of is not None]
        return {
            goal.value for goal in known if not any(goal.ended < other.began for other in certain)
        }

    def new_note(self) -> str:
        """An attribute that may be set from now on."""
        note = str(self.next_number())
        self.notes.add(note)
        return note

    def new_file(
        self, number: int, data: bytes, attributes: dict[str, str], goal: int = 0
    ) -> FileModel:
        """A file that may come to be from now on; with a goal of 0 as the cluster's."""
        model = self.files[number] = FileModel(number, data, self.now, goal=goal)
        if LOG in attributes:
            model.log = LogModel(self.appends)
        if MADE_BY not in attributes:
            self.nameless[number] = None
        return model

    def named(self, number: int, inode: int) -> None:
        """The call that made a file was told which one it is."""
        known = self.by_inode.setdefault(inode, number)
        if known != number:
            raise Violation(f"inode {inode} of call {number} was given to call {known} before")
        model = self.files[number]
        model.inode = inode
        self.nameless.pop(number, None)
        self._take_in(model)

    def sight(self, entry: Entry, since: float) -> Sight:
        """Which node an entry shows, all that it says checked."""
        note = entry.attributes.get(NOTE)
        if note is not None and note not in self.notes:
            raise Violation(f"{entry}: nobody noted {note}")
        if entry.kind == "directory":
            return DIRECTORY
        numbers = self._makers(entry)
        if not numbers:
            raise Violation(f"{entry}: nobody made this file")
        if len(numbers) == 1:
            (number,) = numbers
            if number > 0:
                self.named(number, entry.inode)
                self._check_entry(self.files[number], entry, since)
            else:
                self._check_entry(self._copy(number, entry.inode), entry, since)
        return frozenset(numbers)

    def _makers(self, entry: Entry) -> list[int]:
        known = self.of_inode(entry.inode)
        if known is not None:
            return [known.number]
        if self.snapshots:
            self.ancestry.look()
        root = self.ancestry.root(entry.inode)
        sign = 1 if root == entry.inode else -1
        if root in self.by_inode:
            return [sign * self.by_inode[root]]
        made_by = entry.attributes.get(MADE_BY)
        if made_by is not None:
            self.named(int(made_by), root)
            return [sign * int(made_by)]
        return [sign * number for number in self.nameless if self._may_show(number, entry)]

    def _may_show(self, number: int, entry: Entry) -> bool:
        model = self.files[number]
        return (
            model.began <= self.now
            and len(model.data) <= entry.length
            and (not entry.digest or entry.digest == digest_of(model.data))
        )

    def _copy(self, number: int, inode: int) -> FileModel:
        """The model of a copy of file ``-number``. What was acknowledged when it had not
        been made yet is in it; what began when it had been, in its source or in another
        copy, is not; and what was under way may be."""
        copy = self.copies.get(inode)
        if copy is not None:
            return copy
        origin = self.ancestry.origins[inode]
        is_copy = origin.source in self.ancestry.origins
        of = self._copy(number, origin.source) if is_copy else self.files[-number]
        copy = self.copies[inode] = FileModel(number, of.data, of.began, inode)
        copy.shaken = of.shaken
        for write in of.writes:
            if write.acknowledged <= origin.after:
                copy.writes.append(replace(write))
            elif write.began <= origin.before:
                copy.writes.append(replace(write, acknowledged=math.inf))
        if of.log is not None:
            known = [each for each in of.log.acknowledged if each.acknowledged <= origin.after]
            self._reopen(of)
            copy.log = LogModel(self.appends, known, min(of.log.until, origin.before))
        self._take_in(copy)
        return copy

    def _take_in(self, model: FileModel) -> None:
        """What was appended to it when nobody knew which file it is."""
        for append in self.unplaced.pop(model.inode, ()):
            self._place(append, model)

    def _place(self, append: Append, model: FileModel) -> None:
        if model.log is None:
            raise Violation(f"file {model.number} (inode {model.inode}) is no log: {append}")
        model.log.acknowledged.append(append)

    def of_inode(self, inode: int | None) -> FileModel | None:
        if inode in self.copies:
            return self.copies[inode]
        number = None if inode is None else self.by_inode.get(inode)
        return None if number is None else self.files[number]

    def _check_entry(self, model: FileModel, entry: Entry, since: float) -> None:
        since = self._since(since)
        least, most = model.length_min(since), model.length_max(self.now)
        if not least <= entry.length <= most:
            raise Violation(f"{entry}: its length must be {least} to {most}")
        if entry.digest:
            if entry.digest != digest_of(model.data):
                raise Violation(f"{entry}: its digest is not that of what was published")
            appended = model.log.acknowledged if model.log is not None else []
            if any(w.acknowledged <= since for w in [*model.writes, *appended]):
                raise Violation(f"{entry}: it was written to, and has its digest still")

    def model(self, entry: Entry) -> FileModel | None:
        """The file an entry shows, if that is sure."""
        numbers = self._makers(entry)
        if len(numbers) != 1:
            return None
        number = numbers[0]
        return self.files[number] if number > 0 else self._copy(number, entry.inode)

    def candidates(self, data: bytes, since: float) -> frozenset[int]:
        """Files that ``data`` may be all of, for one who asked for it at ``since``."""
        since = self._since(since)
        models = [*self.files.values(), *self._all_copies()]
        return frozenset(model.number for model in models if self._may_be(model, data, since))

    def _may_be(self, model: FileModel, data: bytes, since: float) -> bool:
        self._reopen(model)
        return model.length_min(since) <= len(data) <= model.length_max(
            self.now
        ) and not model.objection(0, data, since, self.now)

    def _all_copies(self) -> list[FileModel]:
        """Seen or not."""
        if self.snapshots:
            self.ancestry.look()
        found = []
        for inode in self.ancestry.origins:
            if inode in self.copies:
                found.append(self.copies[inode])
                continue
            root = self.by_inode.get(self.ancestry.root(inode))
            if root is not None:
                found.append(self._copy(-root, inode))
                continue
            # Of a file that nobody has seen, as nobody has this copy: so neither was written to.
            for number, of in self.files.items():
                if not of.inode:
                    log = of.log and LogModel(self.appends)
                    found.append(FileModel(-number, of.data, of.began, inode, log=log))
        return found

    def _reopen(self, model: FileModel) -> None:
        """A copy that was written to may have records of later."""
        if model.log is not None and model.inode in self.ancestry.written:
            model.log.until = math.inf

    def _look_again(self, model: FileModel) -> None:
        """Before a read is called wrong."""
        self.look_for_losses()
        self.ancestry.look()
        self._reopen(model)

    def check_read(
        self, model: FileModel, start: int, data: bytes, since: float, part: bool = False
    ) -> None:
        since = self._since(since)
        problem = model.objection(start, data, since, self.now, part)
        if problem:
            self._look_again(model)
            problem = model.objection(start, data, since, self.now, part)
        if problem:
            raise Violation(f"read of {len(data)} bytes at {start}: {problem}")

    def begin_append(self, data: bytes, who: str) -> Append:
        """``data`` is like no other record's."""
        self.tell(f"{who}: append +{len(data)}")
        append = self.appends[data] = Append(data, who, self.now)
        return append

    def end_append(self, append: Append, offset: int, inode: int) -> None:
        append.offset, append.acknowledged = offset, self.now
        model = self.of_inode(inode)
        if model is None:
            # Nobody was told yet which file that is.
            self.tell(f"{append.who}: appended to inode {inode} at {offset}")
            self.unplaced.setdefault(inode, []).append(append)
            return
        self.tell(f"{append.who}: appended to file {model.number} at {offset}")
        self._place(append, model)
        start = offset + FRAME_HEAD_BYTES
        self.look_everywhere(model, start, start + len(append.data), append.began)

    def check_records(
        self,
        model: FileModel,
        found: list[AppendedRecord],
        since: float,
        start: int,
        end: int = sys.maxsize,
        once: bool = False,
    ) -> None:
        """``once``: without those that are there twice."""
        since = self._since(since)
        problem = model.log.objection_to(found, since, model.shaken, start, end, once)
        if problem:
            self._look_again(model)
            problem = model.log.objection_to(found, since, model.shaken, start, end, once)
        if problem:
            raise Violation(f"records of file {model.number} from {start}: {problem}")

    def begin_write(self, model: FileModel, start: int, data: bytes, who: str) -> Write:
        self.tell(f"{who}: write file {model.number} at {start} +{len(data)}")
        self.writing = (model, start, len(data))
        self.written.set()
        self.written = trio.Event()
        return model.write(start, data, self.now, who)

    def published(self, number: int, inode: int, among_others: bool = False) -> None:
        """A new file is acknowledged; ``among_others`` perhaps a while ago, and then only now
        to whoever asked."""
        self.named(number, inode)
        model = self.files[number]
        began = -math.inf if among_others else model.began
        self.look_everywhere(model, 0, len(model.data), began, is_new=True)

    def acknowledge(self, model: FileModel, write: Write) -> None:
        write.acknowledged = self.now
        if write.data:
            self.look_everywhere(model, write.start, write.end, write.began)


def content(chance: Random, length: int) -> bytes:
    return chance.randbytes(length)
