"""A TCP gateway: it forwards ports of this machine to ports of containers.

Podman cannot publish ports of a running container, so this gateway serves them; they can
be added and removed at any time. It does not read the bytes that pass.

Guarantees: it buffers one piece (:data:`PIECE_BYTES`) in each direction of a connection, so
a slow reader slows down its sender and no other connection; the end of one direction is
passed on while the other continues; a connection that broke on one side is reset on the
other, so that a cut stream never looks complete; the connections of a rule end with the
rule. A port that another service of this machine has is reported, and not tried again
(:class:`Foreign`): that service may only be restarting, and a container that got its port
in between would get its logins. A port that is refused for other reasons (no such address
yet, no descriptors) is tried at every change of its owner's rules and every
:data:`RETRY_SECONDS`. The cost of a change depends on its owner's rules alone.

Containers do not see the client's address, but that of the gateway, so who takes all of
something is prevented here, by the same rules as in the HTTP server (``control/http/slots.py``).
A connection has places: one of all of the gateway's, one of its container's and, while it may be
a login, one of the container's logins. In each, a network has at most a half; the connection of
it that was silent for the longest time makes room, and where all are taken, that of the network
with the most. So strangers of fewer than sixty networks keep nobody out, and end no connection of
others, however long that is silent. A connection whose client says nothing at first is ended
after :data:`FIRST_BYTE_SECONDS`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import trio

from control.api.internals import Slots, network_of

log = logging.getLogger("control.compute")

#: The buffer of each direction of a connection, beside the kernel's own.
PIECE_BYTES = 64 * 1024
#: Two descriptors each. The other bound: all together have half of the gateway's descriptors, and
#: the ports of all containers have the other half.
CONNECTIONS_MAX = 4096
#: How many connections one container has, so that its owner and its strangers cannot take all.
CONNECTIONS_OF_ONE_MAX = 256
#: How many of these may be logins, each of which is two processes in the container.
#: ``MaxStartups`` in the image's sshd.conf is larger: it knows of no networks.
LOGINS_OF_ONE_MAX = 64
#: A client that is not logged in after this time is ended by the container (``LoginGraceTime``).
LOGIN_SECONDS = 75.0
#: The part of all places that one network may have is 1 / this.
NETWORK_SHARE = 2
#: A network with no more than this part of all places loses none that is not silent.
SAFE_SHARE = 64
#: A connection that was silent for this time makes room for another one of its network.
SLOW_SECONDS = 5.0
#: How often at most a network replaces one of its own connections.
MADE_ROOM_SECONDS = 0.1
REFUSED_LOG_SECONDS = 60.0
#: How many ports one container has: its rules, and SSH.
LISTENERS_OF_ONE_MAX = 33
#: With fewer descriptors nobody could work.
DESCRIPTORS_MIN = 256
CONNECT_SECONDS = 10.0
#: The client must have sent something by then, or, where it is no login, the container.
FIRST_BYTE_SECONDS = 10.0
#: How long a connection may be silent in both directions. SSH's keep-alive is more frequent.
IDLE_SECONDS = 2 * 3600.0
#: The same after one side has ended.
IDLE_HALF_CLOSED_SECONDS = 600.0
BACKLOG = 128
RETRY_SECONDS = 5.0
OTHERS = "another service of this machine has it, so containers never get it"

Address = tuple[str, int]
Connect = Callable[[str, int], Awaitable[trio.SocketStream]]


@dataclass(frozen=True)
class Target:
    """Where the connections of a rule lead.

    Attributes:
        place: Returns the address; None if the container does not run.
        is_login: The container ends a client that is not logged in within ``LOGIN_SECONDS``.
    """

    place: Callable[[], Address | None]
    is_login: bool = False


class _Rule(msgspec.Struct):
    """An address on which the gateway listens."""

    owner: str
    target: Target
    scope: trio.CancelScope
    listener: trio.socket.SocketType


@dataclass(eq=False)
class _Passing:
    """A connection that passes through: its streams, and where it has places; also among
    ``logins``, if it may be one."""

    client: trio.SocketStream
    server: trio.SocketStream | None = None
    slots: list[Slots[_Passing]] = field(default_factory=list)
    logins: Slots[_Passing] | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    held_by_client: bool = True

    def note_progress(self) -> None:
        now = trio.current_time()
        for slots in self.slots:
            slots.note_progress(self, now)

    async def leave_logins(self) -> None:
        """Give back its place of the logins when it must have logged in."""
        if self.logins is not None:
            await trio.sleep(LOGIN_SECONDS)
            self.logins.give_back(self)

    def end(self, *, whole: bool = False) -> None:
        """Give back its places and close both sides, with a reset if it was not ``whole``."""
        for slots in self.slots:
            slots.give_back(self)
        self.scope.cancel()
        for stream in (self.client, self.server):
            if stream is not None:
                if not whole:
                    _reset_on_close(stream)
                stream.socket.close()


def _slots_for(count: int) -> Slots[_Passing]:
    return Slots(
        count,
        max(1, count // NETWORK_SHARE),
        SLOW_SECONDS,
        MADE_ROOM_SECONDS,
        max(1, count // SAFE_SHARE),
    )


class _Owner:
    """The places of one container."""

    def __init__(self) -> None:
        self.slots = _slots_for(CONNECTIONS_OF_ONE_MAX)
        self.logins = _slots_for(LOGINS_OF_ONE_MAX)


class Foreign(Protocol):
    """The ports that other services of this machine have had."""

    def has(self, port: int) -> bool: ...

    def add(self, port: int) -> None:
        """Record that we could not listen on a port, since others have it. Raises nothing."""


class _Remembered(set[int]):
    """The ports of others, as long as this process lives."""

    has = set.__contains__


def _nobody(owner: str) -> None:
    pass


def _never(address: str) -> bool:
    return False


async def connect_tcp(host: str, port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream(host, port)


class Gateway:
    """Synchronous calls change the rules; :meth:`run` serves them.

    Args:
        connect: Opens the connection to the target of a rule.
        changed: Called with an owner when the set of its refused ports has changed.
        foreign: The ports of other services, on which it never listens. By default those
            that it finds while it runs.
        descriptors: How many it may have open, for ports and connections.
        is_proxy: Whether the connections of an address are those of many clients, so that it may
            have all places.
    """

    def __init__(
        self,
        connect: Connect = connect_tcp,
        changed: Callable[[str], None] = _nobody,
        foreign: Foreign | None = None,
        *,
        descriptors: int = 4 * CONNECTIONS_MAX,
        is_proxy: Callable[[str], bool] = _never,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._connect = connect
        self._changed = changed
        self._foreign: Foreign = _Remembered() if foreign is None else foreign
        self._retry_seconds = retry_seconds
        self._wanted: dict[str, dict[Address, Target]] = {}
        self._open: dict[Address, _Rule] = {}
        self._refused: dict[str, dict[Address, str]] = {}
        self._is_proxy = is_proxy
        self._slots = _slots_for(max(1, min(CONNECTIONS_MAX, descriptors // 4)))
        self._owners: dict[str, _Owner] = {}
        self._logged = -REFUSED_LOG_SECONDS
        self._listeners_max = descriptors // 2
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then every port is closed."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for owner in list(self._wanted):
                    self._open_ports(nursery, owner)
                    await trio.lowlevel.checkpoint()
                task_status.started()
                while True:
                    await trio.sleep(self._retry_seconds)
                    for owner in list(self._refused):
                        self._open_ports(nursery, owner)
                        await trio.lowlevel.checkpoint()
            finally:
                self._nursery = None
                for address in list(self._open):
                    self._close(address)

    def set_rules(self, owner: str, rules: Mapping[Address, Target]) -> None:
        """Replace the rules of ``owner``. Takes effect at once, or when :meth:`run` begins."""
        before = self._wanted.pop(owner, {})
        if rules:
            self._wanted[owner] = dict(rules)
        if self._nursery is None:
            return
        freed = {each for each in before.keys() - rules.keys() if self._has(owner, each)}
        for address in freed:
            self._close(address)
        self._open_ports(self._nursery, owner)
        for other, refused in list(self._refused.items()):
            if taken := freed & refused.keys():
                freed -= taken
                self._open_ports(self._nursery, other)

    def refused(self, owner: str) -> dict[Address, str]:
        """Address -> why the gateway cannot listen on it now."""
        return dict(self._refused.get(owner, {}))

    def listening(self, owner: str = "") -> set[Address]:
        """The addresses on which it listens, for ``owner`` or for all."""
        return {address for address, rule in self._open.items() if owner in ("", rule.owner)}

    def _has(self, owner: str, address: Address) -> bool:
        rule = self._open.get(address)
        return rule is not None and rule.owner == owner

    def _open_ports(self, nursery: trio.Nursery, owner: str) -> None:
        """Listen on the addresses of ``owner``'s rules that are not open yet, where possible."""
        rules = self._wanted.get(owner, {})
        count = sum(self._has(owner, address) for address in rules)
        refused: dict[Address, str] = {}
        for address, target in rules.items():
            holder = self._open.get(address)
            if holder is None and count >= LISTENERS_OF_ONE_MAX:
                reason = f"a container has at most {LISTENERS_OF_ONE_MAX} ports"
            elif holder is None:
                reason = self._listen(nursery, owner, address, target)
                count += not reason
            elif holder.owner != owner:
                reason = "another container has it"
            else:
                holder.target = target
                continue
            if reason:
                refused[address] = f"port {address[1]} of {address[0]}: {reason}"
        before = self._refused.get(owner, {})
        if refused:
            self._refused[owner] = refused
        else:
            self._refused.pop(owner, None)
        if before != refused:
            self._changed(owner)

    def _listen(self, nursery: trio.Nursery, owner: str, address: Address, target: Target) -> str:
        if self._foreign.has(address[1]):
            return OTHERS
        if len(self._open) >= self._listeners_max:
            return (
                f"containers have the maximum of {len(self._open)} ports (see RLIMIT_NOFILE); "
                f"it is opened when another is closed"
            )
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        with contextlib.ExitStack() as failed:
            try:
                listener = failed.enter_context(socket.socket(family, socket.SOCK_STREAM))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                listener.listen(BACKLOG)
                served = trio.socket.from_stdlib_socket(listener)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    self._foreign.add(address[1])
                return _why(error)
            failed.pop_all()
        rule = _Rule(owner, target, trio.CancelScope(), served)
        self._open[address] = rule
        nursery.start_soon(self._serve, rule)
        return ""

    def _close(self, address: Address) -> None:
        rule = self._open.pop(address)
        rule.scope.cancel()
        # At once, not when its task runs, so that another container can get the port.
        rule.listener.close()

    async def _serve(self, rule: _Rule) -> None:
        with rule.scope:
            async with trio.open_nursery() as nursery:
                while True:
                    try:
                        client, (host, *_) = await rule.listener.accept()
                    except OSError as error:
                        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                            await trio.sleep(0.1)
                        # In other cases the client was gone before it was accepted.
                        continue
                    passing = _Passing(trio.SocketStream(client))
                    if self._admit(rule, passing, host):
                        nursery.start_soon(self._pass, rule, passing)
                    else:
                        client.close()

    def _admit(self, rule: _Rule, passing: _Passing, host: str) -> bool:
        """Whether there are places for a connection from ``host``; slower ones are ended for it."""
        owner = self._owners.get(rule.owner) or _Owner()
        wanted = [owner.slots, self._slots]
        if rule.target.is_login:
            passing.logins = owner.logins
            wanted.insert(0, owner.logins)
        network, now = network_of(host), trio.current_time()
        for slots in wanted:
            try:
                slower = None if self._is_proxy(host) else slots.slowest_of(network, now)
            except LookupError:
                self._log_refused(rule.owner, host)
                return False
            if slower is None and slots.all_taken:
                slower = slots.slowest_of_all(now, network)
                if slower is None:
                    self._log_refused(rule.owner, host)
                    return False
            if slower is not None:
                slower.end()
        for slots in wanted:
            slots.take(passing, network, now)
        passing.slots = wanted
        self._owners[rule.owner] = owner
        return True

    def _log_refused(self, owner: str, host: str) -> None:
        now = trio.current_time()
        if now >= self._logged + REFUSED_LOG_SECONDS:
            self._logged = now
            log.warning("podman: too many connections of %s to %s: more are refused", host, owner)

    async def _pass(self, rule: _Rule, passing: _Passing) -> None:
        whole = False
        try:
            with passing.scope:
                passing.server = server = await self._reach(rule)
                if server is not None:
                    _keep_alive(passing.client)
                    _keep_alive(server)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(passing.leave_logins)
                        whole = await _both_ways(passing, server)
                        nursery.cancel_scope.cancel()
        finally:
            passing.end(whole=whole)
            owner = self._owners.get(rule.owner)
            if owner is not None and not len(owner.slots):
                del self._owners[rule.owner]

    async def _reach(self, rule: _Rule) -> trio.SocketStream | None:
        address = rule.target.place()
        if address is None:
            return None
        with trio.move_on_after(CONNECT_SECONDS), contextlib.suppress(OSError):
            return await self._connect(*address)
        return None


async def _both_ways(passing: _Passing, server: trio.SocketStream) -> bool:
    """Pass bytes until both sides have ended. Returns False if the connection broke, or
    nothing passed for too long."""
    client = passing.client
    broken = False
    has_begun = False
    #: The sides that have ended.
    ended: set[trio.SocketStream] = set()
    idle = trio.CancelScope(deadline=trio.current_time() + FIRST_BYTE_SECONDS)

    def awake() -> None:
        if has_begun:
            passing.note_progress()
            seconds = IDLE_HALF_CLOSED_SECONDS if ended else IDLE_SECONDS
            idle.deadline = trio.current_time() + seconds

    async def one_way(source: trio.SocketStream, target: trio.SocketStream) -> None:
        nonlocal broken, has_begun
        try:
            while piece := await source.receive_some(PIECE_BYTES):
                has_begun |= source is client or passing.logins is None
                awake()
                if not await _sent(target, piece):
                    break
                awake()
            else:
                ended.add(source)
                awake()
                if await _sent(target, b""):
                    return
            # A side that does not read any more may have ended before, and its last bytes are
            # on their way to the other side, which must not lose them to a reset.
            broken |= target not in ended
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            broken = True
        if broken:
            nursery.cancel_scope.cancel()

    with idle:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one_way, client, server)
            nursery.start_soon(one_way, server, client)
    return not broken and not idle.cancelled_caught


async def _sent(target: trio.SocketStream, piece: bytes | bytearray) -> bool:
    """Whether ``target`` took it; b"" is the end."""
    try:
        if piece:
            await target.send_all(piece)
        else:
            await target.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return False
    return True


def _keep_alive(stream: trio.SocketStream) -> None:
    with contextlib.suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _reset_on_close(stream: trio.SocketStream) -> None:
    with contextlib.suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _why(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return OTHERS
        case errno.EACCES:
            return "only root may listen on it (see sysctl net.ipv4.ip_unprivileged_port_start)"
        case errno.EADDRNOTAVAIL:
            return "this machine does not have that address"
    return error.strerror or str(error)
