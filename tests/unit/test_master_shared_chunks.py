"""The rows of chunks that several files have, against a plain list of their goals."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gfs.master.metadata import shared_chunks
from gfs.master.metadata.rows import Chunk, chunk_of, unpack_chunk

GOALS = st.integers(1, 64)


@given(st.data(), st.lists(GOALS, min_size=1, max_size=6))
def test_a_chunk_knows_the_goals_of_its_files(data: st.DataObject, more: list[int]) -> None:
    files = [data.draw(GOALS)]
    chunk = Chunk(3, 4, 5, 1, files[0])
    assert not shared_chunks.is_frozen(chunk)
    for goal in more:
        chunk = shared_chunks.shared(chunk, goal)
        files.append(goal)
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(files) - 1))
            after = data.draw(GOALS)
            chunk = shared_chunks.regoaled(chunk, files[at], after)
            files[at] = after
    while True:
        assert (chunk.references, chunk.replication) == (len(files), max(files))
        assert shared_chunks.goals_of(chunk) == {goal: files.count(goal) for goal in set(files)}
        assert chunk[:3] == (3, 4, 5)
        assert shared_chunks.is_frozen(chunk)
        assert chunk_of(chunk.pack()) == chunk
        assert unpack_chunk(chunk.pack()) == chunk[:5]
        gone = files.pop(data.draw(st.integers(0, len(files) - 1)))
        left = shared_chunks.released(chunk, gone)
        if left is None:
            assert not files
            return
        chunk = left


@given(GOALS, GOALS)
def test_a_chunk_of_one_file_stays_as_it_was(before: int, after: int) -> None:
    chunk = shared_chunks.regoaled(Chunk(1, 1, 10, 1, before), before, after)
    assert chunk == Chunk(1, 1, 10, 1, after)
    assert len(chunk.pack()) == 18
    assert shared_chunks.released(chunk, after) is None
