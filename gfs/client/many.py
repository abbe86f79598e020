"""Many files in one call: the rounds of :mod:`gfs.client.small` take the small ones, as they take
those of single calls. Everything else, and what failed in any way, is done by itself, as the
calls for one file do, and has their errors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any, TypeVar

import trio

from gfs.blocks import Buffer
from gfs.client import transfer
from gfs.client.core import ClientCore
from gfs.client.files import ExistingFile
from gfs.client.items import bytes_in, look_at_path, look_at_puts, look_at_range, rounds_of
from gfs.client.publish import PublishOptions
from gfs.client.read import FileMap, Patience, check_path, is_path
from gfs.client.small import Get, Put, put_all, windows
from gfs.errors import (
    GfsError,
    InvalidName,
    MasterUnavailable,
    NotEnoughChunkservers,
)
from gfs.protocol.messages import (
    SMALL_BYTES_MAX,
    Delete,
    Done,
    Entry,
    Message,
    Stat,
    StatReply,
)

T = TypeVar("T")
ReplyT = TypeVar("ReplyT", bound=Message)


async def stat_many(
    core: ClientCore, paths: Iterable[str], stat: Callable[[str], Awaitable[Entry]]
) -> list[Entry | GfsError]:
    """``stat`` is that of one path, for files with appended records."""
    found: list[Entry | GfsError] = []
    for window in rounds_of(paths, look_at_path):
        if (lost := _lost(found)) is not None:
            found += [lost] * len(window)
            continue
        replies = await _ask_master(core, [Stat(id=0, path=path) for path in window], StatReply)
        here = {
            index: reply if isinstance(reply, GfsError) else reply.entry
            for index, reply in enumerate(replies)
        }
        growing = [i for i, e in here.items() if isinstance(e, Entry) and e.appended]
        await _singly(core, here, {index: partial(stat, window[index]) for index in growing})
        found += here.values()
    return found


async def get_many(core: ClientCore, paths: Iterable[str]) -> list[bytes | GfsError]:
    found: list[bytes | GfsError] = []
    patience = Patience()
    for window in rounds_of(paths, look_at_path):
        lost = _lost(found)
        found += await _get_window(core, window, patience) if lost is None else [lost] * len(window)
    return found


#: A path, and the range as a slice has it: from, up to; None: from the beginning, to the end.
Range = tuple[str, int | None, int | None]


async def get_ranges(core: ClientCore, ranges: Iterable[Range]) -> list[bytes | GfsError]:
    """A small file is read whole, together with others: its block is read anyway. Of others each
    is opened once in each window."""
    found: list[bytes | GfsError] = []
    patience = Patience()
    for window in rounds_of(ranges, look_at_range):
        lost = _lost(found)
        found += await _get_ranges(core, window, patience) if lost is None else [lost] * len(window)
    return found


async def _get_ranges(
    core: ClientCore, ranges: Sequence[Range], patience: Patience
) -> list[bytes | GfsError]:
    numbers = {path: number for number, path in enumerate(dict.fromkeys(r[0] for r in ranges))}
    sources: dict[int, bytes | ExistingFile | GfsError] = {}
    gets = await _get_small(core, list(numbers), sources)

    async def open_file(get: Get) -> ExistingFile:
        located = get.located
        file = (
            await FileMap.open(core, get.path, patience=patience)
            if located is None
            else await FileMap.of(core, get.path, located, patience=patience)
        )
        return ExistingFile(core, file, "r")

    opened: dict[int, ExistingFile | GfsError] = {}
    await _singly(core, opened, {index: partial(open_file, get) for index, get in gets.items()})
    sources.update(opened)
    found: dict[int, bytes | GfsError] = {}
    rest: dict[int, Callable[[], Awaitable[bytes]]] = {}
    for index, (path, start, end) in enumerate(ranges):
        source = sources[numbers[path]]
        if isinstance(source, bytes):
            found[index] = source[start:end]
        elif isinstance(source, GfsError):
            found[index] = source
        else:
            begin, stop, _ = slice(start, end).indices(source.length)
            rest[index] = partial(source.pread, begin, max(0, stop - begin))
    await _singly(core, found, rest)
    return [found[index] for index in range(len(ranges))]


async def delete_many(
    core: ClientCore,
    items: Iterable[tuple[str, int | None]],
    recursive: bool,
    now: bool,
) -> list[GfsError | None]:
    """Each item is a path, and the inode that must be there."""
    found: list[GfsError | None] = []
    for window in windows((item, 0) for item in items):
        if (lost := _lost(found)) is not None:
            found += [lost] * len(window)
            continue
        requests = [
            Delete(
                id=0,
                client=core.master.id,
                sequence=core.master.next_sequence(),
                path=path,
                recursive=recursive,
                expect=-1 if expect is None else expect,
                now=now,
            )
            for path, expect in window
        ]
        replies = await _ask_master(core, requests, Done)
        found += [reply if isinstance(reply, GfsError) else None for reply in replies]
    return found


async def put_many(
    core: ClientCore,
    items: Iterable[tuple[str, Buffer]],
    options: PublishOptions,
    replication: int,
) -> list[Entry | GfsError]:
    found: list[Entry | GfsError] = []
    for window in rounds_of(items, look_at_puts()):
        if (lost := _lost(found)) is not None:
            found += [lost] * len(window)
        else:
            found += await _put_window(core, window, options, replication)
    return found


def _lost(found: Sequence[object]) -> GfsError | None:
    """The error that all other files have, too: nobody waits for it again and again."""
    last = found[-1] if found else None
    return last if isinstance(last, (MasterUnavailable, NotEnoughChunkservers)) else None


async def _get_window(
    core: ClientCore, paths: Sequence[str], patience: Patience
) -> list[bytes | GfsError]:
    found: dict[int, bytes | GfsError] = {}
    gets = await _get_small(core, paths, found)
    read = partial(transfer.read_bytes, core, patience=patience)
    await _singly(core, found, {i: partial(read, g.path, g.located) for i, g in gets.items()})
    return [found[index] for index in range(len(paths))]


async def _get_small(
    core: ClientCore, paths: Sequence[str], found: MutableMapping[int, Any]
) -> dict[int, Get]:
    """Put what small files have, and errors, into ``found``; returns the others, by their
    places, with what the master has answered."""
    gets: dict[int, Get] = {}
    for index, path in enumerate(paths):
        try:
            check_path(path)
            gets[index] = Get(path, core.present_request())
        except InvalidName as error:
            found[index] = error
    await core.gets.ask(list(gets.values()))
    for index, get in gets.items():
        if get.error is not None or get.data is not None:
            found[index] = get.error or get.data or b""
    return {index: get for index, get in gets.items() if index not in found}


async def _put_window(
    core: ClientCore,
    items: Sequence[tuple[str, Buffer]],
    options: PublishOptions,
    replication: int,
) -> list[Entry | GfsError]:
    found: dict[int, Entry | GfsError] = {}
    puts: dict[int, Put] = {}
    for index, (path, data) in enumerate(items):
        if bytes_in(data) <= SMALL_BYTES_MAX and is_path(path):
            puts[index] = Put(path, bytes(data), options, replication, core.present_request())
    await put_all(core, list(puts.values()))
    for index, put in puts.items():
        if put.error is not None:
            found[index] = put.error
        elif put.reply is not None:
            found[index] = put.reply.entry
    rest = {
        index: partial(
            transfer.put,
            core,
            data,
            path,
            options=options,
            replication=replication,
            progress=None,
            small=index not in puts,
        )
        for index, (path, data) in enumerate(items)
        if index not in found
    }
    await _singly(core, found, rest)
    return [found[index] for index in range(len(items))]


async def _ask_master(
    core: ClientCore, questions: Sequence[Stat | Delete], kind: type[ReplyT]
) -> list[ReplyT | GfsError]:
    """In one send; a path that no master accepts has its error at once."""
    found: dict[int, ReplyT | GfsError] = {}
    requests: list[tuple[Message, Buffer]] = []
    for index, question in enumerate(questions):
        try:
            check_path(question.path)
        except InvalidName as error:
            found[index] = error
        else:
            requests.append((question, b""))
    replies = iter(await core.master.ask_many(requests, kind) if requests else [])
    return [found[i] if i in found else next(replies) for i in range(len(questions))]


async def _singly(
    core: ClientCore, found: dict[int, T | GfsError], rest: Mapping[int, Callable[[], Awaitable[T]]]
) -> None:
    """Do what is left, each by itself, some at once."""
    if not rest:
        return
    todo = iter(rest.items())

    async def work() -> None:
        for index, one in todo:
            found[index] = await _or_error(one)

    async with trio.open_nursery() as nursery:
        for _ in range(min(len(rest), core.settings.parallel_files)):
            nursery.start_soon(work)


async def _or_error(one: Callable[[], Awaitable[T]]) -> T | GfsError:
    try:
        return await one()
    except GfsError as error:
        return error
