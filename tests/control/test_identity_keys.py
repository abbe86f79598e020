"""Signing keys: made once, rotated, seen by every process; kept from others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from auth_server import Hands
from limits import HANG_SECONDS

from control.identity.keys import KEY_BYTES, LOOK_SECONDS, NOTICE_SECONDS, SigningKeys, rotate_keys
from control.identity.secretfiles import locked, make_private_directory
from gfs.errors import StartupError

OPEN_AND_SAY = """
import sys
from pathlib import Path
from unittest import mock
from control.identity.keys import SigningKeys
sys.stdin.readline()
keys = SigningKeys.open(Path(sys.argv[1]))
print(keys.current.id, keys.current.secret, (Path(sys.argv[1]) / "service.key").read_text())
"""


def opened(directory: Path, hands: Hands) -> SigningKeys:
    return SigningKeys.open(directory, clock=hands, ticks=hands)


def test_the_keys_are_made_once_and_are_their_owners_alone(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    first, second = SigningKeys.open(directory), SigningKeys.open(directory)
    assert first.current == second.current
    assert len(first.current.raw) >= KEY_BYTES
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in directory.iterdir()} == {"signing.json", "service.key", "lock"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in directory.iterdir())


@pytest.mark.real
def test_processes_that_start_at_once_get_the_same_keys(tmp_path: Path) -> None:
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", OPEN_AND_SAY, str(tmp_path / "keys")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    processes = [start() for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    reported = [process.communicate(timeout=HANG_SECONDS)[0] for process in processes]
    assert len(set(reported)) == 1
    assert reported[0]


def test_after_a_rotation_the_old_key_verifies_until_its_sessions_end(tmp_path: Path) -> None:
    hands = Hands()
    keys = opened(tmp_path / "keys", hands)
    old = keys.current
    keys.rotate(keep_seconds=100)
    new = keys.current
    assert new.id != old.id
    assert new.raw != old.raw
    hands.at += 100
    assert keys.secret(old.id) == old.raw
    assert keys.secret(new.id) == new.raw
    hands.at += NOTICE_SECONDS
    assert keys.secret(old.id) is None
    assert keys.secret(new.id) == new.raw


def test_a_rotation_that_keeps_nothing_ends_the_old_key_at_once(tmp_path: Path) -> None:
    keys = opened(tmp_path / "keys", Hands())
    old = keys.current
    keys.rotate(keep_seconds=0)
    assert keys.secret(old.id) is None
    assert keys.current.id != old.id


def test_secrets_need_a_directory_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir(mode=0o755)
    for name, message in (("file/below", "cannot be used for secrets"), ("open", "chmod 700")):
        with pytest.raises(StartupError, match=message):
            make_private_directory(tmp_path / name)
    make_private_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_lock_that_another_process_keeps_is_reported(tmp_path: Path) -> None:
    ticks = iter(range(100))
    waiting = mock.Mock(monotonic=lambda: next(ticks))
    with (
        locked(tmp_path / "lock"),
        mock.patch("control.identity.secretfiles.time", waiting),
        pytest.raises(StartupError, match="another process has held this for 10 s"),
        locked(tmp_path / "lock"),
    ):
        pass
    with locked(tmp_path / "lock"):
        pass


def test_a_rotation_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    keys = opened(tmp_path / "keys", Hands())
    full = mock.patch("control.identity.keys.write_secret", side_effect=OSError(28, "full"))
    with full, pytest.raises(StartupError, match=r"cannot be rotated.*full"):
        keys.rotate(keep_seconds=0)


def test_a_second_rotation_does_not_prolong_the_first_key(tmp_path: Path) -> None:
    hands = Hands()
    keys = opened(tmp_path / "keys", hands)
    first = keys.current
    keys.rotate(keep_seconds=100)
    second = keys.current
    keys.rotate(keep_seconds=1000)
    hands.at += 100 + NOTICE_SECONDS
    assert keys.secret(first.id) is None
    assert keys.secret(second.id) == second.raw
    hands.at += 900
    keys.rotate(keep_seconds=0)
    assert [len(found) for found in (first.id, keys.current.id)] == [16, 16]
    assert (tmp_path / "keys" / "signing.json").read_text().count("secret") == 1


def test_others_notice_a_rotation_when_they_look_again(tmp_path: Path) -> None:
    hands = Hands()
    keys = opened(tmp_path / "control" / "keys", hands)
    old = keys.current
    rotate_keys(tmp_path / "control", 3600)
    hands.at += LOOK_SECONDS
    assert LOOK_SECONDS <= 5
    assert keys.current.id != old.id
    assert keys.secret(old.id) == old.raw


def test_an_unknown_key_is_looked_for_at_once(tmp_path: Path) -> None:
    """Or a login in one worker would be refused by the next for a second."""
    hands = Hands()
    here, there = opened(tmp_path / "keys", hands), opened(tmp_path / "keys", hands)
    here.secret("none")
    there.rotate(keep_seconds=100)
    assert here.secret(there.current.id) == there.current.raw


def test_keys_in_memory_outlive_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    hands = Hands()
    keys = opened(tmp_path / "keys", hands)
    current = keys.current
    (tmp_path / "keys" / "signing.json").unlink()
    hands.at += LOOK_SECONDS
    assert keys.current == current


@pytest.mark.parametrize("text", ["", "[]", "{}", '[{"id":"a","secret":"00","created_at":1}]'])
def test_damaged_keys_are_refused(tmp_path: Path, text: str) -> None:
    SigningKeys.open(tmp_path / "keys")
    (tmp_path / "keys" / "signing.json").write_text(text)
    with pytest.raises(StartupError, match="not signing keys"):
        SigningKeys.open(tmp_path / "keys")


@pytest.mark.parametrize("name", ["signing.json", "service.key", "."])
def test_secrets_that_others_can_read_are_refused(tmp_path: Path, name: str) -> None:
    SigningKeys.open(tmp_path / "keys")
    os.chmod(tmp_path / "keys" / name, 0o755)
    with pytest.raises(StartupError, match="chmod"):
        SigningKeys.open(tmp_path / "keys")


def test_the_service_key_is_known_by_its_whole_text(tmp_path: Path) -> None:
    keys = SigningKeys.open(tmp_path / "keys")
    text = (tmp_path / "keys" / "service.key").read_text().strip()
    assert keys.is_service_key(text)
    for wrong in ("", text[:-1], text + "x", text.upper() + "é", "\ud800", keys.current.secret):
        assert not keys.is_service_key(wrong)
    (tmp_path / "keys" / "service.key").write_text(text[: KEY_BYTES - 1])
    with pytest.raises(StartupError, match="shorter than"):
        SigningKeys.open(tmp_path / "keys")


def test_a_crash_while_writing_leaves_the_old_keys(tmp_path: Path) -> None:
    keys = SigningKeys.open(tmp_path / "keys")
    (tmp_path / "keys" / ".signing.json.draft").write_text("half a fi")
    assert SigningKeys.open(tmp_path / "keys").current == keys.current
    keys.rotate(keep_seconds=10)
    assert SigningKeys.open(tmp_path / "keys").current == keys.current
    assert not (tmp_path / "keys" / ".signing.json.draft").exists()
