"""What has happened to the cluster: the differences between two looks at it.

:func:`facts_of` takes from a status what events are about, :func:`between` makes the events. The
last facts are stored with the events, so that what happens while no process looks is found
afterwards. Plain functions over rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from control.api import Schema, Table, Txn
from gfs.failures import plural

if TYPE_CHECKING:
    from gfs.protocol.messages import StatusReply

DAYS = 7
#: The oldest go first.
EVENTS_MAX = 5000
WARNING, INFO = "warning", "info"


class Event(msgspec.Struct, array_like=True, frozen=True):
    """A row."""

    #: Hexadecimal digits that count up, so that rows are in the order of time.
    id: str
    at: int
    kind: str
    level: str
    text: str
    server: str = ""


class Server(msgspec.Struct, array_like=True, frozen=True):
    address: str
    state: str
    drain: str
    is_maintained: bool
    disks: dict[str, str]


class Facts(msgspec.Struct, array_like=True, frozen=True):
    """The row of the last look."""

    name: str
    servers: dict[str, Server]
    shadows: dict[str, str]
    term: int
    lost: int
    corrupt: int
    below_goal: int
    is_paused: bool
    purged: int
    is_away: bool = False


class Happened(msgspec.Struct, frozen=True):
    kind: str
    level: str
    text: str
    server: str = ""


events = Table("cluster_events", Event, key=lambda row: row.id)
last = Table("cluster_facts", Facts, key=lambda row: row.name)
EVENTS = Schema("cluster", 1, [events, last])
LAST = "last"


def facts_of(status: StatusReply) -> Facts:
    totals = status.totals
    return Facts(
        LAST,
        {
            s.id: Server(
                s.address,
                s.state,
                s.drain,
                s.maintenance_ms > 0,
                {disk.path: disk.state for disk in s.disks},
            )
            for s in status.servers
        },
        {shadow.address: shadow.state for shadow in status.shadows},
        status.term >> 32,
        totals.lost,
        totals.corrupt,
        totals.under_replicated,
        status.repair_paused,
        totals.trash_purged,
    )


def between(before: Facts, now: Facts) -> Iterator[Happened]:
    """What happened between two looks."""
    if before.is_away:
        yield Happened("master_back", INFO, "the master answers again")
    if now.term > before.term:
        yield Happened("promoted", WARNING, f"another master serves, in term {now.term}")
    for id_ in sorted({*before.servers, *now.servers}):
        yield from _of_server(id_, before.servers.get(id_), now.servers.get(id_))
    yield from _of_shadows(before.shadows, now.shadows)
    yield from _of_chunks(before, now)
    if now.is_paused != before.is_paused:
        yield Happened(
            "repair", WARNING if now.is_paused else INFO,
            "repair is paused" if now.is_paused else "repair goes on",
        )  # fmt: skip
    if now.purged > before.purged:
        count = plural(now.purged - before.purged, "deletion")
        yield Happened("trash_purged", WARNING, f"{count} purged early, for want of space")


def _of_server(id_: str, before: Server | None, now: Server | None) -> Iterator[Happened]:
    if now is None:
        assert before is not None
        yield Happened(
            "server_forgotten", INFO, f"chunkserver {id_} ({before.address}) is forgotten", id_
        )
        return
    name = f"chunkserver {id_} ({now.address})"
    if before is None:
        yield Happened("server_new", INFO, f"{name} has joined", id_)
        return
    if now.state != before.state:
        level = INFO if now.state in ("live", "stopped") else WARNING
        yield Happened(f"server_{now.state}", level, f"{name} is {now.state}", id_)
    if now.drain != before.drain:
        words = {"draining": "is being drained", "drained": "is drained: it can be stopped"}
        what = words.get(now.drain, "is not being drained any more")
        yield Happened("drain", INFO, f"{name} {what}", id_)
    if now.is_maintained != before.is_maintained:
        what = "is under maintenance" if now.is_maintained else "is not under maintenance any more"
        yield Happened("maintenance", INFO, f"{name} {what}", id_)
    for path in sorted({*before.disks, *now.disks}):
        old, new = before.disks.get(path), now.disks.get(path)
        if old == new or (old is None and new == "ok" and not before.disks):
            continue
        what = f"is {new}" if old is not None else f"is added ({new})"
        text = f"disk {path} of {name} {what if new is not None else 'is removed'}"
        level = INFO if new in ("ok", "draining", None) else WARNING
        yield Happened("disk", level, text, id_)


def _of_shadows(before: dict[str, str], now: dict[str, str]) -> Iterator[Happened]:
    for address in sorted({*before, *now}):
        old, new = before.get(address), now.get(address)
        if old != new:
            level = WARNING if new == "away" else INFO
            text = f"shadow master {address} {f'is {new}' if new else 'is forgotten'}"
            yield Happened("shadow", level, text)


def _of_chunks(before: Facts, now: Facts) -> Iterator[Happened]:
    """When there are some, more than before, and none any more."""
    for kind, old, new, what in (
        ("lost", before.lost, now.lost, "without any good replica"),
        ("corrupt", before.corrupt, now.corrupt, "with a corrupt replica"),
        ("below_goal", before.below_goal, now.below_goal, "below the replication goal"),
    ):
        if (new and not old) or (new > old and kind == "lost"):
            yield Happened(kind, WARNING, f"{plural(new, 'chunk')} {what}")
        elif old and not new:
            yield Happened(kind, INFO, f"no chunk is {what} any more")


def oldest(now_ns: int) -> str:
    """No event before it is shown or kept."""
    return f"{now_ns - DAYS * 86400 * 10**9:016x}"


def add(txn: Txn, facts: Facts, happened: Sequence[Happened], now_ns: int) -> None:
    """Store what happened, and forget what is old."""
    last.put(txn, facts)
    at = now_ns // 10**9
    for number, each in enumerate(happened):
        id_ = f"{now_ns + number:016x}"
        events.put(txn, Event(id_, at, each.kind, each.level, each.text, each.server))
    excess = events.count(txn) - EVENTS_MAX
    first = oldest(now_ns)
    for row in list(events.scan(txn)):
        if row.id >= first and excess <= 0:
            break
        events.delete(txn, row.id)
        excess -= 1
