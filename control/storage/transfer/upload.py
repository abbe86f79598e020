"""Uploads: bytes go from the socket to the chunkservers, without a copy on a disk here.

An upload is checked before the first byte of the body is read, in this order: the
credential, its scope, the file's name, the storage namespace, the file that is at the
path already. (If only the form has the name, the last three are checked when the header
of its part was read.) So if it is refused, a client that sent ``Expect: 100-continue``
never sends the body.

The file is published at the very end, in one step. Until then, and if anything fails, the
file that had the name before keeps it.

What is replaced the file system keeps for its readers for some minutes, as far as the quota of its
owner has room for what was replaced lately (:mod:`control.quota.usage`).

Room for the file is reserved in the uploader's quota before its bytes are sent to the
chunkservers: all at once if the request says how long the file is, else piece by
piece. A file that is replaced stops counting once it is replaced. If the quota has no
room for both at the same time, the upload counts on that: then exactly the file that was
there at the beginning must be there at the end, or the upload fails; and only one upload
at a time may count on the room of a file.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from control.api import (
    BadRequest,
    Call,
    Conflict,
    Control,
    Limits,
    NoSuchThing,
    QuotaReached,
    TooLarge,
    Unavailable,
)
from control.api.internals import Claim, InTheWay, check_quota, count, used_by
from control.storage.accounting import REFUSALS, change_of, weight_at
from control.storage.cluster import Cluster, as_answers
from control.storage.names import check_own_path, in_folder, last_segment, reduced
from control.storage.permission import OWNER, may_remove, may_remove_any, owner_of
from control.storage.rows import Space
from control.storage.shapes import Done
from control.storage.spaces import Spaces
from control.storage.transfer.multipart import FormReader
from control.storage.transfer.progress import Transfers
from control.storage.versions import Versions, applies, keeps
from gfs.blocks import KIB
from gfs.client import Entry, NewFile, readers_seconds
from gfs.errors import DirectoryNotEmpty, FileChanged, NotFound

_integer = re.compile(r"[0-9]{1,18}")
#: How much longer than its file a form can be, to refuse it by its length.
FORM_BYTES = 64 * KIB

Write = Callable[[bytes], Awaitable[None]]
Reserve = Callable[[int, int, Limits], Awaitable[None]]


@dataclass(frozen=True)
class UploadRequest:
    """The destination and conditions of an upload, as the request gives them."""

    space: str
    #: The file's path; None if the form has its name.
    path: str | None
    folder: str
    overwrite: bool
    transfer_id: str
    #: The inode that must be at the path, 0 for none; None: the rules of ``overwrite`` decide.
    expect: int | None = None
    #: More attributes of the file, asked for when all of it has been read.
    describe: Callable[[], Mapping[str, str]] | None = None
    #: A folder above the file that must be there when it is published.
    within: str = ""
    #: Files whose chunks it shares, instead of having bytes of the call's body: see
    #: :meth:`gfs.client.NewFile.join`.
    joined: Sequence[Entry] = ()
    #: What decides whether the path may be one.
    check: Callable[[str], str] = check_own_path

    def path_of(self, filename: str | None) -> str:
        """The path of the file; ``filename`` is from the form. Raises BadRequest."""
        if self.path is not None:
            return self.path
        if filename is None:
            raise BadRequest("the form's part named file has no filename: give one, or ?name=")
        return self.check(in_folder(self.folder, reduced(filename)))


class Upload:
    """One upload."""

    def __init__(
        self,
        call: Call,
        control: Control,
        cluster: Cluster,
        spaces: Spaces,
        request: UploadRequest,
        transfers: Transfers,
        *,
        form: bool,
    ) -> None:
        """``form``: the body is a form with the file; otherwise it is the file. Raises
        BadRequest, Forbidden, Unavailable."""
        if request.path is not None:
            request.check(request.path)
        size, length = _file_size(call), _content_length(call)
        if not form and size is not None and length is not None and size != length:
            raise BadRequest(f"X-File-Size: says {size} bytes, the body has {length}")
        self._call = call
        self._control = control
        self._spaces = spaces
        self._request = request
        self._form = FormReader(call.header("Content-Type") or "") if form else None
        self._form_bytes = length if form else None
        #: How long the file will be; 0 if that is not known.
        self._expected_bytes = (size if size is not None or form else length) or 0
        self._transfer = transfers.begin(call, request.transfer_id, "upload", self._expected_bytes)
        self._cluster = cluster
        self._fs = cluster.fs
        #: The file, when it is stored.
        self.entry: Entry | None = None
        #: The length of the file that the client announced.
        self._size = size
        self._space: Space | None = None
        self._path = ""
        self._overwrite = False
        #: The inode that must be at the path when the file is published; 0: there must be none.
        self._expect: int | None = None
        #: The file that the upload replaces, as it was at the beginning.
        self._there: Entry | None = None
        #: Whether there is room only if that file is replaced.
        self._instead = False
        #: As how many files it counts, with what is kept of the file that it replaces.
        self._weight = 1
        #: How long the file may become with the room that is reserved.
        self._covered = 0

    async def take(self) -> Done:
        """Store the request's body. It is acknowledged when this returns."""
        try:
            with self._transfer:
                if self._request.path is None:
                    self._find_space()
                else:
                    await self._check(self._request.path)
                if self._form is None:
                    return await self._take_raw()
                if self._form_bytes is not None:
                    size = self._form_bytes - FORM_BYTES if self._size is None else self._size
                    self._check_room(size)
                return await self._take_form(self._form)
        finally:
            await self._transfer.wait_for_listeners()

    # --- before the body ----------------------------------------------------------

    def _find_space(self) -> Space:
        space = self._spaces.get(self._request.space)
        self._call.allow(space.target)
        self._space = space
        return space

    async def _check(self, path: str) -> None:
        """Check that the file may be stored at ``path``, and find the file that it replaces."""
        space = self._space or self._find_space()
        self._path = path
        self._weight = weight_at(f"{space.directory}/{path}")
        self._there = there = await self._find(f"{space.directory}/{path}")
        if there is not None:
            if not self._request.overwrite:
                raise Conflict(f"{path} exists already: send overwrite=true to replace it")
            may_remove(self._call, space, there)
        # Where a file belongs to its uploader, exactly the one that was checked may be
        # replaced. Elsewhere the last of two concurrent uploads wins.
        self._overwrite = self._request.overwrite and may_remove_any(self._call, space)
        if not self._overwrite:
            self._expect = there.inode if there is not None else 0
        if self._request.expect is not None:
            if self._request.expect != (there.inode if there is not None else 0):
                raise Conflict(f"{path} was replaced or deleted meanwhile: try again")
            self._expect = self._request.expect

    async def _find(self, full: str) -> Entry | None:
        """The file at the path, if there is one. Raises Conflict for a folder."""
        with as_answers(self._path):
            try:
                there = await self._fs.stat(full)
            except NotFound:
                return None
            if there.kind == "file":
                return there
        try:
            # A deletion had no time to remove this empty folder.
            await self._fs.delete(full, expect=there.inode)
        except (DirectoryNotEmpty, FileChanged):
            raise InTheWay(f"{self._path} is a folder") from None
        except NotFound:
            pass
        return None

    def _check_room(self, length: int) -> None:
        """Refuse a file of this length if there is no room for it. Nothing is reserved yet, since
        the file that it replaces is not known. Raises TooLarge, QuotaReached."""
        user_id = self._call.user.user_id
        with self._control.ledger.read() as txn:
            used, reserved = used_by(txn, user_id).bytes, count(txn, "r", user_id).bytes
        if self._request.overwrite:
            used = reserved = 0
        check_quota("bytes", self._control.limits_of(user_id).bytes, used, length, reserved)

    # --- the body -----------------------------------------------------------------

    async def _take_raw(self) -> Done:
        async with self._publishing() as write:
            if not self._request.joined:
                async for piece in self._call.body():
                    await write(piece)
                    del piece  # it would stay, 256 KiB of it, while a client pauses
        return self._done()

    async def _take_form(self, reader: FormReader) -> Done:
        async with contextlib.AsyncExitStack() as stack:
            write: Write | None = None
            async for piece in self._call.body():
                for event in reader.feed(piece):
                    if isinstance(event, bytes):
                        assert write is not None
                        await write(event)
                    else:
                        if self._request.path is None:
                            await self._check(self._request.path_of(event.filename))
                        write = await stack.enter_async_context(self._publishing())
            reader.finish()
        return self._done()

    @contextlib.asynccontextmanager
    async def _publishing(self) -> AsyncIterator[Write]:
        """Takes the new file's bytes, and publishes it when the block ends without an
        exception."""
        assert self._space is not None
        space, user_id = self._space, self._call.user.user_id
        async with self._control.ledger.claim(user_id, space.id) as claim:
            await self._reserve_first(claim)
            file = self._fs.create(
                f"{space.directory}/{self._path}",
                overwrite=self._overwrite,
                parents=f"{space.directory}/{self._request.within}".rstrip("/"),
                attributes={OWNER: user_id},
                expect=self._expect,
            )
            try:
                with as_answers(self._path):
                    async with file:
                        if self._request.joined:
                            file.join(self._request.joined)
                        yield partial(self._write, claim, file)
                        self._check_size()
                        await self._publish(claim, file)
            except NoSuchThing:
                # The only directory that must exist is that of the storage namespace, or within.
                if self._request.within:
                    raise
                if self._spaces.still_exists(space):
                    raise Unavailable("the storage namespace is being created: try again") from None
                raise NoSuchThing(f"there is no storage namespace {space.name}") from None

    async def _reserve_first(self, claim: Claim) -> None:
        """Reserve room for the whole file, if its length is known. A form is a little longer
        than its file, so if the form does not fit, room is reserved piece by piece."""
        try:
            await self._reserve(claim, claim.reserve, self._expected_bytes or self._form_bytes or 0)
        except (QuotaReached, TooLarge):
            if self._expected_bytes or not self._form_bytes:
                raise
            self._instead = False
            claim.replaces(0, 0)
            await self._reserve(claim, claim.reserve, 0)

    async def _reserve(self, claim: Claim, reserve: Reserve, length: int) -> None:
        """Raises TooLarge, QuotaReached, TooManyRequests, Conflict."""
        limits = self._control.limits_of(self._call.user.user_id)
        there, space = self._there, self._space
        assert space is not None
        is_own = there is not None and owner_of(there) == self._call.user.user_id
        if there is not None and keeps(space, self._path, there):
            is_own = False  # it stays, with its room
        if not self._instead:
            try:
                await reserve(self._weight, length, limits)
            except (QuotaReached, TooLarge):
                # Too many files are no reason, since one is replaced; a file that is longer than
                # the quota never fits.
                if not is_own or length > limits.bytes:
                    raise
                self._instead = True
        if self._instead and there is not None:
            claim.replaces(there.inode, there.length)
            await reserve(0, max(0, length - there.length), limits)
        self._covered = claim.bytes + (there.length if self._instead and there is not None else 0)

    async def _write(self, claim: Claim, file: NewFile, piece: bytes) -> None:
        self._transfer.moved(len(piece))
        if self._size is not None and self._transfer.bytes > self._size:
            raise BadRequest(f"X-File-Size: says {self._size} bytes, the file has more")
        if self._transfer.bytes > self._covered:
            await self._reserve(claim, claim.grow, self._transfer.bytes)
        await file.write(piece)

    async def _publish(self, claim: Claim, file: NewFile) -> None:
        """What refuses it before the file system is asked has changed nothing, so no recount may
        follow: until then the claim is not publishing, or is refused here."""
        assert self._space is not None
        space = self._space
        described = self._request.describe() if self._request.describe is not None else {}
        with contextlib.suppress(NoSuchThing):  # its versions may be on by now
            space = self._spaces.again(space)
        if not applies(space, self._path):
            await self._reserve_replacing(claim, file, self._there)
            await self._close(claim, file, described)
            return
        self._space = space
        versions = Versions(self._control, self._cluster, self._spaces)
        async with versions.turn(space, self._path) as turn:
            if self._expect not in (None, turn.inode):
                raise FileChanged(self._path)
            if self._instead and turn.is_kept:
                self._instead = False  # it has no room but its own
                claim.replaces(0, 0)
            file.expect(turn.inode)
            self._weight += turn.more
            # Before the copy counts, too. A version shares its chunks with what it was.
            await self._reserve_replacing(claim, file, None if turn.is_kept else turn.current)
            try:
                await turn.keep()
            except BaseException:
                claim.refused()
                raise
            attributes = {**described, **turn.attributes}
            await self._close(claim, file, attributes, turn.modified_ns)

    async def _reserve_replacing(self, claim: Claim, file: NewFile, there: Entry | None) -> None:
        """Reserve, right before the file is published in place of ``there``, which is kept for its
        readers if its owner has room for that. Raises as :meth:`_reserve`."""
        if there is not None:
            owner, seconds = owner_of(there), readers_seconds(there.chunks)
            claim.will_replace(owner, there.length, self._control.limits_of(owner), seconds)
        await self._reserve(claim, claim.publish, file.length)
        file.keep_for_readers(there.inode if there is not None and claim.keeps_replaced else 0)

    async def _close(
        self, claim: Claim, file: NewFile, attributes: Mapping[str, str], modified_ns: int = 0
    ) -> None:
        """Publish it with these attributes besides. Shielded: if the client leaves now, the outcome
        must still be recorded."""
        assert self._space is not None
        space = self._space
        if attributes or modified_ns:
            file.describe({OWNER: self._call.user.user_id, **attributes}, modified_ns)
        if self._instead and self._there is not None:
            file.expect(self._there.inode)
        with trio.CancelScope(shield=True):
            try:
                await file.close()
            except REFUSALS:
                claim.refused()
                raise
            assert file.entry is not None
            self.entry = file.entry
            changes = [change_of(file.entry, came=True)]
            if file.replaced is not None:
                changes.append(change_of(file.replaced, came=False))
            await claim.record(changes, partial(self._spaces.still_exists, space))

    def _check_size(self) -> None:
        moved = self._transfer.bytes
        if self._size is not None and moved != self._size:
            raise BadRequest(f"X-File-Size: says {self._size} bytes, the file has {moved}")

    def _done(self) -> Done:
        return Done(last_segment(self._path))


def _file_size(call: Call) -> int | None:
    """X-File-Size. Raises BadRequest."""
    text = call.header("X-File-Size")
    if text is None:
        return None
    if not _integer.fullmatch(text):
        raise BadRequest("X-File-Size: the size of the file in bytes, a whole number")
    return int(text)


def _content_length(call: Call) -> int | None:
    text = call.header("Content-Length")
    return int(text) if text is not None and _integer.fullmatch(text) else None
