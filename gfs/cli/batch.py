"""A bounded number of concurrent copies, and the reports about them."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import trio

from gfs.cli.exits import Failed
from gfs.cli.output import JsonArray, Output, to_json
from gfs.cli.progress import Progress
from gfs.errors import (
    DiskFailed,
    DiskFull,
    FileChanged,
    GfsError,
    ProtocolError,
    Retryable,
    WrongCluster,
    WrongClusterKey,
)
from gfs.failures import sentence

#: Failures printed one by one; the rest are counted.
PRINTED_MAX = 20

#: Errors that would fail every other copy, too.
_OF_THE_CLUSTER = (Retryable, WrongCluster, WrongClusterKey, ProtocolError, DiskFull, DiskFailed)
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE}


def concerns_all(error: BaseException) -> bool:
    """Whether ``error`` would fail every other copy, too."""
    if isinstance(error, FileChanged):
        return False
    if isinstance(error, GfsError):
        return isinstance(error, _OF_THE_CLUSTER)
    return isinstance(error, OSError) and error.errno in _OF_THE_MACHINE


#: A copy of some files. Each is what is printed with ``--json``, or why it was not copied.
Job = Callable[[], Awaitable[Sequence[object]]]


@dataclass
class Batch:
    """Runs jobs, at most ``parallel`` at once.

    A job that fails for a reason of its own is reported on stderr and the others
    continue; at the end Failed is raised. An error that would fail all jobs ends them.
    """

    output: Output
    progress: Progress
    parallel: int
    as_json: bool
    files: int = 0
    directories: int = 0
    failures: int = 0
    _document: JsonArray = field(init=False)

    def __post_init__(self) -> None:
        self._document = JsonArray(self.output, '{"files": ', self._summary)

    async def run(self, jobs: AsyncGenerator[Job, None]) -> None:
        try:
            await self._run_all(jobs)
        except Exception:
            # The JSON document lists the files copied so far: it is completed, not cut off.
            if self.as_json and self.files:
                self.failures += 1
                await self._document.end()
            raise
        if self.failures > PRINTED_MAX:
            self.progress.say(f"… and {self.failures - PRINTED_MAX} more failures")
        if self.as_json and (self.files or not self.failures):
            await self._document.end()
        if self.failures:
            raise Failed

    async def _run_all(self, jobs: AsyncGenerator[Job, None]) -> None:
        send, receive = trio.open_memory_channel[Job](0)
        async with trio.open_nursery() as nursery:
            for _ in range(self.parallel):
                nursery.start_soon(self._work, receive)
            async with send, aclosing(jobs):
                async for job in jobs:
                    await send.send(job)

    async def _work(self, jobs: trio.MemoryReceiveChannel[Job]) -> None:
        # One receiver for all workers; they end when the sender closes.
        async for job in jobs:
            try:
                results = await job()
            except (GfsError, OSError) as error:
                results = [error]
            for made in results:
                if isinstance(made, (GfsError, OSError)):
                    self.fail(made)
                    continue
                self.files += 1
                if self.as_json:
                    await self._document.add(made)

    def fail(self, error: GfsError | OSError) -> None:
        """Print the failure of one file; raises an error that concerns all."""
        if concerns_all(error):
            raise error
        self.failures += 1
        if self.failures <= PRINTED_MAX:
            self.progress.say(sentence(error))

    def _summary(self) -> str:
        totals = {
            "directories": self.directories,
            "bytes": self.progress.done,
            "failures": self.failures,
        }
        return ", " + to_json(totals, indent=0).removeprefix("{")
