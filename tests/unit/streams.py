"""What tests of streams and files share."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator

import pytest

from gfs.io import Stream


async def expect(
    kind: type[BaseException], function: Callable[..., Awaitable[object]], *args: object
) -> None:
    """In a task of its own."""
    with pytest.raises(kind):
        await function(*args)


async def receive(stream: Stream, count: int) -> bytes:
    """So many bytes, or all that come before its end."""
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        got = await stream.receive_into(view[done:])
        if not got:
            break
        done += got
    return bytes(data[:done])


@contextlib.contextmanager
def refused(code: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        yield
    assert caught.value.errno == code
