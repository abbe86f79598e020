"""An operator's day: what commands of real processes say, and how they end."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from harness import GFS, Cluster, environment, wait_for


def gfs(
    *arguments: str | Path, code: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*GFS, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(**variables),
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


# --- settings in the environment ------------------------------------------------------


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
    assert f"{given} in the environment is no setting" in done.stderr
    assert f"did you mean {meant}?" in done.stderr or not meant
    assert not (tmp_path / "disk").exists()


def test_a_chunkserver_finds_the_master_in_the_environment(
    cluster: Cluster, tmp_path: Path
) -> None:
    before = len(cluster.json("status")["servers"])
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
                lambda: len(json.loads(cluster.gfs("status", "--json").stdout)["servers"]) > before,
                60,
                "chunkserver that registers",
            )
        finally:
            process.terminate()
            assert process.wait(30) == 0
