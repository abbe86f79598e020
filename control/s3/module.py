"""The module: its routes in the REST API, and its port."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import trio

from control.api import (
    Call,
    Control,
    Module,
    NamespaceDeletion,
    Response,
    Route,
    Schema,
    SettingsError,
    StreamingRequest,
    UserDeletion,
)
from control.api.internals import Explained, Refusal
from control.s3.configuration import configurations, forget_bucket
from control.s3.documents import CONTENT_TYPE, error_document
from control.s3.errors import of_refusal
from control.s3.keys import Keys, access_keys, forget_user
from control.s3.lifecycle import Lifecycle
from control.s3.service import Service
from control.storage import Cluster, Spaces, Sweeper, Transfers
from gfs.config import Settings


class S3Settings(Settings, frozen=True, kw_only=True):
    """Table ``[s3]`` of the settings file, or ``GFS_S3_*``."""

    #: Buckets may also be named by the host: BUCKET.DOMAIN.
    domain: str = ""
    #: Seconds in a "day" of lifecycle rules: fewer for trials of rules.
    lifecycle_day_seconds: int = 86400
    #: Whether presigned URLs may be signed with version 2, as boto3 does by default.
    presigned_version_2: bool = True

    def check(self) -> None:
        if self.lifecycle_day_seconds < 1:
            raise SettingsError("s3.lifecycle_day_seconds: at least 1")


class S3(Module):
    """The storage namespaces as buckets, for tools that speak S3."""

    name = "s3"
    summary = "Access keys for S3"
    schemas: ClassVar[Sequence[Schema]] = (Schema("s3", 1, [access_keys, configurations]),)
    on_user_deleted: ClassVar[UserDeletion | None] = staticmethod(forget_user)
    on_namespace_deleted: ClassVar[NamespaceDeletion | None] = staticmethod(forget_bucket)
    settings_kind: ClassVar[type[Settings]] = S3Settings
    settings: S3Settings
    port: ClassVar[str] = "s3"

    def __init__(self, control: Control) -> None:
        super().__init__(control)
        self._cluster = Cluster(control)
        self._transfers = Transfers(control)
        self._keys = Keys(control)
        spaces = Spaces(control, self._cluster)
        self._sweeper = Sweeper(control, self._cluster, spaces)
        self._lifecycle = Lifecycle(
            control, self._cluster, spaces, self.settings.lifecycle_day_seconds
        )
        self._service = Service(
            control, self._cluster, spaces, self._transfers, self._keys, self.settings.domain,
            self._lifecycle, self.settings.presigned_version_2,
        )  # fmt: skip

    def routes(self) -> Sequence[Route]:
        return self._keys.routes()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        _ = self._keys.cipher  # made now, or refused now
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cluster.hold)
            nursery.start_soon(self._transfers.run)
            await nursery.start(self._service.patience.run)
            nursery.start_soon(self._sweeper.run)
            nursery.start_soon(self._lifecycle.run, self._service.uploads.abort_old)
            task_status.started()

    def explain_refusal(self, refusal: Refusal) -> Explained:
        return CONTENT_TYPE, error_document(of_refusal(refusal), "")

    async def serve(self, request: StreamingRequest, watch: Callable[[Call], None]) -> Response:
        return await self._service.serve(request, watch)
