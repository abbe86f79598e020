"""The progress of transfers, for the users who started them: Server-Sent Events.

A few times a second one task writes to :class:`Volatile` how far those transfers are
that were given an id; there every worker process finds it, and a listener looks
as often. While bytes move neither waits for the other, and a transfer only counts its
bytes.

Clients stop listening when their upload is answered. So an upload is answered when its
listeners, of all workers, have been sent the end: each says in :class:`Volatile` that it
listens, and takes that back after it has sent the last event. One that takes nothing is
not waited for for long.
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

from control.api import Call, Control
from control.errors import BadRequest, Forbidden
from control.metrics import Metrics
from control.records.volatile import Volatile
from gfs.errors import GfsError

log = logging.getLogger(__name__)

PUBLISH_SECONDS = 0.2
POLL_SECONDS = 0.2
#: An upload that has all bytes waits for its listeners, which look more often then.
END_POLL_SECONDS = 0.02
#: At most so long.
HEARD_SECONDS = 1.0
#: The last state is kept so long, for late listeners.
KEEP_SECONDS = 60.0
#: A state not renewed for so long is of a process that died: nothing stalls longer.
LIVE_SECONDS = 150.0
#: A listener may come this long before its transfer.
WAIT_SECONDS = 600.0
#: Listeners of one transfer; its end waits for the latest of them.
LISTENERS_MAX = 64
#: Proxies close what is silent for longer.
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
    """Makes transfers, and publishes the progress of those that have an id."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._published: set[Transfer] = set()
        self._idle = trio.lowlevel.ParkingLot()
        self._ends: WeakValueDictionary[str, trio.Event] = WeakValueDictionary()

    def end(self, transfer_id: str) -> trio.Event:
        """An event that is set when the transfer ends, if it is of this process."""
        return self._ends.setdefault(transfer_id, trio.Event())

    def begin(self, call: Call, query_id: str, direction: str, total: int = 0) -> Transfer:
        """``query_id`` is the parameter's; the header will do instead.

        Raises BadRequest. Only users who are logged in can listen, so the transfers of
        others are not published; and HEAD transfers nothing.
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
        """Publish what moved, also when it then moves no more."""
        while True:
            if not self._published:
                await self._idle.park()
            for transfer in list(self._published):
                transfer.publish()
            await trio.sleep(PUBLISH_SECONDS)


class Transfer:
    """One upload or download under way: counted, and published if it has an id.

    A ``with`` block: the transfer failed if it ends with an exception.
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
            self.publish(done=True, error=_story(error))

    async def heard(self) -> None:
        """Wait until all who listen have been sent the end, a second at most."""
        if not self._id:
            return
        with trio.move_on_after(HEARD_SECONDS):
            while True:
                if not _has_listeners(self._volatile, self._user_id, self._id):
                    return
                await trio.sleep(END_POLL_SECONDS / 2)

    def finish_early(self, error: BaseException | None = None) -> None:
        """End it before it began: it cannot, or the client has the file already."""
        if self._id and not self._is_taken():
            self.publish(done=True, error=_story(error))

    def moved(self, count: int) -> None:
        """``count`` bytes of the file went on."""
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
        """Whether another user's transfer has this id: then this one is not published."""
        try:
            known = self._volatile.get(_KIND, self._id, State)
        except GfsError as problem:
            log.warning("the progress of transfers cannot be read: %s", problem)
            return False
        return known is not None and known.user_id != self._user_id


def _story(error: BaseException | None) -> str:
    if error is None:
        return ""
    if isinstance(error, Exception) and hasattr(error, "status"):
        return str(error)
    if isinstance(error, trio.Cancelled | GeneratorExit | ConnectionError):
        return "the transfer was broken off"
    return "the transfer failed"


def _has_listeners(volatile: Volatile, user_id: str, transfer_id: str) -> bool:
    try:
        return volatile.get(_LISTENERS, f"{user_id}\0{transfer_id}", list[str]) is not None
    except GfsError:
        return False  # nor can they be answered


class Listening:
    """One listener: what it may hear, and then what it hears."""

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

    def _say(self, *, listens: bool) -> None:
        """Let the transfer, which may be another process's, know whether to wait for this."""

        def work(names: list[str] | None) -> list[str] | None:
            others = [name for name in names or () if name != self._name]
            return [*others, self._name][-LISTENERS_MAX:] if listens else others or None

        key = f"{self._user_id}\0{self._id}"
        try:
            self._volatile.change(_LISTENERS, key, list[str], work, ttl_seconds=LIVE_SECONDS)
        except GfsError as problem:
            log.warning("the progress of a transfer cannot be listened to: %s", problem)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The stream's bytes, until the transfer is over or does not begin in time."""
        self._say(listens=True)
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
                    # Its process died; nobody else knows how it ended.
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
                    self._say(listens=True)
                    renewed = now
                await self._look_away(state)
        finally:
            self._say(listens=False)  # the last event has been sent, or never will be

    async def _look_away(self, state: State | None) -> None:
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
