"""Who sees what when, on two machines; and what is there after a mount or the cluster died."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness import GFS, Cluster, content
from limits import HANG_SECONDS, wait_for
from mounts import Mount, mounted, sh

from gfs.client.sync import SyncClient

MIB = 1 << 20
CHANGES = 100
LENGTH_MAX = 6 * MIB


@pytest.mark.parametrize("length", [0, 11, 70_000, 5 * MIB])
def test_what_was_closed_is_read_by_who_opens_it_then(here: Path, two: Mount, length: int) -> None:
    """Whatever was in the caches of the other one before."""
    mine, theirs = here / "f", two.path / here.name / "f"
    for turn in range(4):
        data = content(turn, length)
        mine.write_bytes(data)
        assert theirs.read_bytes() == data
        with open(theirs, "ab") as file:
            file.write(b"end")
        assert mine.read_bytes() == data + b"end"
        with open(mine, "r+b") as file:
            file.write(b"start")
        assert theirs.read_bytes() == (b"start" + (data + b"end")[5:])
        os.truncate(theirs, 2)
        assert mine.read_bytes() == b"st"
        (here / "new").write_bytes(data[::-1])
        os.rename(here / "new", mine)
        assert theirs.read_bytes() == data[::-1]
        mine.unlink()
        with pytest.raises(FileNotFoundError):
            theirs.read_bytes()
        mine.write_bytes(b"x")
        os.rename(here, here.with_name("renamed"))
        with pytest.raises(FileNotFoundError):
            theirs.read_bytes()
        os.rename(here.with_name("renamed"), here)
        assert theirs.read_bytes() == b"x"


def test_a_mapping_is_shared_on_its_machine_and_stored_when_it_is_synced_or_closed(
    here: Path, two: Mount
) -> None:
    theirs = two.path / here.name / "f"
    (here / "f").write_bytes(content(1, 5 * MIB))
    expected = bytearray(content(1, 5 * MIB))

    def write(into: mmap.mmap, at: int, data: bytes) -> None:
        into[at : at + len(data)] = expected[at : at + len(data)] = data

    with open(here / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as mine:
        write(mine, 4090, b"over two pages")
        write(mine, 4 * MIB, b"further on")
        with open(here / "f", "r+b") as again, mmap.mmap(again.fileno(), 0) as other:
            assert other[:] == expected
            write(other, 0, b"other")
            assert mine[:5] == b"other"
            assert (here / "f").read_bytes() == expected
        mine.flush()
        assert theirs.read_bytes() == expected
        write(mine, 5 * MIB - 3, b"end")
    assert theirs.read_bytes() == expected
    with open(theirs, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as read:
        assert read[:] == expected


def test_only_one_machine_makes_a_file(here: Path, two: Mount) -> None:
    def make(path: Path, number: int) -> bool:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True

    for number in range(20):
        made = [make(at / f"lock-{number}", number) for at in (here, two.path / here.name)]
        assert made == [True, False]
    assert len(os.listdir(two.path / here.name)) == 20


def names_of(directory: int) -> Iterator[str]:
    """As a program has them that reads a directory little by little; the C library's functions
    read a megabyte ahead."""
    buffer = ctypes.create_string_buffer(4096)
    while (count := ctypes.CDLL(None).getdents64(directory, buffer, len(buffer))) > 0:
        at = 0
        while at < count:
            length = int.from_bytes(buffer.raw[at + 16 : at + 18], sys.byteorder)
            yield buffer.raw[at + 19 : at + length].split(b"\0")[0].decode()
            at += length


def test_a_listing_that_began_before_moves_no_file_to_its_old_name(
    here: Path, client: SyncClient
) -> None:
    client.put_many((f"/{here.name}/d/{number:03}", b"old") for number in range(150))
    (here / "other").mkdir()
    directory = os.open(here / "d", os.O_RDONLY)
    listing = names_of(directory)
    next(listing)
    with (
        open(here / "d" / "140", "wb", buffering=0) as renamed,
        open(here / "d" / "141", "wb", buffering=0) as deleted,
    ):
        renamed.write(b"new")
        deleted.write(b"new")
        os.rename(here / "d" / "140", here / "other" / "renamed")
        os.unlink(here / "d" / "141")
        assert "149" in list(listing)
        os.fsync(renamed.fileno())
    os.close(directory)
    assert client.get(f"/{here.name}/other/renamed") == b"new"

    wait_for_no_hidden(client)


def wait_for_no_hidden(client: SyncClient) -> None:
    """The kernel says when a deleted file was closed, and does not wait for the answer."""

    def are_gone() -> bool:
        return not [e.path for e in client.list("/") if e.path.startswith("/.gfs-unlinked-")]

    wait_for(are_gone, "what was deleted while it was open is gone")


def test_a_directory_that_is_read_again_is_listed_again(here: Path, client: SyncClient) -> None:
    (here / "before").touch()
    directory = os.open(here, os.O_RDONLY)
    assert set(names_of(directory)) == {".", "..", "before"}
    client.put(b"x", f"/{here.name}/after")
    os.lseek(directory, 0, os.SEEK_SET)
    assert set(names_of(directory)) == {".", "..", "after", "before"}
    os.close(directory)


def test_a_listing_that_began_before_says_of_what_was_changed_here_what_it_is_now(
    here: Path, client: SyncClient
) -> None:
    client.put_many((f"/{here.name}/{number:03}", b"old") for number in range(150))
    directory = os.open(here, os.O_RDONLY)
    listing = names_of(directory)
    next(listing)
    os.unlink(here / "140")
    (here / "141").write_bytes(b"longer")
    os.rename(here / "142", here / "143")
    os.unlink(here / "144")
    (here / "144").write_bytes(b"made again")
    seen = list(listing)
    os.close(os.open(here / "140", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    assert [(here / name).stat().st_size for name in ("141", "143", "144")] == [6, 3, 10]
    assert not (here / "142").exists()
    assert {"139", "141", "143", "144", "149"} <= set(seen)
    assert not {"140", "142"} & set(seen)
    os.close(directory)


@pytest.mark.parametrize("length", [10, 9 * MIB])
def test_a_file_that_is_replaced_while_it_is_open_is_there_until_it_is_closed(
    here: Path, two: Mount, client: SyncClient, length: int
) -> None:
    expected = bytearray(content(1, length))
    (here / "f").write_bytes(expected)
    with open(here / "f", "r+b", buffering=0) as file:

        def write(at: int, data: bytes) -> None:
            os.pwrite(file.fileno(), data, at)
            expected[at : at + len(data)] = data

        write(2, b"before")
        (here / "new").write_bytes(b"new")
        os.rename(here / "new", here / "f")
        write(1, b"after")
        assert os.pread(file.fileno(), length, 0) == expected
        os.fsync(file.fileno())
        for at in range(0, length, MIB):  # more than is kept in memory
            write(at, content(at, min(length - at, MIB - 1)))
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), length, 0) == expected
        assert os.fstat(file.fileno()).st_nlink == 0
        assert (here / "f").read_bytes() == b"new"
        assert (two.path / here.name / "f").read_bytes() == b"new"
        assert os.listdir(here) == ["f"]
    assert (here / "f").read_bytes() == b"new"
    wait_for_no_hidden(client)


def test_a_file_deleted_or_replaced_elsewhere_is_stale(
    here: Path, two: Mount, client: SyncClient
) -> None:
    theirs = two.path / here.name
    (here / "f").write_bytes(b"before")
    with open(theirs / "f", "r+b", buffering=0) as file:
        file.write(b"mine")
        client.delete(f"/{here.name}/f")
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
            os.fsync(file.fileno())
        assert caught.value.errno == errno.ESTALE
        with pytest.raises(OSError), file:  # noqa: PT011
            pass
    (here / "f").write_bytes(b"again")
    assert (theirs / "f").read_bytes() == b"again"


@pytest.mark.parametrize("seed", range(3))
def test_random_changes_have_the_effect_that_they_have_on_a_local_disk(
    here: Path, two: Mount, tmp_path: Path, seed: int
) -> None:
    """Any calls in any order; what is there is looked at from both mounts."""
    chance = random.Random(seed)
    files = [open(tmp_path / "f", "w+b", buffering=0), open(here / "f", "w+b", buffering=0)]  # noqa: SIM115
    for turn in range(CHANGES):
        kind = chance.choice(["write", "write", "append", "read", "truncate", "sync", "reopen"])
        at = chance.choice([0, 1, 65_536, chance.randrange(LENGTH_MAX)])
        count = chance.choice([1, 4096, 70_000, chance.randrange(2 * MIB)])
        data = chance.randbytes(count)
        seen = []
        for file in files:
            if kind == "write":
                os.pwrite(file.fileno(), data, at)
            elif kind == "append":
                os.pwrite(file.fileno(), data, os.fstat(file.fileno()).st_size)
            elif kind == "truncate":
                os.ftruncate(file.fileno(), at)
            elif kind == "sync":
                os.fsync(file.fileno())
            seen.append((os.pread(file.fileno(), count, at), os.fstat(file.fileno()).st_size))
        assert seen[0] == seen[1], f"turn {turn}: {kind} of {count} at {at}"
        if kind in ("sync", "reopen"):
            if kind == "reopen":
                for number, file in enumerate(files):
                    file.close()
                    files[number] = open(file.name, "r+b", buffering=0)  # noqa: SIM115
            local = (tmp_path / "f").read_bytes()
            assert (two.path / here.name / "f").read_bytes() == local, f"turn {turn}"
            assert (here / "f").read_bytes() == local
    for file in files:
        file.close()


def test_what_was_synced_is_there_after_kill_9(
    environment: dict[str, str], tmp_path: Path, client: SyncClient
) -> None:
    with mounted(tmp_path / "m", environment) as mount:
        top = mount.path / "killed"
        top.mkdir()
        wanted = {}
        kept = []
        for number, length in enumerate([10, 70_000, 3 * MIB, 20 * MIB]):
            data = content(number, length)
            file = open(top / f"{number}", "wb", buffering=0)  # noqa: SIM115
            kept.append(file)
            file.write(data)
            os.fsync(file.fileno())
            wanted[f"/killed/{number}"] = data
            file.write(b"neither closed nor synced")
        for flag in (os.O_SYNC, os.O_DSYNC):
            number = len(kept)
            opened = os.open(top / f"{number}", os.O_CREAT | os.O_WRONLY | flag)
            kept.append(open(opened, "wb", buffering=0))  # noqa: SIM115
            wanted[f"/killed/{number}"] = content(number, 70_000)
            kept[-1].write(wanted[f"/killed/{number}"])
        mount.kill()
        for file in kept:
            with pytest.raises(OSError):  # noqa: PT011 - nobody answers
                file.close()
        for path, data in wanted.items():
            assert client.get(path)[: len(data)] == data
        mount.start()
        for number in range(len(kept)):
            assert (top / f"{number}").read_bytes().startswith(wanted[f"/killed/{number}"])
        assert mount.stop() == 0


@pytest.mark.parametrize("length", [1000, 9 * MIB])
def test_a_change_that_was_synced_is_there_after_kill_9(
    environment: dict[str, str], tmp_path: Path, client: SyncClient, length: int
) -> None:
    """Of files that were there: changed in place, longer, shorter, emptied, under another name."""
    old, new = content(1, length), content(2, 700)
    wanted = {
        "in-place": old[:100] + new + old[100 + len(new) :],
        "appended": old + new,
        "shorter": old[:300],
        "longer": old + bytes(50_000),
        "emptied": new,
        "renamed": new + old[len(new) :],
        "replaced": new,
    }
    with mounted(tmp_path / "m", environment) as mount:
        top = mount.path / f"changed-{length}"
        top.mkdir()
        kept = []

        def opened(name: str, flags: int = 0) -> int:
            kept.append(os.open(top / name, os.O_RDWR | flags))
            return kept[-1]

        for name in wanted:
            (top / name).write_bytes(old)
        os.rename(top / "renamed", top / "before")
        (top / "beside").write_bytes(b"")
        os.pwrite(opened("in-place"), new, 100)
        os.write(opened("appended", os.O_APPEND), new)
        os.ftruncate(opened("shorter"), 300)
        os.ftruncate(opened("longer"), length + 50_000)
        os.write(opened("emptied", os.O_TRUNC), new)
        os.write(opened("before"), new)
        os.write(opened("beside"), new)
        os.rename(top / "before", top / "renamed")
        for file in kept:
            os.fsync(file)
        os.rename(top / "beside", top / "replaced")
        os.pwrite(kept[0], b"neither closed nor synced", len(wanted["in-place"]))
        mount.kill()
        for file in kept:
            with suppress(OSError):  # nobody answers
                os.close(file)
        paths = {name: f"/{top.name}/{name}" for name in wanted}
        assert client.get(paths["in-place"])[:length] == wanted.pop("in-place")
        for name, data in wanted.items():
            assert client.get(paths[name]) == data, name
        assert sorted(each.path for each in client.list(f"/{top.name}")) == sorted(paths.values())


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "fusermount3"])
def test_what_was_written_is_stored_when_it_ends(
    environment: dict[str, str], tmp_path: Path, client: SyncClient, how: str
) -> None:
    with mounted(tmp_path / "m", environment) as mount:
        small = open(mount.path / f"{how}-small", "wb", buffering=0)  # noqa: SIM115
        large = open(mount.path / f"{how}-large", "wb", buffering=0)  # noqa: SIM115
        small.write(b"open")
        large.write(content(1, 9 * MIB))
        if how == "fusermount3":
            assert "busy" in sh(f"fusermount3 -u {mount.path} 2>&1 || true", tmp_path)
            small.close()
            large.close()
            sh(f"fusermount3 -u {mount.path}", tmp_path)
            assert mount.ended() == 0
        else:
            assert mount.stop(getattr(signal, how)) == 0
            for file in (small, large):
                with suppress(OSError):  # nobody answers any more
                    file.close()
        assert not os.path.ismount(mount.path)
        assert client.get(f"/{how}-small") == b"open"
        assert client.get(f"/{how}-large") == content(1, 9 * MIB)


def test_a_cluster_that_is_away_is_an_error_and_then_all_is_well(
    environment: dict[str, str], cluster: Cluster, tmp_path: Path
) -> None:
    with mounted(tmp_path / "m", {**environment, "GFS_CLIENT_RETRY_SECONDS": "3"}) as mount:
        (mount.path / "before").write_bytes(b"before")
        cluster.stop()
        try:
            with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
                (mount.path / "other").read_bytes()
            assert caught.value.errno == errno.ETIMEDOUT
            with pytest.raises(OSError):  # noqa: PT011
                (mount.path / "made").write_bytes(b"x")
        finally:
            cluster.start()  # others use it, too

        def is_well() -> bool:
            with suppress(OSError):
                assert (mount.path / "before").read_bytes() == b"before"
                (mount.path / "after").write_bytes(b"after")
                return (mount.path / "after").read_bytes() == b"after"
            return False

        wait_for(is_well, "mount that works again")


def test_a_full_cluster_has_no_space_left(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.environment["GFS_CHUNKSERVER_RESERVE_BYTES"] = str(1 << 60)
    environment = {
        **cluster.environment,
        "GFS_STATE": str(cluster.state),
        "GFS_CLIENT_RETRY_SECONDS": "3",
    }
    try:
        cluster.start()
        with mounted(tmp_path / "m", environment) as mount:
            for number, length in enumerate((10, 5 * MIB)):
                with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
                    (mount.path / f"{number}").write_bytes(bytes(length))
                assert caught.value.errno == errno.ENOSPC
    finally:
        cluster.stop()


def test_what_is_missing_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    def refused(*arguments: str, code: int = 2, **changes: str) -> str:
        done = subprocess.run(
            [*GFS, *arguments],
            env={**environment, **changes},
            capture_output=True,
            text=True,
            check=False,
            timeout=HANG_SECONDS,
        )
        assert done.returncode == code
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    (tmp_path / "file").touch()
    here = str(tmp_path)
    assert "make it first" in refused("mount", "/", f"{here}/nothing")
    assert "make it first" in refused("mount", "/", f"{here}/file")
    assert "no such file or directory" in refused("mount", "/nothing", here, code=1)
    assert "'..'" in refused("mount", "/a/../../b", here, code=1)
    down = {"GFS_CLIENT_RETRY_SECONDS": "0.1"}
    away = refused("--master", "127.0.0.1:1", "mount", "/", here, code=3, **down)
    assert "127.0.0.1:1" in away
    assert "/no.key" in refused("mount", "/", here, GFS_KEY_FILE="/no.key", GFS_MASTER="[::1]:1")
    assert "'host' is not an address" in refused("--master", "host", "mount", "/", here)
    with mounted(tmp_path / "m", environment):
        assert "mounted there already" in refused("mount", "/", str(tmp_path / "m"))
