"""The cluster key: made once whoever races, and refused when it is not safe."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from gfs.errors import SettingsError
from gfs.io import others_can_read
from gfs.state import KEY_BYTES, KEY_NAME, KeyFile, make_key, read_keys, retire_keys, rotate_key


def test_a_key_is_made_once_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / KEY_NAME
    key = make_key(path)
    assert len(key) == KEY_BYTES
    assert (make_key(path),) == read_keys(path) == (key,)
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [KEY_NAME]
    assert make_key(tmp_path / "other") != key


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_key(tmp_path / KEY_NAME)
    finally:
        os.umask(before)
    assert (tmp_path / KEY_NAME).stat().st_mode & 0o777 == 0o600


def test_no_key(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no cluster key there: start the cluster"):
        read_keys(tmp_path / KEY_NAME)
    with pytest.raises(SettingsError, match="cannot be made"):
        make_key(tmp_path / "no" / "directory" / KEY_NAME)


@pytest.mark.parametrize(
    ("owner", "mode", "refused"),
    [
        (0, 0o440, False),
        (0, 0o640, False),
        (0, 0o444, True),
        (0, 0o660, True),
        (1000, 0o400, False),
        (1000, 0o440, True),
    ],
)
def test_a_user_without_rights_reads_the_secret_that_root_gave_its_group(
    monkeypatch: pytest.MonkeyPatch, owner: int, mode: int, refused: bool
) -> None:
    found = os.stat_result((0o100000 | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert others_can_read(found) is refused
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert others_can_read(found) is bool(mode & 0o077)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / KEY_NAME
    make_key(path)
    path.chmod(mode)
    for read in (read_keys, make_key):
        with pytest.raises(SettingsError, match="chmod 600"):
            read(path)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"ab" * 31,
        b"ab" * 33,
        b"xy" * 32,
        b"ab" * 1000,
        b"\xff" * 64,
        b"a" * 63,
        b"ab" * 32 + b"\n" + b"ab" * 31,
    ],
)
def test_what_is_no_key_is_refused_and_left_alone(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / KEY_NAME
    path.write_bytes(text)
    path.chmod(0o600)
    for read in (read_keys, make_key):
        with pytest.raises(SettingsError):
            read(path)
    assert path.read_bytes() == text


def test_a_directory_or_a_dangling_link_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("directory", "link"):
        with pytest.raises(SettingsError):
            make_key(tmp_path / name)


def test_threads_that_make_the_key_at_once_get_the_same(tmp_path: Path) -> None:
    """Also what two containers are that share a directory: the same process id."""
    for turn in range(20):
        path = tmp_path / str(turn) / KEY_NAME
        path.parent.mkdir()
        keys: set[bytes] = set()
        start = threading.Barrier(4)

        def race(path: Path = path, keys: set[bytes] = keys, start: object = start) -> None:
            start.wait()  # type: ignore[attr-defined]
            keys.add(make_key(path))

        racers = [threading.Thread(target=race) for _ in range(4)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert keys == set(read_keys(path))
        assert os.listdir(path.parent) == [KEY_NAME]


def test_a_key_is_rotated_and_the_old_one_retired(tmp_path: Path) -> None:
    path = tmp_path / KEY_NAME
    old = make_key(path)
    held = KeyFile(path)
    rotate_key(path)
    new, also = read_keys(path)
    assert also == old != new
    assert held() == (new, old)
    with pytest.raises(SettingsError, match="gfs key retire"):
        rotate_key(path)
    assert make_key(path) == new
    assert retire_keys(path)
    assert held() == read_keys(path) == (new,)
    assert not retire_keys(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [KEY_NAME]


def test_a_key_file_that_was_spoiled_leaves_the_keys_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / KEY_NAME
    key = make_key(path)
    held = KeyFile(path)
    path.chmod(0o644)
    assert held() == (key,)
    path.unlink()
    assert held() == (key,)
    assert make_key(path) != key
    assert held() == read_keys(path)


def test_a_linked_key_file_is_changed_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    path = tmp_path / KEY_NAME
    make_key(tmp_path / "far" / KEY_NAME)
    path.symlink_to(tmp_path / "far" / KEY_NAME)
    rotate_key(path)
    assert path.is_symlink()
    assert len(read_keys(path)) == 2
