"""A simulated network with the guarantees of TCP and no others, in virtual time.

Every connection is two pipes, one each way. A pipe holds a bounded number of
bytes (:attr:`SimNetwork.buffer_bytes`, the two socket buffers and what is on the
wire); a sender waits when it is full. Each piece arrives after a latency drawn
from the network's seeded generator, in order; receivers get what has arrived,
now and then only a part of it, as from a socket.

What can go wrong, and what each side then sees:

* the process at the other end dies: what is in flight still arrives, then the
  stream ends; or it is reset and what was not read is lost (the kernel sends
  either, depending on what it had not delivered: here the seed decides);
* the connection is cut (:meth:`SimNetwork.cut`): ``ConnectionResetError`` on
  both sides, at once;
* nobody listens at the address, or its machine is down: ``connect`` raises
  ``ConnectionRefusedError``;
* a direction between two machines is blocked (:meth:`SimNetwork.block`,
  :meth:`SimNetwork.partition`): silence. Nothing arrives, no end of stream and
  no reset either; ``connect`` hangs until its caller's deadline. After
  :meth:`SimNetwork.heal` all that was held back arrives.
"""

from __future__ import annotations

import errno
import math
import random
from collections import deque
from collections.abc import Iterable

import trio
from xxhash import xxh3_64_hexdigest

from gfs.io import BadAddress, Buffer, File, Listener, Runner, Stream, split_address
from gfs.testing.files import SimFile
from gfs.testing.life import Crashed, Life
from gfs.testing.timers import WaitingRoom, sleep
from gfs.testing.trace import Trace

BUFFER_BYTES = 512 * 1024
#: The largest piece of data that is delivered at once.
PIECE_BYTES = 256 * 1024
LATENCY_SECONDS = (50e-6, 500e-6)
#: The share of receives that return only a part of what has arrived.
SHORT_RECEIVES = 0.02
#: Connections that were made and not yet accepted, per listener.
BACKLOG = 512
FIRST_FREE_PORT = 40_000


class _Pipe:
    """One direction of a connection: bytes in flight, then perhaps an end."""

    def __init__(self, source: str, target: str) -> None:
        self.source = source
        self.target = target
        self.pieces: deque[tuple[float, memoryview]] = deque()
        self.held_bytes = 0
        self.last_arrival = 0.0
        #: When the receiving side learns that the sender closed, and how.
        self.ends_at = math.inf
        self.reset = False
        self.readers = WaitingRoom()
        self.writers = WaitingRoom()

    def wake(self) -> None:
        self.readers.wake()
        self.writers.wake()


class SimStream:
    """One end of a connection, as :class:`gfs.io.Stream`."""

    def __init__(
        self, network: SimNetwork, life: Life, peer: str, incoming: _Pipe, outgoing: _Pipe
    ) -> None:
        self.peer = peer
        self._network = network
        self._life = life
        self._in = incoming
        self._out = outgoing
        self._open = True
        network.streams[self] = None
        life.hold(self)

    @property
    def machines(self) -> tuple[str, str]:
        """The machines of this end and of the other."""
        return self._out.source, self._out.target

    # --- receiving -----------------------------------------------------------

    async def receive_into(self, buffer: memoryview, least: int = 1) -> int:
        await trio.lowlevel.checkpoint()
        while True:
            self._check()
            pipe = self._in
            if self._network.is_blocked(pipe):
                await pipe.readers.wait(math.inf)
                continue
            now = trio.current_time()
            if pipe.reset and pipe.ends_at <= now:
                raise ConnectionResetError(f"{self.peer} reset the connection")
            arrived = self.pending()
            if arrived and (arrived >= least or self._is_all(arrived)):
                return self._take(buffer, now)
            if not pipe.pieces and pipe.ends_at <= now:
                return 0
            next_event = next((at for at, _ in pipe.pieces if at > now), math.inf)
            await pipe.readers.wait(min(next_event, pipe.ends_at))

    def _is_all(self, arrived: int) -> bool:
        """Whether no more can come before some of it is taken."""
        pipe = self._in
        is_full = pipe.held_bytes >= self._network.buffer_bytes and arrived == pipe.held_bytes
        return is_full or pipe.ends_at <= trio.current_time()

    def _take(self, buffer: memoryview, now: float) -> int:
        room = len(buffer)
        if room > 1 and self._network.random.random() < self._network.short_receives:
            room = self._network.random.randint(1, room)
        pieces = self._in.pieces
        taken = 0
        while taken < room and pieces and pieces[0][0] <= now:
            at, piece = pieces[0]
            count = min(room - taken, len(piece))
            buffer[taken : taken + count] = piece[:count]
            taken += count
            if count == len(piece):
                pieces.popleft()
            else:
                pieces[0] = (at, piece[count:])
        self._in.held_bytes -= taken
        self._in.writers.wake()
        return taken

    def ended(self) -> bool:
        now = trio.current_time()
        if not self._open or not self._life.alive:
            return True
        if self._network.is_blocked(self._in):
            return False
        return self._in.ends_at <= now or bool(self._in.pieces and self._in.pieces[0][0] <= now)

    def pending(self) -> int:
        now = trio.current_time()
        if self._network.is_blocked(self._in):
            return 0
        return sum(len(piece) for at, piece in self._in.pieces if at <= now)

    # --- sending ---------------------------------------------------------------

    async def send_all(self, *buffers: Buffer) -> None:
        await trio.lowlevel.checkpoint()
        self._check_sending()
        for buffer in buffers:
            view = memoryview(buffer)
            while len(view):
                count = await self._room(len(view))
                # Copied: the caller may use its buffer again when this returns.
                self._put(memoryview(bytes(view[:count])))
                view = view[count:]

    def send_now(self, data: Buffer) -> int:
        self._check_sending()
        view = memoryview(bytes(data))
        if len(view) > 1 and self._network.random.random() < self._network.short_receives:
            view = view[: self._network.random.randint(1, len(view))]
        done = 0
        while room := min(self._free_bytes, len(view) - done, PIECE_BYTES):
            self._put(view[done : done + room])
            done += room
        return done

    async def send_file(
        self,
        file: File,
        offset: int,
        count: int,
        run: Runner | None = None,
    ) -> None:
        if not isinstance(file, SimFile):
            raise TypeError("a simulated stream sends simulated files")
        await trio.lowlevel.checkpoint()
        self._check_sending()
        end = offset + count
        while offset < end:
            room = await self._room(end - offset)
            piece = bytearray(room)
            threads = self._life.threads
            assert threads is not None
            got = await (run or threads.run)(file.read_into, memoryview(piece), offset)
            self._check_sending()
            if not got:
                raise EOFError(f"the file ends at byte {offset}")
            self._put(memoryview(piece)[:got])
            offset += got

    async def _room(self, wanted: int) -> int:
        """How many bytes can be sent now, of ``wanted``; waits for at least one."""
        pipe = self._out
        while True:
            self._check_sending()
            room = self._free_bytes
            if room:
                return min(room, wanted, PIECE_BYTES)
            # The end of the peer also wakes the sender, once this side learns of it.
            await pipe.writers.wait(self._learns_of_end())

    @property
    def _free_bytes(self) -> int:
        return max(0, self._network.buffer_bytes - self._out.held_bytes)

    def _put(self, piece: memoryview) -> None:
        pipe = self._out
        if self._in.ends_at < math.inf:
            # The peer has closed, and this side does not know it yet. Until then the
            # buffers take what they can.
            pipe.held_bytes += len(piece)
            return
        pipe.last_arrival = max(pipe.last_arrival, self._network.arrival(pipe, len(piece)))
        pipe.pieces.append((pipe.last_arrival, piece))
        pipe.held_bytes += len(piece)
        self._network.trace.add(
            f"{pipe.source} > {pipe.target} {len(piece)} {xxh3_64_hexdigest(piece)}"
        )
        # While blocked, it waits without a time; healing wakes it.
        if not self._network.is_blocked(pipe):
            pipe.readers.wake_at(pipe.last_arrival)

    def _learns_of_end(self) -> float:
        return math.inf if self._network.is_blocked(self._in) else self._in.ends_at

    def _check_sending(self) -> None:
        self._check()
        if self._learns_of_end() <= trio.current_time():
            if self._in.reset:
                raise ConnectionResetError(f"{self.peer} reset the connection")
            raise BrokenPipeError(errno.EPIPE, f"{self.peer} closed the connection")

    def _check(self) -> None:
        self._life.check()
        if not self._open:
            raise ConnectionAbortedError(f"the connection to {self.peer} was closed here")

    # --- ending ------------------------------------------------------------------

    def close(self) -> None:
        if self._open:
            self._life.let_go(self)
            # As the kernel does it: what was sent and not read is answered by
            # a reset, which may overtake what is on its way to the peer.
            self._end(reset=bool(self._in.pieces))

    def die(self) -> None:
        """The process was killed: the kernel ends or resets the connection."""
        self._end(reset=self._network.random.random() < 0.5)

    def _end(self, reset: bool) -> None:
        self._open = False
        self._network.streams.pop(self, None)
        pipe = self._out
        word = "resets" if reset else "ends"
        self._network.trace.add(f"{pipe.source} {word} its connection with {pipe.target}")
        if pipe.ends_at == math.inf:
            arrival = self._network.arrival(pipe, 0)
            pipe.reset = reset
            pipe.ends_at = arrival if reset else max(arrival, pipe.last_arrival)
        # Data under way to this side is dropped.
        self._in.pieces.clear()
        self._in.held_bytes = 0
        self._in.wake()
        self._out.wake()

    def break_off(self) -> None:
        """Reset the connection from outside: this side learns of it at once."""
        self._in.reset = True
        self._in.ends_at = trio.current_time()
        self._in.pieces.clear()
        self._in.held_bytes = 0
        self._in.wake()
        self._out.wake()


class SimListener:
    """As :class:`gfs.io.Listener`."""

    def __init__(self, network: SimNetwork, life: Life, address: str) -> None:
        self.address = address
        self._network = network
        self._life = life
        self._open = True
        self._waiting: deque[SimStream] = deque()
        self._acceptors = trio.lowlevel.ParkingLot()
        network.listeners[address] = self
        life.hold(self)

    async def accept(self) -> Stream:
        await trio.lowlevel.checkpoint()
        while True:
            self._life.check()
            if not self._open:
                raise ConnectionAbortedError("the listener was closed here")
            if self._waiting:
                return self._waiting.popleft()
            await self._acceptors.park()

    def offer(self, client: str, incoming: _Pipe, outgoing: _Pipe) -> bool:
        """Take a connection from the network; False if the backlog is full."""
        if len(self._waiting) >= BACKLOG:
            return False
        self._waiting.append(SimStream(self._network, self._life, client, incoming, outgoing))
        self._acceptors.unpark()
        return True

    def close(self) -> None:
        if self._open:
            self._life.let_go(self)
            self.die()
            while self._waiting:
                self._waiting.popleft().close()

    def die(self) -> None:
        self._open = False
        self._network.listeners.pop(self.address, None)
        self._acceptors.unpark_all()


class SimNetwork:
    """The network between all machines. One generator decides every delay."""

    def __init__(self, chance: random.Random, trace: Trace) -> None:
        self.random = chance
        self.trace = trace
        self.buffer_bytes = BUFFER_BYTES
        self.latency_seconds = LATENCY_SECONDS
        self.short_receives = SHORT_RECEIVES
        #: Bytes per second of one connection and direction; None: no limit.
        self.bytes_per_second: float | None = None
        self.listeners: dict[str, SimListener] = {}
        self.streams: dict[SimStream, None] = {}
        self._blocked: set[tuple[str, str]] = set()
        #: (source, target) -> (latency range, bytes per second) of a slow link.
        self.slow_links: dict[tuple[str, str], tuple[tuple[float, float], float]] = {}
        self._down: set[str] = set()
        self._healed = trio.lowlevel.ParkingLot()
        self._ports = FIRST_FREE_PORT

    # --- for tests: faults and their end --------------------------------------------

    def block(self, source: str, target: str) -> None:
        """Keep everything that machine ``source`` sends from arriving at ``target``."""
        self.trace.add(f"network: block {source} -> {target}")
        self._blocked.add((source, target))

    def partition(self, left: Iterable[str], right: Iterable[str]) -> None:
        """Block all traffic between two groups of machines, both ways."""
        if isinstance(left, str) or isinstance(right, str):
            raise TypeError("give lists of machines: a name is one of letters")
        right = list(right)
        for one in left:
            for other in right:
                self.block(one, other)
                self.block(other, one)

    def heal(self, *machines: str) -> None:
        """Lift all blocks, or those from and to the given machines. What was
        held back arrives now."""
        self.trace.add(f"network: heal {' '.join(machines) or 'all'}")
        if machines:
            self._blocked = {pair for pair in self._blocked if not set(pair) & set(machines)}
        else:
            self._blocked.clear()
        self._healed.unpark_all()
        for stream in self.streams:
            stream._in.wake()
            stream._out.wake()

    def slow(
        self, source: str, target: str, latency_seconds: tuple[float, float], rate: float
    ) -> None:
        """Give the link from ``source`` to ``target`` this latency, and ``rate`` bytes
        per second."""
        self.trace.add(f"network: slow {source} -> {target}")
        self.slow_links[source, target] = (latency_seconds, rate)

    def restore(self, source: str, target: str) -> None:
        """Make the link as fast as all others again."""
        self.trace.add(f"network: restore {source} -> {target}")
        self.slow_links.pop((source, target), None)

    def cut(self, left: str, right: str | None = None) -> int:
        """Reset all connections between two machines, or all of one machine's.

        Both sides get ``ConnectionResetError``. Returns how many there were.
        """
        found = [
            stream
            for stream in self.streams
            if left in stream.machines and (right is None or right in stream.machines)
        ]
        self.trace.add(f"network: cut {left} {right or ''}: {len(found)} ends")
        for stream in found:
            stream.break_off()
        return len(found) // 2

    def take_down(self, machine: str) -> None:
        """Connections to the machine are refused until :meth:`bring_up`."""
        self._down.add(machine)

    def bring_up(self, machine: str) -> None:
        self._down.discard(machine)

    # --- how it works ----------------------------------------------------------

    def is_blocked(self, pipe: _Pipe) -> bool:
        return bool(self._blocked) and (pipe.source, pipe.target) in self._blocked

    def latency(self, source: str, target: str) -> float:
        slow = self.slow_links.get((source, target)) if self.slow_links else None
        return self.random.uniform(*(self.latency_seconds if slow is None else slow[0]))

    def arrival(self, pipe: _Pipe, count: int) -> float:
        """When ``count`` bytes that are sent now arrive at the other end."""
        start = trio.current_time()
        slow = self.slow_links.get((pipe.source, pipe.target)) if self.slow_links else None
        rate = self.bytes_per_second if slow is None else slow[1]
        if rate is not None:
            start = max(start, pipe.last_arrival) + count / rate
        return start + self.latency(pipe.source, pipe.target)

    def free_port(self) -> int:
        self._ports += 1
        return self._ports

    async def until_open(self, source: str, target: str) -> None:
        """Wait while either direction is blocked: a connect needs both."""
        while (source, target) in self._blocked or (target, source) in self._blocked:
            await self._healed.park()

    def listener(self, host: str, port: int) -> SimListener | None:
        if host in self._down:
            return None
        return self.listeners.get(f"{host}:{port}")


class SimEndpoint:
    """One process's access to the network, as :class:`gfs.io.Network`.

    Its machine's name is its host name; ``127.0.0.1`` and ``localhost`` mean the
    machine itself.
    """

    def __init__(self, network: SimNetwork, machine: str, life: Life) -> None:
        self._network = network
        self._machine = machine
        self._life = life

    def _host(self, host: str) -> str:
        return self._machine if host in ("127.0.0.1", "localhost") else host

    async def connect(self, address: str) -> Stream:
        network = self._network
        host, port = split_address(address)
        host = self._host(host)
        self._life.check()
        await sleep(network.latency(self._machine, host))
        await network.until_open(self._machine, host)
        self._life.check()
        listener = network.listener(host, port)
        there = _Pipe(self._machine, host)
        back = _Pipe(host, self._machine)
        client = f"{self._machine}:{network.free_port()}"
        if listener is None or not listener.offer(client, there, back):
            await sleep(network.latency(host, self._machine))
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"{address}: Connection refused")
        # There must be no wait between the offer and the return: a cancelled connect
        # would leave the other side with a connection that has no other end.
        network.trace.add(f"network: {client} connects to {address}")
        return SimStream(network, self._life, address, back, there)

    async def listen(self, address: str) -> Listener:
        host, port = split_address(address)
        host = self._host(host)
        await trio.lowlevel.checkpoint()
        self._life.check()
        if host != self._machine:
            raise OSError(errno.EADDRNOTAVAIL, f"{address}: not an address of {self._machine}")
        address = f"{host}:{port or self._network.free_port()}"
        if address in self._network.listeners:
            raise OSError(errno.EADDRINUSE, f"{address}: Address already in use")
        return SimListener(self._network, self._life, address)


__all__ = [
    "BadAddress",
    "Crashed",
    "SimEndpoint",
    "SimListener",
    "SimNetwork",
    "SimStream",
]
