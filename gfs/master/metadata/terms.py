"""The terms of masters, which decide which one is the master when several claim to be.

Each promotion of a shadow master begins a term: a number above every term that the
shadow master knows. It consists of a count of promotions and, in its lower half, random
bits, so that two shadow masters promoted at once do not share one. Term 0 is that of a
master that was started on metadata of its own.

Of two masters, the one of the higher term is the master. Chunkservers store the highest
term durably, clients in memory; both refuse masters of lower ones. A master that learns
of a higher term stops serving, durably.

A term may begin without the last operations of the one before (the shadow master lacked
them, and the operator accepted that). The chunk handles, inode numbers and chunk
versions that those allocated must not be allocated again with another meaning. So each
term has its own range of these numbers.

========  ======================================================================
number    of a term
========  ======================================================================
handle    u64: 15 bits count, 16 bits chance, 32 bits counted from 0
inode     the same
version   u32: 12 bits count, 20 bits counted from 0
========  ======================================================================
"""

from __future__ import annotations

CHANCE_BITS = 32
#: The most promotions that handles and versions can count; far more than there will be.
_COUNT_MAX = (1 << 15) - 1
_VERSION_COUNT_MAX = (1 << 12) - 1


def next_term(known: int, chance: int) -> int:
    """A term above ``known``; ``chance`` are 32 random bits."""
    return (count(known) + 1 << CHANCE_BITS) | (chance & (1 << CHANCE_BITS) - 1)


def count(term: int) -> int:
    """The number of promotions up to this term, which is shown to operators."""
    return term >> CHANCE_BITS


def first_number(term: int) -> int:
    """The first handle and the first inode number of a term's own range."""
    chance = term & 0xFFFF
    return (min(count(term), _COUNT_MAX) << 48) | (chance << 32)


def first_version(term: int) -> int:
    """The first chunk version of a term's own range."""
    return min(count(term), _VERSION_COUNT_MAX) << 20
