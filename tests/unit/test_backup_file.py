"""The file of a backup: what is complete in it, and what is damage."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from gfs.errors import InvalidArgument
from gfs.master.backup import backup_file
from gfs.master.backup.backup_file import PIECE, POINT, ROWS, BackupFile, Point


def point(sequence: int) -> Point:
    return Point("cluster", sequence, sequence * 7, b"state", sequence)


def read(path: Path) -> Point | None:
    with closing(BackupFile.open(str(path))) as backup:
        return backup.last_point()


def made(path: Path, rounds: int) -> BackupFile:
    backup = BackupFile.create(str(path))
    backup.begin()
    for number in range(1, rounds + 1):
        backup.add(PIECE if number == 1 else ROWS, bytes([number]) * 40)
        backup.complete(point(number))
    return backup


def test_what_was_complete_is_read_and_no_more(tmp_path: Path) -> None:
    """A backup that was killed in its second round, after any number of its bytes."""
    path = tmp_path / "backup"
    backup = made(path, 1)
    backup.add(ROWS, b"not complete")
    backup.add(ROWS, b"neither")
    backup.close()
    whole, kept = path.read_bytes(), 0
    for length in range(len(whole), 0, -1):
        path.write_bytes(whole[:length])
        try:
            backup = BackupFile.open(str(path))
        except InvalidArgument:
            break
        assert backup.last_point() == point(1)
        kept += 1
        backup.begin()
        backup.add(ROWS, b"again")
        backup.complete(point(2))
        kinds = [record.kind for record in backup.records()]
        backup.close()
        assert kinds == [PIECE, POINT, ROWS, POINT]
    # As many as the unfinished round has bytes, and the file as it was without it.
    assert kept == 2 * 13 + len(b"not completeneither") + 1


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    made(path, 3).close()
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(InvalidArgument, match=r"is damaged at byte|is not a backup"):
            read(path)


def test_records_of_another_place_are_found(tmp_path: Path) -> None:
    """Each is whole by itself."""
    path = tmp_path / "backup"
    made(path, 3).close()
    whole = path.read_bytes()
    first = 32 + 13 + 40
    length = (len(whole) - 32) // 3  # all have the same
    rounds = [whole[at : at + length] for at in range(32, len(whole), length)]
    assert b"".join([whole[:32], *rounds]) == whole
    assert len(rounds[1]) == len(rounds[2]) > first - 32
    path.write_bytes(whole[:32] + rounds[0] + rounds[2] + rounds[1])
    with pytest.raises(InvalidArgument, match=f"is damaged at byte {32 + len(rounds[0])}"):
        read(path)


def test_two_at_once(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    with closing(made(path, 1)), pytest.raises(InvalidArgument, match="is in use by another"):
        read(path)
    assert read(path) == point(1)
    assert os.stat(path).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"x", b"not a backup, but long enough for one of them"])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match="is not a backup made by gfs backup"):
        read(path)
    assert path.read_bytes() == content


def test_a_backup_that_became_another_one_while_its_lock_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first backup of two at once: the new one gets its name between open and lock."""
    partial, path = tmp_path / "backup.partial", tmp_path / "backup"
    first = made(partial, 1)
    lock = backup_file.try_flock

    def late(descriptor: int, shared: bool = False) -> bool:
        first.replace(str(path))
        first.close()
        return lock(descriptor, shared)

    monkeypatch.setattr(backup_file, "try_flock", late)
    with pytest.raises(InvalidArgument, match="is in use by another"):
        BackupFile.create(str(partial))
    monkeypatch.undo()
    assert read(path) == point(1)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/null"):
        for to_read in (False, True):
            with pytest.raises(InvalidArgument, match="is not a backup made by gfs backup"):
                BackupFile.open(path, to_read=to_read)
    with pytest.raises(IsADirectoryError):
        BackupFile.open(str(tmp_path))


def test_two_read_what_nobody_writes(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    made(path, 1).close()
    path.chmod(0o400)
    with (
        closing(BackupFile.open(str(path), to_read=True)) as one,
        closing(BackupFile.open(str(path), to_read=True)) as other,
    ):
        assert one.last_point() == other.last_point() == point(1)
