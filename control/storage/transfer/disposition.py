"""``Content-Disposition`` (RFC 6266): under which name a browser saves a file."""

from __future__ import annotations

from urllib.parse import quote

#: What stands for itself in ``filename*`` (RFC 8187, attr-char).
_PLAIN = "!#$&+-.^_`|~"


def content_disposition(kind: str, name: str) -> str:
    """``kind`` is ``attachment`` or ``inline``.

    ``filename`` is for those that know no better: ASCII, and without what some of
    them take for an escape. ``filename*`` is the name as it is, and wins.
    """
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%' else "_" for c in name)
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe=_PLAIN)}"
