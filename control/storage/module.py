"""The module: its routes, and the steps of each handler."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

import msgspec
import trio

from control.api import (
    LOGGED_IN,
    PUBLIC,
    ApiError,
    BadRequest,
    Call,
    Content,
    Control,
    Module,
    NamespaceDeletion,
    Need,
    NoSuchThing,
    QuotaUsage,
    RecordsFailed,
    Response,
    Route,
    Schema,
    ScopeTable,
    UserDeletion,
    json_response,
    scoped,
    within,
)
from control.api.internals import SEED_SCOPES, Recent
from control.storage import snapshots
from control.storage.accounting import Recounts
from control.storage.cluster import Cluster
from control.storage.deletion import delete_file
from control.storage.folders import FolderRoutes
from control.storage.inspection import InspectionRoutes
from control.storage.keys import VERSIONS
from control.storage.links import ShareRoutes
from control.storage.lists import ListRoutes
from control.storage.names import DEFAULT, RESERVED, check_path, in_folder, last_segment
from control.storage.permission import CREATE, DELETE, READ_NAME, READ_PATH
from control.storage.resuming import UploadRoutes
from control.storage.rows import STORAGE, disown, forget_shares, usage
from control.storage.shapes import (
    Done,
    DownloadQuery,
    FileInfo,
    FileQuery,
    NewSpace,
    ProgressQuery,
    PutQuery,
    SpaceChange,
    SpaceInfo,
    StatusInfo,
    TransferQuery,
    UploadQuery,
)
from control.storage.snapshots import SnapshotRoutes
from control.storage.spaces import Spaces
from control.storage.tickets import TicketRoutes
from control.storage.transfer import (
    FIELD,
    FORM,
    OCTETS,
    Listening,
    Transfers,
    Upload,
    UploadRequest,
    download,
    is_form,
)
from control.storage.trees import Trees
from control.storage.unfinished import StorageSettings, Sweeper
from gfs.config import Settings
from gfs.errors import GfsError

log = logging.getLogger(__name__)

RowT = TypeVar("RowT", bound=msgspec.Struct)
InfoT = TypeVar("InfoT", bound=FileInfo)

#: After this time requests are accepted even if the file system cannot be reached.
CONNECT_SECONDS = 10.0
REPAIR_SECONDS = 60.0
#: How long a client waits for the health of the cluster.
STATUS_SECONDS = 5.0
#: How often to look for dead processes and count the storage namespaces that are due.
RECOUNT_SECONDS = 1.0
#: How often the usage of users is saved, for the next boot of the machine.
FLOOR_SECONDS = 60.0
#: A chunkserver with a heartbeat within this time counts as live.
HEARTBEAT_MS = 30_000

#: A storage namespace in a path. It excludes names that are routes themselves, so that a
#: wrong method on one of those is answered with 405.
SPACE = rf"(?!(?:{'|'.join(sorted(RESERVED))})(?:/|$))[^/]+"

_UPLOAD_HEADERS = {
    "X-File-Size": "Size of the file in bytes: checked, and the total of its progress",
    "X-Transfer-Id": "As the parameter id",
}
_DOWNLOAD_HEADERS = {
    "Range": "The bytes to send, one range or several (RFC 9110)",
    "If-Range": "The ETag of the part that the client has; a date is not exact enough",
    "If-Match": "Only if the file has this ETag",
    "If-None-Match": "Only if the file has another ETag",
    "If-Modified-Since": "Only if the file was changed after",
    "If-Unmodified-Since": "Only if the file was not changed after",
    "X-Transfer-Id": "As the parameter id",
}
_DOWNLOAD_OTHERS = {206: "The ranges asked for", 304: "The client has it already"}
_KEPT = (
    "The answer's header `X-Kept` is `true` if the file is in the trash now, or a version is kept "
    "of it, and `false` if it is gone at once, since the trash has no room for it. `X-Kept-Until` "
    "is when it leaves the trash, in unix seconds."
)
_UPLOAD_ERRORS = (400, 401, 403, 404, 408, 409, 413, 429, 503, 507)
_DOWNLOAD_ERRORS = (400, 401, 403, 404, 412, 416)


class Storage(Module):
    name = "storage"
    summary = "Files in storage namespaces"
    scopes: ClassVar[ScopeTable] = {"storage": SEED_SCOPES["storage"]}
    schemas: ClassVar[Sequence[Schema]] = (STORAGE,)
    parameter_kinds: ClassVar[Mapping[str, str]] = {"space": SPACE, "snapshot": snapshots.ID}
    on_user_deleted: ClassVar[UserDeletion | None] = staticmethod(disown)
    on_namespace_deleted: ClassVar[NamespaceDeletion | None] = staticmethod(forget_shares)
    settings_kind: ClassVar[type[Settings]] = StorageSettings
    usage: ClassVar[QuotaUsage | None] = QuotaUsage(["namespaces"], usage)

    def __init__(self, control: Control) -> None:
        super().__init__(control)
        self.cluster = Cluster(control)
        self._status = Recent(self._find_status)
        self.spaces = Spaces(control, self.cluster)
        self.transfers = Transfers(control)
        parts = (control, self.cluster, self.spaces)
        self._sweeper = Sweeper(*parts)
        trees = Trees(*parts)
        folders = FolderRoutes(*parts, trees)
        self._more = (
            ListRoutes(self.cluster, self.spaces),
            folders,
            SnapshotRoutes(*parts, trees, folders, self.transfers),
            ShareRoutes(*parts, self.transfers),
            InspectionRoutes(*parts),
            UploadRoutes(*parts, self.transfers),
            TicketRoutes(*parts),
        )

    # --- tasks --------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self.spaces.make_default()
        recounts = Recounts(self.control.records, self.control.ledger)
        await recounts.schedule_unknown()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.cluster.hold)
            nursery.start_soon(self.transfers.run)
            nursery.start_soon(self._sweeper.run)
            counted = trio.Event()
            nursery.start_soon(self._recount, recounts, counted)
            with trio.move_on_after(CONNECT_SECONDS) as first:
                await self._repair()
                await counted.wait()
            task_status.started()
            if first.cancelled_caught:
                await self._repair()
            while True:
                await trio.sleep(REPAIR_SECONDS)
                await self._repair()

    async def _recount(self, recounts: Recounts, counted: trio.Event) -> None:
        """Keep the usage of users correct. ``counted`` is set after the first round."""
        await self.cluster.connected.wait()
        remember_at = trio.current_time() + FLOOR_SECONDS
        while True:
            try:
                await self.control.ledger.clear_dead()
                await recounts.count_due(self.cluster.fs)
                counted.set()
                if trio.current_time() >= remember_at:
                    remember_at = trio.current_time() + FLOOR_SECONDS
                    await recounts.save_floors()
            except RecordsFailed:
                raise  # and with it this process ends
            except (GfsError, ApiError, OSError) as error:
                log.warning("files of users could not be counted: %s", error)
            await trio.sleep(RECOUNT_SECONDS)

    async def _repair(self) -> None:
        await self.cluster.connected.wait()
        try:
            await self.cluster.learn()
            await self.spaces.repair()
        except RecordsFailed:
            raise  # and with it this process ends
        except (GfsError, ApiError) as error:
            log.warning("storage namespaces could not be repaired: %s", error)

    async def check_ready(self) -> None:
        await self.cluster.fs.status()

    # --- routes -------------------------------------------------------------------

    def routes(self) -> Sequence[Route]:
        return [
            *self._file_routes(),
            *self._path_routes(),
            *self._space_routes(),
            *(route for more in self._more for route in more.routes()),
            *self._others(),
        ]

    def _file_routes(self) -> list[Route]:
        return [
            Route(
                "POST",
                "/storage/upload",
                self.upload,
                CREATE,
                "Upload a file",
                query=UploadQuery,
                headers=_UPLOAD_HEADERS,
                body=Content(FORM, "A form with the file, or with ?name= the bytes alone", [FIELD]),
                answer=Done,
                errors=_UPLOAD_ERRORS,
                description=(
                    "The file gets its name just before the answer is sent: until then readers "
                    "see the old file. An upload that is refused for its name, credential or "
                    "quota is refused before the body is read."
                ),
            ),
            Route(
                "GET",
                "/storage/download",
                self.download,
                READ_NAME,
                "Download a file",
                query=DownloadQuery,
                headers=_DOWNLOAD_HEADERS,
                answer=Content(OCTETS),
                errors=_DOWNLOAD_ERRORS,
                others=_DOWNLOAD_OTHERS,
            ),
            Route(
                "DELETE",
                "/storage/delete",
                self.delete,
                DELETE,
                "Delete a file",
                query=FileQuery,
                answer=Done,
                errors=[400, 401, 403, 404, 409],
                description=(
                    "In `default` only the user who uploaded it and administrators may. " + _KEPT
                ),
            ),
        ]

    def _path_routes(self) -> list[Route]:
        """A file by its path."""
        path = "/storage/{namespace:space}/{path:path}"
        writing = [
            Route(
                method,
                path,
                handler,
                CREATE,
                summary,
                query=PutQuery,
                headers=_UPLOAD_HEADERS,
                body=body,
                answer=Done,
                errors=_UPLOAD_ERRORS,
            )
            for method, handler, summary, body in (
                ("PUT", self.put, "Upload a file to its path", Content("*/*", "The file")),
                (
                    "POST",
                    self.post,
                    "Upload a file to its path, also from a form",
                    Content("*/*", "The file, or a form with it"),
                ),
            )
        ]
        reading = [
            Route(
                "GET",
                route,
                handler,
                READ_PATH,
                summary,
                query=TransferQuery,
                headers=_DOWNLOAD_HEADERS,
                answer=Content(kind),
                errors=_DOWNLOAD_ERRORS,
                others=_DOWNLOAD_OTHERS,
            )
            for route, handler, summary, kind in (
                (path, self.show, "Show a file in the browser", "*/*"),
                (
                    "/storage/download/{namespace}/{path:path}",
                    self.save,
                    "Download a file by its path",
                    OCTETS,
                ),
            )
        ]
        deleting = Route(
            "DELETE",
            path,
            self.delete_path,
            DELETE,
            "Delete a file by its path",
            answer=Done,
            errors=[400, 401, 403, 404, 409],
        )
        return [*reading, *writing, deleting]

    def _space_routes(self) -> list[Route]:
        def need(action: str, parameter: str = "") -> Need:
            return scoped("storage", "namespaces", action, parameter=parameter)

        path = "/storage/namespaces/{name}"
        return [
            Route(
                "POST",
                "/storage/namespaces",
                self.create_space,
                need("create"),
                "Create a storage namespace",
                body=NewSpace,
                answer=SpaceInfo,
                errors=[409],
            ),
            Route(
                "PUT",
                path,
                self.update_space,
                need("update", "name"),
                "Change a storage namespace",
                body=SpaceChange,
                answer=SpaceInfo,
                errors=[409],
            ),
            Route(
                "DELETE",
                path,
                self.delete_space,
                need("delete", "name"),
                "Delete a storage namespace with all its files",
                answer=Done,
                description="In one step. Only its owner may.",
            ),
        ]

    def _others(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/storage/status",
                self.status,
                PUBLIC,
                "Health of the cluster",
                answer=StatusInfo,
            ),
            Route(
                "GET",
                "/sse/progress",
                self.progress,
                LOGGED_IN,
                "Follow a transfer",
                query=ProgressQuery,
                answer=Content("text/event-stream", "Events as the transfer goes on"),
                description=(
                    "Server-sent events for the user who started the transfer with this id. A "
                    "comment is sent at once; then, while bytes move, `data:` with `id`, "
                    "`direction`, `bytes`, `total` (0: not known), `done` and, if it failed, "
                    "`error`. The stream ends after `done`."
                ),
            ),
        ]

    # --- files --------------------------------------------------------------------

    async def upload(self, call: Call) -> Done:
        query = call.query(UploadQuery)
        form = is_form(call.header("Content-Type"))
        if not form and not query.name:
            raise BadRequest(
                f"send a form ({FORM}) with a part named {FIELD}, or give ?name= and the bytes"
            )
        request = UploadRequest(
            query.namespace or DEFAULT,
            in_folder(query.path, query.name) if query.name else None,
            query.path,
            query.overwrite == "true",
            query.id,
        )
        return await self._take(call, request, form=form)

    async def put(self, call: Call) -> Done:
        return await self._store(call, form=False)

    async def post(self, call: Call) -> Done:
        return await self._store(call, form=is_form(call.header("Content-Type")))

    async def _store(self, call: Call, form: bool) -> Done:
        query = call.query(PutQuery)
        space, path = _named(call)
        request = UploadRequest(space, path, "", query.overwrite == "true", query.id)
        return await self._take(call, request, form=form)

    async def _take(self, call: Call, request: UploadRequest, *, form: bool) -> Done:
        parts = (call, self.control, self.cluster, self.spaces)
        return await Upload(*parts, request, self.transfers, form=form).take()

    async def download(self, call: Call) -> Response:
        query = call.query(DownloadQuery)
        return await self._send(call, query.namespace, query.name, False, query.id)

    async def save(self, call: Call) -> Response:
        return await self._send(call, *_named(call), False, call.query(TransferQuery).id)

    async def show(self, call: Call) -> Response:
        return await self._send(call, *_named(call), True, call.query(TransferQuery).id)

    async def _send(
        self, call: Call, name: str, path: str, inline: bool, transfer_id: str
    ) -> Response:
        _check_shown(path)
        transfer = self.transfers.begin(call, transfer_id, "download")
        try:
            space = self.spaces.readable(call, name or DEFAULT)
            return await download.send(call, self.cluster.fs, space, path, transfer, inline=inline)
        except BaseException as error:
            transfer.finish_early(error)
            raise

    async def delete(self, call: Call) -> Response:
        query = call.query(FileQuery)
        return await self._delete(call, query.namespace or DEFAULT, query.name)

    async def delete_path(self, call: Call) -> Response:
        return await self._delete(call, *_named(call))

    async def _delete(self, call: Call, name: str, path: str) -> Response:
        _check_shown(path)
        space = self.spaces.get(name)
        is_kept, until = await delete_file(call, self.cluster, self.spaces, space, path)
        response = json_response(Done(last_segment(path)))
        response.headers["X-Kept"] = "true" if is_kept else "false"
        if until is not None:
            response.headers["X-Kept-Until"] = str(until)
        return response

    # --- storage namespaces -------------------------------------------------------

    async def create_space(self, call: Call, body: NewSpace) -> SpaceInfo:
        return await self.spaces.create(call, body)

    async def update_space(self, call: Call, body: SpaceChange) -> SpaceInfo:
        return await self.spaces.update(call, body.visibility)

    async def delete_space(self, call: Call) -> Done:
        await self.spaces.delete(call)
        return Done(call.params["name"])

    # --- the rest -----------------------------------------------------------------

    async def status(self, call: Call) -> StatusInfo:
        return await self._status.get()

    async def _find_status(self) -> StatusInfo:
        with within(STATUS_SECONDS):
            status = await self.cluster.fs.status()
        totals = status.totals
        heard = [s for s in status.servers if s.state != "dead"]
        return StatusInfo(
            chunkserver_count=sum(s.heartbeat_age_ms <= HEARTBEAT_MS for s in heard),
            total_servers=len(status.servers),
            files=totals.files,
            bytes=totals.bytes,
            under_replicated=totals.under_replicated,
            corrupt=totals.corrupt,
            lost=totals.lost,
            repairs_active=totals.repairs_active,
            repairs_queued=totals.repairs_queued,
        )

    async def progress(self, call: Call) -> Response:
        query = call.query(ProgressQuery)
        listening = Listening(self.control.volatile, self.transfers, call.user.user_id, query.id)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return Response(listening.events(), 200, headers, content_type="text/event-stream")


def _named(call: Call) -> tuple[str, str]:
    """The storage namespace and the file's path, for routes that have both in their path."""
    if call.request.path.endswith("/"):
        # The router drops the slash; no file has such a name.
        raise BadRequest("name: a file's name does not end with a slash")
    return call.params["namespace"], call.params["path"]


def _check_shown(path: str) -> None:
    """Raises BadRequest, NoSuchThing."""
    check_path(path)
    if path.startswith(f"{VERSIONS}/"):
        raise NoSuchThing(f"{path} does not exist")
