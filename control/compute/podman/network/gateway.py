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

Containers do not see the client's address, but that of the gateway.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec
import trio

__all__ = ["Address", "Connect", "Foreign", "Gateway", "Target"]

log = logging.getLogger("control.compute")

#: The buffer of each direction of a connection, beside the kernel's own.
PIECE_BYTES = 64 * 1024
#: Two descriptors each; a quarter of what the process may open is the other bound.
CONNECTIONS_MAX = 4096
#: How many connections one container has, so that its owner cannot take all.
CONNECTIONS_OF_ONE_MAX = 256
#: How many ports one container has: its rules, and SSH. All containers together have a
#: quarter of the descriptors that the process may open.
LISTENERS_OF_ONE_MAX = 33
CONNECT_SECONDS = 10.0
#: How long a connection may be silent in both directions. SSH's keep-alive is more frequent.
IDLE_SECONDS = 2 * 3600.0
#: The same after one side has ended.
IDLE_HALF_CLOSED_SECONDS = 600.0
BACKLOG = 128
RETRY_SECONDS = 5.0
OTHERS = "another service of this machine has it, so containers never get it"

Address = tuple[str, int]
#: Returns where a connection leads; None if the container does not run.
Target = Callable[[], Address | None]
Connect = Callable[[str, int], Awaitable[trio.SocketStream]]


class _Rule(msgspec.Struct):
    """An address on which the gateway listens."""

    owner: str
    target: Target
    scope: trio.CancelScope
    listener: trio.socket.SocketType


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


async def connect_tcp(host: str, port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream(host, port)


class Gateway:
    """Synchronous calls change the rules; :meth:`run` serves them.

    Args:
        connect: Opens the connection to the target of a rule.
        changed: Called with an owner when the set of its refused ports has changed.
        foreign: The ports of other services, on which it never listens. By default those
            that it finds while it runs.
    """

    def __init__(
        self,
        connect: Connect = connect_tcp,
        changed: Callable[[str], None] = _nobody,
        foreign: Foreign | None = None,
        *,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._connect = connect
        self._changed = changed
        self._foreign: Foreign = _Remembered() if foreign is None else foreign
        self._retry_seconds = retry_seconds
        self._wanted: dict[str, dict[Address, Target]] = {}
        self._open: dict[Address, _Rule] = {}
        self._refused: dict[str, dict[Address, str]] = {}
        self._connections: dict[str, int] = {}
        self._total = 0
        quarter = max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._total_max = min(CONNECTIONS_MAX, quarter)
        self._listeners_max = quarter
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
                        client, _ = await rule.listener.accept()
                    except OSError as error:
                        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                            await trio.sleep(0.1)
                        # In other cases the client was gone before it was accepted.
                        continue
                    if not self._has_room(rule.owner):
                        client.close()
                        continue
                    self._count(rule.owner, 1)
                    nursery.start_soon(self._pass, rule, trio.SocketStream(client))

    def _has_room(self, owner: str) -> bool:
        return (
            self._total < self._total_max
            and self._connections.get(owner, 0) < CONNECTIONS_OF_ONE_MAX
        )

    def _count(self, owner: str, change: int) -> None:
        self._total += change
        of_owner = self._connections.get(owner, 0) + change
        if of_owner:
            self._connections[owner] = of_owner
        else:
            self._connections.pop(owner, None)

    async def _pass(self, rule: _Rule, client: trio.SocketStream) -> None:
        whole = False
        try:
            server = await self._reach(rule)
            if server is None:
                return
            try:
                _keep_alive(client)
                _keep_alive(server)
                whole = await _both_ways(client, server)
            finally:
                if not whole:
                    _reset_on_close(server)
                server.socket.close()
        finally:
            if not whole:
                _reset_on_close(client)
            client.socket.close()
            self._count(rule.owner, -1)

    async def _reach(self, rule: _Rule) -> trio.SocketStream | None:
        address = rule.target()
        if address is None:
            return None
        with trio.move_on_after(CONNECT_SECONDS), contextlib.suppress(OSError):
            return await self._connect(*address)
        return None


async def _both_ways(client: trio.SocketStream, server: trio.SocketStream) -> bool:
    """Pass bytes until both sides have ended. Returns False if the connection broke, or
    nothing passed for too long."""
    broken = False
    #: The sides that have ended.
    ended: set[trio.SocketStream] = set()
    idle = trio.CancelScope()

    def awake() -> None:
        seconds = IDLE_HALF_CLOSED_SECONDS if ended else IDLE_SECONDS
        idle.deadline = trio.current_time() + seconds

    async def one_way(source: trio.SocketStream, target: trio.SocketStream) -> None:
        nonlocal broken
        try:
            while piece := await source.receive_some(PIECE_BYTES):
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
        except trio.BrokenResourceError:
            broken = True
        if broken:
            nursery.cancel_scope.cancel()

    awake()
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
    except trio.BrokenResourceError:
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
