"""``/metrics``: counters of requests, as Prometheus text.

Each process counts for itself, in the label ``worker``. If several share a port,
each answers for all of them: they count in files of a directory that their parent has
created (:func:`share`); the client library puts the process id into their names. Those of
a dead worker are removed at the next request.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import trio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from control.recent import Recent

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Clients may send any word as a method; all others are counted together.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})
#: Where the client library looks, when it is imported, for the shared directory.
_SHARED = "PROMETHEUS_MULTIPROC_DIR"
_STEP_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


@contextlib.contextmanager
def share(directory: Path) -> Iterator[None]:
    """Let the processes that are started in this block answer for one another.

    The counts are in files below ``directory``, which several parents may share; those
    of parents that were killed are removed.
    """
    for stale in directory.glob("metrics-*"):
        if not _is_alive(stale.name.rpartition("-")[2]):
            shutil.rmtree(stale, ignore_errors=True)
    own = directory / f"metrics-{os.getpid()}"
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = os.environ.get(_SHARED)
    os.environ[_SHARED] = str(own)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SHARED]
        else:
            os.environ[_SHARED] = before
        shutil.rmtree(own, ignore_errors=True)


class Metrics:
    """The counters of one process. The objects of labels are cached, so counting is cheap."""

    def __init__(self) -> None:
        self._shared = Path(os.environ[_SHARED]) if os.environ.get(_SHARED) else None
        self._registry = CollectorRegistry()
        worker = str(os.getpid())
        self._requests = Counter(
            "gfs_control_requests",
            "Requests answered",
            ["method", "route", "status", "worker"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "gfs_control_request_seconds",
            "From the request's head to the start of its answer",
            ["route", "worker"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._bytes = Counter(
            "gfs_control_file_bytes",
            "Bytes of files moved",
            ["direction", "worker"],
            registry=self._registry,
        )
        active = Gauge(
            "gfs_control_transfers_active",
            "Uploads and downloads under way",
            ["worker"],
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._steps = Histogram(
            "gfs_control_loop_step_seconds",
            "What a task computed without a pause, of 5 ms and more; 20 ms are too much",
            ["worker"],
            buckets=_STEP_BUCKETS,
            registry=self._registry,
        ).labels(worker)
        self._walls = Histogram(
            "gfs_control_loop_wall_seconds",
            "What a task took without a pause, of 5 ms and more, waiting included",
            ["worker"],
            buckets=_STEP_BUCKETS,
            registry=self._registry,
        ).labels(worker)
        self._longest = Gauge(
            "gfs_control_loop_step_longest_seconds",
            "The longest of these since the process started",
            ["worker"],
            registry=self._registry,
            multiprocess_mode="livemax",
        ).labels(worker)
        self._longest_seconds = 0.0
        self._worker = worker
        self.transfers = active.labels(worker)
        self.received = self._bytes.labels("upload", worker)
        self.sent = self._bytes.labels("download", worker)
        self._text = Recent(lambda: trio.to_thread.run_sync(self._collect))
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request. ``route`` is the path as declared, so labels stay few."""
        if method not in _METHODS:
            method = "other"
        known = self._children.get((method, route, status))
        if known is None:
            known = (
                self._requests.labels(method, route, str(status), self._worker),
                self._seconds.labels(route, self._worker),
            )
            self._children[method, route, status] = known
        known[0].inc()
        known[1].observe(seconds)

    def note_step(self, seconds: float) -> None:
        """Count a step of a task on the event loop."""
        self._steps.observe(seconds)
        if seconds > self._longest_seconds:
            self._longest_seconds = seconds
            self._longest.set(seconds)

    def note_wall(self, seconds: float) -> None:
        """Count how long a step took by the monotonic clock."""
        self._walls.observe(seconds)

    async def text(self) -> bytes:
        """The text, generated in a thread. For several processes that takes some tenths of a
        second of computing, and the route is public, so it is a recent one."""
        return await self._text.get()

    def _collect(self) -> bytes:
        if self._shared is None:
            return generate_latest(self._registry)
        _remove_dead(self._shared)
        everybody = CollectorRegistry()
        MultiProcessCollector(everybody, str(self._shared))  # type: ignore[no-untyped-call]
        return generate_latest(everybody)


def _remove_dead(directory: Path) -> None:
    """Remove the counts of dead processes: each restart would add files."""
    for path in directory.glob("*_*.db"):
        if not _is_alive(path.stem.rpartition("_")[2]):
            path.unlink(missing_ok=True)


def _is_alive(pid: str) -> bool:
    """Whether the process lives; True, too, for text that is not a process id."""
    if not pid.isdecimal():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
