"""Settings come from four places, the nearer winning, and are refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfs.config import (
    ChunkserverSettings,
    ClientSettings,
    MasterSettings,
    Settings,
    check_environment,
    default_state_directory,
    load,
)
from gfs.errors import SettingsError

ROLES: list[tuple[type[Settings], str]] = [
    (MasterSettings, "master"),
    (ChunkserverSettings, "chunkserver"),
    (ClientSettings, "client"),
]


def load_master(tmp_path: Path, toml: str = "", **more: Any) -> MasterSettings:
    file = tmp_path / "gfs.toml"
    file.write_text(toml, encoding="utf-8")
    return load(MasterSettings, "master", file=file, environment={}, **more)


@pytest.mark.parametrize(("kind", "role"), ROLES)
def test_the_defaults_make_sense(kind: type[Settings], role: str) -> None:
    assert load(kind, role, environment={}) == kind()
    kind().check()


@given(
    file=st.none() | st.integers(1, 10),
    environment=st.none() | st.integers(11, 20),
    flag=st.none() | st.integers(21, 30),
)
def test_flags_over_environment_over_file_over_defaults(
    tmp_path_factory: pytest.TempPathFactory,
    file: int | None,
    environment: int | None,
    flag: int | None,
) -> None:
    path = tmp_path_factory.mktemp("settings") / "gfs.toml"
    path.write_text("" if file is None else f"[master]\nreplication = {file}\n", encoding="utf-8")
    found = load(
        MasterSettings,
        "master",
        file=path,
        environment={} if environment is None else {"GFS_MASTER_REPLICATION": str(environment)},
        flags={"replication": flag, "address": None},
    )
    given_ = [value for value in (flag, environment, file, 3) if value is not None]
    assert found.replication == given_[0]
    assert found.address == MasterSettings().address


def test_the_environment_gives_every_type() -> None:
    found = load(
        MasterSettings,
        "master",
        environment={
            "GFS_MASTER_ADDRESS": "0.0.0.0:1",
            "GFS_MASTER_DEAD_SECONDS": "2.5",
            "GFS_MASTER_SYNC": "false",
            "GFS_MASTER_MAP_BYTES": "1000000",
            # What container platforms set for a service named gfs-master:
            "GFS_MASTER_SERVICE_HOST": "10.0.0.1",
            "GFS_MASTER_PORT": "tcp://10.0.0.1:9400",
        },
    )
    assert (found.address, found.dead_seconds, found.sync) == ("0.0.0.0:1", 2.5, False)


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GFS_CLIENT_PARALLEL_FILES", "3")
    assert load(ClientSettings, "client").parallel_files == 3


def test_each_role_reads_its_own_table(tmp_path: Path) -> None:
    toml = "[chunkserver]\nrack = 'r1'\n[master]\nreplication = 2\n[control]\nanything = 1\n"
    assert load_master(tmp_path, toml).replication == 2


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[master]\nreplicatoin = 2\n", "replicatoin"),
        ("[master]\nreplication = 'many'\n", "replication"),
        ("[master]\nreplication = 0\n", "replication must be 1 to 64"),
        ("[master]\nheartbeat_seconds = 20.0\n", "heartbeat_seconds must be"),
        ("[master]\ndead_seconds = nan\n", "dead_seconds"),
        ("[master]\nlease_margin_seconds = 0.0\n", "lease_margin_seconds must be"),
        ("master = 5\n", "[master] must be a table"),
        ("[master\n", "gfs.toml"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_by_name(
    tmp_path: Path, toml: str, says: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_master(tmp_path, toml)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value).strip()


def test_bytes_that_are_no_text_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "gfs.toml"
    with pytest.raises(SettingsError, match="No such file"):
        load(MasterSettings, "master", file=file, environment={})
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"gfs\.toml"):
        load(MasterSettings, "master", file=file, environment={})


@pytest.mark.parametrize(
    ("kind", "role", "flags", "says"),
    [
        (MasterSettings, "master", {"no_such_flag": 1}, "no_such_flag"),
        (MasterSettings, "master", {"replicas_min": 0}, "replicas_min"),
        (MasterSettings, "master", {"clones_per_server": 0}, "clones_per_server"),
        (MasterSettings, "master", {"clones_per_server": 17}, "clones_per_server must be 1 to 16"),
        (ChunkserverSettings, "chunkserver", {"durability": "hope"}, "durability"),
        (ChunkserverSettings, "chunkserver", {"disk_threads": 0}, "disk_threads"),
        (ClientSettings, "client", {"memory_bytes": 1}, "memory_bytes"),
        (ClientSettings, "client", {"window_bytes": 1}, "window_bytes"),
    ],
)
def test_flags_that_make_no_sense_are_refused_by_name(
    kind: type[Settings], role: str, flags: dict[str, Any], says: str
) -> None:
    with pytest.raises(SettingsError, match=says):
        load(kind, role, environment={}, flags=flags)


def test_a_wrong_variable_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="dead_seconds"):
        load(MasterSettings, "master", environment={"GFS_MASTER_DEAD_SECONDS": "soon"})


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("GFS_CHUNKSERVER_DURABILTY", "GFS_CHUNKSERVER_DURABILITY?"),
        ("GFS_CHUNKSERVR_DURABILITY", "GFS_CHUNKSERVER_DURABILITY?"),
        ("GFS_MASTR", "GFS_MASTER?"),
        ("GFS_CONTRL_BIND", "GFS_CONTROL_…?"),
        ("GFS_CLIENT_RETRY_SECS", "GFS_CLIENT_RETRY_SECONDS?"),
        ("GFS_MASTER_PORT", "GFS_MASTER"),
        ("GFS_WEATHER", "not a setting: Correct it"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest_right_name(given: str, near: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_environment({given: "9500"}, others=["control"])
    assert str(caught.value).startswith(f"{given} in the environment is not a setting: ")
    assert near in str(caught.value)


def test_a_role_refuses_what_is_misspelt_of_its_own() -> None:
    with pytest.raises(SettingsError, match="did you mean GFS_CLIENT_RETRY_SECONDS"):
        load(ClientSettings, "client", environment={"GFS_CLIENT_RETRY_SECS": "3"})
    load(ClientSettings, "client", environment={"GFS_OF_ANOTHER_PROGRAM": "3"})


def test_every_variable_on_a_page_is_known() -> None:
    reported = set()
    root = Path(__file__).parents[2]
    for pattern in ("gfs/**/*.py", "control/**/*.py", "docs/*.md", "README.md", ".ci/run"):
        for path in root.glob(pattern):
            reported |= set(re.findall(r"\bGFS_[A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8")))
    assert {"GFS_MASTER", "GFS_MASTER_SERVICE_HOST", "GFS_MASTER_DEAD_SECONDS"} <= reported
    check_environment(dict.fromkeys(reported, ""), others=["control", "compute"])


def test_what_platforms_set_beside_a_service_is_left_alone() -> None:
    for service in ("GFS", "GFS_MASTER", "GFS_STORE_1"):
        address = "tcp://10.0.0.1:9400"
        check_environment(
            {
                f"{service}_SERVICE_HOST": "10.0.0.1",
                f"{service}_SERVICE_PORT_RPC": "9400",
                f"{service}_PORT": address,
                f"{service}_PORT_9400_TCP": address,
                f"{service}_PORT_9400_TCP_ADDR": "10.0.0.1",
            }
        )


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        MasterSettings().replication = 5  # type: ignore[misc]


def test_where_the_state_is() -> None:
    assert default_state_directory({"GFS_STATE": "/s"}) == Path("/s")
    assert default_state_directory({"XDG_STATE_HOME": "/x"}) == Path("/x/gfs")
    assert default_state_directory({}) == Path.home() / ".local" / "state" / "gfs"
