"""What runs containers, as the rest of compute sees it.

:mod:`.interface` is the seam: what a backend is asked and what it reports. :mod:`.none`
is the backend of a machine that has none, :mod:`.networks` says which addresses are the
internet, :mod:`.answers` makes answers to requests of a backend's failures.
"""

from __future__ import annotations

from control.compute.backend.interface import (
    COLUMNS,
    LABEL_CLUSTER,
    LABEL_CONTAINER,
    LABEL_MANAGED,
    LABEL_USER,
    ROWS,
    TERM,
    Backend,
    BackendUnavailable,
    Impossible,
    Installation,
    Make,
    Phase,
    Port,
    Room,
    Sighting,
    Spec,
    Terminal,
    Usage,
    Watch,
)

__all__ = [
    "COLUMNS",
    "LABEL_CLUSTER",
    "LABEL_CONTAINER",
    "LABEL_MANAGED",
    "LABEL_USER",
    "ROWS",
    "TERM",
    "Backend",
    "BackendUnavailable",
    "Impossible",
    "Installation",
    "Make",
    "Phase",
    "Port",
    "Room",
    "Sighting",
    "Spec",
    "Terminal",
    "Usage",
    "Watch",
]
