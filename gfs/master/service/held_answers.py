"""Answers that wait until what they were read from can no longer be lost.

A mutation is visible on the master's disk some milliseconds before enough shadow masters have it.
If the master is lost just then, the mutation is lost with it, and a reader that saw it has seen
what never was. Elected masters are replaced without anybody looking, so they answer a look-up
only when the shadow masters have all that it was read from.
"""

from __future__ import annotations

from gfs.errors import Busy, GfsError
from gfs.master.metadata import QuorumWatermark
from gfs.protocol.messages import List, ListFiles, ListTrash, Locate, Message, Stat
from gfs.protocol.rpc import Rpc

#: The requests whose answers are held; a client is refused beyond so many.
HELD: frozenset[type[Message]] = frozenset((Stat, List, ListFiles, ListTrash, Locate))
HELD_MAX = 4096

Answer = tuple[int, Message | GfsError]


class HeldAnswers:
    """The answers to one client's look-ups. ``send`` and ``send_error`` are as those of
    :class:`Rpc`; what they took is sent after :meth:`release_after`."""

    def __init__(self, rpc: Rpc, watermark: QuorumWatermark) -> None:
        self.peer = rpc.peer
        self._rpc = rpc
        self._watermark = watermark
        self._taken: list[Answer] = []
        self._waiting = 0

    def send(self, message: Message) -> None:
        self._taken.append((message.id, message))

    def send_error(self, request_id: int, error: GfsError) -> None:
        self._taken.append((request_id, error))

    def release_after(self, sequence: int) -> None:
        """Send them once everything up to ``sequence``, from which they were read, is
        acknowledged; errors instead if that takes too long."""
        taken, self._taken = self._taken, []
        if not taken:
            return
        if self._waiting + len(taken) > HELD_MAX:
            self._send(taken, Busy("too many look-ups wait for shadow masters: try again"))
            return
        self._waiting += len(taken)

        def release(late: GfsError | None) -> None:
            self._waiting -= len(taken)
            self._send(taken, late)

        self._watermark.answer_after(sequence, release)

    def _send(self, taken: list[Answer], instead: GfsError | None) -> None:
        for request_id, answer in taken:
            answer = instead or answer
            if isinstance(answer, GfsError):
                self._rpc.send_error(request_id, answer)
            else:
                self._rpc.send(answer)
