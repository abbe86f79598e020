"""``Content-Disposition`` (RFC 6266): under which name a browser saves a file."""

from __future__ import annotations

from urllib.parse import quote

#: Characters that are not escaped in ``filename*`` (RFC 8187, attr-char).
_PLAIN = "!#$&+-.^_`|~"


def content_disposition(kind: str, name: str) -> str:
    """``kind`` is ``attachment`` or ``inline``.

    ``filename`` is for clients that do not know ``filename*``: it is ASCII, without
    characters that some of them take for an escape. ``filename*`` has the exact name, and
    other clients prefer it.
    """
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%' else "_" for c in name)
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe=_PLAIN)}"
