"""Multiplexed connections to chunkservers, one for each, made when first needed."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from gfs.blocks import Buffer
from gfs.errors import GfsError
from gfs.io import World
from gfs.protocol import handshake
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import Message, Multiplex
from gfs.protocol.rpc import Calls, Rpc, Take, check_known

#: A connection that nobody uses is closed after this long; the servers' limit is above.
IDLE_SECONDS = 30.0
#: How often that is looked for, and whether keys were retired: less than servers wait then.
CHECK_SECONDS = 5.0
CONNECT_SECONDS = 2.0
#: Longer than any call through a chain that a good server answers.
LINK_SILENT_SECONDS = 5.0


class _Link:
    """A connection, with the key it was made with."""

    def __init__(self, rpc: Rpc, key: bytes) -> None:
        self.rpc = rpc
        self.key = key
        self.used_at = trio.current_time()


class Links:
    """``run`` must be running for anything to move."""

    def __init__(self, world: World, identity: handshake.Identity) -> None:
        self._world = world
        self._identity = identity
        self._open: dict[str, _Link] = {}
        self._connecting: dict[str, _Attempt] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the connections, and close those that nobody uses, until cancelled. One whose
        key was retired gets no new calls: its server ends it soon."""
        leaving: list[_Link] = []
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                while True:
                    await self._world.clock.sleep(CHECK_SECONDS)
                    keys = self._identity.credentials.current_keys()
                    oldest = trio.current_time() - IDLE_SECONDS
                    for address, link in list(self._open.items()):
                        if link.rpc.closed or link.used_at < oldest or link.key not in keys:
                            leaving.append(self._open.pop(address))
                    for link in leaving:
                        if not link.rpc.waits:
                            link.rpc.close()
                    leaving = [link for link in leaving if not link.rpc.closed]
        finally:
            self._nursery = None
            for link in (*self._open.values(), *leaving):
                link.rpc.close()
            self._open.clear()

    async def call(
        self, address: str, request: Message, body: Buffer, seconds: float
    ) -> tuple[Message, bytes]:
        """As :meth:`Rpc.call`; the time to connect counts. Raises as well what
        :func:`gfs.protocol.handshake.connect` raises, and OlderRelease if the server does not
        know such connections: an exchange says the same."""
        until = trio.current_time() + seconds
        rpc = await self.get(address, seconds)
        return await rpc.call(request, body, until - trio.current_time())

    async def start(
        self,
        address: str,
        requests: Sequence[tuple[Message, Buffer]],
        seconds: float,
        each: Take | None = None,
    ) -> Calls:
        """As :meth:`Rpc.start`, and :meth:`call`."""
        until = trio.current_time() + seconds
        rpc = await self.get(address, seconds)
        return await rpc.start(requests, until - trio.current_time(), each)

    async def ask(
        self,
        address: str,
        requests: Sequence[tuple[Message, Buffer]],
        seconds: float,
        take: Take,
    ) -> None:
        """Ask a server all of it in one send; return when ``take`` has got each reply, or
        error."""
        try:
            calls = await self.start(address, requests, seconds, take)
        except (ConnectionError, GfsError) as error:
            for index in range(len(requests)):
                take(index, error)
        else:
            await calls.replies()

    def start_now(
        self, address: str, requests: Sequence[tuple[Message, Buffer]], seconds: float, take: Take
    ) -> bool:
        """As :meth:`ask`, and return when they are sent. False: that is not possible now."""
        link = self._open.get(address)
        if link is None:
            return False
        link.used_at = trio.current_time()
        try:
            return link.rpc.start_now(requests, seconds, take) is not None
        except GfsError:
            return False

    async def get(self, address: str, seconds: float) -> Rpc:
        """The connection to a server. Callers that wait for one that is being made share what
        comes of it, an error as well."""
        link = self._open.get(address)
        if link is None or link.rpc.closed:
            attempt = self._connecting.get(address)
            if attempt is None:
                if self._nursery is None:
                    raise ConnectionAbortedError("this process ends")
                attempt = self._connecting[address] = _Attempt()
                self._nursery.start_soon(self._connect, address, attempt)
            with deadline(seconds, f"connection to {address}"):
                await attempt.done.wait()
            if attempt.link is None:
                raise attempt.error
            link = attempt.link
        link.used_at = trio.current_time()
        return link.rpc

    async def _connect(self, address: str, attempt: _Attempt) -> None:
        # A task of its own: a caller that waits may give up, and others still wait for it.
        try:
            with deadline(CONNECT_SECONDS, f"connection to {address}"):
                connection = await handshake.connect(self._world, address, self._identity)
                try:
                    check_known(address, connection.version, Multiplex)
                    await connection.send(Multiplex(id=0))
                except BaseException:
                    connection.close()
                    raise
            rpc = Rpc(connection, silent_seconds=LINK_SILENT_SECONDS)
            attempt.link = self._open[address] = _Link(rpc, connection.key)
        except (ConnectionError, GfsError) as error:
            attempt.error = error
            return
        finally:
            del self._connecting[address]
            attempt.done.set()
        await rpc.run()


class _Attempt:
    """A connection that is being made."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.link: _Link | None = None
        self.error: Exception = ConnectionAbortedError("this process ends")
