"""What of a mount needs no FUSE: ranges of written bytes, and errors."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gfs.blocks import MIB
from gfs.errors import (
    ChunkUnavailable,
    CorruptReplica,
    DeadlineExceeded,
    DirectoryNotEmpty,
    FileChanged,
    GfsError,
    MasterUnavailable,
    NotFound,
    SettingsError,
    StartupError,
)
from gfs.mount import contents as contents_module
from gfs.mount.contents import Contents, Open, Stream
from gfs.mount.errnos import errno_of
from gfs.mount.extents import Extents
from gfs.mount.nodes import Node
from gfs.mount.posix import Posix, posix_of
from gfs.mount.process import check
from gfs.protocol.messages import Entry

LENGTH = 64
NOTHING: Any = None
ENTRY = Entry("/f", 7, "file", 0, 3, 1, 2)


@given(st.lists(st.tuples(st.integers(0, LENGTH - 1), st.integers(0, 20)), max_size=20), st.data())
def test_the_newest_bytes_of_every_place_are_kept(
    writes: list[tuple[int, int]], data: st.DataObject
) -> None:
    extents, model = Extents(), [-1] * (2 * LENGTH)
    for number, (at, count) in enumerate(writes, 1):
        extents.add(at, bytes([number]) * count)
        model[at : at + count] = [number] * count
    start = data.draw(st.integers(0, LENGTH))
    end = data.draw(st.integers(start + 1, LENGTH + 20))
    part = model[start:end]
    assert extents.overlaps(start, end) == any(byte >= 0 for byte in part)
    assert extents.inside(start, end) == (bytes(part) if min(part) >= 0 else None)
    assert extents.bytes == sum(byte >= 0 for byte in model)
    seen, before = [-1] * (2 * LENGTH), -1
    while (first := extents.first()) is not None:
        at, held = first
        assert at > before, "they neither overlap nor touch"
        seen[at : at + len(held)] = held
        before = at + len(held)
        extents.drop_first()
    assert (seen, extents.bytes, len(extents)) == (model, 0, 0)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (NotFound("x"), errno.ENOENT),
        (DirectoryNotEmpty("x"), errno.ENOTEMPTY),
        (FileChanged("x"), errno.ESTALE),
        (MasterUnavailable("x"), errno.ETIMEDOUT),
        (CorruptReplica("x"), errno.EIO),
        (SettingsError("x"), errno.EIO),
        (GfsError("x"), errno.EIO),
        (OSError(errno.EXDEV, "x"), errno.EXDEV),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_has_the_errno_that_fits(error: Exception, number: int) -> None:
    assert errno_of(error) == number


@pytest.mark.parametrize(
    ("kind", "text", "posix"),
    [
        ("file", "4751 12 34 5 6", Posix(0o4751, 12, 34, 5, 6)),
        ("file", None, Posix(0o644, 1, 2)),
        ("directory", None, Posix(0o755, 1, 2)),
        ("file", "999 12 34 5 6", Posix(0o644, 1, 2)),
        ("file", "644 12 34 5", Posix(0o644, 1, 2)),
    ],
)
def test_what_attributes_say_of_an_inode(kind: str, text: str | None, posix: Posix) -> None:
    entry = Entry("/f", 7, kind, 0, 3, 1, 2, attributes={} if text is None else {"posix": text})
    assert posix_of(entry, 1, 2) == posix
    assert text is None or posix.mode == 0o644 or posix.text() == text


async def test_a_file_whose_bytes_are_lost_keeps_no_room_from_others() -> None:
    shared: Any = SimpleNamespace(client=None)
    node: Any = SimpleNamespace()
    lost = Contents(shared, node, None)
    lost._whole, lost._lost = bytearray(MIB), FileChanged("it was replaced")
    lost._extents.add(2 * MIB, b"x")
    await lost.leave_memory()
    assert lost.memory == 0
    with pytest.raises(FileChanged):
        await lost.read(0, 1)


class Cluster:
    """That of which files were deleted by others, and of some no chunk can be written."""

    def __init__(self, deleted: set[str], unavailable: set[str]) -> None:
        self.stored: list[str] = []
        self._deleted, self._unavailable = deleted, unavailable

    async def put(self, data: bytes, path: str, **_: object) -> Entry:
        if path in self._deleted:
            raise NotFound(f"{path}: no such file")
        if path in self._unavailable:
            raise ChunkUnavailable(f"{path}: no replica answers")
        self.stored.append(path)
        return ENTRY

    async def stat(self, path: str) -> Entry:
        raise NotFound(f"{path}: no such file")

    async def status(self) -> Any:
        raise MasterUnavailable("nobody answers")


def opened(cluster: Any, lengths: dict[str, int]) -> dict[str, Contents]:
    """New files, of which so many bytes are in memory."""
    nodes: dict[Node, str] = {}
    names: Any = SimpleNamespace(path=nodes.__getitem__, stored_as=lambda *_: None)
    files, found = Open(cluster, names, NOTHING), {}
    for number, (path, length) in enumerate(lengths.items()):
        node = Node(number, ENTRY, Posix(0o644, 1, 2))
        nodes[node] = path
        found[path] = files.add(node, None)
        found[path]._write_whole(0, bytes(length))
        found[path]._is_dirty_now()
    return found


async def test_a_file_that_others_deleted_fails_no_writer_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is the largest, which is to leave the memory first."""
    monkeypatch.setattr(contents_module, "MEMORY_BYTES_MAX", 10)
    cluster = Cluster({"/deleted"}, set())
    files = opened(cluster, {"/deleted": 8, "/other": 4, "/mine": 0})
    for _ in range(3):
        await files["/mine"].write(0, b"mine")
    assert cluster.stored == []
    for call in (files["/deleted"].store(), files["/deleted"].write(0, b"x")):
        with pytest.raises(FileChanged, match="/deleted"):
            await call


async def test_a_file_of_which_a_chunk_is_unavailable_fails_its_own_writers_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contents_module, "MEMORY_BYTES_MAX", 10)
    cluster = Cluster(set(), {"/away"})
    files = opened(cluster, {"/away": 8, "/other": 4, "/mine": 0, "/last": 0})
    await files["/mine"].write(0, b"mine")
    assert cluster.stored == ["/other"]
    with pytest.raises(ChunkUnavailable, match="/away"):
        await files["/away"].write(0, b"x")
    await files["/mine"].write(0, b"mine")
    assert cluster.stored == ["/other", "/mine"]
    # The rest cannot make enough.
    await files["/mine"].discard()
    files["/away"]._write_whole(0, bytes(12))
    files["/last"]._write_whole(0, bytes(4))
    files["/last"]._is_dirty_now()
    with pytest.raises(ChunkUnavailable, match="/away"):
        await files["/other"].write(0, b"x")
    assert cluster.stored == ["/other", "/mine", "/last"]
    assert files["/away"].memory == 12


def test_what_a_mount_needs_is_named_if_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/fuse")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setitem(sys.modules, "pyfuse3", SimpleNamespace())
    check(tmp_path)
    with monkeypatch.context() as missing:
        missing.setitem(sys.modules, "pyfuse3", None)
        with pytest.raises(
            StartupError, match=r"needs pyfuse3 .*pip install .*apt-get install fuse3"
        ):
            check(tmp_path)
    with monkeypatch.context() as missing:
        missing.setattr(os.path, "exists", lambda path: False)
        with pytest.raises(StartupError, match=r"no /dev/fuse: .*modprobe fuse"):
            check(tmp_path)
    with monkeypatch.context() as missing:
        missing.setattr(shutil, "which", lambda name: None)
        with pytest.raises(StartupError, match="without fusermount3: apt-get install fuse3"):
            check(tmp_path)
        missing.setattr(os, "geteuid", lambda: 0)
        check(tmp_path)


class Upload:
    """A new file that is sent, as a mount has it."""

    def __init__(self) -> None:
        self.aborted = False

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def flush(self) -> None:
        await trio.sleep_forever()

    async def abort(self) -> None:
        self.aborted = True


async def test_a_stream_that_nobody_waits_for_ends_with_its_file(autojump_clock: object) -> None:
    """Of one that was replaced on this machine while it was written, for example."""
    upload: Any = Upload()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            files, node = Open(NOTHING, NOTHING, nursery), Node(7, ENTRY, Posix(0o644, 1, 2))
            contents = files.add(node, None)
            contents.stream = Stream(nursery, upload)
            await contents.stream.write(b"x")
            await files.remove(node)
    assert upload.aborted


async def test_a_stream_that_is_not_stored_in_time_is_lost_and_says_so(
    autojump_clock: object,
) -> None:
    upload: Any = Upload()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            node = Node(7, ENTRY, Posix(0o644, 1, 2))
            contents = Open(NOTHING, NOTHING, nursery).add(node, None)
            contents._whole, contents.stream = None, Stream(nursery, upload)
            await contents.stream.write(b"x")
            contents.length = 1
            with trio.move_on_after(5):
                await contents.store()
            for call in (contents.store(), contents.read(0, 1), contents.write(0, b"y")):
                with pytest.raises(DeadlineExceeded, match="inode 7 was not stored in time"):
                    await call
    assert upload.aborted
