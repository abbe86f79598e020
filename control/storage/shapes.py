"""The JSON of requests and answers. The documentation is made of these types."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from control.identity.access import PRIVATE
from control.storage.names import DEFAULT, PATH_PATTERN, SPACE_PATTERN

Visibility = Annotated[
    int, Meta(ge=0, le=2, description="0: private, 1: visible but not listed, 2: public")
]
SpaceName = Annotated[
    str,
    Meta(
        description="Letters, digits, hyphens, underscores and dots",
        extra_json_schema={"pattern": SPACE_PATTERN},
    ),
]
SpaceParameter = Annotated[str, Meta(description="The storage namespace")]
FileName = Annotated[
    str,
    Meta(
        description="The file's path in its storage namespace",
        extra_json_schema={"pattern": PATH_PATTERN},
    ),
]
TransferId = Annotated[
    str,
    Meta(
        description="Chosen by the client, to follow the transfer: 1 to 128 visible ASCII",
        extra_json_schema={"pattern": "^[!-~]{0,128}$"},
    ),
]
Overwrite = Annotated[str, Meta(description="`true` replaces a file that is there already")]


class SpaceInfo(msgspec.Struct):
    name: str
    #: Of files.
    count: int
    hidden: bool
    visibility: int
    owner_id: str | None


class NewSpace(msgspec.Struct):
    name: SpaceName
    visibility: Visibility = PRIVATE
    hidden: bool = False


class SpaceChange(msgspec.Struct):
    visibility: Visibility


class FileInfo(msgspec.Struct):
    name: str
    path: str
    namespace: str
    size: int
    created_at: int
    modified_at: int


class AdminFileInfo(FileInfo):
    #: The uploader.
    owner_id: str | None


class Done(msgspec.Struct):
    """The name of the file or storage namespace that was changed."""

    name: str
    status: str = "ok"


class StatusInfo(msgspec.Struct):
    #: With a heartbeat in the last 30 seconds.
    chunkserver_count: int
    total_servers: int
    files: int
    bytes: int
    under_replicated: int
    corrupt: int
    lost: int
    repairs_active: int
    repairs_queued: int


class ListQuery(msgspec.Struct):
    namespace: SpaceParameter = DEFAULT
    prefix: Annotated[str, Meta(description="Only paths that begin with this")] = ""
    limit: Annotated[int, Meta(ge=1, description="At most so many; all if left out")] | None = None
    after: Annotated[str, Meta(description="Only paths after this one")] = ""


class SpaceListQuery(msgspec.Struct):
    limit: Annotated[int, Meta(ge=1, description="At most so many; all if left out")] | None = None
    after: Annotated[str, Meta(description="Only names after this one")] = ""


class AdminListQuery(msgspec.Struct):
    namespace: Annotated[str, Meta(description="Only this one; all if left out")] = ""
    prefix: Annotated[str, Meta(description="Only paths that begin with this")] = ""
    limit: Annotated[int, Meta(ge=1, description="At most so many; all if left out")] | None = None


class UploadQuery(msgspec.Struct):
    namespace: SpaceParameter = DEFAULT
    overwrite: Overwrite = ""
    name: Annotated[
        str, Meta(description="Instead of the form's file name; needed if the body is no form")
    ] = ""
    path: Annotated[str, Meta(description="A folder to put the file in")] = ""
    id: TransferId = ""


class PutQuery(msgspec.Struct):
    overwrite: Overwrite = ""
    id: TransferId = ""


class DownloadQuery(msgspec.Struct):
    name: FileName
    namespace: SpaceParameter = DEFAULT
    id: TransferId = ""


class FileQuery(msgspec.Struct):
    name: FileName
    namespace: SpaceParameter = DEFAULT


class TransferQuery(msgspec.Struct):
    id: TransferId = ""


class ProgressQuery(msgspec.Struct):
    id: TransferId
