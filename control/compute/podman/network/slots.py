"""A number for each container as long as it exists: it determines its SSH port and address.

``ports.json`` has the numbers. Every worker process may need one, since each shows
containers to users, so a file lock is held while the file is changed, and it is replaced as
a whole. All numbers are used before one is used again, since an SSH client that knows the
host behind a port refuses another one there. The file may be deleted: then containers get
other numbers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec

from control.compute.backend import BackendUnavailable

#: How many bits a number plus 1 has.
SLOT_BITS = 12
#: How many containers there can be.
SLOTS_MAX = 4000
#: A container that was not seen for this time does not exist, and its number is freed.
FORGOTTEN_AFTER_SECONDS = 3600.0
#: How many ports in a row that others have are skipped.
PORTS_TRIED = 256


def ssh_ports(base: int) -> range:
    """The SSH ports, one for each number."""
    return range(base, min(base + SLOTS_MAX, 65536))


class _Slot(msgspec.Struct, array_like=True):
    number: int
    since: float


class _File(msgspec.Struct):
    next: int = 0
    slots: dict[str, _Slot] = {}


class Slots:
    """The numbers of the containers of one installation.

    Args:
        directory: The directory of the file.
        host: The address of the SSH ports.
        port_base: The port of number 0.
        is_foreign: Whether a port belongs to another service, also while that is down.
    """

    def __init__(
        self,
        directory: str,
        host: str,
        port_base: int,
        is_foreign: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._path = Path(directory) / "ports.json"
        self._host = host
        self._base = port_base
        self._is_foreign = is_foreign
        self._count = len(ssh_ports(port_base))
        self._known = _File()
        self._version: tuple[int, int] = (0, 0)

    def number(self, container_id: str) -> int:
        """The container's number, which stays the same as long as it exists."""
        self._look()
        slot = self._known.slots.get(container_id)
        return slot.number if slot else self._give(container_id)

    def ssh_port(self, container_id: str) -> int:
        return self._base + self.number(container_id)

    def free(self, container_id: str) -> None:
        self._look()
        if container_id in self._known.slots:
            with self._changed() as file:
                file.slots.pop(container_id, None)

    def keep(self, present: Collection[str]) -> None:
        """Free the numbers of containers that have been absent for long."""
        self._look()
        before = time.time() - FORGOTTEN_AFTER_SECONDS
        gone = [
            container_id
            for container_id, slot in self._known.slots.items()
            if container_id not in present and not before < slot.since <= time.time()
        ]
        if gone:
            with self._changed() as file:
                for container_id in gone:
                    file.slots.pop(container_id, None)

    def _give(self, container_id: str) -> int:
        with self._changed() as file:
            if (slot := file.slots.get(container_id)) is not None:
                return slot.number
            taken = {slot.number for slot in file.slots.values()}
            tried = 0
            for step in range(self._count):
                number = (file.next + step) % self._count
                if number in taken or self._is_foreign(self._base + number):
                    continue
                tried += 1
                if tried < PORTS_TRIED and not self._can_listen(self._base + number):
                    continue
                file.slots[container_id] = _Slot(number, time.time())
                file.next = (number + 1) % self._count
                return number
        raise BackendUnavailable(f"All {self._count} SSH ports are in use.")

    def _can_listen(self, port: int) -> bool:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, port))
            except OSError:
                return False
        return True

    def _look(self) -> None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._known, self._version = _File(slots={}), (0, 0)
            return
        version = (status.st_ino, status.st_mtime_ns)
        if version != self._version:
            self._known, self._version = self._read(), version

    def _read(self) -> _File:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_File)
        except (FileNotFoundError, msgspec.MsgspecError):
            return _File(slots={})

    @contextlib.contextmanager
    def _changed(self) -> Iterator[_File]:
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Other processes hold it for a fraction of a millisecond.
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = self._read()
            yield file
            new = Path(f"{self._path}.new")
            new.write_bytes(msgspec.json.encode(file))
            new.replace(self._path)
        finally:
            os.close(lock)
