"""The module ``health``: ``GET /sse/health``.

Each listener gets the figures at once and then every five seconds. However many listen, the
cluster is looked at once in that time, and so are the containers of each user; and nothing is
looked at while nobody listens, but the process itself.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from control.api import (
    SESSION,
    ApiError,
    Call,
    Connection,
    Content,
    Control,
    Module,
    Response,
    Route,
    TooManyRequests,
    stream_response,
)
from control.health.figures import (
    Load,
    Meter,
    Node,
    Pod,
    nodes_of,
    pod_of,
    pod_of_worker,
    pods_of,
)
from control.health.shared import Shared
from gfs.errors import GfsError

if TYPE_CHECKING:
    from gfs.protocol.messages import StatusReply

STEP_SECONDS = 5.0
#: What is younger is not looked at again: a little less, since no listener wakes up exactly.
FRESH_SECONDS = STEP_SECONDS - 0.1
#: How long one look waits for the master.
LOOK_SECONDS = 3.0
#: A stream ends after this time, and clients open another one: they may have other rights by
#: then.
STREAM_SECONDS = 600.0
#: Streams of one user in one worker process.
STREAMS_MAX = 16
#: How long a worker is shown that has not written its figures again.
WORKER_SECONDS = 3 * STEP_SECONDS
_KIND = "health"


class _Worker(msgspec.Struct, array_like=True, frozen=True):
    at: float
    load: Load


class _Workers(msgspec.Struct, array_like=True, frozen=True):
    """The workers of one machine, by their process ids."""

    of: dict[int, _Worker]


class _Cluster(msgspec.Struct, frozen=True):
    nodes: list[Node]
    #: The processes of the system.
    pods: list[Pod]


class Health(Module):
    """Figures of machines and containers, as events."""

    name = "health"
    summary = "Figures of machines and containers, as they change"

    def __init__(self, control: Control) -> None:
        super().__init__(control)
        self._connection = Connection(control)
        self._meter = Meter()
        self._here = Load()
        self._status: StatusReply | None = None
        self._cluster = Shared(self._look_at_cluster, FRESH_SECONDS)
        self._of_users: dict[str, Shared[list[Pod]]] = {}
        self._open: Counter[str] = Counter()

    def routes(self) -> Sequence[Route]:
        return [
            Route(
                "GET",
                "/sse/health",
                self.stream,
                SESSION,
                "Follow the health of machines and containers",
                answer=Content("text/event-stream", "Events, at once and then every 5 s"),
                errors=[429],
                description=(
                    'Server-sent events without names; `data:` is `{"type", "payload"}`. '
                    "`cluster`: the machines with chunkservers; CPU and memory of the one that "
                    "answers, disks of all. `pods`: the caller's running containers; "
                    "administrators get the processes of the system as well. A figure that is "
                    f"not known is 0. At most {STREAMS_MAX} streams of a user at a time, then "
                    f"the answer is 429; each ends after {STREAM_SECONDS:g} s, and is opened "
                    "again."
                ),
            )
        ]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._connection.hold)
            self._measure()
            task_status.started()
            while True:
                await trio.sleep(STEP_SECONDS)
                self._measure()

    # --- looking ------------------------------------------------------------------------

    def _measure(self) -> None:
        """Measure this machine and this process, and write the latter down for all workers."""
        self._here, own = self._meter.read()
        now = datetime.now(UTC).timestamp()

        def note(known: _Workers | None) -> _Workers:
            others = known.of if known is not None else {}
            fresh = {pid: each for pid, each in others.items() if now - each.at < WORKER_SECONDS}
            return _Workers({**fresh, os.getpid(): _Worker(now, own)})

        # It may be lost, as by a full disk: then this process is not shown for a while.
        with contextlib.suppress(GfsError, OSError):
            self.control.volatile.change(
                _KIND, socket.gethostname(), _Workers, note, ttl_seconds=WORKER_SECONDS
            )

    def _workers(self) -> list[Pod]:
        known = self.control.volatile.get(_KIND, socket.gethostname(), _Workers)
        workers = known.of if known is not None else {}
        return [pod_of_worker(pid, each.load) for pid, each in sorted(workers.items())]

    async def _look_at_cluster(self) -> _Cluster:
        is_fresh = False
        # While the master does not answer, what it said last is shown.
        with contextlib.suppress(GfsError, ApiError), trio.move_on_after(LOOK_SECONDS):
            self._status = await self._connection.fs.status()
            is_fresh = True
        nodes = nodes_of(self._status, self._here, is_fresh=is_fresh)
        return _Cluster(nodes, [*pods_of(self._status), *self._workers()])

    async def _look_at_user(self, user_id: str) -> list[Pod]:
        found: list[Pod] = []
        for ask in self.control.workloads:
            with contextlib.suppress(GfsError, ApiError):
                found += map(pod_of, await ask(user_id))
        return found

    # --- streams ------------------------------------------------------------------------

    async def stream(self, call: Call) -> Response:
        events = self._events(call.user.user_id, is_admin=call.user.is_admin)
        response = await stream_response(events, "text/event-stream")
        response.headers["X-Accel-Buffering"] = "no"
        return response

    async def _events(self, user_id: str, *, is_admin: bool) -> AsyncGenerator[bytes, None]:
        end = trio.current_time() + STREAM_SECONDS
        with self._one_more(user_id) as of_user:
            while (now := trio.current_time()) < end:
                cluster = await self._cluster.get()
                pods = [*(cluster.pods if is_admin else ()), *await of_user.get()]
                yield _event("cluster", nodes=cluster.nodes) + _event("pods", pods=pods)
                await trio.sleep_until(now + STEP_SECONDS)

    @contextlib.contextmanager
    def _one_more(self, user_id: str) -> Iterator[Shared[list[Pod]]]:
        """Count one more stream of the user; what all of them share. Raises TooManyRequests."""
        if self._open[user_id] >= STREAMS_MAX:
            raise TooManyRequests(
                f"you have {STREAMS_MAX} health streams open already: close one first",
                round(STEP_SECONDS),
            )
        self._open[user_id] += 1
        look = partial(self._look_at_user, user_id)
        try:
            yield self._of_users.setdefault(user_id, Shared(look, FRESH_SECONDS))
        finally:
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id], self._of_users[user_id]


def _event(kind: str, **payload: Any) -> bytes:
    timestamp = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    value = {"type": kind, "payload": {"timestamp": timestamp, **payload}}
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
