"""Frames of records: found again whatever lies between them, and never made up."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfs.blocks import CHUNK_BYTES
from gfs.protocol.records import (
    FRAME_HEAD_BYTES,
    MAGIC,
    RECORD_BYTES_MAX,
    Frame,
    RecordScanner,
    SeenRecords,
    encode_head,
    place,
    split_frames,
)

CLIENT = b"client_1"


def frame_at(offset: int, data: bytes, sequence: int = 7) -> bytes:
    frame = bytearray(encode_head(CLIENT, sequence, data) + data)
    place(memoryview(frame), offset)
    return bytes(frame)


def scan(content: bytes, start: int = 0, cuts: list[int] | None = None) -> list[Frame]:
    scanner = RecordScanner(start)
    found: list[Frame] = []
    at = 0
    for cut in [*sorted(cuts or []), len(content)]:
        found += scanner.feed(content[at:cut])
        at = max(at, cut)
    return found + scanner.end()


#: What may lie between records: anything, and what looks like a record most.
junk = st.one_of(
    st.binary(max_size=60),
    st.integers(0, 300).map(bytes),
    st.just(MAGIC),
    st.just(encode_head(CLIENT, 3, b"never placed") + b"never placed"),
    st.builds(lambda n: frame_at(12345, b"of another place", n), st.integers(0, 9)),
)
payloads = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda n: frame_at(n, b"a record in a record"), st.integers(0, 3000)),
)


@given(
    st.lists(st.tuples(junk, payloads), max_size=8),
    junk,
    st.integers(0, CHUNK_BYTES - 40_000),
    st.lists(st.integers(0, 6000), max_size=10),
)
def test_exactly_the_placed_records_are_found_in_any_pieces(
    parts: list[tuple[bytes, bytes]], rest: bytes, start: int, cuts: list[int]
) -> None:
    content, expected = b"", []
    for number, (before, data) in enumerate(parts):
        content += before
        offset = start + len(content)
        expected.append(Frame(offset, CLIENT, number, data))
        content += frame_at(offset, data, number)
    content += rest
    assert scan(content, start, [cut for cut in cuts if cut < len(content)]) == expected


@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_torn_record_is_skipped_and_hides_no_other(data: bytes, draw: st.DataObject) -> None:
    """What follows it begins where it was cut off, inside what its head promises."""
    inner = frame_at(FRAME_HEAD_BYTES, data)  # stamped for no place where it will be
    torn = frame_at(0, data + inner + data)
    cut = draw.draw(st.integers(0, len(torn) - 1))
    content = torn[:cut]
    after = frame_at(cut, b"whole", 8)
    found = scan(content + after)
    assert found == [Frame(cut, CLIENT, 8, b"whole")]


@given(st.binary(max_size=200), st.data())
def test_any_flipped_bit_is_found(data: bytes, draw: st.DataObject) -> None:
    frame = bytearray(frame_at(0, data))
    bit = draw.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    assert scan(bytes(frame)) == []


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=6), st.data())
def test_frames_that_arrive_are_verified(records: list[bytes], draw: st.DataObject) -> None:
    frames = [encode_head(CLIENT, n, data) + data for n, data in enumerate(records)]
    body = bytearray(b"".join(frames))
    assert split_frames(memoryview(body)) == [len(frame) for frame in frames]
    at = draw.draw(st.integers(0, len(body) - 1))
    heads = [sum(map(len, frames[:n])) for n in range(len(frames))]
    if any(head + 8 <= at < head + 20 for head in heads):
        return  # the primary's part of the head
    body[at] ^= 0x10
    with pytest.raises(ValueError, match=r"frame|checksum"):
        split_frames(memoryview(body))


@given(st.binary(max_size=200))
def test_random_bytes_are_no_frames(data: bytes) -> None:
    assert scan(data) == []
    if data:
        with pytest.raises(ValueError, match=r"frame|checksum"):
            split_frames(memoryview(data))


def test_a_record_of_the_greatest_size_is_found_and_a_larger_one_refused() -> None:
    data = bytes(RECORD_BYTES_MAX)
    offset = CHUNK_BYTES - RECORD_BYTES_MAX - FRAME_HEAD_BYTES
    assert scan(frame_at(offset, data), offset) == [Frame(offset, CLIENT, 7, data)]
    assert scan(frame_at(offset + 1, data), offset + 1) == []  # over the chunk's end
    with pytest.raises(ValueError, match="no frame"):
        split_frames(memoryview(encode_head(CLIENT, 1, data + b"x") + data + b"x"))


@given(st.lists(st.tuples(st.sampled_from([b"a" * 8, b"b" * 8]), st.integers(0, 25)), max_size=80))
def test_what_was_seen_is_known_again(names: list[tuple[bytes, int]]) -> None:
    seen, model = SeenRecords(), set()
    for client, sequence in names:
        assert seen.add(client, sequence) == ((client, sequence) not in model)
        model.add((client, sequence))
    edges = seen._ranges
    for client in {name[0] for name in names}:
        ranges = zip(edges[client][::2], edges[client][1::2], strict=True)
        covered = [n for first, end in ranges for n in range(first, end)]
        assert covered == sorted(s for c, s in model if c == client)
    assert seen._count == sum(len(each) // 2 for each in edges.values())


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1000)), max_size=300))
def test_what_is_remembered_is_bounded(names: list[tuple[int, int]]) -> None:
    seen = SeenRecords()
    seen.RANGES_MAX = 10  # type: ignore[misc]
    for client, sequence in names:
        seen.add(client.to_bytes(8, "big"), sequence)
        assert sum(len(each) // 2 for each in seen._ranges.values()) == seen._count <= 10
        assert not seen.add(client.to_bytes(8, "big"), sequence)
