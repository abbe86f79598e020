"""Containers on this machine, run by Podman. See :mod:`control.compute.podman.backend`."""

from __future__ import annotations

from control.compute.podman.backend import Podman, make

__all__ = ["Podman", "make"]
