"""``gfs append`` and ``gfs records``: many writers, one file."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing

import click
import trio

from gfs.cli.options import Cluster, client_options, json_option, remote_path
from gfs.cli.output import JsonArray, Output, write_bytes
from gfs.cli.session import run_with_client
from gfs.client import Client
from gfs.errors import InvalidArgument
from gfs.protocol.records import RECORD_BYTES_MAX

#: Most lines that are sent and not yet acknowledged, and about as many bytes.
AT_ONCE = 256
BYTES_AT_ONCE = 8 * 1024 * 1024
PIECE_BYTES = 256 * 1024


@click.command()
@click.argument("path", metavar="PATH")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@json_option("an array of {offset, length}, one for each record in order")
@client_options
def append(cluster: Cluster, path: str, files: tuple[str, ...], as_json: bool) -> None:
    """Append each line of stdin, or each local FILE as a whole, to PATH as a record.

    PATH is created if it does not exist. Any number of programs may append to it at the
    same time: a record of up to 16 MiB is stored in one piece, at an offset that the
    file system chooses. When this command ends, it is on all replicas. After a failure
    it may be stored twice, under one id: gfs records shows it once. Empty lines are
    records, too.
    """
    name = remote_path(path)

    async def work(client: Client) -> None:
        source = _whole_files(files) if files else _lines()
        async with Output() as output:
            array = JsonArray(output)
            async with aclosing(_append_all(client, name, source)) as appended:
                async for offset, length in appended:
                    if as_json:
                        await array.add({"offset": offset, "length": length})
            if as_json:
                await array.end()

    run_with_client(cluster, work)


async def _append_all(
    client: Client, name: str, source: AsyncGenerator[bytes, None]
) -> AsyncGenerator[tuple[int, int], None]:
    """The (offset, length) of each record, in order. Lines that are available together
    are sent together."""
    batch: list[bytes] = []
    size = 0
    async with aclosing(source) as pieces:
        async for record in pieces:
            if record is not _PAUSE:
                batch.append(record)
                size += len(record)
            if record is _PAUSE or len(batch) >= AT_ONCE or size >= BYTES_AT_ONCE:
                for offset, data in zip(await client.append_many(name, batch), batch, strict=True):
                    yield offset, len(data)
                batch, size = [], 0
    for offset, data in zip(await client.append_many(name, batch), batch, strict=True):
        yield offset, len(data)


#: No more lines are available now: send those that are.
_PAUSE = b"pause"


async def _lines() -> AsyncGenerator[bytes, None]:
    """The lines of stdin without their ends, and a pause after each piece of it."""
    rest = bytearray()
    while piece := await trio.to_thread.run_sync(_read_some, abandon_on_cancel=True):
        rest += piece
        *lines, last = rest.split(b"\n")
        rest = last
        if len(rest) > RECORD_BYTES_MAX:
            raise InvalidArgument(f"a line of more than {RECORD_BYTES_MAX} bytes")
        for line in lines:
            yield bytes(line)
        yield _PAUSE
    if rest:
        yield bytes(rest)


def _read_some() -> bytes:
    return os.read(sys.stdin.fileno(), PIECE_BYTES)


async def _whole_files(files: tuple[str, ...]) -> AsyncGenerator[bytes, None]:
    for file in files:
        yield await trio.to_thread.run_sync(_read_file, file)


def _read_file(path: str) -> bytes:
    if path == "-":
        data = sys.stdin.buffer.read(RECORD_BYTES_MAX + 1)
    else:
        with open(path, "rb") as file:
            data = file.read(RECORD_BYTES_MAX + 1)
    if len(data) > RECORD_BYTES_MAX:
        raise InvalidArgument(f"{path}: longer than a record may be ({RECORD_BYTES_MAX} bytes)")
    return data


@click.command()
@click.argument("path", metavar="PATH")
@click.option(
    "--from",
    "start",
    type=click.IntRange(min=0),
    default=0,
    metavar="OFFSET",
    help="Start with the record at OFFSET (an offset that --json shows).",
)
@click.option(
    "--duplicates",
    is_flag=True,
    help="Write records that a failure stored twice as often as they are stored.",
)
@click.option(
    "-0", "--null", is_flag=True, help="Write a zero byte after each record instead of a newline."
)
@json_option("an array of {offset, length, client, sequence, encoding: base64, data}")
@client_options
def records(
    cluster: Cluster, path: str, start: int, duplicates: bool, null: bool, as_json: bool
) -> None:
    """Write the records that were appended to PATH to stdout, a newline after each.

    Bytes that are not a record are skipped; a file without any record is an error.
    """
    name = remote_path(path)
    end = b"\0" if null else b"\n"

    async def work(client: Client) -> None:
        source = client.records(name, start=start, duplicates=duplicates)
        found = False
        async with Output() as output, aclosing(source) as every:
            array = JsonArray(output)
            pending = bytearray()
            async for record in every:
                found = True
                if as_json:
                    await array.add(
                        {
                            "offset": record.offset,
                            "length": len(record.data),
                            "client": record.client,
                            "sequence": record.sequence,
                            "encoding": "base64",
                            "data": base64.b64encode(record.data).decode(),
                        }
                    )
                    continue
                pending += record.data
                pending += end
                if len(pending) >= PIECE_BYTES:
                    await write_bytes(bytes(pending))
                    pending.clear()
            await write_bytes(bytes(pending))
            if as_json:
                await array.end()
        if not found and not start and (await client.stat(name)).length:
            raise InvalidArgument(f"{name} contains no records: gfs cat writes its bytes")

    run_with_client(cluster, work)
