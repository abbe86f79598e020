"""Every subcommand against a cluster of real processes, as a script sees it.

Most run in this process, which saves the start of an interpreter for each;
those about signals, terminals and the environment are processes of their own.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO
from unittest.mock import patch

import pytest
from harness import GFS, Cluster
from limits import HANG_SECONDS, wait_for

from gfs.cli import command

MIB = 1024 * 1024


class Quick(Cluster):
    """A cluster whose subcommands run here, on descriptors of their own."""

    def gfs(
        self,
        *arguments: str | os.PathLike[str],
        input: bytes | None = None,
        code: int | None = 0,
        cwd: Path | None = None,
        retry_seconds: float | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        assert retry_seconds is None
        with contextlib.ExitStack() as stack:
            stack.enter_context(patch.dict(os.environ, {"GFS_STATE": str(self.state)}))
            stack.enter_context(contextlib.chdir(cwd or "."))
            stack.enter_context(stdin_from(input or b""))
            out, err = (
                stack.enter_context(TemporaryFile("w+", errors="backslashreplace"))
                for _ in range(2)
            )
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            ended = command.run([os.fspath(argument) for argument in arguments])
            reported = [_content(file) for file in (out, err)]
        assert code is None or ended == code, f"exit code {ended}: {reported[1].decode()}"
        return subprocess.CompletedProcess(arguments, ended, *reported)


@contextlib.contextmanager
def stdin_from(data: bytes) -> Iterator[None]:
    """Stdin is a file with ``data``, as for ``gfs … < FILE``."""
    kept = os.dup(0)
    with TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        os.dup2(file.fileno(), 0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def _content(file: IO[str]) -> bytes:
    """All of ``file``, also what was written to its descriptor."""
    file.flush()
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Quick(tmp_path_factory.mktemp("cluster"), "--metrics")
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture
def top(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """A remote directory for one test alone."""
    path = "/" + "".join(c if c.isalnum() else "-" for c in request.node.name)
    cluster.gfs("mkdir", path)
    return path


def fails(cluster: Cluster, *arguments: str | Path, code: int = 1, **options: object) -> str:
    """The one line that a failing subcommand says."""
    done = cluster.gfs(*arguments, code=code, **options)  # type: ignore[arg-type]
    reported = done.stderr.decode()
    assert reported.startswith("gfs: "), reported
    assert reported.count("\n") == 1, reported
    return reported


def test_a_file_goes_in_and_out(cluster: Cluster, top: str, tmp_path: Path) -> None:
    data = os.urandom(3 * MIB + 17)
    (tmp_path / "in").write_bytes(data)
    done = cluster.gfs("put", tmp_path / "in", f"{top}/new/parents/file")
    assert (done.stdout, done.stderr) == (b"", b"")
    done = cluster.gfs("get", f"{top}/new/parents/file", tmp_path / "out")
    assert (done.stdout, done.stderr) == (b"", b"")
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("size", [0, 2 * MIB + 17])
def test_stdin_and_stdout(cluster: Cluster, top: str, size: int) -> None:
    data = os.urandom(size)
    cluster.gfs("put", "-", f"{top}/file", input=data)
    assert cluster.gfs("get", f"{top}/file", "-").stdout == data
    assert cluster.gfs("cat", f"{top}/file", f"{top}/file").stdout == data + data
    [found] = cluster.json("cat", f"{top}/file")
    assert base64.b64decode(found["data"]) == data
    assert found["length"] == size


def test_nothing_is_overwritten_without_force(cluster: Cluster, top: str, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"local")
    cluster.gfs("put", "-", f"{top}/file", input=b"first")
    assert f"{top}/file" in fails(cluster, "put", tmp_path / "local", f"{top}/file")
    assert "local" in fails(cluster, "get", f"{top}/file", tmp_path / "local")
    assert (tmp_path / "local").read_bytes() == b"local"
    cluster.gfs("get", "--force", f"{top}/file", tmp_path / "local")
    assert (tmp_path / "local").read_bytes() == b"first"
    cluster.gfs("put", "-f", "-", f"{top}/file", input=b"second")
    assert cluster.gfs("cat", f"{top}/file").stdout == b"second"
    assert [path.name for path in tmp_path.iterdir()] == ["local"]


def test_into_a_directory_as_cp_does(cluster: Cluster, top: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    cluster.gfs("put", tmp_path / "a", top)
    cluster.gfs("put", tmp_path / "a", f"{top}/made/")
    cluster.gfs("put", tmp_path / "a", tmp_path / "b", f"{top}/several")
    assert cluster.gfs("cat", f"{top}/a", f"{top}/made/a", f"{top}/several/b").stdout == b"aab"
    out = tmp_path / "out"
    out.mkdir()
    cluster.gfs("get", f"{top}/a", out)
    (out / "more").mkdir()
    cluster.gfs("get", f"{top}/several/a", f"{top}/several/b", out / "more")
    cluster.gfs("get", f"{top}/several/b", cwd=out)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*")) == [
        *("a", "b", "more", "more/a", "more/b")
    ]
    assert "no name" in fails(cluster, "put", "-", top, input=b"x")


def test_directories(cluster: Cluster, top: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(40):
        path = tree / f"d{number % 4}" / "e" / f"file-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(str(number).encode() * number)
    for length in (65535, 65536, 65537, 1_000_000):
        (tree / f"of-{length}").write_bytes(os.urandom(length))
    (tree / "empty").mkdir()
    assert "-r" in fails(cluster, "put", tree, top)
    cluster.gfs("put", "-r", tree, top)
    assert "-r" in fails(cluster, "get", f"{top}/tree", tmp_path / "x")
    cluster.gfs("get", "-r", f"{top}/tree", tmp_path / "back")
    _assert_same(tree, tmp_path / "back")
    cluster.gfs("get", "-r", f"{top}/tree/empty", tmp_path / "nothing")
    assert (tmp_path / "nothing").is_dir()

    # As with cp: an existing target gets the directory, "/." its contents.
    (tmp_path / "into").mkdir()
    cluster.gfs("get", "-r", f"{top}/tree", tmp_path / "into")
    _assert_same(tree, tmp_path / "into" / "tree")
    cluster.gfs("get", "-r", f"{top}/tree/.", tmp_path / "contents")
    _assert_same(tree, tmp_path / "contents")
    cluster.gfs("put", "-r", f"{tree}/.", f"{top}/contents")
    cluster.gfs("get", "-r", f"{top}/contents", tmp_path / "again")
    _assert_same(tree, tmp_path / "again")

    # What is there already is refused file by file, and the rest is copied.
    cluster.gfs("rm", f"{top}/contents/of-65535")
    (tmp_path / "again" / "of-65535").unlink()
    (tmp_path / "again" / "d0" / "e" / "file-4").write_bytes(b"another")
    for copy in (
        ("put", "-r", f"{tree}/.", f"{top}/contents"),
        ("get", "-r", f"{top}/contents/.", tmp_path / "again"),
    ):
        document = json.loads(cluster.gfs(*copy, "--json", code=1).stdout)
        assert (len(document["files"]), document["failures"]) == (1, 43)
        assert document["files"][0]["length"] == 65535
    assert (tmp_path / "again" / "d0" / "e" / "file-4").read_bytes() == b"another"
    cluster.gfs("get", "-r", "-f", f"{top}/contents/.", tmp_path / "again")
    _assert_same(tree, tmp_path / "again")


def _assert_same(one: Path, other: Path) -> None:
    def content(root: Path) -> dict[str, bytes | None]:
        return {
            str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
            for path in root.rglob("*")
        }

    assert content(one) == content(other)


def test_what_cannot_be_copied_is_reported_and_the_rest_copied(
    cluster: Cluster, top: str, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "good").write_bytes(b"good")
    (tree / "dangling").symlink_to("nothing")
    (tree / os.fsdecode(b"bad-\xff")).write_bytes(b"x")
    os.mkfifo(tree / "pipe")
    done = cluster.gfs("put", "-r", tree, f"{top}/tree", "--json", code=1)
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 3
    assert all(line.startswith("gfs: ") for line in lines)
    document = json.loads(done.stdout)
    assert [file["path"] for file in document["files"]] == [f"{top}/tree/good"]
    assert document["failures"] == 3


def test_transfers_in_json(cluster: Cluster, top: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"12345")
    document = cluster.json("put", tmp_path / "in", f"{top}/file", "--replication", "2")
    [entry] = document["files"]
    assert (entry["path"], entry["length"], entry["replication"]) == (f"{top}/file", 5, 2)
    assert document["bytes"] == 5
    document = cluster.json("get", f"{top}/file", tmp_path / "out")
    [copy] = document["files"]
    assert copy == {"path": f"{top}/file", "target": str(tmp_path / "out"), "length": 5}
    done = cluster.gfs("get", f"{top}/missing", tmp_path / "x", "--json", code=1)
    assert done.stdout == b""
    assert done.stderr.count(b"\n") == 1


def test_a_device_is_not_replaced(cluster: Cluster, top: str) -> None:
    cluster.gfs("put", "-", f"{top}/file", input=b"x")
    cluster.gfs("get", f"{top}/file", "/dev/null")
    assert Path("/dev/null").is_char_device()


def test_a_pipe_is_read_to_its_end(cluster: Cluster, top: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["sh", "-c", f"echo piped > {tmp_path}/pipe"]):
        cluster.gfs("put", tmp_path / "pipe", f"{top}/file")
    assert cluster.gfs("cat", f"{top}/file").stdout == b"piped\n"


#: Wrong input for each subcommand of a client: what is not there, a directory for a file and the
#: reverse, no such server. ``FILE`` is a file and ``DIR`` a directory, both in the file system and
#: local ones; local ones are in the current directory.
FAILING = [
    "put nowhere /x",
    "put FILE /bad-\udcff",
    "put FILE DIR/x",
    "put FILE /FILE/x",
    "put DIR /x",
    "put FILE /DIR",
    "get /nowhere x",
    "get /DIR x",
    "get /FILE no/such/x",
    "get /FILE no/",
    "get /FILE FILE/",
    "get /FILE FILE/x",
    "get --partial /FILE no/such/x",
    "get /FILE /text no",
    "get -r /DIR no/such/x",
    "get -r /DIR no/such/x/",
    "cat /nowhere",
    "cat /DIR",
    "append /DIR FILE",
    "append /x nowhere",
    "append /x DIR",
    "append /FILE/x FILE",
    "records /nowhere",
    "records /DIR",
    "records /FILE",
    "ls /nowhere",
    "stat /nowhere",
    "mkdir /nowhere/deeper",
    "mkdir -p /FILE",
    "rm /nowhere",
    "rm /DIR",
    "rm --trash /nowhere",
    "undelete /nowhere",
    "setrep 2 /nowhere",
    "setrep 2 /DIR",
    "mv /nowhere /x",
    "mv /FILE /DIR/x/",
    "snapshot /nowhere /x",
    "snapshot /FILE /FILE",
    "du /nowhere",
    "mount /nowhere DIR",
    "mount / nowhere",
    "mount / FILE",
    "fsck /nowhere",
    "scrub nowhere",
    "locate /nowhere",
    "locate /DIR",
    "disk add nowhere /x",
    "disk drain nowhere 1",
    "disk remove nowhere 1",
    "disk retry nowhere 1",
    "drain nowhere",
    "key rotate --state nowhere",
    "key retire --state nowhere",
    "key show --state nowhere",
    "backup no/such/x",
    "backup DIR",
    "backup FILE",
    "backup FILE/x",
    "restore nowhere",
    "restore --state nowhere FILE",
    "promote nowhere",
    "failover",
    "failover 127.0.0.1:1",
    "maintenance nowhere on",
    "repair set nothing=1",
    "forget nowhere",
    "down --state nowhere",
    "control export no/such/x",
    "control import nowhere",
]


def test_what_says_an_error_fails(cluster: Cluster, tmp_path: Path) -> None:
    """In one line, which begins with what is wrong; and it writes nothing."""
    (tmp_path / "FILE").write_bytes(b"text\n")
    (tmp_path / "DIR").mkdir()
    (tmp_path / "DIR" / "x").write_bytes(b"")
    cluster.gfs("put", "-f", tmp_path / "FILE", "/FILE")
    cluster.gfs("mkdir", "-p", "/DIR")
    cluster.gfs("put", "-f", tmp_path / "FILE", "/DIR/FILE")

    def everything() -> object:
        return sorted(tmp_path.rglob("*")), cluster.gfs("ls", "-R", "/").stdout

    before = everything()
    for words in FAILING:
        done = cluster.gfs(*words.split(" "), cwd=tmp_path, code=None)
        reported = done.stderr.decode()
        assert done.returncode, (words, reported)
        assert reported.startswith("gfs: "), (words, reported)
        assert reported.count("\n") == 1, (words, reported)
    assert everything() == before


def test_each_subcommand_is_tried_with_wrong_input() -> None:
    """``gfs up`` and servers in the foreground have tests of their own, ``status`` no arguments."""
    tried = {words.split(" ")[0] for words in FAILING}
    ours = {name for commands in command.SECTIONS.values() for name in commands}
    assert ours - tried == {"up", "master", "chunkserver", "status"}


def test_ls(cluster: Cluster, top: str) -> None:
    cluster.gfs("mkdir", "-p", f"{top}/d/e")
    for name in ("b", "a", "d/e/deep"):
        cluster.gfs("put", "-", f"{top}/{name}", input=b"12345")
    assert cluster.gfs("ls", top).stdout == b"a\nb\nd/\n"
    assert cluster.gfs("ls", f"{top}/a").stdout == f"{top}/a\n".encode()
    assert sorted(cluster.gfs("ls", "-R", top).stdout.decode().split()) == [
        *(f"{top}/{name}" for name in ("a", "b", "d/", "d/e/", "d/e/deep"))
    ]
    long = cluster.gfs("ls", "-l", top).stdout.decode().splitlines()
    assert long[0].split()[:4] == ["f", "3", "5", "B"]
    assert long[2].startswith("d")
    listed = cluster.json("ls", top)
    assert [(entry["path"], entry["kind"]) for entry in listed] == [
        *((f"{top}/a", "file"), (f"{top}/b", "file"), (f"{top}/d", "directory"))
    ]
    assert len(cluster.json("ls", "-R", top)) == 5
    cluster.gfs("mkdir", f"{top}/empty")
    assert cluster.json("ls", f"{top}/empty") == []
    assert cluster.gfs("ls", f"{top}/empty").stdout == b""


def test_stat_and_du(cluster: Cluster, top: str) -> None:
    cluster.gfs("put", "-", f"{top}/file", input=b"x" * 1000)
    entry = cluster.json("stat", f"{top}/file")
    assert (entry["kind"], entry["length"], entry["replication"]) == ("file", 1000, 3)
    assert [entry["kind"] for entry in cluster.json("stat", top, f"{top}/file")] == [
        *("directory", "file")
    ]
    reported = cluster.gfs("stat", f"{top}/file").stdout.decode()
    assert "1000 bytes" in reported
    usage = cluster.json("du", top)
    assert (usage["files"], usage["bytes"], usage["replicated_bytes"]) == (1, 1000, 3000)
    reported = cluster.gfs("du", top).stdout.decode()
    assert "1000 B" in reported
    assert "1 file" in reported
    assert "directory" not in reported
    cluster.gfs("mkdir", f"{top}/below")
    assert "1 file, 1 directory" in cluster.gfs("du", top).stdout.decode()


def test_mkdir_rm_mv(cluster: Cluster, top: str) -> None:
    made = cluster.json("mkdir", "-p", f"{top}/a/b")
    assert made["path"] == f"{top}/a/b"
    cluster.gfs("mkdir", "-p", f"{top}/a/b")
    fails(cluster, "mkdir", f"{top}/a/b")
    cluster.gfs("put", "-", f"{top}/file", input=b"file")
    cluster.gfs("mv", f"{top}/file", f"{top}/a")
    moved = cluster.json("mv", f"{top}/a/file", f"{top}/renamed")
    assert moved == {"moved": [{"source": f"{top}/a/file", "target": f"{top}/renamed"}]}
    cluster.gfs("put", "-", f"{top}/other", input=b"other")
    fails(cluster, "mv", f"{top}/other", f"{top}/renamed")
    cluster.gfs("mv", "--force", f"{top}/other", f"{top}/renamed")
    assert cluster.gfs("cat", f"{top}/renamed").stdout == b"other"
    fails(cluster, "mv", f"{top}/renamed", f"{top}/a", f"{top}/missing")
    fails(cluster, "rm", f"{top}/a")
    assert cluster.json("rm", "-r", f"{top}/a") == {"deleted": [f"{top}/a"]}
    fails(cluster, "rm", f"{top}/a")
    cluster.gfs("rm", "-f", f"{top}/a")
    assert cluster.gfs("ls", top).stdout == b"renamed\n"


def test_what_was_deleted_can_be_had_back(cluster: Cluster, top: str) -> None:
    for name in ("d/a", "d/b", "f"):
        cluster.gfs("put", "-", f"{top}/{name}", input=name.encode())
    cluster.gfs("rm", "-r", f"{top}/d", f"{top}/f")
    assert cluster.gfs("ls", top).stdout == b""
    lines = cluster.gfs("ls", "--trash", top).stdout.decode().splitlines()
    assert [line.split("  ")[-1].strip() for line in lines][1] == f"{top}/f"
    assert f"{top}/d/" in lines[0]
    listed = cluster.json("ls", "--trash", f"{top}/f")
    assert [(entry["path"], entry["length"]) for entry in listed] == [(f"{top}/f", 1)]
    # What is left of it in the master's own time, which is not the wall clock's.
    kept_ns = listed[0]["until_ns"] - listed[0]["deleted_ns"]
    assert abs(kept_ns - 3 * 24 * 3600 * 10**9) < HANG_SECONDS * 10**9
    assert "trash:" in cluster.gfs("status").stdout.decode()
    assert cluster.json("du", top)["trash_files"] >= 1
    assert "; deleted: " in cluster.gfs("du", top).stdout.decode()

    assert cluster.json("undelete", f"{top}/d")["path"] == f"{top}/d"
    assert cluster.gfs("cat", f"{top}/d/a", f"{top}/d/b").stdout == b"d/ad/b"
    fails(cluster, "undelete", f"{top}/d")
    cluster.gfs("put", "-", f"{top}/f", input=b"new")
    fails(cluster, "undelete", f"{top}/f")
    cluster.gfs("undelete", f"{top}/f", "--as", f"{top}/x/old")
    assert cluster.gfs("cat", f"{top}/f", f"{top}/x/old").stdout == b"newf"

    cluster.gfs("rm", "--now", f"{top}/f")
    fails(cluster, "undelete", f"{top}/f")
    cluster.gfs("rm", "-r", f"{top}/x", f"{top}/d")
    assert cluster.json("rm", "--trash", f"{top}/d") == {"deleted": [f"{top}/d"]}
    fails(cluster, "rm", "--trash", f"{top}/d")
    fails(cluster, "rm", "--trash", "--now", f"{top}/x")
    cluster.gfs("rm", "--trash", "-r", top)
    assert cluster.json("ls", "--trash", top) == []


@pytest.mark.thin
def test_snapshots(cluster: Cluster, top: str) -> None:
    for name in "ab":
        cluster.gfs("put", "-", f"{top}/src/d/{name}", input=name.encode() * 100_000)
    done = cluster.gfs("snapshot", f"{top}/src", f"{top}/dst")
    assert (done.stdout, done.stderr) == (b"", b"")
    assert "exists already" in fails(cluster, "snapshot", f"{top}/src", f"{top}/dst")
    assert f"is in {top}/src" in fails(cluster, "snapshot", f"{top}/src", f"{top}/src/dst")
    copy = {"source": f"{top}/src/d/a", "target": f"{top}/x/y"}
    counts = {"files": 1, "directories": 0, "bytes": 100_000}
    assert cluster.json("snapshot", "-p", *copy.values()) == copy | counts
    assert b"; shared: 195 KiB" in cluster.gfs("du", f"{top}/dst").stdout
    assert b" of it shared by snapshots" in cluster.gfs("status").stdout
    usage = cluster.json("du", f"{top}/x")
    assert (usage["bytes"], usage["shared_bytes"]) == (100_000, 100_000)
    cluster.gfs("rm", "-r", "--now", f"{top}/src")
    listed = cluster.gfs("ls", "-R", f"{top}/dst").stdout.decode().split()
    assert listed == [f"{top}/dst/{name}" for name in ("d/", "d/a", "d/b")]
    assert cluster.gfs("cat", f"{top}/dst/d/b").stdout == b"b" * 100_000


def test_setrep(cluster: Cluster, top: str) -> None:
    for name in ("a", "d/b"):
        cluster.gfs("put", "-", f"{top}/{name}", input=b"x")
    assert cluster.json("setrep", "2", f"{top}/a") == {"files": 1}
    assert cluster.json("setrep", "-R", "1", top) == {"files": 2}
    assert cluster.json("stat", f"{top}/d/b")["replication"] == 1
    fails(cluster, "setrep", "2", f"{top}/d")
    fails(cluster, "setrep", "65", f"{top}/a")


def test_status(cluster: Cluster) -> None:
    def are_live() -> bool:
        return [server["state"] for server in cluster.json("status")["servers"]] == ["live"] * 3

    wait_for(are_live, "three live servers")
    status = cluster.json("status")
    server = status["servers"][0]
    assert {"address", "rack", "heartbeat_age_ms", "chunks", "disks"} <= set(server)
    assert {"total_bytes", "free_bytes"} <= set(server["disks"][0])
    assert {"files", "chunks", "under_replicated", "corrupt", "lost"} <= set(status["totals"])
    reported = cluster.gfs("status").stdout.decode()
    for server in cluster.ready["chunkservers"]:
        assert server["id"] in reported
        assert server["address"] in reported
    disks = cluster.json("status", "--disks")
    reported = cluster.gfs("status", "--disks").stdout.decode()
    assert len(disks) == 3
    assert all(disk["path"] in reported for disk in disks)


def test_locate_and_fsck(cluster: Cluster, top: str) -> None:
    cluster.gfs("put", "-", f"{top}/file", input=b"x" * 1000)
    wait_for(lambda: b"all is well" in cluster.gfs("fsck", top, code=None).stdout, "all replicas")
    located = cluster.json("locate", f"{top}/file")
    [chunk] = located["chunks"]
    assert (chunk["index"], chunk["length"], len(chunk["replicas"])) == (0, 1000, 3)
    assert {"handle", "version", "lease_ms"} <= set(chunk)
    reported = cluster.gfs("locate", f"{top}/file").stdout.decode()
    assert f"{chunk['handle']:x}" in reported
    report = cluster.json("fsck", top)
    assert (report["files"], report["chunks"], report["damaged"]) == (1, 1, [])


def test_a_closed_stdout_ends_quietly(cluster: Cluster, top: str) -> None:
    cluster.gfs("put", "-", f"{top}/file", input=os.urandom(4 * MIB))
    for arguments in (["cat", f"{top}/file"], ["get", f"{top}/file", "-"], ["status"]):
        receive, send = os.pipe()
        os.close(receive)
        try:
            done = subprocess.run(
                [*GFS, *arguments],
                stdout=send,
                stderr=subprocess.PIPE,
                env={**cluster.environment, "GFS_STATE": str(cluster.state)},
                check=False,
            )
        finally:
            os.close(send)
        assert (done.returncode, done.stderr) == (141, b"")


def test_ctrl_c_leaves_nothing_half_done(cluster: Cluster, top: str) -> None:
    with subprocess.Popen(
        [*GFS, "put", "-", f"{top}/file"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**cluster.environment, "GFS_STATE": str(cluster.state)},
    ) as process:
        assert process.stderr is not None
        process.stdin.write(os.urandom(MIB))
        process.stdin.flush()
        os.set_blocking(process.stdin.fileno(), False)

        def is_read() -> bool:
            """Whether the pipe was emptied, so that it takes a whole piece again."""
            with contextlib.suppress(BlockingIOError):
                return os.write(process.stdin.fileno(), bytes(65536)) == 65536  # type: ignore[union-attr]
            return False

        wait_for(is_read, "reading of stdin")
        process.send_signal(signal.SIGINT)
        reported = process.stderr.read()
        assert process.wait(HANG_SECONDS) == 130
    assert reported == b"gfs: interrupted\n"
    assert cluster.gfs("ls", top).stdout == b""


def test_a_terminal_sees_progress(cluster: Cluster, top: str) -> None:
    """Stderr is a terminal, stdin a pipe that takes its time."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [*GFS, "put", "-", f"{top}/file"],
        stdin=subprocess.PIPE,
        stderr=follower,
        env={**cluster.environment, "GFS_STATE": str(cluster.state), "TERM": "xterm"},
    ) as process:
        os.close(follower)
        process.stdin.write(bytes(3 * MIB))
        process.stdin.flush()
        shown = b""
        while b"3.0 MiB" not in shown:
            shown += os.read(leader, 4096)
        process.stdin.close()
        with contextlib.suppress(OSError):  # EIO: the terminal was closed
            while more := os.read(leader, 4096):
                shown += more
        assert process.wait(HANG_SECONDS) == 0
    os.close(leader)
    assert b"/s" in shown


def test_the_master_can_be_named(cluster: Cluster, top: str, tmp_path: Path) -> None:
    address = cluster.ready["master"]["address"]
    key = cluster.state / "cluster.key"
    for arguments, extra in (
        (["--master", address, "--key-file", str(key), "ls", top], {}),
        (["ls", "--master", address, "--key-file", str(key), top], {}),
        (["ls", top], {"GFS_MASTER": address, "GFS_KEY_FILE": str(key)}),
        (["ls", "--state", str(cluster.state), top], {}),
    ):
        done = subprocess.run(
            [*GFS, *arguments],
            capture_output=True,
            env={**cluster.environment, "GFS_STATE": str(tmp_path), **extra},
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_an_address_of_another_kind_is_named_with_the_one_that_is_meant(
    cluster: Cluster, tmp_path: Path
) -> None:
    facts = cluster.ready
    master, chunkserver = facts["master"]["address"], facts["chunkservers"][0]["address"]
    scrape = facts["master"]["metrics"].removeprefix("http://").partition("/")[0]
    key = cluster.state / "cluster.key"
    for wrong, what in ((chunkserver, "it is a chunkserver"), (scrape, "it speaks HTTP")):
        for state, meant in ((cluster.state, f"is at {master}"), (tmp_path, "gfs status")):
            options = ("--state", state, "--key-file", key, "--master", wrong)
            reported = fails(cluster, *options, "ls", "/")
            for words in (f"gfs: {wrong}: {what}", meant):
                assert words in reported


def test_a_chunkserver_at_another_one_instead_of_the_master_says_so(
    cluster: Cluster, tmp_path: Path
) -> None:
    address = cluster.ready["chunkservers"][0]["address"]
    words = ["chunkserver", f"--dir={tmp_path}", f"--master={address}", "--address=127.0.0.1:0"]
    with subprocess.Popen(
        [*GFS, *words, f"--key-file={cluster.state}/cluster.key"],
        env=cluster.environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if address in line)
        process.terminate()
    assert f"master {address}: it is a chunkserver, not a master" in said


@pytest.mark.thin
def test_a_wrong_key_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("00" * 32)
    (tmp_path / "key").chmod(0o600)
    reported = fails(cluster, "ls", "--key-file", tmp_path / "key", code=2)
    assert "key" in reported
