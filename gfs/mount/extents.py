"""Bytes of a file that were written and are not stored yet, by their place in it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class Extents:
    """Ranges that neither overlap nor touch."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._data: list[bytearray] = []
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, offset: int, data: bytes) -> None:
        """The newer bytes of a place remain."""
        if not data:
            return
        end = offset + len(data)
        # All that overlaps or touches becomes one.
        first = bisect_left(self._starts, offset)
        if first and self._starts[first - 1] + len(self._data[first - 1]) >= offset:
            first -= 1
        last = bisect_right(self._starts, end)
        if first == last:
            self._starts.insert(first, offset)
            self._data.insert(first, bytearray(data))
            self.bytes += len(data)
            return
        start, joined = self._starts[first], self._data[first]
        self.bytes -= sum(map(len, self._data[first:last]))
        if offset < start:
            joined[:0] = data[: start - offset]
            start = offset
        joined[offset - start : end - start] = data
        for at, more in zip(
            self._starts[first + 1 : last], self._data[first + 1 : last], strict=True
        ):
            if at + len(more) > end:
                joined += more[end - at :]
        self.bytes += len(joined)
        self._starts[first:last] = [start]
        self._data[first:last] = [joined]

    def first(self) -> tuple[int, bytearray] | None:
        return (self._starts[0], self._data[0]) if self._starts else None

    def drop_first(self) -> None:
        del self._starts[0]
        self.bytes -= len(self._data.pop(0))

    def overlaps(self, start: int, end: int) -> bool:
        at = bisect_left(self._starts, end)
        return at > 0 and self._starts[at - 1] + len(self._data[at - 1]) > start

    def inside(self, start: int, end: int) -> bytes | None:
        """The bytes of this range, if all of it is in one."""
        at = bisect_right(self._starts, start) - 1
        if at < 0 or self._starts[at] + len(self._data[at]) < end:
            return None
        base = self._starts[at]
        return bytes(self._data[at][start - base : end - base])
