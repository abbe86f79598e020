"""A master and a control plane begin on a disk that is full, or nearly: a small tmpfs, which root
may mount."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import forks
import pytest
from harness import environment
from small_disk import small_disk

from gfs.errors import StartupError
from gfs.master.metadata.store import open_store

DISK_BYTES = 1 << 20
MAP_BYTES = 1 << 28
#: A new store takes fewer.
PAGES_MAX = 64

#: How each store is begun in a ``directory``, and used.
STORES = {
    "master": """
from gfs.master.metadata.store import open_store

def use():
    open_store(directory, map_bytes, True, "feed", 7).close()
""",
    "records": """
from pathlib import Path
import msgspec
from control.records import Records, Schema, Table

class Row(msgspec.Struct):
    name: str

table = Table("rows", Row, key=lambda row: row.name)

def use():
    records = Records.open(Path(directory), [Schema("crowd", 1, [table])], map_bytes=map_bytes)
    records.write_at_start(lambda txn: table.put(txn, Row("one")))
    with records.read() as txn:
        assert table.get(txn, "one")
""",
    "shared facts": """
from pathlib import Path
from control.volatile import Volatile

def use():
    facts = Volatile.open(Path(directory), map_bytes=map_bytes)
    facts.put("kind", "key", b"row", ttl_seconds=60)
    assert facts.get("kind", "key", bytes) == b"row"
""",
}
#: For each number of free pages: the signal that ended the process, what it said, and what the
#: next one said, which had room.
BEGIN = """
import json, os, shutil, sys

disk, map_bytes, pages_max = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
directory, filling = disk + "/store", disk + "/filling"
exec(sys.argv[4])

def begin():
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        text = ""
        try:
            use()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(tell, text.encode())
        os._exit(0)
    os.close(tell)
    with open(told) as file:
        text = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text

for free in range(pages_max):
    shutil.rmtree(directory, ignore_errors=True)
    with open(filling, "wb") as file:
        space = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, (space.f_bavail - free) * space.f_frsize)
    found = begin()
    os.unlink(filling)
    print(json.dumps([free, *found, *begin()]))
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", DISK_BYTES) as path:
        yield path


@pytest.mark.parametrize("store", STORES)
def test_however_little_room_there_is_a_new_store_says_so_and_is_begun_later(
    disk: Path, store: str
) -> None:
    """The kernel ends no process because a page of its memory has no room on the disk, and LMDB
    is left no file that it does not open again."""
    words = [disk, str(MAP_BYTES), str(PAGES_MAX), STORES[store]]
    done = subprocess.run(
        [sys.executable, "-c", BEGIN, *words], capture_output=True, check=False, text=True
    )
    assert not done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [free for free, *_ in found] == list(range(PAGES_MAX))
    for free, ended, said, *then in found:
        assert not ended, f"ended by signal {-ended} with {free} pages"
        if said:
            kind, where, why = said.split(": ", 2)
            assert kind == "StartupError" or (kind == "DiskFull" and store != "master")
            assert where == f"{disk}/store"
            assert "free some space" in why
        assert then == [0, ""], (free, said)
    assert found[0][2]
    assert not found[-1][2]


def test_gfs_master_says_where_there_is_no_room_in_one_line(disk: Path, tmp_path: Path) -> None:
    (disk / "master").mkdir()
    with open(disk / "filling", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize)
    arguments = ["master", "--state", disk, "--key-file", tmp_path / "key", "--address"]
    done = forks.run([*arguments, "127.0.0.1:0"], env=environment(), text=True)
    assert done.returncode == StartupError.exit_code
    assert done.stderr.startswith(f"gfs: {disk}/master: ")
    assert done.stderr.endswith(": free some space there\n")
    (disk / "filling").unlink()
    with closing(open_store(str(disk / "master"), MAP_BYTES, True, "feed", 7)) as store:
        assert store.epoch == 1
