"""Disks of containers, as far as they need no root: numbers, room, refusals."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from control.compute.backend import BackendUnavailable
from control.compute.podman import machine_limits, syscalls
from control.compute.podman.shapes import PTYS
from control.compute.podman.store.disks import GIB, UID_END, USERS, Disks

BASE = 0x70000000
MANY_GB = 10**6


async def test_without_room_a_disk_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    for reserve, size in ((MANY_GB, 1), (0, MANY_GB)):
        disks = Disks(tmp_path / "disks", "abcd", BASE, reserve)
        with pytest.raises(BackendUnavailable, match=f"no room for a disk of {size} GiB"):
            await disks.open("0badcafe", size)
        assert not list((tmp_path / "disks").iterdir())


async def test_a_disk_that_takes_no_more_files_is_reported_in_a_sentence(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "abcd", BASE, 0)
    for number, says in ((errno.ENOSPC, "no room for another file"), (errno.EIO, "Input/output")):

        def fail(number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with pytest.raises(BackendUnavailable, match=says):
            await disks.in_thread(fail)


async def test_a_large_file_is_deleted_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, threads = os.unlink, []

    def noted(*words: Any, **more: Any) -> None:
        threads.append(threading.current_thread())
        unlink(*words, **more)

    monkeypatch.setattr(os, "unlink", noted)
    (tmp_path / "0badcafe.5.ext4.new").touch()
    with pytest.raises(BackendUnavailable, match="no room"):
        await Disks(tmp_path, "abcd", BASE, MANY_GB).open("0badcafe", 1)
    assert len(threads) == 2
    assert threading.main_thread() not in threads
    assert not os.listdir(tmp_path)


async def test_a_deleted_disk_takes_no_space_also_if_something_holds_it(tmp_path: Path) -> None:
    disk = tmp_path / "0badcafe.5.ext4"
    disk.write_bytes(bytes(100_000))
    with disk.open("rb") as held:
        await Disks(tmp_path, "abcd", BASE, 0).remove("0badcafe")
        assert os.fstat(held.fileno()).st_blocks == 0
    assert not os.listdir(tmp_path)


def test_a_disk_says_whose_it_is(tmp_path: Path) -> None:
    for name, words in (("00000001", ["-L", "gfs-aaaaaaaaaaaa"]), ("00000002", [])):
        file = tmp_path / f"{name}.1.ext4"
        subprocess.run(["mkfs.ext4", "-q", *words, file, "2M"], check=True)
    (tmp_path / "00000003.1.ext4.new").touch()
    assert Disks(tmp_path, "a" * 16, BASE, 0).owners() == {"00000001"}
    assert Disks(tmp_path, "b" * 16, BASE, 0).owners() == set()


def test_a_disk_that_is_deleted_meanwhile_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = Disks(tmp_path, "abcd", BASE, 0)
    monkeypatch.setattr(disks, "_files", lambda: [(tmp_path / "gone.1.ext4", "gone", 1)])
    assert disks.room_gb() > 0
    assert disks.owners() == set()


def test_without_a_list_of_calls_no_container_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "listed.json"
    monkeypatch.setattr(syscalls, "LISTS", (listed,))
    with pytest.raises(BackendUnavailable, match="package golang-github-containers-common"):
        syscalls.write_profile(str(tmp_path))
    listed.write_text('{"syscalls": []}')
    written = syscalls.write_profile(str(tmp_path))
    before = written.stat()
    assert syscalls.write_profile(str(tmp_path)).stat() == before
    allowed = {"action": "SCMP_ACT_ALLOW"}
    refused = {"names": ["mount"], "action": "SCMP_ACT_ERRNO"}
    rules = [
        {"names": ["clone", "clone3", "io_setup", "mount", "read", "socketcall"], **allowed},
        refused,
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["setns", "socket"], **allowed},
    ]
    listed.write_text(json.dumps({"syscalls": rules}))
    syscalls.write_profile(str(tmp_path))
    # CLONE_NEW... of the kernel, all of them.
    no_namespace = {"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    audit = {"index": 2, "value": 9, "valueTwo": 0}
    assert json.loads(written.read_text())["syscalls"] == [
        {"names": ["read"], **allowed},
        refused,
        {"names": ["clone"], **allowed, "args": [no_namespace]},
        # AF_UNIX, AF_INET and AF_INET6, and AF_NETLINK without its audit.
        *({"names": ["socket"], **allowed, "args": [family(number)]} for number in (1, 2, 10)),
        {"names": ["socket"], **allowed, "args": [family(16), {**audit, "op": "SCMP_CMP_NE"}]},
        {
            "names": ["socket"],
            "args": [family(16), {**audit, "op": "SCMP_CMP_EQ"}],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": errno.EINVAL,
        },
    ]
    assert sorted(tmp_path.iterdir()) == [listed, written]


def family(number: int) -> dict[str, object]:
    return {"index": 0, "value": number, "valueTwo": 0, "op": "SCMP_CMP_EQ"}


def test_sysctls_that_are_too_low_are_raised_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_limits, "SYSCTLS", tmp_path)
    values = {"kernel/pty/max": 4096, "kernel/pty/reserve": 1024, "kernel/pty/nr": 3000}
    values |= {"fs/inotify/max_user_instances": 128, "fs/file-max": 2**63 - 1}
    for name, value in values.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    (tmp_path / "fs/inotify/max_user_watches").mkdir()  # it cannot be written
    [left] = machine_limits.raise_limits()
    assert left.startswith("fs.inotify.max_user_watches=")
    # For 4,000 containers, and what the kernel keeps for the machine itself.
    assert (tmp_path / "kernel/pty/max").read_text() == str(4000 * PTYS + 1024)
    assert int((tmp_path / "fs/inotify/max_user_instances").read_text()) > 128
    assert (tmp_path / "fs/file-max").read_text() == f"{2**63 - 1}\n"
    assert machine_limits.has_free_pty()
    (tmp_path / "kernel/pty/nr").write_text(str(4000 * PTYS))
    assert not machine_limits.has_free_pty()


def test_room_is_what_is_free_beside_the_reserve_and_what_disks_have(tmp_path: Path) -> None:
    free_gb = shutil.disk_usage(tmp_path).free // GIB
    assert abs(Disks(tmp_path, "abcd", BASE, 0).room_gb() - free_gb) <= 1
    assert abs(Disks(tmp_path, "abcd", BASE, 1).room_gb() - (free_gb - 1)) <= 1
    assert Disks(tmp_path, "abcd", BASE, MANY_GB).room_gb() == 0


def test_no_two_containers_have_the_same_users(tmp_path: Path) -> None:
    """Also while their disks are made; and two installations begin at different places."""
    disks = Disks(tmp_path, "abcd", BASE, 0)
    numbers = []
    for index in range(20):
        number = disks._free_number()
        numbers.append(number)
        suffix = ".new" if index % 2 else ""
        (tmp_path / f"{index:08x}.{number}.ext4{suffix}").touch()
    assert len(set(numbers)) == 20
    (tmp_path / f"{7:08x}.{numbers[7]}.ext4.new").unlink()
    assert disks._free_number() == numbers[7]
    assert Disks(tmp_path / "other", "ffff", BASE, 0)._free_number() not in numbers


def test_users_end_where_others_begin(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "abcd", UID_END - 2 * USERS, 0)
    for index in range(2):
        number = disks._free_number()
        assert disks._uid(number) + USERS <= UID_END
        (tmp_path / f"{index:08x}.{number}.ext4").touch()
    with pytest.raises(BackendUnavailable, match="All users"):
        disks._free_number()
