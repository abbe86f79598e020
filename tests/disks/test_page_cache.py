"""What the probe of a disk relies on: that what was synced and dropped is read from the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import real_disks
from needs import need

from gfs.blocks import PAGE_BYTES
from gfs.io import ReadFailed
from gfs.io.real import RealFileSystem


def test_what_was_synced_is_read_from_the_disk_once_it_is_dropped(tmp_path: Path) -> None:
    """And not from the page cache, which answers for a disk that is gone."""
    need(real_disks.missing())
    buffer = memoryview(bytearray(PAGE_BYTES))
    with real_disks.real_disks(tmp_path) as make:
        disk = make("disk")
        file = RealFileSystem().open(f"{disk.path}/file", "replace")
        file.write(bytes(PAGE_BYTES), 0)
        file.sync()
        disk.lose_device()
        assert file.read_into(buffer, 0) == PAGE_BYTES
        file.drop_cached()
        with pytest.raises(ReadFailed) as failed:
            file.read_into(buffer, 0)
        assert failed.value.place is not None
        file.close()


def test_the_mount_of_a_disk_is_known_and_its_loss(tmp_path: Path) -> None:
    need(real_disks.missing())
    files = RealFileSystem()
    with real_disks.real_disks(tmp_path) as make:
        disk = make("disk", below="gfs")
        link = tmp_path / "link"
        link.symlink_to(disk.path)
        for path in (disk.path, link, disk.path / "not" / "there"):
            assert files.mount_point(str(path)) == str(disk.mount)
        disk.detach()
        assert files.mount_point(str(disk.path)) != str(disk.mount)
