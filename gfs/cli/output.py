"""What goes to stdout: lines for people, one document for programs.

Output is collected and written in pieces by a worker thread: a reader that
pauses (``gfs ls | less``) holds up neither Ctrl-C nor the connections.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import trio

from gfs.cli.exits import StdoutClosed
from gfs.cli.local import write_all
from gfs.failures import human_bytes as human_bytes
from gfs.protocol.messages import Message

KIB = 1024
#: Collected before it is written.
PIECE_BYTES = 32 * KIB


def _write(data: bytes | bytearray) -> None:
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        sys.stdout.buffer.write(data)  # a test's stdout
        return
    try:
        write_all(descriptor, data)
    except BrokenPipeError:
        raise StdoutClosed from None


async def write_bytes(data: bytes | bytearray | memoryview) -> None:
    """Write raw bytes to stdout. A cancelled write ends with the process.

    Until then it continues, so it uses a copy of a view that its owner reuses.
    """
    data = bytes(data) if isinstance(data, memoryview) else data
    await trio.to_thread.run_sync(_write, data, abandon_on_cancel=True)


class Output:
    """Lines to stdout, in pieces. Use as an async context manager: what is
    still collected is written at its end, also after a failure."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self.is_terminal = sys.stdout.isatty()

    async def __aenter__(self) -> Output:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None or not issubclass(kind, StdoutClosed):
            await self.flush()

    async def write(self, text: str) -> None:
        self._pending += text.encode("utf-8", "backslashreplace")
        if len(self._pending) >= PIECE_BYTES:
            await self.flush()

    async def line(self, text: str = "") -> None:
        await self.write(text + "\n")

    async def flush(self) -> None:
        piece, self._pending = self._pending, bytearray()
        if piece:
            await write_bytes(piece)

    def name(self, text: str) -> str:
        """``text`` for a line: without control characters, if stdout is a terminal."""
        return printable(text) if self.is_terminal else text


def printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# --- JSON ----------------------------------------------------------------------


def plain(value: Any) -> Any:
    """``value`` as JSON types: structs and dataclasses become objects.

    The wire's structs are encoded as arrays, with ids that mean nothing here.
    """
    if isinstance(value, msgspec.Struct):
        hidden = "id" if isinstance(value, Message) else ""
        names = (name for name in value.__struct_fields__ if name != hidden)
        return {name: plain(getattr(value, name)) for name in names}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    return value


def to_json(value: Any, *, indent: int = 2) -> str:
    encoded = msgspec.json.encode(plain(value))
    return (msgspec.json.format(encoded, indent=indent) if indent else encoded).decode()


class JsonArray:
    """A JSON array that is written while it grows, one element a line.

    Nothing is written for an array that fails before its first element.
    ``before`` and ``after`` enclose it, to make it part of an object.
    """

    def __init__(self, output: Output, before: str = "", after: Callable[[], str] = str) -> None:
        self._output = output
        self._before = before
        self._after = after
        self._count = 0

    async def add(self, value: Any) -> None:
        lead = ",\n" if self._count else f"{self._before}[\n"
        self._count += 1
        await self._output.write(lead + to_json(value, indent=0))

    async def end(self) -> None:
        close = "\n]" if self._count else f"{self._before}[]"
        await self._output.line(close + self._after())


# --- for people ------------------------------------------------------------------


def human_time(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(nanoseconds / 1e9))


def human_seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def table(titles: Iterable[str], rows: Iterable[Iterable[str]], right: Iterable[int] = ()) -> str:
    """A table whose columns ``right`` (counted from 0) are aligned right.

    Plain text that is not cut to the terminal's width, so that it can be piped.
    """
    cells = [list(titles), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    flushed = set(right)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in flushed else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def control_summary(facts: Mapping[str, str], admin: str, password: str | None) -> list[str]:
    """The addresses of the control plane's services, and how to log in. The password is in no
    log and is not shown again: only its hash is stored."""
    url = next(url for service, url in facts.items() if service not in ("pid", "s3"))
    lines = [f"REST API: {url} (documentation: {url}/docs)"]
    if "console" in facts:
        lines.insert(0, f"Console: {facts['console']} (in a browser)")
    if "s3" in facts:
        lines.append(f"S3: {facts['s3']} (access keys: gfs control s3-key USER)")
    if password is not None:
        body = json.dumps({"username": admin, "password": password})
        lines += [
            f"Its user {admin} has the password {password} (this is not shown again). Log in:",
            f"  curl -H 'Content-Type: application/json' -d {shlex.quote(body)} {url}/api/login",
        ]
    return lines
