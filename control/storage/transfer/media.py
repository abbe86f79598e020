"""How a file is shown in a browser: its type by its extension, and what it may do.

A table of our own comes first, so that a type does not depend on the machine.
Anyone may upload HTML, and it is served from the origin of the API: it is shown
in a sandbox, where no script runs, no form is sent and nothing of this origin
can be reached.
"""

from __future__ import annotations

import mimetypes

OCTETS = "application/octet-stream"

_TYPES = {
    "avif": "image/avif",
    "bmp": "image/bmp",
    "bz2": "application/x-bzip2",
    "css": "text/css",
    "csv": "text/csv",
    "flac": "audio/flac",
    "gif": "image/gif",
    "go": "text/plain",
    "gz": "application/gzip",
    "htm": "text/html",
    "html": "text/html",
    "ico": "image/x-icon",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "js": "text/javascript",
    "json": "application/json",
    "log": "text/plain",
    "m4a": "audio/mp4",
    "m4v": "video/mp4",
    "md": "text/markdown",
    "mjs": "text/javascript",
    "mov": "video/quicktime",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
    "oga": "audio/ogg",
    "ogg": "audio/ogg",
    "ogv": "video/ogg",
    "opus": "audio/ogg",
    "otf": "font/otf",
    "pdf": "application/pdf",
    "png": "image/png",
    "py": "text/x-python",
    "rs": "text/plain",
    "rst": "text/plain",
    "sh": "text/plain",
    "svg": "image/svg+xml",
    "tar": "application/x-tar",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "toml": "text/plain",
    "ts": "text/plain",
    "ttf": "font/ttf",
    "txt": "text/plain",
    "wasm": "application/wasm",
    "wav": "audio/wav",
    "weba": "audio/webm",
    "webm": "video/webm",
    "webp": "image/webp",
    "woff": "font/woff",
    "woff2": "font/woff2",
    "xml": "application/xml",
    "xz": "application/x-xz",
    "yaml": "text/plain",
    "yml": "text/plain",
    "zip": "application/zip",
    "zst": "application/zstd",
}
_TEXTS = frozenset(("application/json", "application/xml", "image/svg+xml"))
#: The interpreter's own table, without what the machine's files add to it.
_others = mimetypes.MimeTypes()

_ALLOWED = "default-src 'none'; img-src 'self' data:; media-src 'self' data:; "
_STYLES = "style-src 'self' 'unsafe-inline'; font-src 'self' data:"
_SANDBOX = "sandbox; " + _ALLOWED + _STYLES
#: Browsers show a PDF with a viewer of their own, which a sandbox keeps from
#: starting; scripts in a PDF run in that viewer and never in this origin.
_PDF = _ALLOWED + "object-src 'self'; frame-src 'self'; " + _STYLES


def media_type(name: str) -> str:
    """The Content-Type of a file of this name."""
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    kind = _TYPES.get(extension)
    if kind is None and extension:
        kind = _others.types_map[True].get("." + extension)
    if kind is None:
        return OCTETS
    if kind.startswith("text/") or kind in _TEXTS:
        return f"{kind}; charset=utf-8"
    return kind


def security_policy(kind: str) -> str:
    """The Content-Security-Policy of a file shown with this Content-Type."""
    return _PDF if kind == "application/pdf" else _SANDBOX
