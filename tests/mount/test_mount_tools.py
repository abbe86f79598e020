"""What programs do with files, on a mount."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from pathlib import Path

import pytest
from limits import wait_for
from mounts import Mount, sh

from gfs.client.sync import SyncClient

MIB = 1 << 20


def test_what_the_library_stores_is_read_and_the_other_way_round(
    one: Mount, here: Path, client: SyncClient
) -> None:
    data = os.urandom(3 * MIB + 17)
    name = f"/{here.name}"
    client.put(data, f"{name}/large")
    client.put(b"small", f"{name}/d/small")
    assert sh("ls -R", here) == ".:\nd\nlarge\n\n./d:\nsmall\n"
    assert (here / "large").read_bytes() == data
    assert sh("cat d/small", here) == "small"
    (here / "d" / "made").write_bytes(data[:99])
    (here / "d" / "larger").write_bytes(3 * data)
    assert client.get(f"{name}/d/made") == data[:99]
    assert client.get(f"{name}/d/larger") == 3 * data
    assert {entry.path for entry in client.list(f"{name}/d")} == {
        f"{name}/d/{each}" for each in ("small", "made", "larger")
    }


def test_files_are_copied_moved_packed_and_removed(here: Path, tmp_path: Path) -> None:
    sh(
        "mkdir -p tree/a/b; seq 100000 >tree/numbers; seq 9 >tree/a/b/few; ln -s a/b tree/link",
        tmp_path,
    )
    sh(
        "chmod 640 tree/numbers; chmod 700 tree/a; touch -d 2001-02-03T04:05:06 tree/a/b/few",
        tmp_path,
    )
    (tmp_path / "tree" / "hole").touch()
    os.truncate(tmp_path / "tree" / "hole", 5 * MIB)
    tree = tmp_path / "tree"
    show = r"find . -type f -printf '%P %s %m %U %G %Ts\n' -o -printf '%P %y %m %U %G %l\n' | sort"
    sh(f"cp -a {tree} copied && diff -r --no-dereference {tree} copied", here)
    assert sh(show, here / "copied") == sh(show, tree)
    sh(f"tar -C {tree} -cf - . | tar -C {here} -xf - --one-top-level=unpacked", here)
    sh(f"diff -r --no-dereference {tree} unpacked && mv unpacked moved && ls moved/a/b", here)
    sh("tar -C moved -cf packed.tar . && tar -tf packed.tar | grep few && rm -r moved copied", here)
    sh(f"mv packed.tar {tmp_path} && rmdir nothing || mkdir nothing && rmdir nothing", here)
    assert sh("ls -A", here) == ""


def test_times_modes_and_owners_are_kept_in_the_cluster(one: Mount, two: Mount, here: Path) -> None:
    sh("echo x >f; mkdir d; chown 12:34 f d; chmod 4751 f; chmod 1777 d; ln -s nowhere s", here)
    sh("touch -m -d @1000000000.123456789 f; touch -a -d @1100000000 f; touch -d @7 d", here)
    there = two.path / here.name
    for at in (here, there):
        assert sh("stat -c '%n %A %u %g' *", at) == (
            "d drwxrwxrwt 12 34\nf -rwsr-x--x 12 34\ns lrwxrwxrwx 0 0\n"
        )
        found = (at / "f").stat()
        assert (found.st_mtime_ns, found.st_atime) == (1_000_000_000_123_456_789, 1_100_000_000)
        assert (at / "d").stat().st_mtime == 7
        assert os.readlink(at / "s") == "nowhere"
    sh("echo y >>f", here)
    assert stat.S_IMODE((here / "f").stat().st_mode) == 0o751  # who writes it takes the privilege
    assert (here / "f").stat().st_mtime > 1_600_000_000


def test_a_directory_is_changed_by_each_name_that_comes_or_goes(
    two: Mount, here: Path, client: SyncClient
) -> None:
    """And by nothing else: not when what is in a file is written again."""
    there = two.path / here.name
    (here / "d").mkdir()
    (here / "e").mkdir()

    def change(command: str, *directories: str) -> None:
        sh("touch -d @7 d e", here)
        assert {path.stat().st_mtime for path in (here / "d", here / "e")} == {7}
        sh(command, here)
        wait_for(lambda: times(there) == times(here), "the other machine to see it")
        assert [name for name in ("d", "e") if times(here)[name] != 7] == [*directories]

    def times(at: Path) -> dict[str, float]:
        return {name: (at / name).stat().st_mtime for name in ("d", "e")}

    change("echo x >d/f", "d")
    change("echo longer >>d/f; echo y >d/f; chmod 600 d/f; touch d/f; truncate -s 0 d/f; cat d/f")
    change("mv d/f e/f", "d", "e")
    change("echo new >d/new; mv d/new e/f", "d", "e")
    change("mv e/f e/g", "e")
    change("mkdir e/below; touch e/below/deep", "e")
    change("touch e/below/further; chmod 700 d; chown 3 e")
    change("rm e/g; ln -s nowhere d/link", "d", "e")
    change("rm -r e/below", "e")
    sh("touch -d @7 d e", here)
    client.put(b"x", f"/{here.name}/d/theirs")
    wait_for(lambda: times(here)["d"] != 7, "the other client's name to be seen")
    assert times(here)["e"] == 7


def test_what_there_is_not_is_refused(here: Path) -> None:
    (here / "f").write_text("x")
    (here / "d" / "full").mkdir(parents=True)
    (here / "empty").mkdir()

    def refused(number: int, function: object, *arguments: object) -> None:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
            function(*arguments)  # type: ignore[operator]
        assert errno.errorcode[caught.value.errno] == errno.errorcode[number]

    refused(errno.EPERM, os.link, here / "f", here / "g")
    refused(errno.EPERM, os.mkfifo, here / "p")
    refused(errno.EPERM, os.mknod, here / "n", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    refused(errno.ENOTSUP, os.setxattr, here / "f", "user.a", b"b")
    refused(errno.ENAMETOOLONG, os.mkdir, here / ("x" * 256))
    refused(errno.EILSEQ, os.mkdir, os.fsencode(here) + b"/\xff")
    refused(errno.ENAMETOOLONG, os.symlink, "x" * 901, here / "s")
    refused(errno.ENOENT, os.stat, here / "nothing")
    refused(errno.ENOTDIR, os.stat, here / "f" / "g")
    refused(errno.EEXIST, os.mkdir, here / "f")
    refused(errno.ENOTEMPTY, os.rmdir, here / "d")
    refused(errno.ENOTDIR, os.rmdir, here / "f")
    refused(errno.EISDIR, os.unlink, here / "d")
    refused(errno.EISDIR, os.rename, here / "f", here / "d")
    refused(errno.ENOTDIR, os.rename, here / "d", here / "f")
    refused(errno.ENOTEMPTY, os.rename, here / "empty", here / "d")
    refused(errno.EINVAL, os.rename, here / "d", here / "d" / "full" / "d")
    os.rename(here / "d" / "full", here / "empty")  # a directory takes the place of an empty one
    assert sh("find . | sort", here) == ".\n./d\n./empty\n./f\n"


def test_extended_attributes_stay_behind_and_who_insists_on_them_fails(
    here: Path, tmp_path: Path
) -> None:
    (tmp_path / "f").write_text("x")
    (tmp_path / "plain").write_text("y")
    try:
        os.setxattr(tmp_path / "f", "user.note", b"z")
    except OSError as error:
        pytest.skip(f"{tmp_path} has none either: {error}")
    there = shlex.quote(str(tmp_path))
    silent = f"cp -a {there}/f a 2>&1; cp -p {there}/f p 2>&1; rsync -a {there}/f r 2>&1"
    assert sh(f"{silent}; rsync -aX {there}/plain . 2>&1; cat a p r plain", here) == "xxxy"
    assert sh("ls -l a | cut -c1-10", here) == "-rw-r--r--\n"
    assert "not supported" in sh(f"cp --preserve=xattr {there}/f c 2>&1", here, code=1)
    assert "not supported" in sh(f"rsync -aX {there}/f s 2>&1", here, code=23)
    packed = f"tar --xattrs -C {there} -cf - f | tar --xattrs -xf - 2>&1"
    assert "user.note" in sh(f"{packed}; cmp f {there}/f", here)


def test_a_file_that_is_deleted_while_open_is_there_until_it_is_closed(
    one: Mount, here: Path
) -> None:
    with open(here / "f", "w+b") as file:
        file.write(b"before")
        file.flush()
        os.unlink(here / "f")
        here.rmdir()
        file.write(b" and after")
        file.flush()
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_nlink == 0
        file.seek(0)
        assert file.read() == b"before and after"
        assert not [name for name in os.listdir(one.path) if name.startswith(".gfs")]
