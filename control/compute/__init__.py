"""Containers: on Kubernetes, or on one machine with Podman, behind one API.

:mod:`.module` has the routes. :mod:`.requests` is what users do with containers,
:mod:`.streams` their WebSockets. Both write and read rows (:mod:`.rows`);
:mod:`.reconcile` makes the backend follow them. :mod:`.backend` is the seam that
:mod:`.kubernetes` and :mod:`.podman` are behind.
"""

from __future__ import annotations

from control.compute.module import Compute

__all__ = ["Compute"]
