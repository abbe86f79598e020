"""The JSON of requests and answers. The documentation is generated from these types."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from control.compute.backend import Backend, Usage
from control.compute.names import (
    HTTPS,
    INSTANCE_TYPE_DEFAULT,
    INSTANCE_TYPES,
    MEMORY_MB_DEFAULT,
    MOUNTS_DEFAULT,
    STORAGE_GB_DEFAULT,
    fingerprint,
)
from control.compute.reconcile.machine import spec
from control.compute.rows import Container, Event, Key, Rule
from control.compute.rows import Status as ContainerStatus

PortNumber = Annotated[int, Meta(description="80, 443 or 8000 to 8999")]
TargetPort = Annotated[int, Meta(description="In the container; the same if left out")]
MountPaths = Annotated[
    list[str],
    Meta(description="Directories whose files are kept: absolute, without .., not nested"),
]
_NOTHING = Usage()


#: The longest list of a request; it is more than a container can have of anything.
LIST_MAX = 1024


class Status(msgspec.Struct):
    """The answer of requests that return nothing else."""

    status: str = "ok"


# --- containers -------------------------------------------------------------------------


class ContainerInfo(msgspec.Struct, kw_only=True):
    id: str
    name: str
    status: ContainerStatus
    hostname: str
    external_ip: Annotated[
        str | UnsetType, Meta(description="The address of its ports; while running, if known")
    ] = UNSET
    ssh_command: Annotated[
        str | UnsetType, Meta(description="Opens a shell in it; while SSH is on")
    ] = UNSET
    memory_mb: int
    memory_used_mb: Annotated[int | UnsetType, Meta(description="While running, if known")] = UNSET
    storage_gb: int
    storage_used_gb: Annotated[float | UnsetType, Meta(description="While running, if known")] = (
        UNSET
    )
    instance_type: str
    created_at: Annotated[str, Meta(description="RFC 3339, in UTC")]
    ssh_enabled: bool
    https_enabled: Annotated[bool, Meta(description="Whether there is a rule for port 443")]
    reason: Annotated[
        str | UnsetType,
        Meta(
            description="Why it has failed or is not deleted yet, what it waits for, or what "
            "does not work in it"
        ),
    ] = UNSET


class AdminContainerInfo(ContainerInfo, kw_only=True):
    owner_id: str
    owner: Annotated[str, Meta(description="The owner's username")]


class AdminListQuery(msgspec.Struct):
    limit: Annotated[int, Meta(ge=1, description="At most so many; all if left out")] | None = None
    before: Annotated[int, Meta(ge=0, description="From `Link`: where the page begins")] | None = (
        None
    )


class ContainerList(msgspec.Struct):
    containers: list[ContainerInfo]


class NewRule(msgspec.Struct):
    port: PortNumber
    target_port: TargetPort | None = None


class NewContainer(msgspec.Struct):
    name: Annotated[str, Meta(description="1 to 64 characters after trimming")]
    #: If it is missing it is empty, which is reported after the name and the number of
    #: containers were checked.
    ssh_key_ids: Annotated[
        list[int],
        Meta(
            description="SSH keys that may log in, at least one",
            max_length=LIST_MAX,
            extra_json_schema={"minItems": 1},
        ),
    ] = []
    instance_type: Annotated[str, Meta(description=f"One of {', '.join(INSTANCE_TYPES)}")] = (
        INSTANCE_TYPE_DEFAULT
    )
    memory_mb: Annotated[int, Meta(description="128 to 65536")] = MEMORY_MB_DEFAULT
    storage_gb: Annotated[int, Meta(description="1 to 1000")] = STORAGE_GB_DEFAULT
    ssh_enabled: bool = False
    enable_ssh: Annotated[bool, Meta(description="As ssh_enabled")] = False
    # A Go client sends null for an empty list.
    mount_paths: Annotated[
        list[str] | None,
        Meta(
            description="Directories whose files are kept: absolute, without .., not nested; "
            f"left out, empty or null, {', '.join(MOUNTS_DEFAULT)}"
        ),
    ] = None
    ingress_rules: Annotated[list[NewRule], Meta(max_length=LIST_MAX)] = []


# --- what belongs to one ----------------------------------------------------------------


class SshInfo(msgspec.Struct):
    ssh_enabled: bool


class MountsInfo(msgspec.Struct):
    mount_paths: MountPaths


class MountsChanged(msgspec.Struct):
    mount_paths: MountPaths
    restarted: Annotated[bool, Meta(description="Whether it was running, and is restarted")]


class RuleInfo(msgspec.Struct):
    id: int
    port: int
    target_port: int
    created_at: int

    @classmethod
    def of(cls, rule: Rule) -> RuleInfo:
        return cls(rule.id, rule.port, rule.target_port, rule.created_at)


class RuleList(msgspec.Struct):
    rules: Annotated[list[RuleInfo], Meta(description="By port")]


# --- keys -------------------------------------------------------------------------------


class KeyInfo(msgspec.Struct):
    id: int
    name: str
    public_key: str
    fingerprint: Annotated[str, Meta(description="`SHA256:…`, as ssh-keygen shows it")]
    created_at: Annotated[str, Meta(description="RFC 3339, in UTC")]

    @classmethod
    def of(cls, key: Key) -> KeyInfo:
        line = key.public_key
        return cls(key.id, key.name, line, fingerprint(line), rfc3339(key.created_at))


class KeyList(msgspec.Struct):
    ssh_keys: list[KeyInfo]


class NewKey(msgspec.Struct):
    name: Annotated[str, Meta(description="1 to 64 characters after trimming")]
    public_key: Annotated[
        str, Meta(description="`type base64 [comment]`, as in the file `id_ed25519.pub`")
    ]


# --- WebSockets -------------------------------------------------------------------------


class FirstMessage(msgspec.Struct, tag_field="type", tag="containers"):
    """The first message of ``/compute/ws``."""

    data: list[ContainerInfo]


class StatusChange(msgspec.Struct):
    container_id: str
    status: str
    external_ip: str | UnsetType = UNSET


class StatusMessage(msgspec.Struct, tag_field="type", tag="container_status"):
    data: StatusChange


class Gone(msgspec.Struct):
    container_id: str


class DeletedMessage(msgspec.Struct, tag_field="type", tag="container_deleted"):
    data: Gone


def message(event: Event) -> StatusMessage | DeletedMessage | None:
    """The message that a listener gets for ``event``, if any."""
    if event.kind == "deleted":
        return DeletedMessage(Gone(event.container_id))
    if event.kind == "status":
        return status_message(event.container_id, event.status, event.external_ip)
    return None


def status_message(container_id: str, status: str, external_ip: str) -> StatusMessage:
    return StatusMessage(StatusChange(container_id, status, external_ip or UNSET))


class LogsQuery(msgspec.Struct):
    tail: Annotated[int, Meta(ge=0, le=10_000, description="Begin with so many lines")] = 100


# --- making them ------------------------------------------------------------------------


def info(row: Container, backend: Backend, image: str, usage: Usage = _NOTHING) -> ContainerInfo:
    return ContainerInfo(**_fields(row, backend, image, usage))


def admin_info(row: Container, backend: Backend, image: str, owner: str) -> AdminContainerInfo:
    return AdminContainerInfo(
        **_fields(row, backend, image, _NOTHING), owner_id=row.user_id, owner=owner
    )


def _fields(row: Container, backend: Backend, image: str, usage: Usage) -> dict[str, Any]:
    asked = spec(row, image)
    fields: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "status": row.shown,
        "hostname": backend.hostname(asked),
        "memory_mb": row.memory_mb,
        "storage_gb": row.storage_gb,
        "instance_type": row.instance_type,
        "created_at": rfc3339(row.created_at),
        "ssh_enabled": row.ssh_enabled,
        "https_enabled": any(rule.port == HTTPS for rule in row.rules),
    }
    if row.external_ip:
        fields["external_ip"] = row.external_ip
    if row.ssh_enabled and (command := backend.ssh_command(asked)):
        fields["ssh_command"] = command
    if row.shown == "running" and usage.memory_mb is not None:
        fields["memory_used_mb"] = usage.memory_mb
    if row.shown == "running" and usage.storage_gb is not None:
        fields["storage_used_gb"] = round(usage.storage_gb, 3)
    if row.reason:
        fields["reason"] = row.reason
    return fields


def rfc3339(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
