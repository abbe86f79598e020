"""A set of handles or inodes in little memory: one bit for each.

They are numbers that are allocated one after the other, so a dict of a 256-bit integer for
each 256 is enough: less than a byte each, where a set of integers takes 85. A number far
from all others takes 190 bytes.
"""

from __future__ import annotations

_BITS = 8
_MASK = (1 << _BITS) - 1


class NumberSet:
    def __init__(self) -> None:
        self._bits: dict[int, int] = {}
        self._count = 0

    def add(self, number: int) -> None:
        page, bit = number >> _BITS, 1 << (number & _MASK)
        bits = self._bits.get(page, 0)
        if not bits & bit:
            self._bits[page] = bits | bit
            self._count += 1

    def discard(self, number: int) -> None:
        page, bit = number >> _BITS, 1 << (number & _MASK)
        bits = self._bits.get(page, 0)
        if bits & bit:
            self._count -= 1
            if bits == bit:
                del self._bits[page]
            else:
                self._bits[page] = bits ^ bit

    def __contains__(self, number: int) -> bool:
        return self._bits.get(number >> _BITS, 0) >> (number & _MASK) & 1 == 1

    def __len__(self) -> int:
        return self._count
