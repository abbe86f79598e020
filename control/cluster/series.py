"""Numbers over the last hour, in the memory that all processes of the machine share.

A point every ten seconds; each is a fact of its own, which expires after an hour. Rates are of the
REST API and S3, on this machine; the rest is the master's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from control.api import Volatile
from gfs.client import cluster_space

if TYPE_CHECKING:
    from gfs.protocol.messages import RepairReply, StatusReply

STEP_SECONDS = 10
KEPT_SECONDS = 3600
KIND = "cluster"
#: The names of the values, and with that their order in a point.
NAMES = (
    *("upload_bytes_per_second", "download_bytes_per_second", "requests_per_second"),
    *("request_seconds_mean", "request_seconds_p99", "master_seconds"),
    *("used_bytes", "free_bytes", "files", "chunks", "below_goal", "corrupt", "lost"),
    *("repairs_active", "repair_bytes_per_second", "servers_live"),
)

_sample = re.compile(r"(gfs_control_\w+?)(?:\{(.*)\})? (\S+)")
_label = re.compile(r'(\w+)="([^"]*)"')


class Point(msgspec.Struct, array_like=True, frozen=True):
    values: dict[str, float]


class Counters(msgspec.Struct, frozen=True):
    """The sums of what the processes of the API have counted."""

    requests: float
    seconds: float
    upload: float
    download: float
    #: Upper bound of a bucket -> requests that took no longer.
    buckets: dict[float, float]


def counters_of(text: str) -> Counters:
    """From the text of ``/metrics``."""
    sums: dict[str, float] = {}
    buckets: dict[float, float] = {}
    for line in text.splitlines():
        found = _sample.fullmatch(line)
        if found is None:
            continue
        name, labels, value = found[1], dict(_label.findall(found[2] or "")), float(found[3])
        if name == "gfs_control_request_seconds_bucket":
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value
        else:
            name += labels.get("direction", "")
            sums[name] = sums.get(name, 0.0) + value
    return Counters(
        sums.get("gfs_control_request_seconds_count", 0.0),
        sums.get("gfs_control_request_seconds_sum", 0.0),
        sums.get("gfs_control_file_bytes_totalupload", 0.0),
        sums.get("gfs_control_file_bytes_totaldownload", 0.0),
        buckets,
    )


def rates(before: Counters, now: Counters, seconds: float) -> dict[str, float]:
    """What was counted in this time. A process that ended takes its counts with it; then there
    are none until the next point."""
    requests = now.requests - before.requests
    found = {
        "upload_bytes_per_second": (now.upload - before.upload) / seconds,
        "download_bytes_per_second": (now.download - before.download) / seconds,
        "requests_per_second": requests / seconds,
    }
    if min(found.values()) < 0:
        return {}
    if requests > 0:
        found["request_seconds_mean"] = (now.seconds - before.seconds) / requests
        found["request_seconds_p99"] = _quantile(before, now, 0.99 * requests)
    return found


def _quantile(before: Counters, now: Counters, rank: float) -> float:
    """The upper bound of the bucket of this rank; of the last one, its lower bound."""
    bound = 0.0
    for bound_of, count in sorted(now.buckets.items()):
        if bound_of != float("inf"):
            bound = bound_of
        if count - before.buckets.get(bound_of, 0.0) >= rank:
            break
    return bound


def of_master(status: StatusReply, repair: RepairReply, seconds: float) -> dict[str, float]:
    totals = status.totals
    total, free = cluster_space(status.servers)
    return {
        "master_seconds": seconds,
        "used_bytes": total - free,
        "free_bytes": free,
        "files": totals.files,
        "chunks": totals.chunks,
        "below_goal": totals.under_replicated,
        "corrupt": totals.corrupt,
        "lost": totals.lost,
        "repairs_active": totals.repairs_active,
        "repair_bytes_per_second": repair.bytes_per_second,
        "servers_live": sum(server.state == "live" for server in status.servers),
    }


def slot_of(now: float) -> int:
    return int(now) // STEP_SECONDS * STEP_SECONDS


def add(volatile: Volatile, values: Mapping[str, float], now: float) -> None:
    key = f"{slot_of(now)}"
    volatile.put(KIND, key, Point(dict(values)), ttl_seconds=KEPT_SECONDS, now=now)


def read(volatile: Volatile, now: float) -> tuple[list[int], dict[str, list[float | None]]]:
    """The times of the last hour, and the values at each."""
    end = slot_of(now)
    at = list(range(end - KEPT_SECONDS + STEP_SECONDS, end + STEP_SECONDS, STEP_SECONDS))
    points = [volatile.get(KIND, f"{slot}", Point, now=now) for slot in at]
    values = [point.values if point is not None else {} for point in points]
    return at, {name: [each.get(name) for each in values] for name in NAMES}
