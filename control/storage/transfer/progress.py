"""The progress of transfers, for the users who started them: Server-Sent Events.

A few times a second one task writes to :class:`Volatile` how far the transfers with an id
are; there every worker process finds it, and each listener reads it as often. While bytes
move neither waits for the other, and a transfer only counts its bytes.

Clients stop listening when their upload is answered. So the answer is sent after the
listeners of all workers have sent the last event: each registers in :class:`Volatile`
and unregisters after its last event. The answer waits only a second for a listener
whose client reads nothing.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self
from weakref import WeakValueDictionary

import msgspec
import trio

from control.api import BadRequest, Call, Control, Forbidden, Volatile
from control.api.internals import Metrics
from gfs.errors import GfsError

log = logging.getLogger(__name__)

PUBLISH_SECONDS = 0.2
POLL_SECONDS = 0.2
#: How often an upload that has all bytes looks whether its listeners have the end.
END_POLL_SECONDS = 0.02
#: How long it waits for them at most.
HEARD_SECONDS = 1.0
#: How long the last state is kept for late listeners.
KEEP_SECONDS = 60.0
#: The process of a state that was not renewed for this long is dead: no transfer stalls
#: longer.
LIVE_SECONDS = 150.0
#: How long a listener waits for its transfer to begin.
WAIT_SECONDS = 600.0
#: Listeners of one transfer; its end waits for the latest of them.
LISTENERS_MAX = 64
#: How often a comment is sent, since proxies close connections that are silent.
KEEP_ALIVE_SECONDS = 15.0

_KIND = "transfer"
_LISTENERS = "transfer-listeners"
_id = re.compile(r"[!-~]{1,128}")


class State(msgspec.Struct, array_like=True, frozen=True):
    user_id: str
    direction: str
    bytes: int
    total: int
    done: bool = False
    error: str = ""


def check_id(transfer_id: str) -> str:
    if not _id.fullmatch(transfer_id):
        raise BadRequest("id: 1 to 128 visible ASCII characters")
    return transfer_id


class Transfers:
    """Creates transfers, and publishes the progress of those that have an id."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._published: set[Transfer] = set()
        self._idle = trio.lowlevel.ParkingLot()
        self._ends: WeakValueDictionary[str, trio.Event] = WeakValueDictionary()

    def end(self, transfer_id: str) -> trio.Event:
        """An event that is set when the transfer ends, if it is of this process."""
        return self._ends.setdefault(transfer_id, trio.Event())

    def begin(self, call: Call, query_id: str, direction: str, total: int = 0) -> Transfer:
        """``query_id`` is the parameter ``id``; without it the header counts.

        Raises BadRequest. Only users who are logged in can listen, so the transfers of
        others are not published, nor are HEAD requests, which transfer nothing.
        """
        given = query_id or call.header("X-Transfer-Id") or ""
        if given:
            check_id(given)
        if call.method == "HEAD":
            given = ""
        user_id = call.principal.user_id if call.principal is not None else ""
        return Transfer(self, self._control, given if user_id else "", user_id, direction, total)

    def add(self, transfer: Transfer) -> None:
        self._published.add(transfer)
        self._idle.unpark_all()

    def remove(self, transfer: Transfer) -> None:
        self._published.discard(transfer)

    def note_end(self, transfer_id: str) -> None:
        if transfer_id in self._ends:
            self._ends.pop(transfer_id).set()

    async def run(self) -> None:
        """Publish the state of each transfer that has moved since the last time."""
        while True:
            if not self._published:
                await self._idle.park()
            for transfer in list(self._published):
                transfer.publish()
            await trio.sleep(PUBLISH_SECONDS)


class Transfer:
    """One upload or download under way. It is counted, and published if it has an id.

    To be used in a ``with`` statement: if the block raises, the transfer has failed.
    """

    def __init__(
        self,
        transfers: Transfers,
        control: Control,
        transfer_id: str,
        user_id: str,
        direction: str,
        total: int,
    ) -> None:
        self._transfers = transfers
        self._metrics: Metrics = control.metrics
        self._volatile: Volatile = control.volatile
        self._counter = self._metrics.received if direction == "upload" else self._metrics.sent
        self._id = transfer_id
        self._user_id = user_id
        self._direction = direction
        self._last: State | None = None
        self._renewed = 0.0
        self.total = total
        self.bytes = 0

    def __enter__(self) -> Self:
        if self._id and self._is_taken():
            self._id = ""
        self._metrics.transfers.inc()
        if self._id:
            self._transfers.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._metrics.transfers.dec()
        if self._id:
            self._transfers.remove(self)
            self.publish(done=True, error=_failure_text(error))

    async def wait_for_listeners(self) -> None:
        """Wait, at most a second, until all listeners have sent the last event."""
        if not self._id:
            return
        with trio.move_on_after(HEARD_SECONDS):
            while True:
                if not _has_listeners(self._volatile, self._user_id, self._id):
                    return
                await trio.sleep(END_POLL_SECONDS / 2)

    def finish_early(self, error: BaseException | None = None) -> None:
        """End a transfer before its first byte: it was refused, or the client has the file."""
        if self._id and not self._is_taken():
            self.publish(done=True, error=_failure_text(error))

    def moved(self, count: int) -> None:
        """Count ``count`` bytes of the file that were passed on."""
        self.bytes += count
        self._counter.inc(count)

    def publish(self, done: bool = False, error: str = "") -> None:
        """Publish the present state, if it has changed."""
        state = State(self._user_id, self._direction, self.bytes, self.total, done, error)
        now = trio.current_time()
        if state == self._last and now < self._renewed + KEEP_SECONDS:
            return
        self._last, self._renewed = state, now
        ttl = KEEP_SECONDS if done else LIVE_SECONDS
        try:
            self._volatile.put(_KIND, self._id, state, ttl_seconds=ttl)
        except GfsError as problem:
            # A transfer does not fail because its progress cannot be published.
            log.warning("the progress of a transfer cannot be published: %s", problem)
        if done:
            self._transfers.note_end(self._id)

    def _is_taken(self) -> bool:
        """Whether another user's transfer has this id; then this one is not published."""
        try:
            known = self._volatile.get(_KIND, self._id, State)
        except GfsError as problem:
            log.warning("the progress of transfers cannot be read: %s", problem)
            return False
        return known is not None and known.user_id != self._user_id


def _failure_text(error: BaseException | None) -> str:
    if error is None:
        return ""
    if isinstance(error, Exception) and hasattr(error, "status"):
        return str(error)
    if isinstance(error, trio.Cancelled | GeneratorExit | ConnectionError):
        return "the transfer was interrupted"
    return "the transfer failed"


def _has_listeners(volatile: Volatile, user_id: str, transfer_id: str) -> bool:
    try:
        return volatile.get(_LISTENERS, f"{user_id}\0{transfer_id}", list[str]) is not None
    except GfsError:
        return False  # they cannot be answered either


class Listening:
    """One listener: checks that it may follow the transfer, then makes its events."""

    def __init__(
        self, volatile: Volatile, transfers: Transfers, user_id: str, transfer_id: str
    ) -> None:
        """Raises BadRequest, and Forbidden for another user's transfer."""
        self._volatile = volatile
        self._user_id = user_id
        self._id = check_id(transfer_id)
        self._end = transfers.end(transfer_id)
        self._name = secrets.token_hex(8)
        state = self._state()
        if state is not None and state.user_id != user_id:
            raise Forbidden("this transfer is another user's")

    def _state(self) -> State | None:
        return self._volatile.get(_KIND, self._id, State)

    def _register(self, *, listens: bool) -> None:
        """Register or unregister for the transfer, which may be in another process."""

        def work(names: list[str] | None) -> list[str] | None:
            others = [name for name in names or () if name != self._name]
            return [*others, self._name][-LISTENERS_MAX:] if listens else others or None

        key = f"{self._user_id}\0{self._id}"
        try:
            self._volatile.change(_LISTENERS, key, list[str], work, ttl_seconds=LIVE_SECONDS)
        except GfsError as problem:
            log.warning("the progress of a transfer cannot be listened to: %s", problem)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The bytes of the stream. It ends with the transfer, or if that does not begin in time."""
        self._register(listens=True)
        try:
            yield b": listening\n\n"
            began = said = renewed = trio.current_time()
            last: State | None = None
            while True:
                state = self._state()
                now = trio.current_time()
                if state is not None and state.user_id != self._user_id:
                    return
                if state is None and last is not None:
                    # Its process died, so its outcome is not known.
                    state = msgspec.structs.replace(last, done=True, error="the transfer was lost")
                if state is not None and state != last:
                    yield self._event(state)
                    last, said = state, now
                    if state.done:
                        return
                elif state is None and now > began + WAIT_SECONDS:
                    return
                elif now > said + KEEP_ALIVE_SECONDS:
                    yield b": still here\n\n"
                    said = now
                if now > renewed + KEEP_SECONDS:
                    self._register(listens=True)
                    renewed = now
                await self._pause(state)
        finally:
            self._register(listens=False)  # the last event was sent, or the client has left

    async def _pause(self, state: State | None) -> None:
        ends = state is not None and 0 < state.total <= state.bytes
        seconds = END_POLL_SECONDS if ends else POLL_SECONDS
        if self._end.is_set():
            await trio.sleep(seconds)
        else:
            with trio.move_on_after(seconds):
                await self._end.wait()

    def _event(self, state: State) -> bytes:
        message: dict[str, object] = {
            "id": self._id,
            "direction": state.direction,
            "bytes": state.bytes,
            "total": state.total,
            "done": state.done,
        }
        if state.error:
            message["error"] = state.error
        return b"data: " + msgspec.json.encode(message) + b"\n\n"
