"""How a browser shows a file: its media type, by its extension, and its security policy.

The type comes from a table here, then from the interpreter's own, without the entries that
files of the machine add: so it depends neither on the machine nor on the interpreter.
Anyone may upload HTML, and it is served from the origin of the API. So browsers show it
in a sandbox, where no script runs, no form is sent and nothing of this origin
can be reached.
"""

from __future__ import annotations

import mimetypes

OCTETS = "application/octet-stream"

#: Common extensions that Python 3.11 to 3.13 do not know, or for which they differ.
_TYPES = {
    **dict.fromkeys(("go", "log", "rs", "rst", "sh", "toml", "ts", "yaml", "yml"), "text/plain"),
    "bz2": "application/x-bzip2",
    "flac": "audio/flac",
    "gz": "application/gzip",
    "ico": "image/x-icon",
    "js": "text/javascript",
    "m4a": "audio/mp4",
    "m4v": "video/mp4",
    "md": "text/markdown",
    "mjs": "text/javascript",
    "oga": "audio/ogg",
    "ogg": "audio/ogg",
    "ogv": "video/ogg",
    "opus": "audio/ogg",
    "otf": "font/otf",
    "ttf": "font/ttf",
    "wav": "audio/wav",
    "weba": "audio/webm",
    "webp": "image/webp",
    "woff": "font/woff",
    "woff2": "font/woff2",
    "xml": "application/xml",
    "xz": "application/x-xz",
    "zst": "application/zstd",
}
_TEXTS = frozenset(("application/json", "application/xml", "image/svg+xml"))
_others = mimetypes.MimeTypes()

_ALLOWED = "default-src 'none'; img-src 'self' data:; media-src 'self' data:; "
_STYLES = "style-src 'self' 'unsafe-inline'; font-src 'self' data:"
_SANDBOX = "sandbox; " + _ALLOWED + _STYLES
#: Browsers show a PDF with a viewer of their own, which does not start in a sandbox;
#: scripts in a PDF run in that viewer and never in this origin.
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
