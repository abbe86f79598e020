"""An operator's day: what commands of real processes say, and how they end."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import forks
import on_disk
import pytest
from harness import GFS, Cluster, environment
from limits import HANG_SECONDS, wait_for
from processes import free_port
from signals import send


def gfs(
    *arguments: str | Path, code: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    done = forks.run(arguments, env=environment(**variables), text=True)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.parametrize(
    ("command", "given", "meant"),
    [
        ("chunkserver", "GFS_CHUNKSERVER_DURABILTY", "GFS_CHUNKSERVER_DURABILITY"),
        ("master", "GFS_CHUNKSERVER_DURABILTY", "GFS_CHUNKSERVER_DURABILITY"),
        ("master", "GFS_MASTR_SYNC", "GFS_MASTER_SYNC"),
        ("control", "GFS_CONTROL_ORIGIN", "GFS_CONTROL_ORIGINS"),
        ("control", "GFS_COMPUTE_BACKED", "GFS_COMPUTE_BACKEND"),
        ("control", "GFS_STORAGE_BACKEND", ""),
    ],
)
def test_a_misspelt_setting_ends_the_start(
    command: str, given: str, meant: str, tmp_path: Path
) -> None:
    arguments = {
        "chunkserver": ["--dir", str(tmp_path / "disk")],
        "master": ["--address", "127.0.0.1:0"],
        "control": ["--bind", "127.0.0.1:0"],
    }[command]
    done = gfs(command, "--state", tmp_path / "state", *arguments, code=2, **{given: "fsync"})
    assert done.stderr.count("\n") == 1
    assert f"{given} in the environment is not a setting" in done.stderr
    assert f"did you mean {meant}?" in done.stderr or not meant
    assert not (tmp_path / "disk").exists()


def test_a_chunkserver_finds_the_master_in_the_environment(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster("--replication", "1", chunkservers=1).start()
    address = cluster.ready["master"]["address"]
    key = f"--key-file={cluster.state / 'cluster.key'}"
    with subprocess.Popen(
        [*GFS, "chunkserver", f"--dir={tmp_path / 'disk'}", key],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(GFS_MASTER=address),
    ) as process:
        try:
            wait_for(
                lambda: len(cluster.json("status")["servers"]) == 2, "chunkserver that registers"
            )
        finally:
            process.terminate()
            assert process.wait(HANG_SECONDS) == 0


def test_rm_deletes_what_it_can_and_reports_the_rest(cluster: Cluster) -> None:
    for name in ("a", "b", "c/d"):
        cluster.gfs("put", "-", f"/rm/{name}", input=b"x")
    done = cluster.gfs("rm", "--json", "/rm/a", "/rm/no", "/rm/c", "/rm/nor", "/rm/b", code=1)
    lines = done.stderr.decode().splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["gfs:"] * 3
    for line, name in zip(lines, ("/rm/no", "/rm/c", "/rm/nor"), strict=True):
        assert name in line
    assert json.loads(done.stdout) == {"deleted": ["/rm/a", "/rm/b"]}
    assert cluster.gfs("ls", "/rm").stdout == b"c/\n"
    done = cluster.gfs("rm", "--trash", "/rm/never", "/rm/a", code=1)
    assert done.stderr.decode() == "gfs: /rm/never is not in the trash\n"
    assert b"/rm/a" not in cluster.gfs("ls", "--trash", "/rm").stdout


def wait_well(cluster: Cluster, command: str, path: str, what: bytes = b"") -> None:
    end = what + b": all is well\n"
    wait_for(lambda: cluster.gfs(command, path, code=None).stdout.endswith(end), f"{end!r}")


def test_fsck_ends_with_1_when_a_file_is_damaged(cluster: Cluster) -> None:
    cluster.gfs("put", "-", "/fsck/good", input=b"x" * 100)
    wait_well(cluster, "fsck", "/fsck")
    cluster.gfs("put", "--replication", "1", "-", "/fsck/bad", input=b"x" * 100)
    damage(cluster, "/fsck/bad")
    done = cluster.gfs("fsck", "/fsck", code=1)
    assert b"/fsck/bad chunk 0" in done.stdout
    assert b"1 file damaged" in done.stdout
    assert cluster.json("fsck", "/fsck", code=1)["damaged"] == ["/fsck/bad"]
    cluster.gfs("rm", "--now", "/fsck/bad")
    wait_well(cluster, "fsck", "/fsck")


def test_fsck_without_verifying_sees_what_is_gone(cluster: Cluster) -> None:
    cluster.gfs("put", "-", "/look/there", input=b"x")
    for name in ("gone", "short"):  # each has a chunk file
        cluster.gfs("put", "--replication", "1", "-", f"/look/{name}", input=b"x" * 100_000)
    wait_well(cluster, "fsck", "/look")
    assert cluster.json("fsck", "--no-verify", "/look")["chunks"] == 3
    on_disk.damage(replica(cluster, "/look/gone")[1], "delete")
    on_disk.damage(replica(cluster, "/look/short")[1], "cut")
    found = cluster.json("fsck", "--no-verify", "/look", code=1)
    assert found["damaged"] == ["/look/gone", "/look/short"]
    cluster.gfs("rm", "-r", "--now", "/look")


def test_scrub_reads_what_is_asked_for_and_reports_damage(cluster: Cluster) -> None:
    cluster.gfs("put", "-", "/scrub/file", input=b"x" * 100)
    # Not before a replica that was left out is made anew.
    wait_well(cluster, "scrub", "/scrub", b"read 3 replicas of 1 chunk (100 B)")
    # With one replica, so that no repair is faster than the next command.
    cluster.gfs("put", "--replication", "1", "-", "/scrub/bad", input=b"x" * 100)
    damaged = damage(cluster, "/scrub/bad")
    for server in cluster.ready["chunkservers"]:
        found = cluster.json("scrub", server["id"], code=int(server["id"] == damaged))["problems"]
        reported = [(one["kind"], one["path"], one["server"]) for one in found]
        assert reported == [("corrupt", "/scrub/bad", damaged)] * (server["id"] == damaged)
    assert b"/scrub/bad" in cluster.gfs("scrub", "/scrub", code=1).stdout
    cluster.gfs("rm", "--now", "/scrub/bad")
    assert b"gfs status" in cluster.gfs("scrub", "nobody", code=1).stderr


def test_repair_and_maintenance_do_as_ordered(cluster: Cluster) -> None:
    before = cluster.json("repair", "status")["settings"]
    assert b"bytes_per_second=1048576" in cluster.gfs("repair", "set", "bytes_per_second=1M").stdout
    cluster.gfs("repair", "set", "bytes_per_second=default")
    assert cluster.json("repair", "status")["settings"] == before
    assert b"not a setting of repair" in cluster.gfs("repair", "set", "speed=1", code=1).stderr
    cluster.gfs("repair", "set", "clones_total=fast", code=2)
    cluster.gfs("repair", "pause")
    assert b"WARNING: repair is paused" in cluster.gfs("status").stdout
    assert cluster.gfs("repair", "resume").stdout.startswith(b"repair is on")

    server = cluster.ready["chunkservers"][0]["id"]
    cluster.gfs("maintenance", server, "on", "--for", "10m")
    assert b"is under maintenance for another" in cluster.gfs("status").stdout
    cluster.gfs("maintenance", server, "off")
    assert b"maintenance" not in cluster.gfs("status").stdout
    cluster.gfs("maintenance", server, "on", "--for", "soon", code=2)
    assert b"gfs drain" in cluster.gfs("forget", server, code=1).stderr
    assert b"no chunkserver or shadow" in cluster.gfs("forget", "no:1", code=1).stderr


def damage(cluster: Cluster, path: str) -> str:
    """Spoil a byte of one replica of a file of one chunk; the server's id."""
    server, found = replica(cluster, path)
    on_disk.damage(found)
    return server


def replica(cluster: Cluster, path: str) -> tuple[str, on_disk.Lies]:
    """A server that has a replica of a file of one chunk, and where that is."""
    [chunk] = cluster.json("locate", path)["chunks"]
    disks = {server["id"]: Path(server["dir"]) for server in cluster.ready["chunkservers"]}
    server = chunk["replicas"][0]["id"]
    return str(server), on_disk.replicas(disks[server])[chunk["handle"]]


def test_status_knows_when_every_certificate_ends(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster("--tls", chunkservers=1).start()
    state, address = tmp_path / "shadow", f"127.0.0.1:{free_port()}"
    state.mkdir()
    shutil.copy(cluster.state / "cluster.key", state)
    arguments = [f"--shadow-of={cluster.ready['master']['address']}", f"--address={address}"]
    with subprocess.Popen(
        [*GFS, "master", f"--state={state}", f"--tls={cluster.state / 'tls'}", *arguments],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    ) as process:
        try:

            def all_ends() -> list[int]:
                status = cluster.json("status")
                servers = [status, *status["servers"], *status["shadows"]]
                return [one["certificate_until_ns"] for one in servers]

            wait_for(lambda: len(all_ends()) == 3 and all(all_ends()), "all certificates")
            assert b"certificates: the first to end" in cluster.gfs("status").stdout
        finally:
            process.terminate()


def test_status_answers_when_no_master_does(cluster: Cluster) -> None:
    """Its machine hangs: the kernel takes the connection, and nobody says hello."""
    pid = cluster.kill("master", signal.SIGSTOP)
    try:
        done = cluster.gfs("status", "--timeout", "2", code=3)
    finally:
        send(pid, signal.SIGCONT)
    address = cluster.ready["master"]["address"]
    line = done.stderr.decode().splitlines()[-1]
    assert line.startswith(f"gfs: no answer from the master at {address} within 2 s: ")
    assert done.stdout == b""
    cluster.gfs("status")
