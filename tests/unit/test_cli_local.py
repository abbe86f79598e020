"""Walking local trees, and running copies with a bound."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from gfs.cli import local
from gfs.cli.batch import PRINTED_MAX, Batch, Job
from gfs.cli.exits import Failed
from gfs.cli.output import Output
from gfs.cli.progress import Progress
from gfs.errors import (
    AlreadyExists,
    DiskFull,
    GfsError,
    InvalidName,
    MasterUnavailable,
    NotADirectory,
    NotFound,
)


async def tree(root: Path) -> dict[str, local.Item]:
    return {item.relative: item async for item in local.walk(str(root))}


async def test_a_tree_is_walked_parents_first(tmp_path: Path) -> None:
    for name in ("b/c/deep", "a", "b/x", "empty/"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_text(name)
    order = [item.relative async for item in local.walk(str(tmp_path))]
    assert sorted(order) == ["", "a", "b", "b/c", "b/c/deep", "b/x", "empty"]
    for path in order:
        assert path == "" or order.index(os.path.dirname(path)) < order.index(path)
    assert await local.tree_bytes(str(tmp_path)) == len("b/c/deep") + len("a") + len("b/x")


async def test_many_entries_come_in_batches(tmp_path: Path) -> None:
    for number in range(3 * local.BATCH_ENTRIES):
        (tmp_path / str(number)).touch()
    assert len(await tree(tmp_path)) == 3 * local.BATCH_ENTRIES + 1


async def test_nothing_is_left_out_silently(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "circle").symlink_to("..")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / os.fsdecode(b"bad-\xff")).touch()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
        items = await tree(tmp_path)
    errors = {name: str(item.error) for name, item in items.items() if item.error}
    assert set(errors) == {
        *("dangling", "self", "d/circle", "pipe", "socket"),
        os.fsdecode(b"bad-\xff"),
    }
    assert "circle" in errors["d/circle"]
    assert "circle" in errors["self"]
    assert "named pipe" in errors["pipe"]
    assert "socket" in errors["socket"]
    assert isinstance(items[os.fsdecode(b"bad-\xff")].error, InvalidName)
    assert items["link"].length == 1


async def test_a_subtree_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "z").touch()
    seen = []
    async for item in local.walk(str(tmp_path)):
        seen.append(item.relative)
        item.descend = item.relative != "d"
    assert sorted(seen) == ["", "d", "z"]


@pytest.mark.parametrize("kind", ["pipe", "file"])
async def test_streams_are_read_to_their_end(tmp_path: Path, kind: str) -> None:
    data = os.urandom(300_000)
    if kind == "file":
        (tmp_path / "file").write_bytes(data)
        descriptor = os.open(tmp_path / "file", os.O_RDONLY)
        got = b"".join([piece async for piece in local.read_stream(descriptor)])
    else:
        descriptor, send = os.pipe()

        def feed() -> None:
            with open(send, "wb") as file:
                file.write(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, feed)
            got = b"".join([piece async for piece in local.read_stream(descriptor)])
    os.close(descriptor)
    assert got == data


def test_targets(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    assert local.prepare_target(str(tmp_path / "link")) == os.path.realpath(tmp_path / "real")
    assert local.prepare_target(str(tmp_path / "new")) == str(tmp_path / "new")
    for missing in ("no/x", "no/such/x"):
        with pytest.raises(NotFound, match=str((tmp_path / missing).parent)):
            local.prepare_target(str(tmp_path / missing))
    with pytest.raises(NotADirectory, match="link"):
        local.prepare_target(str(tmp_path / "link" / "x"))
    assert not (tmp_path / "no").exists()
    assert local.is_special("/dev/null")
    assert not local.is_special(str(tmp_path / "real"))
    assert not local.is_special(str(tmp_path / "missing"))


async def _jobs(*jobs: Job) -> AsyncIterator[Job]:
    for job in jobs:
        yield job


async def _fail(error: GfsError) -> list[object]:
    raise error


def _batch(parallel: int = 4) -> Batch:
    return Batch(Output(), Progress(), parallel, as_json=False)


async def test_a_batch_is_bounded() -> None:
    running = highest = 0

    async def job() -> list[str]:
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        await trio.testing.wait_all_tasks_blocked()
        running -= 1
        return ["made"]

    batch = _batch(parallel=3)
    await batch.run(_jobs(*[job] * 50))
    assert highest == 3
    assert batch.files == 50


async def test_one_failure_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    async def mixed() -> list[object]:
        await trio.lowlevel.checkpoint()
        return ["made", NotFound("/b: is gone"), "made", "made"]

    batch = _batch()
    with pytest.raises(Failed):
        await batch.run(_jobs(partial(_fail, AlreadyExists("/a: exists")), *[mixed] * 3))
    assert batch.files == 9
    assert batch.failures == 4
    assert capsys.readouterr().err == "gfs: /a: exists\n" + 3 * "gfs: /b: is gone\n"


async def test_many_failures_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    batch = _batch()
    job = partial(_fail, AlreadyExists("exists"))
    with pytest.raises(Failed):
        await batch.run(_jobs(*[job] * (PRINTED_MAX + 5)))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == PRINTED_MAX + 1
    assert lines[-1] == "gfs: … and 5 more failures"


@pytest.mark.parametrize("error", [MasterUnavailable("gone"), DiskFull("full"), OSError(28, "x")])
async def test_a_failure_of_all_ends_the_batch(error: GfsError) -> None:
    started = 0

    async def job() -> None:
        nonlocal started
        started += 1
        raise error

    with pytest.raises(BaseExceptionGroup):
        await _batch(parallel=2).run(_jobs(*[job] * 50))
    assert started <= 3


async def test_a_document_is_closed_when_the_batch_ends_early(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    async def fine() -> list[dict[str, str]]:
        await trio.lowlevel.checkpoint()
        return [{"path": "/a"}]

    async with Output() as output:
        batch = Batch(output, Progress(), 1, as_json=True)
        with pytest.raises(BaseExceptionGroup):
            await batch.run(_jobs(fine, partial(_fail, MasterUnavailable("gone")), fine))
    document = json.loads(capfdbinary.readouterr().out)
    assert document["files"] == [{"path": "/a"}]
    assert document["failures"] == 1
