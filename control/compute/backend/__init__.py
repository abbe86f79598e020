"""The interface between compute and the software that runs containers.

:mod:`.interface` declares the calls and the reports of a backend. :mod:`.none`
is the backend of a machine that has none, :mod:`.networks` lists the addresses of the
internet, :mod:`.answers` translates a backend's failures to answers to requests.
"""

from __future__ import annotations

from control.compute.backend.answers import as_answers, for_users
from control.compute.backend.elsewhere import Elsewhere
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
    Phase,
    Port,
    Room,
    Sighting,
    Spec,
    Terminal,
    Usage,
    Watch,
)
from control.compute.backend.networks import INTERNET_6, REFUSED_4, REFUSED_6, Network
from control.compute.backend.none import NoBackend

__all__ = [
    "COLUMNS",
    "INTERNET_6",
    "LABEL_CLUSTER",
    "LABEL_CONTAINER",
    "LABEL_MANAGED",
    "LABEL_USER",
    "REFUSED_4",
    "REFUSED_6",
    "ROWS",
    "TERM",
    "Backend",
    "BackendUnavailable",
    "Elsewhere",
    "Impossible",
    "Installation",
    "Network",
    "NoBackend",
    "Phase",
    "Port",
    "Room",
    "Sighting",
    "Spec",
    "Terminal",
    "Usage",
    "Watch",
    "as_answers",
    "for_users",
]
