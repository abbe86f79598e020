"""The terms of masters: which one is the master when several claim to be.

Each promotion of a shadow master begins a term: a number above every term that
the shadow knows, made of a count of promotions and, in its lower half, of
chance, so that two shadows promoted at once do not share one. Term 0 is that of
a master that was started on metadata of its own.

Of two masters the one of the higher term is it. Chunkservers remember the
highest term durably, clients while they run, and have nothing to do with lower
ones; a master that learns of a higher one stops serving, durably.

A term may begin without the last operations of the one before (they were not on
the shadow, and the operator gave them up). What those gave out must not be
given out again with another meaning: chunk handles, inode numbers and versions
of chunks. So each term has a part of these numbers for itself.

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
#: Promotions counted in handles and in versions; far more than there will be.
_COUNT_MAX = (1 << 15) - 1
_VERSION_COUNT_MAX = (1 << 12) - 1


def next_term(known: int, chance: int) -> int:
    """A term above ``known``; ``chance`` are 32 random bits."""
    return (count(known) + 1 << CHANCE_BITS) | (chance & (1 << CHANCE_BITS) - 1)


def count(term: int) -> int:
    """How many promotions led to it: what people are shown."""
    return term >> CHANCE_BITS


def first_number(term: int) -> int:
    """The first handle and the first inode number of a term's own part."""
    chance = term & 0xFFFF
    return (min(count(term), _COUNT_MAX) << 48) | (chance << 32)


def first_version(term: int) -> int:
    """The first chunk version of a term's own part."""
    return min(count(term), _VERSION_COUNT_MAX) << 20
