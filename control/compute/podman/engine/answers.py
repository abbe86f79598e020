"""The types of Podman's answers, with the fields that we read."""

from __future__ import annotations

from pathlib import Path

import msgspec

#: The label with the number of a container's run.
LABEL_GENERATION = "gfs.control/generation"


class Labelled(msgspec.Struct, rename="pascal"):
    """A container, volume or network in a list."""

    labels: dict[str, str] | None = None


class State(msgspec.Struct, rename="pascal"):
    status: str
    pid: int = 0
    exit_code: int = 0
    oom_killed: bool = msgspec.field(name="OOMKilled", default=False)
    error: str = ""
    stopped_by_user: bool = False
    finished_at: str = ""


class Attachment(msgspec.Struct):
    ip: str = msgspec.field(name="IPAddress", default="")


class NetworkSettings(msgspec.Struct, rename="pascal"):
    networks: dict[str, Attachment] | None = None


class Config(msgspec.Struct, rename="pascal"):
    labels: dict[str, str] | None = None


class GraphDriver(msgspec.Struct, rename="pascal"):
    data: dict[str, str] | None = None


class IdMappings(msgspec.Struct):
    users: list[str] | None = msgspec.field(name="UidMap", default=None)


class HostConfig(msgspec.Struct):
    mappings: IdMappings | None = msgspec.field(name="IDMappings", default=None)


class Volume(msgspec.Struct, rename="pascal"):
    mountpoint: str


class Inspected(msgspec.Struct, rename="pascal"):
    """The details of a container."""

    id: str
    state: State
    config: Config
    network_settings: NetworkSettings
    restart_count: int = 0
    #: The commands that were started in it and that Podman has not forgotten.
    exec_ids: list[str] | None = msgspec.field(name="ExecIDs", default=None)
    graph_driver: GraphDriver | None = None
    host_config: HostConfig | None = None

    @property
    def runs(self) -> bool:
        return self.state.status in ("running", "paused")

    @property
    def has_own_users(self) -> bool:
        """Whether root of it is not root of this machine, as it was in an older version."""
        mappings = self.host_config and self.host_config.mappings
        return bool(mappings and mappings.users)

    @property
    def address(self) -> str:
        """The address of its ports while it runs; "" if it has none."""
        networks = self.network_settings.networks or {}
        return next((network.ip for network in networks.values() if network.ip), "")

    @property
    def written(self) -> Path | None:
        """The directory on this machine that Podman has created for the files that it writes."""
        upper = ((self.graph_driver and self.graph_driver.data) or {}).get("UpperDir")
        return Path(upper) if upper else None

    @property
    def generation(self) -> int:
        text = (self.config.labels or {}).get(LABEL_GENERATION, "")
        return int(text) if text.isdecimal() and len(text) < 18 else 0
