"""The rows of compute: the desired state of each container, and the observed one.

A container's row has both. Requests write ``wanted``, ``revision`` and ``generation``; the
driver writes ``applied``, ``status`` and the fields that depend on it
(:mod:`control.compute.reconcile.driver`). The row of a deleted container exists, and counts
in its owner's quota, until nothing is left of it in the backend.

Every change of a container is also an *event*, in the same transaction, with the next
number. A reader of events (the driver, listeners on WebSockets, in any
process) remembers the number of the last event that it has read; looking for more costs some
microseconds. The last :data:`EVENTS_KEPT` are kept: a reader that is further behind reads
the rows again.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from control.api import Schema, Table, Target, Txn
from control.compute.backend import Phase

Wanted = Literal["running", "stopped", "deleted"]
#: What users see.
Status = Literal["pending", "initializing", "running", "stopped", "failed", "deleting"]

KEYS_MAX = 10
EVENTS_KEPT = 4096


class Rule(msgspec.Struct, array_like=True, frozen=True):
    """An ingress rule."""

    id: int
    port: int
    target_port: int
    created_at: int  # unix seconds


class Container(msgspec.Struct, array_like=True, frozen=True):
    id: str  # 8 hex digits
    user_id: str
    name: str
    instance_type: str
    memory_mb: int
    storage_gb: int
    #: Lines for authorized_keys: those that it was created with and that were not deleted since.
    ssh_keys: tuple[str, ...]
    ssh_enabled: bool
    mount_paths: tuple[str, ...]
    rules: tuple[Rule, ...]  # by port
    created_at: int  # unix seconds
    #: Orders containers of the same second.
    serial: int
    wanted: Wanted = "running"
    #: Grows with every start and change of mounts.
    generation: int = 1
    #: Grows with each change that the backend must apply: a start, a stop, new mounts.
    revision: int = 1
    #: The revision that the backend applied last.
    applied: int = 0
    #: Grows when SSH, a key or a rule changes, which happens live.
    exposure: int = 1
    status: Phase = "pending"
    #: Why it failed, or what it waits for.
    reason: str = ""
    external_ip: str = ""
    #: Whether the backend has reported it since it was created.
    seen: bool = False
    #: Whether the backend can never do this; then sightings do not count until the next start.
    refused: bool = False

    @property
    def shown(self) -> Status:
        """Its status for users."""
        return "deleting" if self.wanted == "deleted" else self.status

    @property
    def holds_memory(self) -> bool:
        """Whether its memory counts: also that of a run whose deletion has not ended."""
        return self.wanted == "running" or (self.shown == "deleting" and self.status != "stopped")

    @property
    def target(self) -> Target:
        """What :mod:`control.identity.access` needs to know of it."""
        return Target(self.user_id, self.id, noun="the container")


class Key(msgspec.Struct, array_like=True, frozen=True):
    """An SSH key."""

    id: int
    user_id: str
    name: str
    #: ``type base64 [comment]``.
    public_key: str
    created_at: int  # unix seconds


class Event(msgspec.Struct, array_like=True, frozen=True):
    number: int
    container_id: str
    user_id: str
    #: Users receive "status" and "deleted"; the driver receives "wish", a new revision.
    kind: Literal["status", "deleted", "wish"]
    status: str = ""
    external_ip: str = ""


class Counter(msgspec.Struct, array_like=True, frozen=True):
    name: str
    value: int


class Fact(msgspec.Struct, array_like=True, frozen=True):
    """A value that the installation stores about itself."""

    name: str
    value: str


def numbered(number: int) -> str:
    """A key that sorts as its number does."""
    return f"{number:016d}"


containers = Table(
    "containers", Container, key=lambda c: c.id, indexes={"owner": lambda c: [c.user_id]}
)
keys = Table("keys", Key, key=lambda k: numbered(k.id), indexes={"owner": lambda k: [k.user_id]})
events = Table("events", Event, key=lambda e: numbered(e.number))
counters = Table("counters", Counter, key=lambda c: c.name)
facts = Table("facts", Fact, key=lambda f: f.name)

COMPUTE = Schema("compute", 1, [containers, keys, events, counters, facts])


def count_up(txn: Txn, name: str) -> int:
    """The next number of this name, from 1; no number is returned twice."""
    row = counters.get(txn, name)
    value = (row.value if row is not None else 0) + 1
    counters.put(txn, Counter(name, value))
    return value


def last_event(txn: Txn) -> int:
    """The number of the newest event."""
    row = counters.get(txn, "event")
    return row.value if row is not None else 0


def events_after(txn: Txn, number: int) -> list[Event] | None:
    """The events after this one, oldest first; None if some are not kept any more."""
    last = last_event(txn)
    if number >= last:
        return [] if number == last else None
    found = list(events.scan(txn, after=numbered(number)))
    if not found or found[0].number != number + 1:
        return None
    return found


def add_event(txn: Txn, container: Container, kind: Literal["status", "deleted", "wish"]) -> None:
    number = count_up(txn, "event")
    events.put(
        txn,
        Event(
            number,
            container.id,
            container.user_id,
            kind,
            container.shown if kind == "status" else "",
            container.external_ip if kind == "status" else "",
        ),
    )
    events.delete(txn, numbered(number - EVENTS_KEPT))


def of_user(txn: Txn, user_id: str) -> list[Container]:
    """The containers of the user, newest first."""
    return sorted(containers.by(txn, "owner", user_id), key=lambda c: -c.serial)


def usage(txn: Txn, user_id: str) -> dict[str, int]:
    """The usage of the user, by quota."""
    rows = of_user(txn, user_id)
    return {
        "containers": len(rows),
        "memory_mb": sum(row.memory_mb for row in rows if row.holds_memory),
        "storage_gb": sum(row.storage_gb for row in rows),
    }


def mark_deleted(txn: Txn, container: Container) -> None:
    """Mark it as deleted: the driver deletes it, and then its row. Nothing is changed if it is
    marked already."""
    if container.wanted != "deleted":
        marked = replace(
            container,
            wanted="deleted",
            revision=container.revision + 1,
            reason="",
            external_ip="",
        )
        containers.put(txn, marked)
        add_event(txn, marked, "status")


def remove_deleted(txn: Txn, container_id: str) -> None:
    """Delete the row of a container of which nothing is left, if it is marked as deleted."""
    row = containers.get(txn, container_id)
    if row is not None and row.wanted == "deleted":
        containers.delete(txn, container_id)
        add_event(txn, row, "deleted")


def forget_user(txn: Txn, user_id: str) -> None:
    """Delete all keys of a user who is deleted, and mark all containers."""
    for container in list(containers.by(txn, "owner", user_id)):
        mark_deleted(txn, container)
    for key in list(keys.by(txn, "owner", user_id)):
        keys.delete(txn, numbered(key.id))
