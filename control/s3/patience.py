"""Answers to requests that may take long, because bytes have to be copied.

A client takes a connection for dead on which nothing comes for a minute, and sends its request
again. So if a document is not ready within ``QUIET_SECONDS``, the answer begins all the same, and
has a space every so often until its document follows. Then its status is 200, whatever happens:
an error is the document. Amazon does the same, and clients look.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import trio

from control.api import RecordsFailed, Response
from control.s3.call import S3Call
from control.s3.documents import CONTENT_TYPE, DECLARATION, error_document
from control.s3.errors import S3Error, as_s3_error
from gfs.failures import leaves

QUIET_SECONDS = 10.0

Work = Callable[[], Awaitable[bytes]]


class _Job:
    def __init__(self, call: S3Call, work: Work) -> None:
        self._call = call
        self._work = work
        self.ended = trio.Event()
        self.scope = trio.CancelScope()
        self._document = b""
        self._error: Exception | None = S3Error("ServiceUnavailable", "the server stops")

    async def run(self) -> None:
        try:
            with self.scope:
                self._document, self._error = await self._work(), None
        except Exception as error:
            if any(isinstance(leaf, RecordsFailed) for leaf in leaves(error)):
                raise  # and with it this process ends
            self._error = error
        finally:
            self.ended.set()

    def document(self) -> bytes:
        """Once it has ended. Raises what the work has raised."""
        if self._error is not None:
            raise self._error
        return self._document

    async def slowly(self) -> AsyncGenerator[bytes, None]:
        try:
            yield DECLARATION
            while not self.ended.is_set():
                with trio.move_on_after(QUIET_SECONDS):
                    await self.ended.wait()
                if not self.ended.is_set():
                    yield b" "
            try:
                document = self.document()
            except Exception as error:
                resource = self._call.request.scope["raw_path"].decode("latin-1")
                document = error_document(as_s3_error(error, self._call.route), resource)
            yield document.removeprefix(DECLARATION)
        finally:
            self.scope.cancel()


class Patience:
    """Does the work in tasks of its own, which end with their requests."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """For as long as the process serves."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def answer(self, call: S3Call, work: Work) -> Response:
        """The document that ``work`` returns, as the answer to the call, whose body was read."""
        if self._nursery is None:
            raise S3Error("ServiceUnavailable", "the server is starting")
        job = _Job(call, work)
        self._nursery.start_soon(job.run)
        is_slow = False
        try:
            with trio.move_on_after(QUIET_SECONDS):
                await job.ended.wait()
                return Response(job.document(), 200, content_type=CONTENT_TYPE)
            is_slow = True
            return Response(job.slowly(), 200, content_type=CONTENT_TYPE)
        finally:
            if not is_slow:
                job.scope.cancel()
