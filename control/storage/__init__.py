"""Files in storage namespaces, over REST.

:mod:`.module` has the routes. :mod:`.permission` decides who may do what, :mod:`.names`
which names are valid; :mod:`.spaces` and :mod:`.listing` find storage namespaces and files;
:mod:`.transfer` moves the bytes, and :mod:`.accounting` counts them for the quotas. Another
front door to the same files (:mod:`control.s3`) uses the names below.
"""

from __future__ import annotations

from control.storage.accounting import Recounts
from control.storage.cluster import Cluster
from control.storage.deletion import delete_entry, delete_file
from control.storage.module import Storage
from control.storage.names import PATH_BYTES_MAX, check_path, check_space_name
from control.storage.permission import CREATE, DELETE, READ, may_remove, owner_of
from control.storage.rows import Space, change_space, present_space
from control.storage.rows import spaces as space_rows
from control.storage.shapes import NewSpace
from control.storage.spaces import Spaces, all_in_pages
from control.storage.transfer import (
    FileBegins,
    FormReader,
    Transfers,
    Upload,
    UploadRequest,
    conditional,
    is_form,
    ranges,
)
from control.storage.turns import completions
from control.storage.unfinished import (
    UPLOAD,
    Sweeper,
    end_upload,
    folder_of,
    is_upload,
    upload_folders,
)
from control.storage.versions import Version, Versions, id_of, is_marker

__all__ = [
    "CREATE",
    "DELETE",
    "PATH_BYTES_MAX",
    "READ",
    "UPLOAD",
    "Cluster",
    "FileBegins",
    "FormReader",
    "NewSpace",
    "Recounts",
    "Space",
    "Spaces",
    "Storage",
    "Sweeper",
    "Transfers",
    "Upload",
    "UploadRequest",
    "Version",
    "Versions",
    "all_in_pages",
    "change_space",
    "check_path",
    "check_space_name",
    "completions",
    "conditional",
    "delete_entry",
    "delete_file",
    "end_upload",
    "folder_of",
    "id_of",
    "is_form",
    "is_marker",
    "is_upload",
    "keys",
    "listing",
    "may_remove",
    "owner_of",
    "present_space",
    "ranges",
    "rows",
    "space_rows",
    "upload_folders",
]
