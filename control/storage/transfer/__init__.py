"""The transfer of files between HTTP and the file system.

:mod:`.upload` uses :mod:`.multipart` for forms; :mod:`.download` uses :mod:`.ranges`,
:mod:`.conditional`, :mod:`.media` and :mod:`.disposition`; :mod:`.progress` reports how far
both are. The routes (:mod:`control.storage.module`) use the names below and :mod:`.download`.
"""

from control.storage.transfer.media import OCTETS
from control.storage.transfer.multipart import FIELD, FORM, FileBegins, FormReader, is_form
from control.storage.transfer.progress import Listening, Transfers
from control.storage.transfer.upload import Upload, UploadRequest

__all__ = [
    "FIELD",
    "FORM",
    "OCTETS",
    "FileBegins",
    "FormReader",
    "Listening",
    "Transfers",
    "Upload",
    "UploadRequest",
    "conditional",
    "download",
    "is_form",
    "ranges",
]
