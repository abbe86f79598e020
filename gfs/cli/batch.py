"""Many copies at once, with a bound, and what is told of them."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import trio

from gfs.cli.exits import Failed
from gfs.cli.output import JsonArray, Output, to_json
from gfs.cli.progress import Progress
from gfs.cli.session import closing
from gfs.cluster.failures import sentence
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

#: Failures told one by one; the rest are counted.
TOLD_MAX = 20

#: Failures that the next file would meet too.
_OF_THE_CLUSTER = (Retryable, WrongCluster, WrongClusterKey, ProtocolError, DiskFull, DiskFailed)
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE}


def concerns_all(error: BaseException) -> bool:
    """Whether it makes no sense to go on with other files after ``error``."""
    if isinstance(error, FileChanged):
        return False
    if isinstance(error, GfsError):
        return isinstance(error, _OF_THE_CLUSTER)
    return isinstance(error, OSError) and error.errno in _OF_THE_MACHINE


#: A copy: what it makes is told, as JSON, to who asked for that.
Job = Callable[[], Awaitable[object]]


@dataclass
class Batch:
    """Runs jobs, at most ``parallel`` at once.

    A job that fails for reasons of its own is told on stderr and the others go
    on; in the end Failed is raised. An error that all would meet ends it.
    """

    output: Output
    progress: Progress
    parallel: int
    as_json: bool
    files: int = 0
    directories: int = 0
    failures: int = 0
    _told: JsonArray = field(init=False)

    def __post_init__(self) -> None:
        self._told = JsonArray(self.output, '{"files": ', self._summary)

    async def run(self, jobs: AsyncIterator[Job]) -> None:
        try:
            await self._run_all(jobs)
        except Exception:
            # What was copied before is told: the document is closed, not cut off.
            if self.as_json and self.files:
                self.failures += 1
                await self._told.end()
            raise
        if self.failures > TOLD_MAX:
            self.progress.say(f"… and {self.failures - TOLD_MAX} more failures")
        if self.as_json and (self.files or not self.failures):
            await self._told.end()
        if self.failures:
            raise Failed

    async def _run_all(self, jobs: AsyncIterator[Job]) -> None:
        send, receive = trio.open_memory_channel[Job](0)
        async with trio.open_nursery() as nursery:
            for _ in range(self.parallel):
                nursery.start_soon(self._work, receive)
            async with send, closing(jobs):
                async for job in jobs:
                    await send.send(job)

    async def _work(self, jobs: trio.MemoryReceiveChannel[Job]) -> None:
        # Not cloned and not closed here: the sender closing ends all workers.
        async for job in jobs:
            try:
                made = await job()
            except (GfsError, OSError) as error:
                self.fail(error)
                continue
            self.files += 1
            if self.as_json:
                await self._told.add(made)

    def fail(self, error: GfsError | OSError) -> None:
        """Tell of a failure of one file; raises one that concerns all."""
        if concerns_all(error):
            raise error
        self.failures += 1
        if self.failures <= TOLD_MAX:
            self.progress.say(sentence(error))

    def _summary(self) -> str:
        totals = {
            "directories": self.directories,
            "bytes": self.progress.done,
            "failures": self.failures,
        }
        return ", " + to_json(totals, indent=0).removeprefix("{")
