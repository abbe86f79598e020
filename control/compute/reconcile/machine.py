"""The life of a container, as plain functions over its row.

::

    pending ──▶ initializing ──▶ running        stop, from any of them ──▶ stopped
       │             │              │           start, from stopped or failed ──▶ pending
       └─────────────┴──────────────┴──▶ failed

A run that begins again (because of the backend, or of new mounts) goes back to pending or
initializing. A container that is lost has failed, also if it was stopped; a failed one that
is seen to run is followed again, by way of initializing.

Requests change the desired state. A sighting changes the status if it is of that state:
one of an older generation, or of a container that should be stopped, is outdated. The
driver calls :func:`plan` for the next call of the backend; everything here can be repeated,
in any order of events, with the same result.
"""

from __future__ import annotations

from enum import Enum, auto

from msgspec.structs import replace

from control.compute.backend import Port, Sighting, Spec, for_users
from control.compute.names import INSTANCE_TYPES
from control.compute.rows import Container, Rule

#: The longest reason that is shown; the log has all of it.
REASON_LENGTH_MAX = 300
LOST = "the backend does not have it any more: start it again, without its files, or delete it"
STOPS_BY_ITSELF = "it stops again and again by itself: look at its logs"


class Step(Enum):
    """The next call of the backend."""

    NOTHING = auto()
    RUN = auto()
    STOP = auto()
    EXPOSE = auto()
    DELETE = auto()


# --- requests of users ------------------------------------------------------------------


def start(row: Container) -> Container:
    """The row unchanged if it runs or is about to."""
    if row.wanted == "running" and row.status != "failed":
        return row
    return _as_new_run(replace(row, wanted="running"))


def stop(row: Container) -> Container:
    """The row unchanged if it is stopped."""
    if row.wanted == "stopped":
        return row
    return replace(
        row,
        wanted="stopped",
        revision=row.revision + 1,
        status="stopped",
        reason="",
        external_ip="",
    )


def mount(row: Container, paths: tuple[str, ...]) -> tuple[Container, bool]:
    """The row with these mount paths, and whether it is restarted for them."""
    changed = replace(row, mount_paths=paths)
    if row.wanted != "running" or row.status == "failed":
        return changed, False
    return _as_new_run(changed), row.status in ("running", "initializing")


def expose(row: Container, *, ssh_enabled: bool, rules: tuple[Rule, ...]) -> Container:
    """The row with this exposure; unchanged if it has that already."""
    if row.ssh_enabled == ssh_enabled and row.rules == rules:
        return row
    return replace(row, ssh_enabled=ssh_enabled, rules=rules, exposure=row.exposure + 1)


def withdraw_key(row: Container, line: str) -> Container:
    """The row without this line of authorized_keys; unchanged if it has no such line. A
    running container is not restarted for it."""
    left = tuple(each for each in row.ssh_keys if each != line)
    if left == row.ssh_keys:
        return row
    return replace(row, ssh_keys=left, exposure=row.exposure + 1)


def _as_new_run(row: Container) -> Container:
    return replace(
        row,
        generation=row.generation + 1,
        revision=row.revision + 1,
        status="pending",
        reason="",
        external_ip="",
        refused=False,
    )


# --- sightings --------------------------------------------------------------------------


def follow(row: Container, sighting: Sighting) -> list[Container]:
    """The rows that this sighting leads to, one for each status on the way."""
    if row.wanted == "stopped" and row.applied == row.revision:
        # It exists, so it is not lost, or not any more.
        return [replace(row, status="stopped", reason="")]
    if not is_current(row, sighting) or row.refused or sighting.phase == "stopped":
        return []
    reason = one_line(sighting.reason)
    row = replace(row, seen=True) if not row.seen else row
    found = replace(row, status=sighting.phase, reason=reason, external_ip=sighting.external_ip)
    if row.status in ("pending", "failed") and sighting.phase == "running":
        # It was faster than the reports; users still see each status.
        return [replace(row, status="initializing", reason=""), found]
    return [found]


def is_current(row: Container, sighting: Sighting) -> bool:
    """Whether the sighting is of the desired state."""
    if row.wanted != "running":
        return False
    if sighting.generation == 0:
        return row.applied == row.revision
    return sighting.generation == row.generation


def has_stopped(row: Container, sighting: Sighting) -> bool:
    """Whether the desired run itself has ended by itself."""
    if row.wanted != "running" or row.applied < row.revision or sighting.phase != "stopped":
        return False
    if sighting.generation == 0:
        # There is no run. A run that was seen before is over; one that was not seen may
        # still begin.
        return row.status in ("initializing", "running")
    return row.status != "failed" and sighting.generation == row.generation


def run_again(row: Container) -> Container:
    return _as_new_run(row)


def has_drifted(row: Container, sighting: Sighting | None) -> bool:
    """Whether the observed state differs from the last call of the backend. Only valid while
    no call is under way, since sightings lag a little behind calls."""
    if row.applied < row.revision or row.wanted == "deleted":
        return False
    if row.wanted == "stopped":
        return sighting is not None and sighting.phase not in ("stopped", "failed")
    if row.status == "failed":
        return False
    if sighting is None:
        return not row.seen  # otherwise it is lost
    return sighting.generation not in (0, row.generation) or sighting.phase == "stopped"


def is_lost(row: Container) -> bool:
    """Whether it should exist, given that nothing of it exists."""
    return (
        row.wanted != "deleted"
        and row.seen
        and row.applied == row.revision
        and row.status != "failed"
    )


# --- calls of the backend ---------------------------------------------------------------


def plan(row: Container, exposed: tuple[int, int] | None, *, again: bool = False) -> Step:
    """The next step.

    Args:
        exposed: the generation and exposure of this driver's last call of expose.
        again: whether the last call had no effect.
    """
    if row.wanted == "deleted":
        return Step.DELETE
    if row.applied < row.revision or again:
        return Step.RUN if row.wanted == "running" else Step.STOP
    if row.wanted == "running" and row.status != "failed" and exposed != exposure(row):
        return Step.EXPOSE
    return Step.NOTHING


def exposure(row: Container) -> tuple[int, int]:
    return row.generation, row.exposure


def applied(row: Container, revision: int) -> Container:
    """The row after the backend has applied ``revision``; there may be a newer one."""
    return replace(row, applied=max(row.applied, revision))


def fail(row: Container, reason: str, *, refused: bool = False) -> Container:
    """The row as failed. If ``refused``, sightings do not count until it is started again."""
    return replace(
        row,
        status="failed",
        reason=one_line(reason),
        external_ip="",
        applied=row.revision,
        refused=refused,
    )


def waits_for(row: Container, reason: str) -> Container:
    """The row with the reason why it has not started yet."""
    return replace(row, reason=one_line(reason))


def spec(row: Container, image: str) -> Spec:
    kind = INSTANCE_TYPES[row.instance_type]
    return Spec(
        id=row.id,
        user_id=row.user_id,
        name=row.name,
        image=image,
        architecture=kind.architecture,
        cpus=kind.cpus,
        memory_mb=row.memory_mb,
        storage_gb=row.storage_gb,
        ssh_keys=row.ssh_keys,
        ssh_enabled=row.ssh_enabled,
        mount_paths=row.mount_paths,
        ports=tuple(Port(rule.port, rule.target_port) for rule in row.rules),
        generation=row.generation,
        external_ip=row.external_ip,
    )


def one_line(text: str) -> str:
    return " ".join(for_users(text).split())[:REASON_LENGTH_MAX]
