"""``gfs put``, ``get`` and ``cat``: bytes in and out.

Where a copy goes follows ``cp``: into TARGET if that is a directory (or ends
with a slash, or there are several sources), else it becomes TARGET. Of a source
directory that ends with ``/.`` only the contents are copied. Unlike ``cp``,
nothing is overwritten without ``--force``, and ``put`` makes missing parents.
"""

from __future__ import annotations

import base64
import contextlib
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial

import click
import trio

from gfs.cli import local, progress
from gfs.cli.batch import Batch, Job
from gfs.cli.exits import EXIT_PARTIAL, Failed
from gfs.cli.options import (
    Cluster,
    base_name,
    check_local_name,
    check_parent,
    client_options,
    join,
    json_option,
    remote_path,
)
from gfs.cli.output import Output, to_json, write_bytes
from gfs.cli.progress import Progress
from gfs.cli.session import client_settings, run_with_client
from gfs.client import Client, LocalPart, check_free
from gfs.errors import (
    GfsError,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotFound,
)
from gfs.protocol.messages import SMALL_BYTES_MAX, Entry

#: Directories of a tree that are made together, and small files that are copied together.
TOGETHER, TOGETHER_BYTES = 64, 1024 * 1024

recursive_option = click.option("-r", "--recursive", is_flag=True, help="Copy directories, too.")
force_option = click.option("-f", "--force", is_flag=True, help="Overwrite files that exist.")


# --- put -------------------------------------------------------------------------


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("target", metavar="TARGET")
@recursive_option
@force_option
@click.option(
    "--replication",
    type=click.IntRange(1, 64),
    metavar="R",
    help="Replication goal of the new files (default: the cluster's).",
)
@json_option("the files made, {files, directories, bytes, failures},")
@client_options
def put(
    cluster: Cluster,
    sources: tuple[str, ...],
    target: str,
    recursive: bool,
    force: bool,
    replication: int | None,
    as_json: bool,
) -> None:
    """Copy local files (- is stdin) to TARGET in the file system.

    They go into TARGET if that is a directory or ends with /, or if there are several
    sources; missing parents are made. A file appears under its name when all of it is
    stored, and not before. Symbolic links are followed.
    """
    copy = _Put(sources, target, recursive, force, replication)

    async def work(client: Client) -> None:
        async with Output() as output, progress.shown(Progress()) as shown:
            batch = Batch(output, shown, client_settings(cluster).parallel_files, as_json)
            await batch.run(copy.jobs(client, batch))

    run_with_client(cluster, work)


class _SmallFiles:
    """Collects files (source, target) to copy in one call of the library."""

    def __init__(self) -> None:
        self._files: list[tuple[str, str]] = []
        self._bytes = 0

    def add(self, file: tuple[str, str], length: int) -> list[tuple[str, str]]:
        """The files to copy now; none before there are enough."""
        self._files.append(file)
        self._bytes += length
        is_enough = len(self._files) >= TOGETHER or self._bytes >= TOGETHER_BYTES
        return self.take() if is_enough else []

    def take(self) -> list[tuple[str, str]]:
        files, self._files, self._bytes = self._files, [], 0
        return files


class _Directories:
    """Makes the directories of a tree, many at a time, so that they share the commits of the
    master. What is below one that cannot be made is left out."""

    def __init__(self, client: Client, batch: Batch) -> None:
        self._client = client
        self._batch = batch
        self._waiting: list[str] = []
        self._refused: set[str] = set()

    def has_refused(self, target: str) -> bool:
        """Whether this, or the directory that it is in, cannot be made; as far as is known."""
        return target in self._refused or os.path.dirname(target) in self._refused

    async def add(self, target: str) -> None:
        """A directory, after those above it."""
        self._waiting.append(target)
        if len(self._waiting) >= TOGETHER:
            await self.make()

    async def make(self) -> None:
        """Make those that wait. Of those that cannot be made the highest are reported."""
        targets, self._waiting = self._waiting, []
        errors: dict[str, GfsError] = {}

        async def make_one(target: str) -> None:
            try:
                await self._client.mkdir(target, parents=True, exist_ok=True)
            except GfsError as error:
                errors[target] = error

        async with trio.open_nursery() as nursery:
            for target in targets:
                nursery.start_soon(make_one, target)
        self._batch.directories += len(targets) - len(errors)
        for target in targets:
            if target in errors:
                is_highest = not self.has_refused(target)
                self._refused.add(target)
                if is_highest:
                    self._batch.fail(errors[target])


def _read_all(sources: list[str]) -> list[bytes | OSError | None]:
    """Blocks. None is a file that has grown and is not small any more."""
    read: list[bytes | OSError | None] = []
    for source in sources:
        try:
            with open(source, "rb") as file:
                data = file.read(SMALL_BYTES_MAX + 1)
        except OSError as error:
            read.append(error)
        else:
            read.append(data if len(data) <= SMALL_BYTES_MAX else None)
    return read


class _Put:
    def __init__(
        self,
        sources: tuple[str, ...],
        target: str,
        recursive: bool,
        force: bool,
        replication: int | None,
    ) -> None:
        self.sources = sources
        self.target = remote_path(target)
        self.wants_directory = target.endswith("/") or len(sources) > 1
        self.recursive = recursive
        self.force = force
        self.replication = replication

    async def jobs(self, client: Client, batch: Batch) -> AsyncGenerator[Job, None]:
        into = await _is_remote_directory(client, self.target, self.wants_directory)
        if progress.is_wanted():
            batch.progress.total = await self._total()
        for source in self.sources:
            try:
                async for job in self._jobs_of(client, batch, source, into):
                    yield job
            except (GfsError, OSError) as error:
                batch.fail(error)

    async def _total(self) -> int | None:
        """The number of bytes to copy, if it is known in advance."""
        total = 0
        for source in self.sources:
            if source == "-" or local.is_pipe(source):
                return None
            with contextlib.suppress(OSError):
                found = os.stat(source)
                if self.recursive and stat.S_ISDIR(found.st_mode):
                    total += await local.tree_bytes(source)
                else:
                    total += found.st_size
        return total

    async def _jobs_of(
        self, client: Client, batch: Batch, source: str, into: bool
    ) -> AsyncGenerator[Job, None]:
        if source == "-":
            if into:
                raise IsADirectory(f"{self.target}: stdin has no name: give the file one")
            yield partial(self._put_stream, client, batch, 0, self.target)
            return
        mode = os.stat(source).st_mode
        if stat.S_ISDIR(mode):
            if not self.recursive:
                raise IsADirectory(f"{source}: is a directory: use -r")
            async for job in self._jobs_of_tree(client, batch, source, into):
                yield job
            return
        target = join(self.target, _local_name(source)) if into else self.target
        if stat.S_ISFIFO(mode):
            yield partial(self._put_pipe, client, batch, source, target)
        elif stat.S_ISREG(mode):
            yield partial(self._put_file, client, batch, source, target)
        else:
            raise InvalidArgument(f"{source}: is not a file")

    async def _jobs_of_tree(
        self, client: Client, batch: Batch, source: str, into: bool
    ) -> AsyncGenerator[Job, None]:
        name = _local_name(source)
        root = join(self.target, name) if into and name else self.target
        small, large = _SmallFiles(), list[tuple[str, str]]()
        directories = _Directories(client, batch)

        async def jobs(files: list[tuple[str, str]]) -> list[Job]:
            """To copy these small files, and the large ones so far, where they have a directory."""
            await directories.make()
            files, others = (
                [file for file in some if not directories.has_refused(file[1])]
                for some in (files, large)
            )
            large.clear()
            singly = [partial(self._put_file, client, batch, *file) for file in others]
            return [*singly, partial(self._put_small, client, batch, files)]

        async with aclosing(local.walk(source)) as items:
            async for item in items:
                target = join(root, item.relative) if item.relative else root
                some: list[tuple[str, str]] = []
                if directories.has_refused(target):
                    item.descend = False
                elif item.error is not None:
                    batch.fail(item.error)
                elif item.is_directory:
                    await directories.add(target)
                    item.descend = not directories.has_refused(target)
                elif item.length > SMALL_BYTES_MAX:
                    large.append((item.path, target))
                else:
                    some = small.add((item.path, target), item.length)
                if some or len(large) >= TOGETHER:
                    for job in await jobs(some):
                        yield job
        for job in await jobs(small.take()):
            yield job

    async def _put_small(
        self, client: Client, batch: Batch, files: list[tuple[str, str]]
    ) -> list[object]:
        read = await trio.to_thread.run_sync(_read_all, [source for source, _ in files])
        made: list[object] = []
        items = [
            (target, data)
            for (_, target), data in zip(files, read, strict=True)
            if isinstance(data, bytes)
        ]
        entries = iter(
            await client.put_many(items, overwrite=self.force, replication=self.replication)
        )
        for (source, target), data in zip(files, read, strict=True):
            if data is None:
                try:
                    made += await self._put_file(client, batch, source, target)
                except (GfsError, OSError) as error:
                    made.append(error)
            elif isinstance(data, bytes):
                made.append(entry := next(entries))
                batch.progress.advance(entry.length if isinstance(entry, Entry) else 0)
            else:
                made.append(data)
        return made

    async def _put_file(
        self, client: Client, batch: Batch, source: str | AsyncIterator[bytes], target: str
    ) -> list[object]:
        entry = await client.put(
            source,
            target,
            overwrite=self.force,
            replication=self.replication,
            progress=batch.progress.advance,
        )
        return [entry]

    async def _put_stream(
        self, client: Client, batch: Batch, descriptor: int, target: str
    ) -> list[object]:
        return await self._put_file(client, batch, local.read_stream(descriptor), target)

    async def _put_pipe(
        self, client: Client, batch: Batch, source: str, target: str
    ) -> list[object]:
        descriptor = await local.open_pipe(source)
        try:
            return await self._put_stream(client, batch, descriptor, target)
        finally:
            os.close(descriptor)


def _local_name(source: str) -> str:
    """The name a copy of ``source`` gets in a directory; "": its contents go there."""
    name = base_name(source)
    if name == "." and source.rstrip("/") != ".":
        return ""
    if name in ("", ".", ".."):
        name = os.path.basename(os.path.realpath(source))
    return check_local_name(name)


async def _is_remote_directory(client: Client, target: str, wanted: bool) -> bool:
    """Whether to copy into ``target``, which is made a directory if so ``wanted``."""
    try:
        entry = await client.stat(target)
    except NotFound:
        if wanted:
            await client.mkdir(target, parents=True, exist_ok=True)
        return wanted
    if wanted and entry.kind != "directory":
        raise NotADirectory(f"{target}: is a file, not a directory")
    return entry.kind == "directory"


# --- get -------------------------------------------------------------------------


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="SOURCE... [TARGET]")
@recursive_option
@force_option
@click.option(
    "--partial",
    is_flag=True,
    help="Copy what is left of damaged files, with holes for the rest (exit code 4).",
)
@json_option("the files made, {files, directories, bytes, failures},")
@client_options
def get(
    cluster: Cluster,
    paths: tuple[str, ...],
    recursive: bool,
    force: bool,
    partial: bool,
    as_json: bool,
) -> None:
    """Copy files out of the file system to the local TARGET (- is stdout).

    They go into TARGET if that is a directory or ends with /, or if there are several
    sources; without TARGET, into the current directory. A directory that they go into must
    exist; -r makes those of the tree. A file appears under its name when all of it is written
    and verified, and not before.

    With --partial, files with lost blocks or chunks are copied, too: every byte is
    verified, lost ranges become holes, which read as zeros, and each hole is printed
    with its offset and length.
    """
    sources, target = (paths[:-1], paths[-1]) if len(paths) > 1 else (paths, ".")
    if target == "-":
        if partial:
            raise InvalidArgument("--partial leaves holes, which stdout cannot have")
        if recursive:
            raise InvalidArgument("-r makes directories, which stdout cannot hold")
        _write_files(cluster, sources, as_json)
        return
    copy = _Get(sources, target, recursive, force, partial)

    async def work(client: Client) -> None:
        async with Output() as output, progress.shown(Progress()) as shown:
            batch = Batch(output, shown, client_settings(cluster).parallel_files, as_json)
            await batch.run(copy.jobs(client, batch))
            if copy.hole_bytes:
                raise Failed(EXIT_PARTIAL)

    run_with_client(cluster, work)


class _Get:
    def __init__(
        self, sources: tuple[str, ...], target: str, recursive: bool, force: bool, partial: bool
    ) -> None:
        #: Path, and the name of its copy in a directory; "": its contents go there.
        self.sources = [_remote_source(source) for source in sources]
        self.target = target
        self.wants_directory = target.endswith("/") or len(sources) > 1
        self.recursive = recursive
        self.force = force
        self.partial = partial
        self.hole_bytes = 0

    async def jobs(self, client: Client, batch: Batch) -> AsyncGenerator[Job, None]:
        into = local.is_directory(self.target, wanted=self.wants_directory)
        if progress.is_wanted():
            batch.progress.total = await self._total(client)
        for source, name in self.sources:
            into_here = os.path.join(self.target, name) if into and name else self.target
            try:
                async for job in self._jobs_of(client, batch, source, into_here):
                    yield job
            except (GfsError, OSError) as error:
                batch.fail(error)

    async def _total(self, client: Client) -> int:
        total = 0
        for source, _ in self.sources:
            with contextlib.suppress(OSError):
                total += (await client.disk_usage(source)).bytes
        return total

    async def _jobs_of(
        self, client: Client, batch: Batch, source: str, target: str
    ) -> AsyncGenerator[Job, None]:
        entry = await client.stat(source)
        if entry.kind != "directory":
            yield partial(self._get_file, client, batch, source, target)
            return
        if not self.recursive:
            raise IsADirectory(f"{source}: is a directory: use -r")
        check_parent(target.rstrip("/"))
        await self._make_directory(batch, target)
        small = _SmallFiles()
        async with aclosing(client.walk(source)) as entries:
            async for inner in entries:
                here = os.path.join(target, _relative(inner.path, source))
                if inner.kind == "directory":
                    await self._make_directory(batch, here)
                elif self.partial or inner.length > SMALL_BYTES_MAX or local.is_special(here):
                    yield partial(self._get_file, client, batch, inner.path, here)
                elif some := small.add((inner.path, here), inner.length):
                    yield partial(self._get_small, client, batch, some)
        if some := small.take():
            yield partial(self._get_small, client, batch, some)

    async def _make_directory(self, batch: Batch, target: str) -> None:
        await trio.to_thread.run_sync(partial(os.makedirs, target, exist_ok=True))
        batch.directories += 1

    async def _get_small(
        self, client: Client, batch: Batch, files: list[tuple[str, str]]
    ) -> list[object]:
        found = await client.get_many([source for source, _ in files])
        targets = [target for _, target in files]
        made: list[object] = list(
            await trio.to_thread.run_sync(_write_all, targets, found, self.force)
        )
        for index, target in enumerate(made):
            data = found[index]
            if isinstance(target, str) and isinstance(data, bytes):
                batch.progress.advance(len(data))
                made[index] = _made(files[index][0], target, len(data))
        return made

    async def _get_file(
        self, client: Client, batch: Batch, source: str, target: str
    ) -> list[object]:
        holes: list[tuple[int, int]] = []
        if self.partial:
            if local.is_special(target):
                raise InvalidArgument(
                    f"--partial leaves holes, which {target} cannot have: name a file"
                )
            target = local.prepare_target(target)
            rescued = await client.get(
                source, target, overwrite=self.force, progress=batch.progress.advance, partial=True
            )
            length, holes = rescued.entry.length, rescued.holes
            self._report_holes(batch, source, holes)
        elif local.is_special(target):
            length = await self._get_into_special(client, batch, source, target)
        else:
            target = local.prepare_target(target)
            entry = await client.get(
                source, target, overwrite=self.force, progress=batch.progress.advance
            )
            assert isinstance(entry, Entry)
            length = entry.length
        made = _made(source, target, length)
        if self.partial:
            made["holes"] = [{"offset": offset, "bytes": count} for offset, count in holes]
        return [made]

    def _report_holes(self, batch: Batch, source: str, holes: list[tuple[int, int]]) -> None:
        for offset, count in holes:
            self.hole_bytes += count
            if not batch.as_json:
                batch.progress.say(f"{source}: {count} bytes from {offset} on are lost: a hole")

    async def _get_into_special(
        self, client: Client, batch: Batch, source: str, target: str
    ) -> int:
        """Write to a device or a pipe, which must not be replaced by a file."""
        descriptor = await trio.to_thread.run_sync(
            os.open, target, os.O_WRONLY, abandon_on_cancel=True
        )
        length = 0
        try:
            async with aclosing(client.stream(source)) as views:
                async for view in views:
                    # A copy: a write that is abandoned may go on after the view.
                    await trio.to_thread.run_sync(
                        local.write_all, descriptor, bytes(view), abandon_on_cancel=True
                    )
                    length += len(view)
                    batch.progress.advance(len(view))
        finally:
            os.close(descriptor)
        return length


def _made(source: str, target: str, length: int) -> dict[str, object]:
    name = os.fsencode(target).decode("utf-8", "backslashreplace")
    return {"path": source, "target": name, "length": length}


def _write_all(
    targets: list[str], found: list[bytes | GfsError], overwrite: bool
) -> list[str | GfsError | OSError]:
    """Write small files, each of which gets its name when it is complete. Blocks. Returns
    their paths, or what is wrong with one."""
    made: list[str | GfsError | OSError] = []
    for target, data in zip(targets, found, strict=True):
        if not isinstance(data, bytes):
            made.append(data)
            continue
        try:
            target = local.prepare_target(target)
            check_free(target, overwrite)
            part = LocalPart(target)
            try:
                part.open()
                part.write(memoryview(data))
                part.commit(overwrite)
            finally:
                part.discard()
        except (GfsError, OSError) as error:
            made.append(error)
        else:
            made.append(target)
    return made


def _remote_source(text: str) -> tuple[str, str]:
    path = remote_path(text.removesuffix("/.") or "/")
    return path, "" if text.endswith("/.") else base_name(path)


def _relative(path: str, root: str) -> str:
    """The local path for ``path`` below ``root``. Raises if it would be outside."""
    relative = path.removeprefix(root.rstrip("/")).lstrip("/")
    if ".." in relative.split("/"):
        raise InvalidArgument(f"{path}: this name leads out of the target")
    return relative


# --- cat -------------------------------------------------------------------------


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@json_option("an array of {path, length, encoding: base64, data}")
@client_options
def cat(cluster: Cluster, paths: tuple[str, ...], as_json: bool) -> None:
    """Write files to stdout, one after the other, byte for byte."""
    _write_files(cluster, paths, as_json)


def _write_files(cluster: Cluster, paths: tuple[str, ...], as_json: bool) -> None:
    names = [remote_path(path) for path in paths]

    async def work(client: Client) -> None:
        async with Output() as output:
            for position, name in enumerate(names):
                if as_json:
                    lead = ",\n" if position else "[\n"
                    await _write_as_json(client, output, name, lead)
                else:
                    await _write_raw(client, name)
            if as_json:
                await output.line("\n]")

    run_with_client(cluster, work)


async def _write_raw(client: Client, name: str) -> None:
    async with aclosing(client.stream(name)) as views:
        async for view in views:
            await write_bytes(view)


async def _write_as_json(client: Client, output: Output, name: str, lead: str) -> None:
    entry = await client.stat(name)
    head = to_json({"path": name, "length": entry.length, "encoding": "base64"}, indent=0)
    rest = b""
    async with aclosing(client.stream(name)) as views:
        await output.write(lead + head.removesuffix("}") + ',"data":"')
        async for view in views:
            data = rest + view
            whole = len(data) - len(data) % 3
            await output.write(base64.b64encode(data[:whole]).decode())
            rest = data[whole:]
    await output.write(base64.b64encode(rest).decode() + '"}')
