"""What the kernel's requests ask of the master: called as pyfuse3 calls them, without a mount."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
import trio.testing
from needs import need_modules

from gfs.blocks import Buffer
from gfs.client import Entry, ExistingFile
from gfs.errors import (
    AlreadyExists,
    ChunkUnavailable,
    FileChanged,
    GfsError,
    MasterUnavailable,
    NotEnoughChunkservers,
    NotFound,
)

if TYPE_CHECKING:
    from gfs.mount.contents import Contents
    from gfs.mount.operations import Operations

MIB = 1 << 20


class Names:
    """What the client is asked of names."""

    def __init__(self) -> None:
        self.entries = {"/": directory("/", 1), "/d": directory("/d", 2)}
        self.asked: list[str] = []
        self.files: dict[int, ExistingFile] = {}
        self.inode = 100
        self.refused: Exception | None = None
        self.is_full = False

    async def stat(self, path: str) -> Entry:
        self.asked.append(path)
        await trio.sleep(0.1)
        if path not in self.entries:
            raise NotFound(path)
        return self.entries[path]

    async def set_attributes(
        self, path: str, attributes: dict[str, str], *, modified_ns: int, **_: object
    ) -> Entry:
        await trio.sleep(0.1)
        if self.refused is not None:
            raise self.refused
        return self._described(path, attributes, modified_ns)

    def _described(self, path: str, attributes: dict[str, str], modified_ns: int) -> Entry:
        entry = self.entries[path]
        modified_ns = modified_ns or entry.modified_ns
        made = msgspec.structs.replace(entry, attributes=attributes, modified_ns=modified_ns)
        self.entries[path] = made
        return made

    async def delete(self, path: str, *, expect: int = 0, now: bool = False) -> None:
        self.asked.append(f"delete {path} {expect}")
        await trio.sleep(0.1)
        if not now and self.entries[path].inode != expect:
            raise FileChanged(path)
        del self.entries[path]

    async def rename(self, source: str, target: str) -> None:
        await trio.sleep(0.1)
        self.entries[target] = msgspec.structs.replace(self.entries.pop(source), path=target)

    async def put(
        self,
        data: bytes,
        path: str,
        *,
        expect: int,
        attributes: dict[str, str],
        modified_ns: int,
        **_: object,
    ) -> Entry:
        await trio.sleep(0.1)
        if not expect and path in self.entries:
            raise AlreadyExists(path)
        if data and self.refused is not None:
            raise self.refused
        self.inode += 1
        self.entries[path] = file(path, self.inode)
        return self._described(path, attributes, modified_ns)

    async def open(self, path: str, mode: str) -> ExistingFile:
        return self.files[(await self.stat(path)).inode]

    async def status(self) -> object:
        free = 0 if self.is_full else 1
        disk = SimpleNamespace(state="full" if self.is_full else "ok", free_bytes=free)
        server = SimpleNamespace(state="live", drain="", disks=[disk])
        return SimpleNamespace(servers=[server], replication=3)


class Stored(ExistingFile):
    """What the client makes of a file that is opened."""

    def __init__(self, entry: Entry, refused: Exception | None = None) -> None:
        self._opened = entry
        self.data = bytearray(entry.length)
        self.refused = refused

    @property
    def entry(self) -> Entry:
        return self._opened

    @property
    def length(self) -> int:
        return len(self.data)

    async def pread(self, offset: int, count: int) -> bytes:
        await trio.sleep(0.1)
        return bytes(self.data[offset : offset + count])

    async def pwrite(self, offset: int, data: Buffer) -> int:
        await trio.sleep(1)
        if self.refused is not None:
            raise self.refused
        self.data[offset : offset + len(data)] = data
        return len(data)

    def blocks(self, offset: int) -> Any:
        return Blocks(self, offset)


class Blocks:
    """Of such a file, forwards."""

    def __init__(self, file: Stored, position: int) -> None:
        self._file = file
        self.position = position
        self.end = file.length

    async def read_into(self, target: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        target[:] = self._file.data[self.position : self.position + len(target)]
        self.position += len(target)
        return len(target)

    def close(self) -> None: ...


CALLER: Any = SimpleNamespace(uid=0, gid=0, umask=0)
HANDLE = 99


@asynccontextmanager
async def operating(names: Names) -> AsyncGenerator[Operations, None]:
    from gfs.mount.operations import Operations

    async with trio.open_nursery() as nursery:
        yield Operations(names, "/", names.entries["/"], nursery)  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()


async def opened(
    operations: Operations, names: Names, name: str, file_: Stored, handle: int = HANDLE
) -> Contents:
    names.entries[f"/{name}"] = file_.entry
    names.files[file_.entry.inode] = file_
    number = (await operations.lookup(1, name.encode(), CALLER)).st_ino
    node = operations.nodes[number]
    made = operations.open_files.add(node, file_)
    made.handles = 1
    operations._handles[handle] = (node, made)
    return made


def directory(path: str, inode: int) -> Entry:
    return Entry(path, inode, "directory", 0, 0, created_ns=1, modified_ns=1)


def file(path: str, inode: int, length: int = 0) -> Entry:
    return Entry(path, inode, "file", length, 3, created_ns=1, modified_ns=1)


@pytest.fixture
def names() -> Names:
    need_modules("pyfuse3", install="make install-mount")
    return Names()


async def test_what_a_directory_is_is_asked_once_a_second(
    names: Names, autojump_clock: trio.testing.MockClock
) -> None:
    """After each change in it the kernel asks; no second is added to the one that it waits."""
    from gfs.mount.operations import CACHE_SECONDS

    async with operating(names) as operations:
        found = await operations.lookup(1, b"d", CALLER)
        assert names.asked == ["/d"]
        for _ in range(3):
            await trio.sleep(0.25)
            age = trio.current_time() % 1
            shown = await operations.getattr(found.st_ino, CALLER)
            assert shown.attr_timeout == pytest.approx(CACHE_SECONDS - age)
        assert names.asked == ["/d"]
        await trio.sleep(0.25)
        shown = await operations.getattr(found.st_ino, CALLER)
        assert shown.attr_timeout == CACHE_SECONDS
        assert names.asked == ["/d", "/d"]


@pytest.mark.parametrize("changed", [None, "kind", "file"])
@pytest.mark.parametrize("make", [file, directory])
async def test_what_was_looked_up_is_deleted_without_another_look(
    names: Names, make: Callable[[str, int], Entry], changed: str | None
) -> None:
    """Unless another machine has something else there by now: it is looked at, and deleted if it
    is of the same kind."""
    import pyfuse3

    other = directory if make is file else file
    names.entries["/f"] = make("/f", 3)
    async with operating(names) as operations:
        delete = operations.unlink if make is file else operations.rmdir
        await operations.lookup(1, b"f", CALLER)
        names.asked.clear()
        if changed is not None:
            names.entries["/f"] = (other if changed == "kind" else make)("/f", 4)
        if changed == "kind":
            with pytest.raises(pyfuse3.FUSEError) as refused:
                await delete(1, b"f", CALLER)
            assert refused.value.errno == (errno.EISDIR if make is file else errno.ENOTDIR)
            assert "/f" in names.entries
            return
        await delete(1, b"f", CALLER)
        again = [] if changed is None else ["/f", "delete /f 4"]
        assert names.asked == ["delete /f 3", *again]
        assert "/f" not in names.entries


OF_THE_MODE: Any = SimpleNamespace(
    update_size=False, update_mode=True, update_uid=False, update_gid=False,
    update_atime=False, update_mtime=False,
)  # fmt: skip


@pytest.mark.parametrize("is_written", [False, True])
async def test_attributes_that_are_changed_while_others_are_stored_are_stored_too(
    names: Names, autojump_clock: trio.testing.MockClock, is_written: bool
) -> None:
    """With the bytes of the file, or without."""
    async with operating(names) as operations:
        info, found = await operations.create(1, b"f", 0o644, 0, CALLER)

        async def change(mode: int) -> None:
            found.st_mode = mode
            await operations.setattr(found.st_ino, found, OF_THE_MODE, info.fh, CALLER)

        if is_written:
            await operations.write(info.fh, 0, b"x")
        node = operations.nodes[found.st_ino]
        before = node.mtime_ns
        async with trio.open_nursery() as nursery:
            if is_written:
                nursery.start_soon(operations.flush, info.fh)
            else:
                nursery.start_soon(change, 0o640)
            await trio.sleep(0.05)  # it is under way
            nursery.start_soon(change, 0o600)
            await trio.sleep(0.01)
            node.written()
        await operations.flush(info.fh)
        assert not node.changed
        assert node.mtime_ns > before
        stored = names.entries["/f"]
        assert stored.attributes["posix"].split()[0] == "600"
        assert stored.modified_ns == node.mtime_ns


async def test_attributes_that_could_not_be_stored_hide_no_later_change(
    names: Names, autojump_clock: trio.testing.MockClock
) -> None:
    import pyfuse3

    names.entries["/f"] = file("/f", 3)
    names.refused = MasterUnavailable("no answer from the master")
    async with operating(names) as operations:
        found = await operations.lookup(1, b"f", CALLER)
        found.st_mode = 0o600
        with pytest.raises(pyfuse3.FUSEError):
            await operations.setattr(3, found, OF_THE_MODE, None, CALLER)
        names.entries["/f"] = msgspec.structs.replace(file("/f", 3), length=9, modified_ns=2)
        await trio.sleep(2)
        shown = await operations.getattr(3, CALLER)
        assert (shown.st_size, shown.st_mode & 0o7777, shown.st_mtime_ns) == (9, 0o644, 2)


@pytest.mark.parametrize("is_written", [False, True])
async def test_a_file_that_is_closed_while_it_is_deleted_is_gone(
    names: Names, autojump_clock: trio.testing.MockClock, is_written: bool
) -> None:
    """It gets its hidden name when nobody is left whose close would delete it."""
    async with operating(names) as operations:
        info, _ = await operations.create(1, b"f", 0o644, 0, CALLER)
        if is_written:
            await operations.write(info.fh, 0, b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(operations.unlink, 1, b"f", CALLER)
            await trio.sleep(0.05 if is_written else 0.15)
            await operations.release(info.fh)
        assert set(names.entries) == {"/", "/d"}


async def test_a_deleted_file_is_closed_while_it_is_stored(
    names: Names, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with operating(names) as operations:
        contents = await opened(operations, names, "f", Stored(file("/f", 3, 10)))
        await operations.unlink(1, b"f", CALLER)
        await operations.write(HANDLE, 0, b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(contents.try_to_store)
            await trio.sleep(0.5)
            await operations.release(HANDLE)
        assert set(names.entries) == {"/", "/d"}
    assert "bug" not in caplog.text


async def test_a_bug_with_one_file_keeps_no_other_from_being_stored(
    names: Names, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with operating(names) as operations:
        bad, good = Stored(file("/a", 3, 10), ValueError("bug")), Stored(file("/b", 4, 10))
        await opened(operations, names, "a", bad)
        await opened(operations, names, "b", good, HANDLE + 1)
        for handle in (HANDLE, HANDLE + 1):
            await operations.write(handle, 0, b"x")
        with trio.move_on_after(20):
            await operations.open_files.upkeep()
        assert good.data[:1] == b"x"
    assert "inode 3 cannot be stored because of a bug" in caplog.text
    caplog.clear()


async def test_what_was_written_is_stored_if_the_mount_fails(
    names: Names,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Also by uploads that are under way, each of which is a task."""
    import pyfuse3

    from gfs.mount import contents, operations, process

    async def fail(_: contents.Open) -> None:
        await trio.sleep(1)
        raise RuntimeError("a bug")

    async def upload(sent: trio.Event) -> None:
        await trio.sleep(1)
        sent.set()

    async def close(closed: operations.Operations) -> None:
        closed.open_files.nursery.start_soon(upload, sent := trio.Event())
        await sent.wait()
        ends.append("stored")

    async def nothing(_: Path) -> None: ...

    async def serve(max_tasks: int) -> None:
        await trio.sleep_forever()

    ends: list[str] = []
    monkeypatch.setattr(contents.Open, "upkeep", fail)
    monkeypatch.setattr(operations.Operations, "close", close)
    monkeypatch.setattr(process, "read_ahead", nothing)
    monkeypatch.setattr(pyfuse3, "init", lambda *_: None)
    monkeypatch.setattr(pyfuse3, "main", serve)
    monkeypatch.setattr(pyfuse3, "close", lambda **_: ends.append("unmounted"))
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError), flatten_subgroups=True):
        await process.mount(names, "/", tmp_path)  # type: ignore[arg-type]
    assert ends == ["stored", "unmounted"]


async def test_what_is_stored_just_now_is_read_as_it_was_written(
    names: Names, autojump_clock: trio.testing.MockClock
) -> None:
    """Not as it was read before."""
    async with operating(names) as operations:
        contents = await opened(operations, names, "f", Stored(file("/f", 3, 4 * MIB)))
        for at in range(0, 3 * MIB, MIB // 2):
            await operations.read(HANDLE, at, MIB // 2)
        for at in (MIB, 2 * MIB):
            await operations.write(HANDLE, at, b"new")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(contents.try_to_store)
            await trio.sleep(1.5)
            assert await operations.read(HANDLE, MIB, 3) == b"new"
            assert await operations.read(HANDLE, 2 * MIB, 3) == b"new"


@pytest.mark.parametrize("is_full", [True, False])
@pytest.mark.parametrize("is_new", [True, False])
async def test_no_room_is_told_from_servers_that_are_away(
    names: Names, autojump_clock: trio.testing.MockClock, is_new: bool, is_full: bool
) -> None:
    import pyfuse3

    names.is_full = is_full
    error: GfsError = (NotEnoughChunkservers if is_new else ChunkUnavailable)("refused")
    async with operating(names) as operations:
        if is_new:
            names.refused = error
            handle = (await operations.create(1, b"f", 0o644, 0, CALLER))[0].fh
        else:
            handle = HANDLE
            await opened(operations, names, "f", Stored(file("/f", 3, 10), error))
        await operations.write(handle, 0, b"x")
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await operations.flush(handle)
        expected = errno.ENOSPC if is_full else errno.ETIMEDOUT if is_new else errno.EIO
        assert caught.value.errno == expected


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("call", ["open", "create"])
async def test_a_file_that_is_emptied_when_it_is_opened_is_held_open_if_that_is_done(
    names: Names,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    fails: bool,
) -> None:
    """The kernel closes what it was given, and nothing else; meanwhile others close it."""
    import pyfuse3

    from gfs.mount import contents

    async def truncate(*_: object) -> None:
        await trio.sleep(1)
        if fails:
            raise MasterUnavailable("no answer from the master")

    async def release() -> None:
        await trio.sleep(0.5)
        await operations.release(HANDLE)

    async with operating(names) as operations:
        made = await opened(operations, names, "f", Stored(file("/f", 3, 10)))
        made.dirty_since = 0  # so that it is not asked for again
        monkeypatch.setattr(contents.Contents, "truncate", truncate)
        flags, refused = os.O_WRONLY | os.O_TRUNC, []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(release)
            try:
                if call == "open":
                    await operations.open(3, flags, CALLER)
                else:
                    await operations.create(1, b"f", 0o644, flags, CALLER)
            except pyfuse3.FUSEError as error:
                refused.append(error.errno)
        assert refused == ([errno.ETIMEDOUT] if fails else [])
        known = [] if fails else [made]
        assert [each for _, each in operations._handles.values()] == known
        assert operations.open_files.all() == known


async def test_a_listing_in_which_very_much_was_changed_goes_on_with_a_new_one(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gfs.mount import nodes, operations, posix

    async def scan(_: str, after: str) -> AsyncGenerator[Entry, None]:
        asked.append(after)
        for name in sorted(there):
            if name > after:
                await trio.lowlevel.checkpoint()
                yield file(f"/d/{name}", int(name))

    for module in (nodes, operations):
        monkeypatch.setattr(module, "TOUCHED_MAX", 2)
    names.scan = scan  # type: ignore[attr-defined]
    asked: list[str] = []
    there = [f"{number:02}" for number in range(10, 20)]
    node = nodes.Node(2, names.entries["/d"], posix.Posix(0o755, 0, 0))
    listing = operations.Listing(names, "/d", node)  # type: ignore[arg-type]
    node.listings[1] = listing.touched
    seen = [await listing.get(number) for number in range(4)]
    for name in ("10", "16", "17", "18"):
        there.remove(name)
        node.touched(name)
    assert len(listing.touched) == 3
    seen += [await listing.get(number) for number in range(4, 8)]
    found = [entry and entry.inode for entry in seen]
    assert found == [10, 11, 12, 13, 14, 15, 19, None]
    assert asked == ["", "13"]
    assert not listing.touched
    again = await listing.get(2)
    assert again is not None
    assert again.inode == 13
    await listing.close()
