"""What ``make bench-growth`` measures is what it says: files of a real master's store."""

from __future__ import annotations

from pathlib import Path

from bench.growth import namespace
from bench.growth.stand_ins import records
from gfs.master.metadata import lookups
from gfs.master.metadata.store import open_only
from gfs.protocol.messages import REPLICA_RECORD

FILES = 3_000


def test_the_files_that_are_made_are_those_of_publications(tmp_path: Path) -> None:
    made = namespace.make(tmp_path, FILES)
    store = open_only(str(tmp_path), namespace.MAP_BYTES, False)
    try:
        assert store.state.files == FILES
        assert set(store.known_servers()) == {"stand-in-0", "stand-in-1", "stand-in-2"}
        with store.read() as txn:
            assert len({made.path(number) for number in range(FILES)}) == FILES
            for number in (0, made.flat - 1, made.flat, FILES - 1):
                entry = lookups.stat(txn, made.path(number))
                (chunk,) = lookups.file_chunks(txn, entry.inode, entry.length, 0)
                assert (chunk.handle, chunk.version) == (made.first_handle + number, 1)
            page, more = lookups.list_page(txn, "/flat", "", 400)
            assert (len(page), more) == (400, True)
    finally:
        store.close()


def test_a_stand_in_reports_the_chunks_of_these_files() -> None:
    expected = [(7, 1, namespace.LENGTH), (8, 1, namespace.LENGTH)]
    assert list(REPLICA_RECORD.iter_unpack(records(7, 2))) == expected
