"""docs/formats.md says what the code does.

The tables between marks and the ``hex`` examples are made here, from the code. If
the page differs after a change that was meant::

    UPDATE_DOCS=1 python -m pytest tests/unit/test_docs_formats.py
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import msgspec
import pytest

from gfs import errors
from gfs.blocks import CHUNK_BYTES, SUM_BYTES, block_sum
from gfs.chunkserver.disks.identity import NAMES, decode_server, encode_server
from gfs.chunkserver.files import intents, layout
from gfs.chunkserver.packs import layout as packs_layout
from gfs.chunkserver.packs import packs as packs_module
from gfs.master.metadata import operations, rows, store
from gfs.protocol import handshake, messages
from gfs.protocol.frames import encode_frame

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


def kind(annotation: Any) -> str:
    """A field's type as the page writes it."""
    args = get_args(annotation)
    if get_origin(annotation) is dict:
        return f"{{{kind(args[0])}: {kind(args[1])}}}"
    if get_origin(annotation) is UnionType:
        return " or ".join("nil" if arg is NoneType else kind(arg) for arg in args)
    if args:
        return f"[{', '.join(kind(arg) for arg in args)}]"
    return {int: "int", str: "str", bytes: "bytes", bool: "bool"}.get(
        annotation, getattr(annotation, "__name__", str(annotation))
    )


def fields(struct_type: type[msgspec.Struct], leave_out: Iterable[str] = ()) -> str:
    found = msgspec.structs.fields(struct_type)
    return ", ".join(
        f"{field.name} {kind(field.type)}" for field in found if field.name not in leave_out
    )


def table(titles: list[str], lines: Iterable[tuple[object, ...]]) -> str:
    head = [f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles)]
    return "\n".join(head + [f"| {' | '.join(map(str, line))} |" for line in lines])


def tag(struct_type: type[msgspec.Struct]) -> Any:
    return struct_type.__struct_config__.tag


def is_ours(kind: type) -> bool:
    """Not one that another test made."""
    return kind.__module__.startswith("gfs.")


def message_table() -> str:
    def line(message: type[messages.Message]) -> tuple[object, ...]:
        body = message.BODY_BYTES_MAX
        return (
            tag(message),
            f"`{message.__name__}`",
            fields(message, ["id"]),
            f"{body:,}" * bool(body),
        )

    ordered = sorted(messages.ALL_MESSAGES, key=tag)
    return table(["tag", "message", "fields after the id", "body, at most"], map(line, ordered))


def part_table() -> str:
    parts = [part for part in messages.Part.__subclasses__() if is_ours(part)]
    return table(["value", "fields"], ((f"`{part.__name__}`", fields(part)) for part in parts))


def operation_table() -> str:
    found = sorted(get_args(operations.AnyOperation), key=tag)
    inner = [operations.NewDirectory, operations.NewChunk, operations.Copied]
    lines = [(tag(one), f"`{one.__name__}`", fields(one)) for one in found]
    return table(
        ["tag", "operation", "fields"],
        [*lines, *[("", f"`{one.__name__}`, in them", fields(one)) for one in inner]],
    )


def error_table() -> str:
    def tree(root: type[errors.GfsError]) -> Iterable[tuple[object, ...]]:
        yield f"`{root.code}`", f"`{root.__name__}`", "yes" * root.retryable
        for child in root.__subclasses__():
            # The client makes OSErrors of most.
            if child.__module__ == errors.__name__:
                yield from tree(child)

    return table(["code", "error", "may succeed later"], tree(errors.GfsError))


TABLES: dict[str, Callable[[], str]] = {
    "messages": message_table,
    "parts": part_table,
    "operations": operation_table,
    "errors": error_table,
}
ROWS: list[type[msgspec.Struct]] = [
    store.State, store.UnderWay, store.Counted, store.Change, store.Standing, store.Promise,
    rows.FileAttributes, rows.Trash, operations.LogRecord, rows.KnownServer,
]  # fmt: skip


HANDLE, VERSION = 0x2A, 3
FIRST = layout.State(1, VERSION, 5, block_sum(b"hello"))
MARK = intents.Intent(HANDLE, VERSION, 5, intents.boot_number("boot"))
JOURNAL_HEAD = layout.JournalHead(0, 2)
PACKED = packs_layout.Record(HANDLE, VERSION, 1024, 5, block_sum(b"hello"), 7)
REDO = layout.Redo(HANDLE, 1, 2, VERSION, 0, 5, block_sum(b"Jello"), b"J")

#: Name → bytes, and how many of them make a group on the page.
EXAMPLES: dict[str, tuple[bytes, list[int]]] = {
    "identity": (layout.encode_identity(HANDLE), [8, 4, 4, 8, 8]),
    "slot": (layout.encode_slot(FIRST), [8, 4, 4, 8, 8, 8]),
    "packed": (packs_layout.encode_record(PACKED), [4, 4, 8, 8, 4, 4, 8, 8, 8, 8]),
    "mark": (intents.encode_intent(MARK), [8, 4, 4, 8, 8]),
    "journal": (
        layout.encode_journal_head(JOURNAL_HEAD)[: layout.JOURNAL_SUMMED_BYTES],
        [8, 8, 8, 8],
    ),
    "redo": (layout.encode_redo(REDO), [8, 8, 8, 8, 4, 4, 4, 4, 8, 8, 1, 8]),
    "entries-key": (rows.entry_key(rows.ROOT_INODE, b"os"), [8, 2]),
    "entries-value": (rows.pack_entry(3, rows.KIND_FILE), [8, 1]),
    "inodes-value": (rows.Inode(rows.KIND_FILE, 0, 3, 1, 20, 0, 0).pack(), [1, 1, 2, 4, 8, 8, 8]),
    "file_chunks-key": (rows.pack_file_chunk_key(3, 0), [8, 4]),
    "chunks-value": (rows.Chunk(1, 1, 20, 1, 3).pack(), [4, 4, 4, 4, 2]),
    "frame": (encode_frame(messages.Stat(id=7, path="/etc/os")), [4, 4, 11]),
}


def dump(data: bytes, groups: list[int]) -> str:
    """``data`` in hex, four groups a line."""
    assert sum(groups) == len(data)
    pieces, at = [], 0
    for size in groups:
        pieces.append(data[at : at + size].hex(" "))
        at += size
    return "\n".join("  ".join(pieces[n : n + 4]) for n in range(0, len(pieces), 4))


def as_it_should_be(text: str) -> str:
    """The page with everything generated made anew."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
        made = make()
        text, count = pattern.subn(lambda m, made=made: f"{m[1]}{made}\n{m[2]}", text)
        assert count == 1, f"the page has {count} places for the table {name}"
    for row in ROWS:
        pattern = re.compile(rf"(?:`[^`|]*` )?<!-- fields: {row.__name__} -->")
        text, count = pattern.subn(f"`{fields(row)}` <!-- fields: {row.__name__} -->", text)
        assert count == 1, f"the page has {count} places for the fields of {row.__name__}"
    for name, (data, groups) in EXAMPLES.items():
        pattern = re.compile(rf"(```hex {name}\n).*?(```)", re.S)
        made = dump(data, groups)
        text, count = pattern.subn(lambda m, made=made: f"{m[1]}{made}\n{m[2]}", text)
        assert count == 1, f"the page has {count} places for the example {name}"
    return text


def test_the_page_is_what_the_code_does() -> None:
    text = PAGE.read_text(encoding="utf-8")
    should = as_it_should_be(text)
    if text != should and os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(should, encoding="utf-8")
        return
    assert text == should, "docs/formats.md: UPDATE_DOCS=1 python -m pytest " + __file__


def section(title: str) -> str:
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S)
    assert found is not None, title
    return found[1]


def layouts(text: str) -> list[list[tuple[int, int]]]:
    """(offset, bytes) of the tables that have both as numbers."""
    tables: list[list[tuple[int, int]]] = [[]]
    for line in text.splitlines():
        found = re.match(r"\| (\d+) \| (\d+) \|", line)
        if found:
            tables[-1].append((int(found[1]), int(found[2])))
        elif not line.startswith("|") and tables[-1]:
            tables.append([])
    return [rows for rows in tables if rows]


def field_layout(pattern: str) -> list[tuple[int, int]]:
    """(offset, bytes) of each field of a ``struct`` format."""
    found, at = [], 0
    for item in re.findall(r"\d*s|[A-Za-z]", pattern):
        size = struct.calcsize(f">{item}")
        found.append((at, size))
        at += size
    return found


def test_the_chunk_file_is_laid_out_as_the_page_says() -> None:
    head, slot = layouts(section("The chunk file"))
    identity = field_layout(layout._IDENTITY.format)
    size = layout._IDENTITY.size
    assert head == [
        *identity,
        (size, len(layout.encode_identity(HANDLE)) - size),
        *[(offset, layout.SLOT_BYTES) for offset in layout.SLOT_OFFSETS],
        (layout.SUMS_OFFSET, layout.SUMS_BYTES),
        (layout.SUMS_OFFSET + layout.SUMS_BYTES,
         layout.HEAD_BYTES - layout.SUMS_OFFSET - layout.SUMS_BYTES),
    ]  # fmt: skip
    assert f"| {layout.HEAD_BYTES} | | the data" in section("The chunk file")
    size = layout._SLOT.size
    assert slot == [*field_layout(layout._SLOT.format), (size, layout.SLOT_BYTES - size)]
    assert layout.slot_offset(2) == layout.SLOT_OFFSETS[0]


def test_a_packed_replica_is_laid_out_as_the_page_says() -> None:
    head, record = layouts(section("Packed replicas"))
    fields, size = field_layout(packs_layout._HEAD.format), packs_layout._HEAD.size
    number = size + SUM_BYTES, packs_layout._CONFIRMED.size
    assert head == [*fields, (size, SUM_BYTES), number, (sum(number), SUM_BYTES)]
    assert f"every {packs_module.CLAIM_RECORDS:,} records" in section("Packed replicas")
    size = packs_layout._RECORD.size
    assert record == [*field_layout(packs_layout._RECORD.format), (size, SUM_BYTES)]
    assert size + SUM_BYTES == packs_layout.RECORD_BYTES
    assert f"From byte {packs_layout.HEAD_BYTES} on" in section("Packed replicas")


def test_the_redo_record_is_laid_out_as_the_page_says() -> None:
    head, redo = layouts(section("The redo journal"))
    size = layout._JOURNAL.size
    assert head == [*field_layout(layout._JOURNAL.format), (size, SUM_BYTES)]
    assert f"from byte {layout.JOURNAL_HEAD_BYTES} on" in section("The redo journal")
    assert redo == field_layout(layout._REDO.format)


def test_a_write_intent_record_is_laid_out_as_the_page_says() -> None:
    [mark] = layouts(section("Write-intent records"))
    size = intents._INTENT.size
    assert mark == [*field_layout(intents._INTENT.format), (size, intents.INTENT_BYTES - size)]
    assert f"; {intents.NO_BOOT}: not known |" in section("Write-intent records")
    assert f"{CHUNK_BYTES}: not known" in section("Write-intent records")
    assert f"; {intents.INCOMPLETE}: the replica is *lacking* a write |" in section(
        "Write-intent records"
    )


def test_rows_are_laid_out_as_the_page_says() -> None:
    inode, chunk = layouts(section("The master's metadata"))
    assert inode == field_layout(rows._inode.format)
    assert chunk == field_layout(rows._chunk.format)
    for name in store.Databases._fields:
        assert f"| `{name}` |" in section("The master's metadata")


def test_the_server_record_has_the_fields_the_page_shows() -> None:
    shown = re.search(r"`(\{.*?\})`", section("A chunkserver's directory"))
    record = decode_server(shown[1].encode())
    assert encode_server(record).decode() == shown[1]
    assert all(f"`{name}`" in section("A chunkserver's directory") for name in NAMES)


@pytest.mark.parametrize(
    "said",
    [
        f"magic `{messages.MAGIC}`, the oldest of the versions {messages.PROTOCOL_OLDEST} to "
        f"{messages.PROTOCOL_NEWEST} of the protocol",
        f"{handshake.NONCE_BYTES} random bytes",
        f"length of the head, 1 to {messages.HEAD_BYTES_MAX}",
    ],
)
def test_the_wires_constants_are_what_the_page_says(said: str) -> None:
    assert said in section("The wire")
