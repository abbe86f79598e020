"""Files in storage namespaces, over REST.

Who may do what is in :mod:`.permission`, what things are called in :mod:`.names`,
what exists in :mod:`.spaces`; the bytes go through :mod:`.upload` and
:mod:`.download`.
"""

from control.storage.module import Storage

__all__ = ["Storage"]
