"""Who may read a file with a secret."""

from __future__ import annotations

import os


def others_can_read(found: os.stat_result) -> bool:
    """Whether a file with a secret is open to others than its owner, or, if root made it for a
    user without rights, than that user's group: Kubernetes mounts a Secret so. It is the rule of
    PostgreSQL, too."""
    roots = found.st_uid == 0 and os.geteuid() != 0
    return bool(found.st_mode & (0o037 if roots else 0o077))
