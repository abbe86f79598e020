"""Containers: on Kubernetes, or on one machine with Podman, behind one API.

:mod:`control.compute.backend` is the seam that all backends are behind,
:mod:`control.compute.machine` the life of a container, :mod:`control.compute.driver`
what makes it happen.
"""

from __future__ import annotations

from control.compute.module import Compute

__all__ = ["Compute"]
