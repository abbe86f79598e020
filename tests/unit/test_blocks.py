"""Block checksums find every flipped bit and every wrong count."""

from __future__ import annotations

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from share import share

from gfs.blocks import (
    BLOCK_BYTES,
    BLOCKS_PER_CHUNK,
    CHUNK_BYTES,
    SUM_BYTES,
    block_count,
    block_sum,
    block_sums,
    packet_sums,
)


def data_of(length: int, seed: int = 0) -> bytes:
    """``length`` bytes that look random, cheaply."""
    block = b"".join(xxhash.xxh3_128_digest(bytes([n % 256, seed % 256])) for n in range(256))
    return (block * (length // len(block) + 1))[:length]


lengths = st.one_of(
    st.integers(0, 300),
    st.integers(-2, 2).map(lambda d: BLOCK_BYTES + d),
    st.integers(0, 5 * BLOCK_BYTES),
    st.integers(0, 4).map(lambda n: n * BLOCK_BYTES),
)


def test_the_sizes_of_the_paper() -> None:
    assert (BLOCK_BYTES, CHUNK_BYTES, BLOCKS_PER_CHUNK) == (1 << 16, 1 << 26, 1024)


def test_the_digest_is_xxh3_64_forever() -> None:
    """What is on disks today must verify tomorrow."""
    assert block_sum(b"") == bytes.fromhex("2d06800538d394c2")
    assert block_sum(b"abc") == bytes.fromhex("78af5f94892f3950")
    assert block_sums(bytes(BLOCK_BYTES + 1)) == block_sum(bytes(BLOCK_BYTES)) + block_sum(b"\0")


@given(lengths)
def test_one_sum_for_each_block(length: int) -> None:
    data = data_of(length)
    sums = block_sums(data)
    assert len(sums) == SUM_BYTES * block_count(length)
    assert block_count(length) * BLOCK_BYTES >= length > (block_count(length) - 1) * BLOCK_BYTES
    for index in range(block_count(length)):
        block = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        assert sums[index * SUM_BYTES : (index + 1) * SUM_BYTES] == block_sum(block)


@given(lengths)
def test_any_buffer_gives_the_same_sums(length: int) -> None:
    data = data_of(length)
    sums = block_sums(data)
    assert block_sums(bytearray(data)) == block_sums(memoryview(data)) == sums
    assert block_sums(memoryview(b"x" + data)[1:]) == sums


@given(lengths.filter(bool), st.data())
@settings(max_examples=share(200))
def test_any_flipped_bit_changes_its_block_and_no_other(length: int, draw: st.DataObject) -> None:
    data = bytearray(data_of(length))
    sums = block_sums(data)
    bit = draw.draw(st.integers(0, 8 * length - 1))
    data[bit // 8] ^= 1 << (bit % 8)
    flipped = block_sums(data)
    changed = [
        at // SUM_BYTES
        for at in range(0, len(sums), SUM_BYTES)
        if sums[at : at + SUM_BYTES] != flipped[at : at + SUM_BYTES]
    ]
    assert changed == [bit // 8 // BLOCK_BYTES]


@given(lengths.filter(bool))
def test_a_lost_byte_changes_the_sums(length: int) -> None:
    data = data_of(length)
    assert block_sums(data[:-1]) != block_sums(data)
    assert block_sums(data + b"\0") != block_sums(data)


@given(st.integers(0, 3 * BLOCK_BYTES), lengths)
def test_packets_are_cut_where_their_file_is(offset: int, length: int) -> None:
    data = data_of(length)
    pieces, at = [], 0
    while at < length:
        step = BLOCK_BYTES - (offset + at) % BLOCK_BYTES
        pieces.append(block_sum(data[at : at + step]))
        at += step
    assert packet_sums(offset, data) == b"".join(pieces)


@pytest.mark.parametrize("offset", [0, 1, BLOCK_BYTES])
def test_an_empty_packet_has_no_sums(offset: int) -> None:
    assert packet_sums(offset, b"") == b""
