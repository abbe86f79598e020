"""Which connections the server admits, and which end to make room.

``slots.py`` decides; this module carries the decision out.
"""

from __future__ import annotations

import logging
from typing import Protocol

import trio

from control.http.forwarded import Proxies, network_of
from control.http.limits import HttpLimits
from control.http.slots import Holder, Slots

log = logging.getLogger("control.http")

MADE_ROOM_SECONDS = 0.1
"""How often at most an address replaces one of its own connections. Ending one and serving
another takes some 4 ms of CPU, so an address costs at most 4 % of the loop's time."""
ROOM_POLL_SECONDS = 0.25
"""How often to look for slow connections: they become slow without an event."""
TURNED_AWAY_LOG_SECONDS = 60.0


class Admitted(Holder, Protocol):
    """A holder of a slot."""

    def evict(self) -> None:
        """End now, since another gets the slot."""


class Admission:
    """The slots of one server and the proxies in front of it."""

    def __init__(self, limits: HttpLimits, proxies: Proxies) -> None:
        self.proxies = proxies
        self._per_address_max = limits.per_address_max
        self._slots: Slots[Admitted] = Slots(
            limits.connections_max, limits.per_address_max, limits.slow_seconds, MADE_ROOM_SECONDS
        )
        self._logged = -TURNED_AWAY_LOG_SECONDS
        self._room = trio.Event()

    @property
    def is_full(self) -> bool:
        """Whether every slot is taken and no holder can be ended."""
        return self._slots.all_taken and self._slots.slowest_of_all(trio.current_time()) is None

    async def wait_for_room(self) -> None:
        """Return once a slot is free or its holder can be ended."""
        while self.is_full:
            if self._room.is_set():
                self._room = trio.Event()
            with trio.move_on_after(ROOM_POLL_SECONDS):
                await self._room.wait()

    def make_room(self, address: str) -> bool:
        """Whether a new holder of *address* gets a slot; ends another holder if necessary."""
        if not self._make_room_of(address):
            return False
        if self._slots.all_taken:
            slowest = self._slots.slowest_of_all(trio.current_time())
            if slowest is not None:
                slowest.evict()
        return True

    def _make_room_of(self, address: str) -> bool:
        """Whether *address* gets one more slot; ends one of its own holders if necessary.
        A trusted proxy may have all slots, since its connections are of many clients."""
        if self.proxies.has(address):
            return True
        try:
            slowest = self._slots.slowest_of(network_of(address), trio.current_time())
        except LookupError:
            self._log_turned_away(address)
            return False
        if slowest is not None:
            slowest.evict()
        return True

    def _log_turned_away(self, address: str) -> None:
        now = trio.current_time()
        if now >= self._logged + TURNED_AWAY_LOG_SECONDS:
            self._logged = now
            log.warning(
                "%s has the %d connections that one address may have: more are turned away",
                address,
                self._per_address_max,
            )

    def add(self, holder: Admitted, address: str) -> None:
        """Give *holder* a slot of *address*, after :meth:`make_room`."""
        self._slots.take(holder, network_of(address), trio.current_time())

    def move(self, holder: Admitted, address: str) -> bool:
        """Count the slot of *holder* for *address*. Returns False if that has too many."""
        if not self._make_room_of(address):
            return False
        self.add(holder, address)
        return True

    def note_progress(self, holder: Admitted, *, idle: bool = False) -> None:
        """Record progress of *holder*; *idle*: it waits for a request from now on."""
        self._slots.note_progress(holder, trio.current_time(), idle=idle)
        if idle:
            self._room.set()

    def remove(self, holder: Admitted) -> None:
        """Free the slot of *holder*, if it has one."""
        self._slots.give_back(holder)
        self._room.set()
