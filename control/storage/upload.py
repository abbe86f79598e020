"""A file comes in: from the socket to the chunkservers, never held and never spooled.

All that can be refused is refused before the first byte of the body is asked for,
in this order: the credential, its scope, the file's name, the storage namespace,
what is at the path already. (If only the form knows the name, the last three
wait for the header of its part.) A client that sent ``Expect: 100-continue``
then never sends the body.

The file takes its name at the very end, in one step. Until then, and if anything
goes wrong, whatever had the name before still has it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from control.call import Call
from control.errors import BadRequest, Conflict, NoSuchThing, Unavailable
from control.storage.cluster import Cluster, as_answers
from control.storage.multipart import FormReader
from control.storage.names import check_path, in_folder, last_segment, reduced
from control.storage.permission import OWNER, may_remove, may_remove_any
from control.storage.progress import Transfer, Transfers
from control.storage.rows import Space
from control.storage.spaces import Spaces
from control.storage.types import Done
from gfs.client import Client, Entry, NewFile
from gfs.errors import DirectoryNotEmpty, FileChanged, NotFound

_integer = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class Wish:
    """What is to be stored where, as the request says."""

    space: str
    #: The file's path; None: the form tells its name.
    path: str | None
    folder: str
    overwrite: bool
    transfer_id: str

    def path_of(self, filename: str | None) -> str:
        """The path of a file that the form calls ``filename``. Raises BadRequest."""
        if self.path is not None:
            return self.path
        if filename is None:
            raise BadRequest("the form's part named file has no filename: give one, or ?name=")
        return check_path(in_folder(self.folder, reduced(filename)))


class Uploads:
    """Takes uploads."""

    def __init__(self, cluster: Cluster, spaces: Spaces, transfers: Transfers) -> None:
        self._cluster = cluster
        self._spaces = spaces
        self._transfers = transfers

    async def take(self, call: Call, wish: Wish, *, form: bool) -> Done:
        """Store the request's body, a form or the file itself. Durable when it returns."""
        if wish.path is not None:
            check_path(wish.path)
        size = _file_size(call)
        length = _content_length(call)
        if not form and size is not None and length is not None and size != length:
            raise BadRequest(f"X-File-Size: says {size} bytes, the body has {length}")
        reader = FormReader(call.header("Content-Type") or "") if form else None
        expected = size if size is not None or form else length
        transfer = self._transfers.begin(call, wish.transfer_id, "upload", expected or 0)
        upload = _Upload(call, self._cluster.fs, self._spaces, wish, transfer, size)
        try:
            with transfer:
                if wish.path is None:
                    upload.find_space()
                else:
                    await upload.check(wish.path)
                if reader is None:
                    return await upload.take_raw()
                return await upload.take_form(reader)
        finally:
            await transfer.heard()


class _Upload:
    """One upload on its way."""

    def __init__(
        self,
        call: Call,
        fs: Client,
        spaces: Spaces,
        wish: Wish,
        transfer: Transfer,
        size: int | None,
    ) -> None:
        self._call = call
        self._fs = fs
        self._spaces = spaces
        self._wish = wish
        self._transfer = transfer
        #: Of the file, as the client announced it.
        self._size = size
        self._space: Space | None = None
        self._path = ""
        self._overwrite = False
        #: The inode that must be at the path when it is published; 0: none.
        self._expect: int | None = None

    # --- before the body ----------------------------------------------------------

    def find_space(self) -> Space:
        space = self._spaces.get(self._wish.space)
        self._call.allow(space.target)
        self._space = space
        return space

    async def check(self, path: str) -> None:
        """Whether the file may come to be at ``path``, and on which terms."""
        space = self._space or self.find_space()
        self._path = path
        there = await self._find(f"{space.directory}/{path}")
        if there is not None:
            if not self._wish.overwrite:
                raise Conflict(f"{path} exists already: send overwrite=true to replace it")
            may_remove(self._call, space, there)
        # Where a file belongs to its uploader, exactly the one that was looked at may
        # be replaced. Elsewhere the last of two uploads at once wins, as people expect.
        self._overwrite = self._wish.overwrite and may_remove_any(self._call, space)
        if not self._overwrite:
            self._expect = there.inode if there is not None else 0

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
            # An empty folder is one that a deletion had no time to take away.
            await self._fs.delete(full, expect=there.inode)
        except (DirectoryNotEmpty, FileChanged):
            raise Conflict(f"{self._path} is a folder") from None
        except NotFound:
            pass
        return None

    # --- the body -----------------------------------------------------------------

    async def take_raw(self) -> Done:
        async with self._publishing() as file:
            async for piece in self._call.body():
                await self._write(file, piece)
            self._check_size()
        return self._done()

    async def take_form(self, reader: FormReader) -> Done:
        async with contextlib.AsyncExitStack() as stack:
            file: NewFile | None = None
            async for piece in self._call.body():
                for event in reader.feed(piece):
                    if isinstance(event, bytes):
                        assert file is not None
                        await self._write(file, event)
                    else:
                        if self._wish.path is None:
                            await self.check(self._wish.path_of(event.filename))
                        file = await stack.enter_async_context(self._publishing())
            reader.finish()
            self._check_size()
        return self._done()

    @contextlib.asynccontextmanager
    async def _publishing(self) -> AsyncIterator[NewFile]:
        """The new file; it gets its name when the block ends without an exception."""
        assert self._space is not None
        space = self._space
        file = self._fs.create(
            f"{space.directory}/{self._path}",
            overwrite=self._overwrite,
            parents=space.directory,
            attributes={OWNER: self._call.user.user_id},
            expect=self._expect,
        )
        try:
            with as_answers(self._path):
                async with file:
                    yield file
        except NoSuchThing:
            # Only the directory of the storage namespace has to be there.
            if self._spaces.still_exists(space):
                raise Unavailable("the storage namespace is being made: try again") from None
            raise NoSuchThing(f"there is no storage namespace {space.name}") from None

    async def _write(self, file: NewFile, piece: bytes) -> None:
        self._transfer.moved(len(piece))
        if self._size is not None and self._transfer.bytes > self._size:
            raise BadRequest(f"X-File-Size: says {self._size} bytes, the file has more")
        await file.write(piece)

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
