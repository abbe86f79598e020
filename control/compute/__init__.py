"""Containers: on Kubernetes, or on one machine with Podman, behind one API.

:mod:`.module` has the routes. :mod:`.requests` serves users' requests,
:mod:`.streams` their WebSockets. Both write and read rows (:mod:`.rows`);
:mod:`.reconcile` makes the backend follow them. :mod:`.backend` is the interface that
:mod:`.kubernetes` and :mod:`.podman` implement.
"""

from __future__ import annotations

from control.compute.module import Compute

__all__ = ["Compute"]
