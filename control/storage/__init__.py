"""Files in storage namespaces, over REST.

:mod:`.module` has the routes. Who may do what is in :mod:`.permission`, what things are
called in :mod:`.names`, what exists in :mod:`.spaces` and :mod:`.listing`; the bytes go
through :mod:`.transfer`, and are counted for the quotas by :mod:`.accounting`.
"""

from __future__ import annotations

from control.storage.module import Storage

__all__ = ["Storage"]
